"""Step-Audio's recipe at `tiny` with less to do: ninety seconds of speech, a smaller model, a few steps a stage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import yaml

from configs.recipe import RECIPES

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = {  # corpora of stages that keep to the scale's
    "corpus.speech_minutes": 1.5,
    "corpus.shard_minutes": 0.5,
    "corpus.text_characters": 4000,
    "corpus.validation_share": 0.3,
}
FEW = {"corpus.speech.options.topics": ["food"], "corpus.validation_share": 0.3}  # of those that converse
UNREAD = ("continuation", "interleaving", "sft_tts", "sft_chat", "ppo", "dpo")  # no later stage asks for their exports
LIGHT: dict[str, dict[str, Any]] = {  # of `train`
    "ppo": {"global_batch": 4},
    "decoder_flow": {"sequence_length": 200, "global_batch": 2, "micro_batch": 1},
    "decoder_vocoder": {"sequence_length": 200, "global_batch": 2, "micro_batch": 1},
}
SAID: dict[str, dict[str, Any]] = {
    "ppo": {"ppo": {"prompts": 8, "longest": 8, "critic_warmup": 1, "critic_lr": 1.0e-4}},
    "data_engine": {"generation": {"utterances": 6, "shard": 3, "seconds_per_character": 0.02}},
    "distil": {"mixture.sources.tts.filter": None},  # models of a few steps hardly end what they say
    "evaluate": {"evaluation.measurements": {name: {"limit": 2} for name in ("asr", "codebooks", "text")}},
    "evaluate_speech": {"evaluation.measurements": {n: {"limit": 1} for n in ("tts", "resynthesis", "codebooks")}},
}


def reduced(folder: Path, *, steps: int, save_every: int) -> list[str]:
    """Write the recipe with less to do into `folder`, for one process; returns its stages."""
    recipe: dict[str, Any] = yaml.safe_load((RECIPES / "step_audio" / "recipe.yaml").read_text())
    tiny = recipe["scales"]["tiny"]
    tiny |= {"parallel": "single", "backbone": "tiny_student"}
    tiny["codec.codebooks"] = {"linguistic": {"size": 32}, "semantic": {"size": 64}}
    for name in recipe["stages"]:
        stage = tiny["stages"].setdefault(name, {})
        for key in ("train.steps", "optimizer.warmup_steps", "checkpoint.every"):
            stage.pop(key, None)
        short = {"steps": steps, "sequence_length": 1024, "validate_every": steps, "validation_packs": 2}
        stage["train"] = {**stage.get("train", {}), **short, **LIGHT.get(name, {})}
        stage["checkpoint"] = {"every": save_every}
        optimizer = stage.setdefault("optimizer", {})
        optimizer["warmup_steps"] = 1
        stage |= FEW if "corpus" in stage else SMALL
        stage |= SAID.get(name, {})
        if name in UNREAD:
            stage["export.huggingface"] = False
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return list(recipe["stages"])


def start(recipe: Path, run: Path, *, cache: Path, output: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
    """`megaphone run` of the recipe at `tiny`."""
    words = (f"recipe={recipe}", "scale=tiny", "run.name=whole", f"run.folder={run}", "tracker.wandb=disabled")
    environment = {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "MEGAPHONE_CACHE": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "launch.cli", "run", *words],
        env=os.environ | environment,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(launcher: subprocess.Popen[str], *, seconds: float) -> tuple[int, str]:
    """Exit code and output of a launcher; one that takes longer is killed."""
    try:
        said = launcher.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        launcher.kill()
        raise
    return launcher.returncode, said
