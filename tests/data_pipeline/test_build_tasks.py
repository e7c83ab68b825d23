"""A build by array tasks that never speak to each other: the same bytes as by one process, whatever is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from configs.schema import Config, CorpusConfig
from data_pipeline.build import STAGING, Share, build_corpus, build_share, corpus_folder, merge_corpus, share_of
from data_pipeline.corpus import Corpus
from runtime.exits import DONE, STOPPED_EARLY, BadInput, StoppedEarly
from runtime.locks import only_one
from tests.checkpoints.disks import small_disk
from tests.data_pipeline.recorded_speech import recorded_config, write_recordings
from tests.data_pipeline.test_build import REPOSITORY, children, new_cache, small_config, wait_for

COMMAND = """
import os, sys
from pathlib import Path
from data_pipeline.build import build_share, share_of
from runtime.exits import BadInput, StoppedEarly
from runtime.signals import StopFlag
from tests.data_pipeline.test_build_tasks import task_config

if __name__ == "__main__":
    config = task_config(Path(sys.argv[1]), Path(sys.argv[2]))
    try:
        print(build_share(config, share_of(config.corpus, os.environ), stop=StopFlag().install()))
    except (BadInput, StoppedEarly) as end:
        print(end)
        sys.exit(end.exit_code)
"""


def task_config(cache: Path, recordings: Path) -> Config:
    config = recorded_config(small_config(cache), recordings)
    config.corpus.shard_minutes = 0.02  # a shard a recording
    config.corpus.workers = 1
    return config


def start(cache: Path, recordings: Path, task: int, tasks: int = 2) -> subprocess.Popen:
    """A task of a Slurm array whose numbers begin at 5."""
    script = cache / "build_share.py"
    script.write_text(COMMAND)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        "SLURM_ARRAY_TASK_ID": str(5 + task),
        "SLURM_ARRAY_TASK_MIN": "5",
        "SLURM_ARRAY_TASK_COUNT": str(tasks),
    }
    command = [sys.executable, str(script), str(cache), str(recordings)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a corpus by its name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "built_from.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("recordings"), 15)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, recordings: Path) -> Path:
    return build_corpus(task_config(new_cache(tmp_path_factory.mktemp("alone") / "cache"), recordings))


def test_tasks_of_which_one_was_killed_make_the_same_bytes(alone: Path, recordings: Path, tmp_path: Path) -> None:
    cache = new_cache(tmp_path / "cache")
    config = task_config(cache, recordings)
    folder = corpus_folder(config)
    tasks = [start(cache, recordings, task) for task in range(2)]
    wait_for(lambda: len(list(folder.glob(f"{STAGING}/*/*.features.npz"))) >= 2 and children(tasks[1]), tasks[1])
    tasks[1].send_signal(signal.SIGKILL)
    said = [task.communicate(timeout=120)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [STOPPED_EARLY, -signal.SIGKILL], said
    assert said[0].startswith("waiting for other tasks: codebooks are learnt from") and said[0].count("\n") == 1
    with pytest.raises(StoppedEarly, match=r"cannot be merged yet: (\d+) of \1 shards are not there yet"):
        merge_corpus(config)

    again = start(cache, recordings, 1)
    said_again, problems = again.communicate(timeout=120)
    assert again.returncode == DONE and said_again == "None\n", problems
    assert "shards are not there yet: " in problems
    other = start(cache, recordings, 0)
    assert other.communicate(timeout=120)[0] == f"{folder}\n" and other.returncode == DONE
    assert Corpus.open(folder).content_hash == Corpus.open(alone).content_hash
    assert content(folder) == content(alone)

    (folder / "manifest.json").unlink()
    assert merge_corpus(config) == folder and content(folder) == content(alone)


def test_task_stopped_by_slurm_ends_with_75_and_goes_on(recordings: Path, tmp_path: Path) -> None:
    cache = new_cache(tmp_path / "cache")
    folder = corpus_folder(task_config(cache, recordings))
    stopped = start(cache, recordings, 0)
    wait_for(lambda: list(folder.glob(f"{STAGING}/*/*.features.npz")), stopped)
    stopped.send_signal(signal.SIGTERM)
    said, problems = stopped.communicate(timeout=60)
    assert stopped.returncode == STOPPED_EARLY, problems
    assert said == "corpus build stopped in phase speech; the same command goes on from there\n"
    assert not list(folder.rglob("*.partial"))


def test_tasks_do_not_wait_for_each_other(recordings: Path, tmp_path: Path) -> None:
    config = task_config(new_cache(tmp_path / "cache"), recordings)
    folder = corpus_folder(config)
    folder.parent.mkdir(parents=True)
    with (
        only_one(folder.parent / f".{folder.name}.task-0-of-2.lock", lambda: None, None),
        only_one(folder.parent / f".{folder.name}.lock", lambda: None, None),
        pytest.raises(StoppedEarly, match="waiting for other tasks"),
    ):
        build_share(config, Share(1, 2))


def test_full_disk_is_one_line(recordings: Path, tmp_path: Path) -> None:
    cache = tmp_path / "disk"
    with small_disk(cache, 400_000) as mounted:
        new_cache(cache)
        config = task_config(cache, recordings)
        if not mounted:  # then the limit holds for this process, and workers take it over
            config.corpus.shard_minutes = 1.0
        with pytest.raises(BadInput, match="no space left for the corpus at"):
            build_corpus(config)
        assert not list(cache.rglob("*.partial"))


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, Share(0, 1)),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0"}, Share(2, 4)),
        ({"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "6"}, Share(3, 4)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "11",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_STEP": "5",
            },
            Share(2, 4),
        ),
        ({"SLURM_JOB_ID": "3"}, Share(0, 1)),
    ],
)
def test_share_is_the_place_in_the_array(environment: dict[str, str], share: Share) -> None:
    assert share_of(CorpusConfig(), environment) == share


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_ARRAY_TASK_ID": "2"},
        {"SLURM_ARRAY_TASK_ID": "two", "SLURM_ARRAY_TASK_COUNT": "4"},
        {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0"},
        {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_STEP": "2"},
    ],
)
def test_array_that_is_not_understood_is_one_line(environment: dict[str, str]) -> None:
    with pytest.raises(BadInput, match=r"set corpus\.task"):
        share_of(CorpusConfig(), environment)


def test_settings_come_before_slurm() -> None:
    environment = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert share_of(CorpusConfig(task=1, tasks=2), environment) == Share(1, 2)
    for task, tasks in ((2, 2), (-1, 2), (1, None)):
        with pytest.raises(BadInput, match="numbered from 0"):
            share_of(CorpusConfig(task=task, tasks=tasks), environment)
    assert [Share(n, 3).of(range(7)) for n in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
