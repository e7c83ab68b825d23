"""Context parallelism: how rows are cut, and that attention, logits and resumed runs do not see the cuts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.alibi import alibi_slopes
from configs.schema import Config, ParallelConfig, Positions, Precision
from data_pipeline.batch import TargetRow
from data_pipeline.context import share_of, shares_of_row, spans, whole_row
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import run_ranks
from tests.train.attention_reference import batch_of, inputs, reference
from tests.train.runs import metrics, run_config, tiny_config

ROWS = ("tokens", "labels", "positions", "loss_weight", "label_modality")


@settings(max_examples=50)
@given(ranks=st.integers(1, 5), size=st.integers(1, 6), lengths=st.lists(st.integers(1, 12), max_size=6))
def test_shares_are_the_row(ranks: int, size: int, lengths: list[int]) -> None:
    """Every place of every array is on one rank, in the order that gathering undoes; queries have all of their keys."""
    places = 2 * ranks * size
    ends = sorted({end for end in torch.tensor([0, *lengths]).cumsum(0).tolist() if end < places} | {places})
    lengths = [end - start for start, end in pairwise(ends)]
    batch = batch_of(lengths)
    batch = replace(batch, targets={"words": TargetRow(batch.tokens * 2, batch.loss_weight)})
    shares = [share_of(batch, rank, ranks) for rank in range(ranks)]
    for name in ROWS:
        held = torch.stack([getattr(share, name)[0] for share in shares])
        assert torch.equal(whole_row(held) if ranks > 1 else held[0], getattr(batch, name)[0])
        if ranks > 1:
            assert torch.equal(shares_of_row(getattr(batch, name)[0], ranks), held)
    assert all(torch.equal(share.targets["words"].values, share.tokens * 2) for share in shares)
    for share in shares:
        for chunk in share.chunks:
            assert sum(chunk.queries) == len(chunk) and sum(chunk.keys) == chunk.end - chunk.first_key
            last, place = chunk.first_key, chunk.start
            for queries, keys in zip(chunk.queries, chunk.keys, strict=True):
                assert batch.positions[0, last] == 0  # keys begin with their sample
                last, place = last + keys, place + queries
                assert last == place and batch.positions[0, place - 1] == keys - 1  # and end with its last query


def test_ranks_share_the_work_of_a_causal_row_evenly() -> None:
    work = [sum(end * (end + 1) - start * (start + 1) for start, end in spans(64, rank, 4)) for rank in range(4)]
    assert max(work) == min(work)
    with pytest.raises(ValueError, match="does not divide into 2 x 4 runs"):
        spans(60, 0, 4)


# --- attention over real ranks ---------------------------------------------------------------------------------------

LENGTHS = [37, 1, 300, 6, 40]  # 384 places: cuts of 4 ranks lie inside of samples, and a sample goes over several
HEADS, KV_HEADS, SIZE = 6, 2, 16  # ALiBi's slopes of six heads are four and two more


def attention_of_rank(parallel: ParallelConfig, positions: Positions) -> dict[str, np.ndarray]:
    """What this rank's attention makes of its heads and places, with gradients, and which those are."""
    from megatron.core import parallel_state

    from configs.schema import BackboneConfig
    from train.engines import process_groups
    from train.models.attention.core import PackedAttention
    from train.models.attention.row import packed_row
    from train.models.trunk import transformer_config

    process_groups.join(parallel)
    backbone = BackboneConfig(
        name="test", layers=2, hidden=96, ffn=8, heads=HEADS, kv_heads=KV_HEADS, positions=positions, tokenizer=""
    )
    config = transformer_config(backbone, parallel, Precision.fp32)
    module = PackedAttention(config=config, layer_number=1, attn_mask_type=None, attention_type="self")
    rank = parallel_state.get_context_parallel_rank()
    row = packed_row(share_of(batch_of(LENGTHS), rank, parallel.context))
    turn, places = parallel_state.get_tensor_model_parallel_rank(), row.places
    query, key, value, direction = (
        tensor.float().chunk(parallel.tensor, dim=1)[turn][places].requires_grad_()
        for tensor in inputs(sum(LENGTHS), HEADS, KV_HEADS, SIZE, seed=3)
    )
    mixed = module(query, key, value, packed_seq_params=row)
    mixed.backward(direction.flatten(1).detach())
    process_groups.leave()
    gradients = [tensor.grad for tensor in (query, key, value) if tensor.grad is not None]
    found = {"places": places, "mixed": mixed.detach().view(query.shape), **dict(zip("qkv", gradients, strict=True))}
    return {name: tensor.numpy() for name, tensor in found.items()}


@pytest.mark.parametrize("positions", [Positions.sqrt_alibi, Positions.none])
@pytest.mark.parametrize(("tensor", "context"), [(1, 4), (2, 2), (2, 1)])
def test_attention_over_ranks_is_the_formula(positions: Positions, tensor: int, context: int) -> None:
    """Values, and gradients of all inputs: heads sliced (with their slopes), places cut, keys and values shared."""
    parallel = ParallelConfig(tensor=tensor, context=context)
    answers = run_ranks(attention_of_rank, tensor * context, parallel, positions)
    exact = [part.requires_grad_() for part in inputs(sum(LENGTHS), HEADS, KV_HEADS, SIZE, seed=3)[:3]]
    slopes = alibi_slopes(HEADS) if positions is Positions.sqrt_alibi else ()
    expected = reference(*exact, LENGTHS, slopes)
    expected.backward(inputs(sum(LENGTHS), HEADS, KV_HEADS, SIZE, seed=3)[3])
    wanted = {"mixed": expected.detach(), **{name: part.grad for name, part in zip("qkv", exact, strict=True)}}
    for rank, answer in enumerate(answers):  # tensor-parallel ranks are neighbours
        for name, whole in wanted.items():
            assert whole is not None
            mine = whole.chunk(tensor, dim=1)[rank % tensor].numpy()[answer["places"]]
            assert np.abs(answer[name] - mine).max() < 1e-5


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


def test_resume_on_other_context_sizes(corpus: Path, tmp_path: Path) -> None:
    """Two ranks share each row, then they have rows of their own, then they share again: one curve."""
    settings = {"train__steps": 6, "checkpoint__every": 2, "checkpoint__keep": 0, "train__log_samples": True}
    expected = run_config(tiny_config(tmp_path / "single", corpus, **settings))
    folder = tmp_path / "run"
    for steps, processes, parallel in (
        (2, 2, {"context": 2, "distributed_optimizer": True}),
        (4, 2, {"data": 2, "distributed_optimizer": True}),
        (6, 2, {"context": 2, "distributed_optimizer": True}),
    ):
        config = tiny_config(
            folder, corpus, **settings, **{f"parallel__{key}": value for key, value in parallel.items()}
        )
        found = resume_to(config, processes, steps)
    assert [line["step"] for line in found] == list(range(1, 7))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert (ours["tokens"], ours["samples"]) == (theirs["tokens"], theirs["samples"])


def resume_to(config: Config, processes: int, step: int) -> list[dict[str, Any]]:
    """Run to the end, then forget all that came after `step`: the schedule is that of the whole run."""
    run_config(config, processes)
    folder = Path(config.run.folder)
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    return metrics(folder)


def logits_of_rank(config: Config) -> np.ndarray | None:
    """Logits of a row, by a model whose weights depend on the seed alone."""
    from train.engines import process_groups
    from train.engines.megatron import MegatronEngine
    from train.objectives.next_token import NextToken

    engine = MegatronEngine(config, 128, NextToken(("text",)), process_groups.join(config.parallel))
    logits = engine.logits(batch_of([30, 1, 65]))
    process_groups.leave()
    return None if logits is None else logits.numpy()


def test_logits_are_whole_rows_in_order(tmp_path: Path, corpus: Path) -> None:
    [expected] = run_ranks(logits_of_rank, 1, tiny_config(tmp_path, corpus))
    answers = run_ranks(logits_of_rank, 4, tiny_config(tmp_path, corpus, parallel__context=2, parallel__pipeline=2))
    last = [answer for answer in answers if answer is not None]
    assert len(last) == 2
    for answer in last:
        assert np.allclose(answer, expected, atol=1e-5)
