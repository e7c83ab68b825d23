"""Which piece of a native tensor each rank of a topology holds, as Megatron-Core's `torch_dist` saves them.

Layers are stacked as the first axis; a rank's piece of a layered tensor is one layer of it. The first layer of a gated
MLP has two pieces a rank, of the gate's half and of the up half. Nothing here reads files or builds modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from checkpoints.rules import Parallel, Rule
from configs.pipeline import PipelineStage, stages_of
from configs.schema import BackboneConfig, ParallelConfig
from runtime.exits import BadInput

_EMBEDDING = "embedding."


@dataclass(frozen=True)
class Box:
    """A part of a tensor: where it begins and its shape, without the axis of layers."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def elements(self) -> int:
        return prod(self.sizes)


@dataclass(frozen=True)
class Topology:
    """How ranks share a model: `tensor` ways each of the stages that `stages` lists in the order of the layers; stage i
    is on pipeline rank i modulo `pipeline`."""

    tensor: int
    pipeline: int
    stages: tuple[PipelineStage, ...]

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline

    def rank(self, tensor: int, stage: int) -> int:
        """Number of the rank that holds a part of a stage; of its replicas the first one."""
        return stage % self.pipeline * self.tensor + tensor

    def plain(self) -> dict[str, object]:
        """As a manifest's topology says it."""
        virtual = len(self.stages) // self.pipeline
        return {"tensor": self.tensor, "pipeline": self.pipeline, "virtual_pipeline": virtual if virtual > 1 else None}


def topology_of(backbone: BackboneConfig, parallel: ParallelConfig, vocabulary_rows: int) -> Topology:
    """The topology that a run's settings come to. Raises BadInput where layers or heads are not shared out evenly."""
    count = parallel.pipeline * (parallel.virtual_pipeline or 1)
    if parallel.expert > 1:
        raise BadInput(f"parallel.expert={parallel.expert}: files are laid out with the experts of a layer together")
    if parallel.pipeline_layout is None and backbone.layers % count:
        raise BadInput(
            f"{backbone.layers} layers over {count} pipeline stages: not even; set parallel.pipeline_layout=auto"
        )
    for what, size in (("heads", backbone.heads), ("key-value heads", backbone.kv_heads), ("ffn", backbone.ffn)):
        if size % parallel.tensor:
            raise BadInput(f"{what} {size} over {parallel.tensor} tensor-parallel ranks: not even")
    if vocabulary_rows % parallel.tensor:
        raise BadInput(
            f"{vocabulary_rows} vocabulary rows over {parallel.tensor} tensor-parallel ranks: not even; pad them first"
        )
    stages = tuple(stages_of(backbone, parallel, vocabulary_rows))
    if len(stages) != count or sum(stage.layers for stage in stages) != backbone.layers:
        raise BadInput(f"the pipeline's layout has not {count} stages with {backbone.layers} layers together")
    return Topology(parallel.tensor, parallel.pipeline, stages)


def boxes(parallel: Parallel, shape: Sequence[int], tensor: int) -> list[list[Box]]:
    """The boxes that each tensor-parallel rank writes of one layer's tensor, or of one without layers, of `shape`.

    A replicated tensor is written by the first rank alone. Raises BadInput where the shape is not shared out evenly.
    """
    whole = tuple(shape)
    origin = (0,) * len(whole)
    if parallel is Parallel.replicated:
        return [[Box(origin, whole)]] + [[] for _ in range(tensor - 1)]
    axis = 1 if parallel is Parallel.rows else 0
    halves = 2 if parallel is Parallel.gated_columns else 1
    run, odd = divmod(whole[axis], tensor * halves)
    if odd:
        raise BadInput(f"a tensor of shape {list(whole)} over {tensor} tensor-parallel ranks: not even")
    sizes = (*whole[:axis], run, *whole[axis + 1 :])

    def box(number: int) -> Box:
        return Box((*origin[:axis], number * run, *origin[axis + 1 :]), sizes)

    return [[box(half * tensor + rank) for half in range(halves)] for rank in range(tensor)]


def stage_of(rule: Rule, layer: int | None, topology: Topology) -> int:
    """The stage that writes a rule's tensor, or its `layer`."""
    if layer is None:
        return 0 if rule.native.startswith(_EMBEDDING) else len(topology.stages) - 1
    for number, stage in enumerate(topology.stages):
        if layer < stage.layers:
            return number
        layer -= stage.layers
    raise ValueError(f"no stage has layer {layer}")


@dataclass(frozen=True)
class Piece:
    """What one rank writes of a native tensor: a box of it, the layer's axis included where there is one."""

    rank: int
    name: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    whole: tuple[int, ...]

    @property
    def elements(self) -> int:
        return prod(self.sizes)


def pieces(
    rules: Sequence[Rule], shapes: dict[str, tuple[int, ...]], topology: Topology, layers: int
) -> Iterator[Piece]:
    """Every piece of a checkpoint; `shapes` are those of one layer, by the rules' native names."""
    for rule in rules:
        shape = shapes[rule.native]
        of_ranks = boxes(rule.parallel, shape, topology.tensor)
        whole = (layers, *shape) if rule.layered else shape
        for layer in range(layers) if rule.layered else (None,):
            stage = stage_of(rule, layer, topology)
            for tensor, mine in enumerate(of_ranks):
                for box in mine:
                    place, sizes = box.offsets, box.sizes
                    if layer is not None:
                        place, sizes = (layer, *place), (1, *sizes)
                    yield Piece(topology.rank(tensor, stage), rule.native, place, sizes, whole)
