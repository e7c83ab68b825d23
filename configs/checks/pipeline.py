"""Pipeline stages, recomputed activations, overlapped communication: what cannot be, refused in one line."""

from __future__ import annotations

from configs.pipeline import AUTO, parse_layout, stage_count, stages_of
from configs.schema import Config, Recompute, RecomputeMethod
from runtime.exits import BadInput

RECOMPUTABLE = ("core_attn", "layernorm", "mlp")


def check_pipeline(config: Config) -> None:
    parallel = config.parallel
    if parallel.virtual_pipeline == 1:
        raise BadInput("parallel.virtual_pipeline=1 is the plain pipeline; say null")
    for key, value in (
        ("virtual_pipeline", parallel.virtual_pipeline),
        ("pipeline_layout", parallel.pipeline_layout),
    ):
        if value is not None and parallel.pipeline == 1:
            raise BadInput(f"parallel.{key}={value} needs parallel.pipeline above 1")
    _check_stages(config)
    _check_recompute(config)
    _check_overlap(config)


def check_micro_batches(config: Config, data: int) -> None:
    """That every call of the pipeline gets whole micro-batches, and an interleaved one as many as it has stages."""
    parallel, size = config.parallel, config.train.micro_batch
    validation = config.train.validation_packs // data
    if (parallel.pipeline > 1 or parallel.sequence) and validation % size:
        raise BadInput(
            f"train.validation_packs={config.train.validation_packs} over {data} data-parallel copies is no multiple "
            f"of train.micro_batch={size}"
        )
    if parallel.virtual_pipeline is None:
        return
    for key, value, count in (
        ("global_batch", config.train.global_batch, config.train.global_batch // data // size),
        ("validation_packs", config.train.validation_packs, validation // size),
    ):
        if count % parallel.pipeline:
            raise BadInput(
                f"train.{key}={value} makes {count} micro-batches a data-parallel copy; the interleaved pipeline needs "
                f"a multiple of parallel.pipeline={parallel.pipeline}"
            )


def _check_stages(config: Config) -> None:
    parallel, layers, layout = config.parallel, config.backbone.layers, config.parallel.pipeline_layout
    count = stage_count(parallel)
    shape = f"parallel.pipeline={parallel.pipeline}" + (
        f" x virtual_pipeline={parallel.virtual_pipeline}" if parallel.virtual_pipeline else ""
    )
    if layout is None:
        if layers % count:
            raise BadInput(
                f"{shape} does not divide backbone.layers={layers}; parallel.pipeline_layout says what each stage "
                'holds ("auto" balances them)'
            )
    elif layout == AUTO:
        if layers < count - 1:
            raise BadInput(f"backbone.layers={layers} are too few for the {count} stages of {shape}")
    else:
        stages = parse_layout(layout)
        if len(stages) != count:
            raise BadInput(f"parallel.pipeline_layout={layout} has {len(stages)} stages, {shape} makes {count}")
        held = sum(stage.layers for stage in stages)
        if held != layers:
            raise BadInput(f"parallel.pipeline_layout={layout} has {held} layers t, backbone.layers={layers}")


def _check_recompute(config: Config) -> None:
    parallel = config.parallel
    if parallel.recompute is Recompute.selective:
        if not parallel.recompute_modules:
            raise BadInput("parallel.recompute=selective: parallel.recompute_modules is empty")
        for name in parallel.recompute_modules:
            if name not in RECOMPUTABLE:
                raise BadInput(f"parallel.recompute_modules: {name} is not one of {', '.join(RECOMPUTABLE)}")
    if parallel.recompute is not Recompute.full or parallel.recompute_layers == 1:
        return
    each = parallel.recompute_layers
    if parallel.pipeline_layout == AUTO:
        raise BadInput(f"parallel.recompute_layers={each} needs stages of known size: write the layout instead of auto")
    sizes = sorted({stage.layers for stage in stages_of(config.backbone, parallel, 0)} - {0})
    if parallel.recompute_method is RecomputeMethod.uniform and any(size % each for size in sizes):
        raise BadInput(f"parallel.recompute_layers={each} does not divide the layers of each stage, {sizes}")
    if each > sizes[-1]:
        raise BadInput(f"parallel.recompute_layers={each} is above the layers of the largest stage, {sizes[-1]}")


def _check_overlap(config: Config) -> None:
    parallel = config.parallel
    if parallel.overlap_parameters and not parallel.distributed_optimizer:
        raise BadInput(
            "parallel.overlap_parameters=true needs parallel.distributed_optimizer=true: nothing else gathers them"
        )
    if parallel.overlap_parameters and not parallel.overlap_gradients:
        raise BadInput("parallel.overlap_parameters=true needs parallel.overlap_gradients=true")
    if parallel.bucket_size is not None and not parallel.overlap_gradients:
        raise BadInput(f"parallel.bucket_size={parallel.bucket_size} needs parallel.overlap_gradients=true")
