"""How often to save, and what of the time is left for training where GPUs fail.

Failures come at a constant rate, whatever the job is doing, so that the time to the next one is exponential (Schroeder
and Gibson 2007, "Understanding failures in petascale computers", find it near enough for planning).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, expm1, sqrt
from random import Random

DAY = 86400.0


@dataclass(frozen=True)
class Reliability:
    """Of a job, in seconds. between: mean time between its failures; stall: what a save keeps training from; write:
    from the beginning of a save until it can be gone on from; restart: from a failure to the first step again."""

    between: float
    stall: float
    write: float
    restart: float

    @classmethod
    def of(cls, gpus: int, failures: float, *, stall: float, write: float, restart: float) -> Reliability:
        """failures: in 1,000 days of one GPU."""
        return cls(1000 * DAY / (gpus * failures), stall, write, restart)

    @property
    def lost(self) -> float:
        """Seconds that a failure costs beside the work since the last save: the restart and, as one that comes while a
        save is still written goes back to the save before, on average what is written beside training."""
        return self.restart + max(self.write - self.stall, 0.0)


def best_interval(job: Reliability) -> float:
    """Seconds of training between two saves that lose least: Daly 2006, "A higher order estimate of the optimum
    checkpoint interval for restart dumps", equation 37; its first term is Young's of 1974, sqrt(2 stall between).

    Saves of which one is not over when the next begins are of no use, so it is at least `write`.
    """
    ratio = job.stall / (2 * job.between)
    if ratio >= 1:
        return max(job.between, job.write)
    found = sqrt(2 * job.stall * job.between) * (1 + sqrt(ratio) / 3 + ratio / 9) - job.stall
    return max(found, job.write)


def goodput(job: Reliability, interval: float) -> float:
    """Share of the time that goes into training which is kept, saving after every `interval` seconds of it.

    Daly 2006, equation 20: a stretch of `interval` + stall that has to be got through without a failure takes
    between exp(lost / between) (exp((interval + stall) / between) - 1) on average, failures in restarts included.
    """
    stretch = job.between * exp(job.lost / job.between) * expm1((interval + job.stall) / job.between)
    return interval / stretch


def played_goodput(job: Reliability, interval: float, stretches: int, seed: int) -> float:
    """The same by chance: `stretches` saves of a job whose failures are drawn one by one."""
    chance = Random(seed)
    now = 0.0
    done, written_at = 0, 0.0  # stretches saved, and when the last save can be gone on from
    failure = chance.expovariate(1 / job.between)
    while done < stretches:
        if now + interval + job.stall <= failure:
            now += interval + job.stall
            done += 1
            written_at = now + max(job.write - job.stall, 0.0)
            continue
        if written_at > failure:  # the last save is of no use: what it held is done again
            done -= 1
            written_at = 0.0
        now = failure + job.restart
        failure += chance.expovariate(1 / job.between)
        while failure < now:  # in the restart
            now = failure + job.restart
            failure += chance.expovariate(1 / job.between)
    return done * interval / now
