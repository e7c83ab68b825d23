"""A small corpus of preferences whose reward is plain to see: of two answers, the one with a favourite word is liked;
and runs on it: a model that speaks like its answers, a reward model, and PPO from both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.layout import complete_checkpoints
from configs.schema import Config, SourceConfig
from data_pipeline.corpus import write_manifest
from data_pipeline.layouts.preferences import ANSWERS
from data_pipeline.shards import ShardWriter
from data_pipeline.utterance import Utterance
from tests.data_pipeline.pairs import vocabulary
from tests.data_pipeline.synthetic import WORDS
from tests.train.runs import tiny_config

FAVOURITE, *OTHERS = WORDS[1:7]
LONGEST = 12  # tokens of an answer


def make_liked(folder: Path, share: float, documents: int = 96) -> Path:
    """A finished corpus in `folder`, which is returned. Questions are two words, answers five, of which in the
    preferred one about a `share` are the favourite."""
    rng = np.random.default_rng(7)
    for split, count in (("train", documents), ("valid", documents // 4)):
        _write(folder / split / "shard-000000.tar", split, count, share, rng)
    write_manifest(folder, name="liked", vocabulary=vocabulary(), codecs={"synthetic": {"seed": 7}})
    return folder


def _write(shard: Path, split: str, documents: int, share: float, rng: np.random.Generator) -> None:
    with ShardWriter(shard) as writer:
        for number in range(documents):
            document = f"{split}-{number:04d}"
            plain = rng.choice(OTHERS, 5).tolist()
            liked = [FAVOURITE if rng.random() < share else word for word in plain]
            liked[0] = plain[0] if FAVOURITE in liked else f"{plain[0]} too"  # no pair of answers is alike
            question = " ".join(rng.choice(WORDS, 2).tolist())
            texts = {"human": question, **dict(zip(ANSWERS, map(" ".join, (liked, plain)), strict=True))}
            for turn, (role, text) in enumerate(texts.items()):
                writer.write(
                    Utterance(f"{document}-{turn}", text, document, role=role, source="synthetic", licence="CC0-1.0")
                )


def config_of(folder: Path, corpus: Path, **changes: Any) -> Config:
    settings = {
        "backbone__layers": 2,
        "train__sequence_length": 64,
        "train__global_batch": 8,
        "train__steps": 40,
        "optimizer__lr": 3e-3,
        "export__huggingface": False,
    }
    config = tiny_config(folder, corpus, **settings | changes)
    config.mixture.sources = {"tqta": SourceConfig(layout="preferences", weight=1.0, options={"form": "TQTA"})}
    return config


def speaking(folder: Path) -> Config:
    """Learns word by word to speak as in a corpus whose favourite is rare: DPO that hardly compares."""
    corpus = make_liked(folder.parent / "rarely", share=0.1)
    return config_of(
        folder, corpus, stage__objective="dpo", preference__beta=1e-6, preference__nll=1.0, train__steps=32
    )


def rewarding(folder: Path) -> Config:
    corpus = make_liked(folder.parent / "often", share=0.5)
    return config_of(folder, corpus, stage__objective="reward", train__steps=12)


def ppo(folder: Path, first: Path, **changes: Any) -> Config:
    """From the runs `speaking` and `rewarding` in `first`."""
    settings = {
        "stage__objective": "ppo",
        "stage__weights": str(newest(first / "speaking")),
        "ppo__reward": str(first / "rewarding"),
        "ppo__prompts": 32,
        "ppo__longest": LONGEST,
        "ppo__critic_warmup": 4,
        "ppo__critic_lr": 3e-3,
        "train__global_batch": 16,
        "train__micro_batch": 2,
        "train__steps": 20,
        "optimizer__lr": 2e-3,
        "optimizer__schedule": "constant",
        "optimizer__warmup_steps": 0,
    }
    return config_of(folder, first / "often", **settings | changes)


def newest(run: Path) -> Path:
    return complete_checkpoints(run / "checkpoints")[-1]
