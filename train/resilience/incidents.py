"""What is written down about a step that was not learned from: which samples, which rank, which figures."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from checkpoints import agreement
from runtime import records
from train.engines.protocol import Evidence
from train.resilience.guard import Action, Kind

INCIDENTS_FILE = "incidents.jsonl"


def gather(evidence: Evidence, data_rank: int, samples: list[list[str]]) -> list[dict[str, Any]]:
    """What every rank saw in the step, by rank; every rank calls this.

    samples: the keys of this rank's samples by micro-batch. `loss` is each micro-batch's own average, on ranks that
    hold the last layer. `finite_gradients` tells of the rank's own, before they were summed over ranks; null: unknown.
    """
    mine = {
        "rank": dist.get_rank(),
        "data_rank": data_rank,
        "loss": [_plain(loss) for loss in evidence.losses],
        "finite_loss": all(math.isfinite(loss) for loss in evidence.losses),
        "finite_gradients": evidence.finite_gradients,
        "samples": samples,
    }
    return agreement.gather(mine)


@dataclass(frozen=True)
class Incident:
    """A step that was not learned from, with figures of the global batch.

    step: that it would have been; position: of its data (see `resilience.guard`); limits: of loss and gradient norm,
    None where spikes are not looked for, or not yet; ranks: what `gather` found.
    """

    step: int
    position: int
    kind: Kind
    action: Action
    loss: float
    gradient_norm: float
    limits: tuple[float, float] | None
    ranks: list[dict[str, Any]]

    @property
    def line(self) -> str:
        """For the console."""
        what = f"loss {self.loss:.4g}, gradient norm {self.gradient_norm:.4g}"
        if self.kind is Kind.spike and self.limits:
            what += f", above {self.limits[0]:.4g} or {self.limits[1]:.4g}"
        whose = self._suspects()
        return f"step {self.step}: {what}{f' ({whose})' if whose else ''}: {_DONE[self.action]}"

    def _suspects(self) -> str:
        """Which ranks the trouble came from, as far as they can tell; empty where none can."""
        loss = [str(entry["rank"]) for entry in self.ranks if not entry["finite_loss"]]
        rest = [entry for entry in self.ranks if entry["finite_loss"]]
        gradients = [str(entry["rank"]) for entry in rest if entry["finite_gradients"] is False]
        found = [f"the loss of rank {', '.join(loss)} is not finite"] if loss else []
        found += [f"the gradients of rank {', '.join(gradients)} are not finite"] if gradients else []
        return "; ".join(found)


_DONE = {
    Action.skip: "not learned from, its data is left out",
    Action.redo: "not learned from, going back to try the same data again",
    Action.leave_out: "it came again, so its data is left out",
    Action.stop: "the run stops",
}


def write(folder: Path, incident: Incident) -> None:
    """Append one incident to `incidents.jsonl` in a run folder, on disk before this returns. For one rank."""
    record = {
        "time": time.time(),
        "step": incident.step,
        "position": incident.position,
        "kind": incident.kind.value,
        "action": incident.action.value,
        "loss": _plain(incident.loss),
        "grad_norm": _plain(incident.gradient_norm),
        "limits": incident.limits,
        "ranks": incident.ranks,
    }
    records.append(folder / INCIDENTS_FILE, record)


def read(folder: Path) -> list[dict[str, Any]]:
    """The incidents of a run, in the order in which they were written."""
    return records.read(folder / INCIDENTS_FILE)


def _plain(value: Any) -> Any:
    """Strict JSON has no number that is not finite: those stand as strings, as in metrics.jsonl."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
