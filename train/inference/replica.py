"""The ranks that share one copy of a model, and do together what the first of them says."""

from __future__ import annotations

import signal
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from checkpoints.agreement import gather
from runtime.signals import StopFlag


class Replica:
    """The first rank leads; the others listen. They speak over gloo on the host, whatever devices compute with, so that
    waiting costs no device anything. All ranks of the default group make theirs together."""

    def __init__(self, stop: StopFlag) -> None:
        self._stop = stop
        self._ranks = dist.get_process_group_ranks(parallel_state.get_model_parallel_group())
        replicas = sorted({tuple(ranks) for ranks in gather(self._ranks)})
        self._group, _ = dist.new_subgroups_by_enumeration([list(ranks) for ranks in replicas], backend="gloo")
        self.leads = dist.get_rank() == self._ranks[0]
        # Of the last pipeline stage the first rank: neighbours are tensor-parallel.
        self._last = self._ranks[-parallel_state.get_tensor_model_parallel_world_size()]
        self.copies, self.size = len(replicas), len(self._ranks)

    def hear(self, told: Any = None) -> Any:
        """What the leader has `told`, on all ranks. A stop signal that any of them got is known to all of them then."""
        number = torch.tensor(signal.Signals[self._stop.name].value if self._stop.name else 0)
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self._group)
        if number and not self._stop:
            self._stop.name = signal.Signals(int(number)).name
        message = [told]
        dist.broadcast_object_list(message, src=self._ranks[0], group=self._group)
        return message[0]

    def from_last(self, found: Any) -> Any:
        """On the leader what the last pipeline stage has `found`; None on the other ranks."""
        first, rank = self._ranks[0], dist.get_rank()
        if first == self._last:
            return found if self.leads else None
        box = [found]
        if rank == self._last:
            dist.send_object_list(box, dst=first, group=self._group)
        if rank == first:
            dist.recv_object_list(box, src=self._last, group=self._group)
        return box[0] if self.leads else None
