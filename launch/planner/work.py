"""What each layer of a model has to do for one token, as `train.flops` counts it: equal layers counted once.

A packed row is taken as one sample of its whole length, so that a token attends to (T + 1) / 2 on average: rows of
shorter samples attend to less, and are faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from configs.pipeline import PipelineStage, stages_of
from configs.schema import Config, ParallelConfig, Recompute, RecomputeMethod
from launch.planner.parameters import EXPERTS, of_stage
from train.audio_input import of_audio_input
from train.flops import Learning, ProductFlops, Recomputed, product_passes
from train.trainable import Trained, plan, without_layer


@dataclass(frozen=True)
class Held:
    """Parameters of a part of the model, all of them and those that are trained, experts for themselves."""

    dense: int = 0
    experts: int = 0
    trained_dense: int = 0
    trained_experts: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(
            self.dense + other.dense,
            self.experts + other.experts,
            self.trained_dense + other.trained_dense,
            self.trained_experts + other.trained_experts,
        )

    def __mul__(self, times: int) -> Held:
        return Held(
            self.dense * times,
            self.experts * times,
            self.trained_dense * times,
            self.trained_experts * times,
        )


@dataclass(frozen=True)
class LayerWork:
    """One layer, or the head. products: FLOPs a token; again: what of its forward pass is computed again, "all" or
    modules as in `parallel.recompute_modules`."""

    products: tuple[ProductFlops, ...]
    held: Held
    again: frozenset[str]

    @property
    def learns(self) -> bool:
        """Whether a gradient comes into it at all."""
        return any(product.backward for product in self.products)


@dataclass(frozen=True)
class ModelWork:
    """kinds: of the trunk's layers; kind_of: number of every layer's kind, in order; head: its products and the last
    norm; embedding: its parameters, a tied head's too."""

    kinds: tuple[LayerWork, ...]
    kind_of: tuple[int, ...]
    head: LayerWork
    embedding: Held

    def of_stage(self, stages: list[PipelineStage], number: int) -> list[tuple[int, int]]:
        """Kinds of the layers that a stage holds, and how many of each; `stages` in the order of the layers."""
        first = sum(stage.layers for stage in stages[:number])
        held = self.kind_of[first : first + stages[number].layers]
        return [(kind, held.count(kind)) for kind in set(held)]

    def held_by(self, stages: list[PipelineStage], number: int) -> Held:
        """Parameters of a stage before tensor and expert parallelism cut them up."""
        total = Held()
        for kind, count in self.of_stage(stages, number):
            total += self.kinds[kind].held * count
        stage = stages[number]
        return total + (self.embedding if stage.embedding else Held()) + (self.head.held if stage.head else Held())


def model_work(config: Config, vocabulary_rows: int) -> ModelWork:
    """The work of a config's model under its trained set and its recomputation."""
    parallel = config.parallel
    stage, backbone = config.stage, config.backbone
    key = repr((stage, backbone, config.adapter, config.encoder, config.optimizer, config.train.sequence_length))
    key += repr(parallel.recompute)
    key += repr((parallel.recompute_method, parallel.recompute_layers, sorted(parallel.recompute_modules)))
    if parallel.recompute is Recompute.full and parallel.recompute_method is RecomputeMethod.block:
        key += repr((parallel.pipeline, parallel.virtual_pipeline, parallel.pipeline_layout))
    return _model_work(_Hashed(key, config, vocabulary_rows))


@dataclass(frozen=True)
class _Hashed:
    """A config by what its work depends on."""

    key: str
    config: Config
    rows: int

    def __hash__(self) -> int:
        return hash((self.key, self.rows))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and (self.key, self.rows) == (other.key, other.rows)


@lru_cache(maxsize=64)
def _model_work(hashed: _Hashed) -> ModelWork:
    config, rows = hashed.config, hashed.rows
    parallel, backbone = config.parallel, config.backbone
    sizes = elements(config, rows)
    trained = learnt(config, rows)
    wholly = _wholly_again(config, rows)
    recomputed = Recomputed(layers=backbone.layers) if wholly else Recomputed.of(config, rows)
    attended = (config.train.sequence_length + 1) / 2
    passes: dict[int, list[ProductFlops]] = {}
    for product in product_passes(backbone, rows, 1.0, attended, Learning.of(config.stage, trained), recomputed):
        again = product.again if not wholly or product.layer in wholly else 0.0
        one = replace(product, name=without_layer(product.name), layer=0, again=again)
        passes.setdefault(product.layer, []).append(one)
    held: dict[int | str | None, Held] = {}
    for name, size in sizes.items():
        place = int(name.split(".")[2]) if name.startswith("decoder.layers.") else None
        where = place if place is not None else ("embedding" if name.startswith("embedding.") else None)
        held[where] = held.get(where, Held()) + _held(name, size, trained.trains(name))
    parts = frozenset(parallel.recompute_modules if parallel.recompute is Recompute.selective else ())
    known: dict[LayerWork, int] = {}
    kind_of = []
    for layer in range(backbone.layers):
        kind = LayerWork(tuple(passes[layer]), held[layer], frozenset({"all"}) if layer in wholly else parts)
        kind_of.append(known.setdefault(kind, len(known)))
    head = LayerWork(tuple(passes[-1]), held[None], again=frozenset())
    return ModelWork(tuple(known), tuple(kind_of), head, held["embedding"])


def elements(config: Config, vocabulary_rows: int) -> dict[str, int]:
    """Elements of every parameter of the whole model, low-rank factors included, by name; a tied head once."""
    whole = replace(config, parallel=ParallelConfig())
    return of_stage(whole, PipelineStage(config.backbone.layers, embedding=True, head=True), 0, vocabulary_rows)


def learnt(config: Config, vocabulary_rows: int) -> Trained:
    """What the stage trains, of the text LLM and of what it hears with."""
    return plan(config, elements(config, vocabulary_rows) | of_audio_input(config))


def _wholly_again(config: Config, rows: int) -> set[int]:
    """Layers whose whole forward pass is computed again."""
    parallel = config.parallel
    if parallel.recompute is not Recompute.full:
        return set()
    if parallel.recompute_method is RecomputeMethod.uniform:
        return set(range(config.backbone.layers))
    again, first = set(), 0
    for stage in stages_of(config.backbone, parallel, rows):
        again |= set(range(first, first + min(stage.layers, parallel.recompute_layers)))
        first += stage.layers
    return again


def _held(name: str, size: int, trains: bool) -> Held:
    learnt = size if trains else 0
    if EXPERTS in name:
        return Held(experts=size, trained_experts=learnt)
    return Held(dense=size, trained_dense=learnt)


def products_of(work: ModelWork) -> Iterator[ProductFlops]:
    """Every product of the model, layer by layer."""
    for kind in work.kind_of:
        yield from work.kinds[kind].products
    yield from work.head.products


def flops_per_token(work: ModelWork) -> float:
    """Model FLOPs a token, without what recomputation adds."""
    return sum(product.forward + product.backward for product in products_of(work))
