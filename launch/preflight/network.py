"""How fast ranks reduce together, within a node and over all, and how fast nodes send to each other, pair by pair."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from launch.preflight.node import Report

if TYPE_CHECKING:
    import torch

_FIRST = 1 << 20  # bytes that are sent first, to see how many can be sent in the time
_TARGET = 0.25  # seconds
_REPEATS = 3


def rounds(nodes: int, most: int) -> list[list[tuple[int, int]]]:
    """Pairs of nodes for so many rounds at most, each node once a round: a tournament (the circle method).

    With as many rounds as there are partners, every pair meets once; with fewer they are spread over the nodes.
    """
    even = nodes + nodes % 2  # where nodes are odd, whoever meets the one that is not there rests
    fixed, circle = even - 1, list(range(even - 1))
    chosen = sorted({number * len(circle) // min(most, len(circle)) for number in range(min(most, len(circle)))})
    found = []
    for turn in chosen:
        turned = circle[turn:] + circle[:turn]
        pairs = [(turned[0], fixed), *((turned[i], turned[-i]) for i in range(1, even // 2))]
        found.append([(min(pair), max(pair)) for pair in pairs if max(pair) < nodes])
    return found


def reduced(group: Any, size: int, device: torch.device, most: float) -> float:
    """Bus bandwidth in GB/s of an all-reduce over `size` ranks of a group: 2 (n - 1) / n times the bytes a second, as
    NVIDIA's nccl-tests count. All ranks of the group call this. most: MB that are reduced, at most."""
    import torch
    import torch.distributed as dist

    took = _timed_reduce(torch.zeros(_FIRST // 4, device=device), group, 2)
    agreed = torch.tensor([took], device=device)
    dist.all_reduce(agreed, dist.ReduceOp.MAX, group)
    tensor = torch.zeros(_bytes(float(agreed), most) // 4, device=device)
    best = _timed_reduce(tensor, group, _REPEATS)
    return 2 * (size - 1) / size * tensor.nbytes / best / 1e9


def partners(
    layout: Sequence[Sequence[int]], rank: int, most_rounds: int, device: torch.device, most: float, say: Callable
) -> dict[int, float]:
    """GB/s between this rank and those of other nodes that it is paired with, by their number; the slower direction.

    layout: the ranks of each node. Ranks meet those of the same place in another node. All ranks call this.
    say: told whom it is with.
    """
    import torch
    import torch.distributed as dist

    mine = next(number for number, ranks in enumerate(layout) if rank in ranks)
    place = list(layout[mine]).index(rank)
    found: dict[int, float] = {}
    for pairs in rounds(len(layout), most_rounds):
        other = next((a + b - mine for a, b in pairs if mine in (a, b)), None)
        if other is None or place >= len(layout[other]):
            continue
        peer = layout[other][place]
        say(peer)
        first = _both_ways(torch.zeros(_FIRST // 4, device=device), peer, rank < peer)
        tensor = torch.zeros(_bytes(first, most) // 4, device=device)
        found[peer] = tensor.nbytes / _both_ways(tensor, peer, rank < peer) / 1e9
    dist.barrier()
    return found


def within(ranks: Sequence[int], device: torch.device, most: float) -> Report:
    """The all-reduce among the ranks of a node; nothing where it has one."""
    import torch.distributed as dist

    if len(ranks) < 2:
        return Report()
    group = dist.new_group(list(ranks), use_local_synchronization=True)
    return Report(figures={"within": reduced(group, len(ranks), device, most)})


def _bytes(seconds: float, most: float) -> int:
    """How many bytes take about the wanted time, where the first ones took `seconds`."""
    return int(min(max(_FIRST * _TARGET / max(seconds, 1e-6), _FIRST), max(most * 1e6, _FIRST))) // 4 * 4


def _timed_reduce(tensor: torch.Tensor, group: Any, repeats: int) -> float:
    import torch.distributed as dist

    best = float("inf")
    for _ in range(repeats):
        dist.barrier(group)
        start = time.perf_counter()
        dist.all_reduce(tensor, group=group)
        _finish(tensor)
        best = min(best, time.perf_counter() - start)
    return best


def _both_ways(tensor: torch.Tensor, peer: int, first: bool) -> float:
    """Seconds of sending a tensor to a peer and of receiving one, the longer; the same on both."""
    import torch

    mine, theirs = tensor.new_zeros(1), tensor.new_zeros(1)
    for sends in (first, not first):
        _swap(mine, theirs, peer)  # so that both begin at once
        start = time.perf_counter()
        _send(tensor, peer) if sends else _receive(tensor, peer)
        if not sends:
            mine[0] = time.perf_counter() - start
    _swap(mine, theirs, peer)
    return float(torch.maximum(mine, theirs))


def _swap(mine: torch.Tensor, theirs: torch.Tensor, peer: int) -> None:
    import torch.distributed as dist

    _await([dist.P2POp(dist.isend, mine, peer), dist.P2POp(dist.irecv, theirs, peer)], theirs)


def _send(tensor: torch.Tensor, peer: int) -> None:
    import torch.distributed as dist

    _await([dist.P2POp(dist.isend, tensor, peer)], tensor)


def _receive(tensor: torch.Tensor, peer: int) -> None:
    import torch.distributed as dist

    _await([dist.P2POp(dist.irecv, tensor, peer)], tensor)


def _await(operations: list[Any], tensor: torch.Tensor) -> None:
    import torch.distributed as dist

    for work in dist.batch_isend_irecv(operations):  # in the group's own communicator: none is made for each pair
        work.wait()
    _finish(tensor)


def _finish(tensor: torch.Tensor) -> None:
    import torch

    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
