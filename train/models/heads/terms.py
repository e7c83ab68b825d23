"""What is asked of a head at each place of a batch, and what it answers: the same types for every head and engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypedDict

import torch

from data_pipeline.batch import sent
from train.models.heads.distillation_loss import Taught


@dataclass(frozen=True)
class Targets:
    """What a token head is asked over one micro-batch of N places, on a device.

    labels: int64 [1, N]; weights: float32 [1, N], of each place's loss in the sum that is differentiated, in units of
    one token; places: int64 [n], ascending, the places whose loss is wanted at all (a reported loss may be wanted where
    the weight is 0), None: every place. smoothing, z, chunk: as in `configs.schema.LossConfig`. apart: the loss of each
    place is to be differentiated by itself, not their sum: weights, smoothing and z play no part. taught: what a
    teacher says, whose weighted divergence is added to the sum.

    `places` are made on the CPU, where the data is, since finding them on a GPU would make the host wait.
    """

    labels: torch.Tensor
    weights: torch.Tensor
    places: torch.Tensor | None = None
    smoothing: float = 0.0
    z: float = 0.0
    chunk: int = 0
    apart: bool = False
    taught: Taught | None = None

    def to(self, device: torch.device) -> Targets:
        """A copy on `device`, without waiting for it."""
        places = None if self.places is None else sent(self.places, device)
        taught = None if self.taught is None else self.taught.to(device)
        labels, weights = sent(self.labels, device), sent(self.weights, device)
        return replace(self, labels=labels, weights=weights, places=places, taught=taught)


class HeadLosses(TypedDict):
    """One head's losses over a micro-batch, on all ranks of the last stage alike.

    total: fp32 scalar to differentiate, each place's loss times its weight, added up. places: what is reported, by
    name, fp32 [1, N], detached, unweighted, 0 where no loss was wanted. With `Targets.apart` it is the other way round:
    total is 0, and what `places` has is differentiable.
    """

    total: torch.Tensor
    places: dict[str, torch.Tensor]


Losses = dict[str, HeadLosses]  # by head; a plain dict, since DeepSpeed and Megatron's wrappers look into those only
