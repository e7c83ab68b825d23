"""What every pipeline rank does in a step, in order: Megatron-Core 0.16.1's two schedules as lists of instructions.

`plain` is `forward_backward_pipelining_without_interleaving` of `megatron/core/pipeline_parallel/schedules.py` (1F1B;
Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters", 2104.04473, section 2.2.1), with
every exchange waited for at once. `interleaved` is `forward_backward_pipelining_with_interleaving` (section 2.2.2) as
the engine sets it up: `overlap_p2p_comm`, no overlap in warm-up and flush, and a
`microbatch_group_size_per_vp_stage` of as many micro-batches as there are ranks. There, exchanges are waited for while
the pipeline fills and drains, and go on beside computation in between. Tests compare both with what Megatron-Core does.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple


class Pass(Enum):
    forward = "F"
    backward = "B"


class Compute(NamedTuple):
    """One micro-batch through one of the rank's model chunks, forward or backward."""

    kind: Pass
    chunk: int
    microbatch: int


class Transfer(NamedTuple):
    """A send or a receive of what a pass made. Activations go to the next rank (the last one's to the first, for its
    next chunk), gradients to the one before. The n-th send of a kind meets the n-th receive of it on the other side."""

    kind: Pass
    send: bool


class Post(NamedTuple):
    """Begin transfers in one go. Their handles count all of this rank's, from `first` on, in their order."""

    transfers: tuple[Transfer, ...]
    first: int


class Wait(NamedTuple):
    """Go on when the transfer of this handle is done."""

    handle: int


Instruction = Compute | Post | Wait

SEND_FORWARD = Transfer(Pass.forward, send=True)
RECEIVE_FORWARD = Transfer(Pass.forward, send=False)
SEND_BACKWARD = Transfer(Pass.backward, send=True)
RECEIVE_BACKWARD = Transfer(Pass.backward, send=False)


def program(rank: int, ranks: int, chunks: int, microbatches: int) -> list[Instruction]:
    """Instructions of pipeline rank `rank` of `ranks`, which holds `chunks` model chunks; one chunk: 1F1B.

    Raises ValueError for an interleaved pipeline whose micro-batches are no multiple of its ranks: Megatron-Core
    refuses those.
    """
    if chunks == 1:
        return _plain(rank, ranks, microbatches)
    if microbatches % ranks:
        raise ValueError(
            f"{microbatches} micro-batches are no multiple of the {ranks} ranks of an interleaved pipeline"
        )
    return _interleaved(rank, ranks, chunks, microbatches)


def warm_up(rank: int, ranks: int, chunks: int, microbatches: int) -> int:
    """Forward passes of a rank before its first backward pass makes room for the next, as
    `get_pp_rank_microbatches` counts them."""
    wanted = ranks - rank - 1 if chunks == 1 else 2 * (ranks - rank - 1) + (chunks - 1) * ranks
    return min(wanted, chunks * microbatches)


def in_flight(rank: int, ranks: int, chunks: int, microbatches: int) -> int:
    """Most forward passes, counted by chunk and micro-batch, whose activations a rank holds at once."""
    return min(warm_up(rank, ranks, chunks, microbatches) + 1, chunks * microbatches)


class _Writer:
    """Instructions as they are written down, exchanges by the handles of their transfers."""

    def __init__(self) -> None:
        self.written: list[Instruction] = []
        self._handles = 0

    def compute(self, kind: Pass, chunk: int, microbatch: int) -> None:
        self.written.append(Compute(kind, chunk, microbatch))

    def post(self, transfers: dict[Transfer, bool]) -> dict[Transfer, int]:
        """Begin those transfers that there are; returns their handles."""
        begun = tuple(transfer for transfer, there in transfers.items() if there)
        if begun:
            self.written.append(Post(begun, self._handles))
        self._handles += len(begun)
        return dict(zip(begun, range(self._handles - len(begun), self._handles), strict=True))

    def wait(self, handle: int | None) -> None:
        if handle is not None:
            self.written.append(Wait(handle))

    def exchange(self, transfers: dict[Transfer, bool]) -> None:
        """Begin transfers and wait for all of them."""
        for handle in self.post(transfers).values():
            self.wait(handle)


def _plain(rank: int, ranks: int, microbatches: int) -> list[Instruction]:
    write = _Writer()
    first, last = rank == 0, rank == ranks - 1
    ahead = warm_up(rank, ranks, 1, microbatches)
    for microbatch in range(ahead):
        write.exchange({RECEIVE_FORWARD: not first})
        write.compute(Pass.forward, 0, microbatch)
        write.exchange({SEND_FORWARD: not last})
    if ahead < microbatches:
        write.exchange({RECEIVE_FORWARD: not first})
    for microbatch in range(microbatches - ahead):
        more = ahead + microbatch + 1 < microbatches
        write.compute(Pass.forward, 0, ahead + microbatch)
        write.exchange({SEND_FORWARD: not last, RECEIVE_BACKWARD: not last})
        write.compute(Pass.backward, 0, microbatch)
        write.exchange({SEND_BACKWARD: not first, RECEIVE_FORWARD: more and not first})
    for microbatch in range(microbatches - ahead, microbatches):
        write.exchange({RECEIVE_BACKWARD: not last})
        write.compute(Pass.backward, 0, microbatch)
        write.exchange({SEND_BACKWARD: not first})
    return write.written


def _interleaved(rank: int, ranks: int, chunks: int, microbatches: int) -> list[Instruction]:
    write = _Writer()
    total, first, last = chunks * microbatches, rank == 0, rank == ranks - 1
    ahead = warm_up(rank, ranks, chunks, microbatches)
    turns = list(_turns(ranks, chunks, microbatches))
    last_chunk = chunks - 1

    def compute(kind: Pass, number: int) -> bool:
        """The pass whose turn it is. Returns whether another rank waits for what it makes."""
        chunk, microbatch = turns[number]
        if kind is Pass.backward:
            chunk = last_chunk - chunk
        write.compute(kind, chunk, microbatch)
        end = (last and chunk == last_chunk) if kind is Pass.forward else (first and chunk == 0)
        return not end

    def follows(kind: Pass, number: int) -> bool:
        """Whether a tensor is received while turn `number` is over. The rank that a pass begins with is ahead of the
        one that it ends with, and gets back what that one has made by now, unless the pass is through with it."""
        leads = first if kind is Pass.forward else last
        if not leads:
            return number + 1 < total
        made = number - (ranks - 1)
        return made >= 0 and turns[made][0] != last_chunk and number + 1 < total

    def starts(kind: Pass, number: int) -> bool:
        """Whether the pass of this turn needs nothing from another rank."""
        leads = first if kind is Pass.forward else last
        return leads and turns[number][0] == 0

    activations: list[int] = []  # handles of receives that go on beside computation, in order
    gradients: list[int] = []
    sent_forward: int | None = None
    sent_backward: int | None = None

    write.exchange({RECEIVE_FORWARD: not first})
    for number in range(ahead):
        goes_on = compute(Pass.forward, number)
        write.exchange({SEND_FORWARD: goes_on, RECEIVE_FORWARD: follows(Pass.forward, number)})
    if ahead < total:
        gradients += write.post({RECEIVE_BACKWARD: not last}).values()
    for number in range(total - ahead):
        turn = ahead + number
        if not starts(Pass.forward, turn) and activations:
            write.wait(activations.pop(0))
        goes_on = compute(Pass.forward, turn)
        more = follows(Pass.forward, turn)
        begun = write.post({SEND_FORWARD: goes_on, RECEIVE_FORWARD: more})
        write.wait(sent_forward)
        sent_forward = begun.get(SEND_FORWARD)
        activations += [begun[RECEIVE_FORWARD]] if more else []

        if not starts(Pass.backward, number) and gradients:
            write.wait(gradients.pop(0))
        goes_on = compute(Pass.backward, number)
        more = follows(Pass.backward, number)
        begun = write.post({SEND_BACKWARD: goes_on, RECEIVE_BACKWARD: more})
        write.wait(sent_backward)
        sent_backward = begun.get(SEND_BACKWARD)
        gradients += [begun[RECEIVE_BACKWARD]] if more else []
    if ahead == total:
        write.exchange({RECEIVE_BACKWARD: not last})
    for number in range(total - ahead, total):
        if not starts(Pass.backward, number) and gradients:
            write.wait(gradients.pop(0))
        goes_on = compute(Pass.backward, number)
        write.exchange({SEND_BACKWARD: goes_on, RECEIVE_BACKWARD: follows(Pass.backward, number)})
    write.wait(sent_backward)
    return write.written


def _turns(ranks: int, chunks: int, microbatches: int) -> Iterator[tuple[int, int]]:
    """Chunk and micro-batch of each forward pass of an interleaved pipeline, in order: as many micro-batches as there
    are ranks through one chunk, then through the next. Backward passes take the chunks the other way round."""
    for start in range(0, microbatches, ranks):
        for chunk in range(chunks):
            for microbatch in range(start, start + ranks):
                yield chunk, microbatch
