"""What the routers of a model's experts did over a step: two losses and how evenly tokens were spread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BALANCE, ROUTER_Z = "balance", "router_z"


@dataclass(frozen=True)
class Routing:
    """Global figures of a step or a validation pass; empty for a model without experts.

    balance, z: sums over real tokens and layers of the two losses that `configs.schema.ExpertsConfig` defines; count:
    real tokens x layers; chosen: by layer, and there by expert, how many real tokens went to it.
    """

    balance: float = 0.0
    z: float = 0.0
    count: float = 0.0
    chosen: Sequence[Sequence[float]] = ()

    def averages(self) -> dict[str, float]:
        """The loss terms, means over tokens and layers."""
        if not self.count:
            return {}
        return {BALANCE: self.balance / self.count, ROUTER_Z: self.z / self.count}

    def spread(self) -> dict[str, float | list[int]]:
        """imbalance: tokens of a layer's busiest expert over the mean of its experts, mean of the layers and (worst)
        highest; idle: share of all experts that got no token; tokens: of each expert, over all layers."""
        if not self.count:
            return {}
        busiest = [max(layer) * len(layer) / max(sum(layer), 1) for layer in self.chosen]
        every = [tokens for layer in self.chosen for tokens in layer]
        return {
            "experts/imbalance": sum(busiest) / len(busiest),
            "experts/worst_imbalance": max(busiest),
            "experts/idle": sum(tokens == 0 for tokens in every) / len(every),
            "experts/tokens": [int(sum(expert)) for expert in zip(*self.chosen, strict=True)],
        }


def added(parts: Iterable[Routing]) -> Routing:
    """The figures of several passes as one."""
    every = [part for part in parts if part.count]
    if not every:
        return Routing()
    tables = zip(*(part.chosen for part in every), strict=True)
    return Routing(
        sum(part.balance for part in every),
        sum(part.z for part in every),
        sum(part.count for part in every),
        [[sum(expert) for expert in zip(*layers, strict=True)] for layers in tables],
    )
