"""Steps that every rank takes, with one outcome: they all go on, or they all raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from runtime.exits import BadInput

T = TypeVar("T")


def together(action: Callable[[], T], doing: str) -> T:
    """Run `action` on every rank of the default group and wait for all.

    If any rank's raised OSError or BadInput, every rank raises BadInput with the same line, beginning with `doing`.
    If any raised anything else, that rank raises its own exception and the others RuntimeError. A rank that fails
    must not leave the others in a collective operation inside `action`.
    """
    result: T | None = None
    mine: BaseException | None = None
    try:
        result = action()
    except (Exception, CheckpointException) as error:  # Torch's is no Exception
        mine = error
    told = gather(_told(mine))
    failed = [(rank, *report) for rank, report in enumerate(told) if report is not None]
    if not failed:
        return result  # type: ignore[return-value]
    if all(users for _, users, _ in failed):
        rank, _, reason = failed[0]
        where = f" (rank {rank})" if len(told) > 1 else ""
        raise BadInput(f"{doing}: {reason}{where}") from mine
    if mine is not None:
        raise mine
    rank, _, reason = next(report for report in failed if not report[1])
    raise RuntimeError(f"{doing}: rank {rank} failed: {reason}")


def on_first_rank(action: Callable[[], Any], doing: str) -> None:
    """`together`, with something to do on rank 0 alone."""
    together(lambda: action() if dist.get_rank() == 0 else None, doing)


def gather(mine: T) -> list[T]:
    """What every rank has, by rank; on all of them."""
    if dist.get_world_size() == 1:
        return [mine]
    found = [mine] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def highest(*numbers: int) -> list[int]:
    """The highest of each number over all ranks; cheap enough to ask at every step."""
    if dist.get_world_size() == 1:
        return list(numbers)
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    tensor = torch.tensor(numbers, dtype=torch.int64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.tolist()


def _told(error: BaseException | None) -> tuple[bool, str] | None:
    """What the other ranks need to know: whether the user's input or machine is at fault, and one line."""
    if error is None:
        return None
    cause = _user_cause(error)
    if isinstance(cause, OSError) and cause.strerror:
        return True, f"{cause.strerror} ({cause.filename})" if cause.filename else cause.strerror
    lines = str(cause or error).strip().splitlines()
    return cause is not None, lines[0] if lines else type(error).__name__


def _user_cause(error: BaseException | None) -> BaseException | None:
    """The OSError or BadInput behind an exception, looking through Torch's report of several ranks' failures."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError | BadInput):
            return error
        if isinstance(error, CheckpointException):
            causes = (_user_cause(failure[0]) for failure in error.failures.values())
            return next((cause for cause in causes if cause is not None), None)
        error = error.__cause__ or error.__context__
    return None
