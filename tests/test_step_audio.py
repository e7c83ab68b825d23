"""Step-Audio's recipe at `tiny`, from nothing to a sound, in a reduced form: a minute of speech, two steps a stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml

from configs.recipe import RECIPES

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 2
SHORT = {"steps": STEPS, "sequence_length": 1024, "validate_every": STEPS, "validation_packs": 2}
SMALL = {  # of a stage that keeps to the scale's corpus
    "corpus.speech_minutes": 1.5,
    "corpus.shard_minutes": 0.5,
    "corpus.text_characters": 4000,
    "corpus.validation_share": 0.3,
}
FEW = {"corpus.speech.options.topics": ["food"], "corpus.validation_share": 0.3}  # of one that converses
SAID = {
    "distil": {"mixture.sources.tts.filter": None},  # a model of two steps ends nothing that it says
    "data_engine": {"generation": {"utterances": 6, "shard": 3, "seconds_per_character": 0.02}},
    "evaluate": {"evaluation.measurements": {name: {"limit": 2} for name in ("asr", "codebooks", "text")}},
    "evaluate_speech": {"evaluation.measurements": {n: {"limit": 1} for n in ("tts", "resynthesis", "codebooks")}},
}


def reduced(folder: Path) -> dict[str, Any]:
    """Write the recipe with less to do into `folder`, on one process; returns it as written."""
    recipe: dict[str, Any] = yaml.safe_load((RECIPES / "step_audio" / "recipe.yaml").read_text())
    tiny = recipe["scales"]["tiny"]
    tiny["parallel"] = "single"
    tiny["codec.codebooks"] = {"linguistic": {"size": 32}, "semantic": {"size": 64}}
    for name in recipe["stages"]:
        stage = tiny["stages"].setdefault(name, {})
        stage.pop("train.steps", None)
        stage["train"] = {**stage.get("train", {}), **SHORT}
        stage.setdefault("optimizer", {})
        stage.pop("optimizer.warmup_steps", None)
        if isinstance(stage["optimizer"], dict):
            stage["optimizer"]["warmup_steps"] = 1
        stage |= FEW if "corpus" in stage else SMALL
        stage |= SAID.get(name, {})
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return recipe


@pytest.mark.timeout(900)
def test_every_stage_of_step_audio_from_nothing_to_a_sound(tmp_path: Path) -> None:
    stages = reduced(tmp_path / "recipe")["stages"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "run", "recipe=recipe", "scale=tiny", "run.name=whole", "run.folder=run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "MEGAPHONE_CACHE": "cache"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    report = (tmp_path / "run" / "report.html").read_text()
    for name in stages:
        results = json.loads((tmp_path / "run" / name / "results.json").read_text())
        assert results["status"] == "finished", name
        assert f'<section id="{name}">' in report
    sounds = sorted((tmp_path / "run" / "evaluate_speech").rglob("*.wav"))
    assert sounds and all(soundfile.info(sound).duration > 0 for sound in sounds)
    assert "data:audio/wav;base64," in report
