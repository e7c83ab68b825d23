"""Norms of gradients, parameters and updates by group, over all ranks of a Megatron-Core optimiser.

Each group's figure is over every parameter of the whole model once: of copies on several tensor-parallel ranks, and of
a tied embedding's copy on the last pipeline stage, one counts, as in Megatron's own gradient norm. The squares of the
groups' gradient norms therefore add up to the square of that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared

from train.trainable import Trained

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")
_SLICE = 1 << 24  # elements of a parameter worked on at a time: what an update's norm needs beside the state


class _Piece(NamedTuple):
    """What this rank's optimiser holds of one parameter of the model: its fp32 values, their reduced gradient, the
    optimiser's group and state of it (none before the first step)."""

    parameter: torch.nn.Parameter
    main: torch.Tensor
    gradient: torch.Tensor
    options: dict[str, Any]
    state: dict[str, Any]


class GroupNorms:
    """Measures the trained parameters by the groups of `trained`, and by layer of the trunk, layer-000 onwards.

    names: of the parameters of this rank's chunks; layers: how many the whole model has, 0 to leave them out.
    """

    def __init__(
        self,
        optimizer: MegatronOptimizer,
        names: Mapping[torch.nn.Parameter, str],
        trained: Trained,
        layers: int,
        device: torch.device,
    ) -> None:
        self._parts = getattr(optimizer, "chained_optimizers", [optimizer])
        self._device = device
        self._names = [*trained.groups, *(f"layer-{number:03d}" for number in range(layers))]
        self._places: dict[int, list[int]] = {}  # by the identity of a parameter: its places in `_names`
        for parameter, name in names.items():
            if trained.trains(name):
                self._places[id(parameter)] = [self._names.index(trained.group_of[name])]
                if layers and (found := _LAYER.match(name)):
                    self._places[id(parameter)].append(len(trained.groups) + int(found[1]))

    def gradients(self) -> dict[str, float]:
        """Of the reduced gradients, before clipping: called between the backward pass and the optimiser's step."""
        return self._named("grad", self._over_ranks(lambda piece: _square(piece.gradient)))

    def parameters(self) -> dict[str, float]:
        """Of the fp32 parameters, and of what the step that has just been made did to them. Collective."""
        norms = self._named("param", self._over_ranks(lambda piece: _square(piece.main)))
        return norms | self._named("update", self._over_ranks(_update_square))

    def _named(self, kind: str, squares: list[float]) -> dict[str, float]:
        return {f"{kind}/{name}": square**0.5 for name, square in zip(self._names, squares, strict=True)}

    @torch.no_grad()
    def _over_ranks(self, square: Callable[[_Piece], torch.Tensor]) -> list[float]:
        """Sums of `square` by group. One small collective an optimiser, of which there is one for dense and one for
        expert parameters, over the ranks that share its parameters out."""
        total = torch.zeros(len(self._names), dtype=torch.float64, device=self._device)
        for part in self._parts:
            squares, places = [], []
            for piece in _pieces(part):
                found = square(piece)
                for place in self._places[id(piece.parameter)]:
                    squares.append(found)
                    places.append(place)
            sums = torch.zeros_like(total)
            if squares:
                sums.index_add_(0, torch.tensor(places, device=self._device), torch.stack(squares))
            dist.all_reduce(sums, group=part.get_grad_stats_parallel_group())
            total += sums
        return total.tolist()


def _pieces(part: Any) -> Iterator[_Piece]:
    """What this rank counts of one optimiser."""
    if getattr(part, "is_stub_optimizer", False) or part.optimizer is None:
        return
    options = {id(tensor): group for group in part.optimizer.param_groups for tensor in group["params"]}
    for parameter, main in _pairs(part):
        if not param_is_not_shared(parameter):
            continue
        if not param_is_not_tensor_parallel_duplicate(parameter, getattr(part, "tp_group", None)):
            continue
        gradient: torch.Tensor = parameter.main_grad  # type: ignore[attr-defined]
        if isinstance(part, DistributedOptimizer):  # this rank's part of the buffer alone is reduced
            held = part._get_model_param_range_map(parameter)["param"]
            gradient = gradient.view(-1)[held.start : held.end]
        yield _Piece(parameter, main, gradient, options[id(main)], part.optimizer.state[main])


def _pairs(part: Any) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Parameters of the model and the tensors that the optimiser updates for them."""
    if isinstance(part, DistributedOptimizer):
        groups = [
            (part.model_float16_groups, part.shard_fp32_from_float16_groups),
            (part.model_fp32_groups, part.shard_fp32_groups),
        ]
    elif isinstance(part, Float16OptimizerWithFloat16Params):
        groups = [
            (part.float16_groups, part.fp32_from_float16_groups),
            (part.fp32_from_fp32_groups, part.fp32_from_fp32_groups),
        ]
    else:
        own = [group["params"] for group in part.param_groups]
        groups = [(own, own)]
    for models, mains in groups:
        yield from zip(chain.from_iterable(models), chain.from_iterable(mains), strict=True)


def _square(tensor: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.float32).double().square()


def _update_square(piece: _Piece) -> torch.Tensor:
    """Of the change that AdamW's last step made, computed from its state: no copy of the parameters is kept."""
    options, state = piece.options, piece.state
    step = float(state["step"] if "step" in state else options["step"])
    beta1, beta2 = options["betas"]
    rate, decay = options["lr"], options["weight_decay"]
    total = torch.zeros((), dtype=torch.float64, device=piece.main.device)
    flat = [tensor.view(-1) for tensor in (piece.main, state["exp_avg"], state["exp_avg_sq"])]
    for values, first, second in zip(*(tensor.split(_SLICE) for tensor in flat), strict=True):
        moved = (second / (1 - beta2**step)).sqrt_().add_(options["eps"])
        torch.div(first, moved, out=moved).mul_(rate / (1 - beta1**step))
        before = (values + moved).div_(1 - rate * decay)
        total += _square(moved.add_(before, alpha=rate * decay))
    return total
