"""Recipes under a real Slurm: stages chained, resumed after every way of being interrupted, stopped by a failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.compose import compose_stage
from data_pipeline.corpus import Corpus
from launch.recovery import failures
from launch.slurm.record import Attempt, Submitted, read_attempts, read_jobs
from runtime.exits import BAD_INPUT, DONE, FAILED, SICK, STOPPED_EARLY
from tests.data_pipeline.recorded_speech import write_recordings
from tests.data_pipeline.synthetic import make_corpus
from tests.data_pipeline.test_build import new_cache
from tests.data_pipeline.test_build_tasks import task_config
from tests.launch.test_notify import Hook
from tests.slurm.cluster import Cluster
from tests.train.runs import metrics, run_config

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = {"first": 24, "second": 60}  # the second is struck three times, and must not be over before

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("slurm"), nodes=3)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages of a tiny backbone on a corpus that is there; saved every four steps."""
    folder = tmp_path_factory.mktemp("recipe")
    make_corpus(folder / "corpus")
    common = {
        "backbone": {
            "name": "test",
            "layers": 2,
            "hidden": 64,
            "ffn": 128,
            "heads": 4,
            "kv_heads": 2,
            "tokenizer": "none",
            "init_std": 0.1,
        },
        "corpus": {"name": "synthetic", "folder": str(folder / "corpus")},
        "codec": {"name": "synthetic"},
        "mixture": {"name": "synthetic", "sources": {"continuation": {"layout": "continuation", "weight": 1.0}}},
        "loader": {"lanes": 4, "packing_window": 4},
        "train": {
            "global_batch": 8,
            "sequence_length": 512,
            "validate_every": 0,
            "validation_packs": 4,
        },
        "checkpoint": {"every": 4, "keep": 0},
        "optimizer": {"lr": 1.0e-3, "warmup_steps": 2},
        "parallel": {"tensor": 2},
        "tracker": {"wandb": "disabled"},
        "export": {"huggingface": False},
    }
    stages: dict[str, dict[str, Any]] = {
        "first": {},
        "second": {"stage": {"weights": "first"}, "optimizer": {"lr": 5.0e-4}},
    }
    for name, stage in stages.items():
        stage["train"] = {"steps": STEPS[name]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "chained", "common": common, "stages": stages}))
    return folder


def megaphone(cluster: Cluster, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *words],
        cwd=folder,
        env={**cluster.environment, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )


def status(cluster: Cluster, folder: Path) -> str:
    return megaphone(cluster, folder, "status", str(folder / "run")).stdout


def submit(cluster: Cluster, folder: Path, recipe: Path, *words: str) -> None:
    """Two nodes with two ranks each."""
    told = ("launcher=slurm", "cluster=cores", "cluster.nodes=2", f"run.folder={folder / 'run'}")
    said = megaphone(cluster, folder, "run", f"recipe={recipe}", *told, *words)
    assert said.returncode == DONE, said.stdout + said.stderr


def job(folder: Path, stage: str, kind: str = "train") -> Submitted:
    return next(one for one in read_jobs(folder / "run" / stage) if one.kind == kind)


def attempts(folder: Path, stage: str) -> list[Attempt]:
    numbers = job(folder, stage).ids
    return [one for one in read_attempts(folder / "run" / stage) if one.job in numbers]


def wait_for(ready: Callable[[], bool], what: str, seconds: float = 200.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"no {what} after {seconds:g} s"
        time.sleep(0.2)


def at_step(folder: Path, stage: str, step: int) -> Callable[[], bool]:
    def reached() -> bool:
        file = folder / "run" / stage / "metrics.jsonl"
        return file.is_file() and len(file.read_text().splitlines()) >= step

    return reached


def ended(cluster: Cluster, number: int) -> Callable[[], bool]:
    def gone() -> bool:
        states = cluster.ask("squeue", "-h", "-j", str(number), "-t", "all", "-o", "%T", check=False).split()
        return bool(states) and states[0] in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL")

    return gone


def curve(folder: Path, stage: str) -> list[tuple[int, float, float]]:
    return [(one["step"], one["loss"], one["grad_norm"]) for one in metrics(folder / "run" / stage)]


def break_gpu(run: Path, rank: int) -> None:
    """End a rank as one whose GPU is broken: what CUDA says then in its log, and its process gone."""
    with (run / "logs" / f"rank-{rank}.log").open("a") as log:
        log.write("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered\n")
    (process,) = [
        int(one.name)
        for one in Path("/proc").glob("[0-9]*")
        if is_rank(one, rank) and str(run).encode() in (one / "cmdline").read_bytes()
    ]
    os.kill(process, signal.SIGKILL)


def is_rank(process: Path, rank: int) -> bool:
    try:
        return f"\0RANK={rank}\0".encode() in (process / "environ").read_bytes()
    except OSError:
        return False


def test_stages_chain_and_every_interruption_resumes_the_same_curve(
    cluster: Cluster, recipe: Path, tmp_path: Path
) -> None:
    undisturbed = tmp_path / "undisturbed"
    for stage in ("first", "second"):
        run_config(compose_stage(str(recipe), None, stage, ["parallel.data=2", f"run.folder={undisturbed}/run"]), 4)

    hook = Hook(address=cluster.address)
    submit(cluster, tmp_path, recipe, "cluster.fewest_nodes=1", f"notify.webhook={hook.url}")
    first, second = job(tmp_path, "first").id, job(tmp_path, "second").id
    assert job(tmp_path, "first", "finish").id > first

    # A GPU of the first stage's last node breaks: the whole chain is kept from that node, and goes on with the spare.
    kept = f"kept from node2 since job {first}: rank 3 on node2: GPU broken (torch.Acc"
    wait_for(at_step(tmp_path, "first", 6), "sixth step")
    break_gpu(tmp_path / "run" / "first", 3)
    wait_for(lambda: attempts(tmp_path, "first"), "end of the first start")
    wait_for(lambda: status(cluster, tmp_path).count(kept) == 2, "word of both stages that are kept from the node")
    assert "first: step" in status(cluster, tmp_path)
    wait_for(ended(cluster, first), "end of the first stage")

    # The second stage is queued again by hand, and then warned of its time limit.
    wait_for(at_step(tmp_path, "second", 6), "sixth step")
    cluster.ask("scontrol", "requeue", str(second))
    wait_for(
        lambda: (
            not ended(cluster, second)() and "PENDING" in cluster.ask("squeue", "-h", "-j", str(second), "-o", "%T")
        ),
        "requeue",
    )
    wait_for(lambda: len(curve(tmp_path, "second")) >= 14, "fourteenth step")
    cluster.ask("scancel", "--batch", "--signal=USR1", str(second))

    # The node of its batch script is lost for good: it goes on with the only one that is left.
    wait_for(lambda: any(one.asked == "USR1" for one in attempts(tmp_path, "second")), "end of the warned start")
    steps = len(curve(tmp_path, "second"))
    wait_for(lambda: len(curve(tmp_path, "second")) >= steps + 4, "steps of the third start")
    cluster.crash("node1")
    wait_for(ended(cluster, job(tmp_path, "second", "finish").id), "end of the last job")

    assert curve(tmp_path, "first") == curve(undisturbed, "first")
    for stage in ("first", "second"):
        assert [step for step, _, _ in curve(tmp_path, stage)] == list(range(1, STEPS[stage] + 1))
    full = [(loss, norm) for _, loss, norm in curve(undisturbed, "second")]
    fewer = [(loss, norm) for _, loss, norm in curve(tmp_path, "second")]
    assert fewer[:steps] == full[:steps]
    assert fewer != full  # two copies of the model add up in another order than one
    assert [loss for loss, _ in fewer] == pytest.approx([loss for loss, _ in full], rel=1e-4)
    assert [norm for _, norm in fewer] == pytest.approx([norm for _, norm in full], rel=1e-3)

    broken, last = attempts(tmp_path, "first")
    assert (broken.code, broken.nodes, broken.excluded) == (FAILED, "node[1-2]", ["node2"])
    assert broken.reason == "a rank failed; queued again without node2, 1 of 4 left out"
    assert (last.code, last.nodes) == (DONE, "node[1,3]")
    warned, lost, last = attempts(tmp_path, "second")[-3:]  # one that Slurm queues again may come to its end before
    assert (warned.code, warned.asked, warned.queued_again) == (STOPPED_EARLY, "USR1", True)
    assert (lost.code, lost.nodes, lost.queued_again) == (FAILED, "node[1,3]", True)
    assert lost.reason == (
        "a rank failed, and node1 no longer answers; queued again; on 1 of 2 nodes, for there are no more"
    )
    assert (last.code, last.nodes, last.queued_again) == (DONE, "node3", False)
    assert [(one.node, one.kind) for one in failures.read(tmp_path / "run" / "second")] == [("node1", "node lost")]
    shown = status(cluster, tmp_path)
    assert all(f"finished, step {steps} of {steps}" in shown for steps in STEPS.values())
    assert (tmp_path / "run" / "second" / "report.html").is_file()
    hook.close()
    told = {stage: [one["event"] for one in hook.received if one["stage"] == stage] for stage in ("first", "second")}
    assert told["first"] == ["started", "failed", "restarted", "started", "stage_done"]
    again = ["started", "stopped", "started", "failed", "restarted", "started", "stage_done"]
    assert told["second"][-7:] == again and "started" in told["second"][:-7]
    cluster.start_node("node1")


def test_a_failing_stage_stops_the_chain_and_status_says_why(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    submit(cluster, tmp_path, recipe, "cluster.setup=['sleep 3']", 'run.name="odd; touch $HOME/no `id`"')
    number = job(tmp_path, "first").id
    assert "JobName=odd; touch $HOME/no `id`-first" in cluster.ask("scontrol", "show", "job", str(number))
    (recipe / "corpus").rename(recipe / "elsewhere")
    try:
        wait_for(ended(cluster, number), "end of the failing stage")
    finally:
        (recipe / "elsewhere").rename(recipe / "corpus")
    wait_for(ended(cluster, job(tmp_path, "second").id), "end of the second stage")
    assert attempts(tmp_path, "first")[-1].code == BAD_INPUT
    assert not (tmp_path / "run" / "second" / "metrics.jsonl").exists()
    shown = status(cluster, tmp_path)
    assert "its configuration or input was refused" in shown
    assert "cancelled" in shown


def test_torchrun_ranks_save_when_cancelled_and_are_not_queued_again(
    cluster: Cluster, recipe: Path, tmp_path: Path
) -> None:
    submit(cluster, tmp_path, recipe, "cluster.tasks=torchrun", "train.steps=5000")
    wait_for(at_step(tmp_path, "first", 3), "third step")
    said = megaphone(cluster, tmp_path, "cancel", str(tmp_path / "run"))
    assert said.returncode == DONE, said.stderr
    wait_for(ended(cluster, job(tmp_path, "first").id), "end of the cancelled job")
    (only,) = attempts(tmp_path, "first")
    assert (only.code, only.queued_again) == (STOPPED_EARLY, False)
    assert only.checkpoint == f"step-{len(curve(tmp_path, 'first')):08d}"
    assert only.reason.endswith("cancelled")
    assert json.loads((tmp_path / "run" / "first" / "slurm" / "jobs.json").read_text())[0]["ranks"] == 4
    assert os.listdir(tmp_path / "run" / "first" / "slurm" / "exits")


def test_a_sick_node_is_left_out_and_the_job_goes_on_with_the_spare_one(
    cluster: Cluster, recipe: Path, tmp_path: Path
) -> None:
    described = yaml.safe_load((recipe / "recipe.yaml").read_text())
    del described["stages"]["second"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(described))
    looks = ("cluster.ranks_per_node=1", "cluster.preflight.enabled=true", "train.steps=2")
    cluster.inside("node2", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm")
    try:
        submit(cluster, tmp_path, tmp_path, *looks)
        run = tmp_path / "run"
        wait_for(lambda: (run / "slurm" / "jobs.json").is_file(), "record of jobs")
        number = read_jobs(run)[0].id
        wait_for(ended(cluster, number), "end of the stage")
    finally:
        cluster.inside("node2", "umount", "/dev/shm")
    left, last = [one for one in read_attempts(run) if one.job == number]
    assert (left.code, left.queued_again, left.nodes, left.excluded) == (SICK, True, "node[1-2]", ["node2"])
    assert "node2: /dev/shm free 0.00105 GB; the others' median is" in left.reason
    assert (last.code, last.nodes) == (DONE, "node[1,3]")
    assert [one["step"] for one in metrics(run)] == [1, 2]
    assert json.loads((run / "preflight.json").read_text())["nodes"].keys() == {"node1", "node3"}


def test_a_corpus_is_built_by_an_array_of_tasks_and_merged(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    """Codebooks are learnt from what all tasks made, so an array makes that first."""
    cache, recordings = new_cache(tmp_path / "cache"), write_recordings(tmp_path / "recordings", 4)
    config = task_config(cache, recordings)
    books = config.codec.codebooks
    described = yaml.safe_load((recipe / "recipe.yaml").read_text())
    described["common"]["backbone"]["tokenizer"] = config.backbone.tokenizer
    described["common"]["codec"] = {
        "name": "dual",
        "weights": config.codec.weights,
        "codebooks": {name: {"size": one.size, "rate": one.rate, "layer": one.layer} for name, one in books.items()},
        "group": config.codec.group,
    }
    described["common"]["corpus"] = {
        "name": "recorded",
        "shard_minutes": config.corpus.shard_minutes,
        "workers": 1,
        "speech": {"kind": "audio_folder", "path": str(recordings)},
    }
    described["stages"] = {"only": {}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(described))
    told = ("launcher=slurm", "cluster=cores", "cluster.corpus.tasks=2", "cluster.corpus.at_once=2")
    where = (f"run.cache={cache}", f"run.folder={tmp_path / 'run'}")
    said = megaphone(cluster, tmp_path, "data", "build", f"recipe={tmp_path}", *told, *where)
    assert said.returncode == DONE, said.stdout + said.stderr
    jobs = read_jobs(tmp_path / "run")
    assert [one.kind for one in jobs] == ["features", "corpus", "merge"]
    wait_for(ended(cluster, jobs[-1].id), "end of the merge")
    found = read_attempts(tmp_path / "run")
    assert sorted((one.job, one.task or 0, one.code) for one in found) == [
        *((one.id, task, DONE) for one in jobs[:2] for task in (0, 1)),
        (jobs[2].id, 0, DONE),
    ]
    corpus = Corpus.open(Path((tmp_path / "run" / "slurm" / f"{jobs[2].id}.log").read_text().splitlines()[0]))
    assert sum(totals["samples"] for totals in corpus.totals.values()) == 4
    shown = status(cluster, tmp_path)
    assert f"corpus job {jobs[1].id}: completed (2 completed)" in shown
