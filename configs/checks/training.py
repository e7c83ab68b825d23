"""Backbone, optimiser and steps: values that cannot work together, refused in one line."""

from __future__ import annotations

from configs.schema import Config
from runtime.exits import BadInput


def check_backbone(config: Config) -> None:
    backbone = config.backbone
    if backbone.heads % backbone.kv_heads:
        raise BadInput(f"backbone.kv_heads={backbone.kv_heads} does not divide backbone.heads={backbone.heads}")
    if backbone.head_dim is None and backbone.hidden % backbone.heads:
        raise BadInput(
            f"backbone.heads={backbone.heads} does not divide backbone.hidden={backbone.hidden}; "
            "give backbone.head_dim if that is meant"
        )
    if config.train.sequence_length > backbone.max_positions:
        raise BadInput(
            f"train.sequence_length={config.train.sequence_length} is above "
            f"backbone.max_positions={backbone.max_positions}"
        )


def check_training(config: Config) -> None:
    if config.optimizer.warmup_steps > config.train.steps:
        raise BadInput(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps} is above train.steps={config.train.steps}"
        )
    if config.train.sequence_length > config.backbone.max_positions:
        raise BadInput(
            f"train.sequence_length={config.train.sequence_length} is above "
            f"backbone.max_positions={config.backbone.max_positions}"
        )
    rates = config.optimizer.lr_multipliers
    if config.backbone.tied_embeddings and rates.get("head", rates.get("embedding")) != rates.get("embedding"):
        raise BadInput("optimizer.lr_multipliers.head: the head is tied to the embedding, give both the same")
    if config.train.validate_every and not config.train.validation_packs:
        raise BadInput("train.validate_every asks for validation of train.validation_packs=0 packs; set one of them")
