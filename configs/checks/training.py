"""Backbone, optimiser and steps: values that cannot work together, refused in one line."""

from __future__ import annotations

from configs.parameter_names import matcher
from configs.schema import Config
from configs.schema.training import DEFAULT_GROUPS
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
    check_checkpoints(config)
    if config.train.validate_every and not config.train.validation_packs:
        raise BadInput("train.validate_every asks for validation of train.validation_packs=0 packs; set one of them")


def check_trained(config: Config) -> None:
    """Patterns that are none, groups that clash, low-rank updates without a rank: what needs no model to be seen."""
    stage, optimizer = config.stage, config.optimizer
    for group, factor in optimizer.lr_multipliers.items():
        if group not in DEFAULT_GROUPS:
            raise BadInput(f"optimizer.lr_multipliers.{group}: no such group; there are {', '.join(DEFAULT_GROUPS)}")
        if factor < 0:
            raise BadInput(f"optimizer.lr_multipliers.{group}={factor}: has to be 0 or above")
    rates = optimizer.lr_multipliers
    if config.backbone.tied_embeddings and rates.get("head", rates.get("embedding")) != rates.get("embedding"):
        raise BadInput("optimizer.lr_multipliers.head: the head is tied to the embedding, give both the same")
    for name, wanted in optimizer.groups.items():
        key = f"optimizer.groups.{name}"
        if name in DEFAULT_GROUPS:
            raise BadInput(f"{key}: {name} is what no other group claims; take another name")
        if not wanted.match:
            raise BadInput(f"{key}.match is empty; a group needs a name pattern")
        for value in ("lr_multiplier", "weight_decay"):
            if (getattr(wanted, value) or 0.0) < 0:
                raise BadInput(f"{key}.{value}={getattr(wanted, value)}: has to be 0 or above")
    patterns = [*(stage.trainable or []), *stage.frozen, *(p for g in optimizer.groups.values() for p in g.match)]
    if stage.lora is not None:
        patterns += stage.lora.targets
        for value in ("rank", "alpha"):
            if getattr(stage.lora, value) <= 0:
                raise BadInput(f"stage.lora.{value}={getattr(stage.lora, value)}: has to be above 0")
        if not stage.lora.targets:
            raise BadInput("stage.lora.targets is empty; it needs a pattern of the linear layers to update")
    for pattern in patterns:
        matcher(pattern)


def check_checkpoints(config: Config) -> None:
    every, keep_every = config.checkpoint.every, config.checkpoint.keep_every
    if keep_every and (not every or keep_every % every):
        raise BadInput(
            f"checkpoint.keep_every={keep_every}: has to be a multiple of checkpoint.every={every}, at whose steps "
            "checkpoints are made"
        )
