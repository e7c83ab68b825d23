"""What is minimised: values that cannot be, refused in one line."""

from __future__ import annotations

from math import inf

from configs.schema import Config
from runtime.exits import BadInput

LOSS_TERMS = ("lm",)


def check_loss(config: Config) -> None:
    loss = config.loss
    if not 0 <= loss.smoothing < 1:
        raise BadInput(
            f"loss.smoothing={loss.smoothing}: has to be from 0 to below 1, the target's own share being 1 - it"
        )
    for name, weight in loss.terms.items():
        if name not in LOSS_TERMS:
            raise BadInput(f"loss.terms.{name}: no such term; there are {', '.join(LOSS_TERMS)}")
        if not 0 < weight < inf:
            raise BadInput(f"loss.terms.{name}={weight}: has to be a number above 0")
    for name, weight in loss.modalities.items():
        if not 0 <= weight < inf:
            raise BadInput(f"loss.modalities.{name}={weight}: has to be a number, 0 or above")
