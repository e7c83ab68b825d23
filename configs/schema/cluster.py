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
class PreflightConfig:
    """How nodes are looked at before a stage, and which of them count as sick. Figures are those of
    launch/preflight/figures.py: compute, gpu_clock, within, network, write, read, memory, available, shared_memory."""

    enabled: bool = True  # a Slurm job of a stage looks first; `megaphone preflight` does so anyway
    seconds: float = 90.0  # for all of it; who has not answered by then is named
    exclusions: int = 4  # most nodes that a job is queued again without, named by preflights or by logs of a failure
    slow_share: float = 0.5  # of the other nodes' median speed: below it a node is slow
    slow_storage_share: float = 0.2  # the same of reading and writing the run folder, which vary more
    least: dict[str, float] = field(default_factory=lambda: {"shared_memory": 1.0})  # of a figure, in its unit
    clock_skew: float = 1.0  # seconds that a node's clock may be off the median node's
    checkpoints: int | None = None  # room for so many in the run folder; None: those that the stage will keep, and one
    storage_mb: float = 64.0  # written and read again by every node
    network_mb: float = 64.0  # most that is reduced, or sent to a node, at once
    pair_rounds: int = 8  # partners of each node, at most, that its network is measured with


@dataclass
class CorpusJobConfig:
    """The job that builds a corpus: an array of tasks on nodes that they may share, each with its part of the shards,
    and where they are several a job of one task after them, which finishes the corpus."""

    tasks: int = 1
    at_once: int | None = None  # tasks that run at the same time, at most; None: as many as Slurm lets
    cpus: int | None = None  # of each task, which works with as many processes; None: the partition's default
    gpus: int = 0  # of each task
    memory: str | None = None  # of each task, as sbatch --mem has it; None: as cluster.memory


@dataclass
class ClusterConfig:
    """One site's settings: a group of configs/cluster, or cluster=<a YAML file of the site's own> with these keys."""

    nodes: int = 1
    # Where nodes are gone and none can take their place, a stage's job goes on with fewer, these at least: fewer copies
    # of the model, the same global batch and data, and all nodes again once they are there. The job's script decides at
    # its end; where the script's own node is lost, Slurm queues the job again as it was. None: it waits for `nodes`.
    fewest_nodes: int | None = None
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
    corpus: CorpusJobConfig = field(default_factory=CorpusJobConfig)
    preflight: PreflightConfig = field(default_factory=PreflightConfig)
    modules: list[str] = field(default_factory=list)  # loaded in the batch script, in this order
    setup: list[str] = field(default_factory=list)  # lines of shell after that, taken as they are
    environment: dict[str, str] = field(default_factory=dict)  # variables of every rank
    container: ContainerConfig | None = None
    options: dict[str, str | None] = field(
        default_factory=dict
    )  # more of sbatch's, by long name; null: without a value
