"""The likeliest tokens against a float64 formula over all rows at once, on one rank and over tensor-parallel ones."""

from __future__ import annotations

import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ranks import run_ranks
from train.models.heads.likeliest import Asked, AskedRange, likeliest

ROWS = 54
RANGES = ((0, 31), (31, 34), (34, 54))  # text, and two codebooks; of three ranks' rows the first has one range alone

CASES = given(
    n=st.integers(1, 21),
    k=st.sampled_from([1, 3, 4, 40]),
    temperature=st.sampled_from([0.5, 1.0, 2.5]),
    chunk=st.sampled_from([0, 1, 5]),
    scale=st.sampled_from([0.1, 1.0, 8.0]),
    half=st.booleans(),
    seed=st.integers(0, 1000),
)


def worst(
    n: int,
    k: int,
    temperature: float,
    chunk: int,
    scale: float,
    half: bool,
    seed: int,
    group: dist.ProcessGroup | None = None,
) -> float:
    """The largest error of a log-probability in a random case, infinite where ids are not the likeliest. Each id's own
    probability is looked up, so that ties may come in any order."""
    rng = torch.Generator().manual_seed(seed)
    states, weight = torch.randn(n, 8, generator=rng) * scale, torch.randn(ROWS, 8, generator=rng)
    states, weight = (tensor.bfloat16() if half else tensor for tensor in (states, weight))
    order = torch.randperm(n, generator=rng)
    parts = tuple(AskedRange(*ends, order[number :: len(RANGES)]) for number, ends in enumerate(RANGES))
    mine = weight if group is None else weight.chunk(dist.get_world_size(group))[dist.get_rank(group)]
    found = likeliest(states, mine, Asked(parts, k, temperature, chunk), group)
    errors = [0.0]
    for part, one in zip(parts, found, strict=True):
        logits = states[part.places].double() @ weight[part.start : part.stop].double().t()
        q = (logits / temperature).log_softmax(1)
        wide = min(k, part.stop - part.start)
        assert one.ids.shape == one.log_chances.shape == (len(part.places), k) and one.log_chances.dtype == torch.float
        assert bool((one.ids[:, wide:] == -1).all()) and bool(one.log_chances[:, wide:].isneginf().all())
        ids = one.ids[:, :wide] - part.start
        if bool((ids < 0).any() | (ids >= q.shape[1]).any()) or any(len(set(row)) < wide for row in ids.tolist()):
            return float("inf")
        for wanted in (q.topk(wide).values, q.gather(1, ids)):
            errors += (one.log_chances[:, :wide] - wanted).abs().flatten().tolist()
    return max(errors)


@settings(max_examples=60)
@CASES
def test_one_rank_matches_float64(**case: object) -> None:
    # Products of bf16 are added up in fp32 on a GPU; on a CPU they are rounded to bf16 once.
    assert worst(**case) < (0.5 * float(case["scale"]) if case["half"] else 2e-4)  # type: ignore[arg-type]


def on_ranks(examples: int) -> float:
    """Every rank draws the same examples and knows of the others' errors, so that all do the same."""
    dist.init_process_group("gloo")
    seen = [0.0]

    @settings(max_examples=examples, derandomize=True, database=None, deadline=None)
    @CASES
    def check(**case: object) -> None:
        case["half"] = False
        error = torch.tensor(worst(**case, group=dist.group.WORLD))  # type: ignore[arg-type]
        dist.all_reduce(error, op=dist.ReduceOp.MAX)
        seen.append(float(error))
        assert seen[-1] < 2e-4, case

    check()
    dist.destroy_process_group()
    return max(seen)


def test_three_tensor_parallel_ranks_match_float64() -> None:
    """A range that lies wholly on one rank, and one of which a rank has less than k, among them."""
    assert all(0 < error < 2e-4 for error in run_ranks(on_ranks, 3, 40))
