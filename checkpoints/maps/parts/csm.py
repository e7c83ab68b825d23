"""CSM as transformers has it: a Llama that reads text and codes, a smaller one that goes over a frame's codebooks, and
a head for each codebook. Its codec, Mimi, is no part of the language model and stays where it is.

The backbone's layers have the native names of any text LLM, so the trunk here can load them; the depth decoder's have
the same behind `depth.`. The modules that train depth decoder and heads come later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from checkpoints.maps import llama
from checkpoints.maps.parts.part import Part, Placed
from checkpoints.rules import COPY, Rule


def _llama(config_json: Mapping[str, Any], foreign: str, native: str) -> list[Placed]:
    """Layers and last norm of a Llama, its names behind `foreign` there and `native` here."""
    of = llama.FORM.read_config(config_json)
    moved = [
        replace(
            rule,
            native=native + rule.native,
            foreign=tuple(foreign + name.removeprefix("model.") for name in rule.foreign),
        )
        for rule in llama.rules(of)
        if not rule.vocabulary
    ]
    return [Placed(rule, of.layers, of) for rule in moved]


def _placed(config_json: Mapping[str, Any], prefix: str) -> list[Placed]:
    depth = f"{prefix}depth_decoder.model."
    tied = bool(config_json.get("tie_codebooks_embeddings", True))
    single = {
        "embedding.word_embeddings.weight": f"{prefix}embed_text_tokens.weight",
        "depth.embedding.weight": f"{depth}embed_tokens.weight",
        "depth.projection.weight": f"{depth}inputs_embeds_projector.weight",
        "heads.first.weight": f"{prefix}lm_head.weight",
        "heads.codebooks.weight": f"{prefix}depth_decoder.codebooks_head.weight",
    }
    codes = Rule("audio_embedding.weight", (f"{prefix}backbone_model.embed_tokens.embed_audio_tokens.weight",), COPY)
    return [
        *(Placed(Rule(native, (foreign,), COPY)) for native, foreign in single.items()),
        Placed(codes, optional=tied),  # the depth decoder's embedding a second time
        *_llama(config_json, f"{prefix}backbone_model.", ""),
        *_llama(config_json.get("depth_decoder_config") or {}, depth, "depth."),
    ]


CSM = Part("CSM", ("",), _placed, elsewhere=("codec_model.",))
