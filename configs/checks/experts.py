"""Experts: what cannot be, refused in one line."""

from __future__ import annotations

from configs.schema import Config, ExpertKernel, Precision
from runtime.exits import BadInput


def check_experts(config: Config, data: int | None) -> None:
    """`data`: copies of the model over the data-parallel ranks, where their number is known."""
    experts, parallel = config.backbone.experts, config.parallel
    if experts is None:
        if parallel.expert > 1:
            raise BadInput(f"parallel.expert={parallel.expert} needs backbone.experts; this backbone has none")
        return
    for key in ("count", "ffn", "top_k"):
        if getattr(experts, key) < 1:
            raise BadInput(f"backbone.experts.{key}={getattr(experts, key)}: has to be above 0")
    for key in ("dense_first", "balance", "z"):
        if getattr(experts, key) < 0:
            raise BadInput(f"backbone.experts.{key}={getattr(experts, key)}: has to be 0 or above")
    if experts.top_k > experts.count:
        raise BadInput(f"backbone.experts.top_k={experts.top_k} is above backbone.experts.count={experts.count}")
    if experts.top_k == 1 and experts.normalise_top_k:
        raise BadInput(
            "backbone.experts.normalise_top_k=true with top_k=1: every weight would be 1, and the router would learn "
            "nothing; set it to false"
        )
    if experts.dense_first >= config.backbone.layers:
        raise BadInput(
            f"backbone.experts.dense_first={experts.dense_first} leaves none of backbone.layers="
            f"{config.backbone.layers} for experts"
        )
    if config.train.experts is ExpertKernel.grouped and config.train.precision is not Precision.bf16:
        raise BadInput("train.experts=grouped needs train.precision=bf16")
    _check_spread(config, data)


def _check_spread(config: Config, data: int | None) -> None:
    experts, parallel = config.backbone.experts, config.parallel
    assert experts is not None
    if config.engine.name != "megatron":
        raise BadInput(f"backbone.experts: engine.name={config.engine.name} cannot; engine.name=megatron can")
    if parallel.tensor > 1 and not parallel.sequence:
        raise BadInput(
            f"backbone.experts with parallel.tensor={parallel.tensor} needs parallel.sequence=true: tokens are dealt "
            "to experts from ranks that each have tokens of their own"
        )
    if experts.count % parallel.expert:
        raise BadInput(f"parallel.expert={parallel.expert} does not divide backbone.experts.count={experts.count}")
    if data is None:
        return
    stage = parallel.tensor * parallel.context * data
    if stage % parallel.expert:
        raise BadInput(
            f"parallel.expert={parallel.expert} does not divide the {stage} ranks of a pipeline stage (parallel.tensor "
            "x context x data-parallel copies)"
        )
