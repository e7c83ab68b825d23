"""Impossible and not-yet-built configurations, refused in one line before any process starts."""

from __future__ import annotations

from collections.abc import Collection

from configs.checks.attention import check_attention
from configs.checks.audio_input import check_adapter, check_features
from configs.checks.cluster import check_cluster
from configs.checks.codec import check_codec
from configs.checks.data import check_making, check_mixture
from configs.checks.decoder import OBJECTIVES as DECODER_OBJECTIVES
from configs.checks.decoder import check_decoder
from configs.checks.distillation import DISTILL, check_distillation, check_generation
from configs.checks.engine import check_engine
from configs.checks.evaluation import check_evaluation
from configs.checks.experts import check_experts
from configs.checks.fp8 import check_fp8
from configs.checks.inference import check_inference
from configs.checks.loss import check_loss
from configs.checks.merge import check_merge
from configs.checks.observe import check_observe
from configs.checks.pipeline import check_micro_batches, check_pipeline
from configs.checks.ppo import check_ppo
from configs.checks.preference import PAIRS, check_preference
from configs.checks.quality import check_alignment, check_quality
from configs.checks.resilience import check_resilience
from configs.checks.topology import check_data_parallel, check_topology, data_parallel_size
from configs.checks.training import check_backbone, check_trained, check_training
from configs.schema import Config
from runtime.exits import BadInput

ENGINES = ("megatron", "deepspeed")
OBJECTIVES = ("pretrain", "sft", DISTILL, *PAIRS)
OPTIMIZERS = ("adamw",)
TRACKER_MODES = ("offline", "online", "disabled")


def check(config: Config, processes: int | None = None) -> None:
    """Raise BadInput for the first value of `config` that cannot work.

    `processes` is their number, where it is known: then the topology has to fill it, and batches and lanes
    have to divide over the data-parallel ranks that follow from it.
    """
    _check_signs(config)
    check_corpus(config)
    _check_names(config)
    check_backbone(config)
    check_attention(config)
    check_topology(config)
    check_adapter(config)
    check_engine(config)
    check_fp8(config)
    check_decoder(config)
    check_pipeline(config)
    check_training(config)
    check_observe(config, processes)
    check_loss(config)
    check_preference(config)
    check_ppo(config)
    check_merge(config)
    check_distillation(config)
    check_generation(config)
    check_inference(config)
    check_trained(config)
    check_resilience(config)
    check_cluster(config)
    check_mixture(config)
    check_evaluation(config)
    data = data_parallel_size(config, processes)
    check_experts(config, None if processes is None else data)
    check_data_parallel(config, data)
    check_micro_batches(config, data)


def check_corpus(config: Config) -> None:
    """Raise BadInput for the first value that cannot work in what a corpus is built from: `corpus`, `codec` and
    `encoder`."""
    _check_signs(config, ("corpus",))
    check_making(config.corpus)
    check_codec(config.codec)
    check_quality(config.corpus.quality)
    check_alignment(config.corpus.alignment)
    check_features(config)


# --- one kind of check each -----------------------------------------------------------------------------------------

_POSITIVE = {
    "run": ("remote_shards_gb",),
    "backbone": (
        *("layers", "hidden", "ffn", "heads", "kv_heads", "norm_eps", "rope_base", "init_std", "max_positions"),
        *("embedding_multiplier", "residual_multiplier", "logits_divisor"),
    ),
    "corpus": ("speech_minutes", "shard_minutes", "longest_seconds"),
    "loader": ("lanes", "packing_window", "shuffle_documents"),
    "train": ("steps", "global_batch", "micro_batch", "sequence_length"),
    "optimizer": ("lr", "eps"),
    "parallel": ("tensor", "pipeline", "context", "expert", "recompute_layers"),
    "tracker": ("console_every",),
    "notify": ("timeout",),
    "resilience": ("spike_bound", "window", "warmup", "leave_out", "straggler_comparisons"),
    "cluster": ("nodes", "warning"),
}
_NOT_NEGATIVE = {
    "corpus": ("text_characters",),
    "loader": ("workers", "prefetch"),
    "train": ("seed", "validate_every", "validation_packs"),
    "checkpoint": ("every", "keep", "keep_every", "failures"),
    "optimizer": ("weight_decay", "clip_grad", "warmup_steps"),
    "observe": ("ranks_every", "norms_every"),
    "loss": ("z", "chunk"),
    "resilience": ("most_incidents", "restarts", "restart_pause"),
    "cluster": ("gpus_per_node", "requeues"),
}
_SHARE = {
    "corpus": ("validation_share", "damaged_share"),
    "loader": ("damaged_share",),
    "optimizer": ("beta1", "beta2", "floor"),
}
_POSITIVE_IF_GIVEN = {
    "backbone": ("head_dim", "attention_scale"),
    "corpus": ("workers", "tasks"),
    "parallel": ("virtual_pipeline", "data", "bucket_size"),
    "observe": ("peak_teraflops",),
    "resilience": ("hang_seconds", "straggler_share"),
    "cluster": ("ranks_per_node", "cpus_per_rank"),
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
    for key, value, known in (
        ("engine.name", config.engine.name, ENGINES),
        ("stage.objective", config.stage.objective, (*OBJECTIVES, *DECODER_OBJECTIVES)),
        ("optimizer.name", config.optimizer.name, OPTIMIZERS),
        ("tracker.wandb", config.tracker.wandb, TRACKER_MODES),
    ):
        if value not in known:
            raise BadInput(f"{key}={value}: not one of {', '.join(known)}")
