"""A model that has learnt a few utterances and a talk by heart says them, and answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.compose import to_yaml
from configs.schema import MixtureConfig, SourceConfig
from data_pipeline.corpus import Corpus
from data_pipeline.drawing import Sampling
from data_pipeline.layouts import layouts_of
from data_pipeline.layouts.groups import lay_groups
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from launch.cli import main
from runtime.exits import BadInput
from tests.data_pipeline.synthetic import make_corpus, make_vocabulary
from tests.train.generation.learnt import learn_by_heart
from tests.train.runs import tiny_config
from train.generation.conversing import Answer, Assistant
from train.generation.sampling import exported_speaker
from train.generation.speaking import Line, say, speaking_layout
from train.generation.transcription import spoken_in
from train.generation.writing import GREEDY

SURE = Sampling(temperature=0)
SPECIALS = ("<|audio_start|>", "<|audio_end|>", "<|transcribe|>", "<|speak|>", "<|BOT|>", "<|EOT|>")
FORMS = {"TQTA": "", "AQTA": "", "TAQTA": "Both.", "AQAA": "Aloud."}
MIXTURE = MixtureConfig(
    "spoken",
    {
        "tts": SourceConfig(layout="tts", weight=1.0),
        "clone": SourceConfig(
            layout="tts_dialogue", weight=1.0, options={"system": "By {speaker}.", "unnamed": "As before."}
        ),
        # Forms that begin alike are told apart by what the system says.
        **{
            form: SourceConfig(layout="chat", weight=1.0, options={"form": form, "system": told})
            for form, told in FORMS.items()
        },
    },
)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return replace(make_vocabulary(), specials=SPECIALS)


@pytest.fixture(scope="module")
def known(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    corpus = Corpus.open(make_corpus(tmp_path_factory.mktemp("corpus"), vocabulary=vocabulary))
    return sorted(spoken_in(corpus, "valid", 20), key=lambda one: one.duration)[:4]


@pytest.fixture(scope="module")
def talk(known: list[Utterance]) -> list[Utterance]:
    """A question and its answer, both spoken."""
    return [
        replace(one, key=str(number), document="talk", role=("human", "assistant")[number])
        for number, one in enumerate(known[2:])
    ]


@pytest.fixture(scope="module")
def export(
    vocabulary: Vocabulary, known: list[Utterance], talk: list[Utterance], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("export")
    layouts = layouts_of(MIXTURE.sources)
    rng = np.random.default_rng(0)
    samples = [*layouts["tts"](known[:2], vocabulary, rng)]
    samples += layouts["clone"]([replace(one, document="pair", speaker="ann") for one in known[:2]], vocabulary, rng)
    samples += layouts["clone"]([replace(one, document="pair", speaker="") for one in known[1:3]], vocabulary, rng)
    samples += [sample for form in FORMS for sample in layouts[form](talk, vocabulary, rng)]
    learn_by_heart(samples, vocabulary, folder)
    return folder


def same(said: np.ndarray, utterance: Utterance, vocabulary: Vocabulary) -> bool:
    """Whether ids are those of an utterance's codes, but for codes that fill no group."""
    return np.array_equal(said, lay_groups(utterance, vocabulary).reshape(-1))


def test_it_says_texts_that_it_knows(export: Path, known: list[Utterance]) -> None:
    speaker = exported_speaker(export, SURE, device="cpu")
    layout = speaking_layout(MIXTURE, prompted=False)
    assert layout.name == "tts"
    said = say(speaker, layout, [Line(one.text) for one in known[:2]], range(2))
    for speech, one in zip(said, known[:2], strict=True):
        assert speech.ended and same(speech.ids, one, speaker.vocabulary)
        assert speech.seconds == pytest.approx(one.duration, abs=0.13)  # a group
    (cut,) = say(speaker, layout, [Line(known[0].text)], [0], longest=0.25)
    assert not cut.ended and cut.seconds == pytest.approx(0.24)


def test_it_goes_on_in_the_voice_of_a_prompt(export: Path, known: list[Utterance]) -> None:
    speaker = exported_speaker(export, SURE, device="cpu")
    layout = speaking_layout(MIXTURE, prompted=True)
    assert layout.name == "tts_dialogue"
    (named,) = say(speaker, layout, [Line(known[1].text, speaker="ann")], [0], voice=known[0])
    assert named.ended and same(named.ids, known[1], speaker.vocabulary)
    (cloned,) = say(speaker, layout, [Line(known[2].text)], [0], voice=known[1])
    assert cloned.ended and same(cloned.ids, known[2], speaker.vocabulary)


def test_what_it_was_not_taught_is_refused(export: Path) -> None:
    clones = MixtureConfig("clones", {"clone": MIXTURE.sources["clone"]})
    with pytest.raises(BadInput, match="in the voice of a prompt: give a recording and its text"):
        speaking_layout(clones, prompted=False)
    with pytest.raises(BadInput, match="takes no prompt of a voice"):
        speaking_layout(MixtureConfig("plain", {"tts": MIXTURE.sources["tts"]}), prompted=True)
    with pytest.raises(BadInput, match="learnt no conversations"):
        Assistant(clones, export, "AQTA")
    with pytest.raises(BadInput, match="learnt no AQTA; it learnt TQTA"):
        Assistant(MixtureConfig("written", {"chat": MIXTURE.sources["TQTA"]}), export, "AQTA")
    speaker = exported_speaker(export, SURE, device="cpu")
    with pytest.raises(BadInput, match="nothing can be said: the text is empty"):
        say(speaker, speaking_layout(MIXTURE, prompted=False), [Line("")], [0])


@pytest.mark.parametrize("form", list(FORMS))
def test_it_answers_as_it_was_taught(export: Path, talk: list[Utterance], form: str) -> None:
    """Written questions as text, spoken ones as codes alone."""
    question, answer = talk
    asked = replace(question, codes={}) if form == "TQTA" else replace(question, text="")
    assistant = Assistant(MIXTURE, export, form, device="cpu")
    found = assistant.answer([asked], sampling=GREEDY, longest=20.0)
    if form == "AQAA":
        assert found.text == "" and found.ids is not None and same(found.ids, answer, assistant.vocabulary)
    else:
        heard = question.text if form == "TAQTA" else ""
        assert found == Answer(text=answer.text, heard=heard)


def test_a_conversation_has_to_wait_for_an_answer(export: Path, talk: list[Utterance]) -> None:
    assistant = Assistant(MIXTURE, export, "AQTA", device="cpu")
    with pytest.raises(BadInput, match="last turn of the conversation has to be a human's"):
        assistant.answer(talk)
    with pytest.raises(BadInput, match="AQTA asks for a question as speech"):
        assistant.answer([replace(talk[0], codes={})])


@pytest.fixture(scope="module")
def run(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(to_yaml(replace(tiny_config(folder, folder), mixture=MIXTURE)))
    (folder / "export").mkdir()
    (folder / "export" / "hf").symlink_to(export)
    return folder


def test_the_commands_speak_and_answer(
    run: Path,
    known: list[Utterance],
    talk: list[Utterance],
    vocabulary: Vocabulary,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "texts").write_text(f"{known[0].text}\n\n{known[1].text}\n")
    words = ["synthesize", str(run), "--texts", str(tmp_path / "texts"), "--out", str(tmp_path / "said")]
    assert main(words) == 0
    for number, one in enumerate(known[:2]):
        with np.load(tmp_path / "said" / f"{number:04d}.npz") as codes:
            assert same(lay_groups(replace(one, codes=dict(codes)), vocabulary).reshape(-1), one, vocabulary)
    assert main(["synthesize", str(run)]) == 2 and "give --text" in capsys.readouterr().err
    assert main(["chat", str(run), "--form", "TQTA", "--text", talk[0].text]) == 0
    assert capsys.readouterr().out.strip() == talk[1].text
    before = {"messages": [{"role": "human", "text": "a"}, {"role": "nobody", "text": "b"}]}
    (tmp_path / "talk.json").write_text(json.dumps(before))
    assert main(["chat", str(run), "--form", "TQTA", "--conversation", str(tmp_path / "talk.json")]) == 2
    assert "no such role nobody" in capsys.readouterr().err
    assert main(["chat", str(run), "--text", "a", "--wav", "b.wav"]) == 2 and "one question" in capsys.readouterr().err
