"""Memory by formula against the storages of a dry run: the same settings, counted in two ways."""

from __future__ import annotations

import pytest

from configs.checks.topology import model_parallel_size
from configs.compose import compose_stage
from launch.planner.memory import memory
from train.dryrun.process import dry_run, prepare

COMMON = ("corpus.vocabulary_rows=16384", "train.precision=bf16", "train.sequence_length=2048", "parallel=single")
SHAPE = ("backbone.hidden=1024", "backbone.ffn=2816", "backbone.heads=16", "backbone.kv_heads=4", "backbone.layers=8")


@pytest.fixture(autouse=True, scope="module")
def prepared() -> None:
    prepare()


@pytest.mark.parametrize(
    ("gpus", "settings"),
    [
        (1, ""),
        (1, "train.precision=fp32 train.micro_batch=2 parallel.recompute=selective"),
        (1, "stage.lora.rank=16 backbone.qk_norm=true"),
        (1, "parallel.recompute=selective parallel.recompute_modules=[mlp]"),
        (2, "parallel.tensor=2 stage.frozen=[embedding.*,output_layer.*] backbone.tied_embeddings=false"),
        (4, "parallel.tensor=4 parallel.sequence=true backbone.positions=sqrt_alibi loss.chunk=256"),
        (4, "parallel.tensor=2 parallel.sequence=true parallel.context=2 backbone.qkv_bias=true"),
        (8, "parallel.pipeline=4 parallel.distributed_optimizer=true train.global_batch=16"),
        (2, "parallel.pipeline=2 parallel.recompute=full parallel.recompute_layers=2 train.global_batch=8"),
        (
            8,
            "parallel.pipeline=4 parallel.pipeline_layout=auto parallel.tensor=2 backbone.layers=9 "
            "train.global_batch=8",
        ),
        (
            4,
            "parallel.pipeline=2 parallel.virtual_pipeline=2 parallel.data=2 parallel.distributed_optimizer=true "
            "parallel.overlap_gradients=true parallel.overlap_parameters=true train.global_batch=16",
        ),
    ],
)
def test_within_five_percent_of_what_is_allocated(gpus: int, settings: str) -> None:
    words = settings.split()
    given = {word.partition("=")[0] for word in words}
    common = [word for word in (*COMMON, *SHAPE) if word.partition("=")[0] not in given]
    config = compose_stage("quickstart", "tiny", None, [*common, *words])
    found = dry_run(config, gpus)
    predicted = memory(config, found["vocabulary_rows"], gpus // model_parallel_size(config))
    assert len(predicted) == config.parallel.pipeline
    for rank in found["ranks"]:
        mine = predicted[rank["stage"]]
        assert mine.weights == pytest.approx(rank["weights"], rel=0.01)
        assert mine.gradients == pytest.approx(rank["gradients"], rel=0.01)
        assert mine.optimizer == pytest.approx(rank["optimizer"], rel=0.01)
        assert mine.activations + mine.logits + mine.buffers == pytest.approx(rank["step"], rel=0.05)
        assert mine.encoder == mine.heads == 0


def test_the_optimiser_is_shared_out_over_copies() -> None:
    settings = [*COMMON, *SHAPE, "parallel.distributed_optimizer=true"]
    (one,) = memory(compose_stage("quickstart", "tiny", None, settings), 16384, 1)
    (eight,) = memory(compose_stage("quickstart", "tiny", None, settings), 16384, 8)
    assert one.optimizer // 8 == pytest.approx(eight.optimizer, rel=1e-6)
    assert one.total - one.optimizer == eight.total - eight.optimizer
