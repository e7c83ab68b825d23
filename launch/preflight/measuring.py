"""What a rank measures by itself, and what it measures with the others. `doing` is told what it is at."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema import Config, PreflightConfig
from launch.preflight import clock, compute, corpus, gpus, host, network, space, storage
from launch.preflight.beside import Beside
from launch.preflight.meeting import Place
from launch.preflight.node import Report
from launch.preflight.space import Room

if TYPE_CHECKING:
    import torch

Doing = Callable[[str], None]
Layout = Mapping[str, Sequence[int]]
"""The ranks of each node, by its name, in order."""
_PATIENCE = 5.0  # seconds until a network file system has to show a folder that another node has made
_NEVER = timedelta(hours=1)  # collectives are given up by who waits for this thread, not by the library


@dataclass
class Shared:
    """What ranks have measured together. offsets: seconds that clocks are ahead of rank 0's, by node, on rank 0."""

    report: Report = field(default_factory=Report)
    figures: dict[str, float] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)


def alone(config: Config, place: Place, layout: Layout, doing: Doing) -> tuple[Report, Room | None]:
    """This rank's device, and by the first rank of a node all of the node, with the room in its run folder."""
    doing("matrix products")
    if layout[place.node][0] != place.rank:
        return compute.speed(device_of(place)), None
    health: list[Beside] = []  # clocks and slowdowns are read while the GPUs work
    report, room = compute.speed(device_of(place), lambda: health.append(Beside(gpus.health))), None
    for what, check in (("memory", host.memory), ("/dev/shm", host.shared_memory), ("versions", host.versions)):
        doing(what)
        report.take(check())
    doing("corpus")
    seen = corpus.look(config)
    report.take(seen.report)
    folder = Path(config.run.folder)
    doing(f"run folder {folder}")
    if place.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
    if _appears(folder):
        report.take(storage.speed(folder, config.cluster.preflight.storage_mb, place.node))
        room = None if seen.rows is None else space.room(config, seen.rows, folder)
        if room is None:
            report.notes.append("space for checkpoints is not judged: no corpus or backbone says how large they are")
    else:
        report.lacks.append(f"run.folder={folder} is not there, and is on rank 0's node: is it shared?")
    doing("nvidia-smi")
    report.take(health[0].result())
    return report, room


def together(
    settings: PreflightConfig, place: Place, layout: Layout, store: Any, doing: Doing, now: Callable[[], float]
) -> Shared:
    """Network and clocks, in a process group over `store`; all ranks call this. now: this node's clock."""
    import torch.distributed as dist

    device, most = device_of(place), settings.network_mb
    doing("joining the process group")
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=_NEVER)
    found = Shared()
    doing("an all-reduce over all ranks")
    speed = network.reduced(dist.group.WORLD, place.world, device, most)
    if place.rank == 0:
        found.figures["all-reduce over all ranks, GB/s"] = speed
    doing("an all-reduce within the node")
    found.report.take(network.within(layout[place.node], device, most))
    if len(layout) > 1:
        leaders = {name: ranks[0] for name, ranks in layout.items()}
        if place.rank in leaders.values():
            doing("comparing clocks")
            group = dist.new_group(list(leaders.values()), backend="gloo", use_local_synchronization=True)
            found.offsets = clock.offsets(leaders, group, place.rank, now)
        node_of = {rank: name for name, ranks in layout.items() for rank in ranks}
        speeds = network.partners(
            list(layout.values()),
            place.rank,
            settings.pair_rounds,
            device,
            most,
            lambda peer: doing(f"sending to and receiving from {node_of[peer]}"),
        )
        found.report.peers = {node_of[peer]: value for peer, value in speeds.items()}
        if speeds:
            found.report.figures["network"] = max(speeds.values())
    doing("leaving")
    dist.destroy_process_group()
    return found


def device_of(place: Place) -> torch.device:
    """The rank's GPU, made current in this thread, or the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _appears(folder: Path) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while not folder.is_dir() and time.monotonic() < deadline:
        time.sleep(0.1)
    return folder.is_dir()
