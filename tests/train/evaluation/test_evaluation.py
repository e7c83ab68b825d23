"""A model that has learnt a few utterances and answers by heart is measured: what it hears, answers and finds likely;
killed in the middle; with sets that are not there."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from configs.compose import to_yaml
from configs.schema import (
    Asked,
    Config,
    EvaluationConfig,
    EvaluationSetConfig,
    MeasurementConfig,
    MeasurementKind,
    MixtureConfig,
    SourceConfig,
    StageKind,
)
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.corpus import Corpus
from data_pipeline.layouts import find_layout
from data_pipeline.sources.evaluation import read_set
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from launch.evaluation import of_stage
from runtime.exits import DONE, BadInput
from runtime.signals import StopFlag
from tests.data_pipeline.sounds import speechlike, write_sound
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import RankFailed, run_ranks
from tests.train.generation.learnt import learn_by_heart
from tests.train.runs import tiny_config
from train.evaluation.asr import Asr
from train.evaluation.run import evaluate
from train.evaluation.subject import Subject

CHAT = {"heads": ["<|speak|>system ", "<|speak|>human ", "<|speak|>assistant "], "tail": "<|transcribe|>"}
ASKED = 3
ANSWERS = ("Many waters.", "It was a word", "over the waters")
RIGHT = (["the waters", "many waters"], ["a beginning"], ["waters"])  # the second is answered wrongly
SETS = {
    "spoken": EvaluationSetConfig("corpus"),
    "written": EvaluationSetConfig("corpus", options={"spoken": False}),
    "asked": EvaluationSetConfig("llama_questions", "asked"),
    "nowhere": EvaluationSetConfig("librispeech", "LibriSpeech"),
}


class ByLength:
    """A codec that knows sounds by how long they are."""

    sample_rate = SAMPLE_RATE

    def __init__(self, vocabulary: Vocabulary, known: Sequence[Utterance]) -> None:
        self.codebooks = vocabulary.codebooks
        self._known = known

    def encode(self, waves: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        return [self._known[round(len(wave) / SAMPLE_RATE) - 1].codes for wave in waves]

    def identity(self) -> str:
        return "by length"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus.open(make_corpus(tmp_path_factory.mktemp("corpus")))


@pytest.fixture(scope="module")
def known(corpus: Corpus) -> list[Utterance]:
    items = read_set(SETS["spoken"], corpus.folder)
    return [item.stored.utterance() for item in items if item.stored is not None][:4]


@pytest.fixture(scope="module")
def export(corpus: Corpus, known: list[Utterance], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained, by transformers, on transcripts and answers of the known utterances."""
    vocabulary = corpus.vocabulary
    rng = np.random.default_rng(0)
    samples = find_layout("asr", {})(known, vocabulary, rng)
    for question, answer in zip(known, ANSWERS, strict=False):
        turns = [replace(question, role="human"), Utterance("a", answer, "d", role="assistant")]
        samples += find_layout("chat", {"form": "AQTA", **CHAT})(turns, vocabulary, rng)
    assert len(samples) == len(known) + ASKED
    folder = tmp_path_factory.mktemp("model") / "export" / "hf"
    learn_by_heart(samples, vocabulary, folder)
    return folder


@pytest.fixture
def config(corpus: Corpus, export: Path, known: list[Utterance], tmp_path: Path) -> Config:
    """Of a stage that evaluates; its sets lie beside the run."""
    rows = ["Questions,Answer,audio_filename"]
    for number, answers in enumerate(RIGHT):
        rows.append(f'"{known[number].text}","{";".join(answers)}",{number}.wav')
        write_sound(tmp_path / "sets/asked/audios" / f"{number}.wav", speechlike(number + 1.0))
    (tmp_path / "sets/asked/llama_questions.csv").write_text("\n".join(rows))
    config = tiny_config(tmp_path / "run", corpus.folder)
    config.mixture = MixtureConfig(
        "mixed",
        {
            "asr": SourceConfig(layout="asr", weight=1.0),
            "chat": SourceConfig(layout="chat", weight=1.0, options={"form": "AQTA", **CHAT}),
            "continuation": SourceConfig(layout="continuation", weight=1.0),
        },
    )
    config.stage.kind = StageKind.evaluate
    config.evaluation = EvaluationConfig("test", str(export), folder=str(tmp_path / "sets"), device="cpu", sets=SETS)
    return config


def measured_by(config: Config, **measurements: MeasurementConfig) -> Config:
    return replace(config, evaluation=replace(config.evaluation, measurements=measurements))


def measure(config: Config, subject: Subject, said: list[str] | None = None) -> dict[str, Any]:
    evaluate(config, subject, StopFlag(), (said if said is not None else []).append)
    return json.loads((Path(config.run.folder) / "evaluation.json").read_text())


def test_it_hears_and_answers_what_it_learnt(
    config: Config, export: Path, corpus: Corpus, known: list[Utterance]
) -> None:
    config = measured_by(
        config,
        asr=MeasurementConfig(MeasurementKind.asr, ["spoken", "nowhere"]),
        spoken=MeasurementConfig(MeasurementKind.questions, ["asked"], batch=2),
    )
    said: list[str] = []
    subject = Subject(config, export, codec=ByLength(corpus.vocabulary, known))
    asr, spoken = measure(config, subject, said)["measured"]
    records = [json.loads(line) for line in (Path(config.run.folder) / "items/asr.spoken.jsonl").open()][1:]
    assert [one["record"]["heard"] for one in records[: len(known)]] == [one.text for one in known]
    total = {name: sum(one["record"][name] for one in records) for name in ("word_errors", "words")}
    assert asr["figures"]["wer"]["value"] == pytest.approx(100 * total["word_errors"] / total["words"])
    assert sum(one["record"]["word_errors"] for one in records[: len(known)]) == 0
    figures = spoken["figures"]
    assert figures["accuracy"]["value"] == pytest.approx(200 / 3) and figures["answered"]["value"] == 100
    answered = [json.loads(line) for line in (Path(config.run.folder) / "items/spoken.asked.jsonl").open()][1:]
    assert [one["record"]["reply"] for one in answered] == list(ANSWERS)
    assert said[0] == f"sets that are not there, and are left out: nowhere ({config.evaluation.folder}/LibriSpeech)"
    results = json.loads((Path(config.run.folder) / "results.json").read_text())
    assert results["status"] == "finished"
    assert results["measured"]["spoken of asked: accuracy"].startswith("66.67 % [")


def test_likelihoods_are_those_of_the_definition(config: Config, export: Path, corpus: Corpus) -> None:
    """Against float64 softmax over transformers' own logits, document by document."""
    config = measured_by(
        config,
        codes=MeasurementConfig(MeasurementKind.codebooks, ["spoken"], limit=5),
        text=MeasurementConfig(MeasurementKind.perplexity, ["written"], window=8),
    )
    codes, text = measure(config, Subject(config, export))["measured"]
    model, vocabulary = AutoModelForCausalLM.from_pretrained(export).eval(), corpus.vocabulary

    def nats(ids: list[int], rows: int) -> np.ndarray:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1, :rows].double().numpy()
        logits -= logits.max(1, keepdims=True)
        return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(ids) - 1), ids[1:]]

    lost, tokens, size = 0.0, 0, 0
    for item in read_set(SETS["written"], corpus.folder):
        ids = vocabulary.encode_text(item.text)
        for first in range(0, len(ids), 8):
            lost += nats(ids[first : first + 8], vocabulary.text_size).sum()
            tokens += len(ids[first : first + 8]) - 1
        size += len(item.text.encode())
    assert text["figures"]["perplexity"]["value"] == pytest.approx(np.exp(lost / tokens), rel=1e-4)
    assert text["figures"]["bits_per_byte"]["value"] == pytest.approx(lost / size / np.log(2), rel=1e-4)
    assert "backbone_perplexity" not in text["figures"]  # it began at random

    items = read_set(SETS["spoken"], corpus.folder)
    assert codes["items"] == 5 and codes["of"] == len(items)
    sums: dict[str, list[float]] = {"linguistic": [], "semantic": []}
    for at in np.linspace(0, len(items) - 1, 5):
        stored = items[round(at)].stored
        assert stored is not None
        (sample,) = find_layout("continuation", {})([stored.utterance()], vocabulary, np.random.default_rng(0))
        found = nats(sample.tokens.tolist(), vocabulary.padded_size)
        for name in sums:
            ids = vocabulary.ranges[name]
            sums[name] += [n for n, token in zip(found, sample.tokens[1:], strict=True) if token in ids]
    for name, held in sums.items():
        assert codes["figures"][name]["value"] == pytest.approx(np.exp(np.mean(held)), rel=1e-4)
    both = [*sums["linguistic"], *sums["semantic"]]
    assert codes["figures"]["audio"]["value"] == pytest.approx(np.exp(np.mean(both)), rel=1e-4)


def dies(file: str, after: int) -> None:
    """`python -m train.evaluation`, killed as kill -9 does when `after` items are measured, half a line written."""
    from train.evaluation.__main__ import main
    from train.evaluation.kept import Kept

    add, left = Kept.add, [after]

    def counted(self: Kept, item: Any, record: Any) -> None:
        add(self, item, record)
        left[0] -= 1
        if not left[0]:
            with self._path.open("a") as written:
                written.write('{"key": "cut sh')
            os.kill(os.getpid(), signal.SIGKILL)

    Kept.add = counted  # type: ignore[method-assign]
    main([file])


def rank(file: str) -> int:
    from train.evaluation.__main__ import main

    return main([file])


def test_a_killed_evaluation_goes_on_with_the_next_item(
    config: Config, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = measured_by(config, asr=MeasurementConfig(MeasurementKind.asr, ["spoken"], limit=5, batch=2))
    folder = Path(config.run.folder)
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    with pytest.raises(RankFailed, match="died without an answer"):
        run_ranks(dies, 1, str(folder / "config.yaml"), 3)
    begun = (folder / "items/asr.spoken.jsonl").read_text().splitlines()
    assert len(begun) == 5 and not (folder / "results.json").exists()  # its head, three items, and half a line
    assert run_ranks(rank, 1, str(folder / "config.yaml")) == [DONE]
    assert (folder / "items/asr.spoken.jsonl").read_text().splitlines()[:4] == begun[:4]
    resumed = json.loads((folder / "evaluation.json").read_text())["measured"][0]
    page = (folder / "evaluation.html").read_text()
    assert "asr" in page and "http://" not in page and "https://" not in page

    # Again it costs nothing, and elsewhere without an interruption it is the same.
    monkeypatch.setattr(Asr, "measure", lambda *_: pytest.fail("measured again"))
    (again,) = measure(config, Subject(config, export))["measured"]
    monkeypatch.undo()
    config = replace(config, run=replace(config.run, folder=f"{folder}-2"))
    Path(config.run.folder).mkdir()
    (whole,) = measure(config, Subject(config, export))["measured"]
    assert resumed["figures"] == again["figures"] == whole["figures"]


def test_what_cannot_be_measured_is_told(
    config: Config, export: Path, corpus: Corpus, known: list[Utterance], tmp_path: Path
) -> None:
    nowhere = measured_by(config, asr=MeasurementConfig(MeasurementKind.asr, ["nowhere"]))
    with pytest.raises(BadInput, match="nothing could be measured: set nowhere is not there"):
        measure(nowhere, Subject(config, export))
    required = replace(nowhere, evaluation=replace(nowhere.evaluation, require_sets=True))
    with pytest.raises(BadInput, match=r"evaluation sets are missing: nowhere \(.*LibriSpeech\)"):
        measure(required, Subject(config, export))
    silent = measured_by(
        config,
        asr=MeasurementConfig(MeasurementKind.asr, ["spoken"], limit=1),
        tts=MeasurementConfig(MeasurementKind.tts, ["spoken"]),
        written=MeasurementConfig(MeasurementKind.questions, ["asked"], asked=Asked.written, layout="text", limit=1),
    )
    told = measure(silent, Subject(config, export))
    assert [one["measurement"] for one in told["measured"]] == ["asr", "written"]
    assert told["impossible"] == {
        "tts": "no decoder makes sound of this model's codes; give evaluation.decoder, the run folder of one"
    }
    (tmp_path / "sets/asked/audios/1.wav").write_bytes(b"no sound")
    asked = measured_by(config, questions=MeasurementConfig(MeasurementKind.questions, ["asked"]))
    with pytest.raises(BadInput, match=r"asked: 1 of 3 items cannot be read \(1 of kind decode\), more than"):
        measure(asked, Subject(config, export, codec=ByLength(corpus.vocabulary, known)))
    with pytest.raises(BadInput, match="holds no export of a model"):
        Subject(config, tmp_path)


def test_a_stage_is_measured_beside_itself(config: Config, export: Path) -> None:
    trained = replace(config, run=replace(config.run, folder=str(export.parents[1])))
    trained.evaluation.model = None
    meant = of_stage(trained)
    assert meant.run.folder == f"{export.parents[1]}/evaluation/test" and meant.evaluation.model == str(export)
    assert meant.stage.kind is StageKind.evaluate
    with pytest.raises(BadInput, match="holds no export to measure"):
        of_stage(replace(config, evaluation=EvaluationConfig("x")))
