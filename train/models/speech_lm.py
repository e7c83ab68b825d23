"""SpeechLM: a text LLM whose vocabulary also holds audio codes, and that may hear through an encoder's vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.gpt import GPTModel

from configs.audio_input import AudioInput
from configs.schema import BackboneConfig
from data_pipeline.batch import Batch, Splice
from data_pipeline.layouts import Layout
from runtime.exits import BadInput
from train.models.attention.row import packed_row
from train.models.experts import part_of_sequence
from train.models.gradients import Embedding
from train.models.heads.language import LANGUAGE, LanguageHead
from train.models.heads.likeliest import Asked
from train.models.heads.reward import REWARD, RewardHead
from train.models.heads.terms import Targets
from train.models.inputs.adapter import make_adapter
from train.models.inputs.encoder import make_encoder
from train.models.inputs.splice import heard, mark_partial, spliced
from train.models.trunk import trunk_spec
from train.models.trunk_config import TrunkConfig


class ScaledEmbedding(LanguageModelEmbedding):
    """Megatron-Core's embedding, times `TrunkConfig.embedding_multiplier`."""

    def forward(self, *given: Any, **named: Any) -> torch.Tensor:
        return super().forward(*given, **named) * self.config.embedding_multiplier


class SpeechLM(GPTModel):
    """Megatron-Core's GPT model on packed batches: embedding on the first stage, trunk, LM head on the last.

    What it holds follows from the rank's place in the process groups and, under an interleaved pipeline, from
    `virtual_stage`, the chunk's number among the rank's. `padded_vocabulary` counts embedding rows.
    """

    def __init__(
        self, backbone: BackboneConfig, config: TrunkConfig, padded_vocabulary: int, virtual_stage: int = 0
    ) -> None:
        super().__init__(
            config=config,
            transformer_layer_spec=trunk_spec(config, virtual_stage),
            vocab_size=padded_vocabulary,
            max_sequence_length=backbone.max_positions,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=virtual_stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=virtual_stage),
            position_embedding_type="none",  # our core attention applies positions
            share_embeddings_and_output_weights=backbone.tied_embeddings,
            vp_stage=virtual_stage,
        )
        if self.pre_process and config.embedding_multiplier != 1.0:
            self.embedding.__class__ = ScaledEmbedding
        if self.post_process:  # what GPTModel built and marked, with another forward pass
            self.output_layer.__class__ = LanguageHead
        if self.post_process and config.reward:
            self.reward_head = RewardHead(config)
        if self.pre_process:
            self.embedding.word_embeddings.__class__ = Embedding
        if self.pre_process and self.post_process and backbone.tied_embeddings:
            self.output_layer.looked_up = True
            # Megatron-Core's own head and embedding would need one, for each to hand over a gradient.
            self.shared_embedding_or_output_weight().zero_out_wgrad = False
        if self.pre_process and config.audio_input is not None:
            self._add_audio_input(config.audio_input)

    def _add_audio_input(self, audio: AudioInput) -> None:
        """Adapter, and encoder where it is part of the model: whole on every tensor-parallel rank."""
        if audio.encoder.in_model:
            self.encoder = make_encoder(audio.encoder).to(self.config.params_dtype)
        self.adapter = make_adapter(audio, self.config.hidden_size).to(self.config.params_dtype)
        if self.config.sequence_parallel:
            mark_partial([module for name, module in self.named_children() if name in ("adapter", "encoder")])

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: None,
        *,
        splice: Splice | None = None,
        **given: Any,
    ) -> Any:
        """As Megatron-Core's; splice: what is heard, and where in the row."""
        if self.pre_process and self.config.audio_input is not None:
            hidden = self.embedding(input_ids=input_ids.clamp(min=0), position_ids=position_ids)
            places = heard(self.config.audio_input, self.adapter, getattr(self, "encoder", None), splice)
            given["decoder_input"] = spliced(hidden, places, splice, cut=self.config.sequence_parallel)
        return super().forward(input_ids, position_ids, attention_mask, **given)

    def _preprocess(self, *, padding_mask: torch.Tensor | None = None, **given: Any) -> tuple[Any, ...]:
        """Megatron-Core's beginning of the forward pass; `padding_mask` is `Batch.packs`, for the routers of experts.

        Megatron-Core 0.16.1 cuts it for sequence parallelism on the first pipeline stage alone.
        """
        made = super()._preprocess(padding_mask=None, **given)
        packs = padding_mask if self.config.experts is not None else None
        return (*made[:5], None if packs is None else part_of_sequence(packs, self.config), *made[6:])

    def _postprocess(self, hidden_states: torch.Tensor, labels: Targets | Asked | None = None, **given: Any) -> Any:
        """Megatron-Core's end of the forward pass, with our head where more than logits is asked for."""
        if labels is None or not self.post_process:
            return super()._postprocess(hidden_states=hidden_states, labels=None, **given)
        if self.config.reward:
            return {REWARD: self.reward_head(hidden_states, self.pg_collection.tp, self.config.sequence_parallel)}
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else None
        return {LANGUAGE: self.output_layer(hidden_states, weight=weight, targets=labels)}


def check_layouts(layouts: Mapping[str, Layout], audio: AudioInput | None) -> None:
    """Raises BadInput for a layout, by its source, of which `run` cannot take all that it makes; audio: what the model
    hears through."""
    for source, layout in layouts.items():
        if not layout.plain:
            raise BadInput(
                f"source {source}: layout {layout.name} makes several columns, further targets or sound with these "
                "options, and the model reads one column of tokens"
            )
        if layout.hears is None:
            continue
        if audio is None:
            raise BadInput(
                f"source {source}: layout {layout.name} gives places to the features {layout.hears[0]}, and the model "
                "has no adapter to hear them through: choose one, such as adapter=mlp"
            )
        if layout.hears != (audio.features, audio.stride):
            raise BadInput(
                f"source {source}: layout {layout.name} has the options encoder {layout.hears[0]}, stride "
                f"{layout.hears[1]}; the model hears encoder {audio.features}, stride {audio.stride}"
            )


def run(model: torch.nn.Module, batch: Batch, targets: Targets | Asked | None = None) -> Any:
    """Forward a packed batch through `model`, a SpeechLM or a wrapper around one.

    Returns hidden states [N / SP, 1, hidden] on all stages but the last. There: without targets, the logits of this
    tensor-parallel rank's slice of the vocabulary [1, N, V / TP]; with targets, `heads.terms.Losses`; where likeliest
    tokens are asked for, those of each range (`heads.likeliest.likeliest`) by the head's name.
    """
    return model(
        input_ids=batch.tokens,
        position_ids=batch.positions,
        attention_mask=None,
        labels=targets,
        splice=next(iter(batch.splices.values()), None),
        packed_seq_params=packed_row(batch),
        padding_mask=batch.packs,
    )
