"""Where ranks are started, and what one site's Slurm wants to be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class Launcher(Enum):
    local = "local"  # ranks of this machine
    slurm = "slurm"  # a job for each stage, chained


class Tasks(Enum):
    """What srun starts on a node."""

    rank = "rank"  # every rank as a task of its own
    torchrun = "torchrun"  # one torchrun, which starts the node's ranks


class ContainerKind(Enum):
    pyxis = "pyxis"  # Pyxis and Enroot: srun --container-image
    apptainer = "apptainer"  # apptainer exec around what a task runs


@dataclass
class ContainerConfig:
    """Ranks run inside an image; the batch script itself runs on the node."""

    kind: ContainerKind = MISSING
    image: str = MISSING
    mounts: list[str] = field(default_factory=list)  # from:to, as the container's program writes them
    python: str = "python3"  # Megaphone's interpreter inside


@dataclass
class ClusterConfig:
    """One site's settings: a group of configs/cluster, or cluster=<a YAML file of the site's own> with these keys."""

    nodes: int = 1
    ranks_per_node: int | None = None  # None: one a GPU
    gpus_per_node: int = 8  # asked for; 0: none
    cpus_per_rank: int | None = None  # None: the partition's default
    memory: str | None = None  # of a node, as sbatch --mem has it ("0": all of it); None: the partition's default
    exclusive: bool = True  # no other job on the nodes
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclude: list[str] = field(default_factory=list)  # nodes never to run on
    time_limit: str | None = None  # minutes, hours:minutes:seconds or days-hours; None: the partition's
    warning: int = 300  # seconds before the time limit at which a job saves, stops and queues again
    requeues: int = 100  # most times that a stage's job is queued again: time limit, preemption, crash, lost node
    tasks: Tasks = Tasks.rank
    modules: list[str] = field(default_factory=list)  # loaded in the batch script, in this order
    setup: list[str] = field(default_factory=list)  # lines of shell after that, taken as they are
    environment: dict[str, str] = field(default_factory=dict)  # variables of every rank
    container: ContainerConfig | None = None
    options: dict[str, str | None] = field(
        default_factory=dict
    )  # more of sbatch's, by long name; null: without a value
