"""What a run does when something goes wrong: numbers that cannot be, ranks that hang, processes that end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class OnIncident(Enum):
    """What happens to a step whose loss or gradients are not to be learned from. Its update is never applied."""

    stop = "stop"  # the run ends, exit code 3; the last checkpoint is from before it
    skip = "skip"  # nothing is learned from that step's data, and the run goes on with the next
    rewind = "rewind"  # back to the last checkpoint and the same data again; where it recurs, without that data


@dataclass
class ResilienceConfig:
    """All ranks decide as one, from figures of the global batch, before an update is applied.

    A spike is a loss or a gradient norm above median + spike_bound x 1.4826 x MAD of the last `window` learned steps
    (MAD: the median distance from the median; 1.4826 MADs are a normal distribution's standard deviation).
    """

    on_nonfinite: OnIncident = OnIncident.stop  # a loss or a gradient is NaN or infinite, on any rank
    on_spike: OnIncident | None = None  # None: spikes are not looked for
    spike_bound: float = 8.0  # deviations above the median
    window: int = 128  # steps that the median is of, and that `most_incidents` counts over
    warmup: int = 128  # learned steps before any is judged a spike; within `window`
    leave_out: int = 1  # rewind: steps of data left out where it recurs, the offending one the last of them
    most_incidents: int = 10  # within `window` steps of data; one more stops the run

    hang_seconds: float | None = 1200.0  # without progress, until a rank counts as hung; None: no watchdog
    restarts: int = 0  # a failed run is started again this often in a row without a new checkpoint in between
    restart_pause: float = 5.0  # seconds before the first of them, doubled each time up to 5 minutes

    # A rank counts as slow once its own work (data, forward, backward, update; no waiting for others) took longer than
    # that of its median peer, by this share of a step's time, in so many comparisons in a row, which are made every
    # `observe.ranks_every` steps; None, or observe.ranks_every=0: nobody looks.
    straggler_share: float | None = 0.1
    straggler_comparisons: int = 3
