"""Conversations as JSON lines: what is read, what is damage, and the corpus that they become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from configs.schema import Config, SpeechSourceConfig
from data_pipeline.audio import decode_flac
from data_pipeline.build import build_corpus
from data_pipeline.codecs import open_codec
from data_pipeline.corpus import Corpus
from data_pipeline.shards import ShardReader
from data_pipeline.sources.recording import MIXED, Recording, UnreadableAudio
from data_pipeline.sources.speech import open_speech_source
from data_pipeline.sources.speech.places import FileStretch, Written
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput
from tests.data_pipeline.recorded_speech import recorded_config, voiced
from tests.data_pipeline.test_build import new_cache, small_config

PROMPTS = Path("/usr/share/asterisk/sounds/en")


def write(file: Path, lines: list[Any]) -> Path:
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


def talk(name: str, *messages: tuple[str, str, str], **more: Any) -> dict[str, Any]:
    """A conversation of (role, text, audio file or "")."""
    turns = [{"role": role, "text": text, **({"audio": audio} if audio else {})} for role, text, audio in messages]
    return {"id": name, "messages": turns, **more}


def recordings(file: Path, split: str | None = None, **options: Any) -> list[Recording]:
    config = SpeechSourceConfig("conversations", str(file), split=split, options=options)
    return list(open_speech_source(config).recordings())


# --- the file -------------------------------------------------------------------------------------------------------


def test_a_line_becomes_the_turns_of_one_document(tmp_path: Path) -> None:
    said = {"role": "user", "text": " What is it? ", "audio": "a/q.wav", "speaker": "ann", "lang": "en", "style": "sad"}
    part = {"role": "assistant", "text": "A word.", "audio": "/b.wav", "offset": 2.5, "duration": 1.5, "channel": 1}
    file = write(tmp_path / "talks.jsonl", [{"messages": [{"role": "system", "text": "Be kind."}, said, part]}])
    system, human, assistant = recordings(file)
    assert {found.document for found in (system, human, assistant)} == {"talks-1"}
    assert [found.key for found in (system, human, assistant)] == [f"talks-1-00{turn}" for turn in range(3)]
    assert system.audio == Written(str(file)) and system.segments[0].role == "system"
    assert human.audio == FileStretch(str(tmp_path / "a/q.wav")) and human.segments[0].channel == MIXED
    (segment,) = human.segments
    told = (segment.role, segment.text, segment.speaker, segment.language, segment.style, segment.end)
    assert told == ("human", "What is it?", "ann", "en", "sad", None)
    (segment,) = assistant.segments
    assert assistant.audio == FileStretch("/b.wav")
    assert (segment.start, segment.end, segment.channel) == (2.5, 4.0, 1)


def test_other_keys_and_splits(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi.", "sound": "x.wav"}]
    file = write(tmp_path / "t.jsonl", [{"conversations": turns, "part": "a"}, {"conversations": turns, "part": "b"}])
    options = {"messages": "conversations", "role": "from", "text": "value", "audio": "sound", "split_column": "part"}
    found = recordings(file, split="b", audio_folder="/sounds", **options)
    assert [one.document for one in found] == ["t-2", "t-2"]
    assert [one.segments[0].role for one in found] == ["human", "assistant"]
    assert found[1].audio == FileStretch("/sounds/x.wav")


@pytest.mark.parametrize(
    "line, kind, message",
    [
        ("{half", "conversation", "no JSON"),
        ("[1]", "conversation", "no JSON object"),
        ({"id": "1"}, "conversation", "no list of messages"),
        ({"messages": []}, "conversation", "no list of messages"),
        ({"messages": ["hello"]}, "conversation", "message 0 is no JSON object"),
        (talk("1", ("human", "", "")), "conversation", "message 0 has neither text nor audio"),
        (talk("1", ("human", "a", ""), ("narrator", "b", "")), "role", "message 1 has the role 'narrator'"),
        ({"messages": [{"text": "a"}]}, "role", "message 0 has the role None"),
        ({"messages": [{"role": ["human"], "text": "a"}]}, "role", "has the role"),
        ({"messages": [{"role": "human", "text": {"a": 1}}]}, "conversation", "text of message 0 is no text"),
        ({"messages": [{"role": "human", "text": "a", "offset": -1}]}, "conversation", "offset is no number"),
    ],
)
def test_a_damaged_line_is_told_by_its_number_and_costs_itself_alone(tmp_path, line, kind, message):
    good = talk("2", ("human", "Hello?", ""), ("assistant", "Hi.", ""))
    file = write(tmp_path / "t.jsonl", [good, line, talk("3", ("human", "a", ""))])
    source = open_speech_source(SpeechSourceConfig("conversations", str(file)))
    first, second, damaged, third = source.recordings()
    assert (first.document, second.document, third.document) == ("2", "2", "3")
    with pytest.raises(UnreadableAudio, match=f"line 2: .*{message}") as caught:
        source.sound(damaged)
    assert caught.value.kind == kind


def test_two_conversations_of_one_name_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", [talk("1", ("human", "a", "")), talk("1", ("human", "b", ""))])
    with pytest.raises(BadInput, match="two recordings are called 1-000"):
        recordings(file)


# --- the corpus -----------------------------------------------------------------------------------------------------


def sounds(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        soundfile.write(folder / name, voiced(1.5, 16_000, number), 16_000)


def corpus_of(tmp_path: Path, lines: list[Any], config: Config | None = None) -> tuple[Corpus, Config]:
    file = write(tmp_path / "talks.jsonl", lines)
    config = recorded_config(config or small_config(new_cache(tmp_path / "cache")), file, "conversations")
    config.corpus.name, config.corpus.validation_share, config.corpus.workers = "talks", 0.0, 1
    return Corpus.open(build_corpus(config)), config


def documents(corpus: Corpus) -> dict[str, list[tuple[Utterance, bytes | None]]]:
    found: dict[str, list[tuple[Utterance, bytes | None]]] = {}
    for shard in corpus.shards("train"):
        with ShardReader(shard) as reader:
            for sample in range(len(reader)):
                utterance = reader.read(sample)
                found.setdefault(utterance.document, []).append((utterance, reader.read_audio(sample)))
    return found


def test_conversations_become_a_corpus_and_broken_ones_are_left_out_whole(tmp_path: Path) -> None:
    """Through learnt codebooks, so by way of staging: written turns stand between spoken ones, and codes are those of
    each turn's own sound."""
    sounds(tmp_path, "a.wav", "b.wav", "c.wav")
    (tmp_path / "short.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:90])
    lines = [
        talk(
            "one", ("system", "Be kind.", ""), ("human", "in the beginning", "a.wav"), ("assistant", "was a word", "")
        ),
        talk("two", ("human", "hm?", "b.wav"), ("assistant", "yes", "short.wav"), ("human", "no", "")),
        talk("three", ("human", "hm?", ""), ("narrator", "then", "")),
        talk("four", ("human", "what is", "b.wav"), ("assistant", "a word", "c.wav")),
        talk("five", ("human", "written", ""), ("assistant", "both", "")),
    ]
    corpus, config = corpus_of(tmp_path, lines)
    found = documents(corpus)
    roles = {name: [utterance.role for utterance, _ in turns] for name, turns in found.items()}
    assert roles == {
        "one": ["system", "human", "assistant"],
        "four": ["human", "assistant"],
        "five": ["human", "assistant"],
    }
    counts = {kind: held["count"] for kind, held in corpus.left_out.items()}
    assert counts == {"truncated": 1, "role": 1, "incomplete": 2}
    assert "line 3: message 1 has the role 'narrator'" in corpus.left_out["role"]["examples"][0]
    assert corpus.left_out["incomplete"]["examples"] == ["two"]

    config.codec.weights["centroids"] = str(corpus.folder)
    codec = open_codec(config.codec, corpus.folder)
    for name, turns in found.items():
        for utterance, flac in turns:
            if flac is None:
                assert not utterance.codes and utterance.duration == 0 and not utterance.quality
                continue
            assert utterance.duration == pytest.approx(1.5) and name != "five"
            (codes,) = codec.encode([decode_flac(flac)])
            assert all(np.array_equal(utterance.codes[book], codes[book]) for book in codes)
    assert sum(flac is not None for turns in found.values() for _, flac in turns) == 3
    assert corpus.totals["train"]["spoken_documents"] == 2 and corpus.totals["train"]["documents"] == 3


def test_written_turns_are_said_by_the_voice(tmp_path: Path) -> None:
    """Those of the roles that are asked for, with word times; the rest stays written."""
    config = small_config(new_cache(tmp_path / "cache"))
    config.corpus.spoken_roles = ["human"]
    texts = "In the beginning was a word.", "And it went out over many waters, slowly."
    lines = [
        talk(str(number), ("system", "Be kind.", ""), ("human", text, ""), ("assistant", "I see.", ""))
        for number, text in enumerate(texts)
    ]
    corpus, _ = corpus_of(tmp_path, lines, config)
    for number, turns in documents(corpus).items():
        (system, _), (human, flac), (assistant, _) = turns
        assert not system.spoken and not assistant.spoken and flac is not None
        assert human.codes.keys() == {"linguistic", "semantic"} and human.text == texts[int(number)]
        assert human.speaker and human.duration == pytest.approx(len(decode_flac(flac)) / 16_000)
        assert [word.text for word in human.words] == human.text.split()
        assert human.licence.startswith("text CC0-1.0, voice ")


@pytest.mark.skipif(not PROMPTS.is_dir(), reason="Debian's asterisk-core-sounds-en-g722 is not installed")
def test_conversations_of_human_speech(tmp_path: Path) -> None:
    """A recorded human voice asks and answers."""
    lines = [
        talk(
            str(number),
            ("human", "Please enter your password followed by the pound key.", str(PROMPTS / "agent-pass.g722")),
            ("assistant", "Agent logged in.", str(PROMPTS / "agent-loginok.g722")),
            ("human", "Thank you.", str(PROMPTS / "auth-thankyou.g722")),
            ("assistant", "All circuits are busy now.", str(PROMPTS / "all-circuits-busy-now.g722")),
        )
        for number in range(2)
    ]
    corpus, _ = corpus_of(tmp_path, lines)
    for turns in documents(corpus).values():
        assert [utterance.role for utterance, _ in turns] == ["human", "assistant"] * 2
        assert all(utterance.spoken and utterance.duration > 0.3 for utterance, _ in turns)
    assert not corpus.left_out
