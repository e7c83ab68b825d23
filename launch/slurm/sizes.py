"""On how many nodes a stage's job may run, and on how many Slurm could place it now.

Slurm itself is asked, by `sbatch --test-only` with the job's own script: it knows partitions, constraints, limits and
what else runs. Nodes that are busy count as there, for they come free; those that are down, drained or excluded do not.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from configs.checks import check
from configs.checks.cluster import processes
from configs.schema import ClusterConfig, Config, Tasks
from launch.slurm.queue import own_environment
from runtime.exits import BadInput


def sizes(config: Config) -> list[int]:
    """Numbers of nodes that a stage may be trained on, the most first: those asked for, and from `cluster.fewest_nodes`
    on all over whose ranks model, batch and lanes divide."""
    nodes, fewest = config.cluster.nodes, config.cluster.fewest_nodes
    fewer = range(nodes - 1, (nodes if fewest is None else fewest) - 1, -1)
    return [nodes, *(count for count in fewer if _refusal(config, count) is None)]


def require_sizes(config: Config) -> None:
    """Raise BadInput where `cluster.fewest_nodes` allows fewer nodes and none of these numbers will do."""
    nodes, fewest = config.cluster.nodes, config.cluster.fewest_nodes
    if fewest is not None and fewest < nodes and len(sizes(config)) == 1:
        raise BadInput(f"cluster.fewest_nodes={fewest}: fewer than {nodes} will not do: {_refusal(config, fewest)}")


def _refusal(config: Config, nodes: int) -> str | None:
    """Why a stage cannot be trained on so many nodes, None where it can."""
    try:
        check(config, nodes * ranks_per_node(config.cluster))
    except BadInput as refused:
        return str(refused)
    return None


def ranks_per_node(cluster: ClusterConfig) -> int:
    return processes(cluster) // cluster.nodes


def tasks_per_node(cluster: ClusterConfig) -> int:
    """What srun starts on a node."""
    return ranks_per_node(cluster) if cluster.tasks is Tasks.rank else 1


def placed(script: Path, config: Config, without: Sequence[str]) -> int | None:
    """The most nodes that Slurm could give the stage of this script, now or later, none of `without` among them; None
    where it is too few, or Slurm is not to be asked here."""
    return next((count for count in sizes(config) if _can_be_placed(script, config.cluster, count, without)), None)


def placing(cluster: ClusterConfig, nodes: int, without: Sequence[str]) -> list[str]:
    """Options of sbatch for so many nodes, none of `without` among them."""
    excluded = dict.fromkeys([*cluster.exclude, *without])
    size = [f"--nodes={nodes}", f"--ntasks={nodes * tasks_per_node(cluster)}"]
    return [*size, *([f"--exclude={','.join(excluded)}"] if excluded else [])]


def _can_be_placed(script: Path, cluster: ClusterConfig, nodes: int, without: Sequence[str]) -> bool:
    try:
        said = subprocess.run(
            ["sbatch", "--test-only", *placing(cluster, nodes, without), str(script)],
            env=own_environment(os.environ),
            capture_output=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return not said.returncode
