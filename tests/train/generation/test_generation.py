"""A stage that generates: the same corpus however often it is killed and however many share it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from configs.checks import check
from configs.compose import to_yaml
from configs.schema import Config, SourceConfig, StageKind
from data_pipeline.batch import Sample
from data_pipeline.corpus import Corpus
from data_pipeline.layouts import find_layout
from data_pipeline.quality.filters import parse_filter
from data_pipeline.shards import ShardReader, ShardWriter, read_index
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import DONE, BadInput
from runtime.signals import StopFlag
from tests.data_pipeline.faults import flip, garble_index
from tests.data_pipeline.layout_material import GROUPED, said, speak
from tests.data_pipeline.synthetic import SENTENCE, make_corpus, make_vocabulary
from tests.data_pipeline.test_text_to_code import save_model
from tests.ranks import run_ranks
from tests.train.runs import tiny_config
from train.generation.__main__ import generate
from train.generation.sampling import SpeechPrompt
from train.generation.speech import asked, repeated_share


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("room")
    make_corpus(room / "corpus", train_documents=8, valid_documents=4)
    save_model(room / "teacher", make_vocabulary())
    (room / "texts.txt").write_text("\n\n".join(f"{SENTENCE} {number}." for number in range(60)))
    return room


def speaking(room: Path, name: str, layout: str = "tts") -> Config:
    config = tiny_config(room / name, room / "corpus")
    config.mixture.sources = {"tts": SourceConfig(layout=layout, weight=1.0)}
    config.stage.kind, config.stage.weights = StageKind.generate, str(room / "teacher")
    options = config.generation
    options.texts, options.utterances, options.shard, options.batch = f"plain:{room}/texts.txt", 24, 4, 4
    options.seconds_per_character, options.validation_share = 0.02, 0.2
    return config


def written(config: Config) -> str:
    file = Path(config.run.folder) / "config.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(to_yaml(config))
    return str(file)


def generation(file: str) -> int:
    from train.generation.__main__ import main

    return main([file])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.tar"))}


@pytest.fixture(scope="module")
def made(room: Path) -> Path:
    """Speech made by two processes that share it."""
    config = speaking(room, "two")
    assert run_ranks(generation, 2, written(config), timeout=240) == [DONE, DONE]
    return room / "two"


def test_what_is_made_is_a_corpus_that_says_how_good_it_is(room: Path, made: Path) -> None:
    corpus = Corpus.open(made / "corpus")
    assert (
        corpus.vocabulary == make_vocabulary() and len(corpus.shards("train")) == 5 and len(corpus.shards("valid")) == 1
    )
    assert "model.safetensors" in corpus.codecs["generated"]["made_by"]["files"]
    results = json.loads((made / "results.json").read_text())
    assert results["status"] == "finished" and results["corpus_hash"] == corpus.content_hash
    texts, speakers = set(), set()
    for shard in [*corpus.shards("train"), *corpus.shards("valid")]:
        index = read_index(shard)
        assert {"ended", "repeated_share", "characters_per_second"} <= set(index.columns) and index.spoken.all()
        assert np.array_equal(parse_filter("ended == 1").keep(index), index.columns["ended"] == 1)
        assert len(index.documents) == 1  # four texts after one prompt
        with ShardReader(shard) as reader:
            for number in range(len(reader)):
                utterance = reader.read(number)
                groups = utterance.codes["semantic"].shape[1] // 3
                assert utterance.codes["linguistic"].shape[1] == 2 * groups
                assert utterance.duration == pytest.approx(groups * corpus.vocabulary.group_seconds)
                assert utterance.recording.startswith("train-")
                texts.add(utterance.text)
                speakers.add(utterance.speaker)
    assert len(texts) == 24 and speakers == {"nobody"}


def test_killed_at_any_time_it_goes_on_and_ends_the_same(room: Path, made: Path) -> None:
    config = speaking(room, "killed")
    file, folder = written(config), room / "killed" / "corpus"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen([sys.executable, "-m", "train.generation", file], env=environment, cwd=Path.cwd())
    deadline = time.monotonic() + 200
    while len(list(folder.rglob("*.done.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {file: (folder / file).stat().st_mtime_ns for file in contents(folder)}
    assert 2 <= len(before) < 6 and not (folder / "manifest.json").exists()
    assert run_ranks(generation, 1, file, timeout=240) == [DONE]
    assert contents(folder) == contents(made / "corpus")
    finished = [
        name for name in before if (folder / name).with_suffix(".done.json").stat().st_mtime_ns <= max(before.values())
    ]
    assert all((folder / name).stat().st_mtime_ns == before[name] for name in finished)
    assert Corpus.open(folder).content_hash == Corpus.open(made / "corpus").content_hash


def test_damaged_prompts_are_passed_over_and_counted(room: Path, tmp_path: Path) -> None:
    """Every second sample's bytes, then the codes of all, then the index: others are taken, the same every time; where
    none is left it is one line."""
    shutil.copytree(room / "corpus", tmp_path / "corpus")
    (shard,) = Corpus.open(tmp_path / "corpus").shards("train")
    with ShardReader(shard) as reader:
        said = [reader.read(number) for number in range(len(reader))]
    flip(shard)
    config = speaking(room, "damaged")
    config.run.folder, config.corpus.folder = str(tmp_path / "first"), str(tmp_path / "corpus")
    config.generation.document, config.generation.utterances, config.generation.longest = 1, 12, 6
    generate(config, StopFlag())
    results = json.loads((tmp_path / "first/results.json").read_text())
    assert results["damaged_prompts"]["checksum"] >= 2
    made = Corpus.open(tmp_path / "first/corpus")
    assert sum(made.totals[split]["samples"] for split in made.splits) == 12
    taken = set()
    for file in [*made.shards("train"), *made.shards("valid")]:
        with ShardReader(file) as reader:
            taken |= {reader.read(number).recording for number in range(len(reader))}
    assert taken <= {f"{one.document}/{one.key}" for one in said[1::2]}
    config.run.folder = str(tmp_path / "again")
    generate(config, StopFlag())
    assert contents(tmp_path / "again/corpus") == contents(tmp_path / "first/corpus")

    with ShardWriter(shard) as writer:
        for one in said:
            writer.write(replace(one, codes={name: codes + 99 for name, codes in one.codes.items()}))
    config.run.folder = str(tmp_path / "none")
    with pytest.raises(BadInput, match=r"generation\.prompts: all \d+ are damaged, such as .* sample \d+: codes"):
        generate(config, StopFlag())
    garble_index(shard)
    with pytest.raises(BadInput, match=r"has speech, text and what is asked for \(1 damaged shards, such as .*: index"):
        generate(config, StopFlag())


def test_other_settings_on_what_is_there_are_one_line(room: Path, made: Path) -> None:
    config = speaking(room, "two")
    config.generation.temperature = 0.9
    with pytest.raises(BadInput, match=r"holds what was made with another generation; give another run\.name"):
        generate(config, StopFlag())


def test_a_model_of_chats_is_asked_in_its_chats() -> None:
    """As Step-Audio's tts.py asks: system, prompt text, prompt codes, target text, and the head of the answer."""
    prompt = speak(GROUPED, 2.4, np.random.default_rng(0), "in the beginning", speaker="Tingting")
    layout = find_layout("tts_dialogue", {"system": "Say it as {speaker}.", "begin": "<|begin_of_text|>"})
    question = asked(layout, prompt, "was a word", GROUPED, system="", prompted=True, longest=300)
    assert told(question, GROUPED) == [
        "<|begin_of_text|>", "<|BOT|>", "system\nSay it as Tingting.", "<|EOT|>", "<|BOT|>", "human\nin the beginning",
        "<|EOT|>", "<|BOT|>", "assistant\n", 100, "<|EOT|>", "<|BOT|>", "human\nwas a word", "<|EOT|>", "<|BOT|>",
        "assistant\n",
    ]  # fmt: skip
    assert question.end == GROUPED.special("<|EOT|>")
    assert len(question.ids) + 5 * question.groups + 1 <= 300 < len(question.ids) + 5 * (question.groups + 1) + 1


@pytest.mark.parametrize("prompted", [True, False])
def test_a_pretrained_model_goes_on_with_the_prompts_speech(prompted: bool) -> None:
    """Step-Audio's data engine: system prompt, prompt text, target text, prompt code; or no prompt at all."""
    rng = np.random.default_rng(0)
    prompt = speak(GROUPED, 2.45, rng, "in the beginning")
    question = asked(
        find_layout("tts", {}), prompt, "was a word", GROUPED, system="Slowly:", prompted=prompted, longest=300
    )
    given = "Slowly: in the beginning was a word" if prompted else "Slowly: was a word"
    assert told(question, GROUPED) == [given, "<|speak|>", "<|audio_start|>", *([100] if prompted else [])]
    assert question.end == GROUPED.special("<|audio_end|>")


def told(question: SpeechPrompt, vocabulary: Vocabulary) -> list[str | int]:
    tokens = np.array(question.ids)
    given, weights = vocabulary.modality_of(tokens), np.zeros(len(tokens), np.float32)
    return said(Sample(tokens, weights, given, np.arange(len(tokens), dtype=np.int32), "d/u"), vocabulary)


def test_what_is_said_again_is_counted() -> None:
    groups = np.array([[1, 2], [1, 2], [3, 4], [1, 2], [1, 2]])
    assert repeated_share(groups) == 0.5 and repeated_share(groups[:1]) == 0.0


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"generation": {"temperature": -0.1}}, r"generation\.temperature=-0\.1"),
        ({"generation": {"top_p": 0.0}}, r"generation\.top_p=0\.0"),
        ({"generation": {"batch": 0}}, r"generation\.batch=0"),
        ({"generation": {"seconds_per_character": 0.0}}, r"generation\.seconds_per_character=0\.0"),
        ({"stage": {"weights": "backbone"}}, r"stage\.kind=generate needs stage\.weights"),
        ({"distillation": {"cross_entropy": 0.0}}, r"distillation\.cross_entropy=0\.0"),
        ({"distillation": {"temperature": 0.0}}, r"distillation\.temperature=0\.0"),
        ({"stage": {"kind": "train", "objective": "distill"}}, r"stage\.objective=distill needs distillation\.teacher"),
    ],
)
def test_settings_that_cannot_be_are_one_line(room: Path, changes: dict[str, dict[str, Any]], line: str) -> None:
    config = OmegaConf.structured(speaking(room, "unused"))
    config.merge_with(changes)
    with pytest.raises(BadInput, match=line):
        check(OmegaConf.to_object(config))
