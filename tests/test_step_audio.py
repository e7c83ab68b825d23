"""Step-Audio's recipe from nothing to a sound, in a reduced form that passes through every stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

from runtime.exits import DONE
from tests import step_audio

pytestmark = pytest.mark.timeout(1100)


def test_every_stage_from_nothing_to_a_sound_and_the_same_command_again(tmp_path: Path) -> None:
    stages = step_audio.reduced(tmp_path / "recipe", steps=2, save_every=2)
    run = tmp_path / "run"
    code, said = step_audio.finished(step_audio.start(tmp_path / "recipe", run, cache=tmp_path / "cache"), seconds=800)
    assert code == DONE, said[-4000:]
    report = (run / "report.html").read_text()
    for name in stages:
        assert json.loads((run / name / "results.json").read_text())["status"] == "finished", name
        assert f'<section id="{name}">' in report
    sounds = sorted((run / "evaluate_speech").rglob("*.wav"))
    assert sounds and all(soundfile.info(sound).duration > 0 for sound in sounds)
    assert "<audio " in report

    code, said = step_audio.finished(step_audio.start(tmp_path / "recipe", run, cache=tmp_path / "cache"), seconds=200)
    assert code == DONE and "step " not in said, said[-4000:]
