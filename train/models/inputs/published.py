"""An encoder's published weights, for a model that has them in it."""

from __future__ import annotations

from functools import cached_property

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from configs.schema import EncoderConfig, EncoderKind
from data_pipeline.codecs import sanm_encoder, whisper_encoder
from data_pipeline.codecs.encoder_sizes import SETTING
from runtime.exits import BadInput
from train.models.parameters import numbered


class PublishedEncoder:
    """Read once, when the first of them is asked for."""

    def __init__(self, config: EncoderConfig) -> None:
        self._config = config

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        assert self._config.weights is not None
        if self._config.kind is EncoderKind.whisper:
            return dict(whisper_encoder.load_encoder(self._config.weights, SETTING).state_dict())
        return dict(sanm_encoder.load_encoder(self._config).state_dict())

    @torch.no_grad()
    def fill(self, held: ShardedTensor) -> None:
        """Copy what a parameter of the model's `encoder` is published as. Raises BadInput where it is not there in its
        shape."""
        name = numbered(held).partition(".")[2]
        found, wanted = self._tensors.get(name), list(held.data.shape)
        if found is None or list(found.shape) != wanted:
            there = "is not there" if found is None else f"has shape {list(found.shape)}"
            raise BadInput(
                f"encoder.weights={self._config.weights}: {name} {there}, encoder {self._config.name} has {wanted}"
            )
        held.data.copy_(found)
