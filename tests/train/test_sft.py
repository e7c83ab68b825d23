"""Fine-tuning, from a file of conversations to the curve: a stage that begins with what pretraining left, learns the
answers alone, and comes back from kill -9 as if nothing had happened."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import soundfile

from configs.schema import Config, SourceConfig
from data_pipeline.build import build_corpus
from tests.data_pipeline.recorded_speech import recorded_config, voiced
from tests.data_pipeline.synthetic import SPECIALS
from tests.data_pipeline.test_build import new_cache, small_config
from tests.ranks import RankFailed, run_ranks
from tests.train.runs import run_config, tiny_config
from tests.train.test_resume import CURVE, faulty_stage, write

STEPS = 24
CHAT = ("<|BOT|>", "<|EOT|>")
TURNS = [("in the beginning", "was a word"), ("and it went out", "over many waters"), ("to find", "another, slowly")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty conversations of two or three spoken questions and answers, by way of the real encoder and codebooks."""
    folder = tmp_path_factory.mktemp("talks")
    lines = []
    for number in range(20):
        messages = []
        for turn, texts in enumerate(TURNS[: 2 + number % 2]):
            for role, text in zip(("human", "assistant"), texts, strict=True):
                name = f"{number}-{turn}-{role}.flac"
                soundfile.write(folder / name, voiced(0.8, 16_000, 10 * number + 2 * turn), 16_000)
                messages.append({"role": role, "text": text, "audio": name, "speaker": role})
        lines.append(json.dumps({"id": f"talk{number}", "messages": messages}))
    (folder / "talks.jsonl").write_text("\n".join(lines))
    config = recorded_config(small_config(new_cache(folder / "cache")), folder / "talks.jsonl", "conversations")
    config.corpus.specials = [*SPECIALS, *CHAT]
    return build_corpus(config)


def pretraining(folder: Path, corpus: Path) -> Config:
    config = tiny_config(folder / "cpt", corpus, train__steps=8, train__sequence_length=512)
    config.mixture.sources.pop("interleaved")
    return config


def fine_tuning(folder: Path, corpus: Path, **changes: Any) -> Config:
    """A stage beside `pretraining`, which it begins with."""
    settings: dict[str, Any] = {
        "train__steps": STEPS,
        "train__sequence_length": 512,
        "train__validation_packs": 8,
        "train__log_samples": True,
        "train__validate_every": STEPS,
        "checkpoint__every": 8,
        "stage__objective": "sft",
        "stage__weights": "cpt",
        "optimizer__lr": 1e-2,
    }
    config = tiny_config(folder, corpus, **settings | changes)
    config.mixture.sources = {
        "aqta": SourceConfig(layout="chat", weight=1.0, options={"form": "AQTA"}),
        "taqta": SourceConfig(layout="chat", weight=1.0, options={"form": "TAQTA"}),
        "tts": SourceConfig(layout="tts_dialogue", weight=2.0, options={"system": "Speak as [{speaker}]."}),
    }
    return config


BY_SOURCE = ("loss/aqta/text", "loss/taqta/text", "loss/tts/audio")


def curve(lines: list[dict[str, Any]]) -> list[list[Any]]:
    return [[line.get(key) for key in (*CURVE, *BY_SOURCE)] for line in lines]


def test_answers_are_learnt_from_pretraining_on_and_a_killed_run_has_the_same_curve(
    corpus: Path, tmp_path: Path
) -> None:
    run_config(pretraining(tmp_path, corpus))
    whole = run_config(fine_tuning(tmp_path / "whole", corpus))
    random = fine_tuning(
        tmp_path / "random", corpus, stage__weights="backbone", train__steps=2, train__validate_every=0
    )
    assert whole[0]["loss"] < run_config(random)[0]["loss"], "it begins where pretraining ended"
    validation = [json.loads(line) for line in (tmp_path / "whole/validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in validation] == [0, STEPS]
    for term in ("loss", *BY_SOURCE):
        assert validation[1][term] < validation[0][term], term
    assert "loss/aqta/audio" not in validation[0] and "loss/tts/text" in validation[0]  # the token that ends a turn

    config = fine_tuning(tmp_path / "killed", corpus)
    with pytest.raises(RankFailed):
        run_ranks(faulty_stage, 1, write(config), 0, "train_step", 13, signal.SIGKILL)
    assert curve(run_config(config)) == curve(whole)
