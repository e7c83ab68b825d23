"""A stage that averages earlier ones: values that cannot be, refused in one line."""

from __future__ import annotations

from math import inf

from configs.schema import Config, StageKind
from runtime.exits import BadInput


def check_merge(config: Config) -> None:
    weights = config.merge.weights
    if (config.stage.kind is StageKind.merge) != bool(weights):
        raise BadInput(f"merge.weights={weights}: stages by their weight go with stage.kind=merge, and it with them")
    if len(weights) == 1:
        raise BadInput(f"merge.weights={weights}: an average takes several stages")
    for stage, weight in weights.items():
        if not 0 <= weight < inf:
            raise BadInput(f"merge.weights.{stage}={weight}: has to be a number, 0 or above")
    if weights and not any(weights.values()):
        raise BadInput(f"merge.weights={weights}: not all are 0")
