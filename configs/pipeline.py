"""What each pipeline stage holds: a layout string read and written, and a balance by cost."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from configs.schema import BackboneConfig, ParallelConfig
from runtime.exits import BadInput

AUTO = "auto"
_LONGEST = 100_000  # letters of a layout with its repetitions written out; more is a slip of the keyboard


@dataclass(frozen=True)
class PipelineStage:
    """The share of one pipeline stage; under an interleaved pipeline, of one model chunk."""

    layers: int
    embedding: bool = False
    head: bool = False

    def __str__(self) -> str:
        return "E" * self.embedding + "t" * self.layers + "L" * self.head


def stage_count(parallel: ParallelConfig) -> int:
    """Pipeline stages, virtual ones counted each."""
    return parallel.pipeline * (parallel.virtual_pipeline or 1)


def stages_of(backbone: BackboneConfig, parallel: ParallelConfig, vocabulary_rows: int) -> list[PipelineStage]:
    """Every stage in the order of the layers; under interleaving, stage i is on pipeline rank i % parallel.pipeline.

    vocabulary_rows: of the embedding and the head, padding included; asked by the layout "auto" alone. Raises BadInput
    for a layout that is none.
    """
    count = stage_count(parallel)
    if parallel.pipeline_layout is None:
        each = backbone.layers // count
        return [PipelineStage(each, number == 0, number == count - 1) for number in range(count)]
    if parallel.pipeline_layout == AUTO:
        return balanced(backbone.layers, count, head_cost=head_cost(backbone, vocabulary_rows))
    return parse_layout(parallel.pipeline_layout)


def settled(backbone: BackboneConfig, parallel: ParallelConfig, vocabulary_rows: int) -> ParallelConfig:
    """`parallel` with the layout "auto" replaced by the one that it comes to."""
    if parallel.pipeline_layout != AUTO:
        return parallel
    return replace(parallel, pipeline_layout=format_layout(stages_of(backbone, parallel, vocabulary_rows)))


def parse_layout(text: str) -> list[PipelineStage]:
    """Stages of a Megatron-Core layout such as "Ett|(ttt|)*2,tL": E embedding, t layer, L head and loss, | next stage,
    x*n or (..)*n repetition, commas and blanks for the eye. Raises BadInput for any other text."""
    where = f"parallel.pipeline_layout={text}"
    written = re.sub(r"[,\s]", "", text)
    for pattern in (r"\(([^()]*)\)\*(\d+)", r"([EtL|])\*(\d+)"):
        for body, times in re.findall(pattern, written):
            if len(body) * int(times) > _LONGEST:
                raise BadInput(f"{where}: {body}*{times} is beyond any model")
        written = re.sub(pattern, lambda found: found[1] * int(found[2]), written)
    stages = []
    for number, letters in enumerate(written.split("|"), 1):
        if strange := re.search(r"[^EtL]", letters):
            raise BadInput(f"{where}: {strange[0]} means nothing here; E, t, L, |, (..)*n and x*n do")
        if not letters:
            raise BadInput(f"{where}: stage {number} is empty")
        if not re.fullmatch(r"E?t*L?", letters):
            raise BadInput(f"{where}: stage {number} is {letters}; within a stage the order is E, t, L")
        stages.append(PipelineStage(letters.count("t"), "E" in letters, "L" in letters))
    if [stage.embedding for stage in stages] != [number == 0 for number in range(len(stages))]:
        raise BadInput(f"{where}: the first stage, and no other, holds the embedding E")
    if [stage.head for stage in stages] != [number == len(stages) - 1 for number in range(len(stages))]:
        raise BadInput(f"{where}: the last stage, and no other, holds the head and loss L")
    return stages


def format_layout(stages: list[PipelineStage]) -> str:
    return "|".join(str(stage) for stage in stages)


def head_cost(backbone: BackboneConfig, vocabulary_rows: int) -> float:
    """Multiplications of the LM head over those of one layer, per token; attention scores are left out."""
    head_dim = backbone.head_dim or backbone.hidden // backbone.heads
    projections = 2 * (backbone.heads + backbone.kv_heads) * head_dim
    if backbone.experts is None:
        return vocabulary_rows / (projections + 3 * backbone.ffn)
    experts = backbone.experts  # the router, and what a token goes through
    return vocabulary_rows / (projections + experts.count + 3 * experts.top_k * experts.ffn)


def balanced(layers: int, stages: int, *, head_cost: float, first_cost: float = 0.0) -> list[PipelineStage]:
    """The layout whose slowest stage is the fastest, in units of one layer's time.

    head_cost: of the head on the last stage; first_cost: of what comes before the layers on the first (a lookup
    multiplies nothing, an encoder does). Every stage but the last has a layer at least: `layers` >= `stages` - 1,
    `stages` >= 2. Of equally fast layouts the most even one, and of those the one with the fewest layers on early
    stages: they keep the embedding and the activations of the most micro-batches in flight.
    """
    best: tuple[tuple[float, float, int], list[int]] | None = None
    middle = stages - 2
    for first in range(1, layers + 1):
        for last in range(layers - first + 1):
            rest = layers - first - last
            if rest < middle or (middle == 0 and rest):
                continue
            small, larger = divmod(rest, middle) if middle else (0, 0)
            counts = [first, *(small + (number >= middle - larger) for number in range(middle)), last]
            costs = [first + first_cost, *counts[1:-1], last + head_cost]
            rank = (max(costs), sum(cost * cost for cost in costs), first)
            if best is None or rank < best[0]:
                best = rank, counts
    if best is None:
        raise ValueError(f"{layers} layers do not fill {stages} stages")
    return [PipelineStage(count, number == 0, number == stages - 1) for number, count in enumerate(best[1])]
