"""Pipeline layouts: read as Megatron-Core reads them, and balanced as trying them all would."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.pipeline import (
    PipelineStage,
    balanced,
    format_layout,
    head_cost,
    parse_layout,
    settled,
    stages_of,
)
from configs.schema import BackboneConfig, ParallelConfig
from runtime.exits import BadInput

LLAMA_8B = BackboneConfig(layers=32, hidden=4096, ffn=14336, heads=32, kv_heads=8)


@pytest.mark.parametrize("text", ["Et|tttL", "Ett|(ttt|)*2,tL", "E,t*4 | L", "E|(tt|)*3L", "E(t)*3|(t|)*2ttL"])
def test_a_layout_is_read_as_megatron_reads_it(text: str) -> None:
    from megatron.core.transformer.enums import LayerType
    from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

    theirs = PipelineParallelLayerLayout.parse_str_to_list(text.replace(" ", ""))
    ours = parse_layout(text)
    assert [stage.layers for stage in ours] == [stage.count(LayerType.decoder) for stage in theirs]
    assert [stage.embedding for stage in ours] == [LayerType.embedding in stage for stage in theirs]
    assert [stage.head for stage in ours] == [LayerType.loss in stage for stage in theirs]
    assert parse_layout(format_layout(ours)) == ours


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "stage 1 is empty"),
        ("Et||tL", "stage 2 is empty"),
        ("Et|mL", "m means nothing here"),
        ("Et|(ttL", "( means nothing here"),
        ("tE|tL", "stage 1 is tE; within a stage the order is E, t, L"),
        ("t|EtL", "the first stage, and no other, holds the embedding E"),
        ("t|tL", "the first stage, and no other, holds the embedding E"),
        ("EtL|t", "the last stage, and no other, holds the head and loss L"),
        ("Et|t", "the last stage, and no other, holds the head and loss L"),
        ("Et*1000000000|L", "beyond any model"),
    ],
)
def test_what_is_no_layout_is_refused(text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_layout(text)
    assert said in str(caught.value) and str(caught.value).startswith("parallel.pipeline_layout=")


@given(
    stages=st.integers(2, 4),
    spare=st.integers(0, 5),
    head=st.floats(0, 12),
    first=st.floats(0, 12),
)
def test_the_balance_is_as_fast_as_any_layout(stages: int, spare: int, head: float, first: float) -> None:
    """Against every way to share the layers out."""
    layers = stages - 1 + spare
    found = balanced(layers, stages, head_cost=head, first_cost=first)
    counts = [stage.layers for stage in found]
    assert sum(counts) == layers and len(counts) == stages and min(counts[:-1]) >= 1

    def slowest(shares: tuple[int, ...]) -> float:
        costs = list(map(float, shares))
        costs[0] += first
        costs[-1] += head
        return max(costs)

    ways = product(*[range(1, layers + 1)] * (stages - 1), range(layers + 1))
    assert slowest(tuple(counts)) == min(slowest(way) for way in ways if sum(way) == layers)
    assert [found[0].embedding, found[-1].head] == [True, True]


def test_a_grown_vocabulary_takes_layers_off_the_last_stage() -> None:
    """A 170k head multiplies as much as 3.2 of Llama 8B's layers do, so its stage gets three layers fewer."""
    assert head_cost(LLAMA_8B, 170_000) == pytest.approx(170_000 * 4096 / (4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)))
    layout = settled(LLAMA_8B, ParallelConfig(pipeline=4, pipeline_layout="auto"), 170_000).pipeline_layout
    assert [stage.layers for stage in parse_layout(str(layout))] == [9, 9, 9, 5]


def test_without_a_layout_layers_are_even_and_a_written_one_is_kept() -> None:
    even = ParallelConfig(pipeline=2, virtual_pipeline=2)
    assert stages_of(LLAMA_8B, even, 0) == [
        PipelineStage(8, embedding=True),
        PipelineStage(8),
        PipelineStage(8),
        PipelineStage(8, head=True),
    ]
    assert settled(LLAMA_8B, even, 170_000) == even
    written = ParallelConfig(pipeline=2, pipeline_layout="Et*20|t*12L")
    assert settled(LLAMA_8B, written, 170_000) == written
