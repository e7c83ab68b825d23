"""Sets of evaluations, each written here as it is distributed, and read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from configs.schema import EvaluationSetConfig
from data_pipeline.sources.evaluation import InShard, Item, check_set, read_set
from data_pipeline.sources.evaluation.questions import listed
from data_pipeline.sources.recording import UnreadableAudio
from runtime.exits import BadInput
from tests.data_pipeline.sounds import speechlike, write_sound
from tests.data_pipeline.synthetic import make_corpus
from tests.data_pipeline.test_sources_layouts import lines


def read(kind: str, path: Path, split: str | None = None, **options: object) -> list[Item]:
    config = EvaluationSetConfig(kind, split=split, options=options)
    check_set("it", config)
    return read_set(config, path)


def test_seed_tts_has_texts_to_say_in_the_voice_of_a_prompt(tmp_path: Path) -> None:
    lines(
        tmp_path / "en/meta.lst",
        "one|Hello there.|prompt-wavs/p.wav|Say this.|wavs/one.wav",
        "two|Hello there.|prompt-wavs/p.wav|Say that.",
    )
    lines(tmp_path / "zh/hardcase.lst", "three|你好|../../outside.wav|四是四")
    for name in ("prompt-wavs/p.wav", "wavs/one.wav"):
        write_sound(tmp_path / "en" / name, speechlike(1.0, 24_000), rate=24_000)
    one, two = read("seed_tts", tmp_path, "en")
    assert (one.key, one.text, one.language, two.sound) == ("one", "Say this.", "en", None)
    assert one.prompt is not None and one.prompt.text == "Hello there."
    assert one.prompt.sound is not None and one.sound is not None
    assert len(one.prompt.sound.wave()) == pytest.approx(16_000, abs=2) and one.sound.wave().dtype == np.float32
    (hard,) = read("seed_tts", tmp_path, "zh/hardcase")
    assert hard.language == "zh" and hard.prompt is not None and hard.prompt.sound is not None
    with pytest.raises(UnreadableAudio, match="leads out"):
        hard.prompt.sound.wave()
    for split, problem in ((None, "give its split"), ("de", "is there")):
        with pytest.raises(BadInput, match=problem):
            read("seed_tts", tmp_path, split)


def test_spoken_questions_as_openaudiobench_lays_them_out(tmp_path: Path) -> None:
    lines(
        tmp_path / "llama_questions/llama_questions.csv",
        "Questions,Answer,audio_filename",
        '"What is the capital of France, please?",Paris,q1.wav',
        "Who was it?,,",
    )
    write_sound(tmp_path / "llama_questions/audios/q1.wav", speechlike(0.5))
    lines(tmp_path / "web_questions.csv", "question,answers,audio_filename", "who?,George Seifert;Dom Capers,a.mp3")
    lines(
        tmp_path / "trivia_qa.csv",
        "question,answer_normalized_value,answer_normalized_aliases,audio_filename",
        "where?,paris,\"['paris', 'city of light']\",b.wav",
        'what?,red,"red,reddish",c.wav',
    )
    first, second = read("llama_questions", tmp_path)
    assert (first.key, first.answers) == ("q1", ("Paris",)) and first.sound is not None
    assert len(first.sound.wave()) == 8_000
    assert second.sound is None and second.answers == ()
    assert read("web_questions", tmp_path)[0].answers == ("George Seifert", "Dom Capers")
    assert [item.answers for item in read("trivia_qa", tmp_path)] == [("paris", "city of light"), ("red", "reddish")]
    with pytest.raises(BadInput, match="has no column reply; it has question, answers, audio_filename"):
        read("web_questions", tmp_path, answers="reply")


def test_written_questions_as_they_were_published(tmp_path: Path) -> None:
    told = {"Value": "Sunset Boulevard", "Aliases": ["Sunset Blvd"], "NormalizedAliases": ["sunset blvd"]}
    data = {"Data": [{"Question": "Which musical?", "QuestionId": "tc_33", "Answer": told}]}
    (tmp_path / "unfiltered-web-dev.json").write_text(json.dumps(data))
    (item,) = read("trivia_qa", tmp_path / "unfiltered-web-dev.json")
    assert item.key == "tc_33" and item.answers == ("Sunset Boulevard", "Sunset Blvd", "sunset blvd")
    value = '(list (description "Jazmyn Bieber") (description Jaxon))'
    (tmp_path / "test.json").write_text(json.dumps([{"utterance": "what?", "targetValue": value}]))
    assert read("web_questions", tmp_path / "test.json")[0].answers == ("Jazmyn Bieber", "Jaxon")
    assert listed("[1, 'two", ";") == ("[1, 'two",)  # no list after all


def test_conversations_end_with_what_is_asked(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "text": "你好", "audio": "1.wav"},
        {"role": "assistant", "text": "你好!"},
        {"role": "user", "audio": "2.wav"},
        {"role": "assistant", "text": "..."},
    ]
    rows = [{"id": "a", "category": "rap", "messages": turns}, {"id": "b", "category": "games", "messages": turns[:1]}]
    lines(tmp_path / "test.jsonl", *(json.dumps(row) for row in rows))
    write_sound(tmp_path / "2.wav", speechlike(0.3))
    (item,) = read("step_eval_audio_360", tmp_path, "rap")
    assert [turn.role for turn in item.turns] == ["human", "assistant"]
    assert item.language == "zh" and item.text == "" and item.sound is not None and len(item.sound.wave()) == 4_800
    assert len(read("step_eval_audio_360", tmp_path / "test.jsonl")) == 2


def test_corpora_speech_text_and_tasks_are_sets_too(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path / "corpus")
    spoken, written = read("corpus", folder), read("corpus", folder, spoken=False)
    assert spoken[0].stored is not None and spoken[0].stored.utterance().text == spoken[0].text
    assert all(item.sound is None for item in written)
    prompted = read("corpus", folder, prompted=True)
    assert prompted and {item.key for item in prompted} <= {item.key for item in spoken}
    for item in prompted:
        assert item.prompt is not None and item.stored is not None and isinstance(item.prompt.sound, InShard)
        one, other = item.stored.utterance(), item.prompt.sound.utterance()
        assert one.key != other.key and (one.document, one.speaker) == (other.document, other.speaker)
        assert item.prompt.text == other.text
    with pytest.raises(BadInput, match="spoken=false leaves it out"):
        read("corpus", folder, spoken=False, prompted=True)
    transcript = tmp_path / "LibriSpeech/test-clean/19/198/19-198.trans.txt"
    lines(transcript, "19-198-0000 NORTHANGER ABBEY", "19-198-0001 THIS LITTLE WORK")
    write_sound(transcript.parent / "19-198-0000.flac", speechlike(0.5))
    libri = read("librispeech", tmp_path, "test-clean")
    assert [item.text for item in libri] == ["NORTHANGER ABBEY", "THIS LITTLE WORK"] and libri[0].language == "en"
    assert libri[0].sound is not None and len(libri[0].sound.wave()) == 8_000
    with pytest.raises(UnreadableAudio, match="no such file"):
        assert libri[1].sound is not None and libri[1].sound.wave() is None
    lines(tmp_path / "texts/a.txt", "One sentence. And another, which goes on for a while.")
    assert [item.text for item in read("text", tmp_path / "texts")] == [
        "One sentence. And another, which goes on for a while."
    ]
    lines(tmp_path / "tasks/copa.yaml", "task: copa")
    assert [(item.key, item.text) for item in read("tasks", tmp_path / "tasks")] == [
        ("copa", str(tmp_path / "tasks/copa.yaml"))
    ]


@pytest.mark.parametrize(
    "config, problem",
    [
        (EvaluationSetConfig("librispech"), "no such kind of set; there are corpus, .*librispeech"),
        (EvaluationSetConfig("seed_tts", options={"size": 1}), "evaluation set it has no option 'size'"),
        (EvaluationSetConfig("aishell", options={"size": 1}), "evaluation set it has no option 'size'"),
    ],
)
def test_unknown_kinds_and_options_are_refused(config: EvaluationSetConfig, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        check_set("it", config)
