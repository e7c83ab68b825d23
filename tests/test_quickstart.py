"""The command of the README, on a corpus of a minute: every part that `make quickstart` has, through the real CLI."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.exits import DONE, FAILED

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = (
    "corpus.speech_minutes=0.6",
    "corpus.shard_minutes=0.18",
    "corpus.text_characters=4000",
    "corpus.validation_share=0.2",
    "codec.codebooks.linguistic.size=32",
    "codec.codebooks.semantic.size=64",
    "train.steps=4",
    "optimizer.warmup_steps=1",
    "train.sequence_length=128",
    "train.validation_packs=16",
    "train.validate_every=2",
    "checkpoint.every=2",
    "run.folder=run",
)
PRODUCTS = ("config.yaml", "metrics.jsonl", "report.html", "checkpoints", "export/hf/model.safetensors", "wandb")


def start(folder: Path, *settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "run", "recipe=quickstart", "scale=tiny", *SMALL, *settings],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "MEGAPHONE_CACHE": "cache"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rank_of(launcher: int, rank: int) -> int | None:
    """Process id of a rank below the launcher; None before it is there."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "cmdline").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == launcher and b"train.stage" in command and f"RANK={rank}".encode() in environment:
            return int(entry.name)
    return None


@pytest.mark.timeout(600)
def test_the_quickstart_survives_a_killed_rank_and_leaves_what_the_readme_says(tmp_path: Path) -> None:
    """TP=2. The first try loses rank 1 to `kill -9` after its second step; the same command finishes the run."""
    run = tmp_path / "run"
    first = start(tmp_path)
    deadline = time.monotonic() + 300
    while not (run / "checkpoints/step-00000002/manifest.json").is_file():
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    victim = rank_of(first.pid, 1)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    said = first.communicate(timeout=120)[0]
    assert first.returncode == FAILED, said
    assert "rank 1" in said and "SIGKILL" in said

    second = start(tmp_path)
    said = second.communicate(timeout=300)[0]
    assert second.returncode == DONE, said
    assert "resuming from" in said and "Results in run" in said
    assert all((run / product).exists() for product in PRODUCTS)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    validated = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in validated] == [0, 2, 4]
    assert {"loss/text", "loss/audio"} <= validated[-1].keys()
    assert json.loads((run / "export/check.json").read_text())["max_difference"] < 1e-4
    assert json.loads((run / "results.json").read_text())["status"] == "finished"
    first_start, second_start = map(json.loads, (run / "starts.jsonl").read_text().splitlines())
    assert (first_start["step"], second_start["step"]) == (1, 3)
    parts = {"config", "interpreter of the rank", "torch", "process group", "model", "weights", "first step"}
    for told in (first_start, second_start):
        assert parts <= told["phases"].keys() and all(spent >= 0 for spent in told["phases"].values())
        assert sum(told["phases"].values()) == pytest.approx(told["seconds"])

    third = start(tmp_path)
    said = third.communicate(timeout=120)[0]
    assert third.returncode == DONE and "step " not in said, "what is finished is not done again"

    hears(tmp_path)


def hears(folder: Path) -> None:
    """What was trained writes something of a sound file: too short a training for more, but through every part."""
    import numpy as np
    import soundfile

    soundfile.write(folder / "sound.ogg", 0.1 * np.sin(np.arange(44_100) / 20), 22_050)
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "transcribe", "run", "sound.ogg", "--json", "heard.json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "MEGAPHONE_CACHE": "cache"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == DONE and done.stdout.startswith("sound.ogg\t"), done.stderr
    (heard,) = json.loads((folder / "heard.json").read_text())["transcripts"]
    assert heard["seconds"] == pytest.approx(2.0, abs=0.01)
