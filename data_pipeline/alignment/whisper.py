"""A whole Whisper: what it hears of a sound, and where its decoder looks while it writes a text.

Sound is padded to Whisper's 30 s, as it was trained. Decoding is greedy, one hypothesis, without time stamps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.alignment.pretrained import load_model, load_part
from data_pipeline.alignment.whisper_weights import decoder_state, read_packages
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.codecs.log_mel import LogMel
from data_pipeline.codecs.whisper_encoder import encoder_of
from data_pipeline.packages import PACKAGE
from runtime.exits import BadInput

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

WINDOW = 30  # seconds
FRAME = 0.02  # seconds of sound that an encoder state stands for
_LONGEST = 200  # tokens written of one window; greedy decoding that goes on for longer repeats itself


class Whisper:
    """A Whisper with its tokenizer, read when it is first used."""

    def __init__(self, spec: str, setting: str) -> None:
        """`spec`: a folder, a hub name, or package:<first>+<second>, whose files come in parts. `setting` is named in
        messages."""
        self._spec = spec
        self._setting = setting

    @cached_property
    def _loaded(self) -> tuple[Any, Tokenizer, dict[str, Any]]:
        if self._spec.startswith(PACKAGE):
            return _from_packages(self._spec)
        return _from_pretrained(self._spec, self._setting)

    @cached_property
    def _mel(self) -> LogMel:
        return LogMel(self._loaded[0].config.num_mel_bins)

    def prompt(self, language: str) -> list[int] | None:
        """What decoding starts from; None for a language that this Whisper does not know."""
        _, tokenizer, _ = self._loaded
        begin, transcribe = "<|startoftranscript|>", "<|transcribe|>"
        multilingual = self._loaded[0].config.vocab_size >= 51865
        if not multilingual:
            words = [begin, "<|notimestamps|>"] if language == "en" else []
        else:
            words = [begin, f"<|{language}|>", transcribe, "<|notimestamps|>"]
        ids = [token for word in words if (token := tokenizer.token_to_id(word)) is not None]
        return ids if ids and len(ids) == len(words) else None

    @property
    def end(self) -> int:
        """Id of the token that ends a text."""
        end = self._loaded[1].token_to_id("<|endoftext|>")
        assert end is not None  # of every Whisper
        return end

    @property
    def alignment_heads(self) -> list[tuple[int, int]]:
        """(layer, head) of the heads that look where the words are spoken; all of the upper half of the layers where
        the model's makers name none."""
        model, _, settings = self._loaded
        layers, heads = model.config.decoder_layers, model.config.decoder_attention_heads
        named = settings.get("alignment_heads")
        if named:
            return [(int(layer), int(head)) for layer, head in named]
        return [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]

    def tokens(self, text: str) -> list[int]:
        return list(self._loaded[1].encode(text, add_special_tokens=False).ids)

    def encode(self, wave: np.ndarray) -> torch.Tensor:
        """float32 [1, 1500, width] of at most 30 s of sound."""
        import torch

        padded = np.zeros(WINDOW * SAMPLE_RATE, np.float32)
        padded[: len(wave)] = wave
        with torch.inference_mode():
            return self._loaded[0].model.encoder(self._mel(padded)[None]).last_hidden_state

    def transcribe(self, wave: np.ndarray, language: str) -> str | None:
        """What is said in `wave`, float32 [samples] at 16 kHz; None for a language that this Whisper does not know.
        Sound longer than 30 s is cut where it is quietest."""
        prompt = self.prompt(language)
        if prompt is None:
            return None
        parts = [self._decode(self.encode(part), prompt) for part in windows(wave)]
        return " ".join(part.strip() for part in parts)

    def _decode(self, states: torch.Tensor, prompt: list[int]) -> str:
        import torch

        model, tokenizer, settings = self._loaded
        never = torch.zeros(model.config.vocab_size)
        never[list(settings.get("suppress_ids") or [])] = -torch.inf
        first = torch.zeros(model.config.vocab_size)
        first[list(settings.get("suppress_ids_begin") or [])] = -torch.inf
        written: list[int] = []
        fed, cache = torch.tensor([prompt]), None
        with torch.inference_mode():
            while len(written) < _LONGEST:
                out = model.model.decoder(
                    input_ids=fed, encoder_hidden_states=states, past_key_values=cache, use_cache=True
                )
                cache = out.past_key_values
                scores = model.proj_out(out.last_hidden_state[0, -1]) + never + (0 if written else first)
                token = int(scores.argmax())
                if token == self.end:
                    break
                written.append(token)
                fed = torch.tensor([[token]])
        return str(tokenizer.decode(written, skip_special_tokens=True))

    def attention(self, wave: np.ndarray, prompt: Sequence[int], text: Sequence[int]) -> np.ndarray:
        """float32 [alignment heads, text + 1, 1500]: the decoder's attention over frames while it writes each token of
        `text`, and the token that ends it."""
        import torch

        model = self._loaded[0]
        with torch.inference_mode():
            out = model.model.decoder(
                input_ids=torch.tensor([[*prompt, *text]]),
                encoder_hidden_states=self.encode(wave),
                output_attentions=True,
                use_cache=False,
            )
        heads = [out.cross_attentions[layer][0, head] for layer, head in self.alignment_heads]
        return torch.stack(heads)[:, len(prompt) - 1 :].numpy()


@lru_cache(1)
def open_whisper(spec: str, setting: str) -> Whisper:
    """One for all who ask: what measures transcripts also times words."""
    return Whisper(spec, setting)


def windows(wave: np.ndarray) -> list[np.ndarray]:
    """`wave` in parts of at most 30 s, cut in the middle of the quietest 0.2 s of their last third."""
    longest, hop = WINDOW * SAMPLE_RATE, SAMPLE_RATE // 5
    parts = []
    while len(wave) > longest:
        tail = wave[longest * 2 // 3 : longest]
        power = np.square(tail[: len(tail) // hop * hop]).reshape(-1, hop).sum(1)
        cut = longest * 2 // 3 + int(power.argmin()) * hop + hop // 2
        parts.append(wave[:cut])
        wave = wave[cut:]
    return [*parts, wave]


def _from_packages(spec: str) -> tuple[Any, Tokenizer, dict[str, Any]]:
    import torch
    from tokenizers import Tokenizer
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    variables, folder = read_packages(spec)
    encoder = encoder_of(variables)
    state, sizes = decoder_state(variables)
    config = WhisperConfig(**(encoder.config.to_dict() | sizes))
    config._attn_implementation = "eager"  # which alone gives the attention of its decoder
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    model.model.encoder = encoder
    missing = model.load_state_dict(state, strict=False, assign=True)
    if missing.unexpected_keys or any(not name.startswith("model.encoder.") for name in missing.missing_keys):
        raise BadInput(f"{spec}: not a Whisper that this release knows")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json")), settings


def _from_pretrained(spec: str, setting: str) -> tuple[Any, Tokenizer, dict[str, Any]]:
    from transformers import AutoTokenizer, WhisperForConditionalGeneration

    what = "a Whisper's folder, hub name or package"
    model = load_model(WhisperForConditionalGeneration, spec, setting, what, attn_implementation="eager")
    tokenizer = load_part(AutoTokenizer, spec, setting, what).backend_tokenizer
    generation = model.generation_config
    settings = {
        "suppress_ids": getattr(generation, "suppress_tokens", None),
        "suppress_ids_begin": getattr(generation, "begin_suppress_tokens", None),
        "alignment_heads": getattr(generation, "alignment_heads", None),
    }
    return model, tokenizer, settings


def whisper_identity(spec: str, setting: str) -> str:
    """What the weights are, for content hashes. Raises BadInput for a package that is not installed."""
    from data_pipeline.codecs.weights import weights_identity

    if spec.startswith(PACKAGE):
        return "; ".join(weights_identity(PACKAGE + name, setting) for name in spec.removeprefix(PACKAGE).split("+"))
    return weights_identity(spec, setting) if Path(spec).exists() else spec
