"""A model that has learnt a few utterances by heart says them again, from codes and from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.compose import to_yaml
from configs.schema import Config, MixtureConfig, SourceConfig
from data_pipeline.corpus import Corpus
from data_pipeline.layouts import find_layout
from data_pipeline.utterance import Utterance
from launch.cli import main
from runtime.exits import BadInput
from tests.data_pipeline.synthetic import make_corpus
from tests.train.generation.learnt import learn_by_heart
from tests.train.runs import tiny_config
from train.generation.prompts import asr_prompt, layout_for, prompt_of
from train.generation.transcription import Scored, Transcriber, error_totals, spoken_in

MOST = 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus.open(make_corpus(tmp_path_factory.mktemp("corpus")))


@pytest.fixture(scope="module")
def known(corpus: Corpus) -> list[Utterance]:
    return spoken_in(corpus, "valid", MOST)


@pytest.fixture(scope="module")
def run(corpus: Corpus, known: list[Utterance], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose export was trained, by transformers, on the `asr` samples of the known utterances."""
    folder = tmp_path_factory.mktemp("run")
    samples = find_layout("asr", {})(known, corpus.vocabulary, np.random.default_rng(0))
    learn_by_heart(samples, corpus.vocabulary, folder / "export" / "hf")
    (folder / "config.yaml").write_text(to_yaml(asr_config(folder)))
    return folder


def asr_config(folder: Path, **options: object) -> Config:
    config = tiny_config(folder, folder)
    heard = {"asr": SourceConfig(layout="asr", weight=1.0, options=dict(options))}
    mixture = MixtureConfig("heard", heard | {"tts": SourceConfig(layout="tts", weight=1.0)})
    return replace(config, mixture=mixture, run=replace(config.run, folder=str(folder)))


def test_it_says_what_it_learnt_alone_and_together(run: Path, known: list[Utterance]) -> None:
    transcriber = Transcriber(asr_config(run), run / "export" / "hf", device="cpu")
    texts = [utterance.text for utterance in known]
    assert transcriber.transcribe(known) == texts
    assert [transcriber.transcribe([utterance])[0] for utterance in known] == texts
    assert transcriber.transcribe([replace(known[0], codes={}), known[1]]) == ["", texts[1]]


def test_an_answer_is_text_and_ends_in_time(run: Path, known: list[Utterance]) -> None:
    """Codes it never heard: whatever it says, it is text of at most so many tokens."""
    transcriber = Transcriber(asr_config(run), run / "export" / "hf", device="cpu")
    strange = replace(
        known[0], duration=0.5, codes={name: (codes * 7 + 3) % 32 for name, codes in known[0].codes.items()}
    )
    (text,) = transcriber.transcribe([strange])
    assert len(transcriber.vocabulary.encode_text(text)) <= 16 + 6 + 1


def test_the_prompt_is_what_training_gave_without_loss(corpus: Corpus, known: list[Utterance]) -> None:
    layout = layout_for(asr_config(Path(), audio_weight=0.5).mixture, "asr", "audio_weight")
    (sample,) = layout([known[0]], corpus.vocabulary, np.random.default_rng(0))
    prompt = asr_prompt(layout, known[0], corpus.vocabulary)
    answer = [*corpus.vocabulary.encode_text(known[0].text), corpus.vocabulary.special("<|endoftext|>")]
    assert prompt == prompt_of(sample) and [*prompt, *answer] == sample.tokens.tolist()


def test_a_model_that_never_learnt_to_hear_is_refused(run: Path) -> None:
    spoken = MixtureConfig("spoken", {"tts": SourceConfig(layout="tts", weight=1.0)})
    with pytest.raises(BadInput, match=r"mixture spoken has no layout asr: .* trained on tts"):
        Transcriber(replace(asr_config(run), mixture=spoken), run / "export" / "hf")
    with pytest.raises(BadInput, match="holds no export; make it with: megaphone checkpoint export"):
        Transcriber(asr_config(run), run / "nowhere")


def test_error_rates_count_over_all_words_together() -> None:
    scored = [
        Scored("a", "en-US", "Won't cats run.", "will not cats"),
        Scored("b", "en", "Deer", "dear me"),
        Scored("c", "en", "-", "x"),
    ]
    totals = error_totals(scored)
    assert totals == {"wer": pytest.approx(3 / 5), "cer": pytest.approx((3 + 3) / (14 + 4))}
    chinese = Scored("d", "zh-CN", "今天天气", "今天气")
    assert error_totals([chinese]) == {"cer": 0.25}, "no words between spaces, no word errors"
    assert error_totals([*scored, chinese]) == {"wer": pytest.approx(3 / 5), "cer": pytest.approx(7 / 22)}
    with pytest.raises(BadInput, match="no text to compare with"):
        error_totals(scored[2:])


def test_the_command_reads_a_corpus(
    run: Path, corpus: Corpus, known: list[Utterance], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tmp_path / "told.json"
    words = ["transcribe", str(run), "--corpus", str(corpus.folder), "--limit", str(MOST), "--json", str(told)]
    assert main(words) == 0
    assert f"{MOST} utterances: WER 0.0 %, CER 0.0 %" in capsys.readouterr().out
    assert [one["heard"] for one in json.loads(told.read_text())["transcripts"]] == [one.text for one in known]
    assert main(["transcribe", str(run)]) == 2
    assert "give sound files, or --corpus" in capsys.readouterr().err
