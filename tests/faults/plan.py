"""Which faults hit a run, when, and how the run is seen to have met them."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    kill = "kill -9"
    terminate = "SIGTERM"
    hang = "SIGSTOP"
    poison = "NaN in gradients"
    full = "disk full in a save"
    truncate = "checkpoint truncated"


# What the run says when it has noticed: the line that the table shows.
SAID = {
    Kind.kill: re.compile(r"rank \d+ was killed by SIGKILL"),
    Kind.terminate: re.compile(r"stopped by .*: checkpoint of step \d+ saved"),
    Kind.hang: re.compile(r"no progress for \d+ s: rank \d+ does not answer"),
    Kind.poison: re.compile(r"the gradients of rank \d+ are not finite"),
    Kind.full: re.compile(r"cannot save checkpoint .*: (No space left on device|File too large)"),
    Kind.truncate: re.compile(r"refused checkpoint step-\d+: .*"),
}


@dataclass(frozen=True)
class Fault:
    kind: Kind
    step: int  # once the run has done so many
    rank: int
    delay: float  # seconds after that: anywhere in a step


def plan(seed: int, faults: int, steps: int, ranks: int) -> list[Fault]:
    """`faults` faults by a seed, each kind as often as the others, in an order and at steps drawn at random."""
    draw = random.Random(seed)
    kinds = [list(Kind)[number % len(Kind)] for number in range(faults)]
    draw.shuffle(kinds)
    when = sorted(draw.sample(range(1, steps - steps // 10), faults))
    return [
        Fault(kind, step, draw.randrange(ranks), draw.uniform(0, 0.3)) for kind, step in zip(kinds, when, strict=True)
    ]
