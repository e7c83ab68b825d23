"""`megaphone simulate` on the command line, and its picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest

from launch.cli import main
from launch.planner.picture import WIDTH, Drawn, svg
from launch.planner.schedule import PipelineCosts, simulate

STEP_AUDIO = ["simulate", "recipe=step_audio", "scale=paper", "stage=cooldown", "--gpu", "h100"]


def test_more_gpus_have_fewer_micro_batches_and_larger_bubbles(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*STEP_AUDIO, "--gpus", "256", "1024", "4096", "--json"]) == 0
    played = json.loads(capsys.readouterr().out)
    assert [(one["gpus"], one["data"], one["microbatches"]) for one in played] == [
        (256, 4, 256),
        (1024, 16, 64),
        (4096, 64, 16),
    ]
    for one in played:
        parts = one["ideal"] + one["imbalance"] + one["waiting"] + one["tail"]
        assert one["seconds"] == pytest.approx(parts)
        assert one["imbalance"] > 0, "the head makes the last rank's work unlike the others'"
        # What even stages without transfers would lose, and no more than unlike ones and transfers can add to it.
        even = 7 / (4 * one["microbatches"])
        assert even < one["bubble"] < even + 0.08
        assert one["between_failures"] == pytest.approx(1000 * 86400 / one["gpus"])
    for less, more in pairwise(played):
        assert less["bubble"] < more["bubble"] and less["mfu"] > more["mfu"]
        assert less["goodput"] > more["goodput"] and less["interval"] > more["interval"]
        assert less["days"] > more["days"]


def test_a_step_is_drawn_to_scale(tmp_path: Path) -> None:
    timeline = simulate(PipelineCosts([[2], [4]], [[3], [5]], microbatches=2, p2p=1))
    root = ET.fromstring(svg([Drawn("two <unlike> stages", timeline)]))
    space = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in root.iter(f"{space}text")]
    assert {"two <unlike> stages", "rank 0", "rank 1", "26.00 s", "forward", "backward", "waiting"} <= set(texts)
    paths = [path.get("d", "") for path in root.iter(f"{space}path")]
    assert [path.count("M") for path in paths] == [2, 2, 2, 2]  # forward and backward of either rank
    # Rank 1's first forward pass is from 3 to 7 of 26 seconds.
    x, width = (float(number) for number in paths[2][1:].split("v")[0].replace(" ", "h").split("h")[::2])
    scale = (WIDTH - 64 - 12) / 26
    assert x == pytest.approx(64 + 3 * scale, abs=0.1) and width == pytest.approx(4 * scale, abs=0.5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "100"], "--gpus 100: is no multiple of the 64 GPUs that share the model"),
        (["--gpus", "8192"], "--gpus 8192: "),
        (["--gpus", "1024", "--failures", "0"], "--failures 0: has to be above 0"),
    ],
)
def test_what_cannot_be_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main([*STEP_AUDIO, *words]) == 2
    captured = capsys.readouterr()
    assert not captured.out and said in captured.err and len(captured.err.splitlines()) == 1
