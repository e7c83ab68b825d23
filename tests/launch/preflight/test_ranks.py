"""Preflights by real ranks, each a node of its own: mounts that are full, other versions, clocks and corpora, processes
that are stopped. The sick node is named, and all ranks end with one code."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.compose import load_config, to_yaml
from configs.schema import Config
from runtime.exits import BAD_INPUT, DONE, SICK
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import run_ranks
from tests.train.runs import tiny_config

_CLONE_NEWNS = 0x00020000
RESUMED = -1


class Resumed(BaseException):
    """A rank that was stopped has been let go on, so that the test can end."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder)
    return folder


def settings(folder: Path, corpus: Path, **changes: Any) -> Config:
    config = tiny_config(folder / "run", corpus)
    config.cluster.preflight.storage_mb = 8
    config.cluster.preflight.network_mb = 4
    config.cluster.preflight.slow_share = 0.05  # of speeds that two cores under other work would make up
    config.cluster.preflight.slow_storage_share = 0.01
    for key, value in changes.items():
        setattr(config.cluster.preflight, key, value)
    return config


def look(
    config: Config, nodes: int, sick: Callable[..., Any] | None = None, *arguments: str, of: int = 1
) -> tuple[list[int], dict[str, Any]]:
    """Exit codes of one rank on each of `nodes`, and the record; `sick(*arguments)` is called on node `of` before, and
    returns a clock or nothing."""
    folder = Path(config.run.folder)
    folder.mkdir(parents=True)
    file = folder.with_suffix(".yaml")
    file.write_text(to_yaml(config))
    codes = run_ranks(as_node, nodes, str(file), sick, arguments, of)
    return codes, json.loads((folder / "preflight.json").read_text())


def as_node(file: str, sick: Callable[..., Any] | None, arguments: tuple[str, ...], of: int) -> int:
    from launch.preflight.rank import preflight

    rank = int(os.environ["RANK"])
    os.environ |= {"LOCAL_RANK": "0", "SLURMD_NODENAME": f"node{rank}", "MEGAPHONE_NODES": "node0 node1 node2"}
    os.environ["SLURM_JOB_ID"] = "7"
    config = load_config(Path(file))
    gave_up: list[int] = []
    try:
        now = sick(*arguments) if sick is not None and rank == of else None
        code = preflight(config, os.environ, now or time.time, gave_up.append)
    except Resumed:
        return RESUMED
    return gave_up[0] if gave_up else code


# --- what makes a node sick -----------------------------------------------------------------------------------------


def mount(*words: str) -> None:
    """On this node alone."""
    assert not ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", *words], check=True)


def other_version(folder: str) -> None:
    found = Path(folder) / "deepspeed-0.1.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.1\n")
    sys.path.insert(0, folder)


def skewed() -> Callable[[], float]:
    return lambda: time.time() + 30


def stopping(seconds: str) -> Callable[[], float]:
    """A clock that stops the process when it is asked, in the middle of what nodes do together."""
    signal.signal(signal.SIGCONT, resumed)

    def stop() -> float:
        stop_now(seconds)
        time.sleep(60)
        return time.time()

    return stop


def resumed(number: int, frame: object) -> None:
    raise Resumed


def stop_first(seconds: str) -> None:
    signal.signal(signal.SIGCONT, resumed)
    stop_now(seconds)


def stop_now(seconds: str) -> None:
    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


# --- tests ----------------------------------------------------------------------------------------------------------


def test_healthy_nodes_pass_and_all_is_on_record(tmp_path: Path, corpus: Path) -> None:
    codes, found = look(settings(tmp_path, corpus), 2)
    assert codes == [DONE, DONE], found["reason"]
    assert found["findings"] == []
    assert found["nodes"].keys() == {"node0", "node1"}
    report = found["nodes"]["node1"]
    assert report["figures"].keys() == {
        *("compute", "network", "write", "read", "memory", "available", "shared_memory"),
    }
    assert all(value > 0 for value in report["figures"].values())
    assert report["peers"]["node0"] == found["nodes"]["node0"]["peers"]["node1"]
    assert found["figures"]["all-reduce over all ranks, GB/s"] > 0
    assert abs(found["figures"]["clock of node1, s"]) < 0.5
    assert report["facts"]["corpus"] == found["nodes"]["node0"]["facts"]["corpus"] != "none"
    assert found["seconds"] < 120


def test_a_full_disk_on_one_node_is_named(tmp_path: Path, corpus: Path) -> None:
    config = settings(tmp_path, corpus)
    codes, found = look(config, 3, mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", config.run.folder)
    assert codes == [SICK] * 3
    assert found["sick"] == ["node1"]
    said = [finding["said"] for finding in found["findings"]]
    assert any("cannot be written: No space left on device" in line for line in said)
    assert list(Path(config.run.folder).glob(".preflight-*")) == []


def test_small_shared_memory_is_named_beside_the_others_median(tmp_path: Path, corpus: Path) -> None:
    config = settings(tmp_path, corpus)
    codes, found = look(config, 3, mount, "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/dev/shm")
    assert (codes, found["sick"]) == ([SICK] * 3, ["node1"])
    (finding,) = found["findings"]
    assert finding["said"].startswith("/dev/shm free 0.0671 GB; the others' median is ")


def test_another_version_and_another_corpus_are_named(tmp_path: Path, corpus: Path) -> None:
    codes, found = look(settings(tmp_path / "a", corpus), 3, other_version, str(tmp_path / "packages"))
    assert (codes, found["sick"]) == ([SICK] * 3, ["node1"])
    assert "node1: deepspeed is 0.1; " in found["reason"]

    make_corpus(tmp_path / "other", seed=1)
    codes, found = look(settings(tmp_path / "b", corpus), 3, mount, "--bind", str(tmp_path / "other"), str(corpus))
    assert (codes, found["sick"]) == ([SICK] * 3, ["node1"])
    assert "node1: corpus is " in found["reason"]


def test_a_shard_cut_short_on_one_node_is_named(tmp_path: Path, corpus: Path) -> None:
    shard = next((corpus / "train").glob("*.tar"))
    (tmp_path / "short").write_bytes(shard.read_bytes()[:-512])
    codes, found = look(settings(tmp_path, corpus), 3, mount, "--bind", str(tmp_path / "short"), str(shard))
    assert (codes, found["sick"]) == ([SICK] * 3, ["node1"])
    assert f"such as train/{shard.name}" in found["reason"]


def test_a_skewed_clock_is_named(tmp_path: Path, corpus: Path) -> None:
    codes, found = look(settings(tmp_path, corpus), 3, skewed)
    assert (codes, found["sick"]) == ([SICK] * 3, ["node1"])
    assert found["findings"][0]["check"] == "clock"
    assert 29 < found["figures"]["clock of node1, s"] < 31


def test_too_little_space_is_told_with_both_numbers_and_is_no_nodes_fault(tmp_path: Path, corpus: Path) -> None:
    codes, found = look(settings(tmp_path, corpus, checkpoints=10**9), 2)
    assert codes == [BAD_INPUT] * 2
    (finding,) = found["findings"]
    assert (finding["check"], finding["nodes"]) == ("space", [])
    assert "1000000000 checkpoints of " in finding["said"]
    assert " are free" in finding["said"]


def test_a_node_that_stops_before_or_amid_the_others_is_named(tmp_path: Path, corpus: Path) -> None:
    config = settings(tmp_path / "before", corpus, seconds=12)
    codes, found = look(config, 3, stop_first, "9")
    assert (codes, found["sick"]) == ([SICK, RESUMED, SICK], ["node1"]), "by the list of nodes: it never came"
    assert "it never came" in found["reason"]

    config = settings(tmp_path / "amid", corpus, seconds=16)
    codes, found = look(config, 3, stopping, "20")
    assert (codes, found["sick"]) == ([SICK, RESUMED, SICK], ["node1"])
    assert "it was at: comparing clocks" in found["reason"]


def test_where_ranks_meet_may_stop_too(tmp_path: Path, corpus: Path) -> None:
    codes, found = look(settings(tmp_path, corpus, seconds=16), 2, stopping, "25", of=0)
    assert codes == [RESUMED, SICK]
    assert found["sick"] == ["node0"]
    assert "rank 0, where ranks meet, has not answered rank 1 (node1)" in found["reason"]
