"""The batch script as text: what a shell and sbatch make of odd values, and what each way of starting ranks writes."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import ClusterConfig, ContainerConfig, ContainerKind, CorpusJobConfig, PreflightConfig, Tasks
from launch.slurm.script import Job, render

ODD = "a \"b\" 'c' $(touch no) `touch no`; touch no \\ &"


def job(**changes: object) -> Job:
    settings = {
        "name": "run-stage",
        "about": "Trains a stage.",
        "folder": Path("/runs/one"),
        "command": ("-m", "launch.cli", "train", "--folder", "/runs/one"),
        "python": "/usr/bin/python3",
        "directory": Path("/work"),
        "ranks_per_node": 8,
    }
    return Job(**(settings | changes))  # type: ignore[arg-type]


def is_shell(text: str) -> bool:
    return subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).returncode == 0


@pytest.mark.parametrize("tasks", list(Tasks))
@pytest.mark.parametrize("container", [None, *ContainerKind])
def test_one_task_a_rank_or_one_torchrun_a_node_and_never_both(tasks: Tasks, container: ContainerKind | None) -> None:
    inside = None if container is None else ContainerConfig(container, "image.sqsh", ["/data:/data", "/runs:/runs"])
    text = render(job(), ClusterConfig(nodes=4, tasks=tasks, container=inside, cpus_per_rank=12))
    assert is_shell(text)
    each, cpus = ("8", "12") if tasks is Tasks.rank else ("1", "96")
    for line in ("--nodes=4", f"--ntasks-per-node={each}", f"--cpus-per-task={cpus}", "--gpus-per-node=8", "--requeue"):
        assert f"\n#SBATCH {line}\n" in text
    # Twice: the nodes are looked at as they will be trained on.
    assert text.count("torch.distributed.run") == 2 * (tasks is Tasks.torchrun)
    assert text.count("--container-image=image.sqsh") == 2 * (container is ContainerKind.pyxis)
    flat = " ".join(text.replace("\\\n", "").split())
    assert flat.count("apptainer exec --nv --bind /data:/data,/runs:/runs image.sqsh") == 2 * (
        container is ContainerKind.apptainer
    )


@pytest.mark.parametrize("enabled", [True, False])
def test_nodes_are_looked_at_first_unless_switched_off(enabled: bool) -> None:
    text = render(job(), ClusterConfig(nodes=4, preflight=PreflightConfig(enabled=enabled))).replace("\\\n    ", "")
    looks = text.find("preflight --folder /runs/one")
    assert (looks > 0) is enabled
    assert looks < text.find("train --folder /runs/one")
    assert "launch.slurm.looked" not in render(job(ranks_per_node=0), ClusterConfig())


def test_a_job_of_one_task_asks_for_one_node_and_no_gpu() -> None:
    text = render(job(ranks_per_node=0), ClusterConfig(nodes=4))
    assert is_shell(text)
    assert "#SBATCH --nodes=1\n" in text
    assert "gpus-per-node" not in text
    assert "MASTER_ADDR" not in text


def test_tasks_that_share_the_work_are_an_array() -> None:
    parts = CorpusJobConfig(tasks=16, at_once=4, cpus=8, gpus=1, memory="30G")
    text = render(job(ranks_per_node=0, parts=parts), ClusterConfig(nodes=4, memory="0"))
    assert is_shell(text)
    for line in ("array=0-15%4", "nodes=1", "ntasks-per-node=1", "cpus-per-task=8", "gpus-per-node=1", "mem=30G"):
        assert f"\n#SBATCH --{line}\n" in text
    assert "#SBATCH --output=/runs/one/slurm/%A_%a.log\n" in text
    assert "--exclusive" not in text
    assert "#SBATCH --array" not in render(job(ranks_per_node=0), ClusterConfig())


def test_a_job_that_may_shrink_is_left_to_its_script_when_a_node_is_lost() -> None:
    text = render(job(), ClusterConfig(nodes=4, fewest_nodes=2))
    assert is_shell(text)
    assert "#SBATCH --no-kill\n" in text and "launch.slurm.keeper" in text
    text = render(job(), ClusterConfig(nodes=4))
    assert "no-kill" not in text and "keeper" not in text


@given(st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1))
def test_values_reach_the_shell_as_words(value: str) -> None:
    cluster = ClusterConfig(environment={"NAME": value}, modules=[value])
    text = render(job(python=value, command=(value,), directory=Path("/"), ranks_per_node=0), cluster)
    exported = next(line for line in text.splitlines() if line.startswith("export NAME="))
    assert shlex.split(exported) == ["export", f"NAME={value}"]
    assert shlex.split(next(line for line in text.splitlines() if line.startswith("PYTHON="))) == [f"PYTHON={value}"]


def test_an_odd_value_runs_nothing(tmp_path: Path) -> None:
    """The script with srun and the rest of Slurm's commands left out, in a real shell."""
    cluster = ClusterConfig(environment={"NAME": ODD}, partition=ODD, gpus_per_node=0, exclusive=False)
    text = render(job(name=ODD, folder=tmp_path / ODD, python="true", command=(ODD,), ranks_per_node=0), cluster)
    script = "srun() { :; }; scancel() { :; }\n" + text.replace("set -u", "set -eu")
    subprocess.run(["bash"], input=script, text=True, cwd=tmp_path, timeout=20, capture_output=True)
    assert list(tmp_path.iterdir()) == []
