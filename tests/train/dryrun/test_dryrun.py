"""Ranks built without data: they hold what the arithmetic says, and what is wrong with one is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from megatron.core import parallel_state

from configs.compose import compose_stage
from configs.schema import Config
from launch.planner.memory import memory
from runtime.exits import BadInput
from train.dryrun import gpu_kernels
from train.dryrun.ledger import without_data
from train.dryrun.process import dry_run, prepare
from train.dryrun.ranks import Exchange, Waiting, World, joined


@pytest.fixture(autouse=True, scope="module")
def prepared() -> None:
    prepare()


def tiny(*settings: str) -> Config:
    given = {word.partition("=")[0] for word in settings}
    common = ("corpus.vocabulary_rows=8192", "train.precision=bf16", "parallel=single", "train.global_batch=16")
    words = [word for word in common if word.partition("=")[0] not in given]
    return compose_stage("quickstart", "tiny", None, [*words, *settings])


def test_every_kind_of_rank_of_the_130b_model_is_built() -> None:
    config = compose_stage("step_audio", "paper", "cooldown", [])
    found = dry_run(config, 1024, step=False)
    hidden, ffn, keys = 12288, 31232, 8 * 128
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * ffn + 2 * hidden
    assert found["parameters"] == 88 * layer + 2 * 74752 * hidden + hidden == 131_946_590_208
    ranks = found["ranks"]
    assert [rank["rank"] for rank in ranks] == list(range(0, 1024, 128))
    assert found["alike"] * len(ranks) == 1024
    # Tensor-parallel ranks hold an eighth each of all but the norms, which are whole on each of them.
    norms = 88 * 2 * hidden + hidden
    assert 8 * sum(rank["parameters"] for rank in ranks) - 7 * norms == found["parameters"]
    assert [rank["chunks"] for rank in ranks] == [
        ["Ettt", "ttt", "ttt", "tt"],
        *[["ttt", "ttt", "ttt", "tt"]] * 6,
        ["ttt", "ttt", "ttt", "ttL"],
    ]
    for rank, predicted in zip(ranks, memory(config, 74752), strict=True):
        for part in ("weights", "gradients", "optimizer"):  # buffers are padded to the number of copies
            assert rank[part] == pytest.approx(getattr(predicted, part), rel=1e-4)


def test_what_ranks_tell_each_other_reaches_all() -> None:
    """The plan of what is trained needs the names of all pipeline stages: this pattern is of one stage alone."""
    found = dry_run(tiny("parallel.pipeline=2", "stage.trainable=[decoder.layers.3.*]"), 2, step=False)
    assert [rank["gradients"] > 0 for rank in found["ranks"]] == [False, True]
    with pytest.raises(BadInput, match=r"decoder\.layers\.4\.\*' matches no parameter"):
        dry_run(tiny("parallel.pipeline=2", "stage.trainable=[decoder.layers.4.*]"), 2, step=False)


def test_low_rank_updates_and_a_chosen_rank() -> None:
    found = dry_run(tiny("parallel.tensor=2", "parallel.pipeline=2", "stage.lora.rank=4"), 8, [5])
    (rank,) = found["ranks"]
    assert rank["stage"] == 1
    assert 0 < rank["gradients"] < rank["weights"] / 4


def test_a_rank_that_there_is_not() -> None:
    with pytest.raises(BadInput, match="--ranks: 2 is none of the ranks 0 to 1"):
        dry_run(tiny("parallel.pipeline=2"), 2, [2])


def test_kernels_that_do_not_fit_name_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape error in the middle of a step, on the second pipeline stage alone."""

    def too_wide(both: torch.Tensor) -> torch.Tensor:
        last = parallel_state.is_pipeline_last_stage()
        return both.new_empty(*both.shape[:-1], both.shape[-1] // 2 + last)

    with monkeypatch.context() as patch, pytest.raises(BadInput, match=r"^rank 1 cannot be built: "):
        patch.setattr(gpu_kernels, "_swiglu", too_wide)
        dry_run(tiny("parallel.pipeline=2"), 2)
    assert not torch.distributed.is_initialized()
    assert dry_run(tiny(), 1)["ranks"], "the next dry run is none the worse"


def test_kernels_of_a_cpu_keep_more() -> None:
    (gpu,) = dry_run(tiny(), 1)["ranks"]
    (cpu,) = dry_run(tiny(), 1, gpu=False)["ranks"]
    assert cpu["weights"] == gpu["weights"]
    assert cpu["step"] > gpu["step"]


def test_experts_are_dealt_out_in_turns() -> None:
    settings = ("backbone=tiny_experts", "parallel.expert=2", "parallel.data=4", "corpus.vocabulary_rows=8192")
    found = dry_run(tiny(*settings), 4, step=False)
    assert [rank["rank"] for rank in found["ranks"]] == [0, 1]
    whole = dry_run(tiny("backbone=tiny_experts"), 1, step=False)
    assert found["parameters"] == whole["parameters"] == whole["ranks"][0]["parameters"]


@pytest.mark.parametrize(("tensor", "context", "expert"), [(2, 1, 1), (1, 2, 2), (2, 2, 1)])
def test_ranks_alike_are_alike_to_megatron(tensor: int, context: int, expert: int) -> None:
    """Pipeline stage and experts of every rank, as Megatron-Core's own groups have them."""
    settings = (f"parallel.tensor={tensor}", f"parallel.context={context}", f"parallel.expert={expert}")
    config = tiny("parallel.pipeline=2", *settings, *(["backbone=tiny_experts"] if expert > 1 else []))
    world = World(16, 2, expert)
    held = {}
    for rank in range(16):
        with joined(config, Exchange(world), rank):
            stage = parallel_state.get_pipeline_model_parallel_rank()
            held[rank] = stage, parallel_state.get_expert_model_parallel_rank()
            assert world.stage(rank) == stage
    for rank in range(16):
        assert held[rank] == held[world.alike(rank)]
    assert sorted(set(held.values())) == sorted(held[rank] for rank in world.distinct())


def test_a_rank_waits_for_what_others_have_not_told() -> None:
    exchange = Exchange(World(2, 2))
    config = tiny("parallel.pipeline=2")
    heard: list[Any] = [None, None]
    with joined(config, exchange, 0), pytest.raises(Waiting):
        torch.distributed.all_gather_object(heard, "zero")
    with joined(config, exchange, 1):
        torch.distributed.all_gather_object(heard, "one")
    assert heard == ["zero", "one"]


def test_the_ledger_counts_storages_while_they_live() -> None:
    with without_data() as ledger:
        first = torch.empty(1000, dtype=torch.float32)
        view = first.view(10, 100)
        assert ledger.live == 4000
        del first
        assert ledger.live == 4000, "the view keeps it"
        second = view * 2
        assert ledger.live == ledger.peak == 8000
        del view
        ledger.mark()
        assert ledger.live == ledger.peak == 4000
        second.untyped_storage().resize_(0)
        assert ledger.live == 0
        second.untyped_storage().resize_(4000)
        assert second.sum().item() == 1.0, "a number that was never computed"
        assert ledger.live == 4004 - 4  # the sum is gone again
        del second
        assert (ledger.live, ledger.peak) == (0, 4004)


def test_the_ledger_counts_what_a_backward_pass_waits_for() -> None:
    """exp keeps its output and sin its input, which is the same here; what sin gives the last exp, nobody keeps."""
    with without_data() as ledger:
        leaf = torch.empty(100, requires_grad=True)
        result = leaf.exp().sin().exp()
        assert ledger.live == 3 * 400
        result.backward(torch.ones_like(result))
        del result
        assert ledger.live == 2 * 400, "the leaf and its gradient"
