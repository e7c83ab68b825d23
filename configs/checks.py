"""Impossible and not-yet-built configurations, refused in one line before any process starts."""

from __future__ import annotations

import math
from collections.abc import Collection

from configs.codec_checks import check_codec
from configs.quality_checks import check_alignment, check_quality
from configs.schema import Config, CorpusConfig, CutConfig, SourceConfig
from runtime.exits import BadInput

# Rows of the embedding are padded to this; every tensor-parallel size has to divide it (Vocabulary.multiple).
VOCABULARY_MULTIPLE = 128

ENGINES = ("megatron",)
LATER_ENGINES = ("deepspeed",)
OBJECTIVES = ("pretrain",)
OPTIMIZERS = ("adamw",)
TRACKER_MODES = ("offline", "online", "disabled")
PARAMETER_GROUPS = ("embedding", "head", "trunk")


def check(config: Config, processes: int | None = None) -> None:
    """Raise BadInput for the first value of `config` that cannot work.

    `processes` is their number, where it is known: then the topology has to fill it, and batches and lanes
    have to divide over the data-parallel ranks that follow from it.
    """
    _check_signs(config)
    check_corpus(config)
    _check_names(config)
    _check_not_yet(config)
    _check_backbone(config)
    _check_topology(config)
    _check_training(config)
    _check_mixture(config)
    _check_data_parallel(config, data_parallel_size(config, processes))


def check_corpus(config: Config) -> None:
    """Raise BadInput for the first value that cannot work in what a corpus is built from: `corpus` and `codec`."""
    _check_signs(config, ("corpus",))
    _check_making(config.corpus)
    check_codec(config.codec)
    check_quality(config.corpus.quality)
    check_alignment(config.corpus.alignment)


def model_parallel_size(config: Config) -> int:
    """Processes that share one copy of the model: tensor x pipeline x context."""
    return config.parallel.tensor * config.parallel.pipeline * config.parallel.context


def data_parallel_size(config: Config, processes: int | None = None) -> int:
    """Copies of the model over `processes`; without it, what `parallel.data` says, or one.

    Raises BadInput where the topology does not fill `processes` exactly.
    """
    given = config.parallel.data
    if processes is None:
        return given or 1
    model = model_parallel_size(config)
    shape = f"parallel.tensor x pipeline x context = {model}"
    if processes % model:
        raise BadInput(f"{shape} does not divide the {processes} processes")
    if given is not None and given != processes // model:
        made = processes // model
        raise BadInput(f"parallel.data={given}, but {processes} processes with {shape} make {made} copies")
    return processes // model


# --- one kind of check each -----------------------------------------------------------------------------------------

_POSITIVE = {
    "backbone": ("layers", "hidden", "ffn", "heads", "kv_heads", "norm_eps", "rope_base", "init_std", "max_positions"),
    "corpus": ("speech_minutes", "shard_minutes", "longest_seconds"),
    "loader": ("lanes", "packing_window", "shuffle_documents"),
    "train": ("steps", "global_batch", "micro_batch", "sequence_length"),
    "optimizer": ("lr", "eps"),
    "parallel": ("tensor", "pipeline", "context", "expert"),
    "tracker": ("console_every",),
}
_NOT_NEGATIVE = {
    "corpus": ("text_characters",),
    "loader": ("workers", "prefetch"),
    "train": ("seed", "validate_every", "validation_packs", "checkpoint_every", "keep_checkpoints"),
    "optimizer": ("weight_decay", "clip_grad", "warmup_steps"),
}
_SHARE = {
    "corpus": ("validation_share", "damaged_share"),
    "loader": ("damaged_share",),
    "optimizer": ("beta1", "beta2", "floor"),
}
_POSITIVE_IF_GIVEN = {
    "backbone": ("head_dim",),
    "corpus": ("workers", "tasks"),
    "parallel": ("virtual_pipeline", "data"),
}


def _check_signs(config: Config, sections: Collection[str] | None = None) -> None:
    """Of the values in `sections`; None: in all of them."""
    for rules, holds, wanted in (
        (_POSITIVE, lambda value: value > 0, "above 0"),
        (_NOT_NEGATIVE, lambda value: value >= 0, "0 or above"),
        (_SHARE, lambda value: 0 <= value <= 1, "from 0 to 1"),
        (_POSITIVE_IF_GIVEN, lambda value: value is None or value > 0, "above 0, or null"),
    ):
        for section, keys in rules.items():
            for key in keys if sections is None or section in sections else ():
                value = getattr(getattr(config, section), key)
                if not holds(value):
                    raise BadInput(f"{section}.{key}={value}: has to be {wanted}")


def _check_names(config: Config) -> None:
    if config.engine.name in LATER_ENGINES:
        raise BadInput(f"engine={config.engine.name} is not there yet; engine=megatron is")
    for key, value, known in (
        ("engine.name", config.engine.name, ENGINES),
        ("stage.objective", config.stage.objective, OBJECTIVES),
        ("optimizer.name", config.optimizer.name, OPTIMIZERS),
        ("tracker.wandb", config.tracker.wandb, TRACKER_MODES),
    ):
        if value not in known:
            raise BadInput(f"{key}={value}: not one of {', '.join(known)}")
    for group, factor in config.optimizer.lr_multipliers.items():
        if group not in PARAMETER_GROUPS:
            raise BadInput(f"optimizer.lr_multipliers.{group}: no such group; there are {', '.join(PARAMETER_GROUPS)}")
        if factor < 0:
            raise BadInput(f"optimizer.lr_multipliers.{group}={factor}: has to be 0 or above")


def _check_not_yet(config: Config) -> None:
    parallel = config.parallel
    for key, size, what in (
        ("virtual_pipeline", parallel.virtual_pipeline or 1, "the interleaved pipeline"),
        ("context", parallel.context, "context parallelism"),
        ("expert", parallel.expert, "expert parallelism"),
    ):
        if size > 1:
            raise BadInput(f"parallel.{key}={size}: {what} is not there yet; leave it at 1")


def _check_backbone(config: Config) -> None:
    backbone = config.backbone
    if backbone.heads % backbone.kv_heads:
        raise BadInput(f"backbone.kv_heads={backbone.kv_heads} does not divide backbone.heads={backbone.heads}")
    if backbone.head_dim is None and backbone.hidden % backbone.heads:
        raise BadInput(
            f"backbone.heads={backbone.heads} does not divide backbone.hidden={backbone.hidden}; "
            "give backbone.head_dim if that is meant"
        )
    head_dim = backbone.head_dim or backbone.hidden // backbone.heads
    if head_dim % 2:
        raise BadInput(f"a head has {head_dim} dimensions; rotary positions need an even number")
    if config.train.sequence_length > backbone.max_positions:
        raise BadInput(
            f"train.sequence_length={config.train.sequence_length} is above "
            f"backbone.max_positions={backbone.max_positions}"
        )


def _check_topology(config: Config) -> None:
    tensor, pipeline = config.parallel.tensor, config.parallel.pipeline
    for key, count in (
        ("backbone.heads", config.backbone.heads),
        ("backbone.kv_heads", config.backbone.kv_heads),
        ("backbone.ffn", config.backbone.ffn),
        ("backbone.hidden", config.backbone.hidden),
    ):
        if count % tensor:
            raise BadInput(f"parallel.tensor={tensor} does not divide {key}={count}")
    if VOCABULARY_MULTIPLE % tensor:
        raise BadInput(f"parallel.tensor={tensor} does not divide the vocabulary's padding of {VOCABULARY_MULTIPLE}")
    if config.backbone.layers % pipeline:
        raise BadInput(f"parallel.pipeline={pipeline} does not divide backbone.layers={config.backbone.layers}")
    if config.parallel.sequence:
        if tensor == 1:
            raise BadInput("parallel.sequence=true needs parallel.tensor above 1")
        tokens = config.train.sequence_length * config.train.micro_batch
        if tokens % tensor:
            raise BadInput(
                f"parallel.sequence=true: parallel.tensor={tensor} does not divide "
                f"train.sequence_length x train.micro_batch = {tokens}"
            )


def _check_training(config: Config) -> None:
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


def _check_mixture(config: Config) -> None:
    if not config.mixture.sources:
        raise BadInput("mixture.sources is empty: there is nothing to train on")
    for name, source in config.mixture.sources.items():
        _check_source(f"mixture.sources.{name}", source)


def _check_source(key: str, source: SourceConfig) -> None:
    if not 0 < source.weight < math.inf:
        raise BadInput(f"{key}.weight={source.weight}: has to be above 0, and finite")
    if source.epochs is not None and source.epochs < 1:
        raise BadInput(f"{key}.epochs={source.epochs}: has to be above 0, or null")
    if source.layout is None and not source.sources:
        raise BadInput(f"{key} has neither a layout nor sources of its own: give {key}.layout")
    if source.sources:
        for name in ("layout", "corpus", "options", "filter", "epochs"):
            if getattr(source, name):
                raise BadInput(f"{key}.{name} is of a mixture inside the mixture; give it to {key}.sources.*")
    for name, inner in source.sources.items():
        _check_source(f"{key}.sources.{name}", inner)


def _check_data_parallel(config: Config, data: int) -> None:
    copies = f"the {data} data-parallel copies"
    if config.loader.lanes % data:
        raise BadInput(f"loader.lanes={config.loader.lanes} does not divide over {copies}")
    step = data * config.train.micro_batch
    if config.train.global_batch % step:
        raise BadInput(
            f"train.global_batch={config.train.global_batch} is no multiple of "
            f"{data} data-parallel copies x train.micro_batch={config.train.micro_batch}"
        )
    if config.train.validation_packs % data:
        raise BadInput(f"train.validation_packs={config.train.validation_packs} does not divide over {copies}")


def check_cut(cut: CutConfig, where: str) -> None:
    """Raise BadInput for the first value of `cut`, the section `where` of a config, that cannot work."""
    if not 0 < cut.lower_threshold <= cut.threshold < 1:
        raise BadInput(
            f"{where}: needs 0 < lower_threshold <= threshold < 1, got {cut.lower_threshold} and {cut.threshold}"
        )
    for key in ("shortest_speech", "shortest_silence", "longest_silence", "padding"):
        if getattr(cut, key) < 0:
            raise BadInput(f"{where}.{key}={getattr(cut, key)}: has to be 0 or above")
    if cut.longest < 1 or cut.longest < 4 * cut.padding:
        raise BadInput(f"{where}.longest={cut.longest}: has to be at least 1 s and 4 x padding")
    if cut.channels not in ("mix", "each"):
        raise BadInput(f"{where}.channels={cut.channels}: not one of mix, each")


def _check_making(corpus: CorpusConfig) -> None:
    check_cut(corpus.cut, "corpus.cut")
    if len(set(corpus.specials)) < len(corpus.specials) or not all(corpus.specials):
        raise BadInput(f"corpus.specials={corpus.specials}: has a token twice, or an empty one")
    synthesis = corpus.synthesis
    for key in ("temperature", "seconds_per_character", "batch"):
        if not getattr(synthesis, key) > 0:
            raise BadInput(f"corpus.synthesis.{key}={getattr(synthesis, key)}: has to be above 0")
    if not 0 < synthesis.top_p <= 1:
        raise BadInput(f"corpus.synthesis.top_p={synthesis.top_p}: has to be above 0 and at most 1")
