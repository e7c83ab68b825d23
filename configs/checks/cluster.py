"""What cannot be asked of Slurm, refused in one line before anything is submitted."""

from __future__ import annotations

import re

from configs.checks.topology import data_parallel_size, model_parallel_size
from configs.schema import ClusterConfig, Config, Launcher, PreflightConfig
from runtime.exits import BadInput

# Options of sbatch that Megaphone decides; any other may stand in cluster.options.
DECIDED = frozenset(
    """job-name nodes ntasks ntasks-per-node gpus-per-node cpus-per-task mem exclusive partition account qos constraint
    reservation exclude time signal requeue no-requeue open-mode output error chdir dependency kill-on-invalid-dep array
    parsable wrap export no-kill""".split()  # noqa: SIM905
)
FIGURES = frozenset("compute gpu_clock within network write read memory available shared_memory".split())  # noqa: SIM905
_TIME = re.compile(r"\d+(:\d+(:\d+)?)?|\d+-\d+(:\d+(:\d+)?)?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LINE = re.compile(r"[^\x00-\x1f\x7f]*")


def check_cluster(config: Config) -> None:
    cluster = config.cluster
    if config.launcher is Launcher.slurm:
        processes(cluster)
        if config.corpus.tasks is not None or config.corpus.task is not None:
            raise BadInput("corpus.tasks and corpus.task: under launcher=slurm cluster.corpus.tasks decides")
    if cluster.time_limit is not None and not _TIME.fullmatch(cluster.time_limit):
        raise BadInput(f"cluster.time_limit={cluster.time_limit}: minutes, hours:minutes:seconds or days-hours")
    for name in cluster.environment:
        if not _NAME.fullmatch(name):
            raise BadInput(f"cluster.environment: {name!r} is no name of a variable")
    for name in cluster.options:
        if name in DECIDED:
            raise BadInput(f"cluster.options.{name}: another setting decides it")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise BadInput(f"cluster.options: {name!r} is no long option of sbatch")
    check_preflight(cluster.preflight)
    _check_fewest_nodes(config)
    for key in ("tasks", "at_once", "cpus"):
        value = getattr(cluster.corpus, key)
        if value is not None and not value > 0:
            raise BadInput(f"cluster.corpus.{key}={value}: has to be above 0")
    if cluster.corpus.gpus < 0:
        raise BadInput(f"cluster.corpus.gpus={cluster.corpus.gpus}: has to be 0 or above")
    for key, value in _words(cluster):
        if not _LINE.fullmatch(value):
            raise BadInput(f"cluster.{key}={value!r}: a line break or control character")


def _check_fewest_nodes(config: Config) -> None:
    fewest = config.cluster.fewest_nodes
    if fewest is None:
        return
    if not 1 <= fewest <= config.cluster.nodes:
        raise BadInput(f"cluster.fewest_nodes={fewest}: from 1 to cluster.nodes={config.cluster.nodes}, or null")
    if config.parallel.data is not None:
        raise BadInput(f"cluster.fewest_nodes={fewest}: leave out parallel.data={config.parallel.data}: nodes decide")


def check_preflight(settings: PreflightConfig) -> None:
    """Raise BadInput for the first setting of a preflight that cannot work."""
    for key in ("seconds", "clock_skew", "storage_mb", "network_mb", "pair_rounds", "checkpoints"):
        value = getattr(settings, key)
        if value is not None and not value > 0:
            raise BadInput(f"cluster.preflight.{key}={value}: has to be above 0")
    for key in ("slow_share", "slow_storage_share"):
        share = getattr(settings, key)
        if not 0 <= share < 1:
            raise BadInput(f"cluster.preflight.{key}={share}: a share of the others' median, from 0 to below 1")
    if settings.exclusions < 0:
        raise BadInput(f"cluster.preflight.exclusions={settings.exclusions}: has to be 0 or above")
    for name, least in settings.least.items():
        if name not in FIGURES:
            raise BadInput(f"cluster.preflight.least.{name}: not one of {', '.join(sorted(FIGURES))}")
        if not least >= 0:
            raise BadInput(f"cluster.preflight.least.{name}={least}: has to be 0 or above")


def processes(cluster: ClusterConfig) -> int:
    """Ranks of a job over all its nodes. Raises BadInput where it is not said how many a node has."""
    each = cluster.ranks_per_node or cluster.gpus_per_node
    if not each:
        raise BadInput("cluster.gpus_per_node=0: set cluster.ranks_per_node")
    return cluster.nodes * each


def world_size(config: Config) -> int:
    """Ranks that a job of these settings has: what `parallel.data` makes of the topology; else those of the cluster
    where it has several nodes; else one copy of the model."""
    if config.parallel.data is None and config.cluster.nodes > 1:
        return processes(config.cluster)
    return model_parallel_size(config) * data_parallel_size(config)


def _words(cluster: ClusterConfig) -> list[tuple[str, str]]:
    """All that is written into directives and commands, by key; `setup` is shell and taken as it is."""
    single = ("memory", "partition", "account", "qos", "constraint", "reservation")
    found = [(key, str(getattr(cluster, key) or "")) for key in single]
    found.append(("corpus.memory", cluster.corpus.memory or ""))
    found += [(key, word) for key in ("exclude", "modules") for word in getattr(cluster, key)]
    found += [(f"environment.{key}", value) for key, value in cluster.environment.items()]
    found += [(f"options.{key}", value or "") for key, value in cluster.options.items()]
    if cluster.container is not None:
        inside = cluster.container
        found += [("container.image", inside.image), ("container.python", inside.python)]
        found += [("container.mounts", mount) for mount in inside.mounts]
    return found
