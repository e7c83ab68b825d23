"""The policy for steps that must not be learned from: judged before their update is applied, by all ranks as one.

Data is counted in steps that the loader has handed out: `position` is how many came before a step's data. It runs
ahead of the run's own steps where data was left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from configs.schema import OnIncident, ResilienceConfig
from train.resilience.spikes import Spikes


class Kind(Enum):
    nonfinite = "not finite"
    spike = "spike"


class Action(Enum):
    """What becomes of the step that an incident was seen in. Its update is not applied in any case."""

    skip = "skip"  # its data is left out, and the run goes on
    redo = "redo"  # back to the last checkpoint, and the same data again
    leave_out = "leave out"  # it recurred: its data, and `leave_out` - 1 steps of data before it, are left out
    stop = "stop"


class Guard:
    """Judges every step of one run on every rank. `any_rank` tells all ranks whether any of them raised its flag."""

    def __init__(self, config: ResilienceConfig, any_rank: Callable[[bool], bool]) -> None:
        self._config = config
        self._any = any_rank
        self._spikes = Spikes(config.spike_bound, config.window, config.warmup)
        self._left_out: set[int] = set()  # positions
        self._incidents: list[int] = []  # positions, as often as there was one
        self._tried: set[int] = set()  # positions that are being trained on again
        self.incident: Kind | None = None  # of the last step that was judged
        self.limits: tuple[float, float] | None = None  # of its loss and gradient norm

    # --- judging --------------------------------------------------------------------------------------------

    def accept(self, loss: float, norm: float) -> bool:
        """Whether a step with these global figures may be learned from: the same answer on all ranks."""
        self.limits = self._spikes.limits() if self._config.on_spike else None
        self.incident = None
        if self._any(not (math.isfinite(loss) and math.isfinite(norm))):
            self.incident = Kind.nonfinite
        elif self.limits and self._any(loss > self.limits[0] or norm > self.limits[1]):
            self.incident = Kind.spike
        return self.incident is None

    def learn(self, position: int, loss: float, norm: float) -> None:
        """Remember the step at `position`, which was accepted."""
        self._spikes.learn(loss, norm)
        self._tried.discard(position)

    # --- deciding -------------------------------------------------------------------------------------------

    def leaves_out(self, position: int) -> bool:
        """Whether the data at `position` is not to be trained on."""
        return position in self._left_out

    def decide(self, position: int) -> Action:
        """What to do about the incident that was just seen in the data at `position`."""
        self._incidents = [other for other in self._incidents if other > position - self._config.window]
        self._incidents.append(position)
        wanted = self._config.on_nonfinite if self.incident is Kind.nonfinite else self._config.on_spike
        if wanted is OnIncident.stop or self.too_many:
            return Action.stop
        if wanted is OnIncident.rewind and position not in self._tried:
            self._tried.add(position)
            return Action.redo
        first = position if wanted is OnIncident.skip else self.first_left_out(position)
        self._left_out.update(range(first, position + 1))
        return Action.leave_out if wanted is OnIncident.rewind else Action.skip

    @property
    def why_stopped(self) -> str:
        """Why `decide` said to stop, and what to do."""
        if self.too_many:
            limit, window = self._config.most_incidents, self._config.window
            return f"more than resilience.most_incidents={limit} within {window} steps of data"
        option = "on_nonfinite" if self.incident is Kind.nonfinite else "on_spike"
        return f"the last checkpoint is from before it; go on from there with resilience.{option}=rewind or skip"

    @property
    def too_many(self) -> bool:
        """Whether there were more incidents than `most_incidents` within the window."""
        return len(self._incidents) > self._config.most_incidents

    def first_left_out(self, position: int) -> int:
        """Where the data that an incident at `position` leaves out begins, if it recurs."""
        return max(0, position - self._config.leave_out + 1)

    # --- state ----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """JSON, kept in checkpoints."""
        losses, norms = self._spikes.state()
        return {
            "losses": losses,
            "norms": norms,
            "left_out": sorted(self._left_out),
            "incidents": list(self._incidents),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state; an empty one is a run's beginning.

        What this process knows of incidents already stays known: in a rewind it is what the run has learned of its
        data, and without it the run would come to the same place for ever.
        """
        self._spikes.restore(state.get("losses", ()), state.get("norms", ()))
        self._left_out.update(state.get("left_out", ()))
        self._incidents = self._incidents or list(state.get("incidents", ()))
