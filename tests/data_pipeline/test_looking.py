"""Inspect, stats, verify and the corpus report, on corpora whose contents are known."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from data_pipeline.audio import encode_flac
from data_pipeline.corpus import MANIFEST_FILE, Corpus, write_manifest
from data_pipeline.entropy import count_codes, unigram_entropy
from data_pipeline.layouts import find_layout
from data_pipeline.looking.charts import WIDTH, histogram_chart
from data_pipeline.looking.histogram import BINS, Histogram
from data_pipeline.looking.inspect import find, print_sample, spectrogram_text
from data_pipeline.looking.laid import lay
from data_pipeline.looking.report import stages_of, write_corpus_report
from data_pipeline.looking.sample_page import write_sample_page
from data_pipeline.looking.stats import as_json, gather, print_tables
from data_pipeline.looking.survey import read_samples, spread_samples, survey
from data_pipeline.looking.verify import verify
from data_pipeline.quality.filters import parse_filter
from data_pipeline.quality.funnel import measure_funnel
from data_pipeline.shards import ShardReader, ShardWriter, add_columns, index_path, read_index
from data_pipeline.utterance import Utterance, Word
from data_pipeline.vocabulary import Codebook, Vocabulary
from runtime.exits import BAD_INPUT, DONE, BadInput, StoppedEarly
from runtime.signals import StopFlag
from tests.data_pipeline import faults
from tests.data_pipeline.synthetic import make_corpus, make_utterance, make_vocabulary
from tests.train.test_report import Page

REPOSITORY = Path(__file__).resolve().parents[2]
RESIDUAL = Codebook("residual", size=16, rate=12.5, rows=3)


def sounding(seconds: float) -> bytes:
    return encode_flac(0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 16000)) / 16000))


@pytest.fixture(scope="module")
def rich_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rows a frame, features, sound as long as told, measured columns, two speakers; text only in valid."""
    folder = tmp_path_factory.mktemp("rich") / "corpus"
    vocabulary = make_vocabulary()
    vocabulary = Vocabulary(vocabulary.text_size, vocabulary.specials, (RESIDUAL,), vocabulary.tokenizer_json)
    rng = np.random.default_rng(0)
    for shard in range(2):
        with ShardWriter(folder / "train" / f"s-{shard}.tar") as writer:
            for number in range(6):
                seconds = 1.0 + 0.4 * number
                utterance = Utterance(
                    key=f"u{shard}-{number}",
                    text="In the beginning was a word.",
                    document=f"d{shard}-{number // 2}",
                    language="en",
                    speaker=f"speaker {number % 2}",
                    duration=seconds,
                    words=(Word("In", 0.1, 0.3), Word("the", 0.3, 0.5)),
                    source="synthetic",
                    licence="CC0-1.0" if number else "CC-BY-4.0",
                    recording="tape",
                    start=1.5,
                    channel=1,
                    quality={"dnsmos": 3.0 + 0.1 * number} | ({"wer": 0.25} if number else {}),
                    codes={"residual": rng.integers(0, 8, (3, round(seconds * 12.5)))},
                    features={"encoder": rng.standard_normal((5, 4)).astype(np.float16)},
                )
                writer.write(utterance, audio=sounding(seconds))
    with ShardWriter(folder / "valid" / "s-0.tar") as writer:
        writer.write(Utterance(key="t", text="Words only.", document="t"))
    write_manifest(folder, name="rich", vocabulary=vocabulary, codecs={"codec": {"name": "</script>"}})
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("plain") / "corpus", train_documents=16)


def console(width: int = 120) -> Console:
    return Console(file=io.StringIO(), width=width, soft_wrap=True, highlight=False)


def said(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


# --- histograms -------------------------------------------------------------------------------------------------

NUMBERS = st.lists(st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False) | st.just(math.nan), max_size=60)


@given(parts=st.lists(NUMBERS, max_size=5), seed=st.integers(0, 99))
@settings(max_examples=100)
def test_a_histogram_does_not_depend_on_the_order_of_its_numbers(parts: list[list[float]], seed: int) -> None:
    one, other = Histogram(), Histogram()
    for part in parts:
        one.add(np.array(part))
    flat = np.array([value for part in parts for value in part])
    np.random.default_rng(seed).shuffle(flat)
    for value in flat:
        other.add(np.array([value]))
    assert (one.width, one.first, one.number, one.unknown) == (other.width, other.first, other.number, other.unknown)
    np.testing.assert_array_equal(one.counts, other.counts)
    finite = flat[np.isfinite(flat)]
    assert one.counts.sum() == one.number == len(finite) and len(one.counts) <= BINS + 1
    if len(finite):
        begin = (one.first + np.arange(len(one.counts) + 1)) * one.width
        np.testing.assert_array_equal(one.counts, np.histogram(finite, begin)[0])
        edges, counts = one.bars(8)
        assert counts.sum() == len(finite) and len(counts) <= 8 + 1
        assert edges[0] <= finite.min() and finite.max() <= edges[-1]


def test_quantiles_are_those_of_the_numbers() -> None:
    numbers = np.random.default_rng(0).gamma(2.0, 3.0, 20_000)
    held = Histogram()
    held.add(numbers)
    for share in (0.01, 0.05, 0.5, 0.95, 0.99):
        assert held.quantile(share) == pytest.approx(np.quantile(numbers, share), abs=2 * held.width)
    assert held.mean == pytest.approx(numbers.mean())


def test_one_long_file_does_not_blur_the_seconds() -> None:
    held = Histogram()
    held.add(np.array([*np.linspace(1, 10, 1000), 3 * 3600.0]))
    assert held.width <= 0.5
    edges, _ = held.bars(48, beyond=0.005)
    assert edges[-1] < 11


def test_a_picture_has_its_bars_and_median_inside() -> None:
    held = Histogram()
    held.add(np.array([1.0, 2.0, 2.1, 3.0, math.nan]))
    chart = histogram_chart("wer", held, "audio")
    assert "1 without" in chart.note and "4 values" in chart.note
    assert all(bar.x >= 0 and bar.x + bar.width <= WIDTH for bar in chart.bars)
    assert 0 <= chart.median.x <= WIDTH


# --- stats ------------------------------------------------------------------------------------------------------


def test_a_survey_counts_what_reading_every_sample_counts(plain: Path) -> None:
    corpus = Corpus.open(plain)
    utterances = []
    for shard in corpus.shards("train"):
        with ShardReader(shard) as reader:
            utterances += [reader.read(sample) for sample in range(len(reader))]
    told, read = survey(corpus, "train"), read_samples(corpus, "train", None)
    assert told.samples == read.read == len(utterances)
    assert told.spoken == sum(utterance.spoken for utterance in utterances)
    assert told.documents == 16
    assert told.characters == sum(len(utterance.text) for utterance in utterances)
    assert told.seconds == pytest.approx(sum(utterance.duration for utterance in utterances))
    assert told.frames["semantic"] == sum(u.codes["semantic"].shape[1] for u in utterances if u.spoken)
    assert told.labels["speaker"].samples["nobody"] == told.spoken
    assert told.labels["speaker"].seconds["nobody"] == pytest.approx(told.seconds)
    assert told.shard_bytes.total == sum(shard.stat().st_size for shard in corpus.shards("train"))
    speeds = [len(u.text) / u.duration for u in utterances if u.spoken]
    assert told.histograms["characters_per_second"].mean == pytest.approx(np.mean(speeds))
    assert read.text_tokens == sum(len(corpus.vocabulary.encode_text(u.text)) for u in utterances)
    codes = np.concatenate([u.codes["semantic"][0] for u in utterances if u.spoken])
    p = np.bincount(codes) / len(codes)
    assert read.usage["semantic"].perplexity == pytest.approx([np.exp(-(p[p > 0] * np.log(p[p > 0])).sum())])
    assert read.usage["semantic"].used == len(np.unique(codes)) / 64


def test_samples_are_spread_evenly_and_each_is_read_once(plain: Path) -> None:
    corpus = Corpus.open(plain)
    total = survey(corpus, "train").samples
    for most in (1, 3, 7, total, total + 5):
        places = [(shard, ordinal) for shard, ordinals in spread_samples(corpus, "train", most) for ordinal in ordinals]
        assert len(set(places)) == len(places) == min(most, total)
    assert len({shard for shard, _ in spread_samples(corpus, "train", 4)}) == 2


def test_rows_columns_features_and_licences_are_told(rich_corpus: Path) -> None:
    corpus = Corpus.open(rich_corpus)
    found = gather(corpus)
    told, read = found["train"].survey, found["train"].readings
    assert told.with_audio == 12
    assert told.histograms["column/wer"].unknown == 2 and told.histograms["column/wer"].mean == pytest.approx(0.25)
    assert read.usage["residual"].counts.shape == (3, 16)
    assert read.usage["residual"].used <= 0.5 and len(read.usage["residual"].perplexity) == 3
    assert read.licences.samples == {"CC0-1.0": 10, "CC-BY-4.0": 2}
    assert read.feature_widths == {"encoder": 4}
    shown = console()
    print_tables(corpus, found, shown)
    for word in ("residual 2", "speaker 1", "CC-BY-4.0", "dnsmos", "2 without"):
        assert word in said(shown)
    described = json.loads(json.dumps(as_json(corpus, found), allow_nan=False))
    assert described["splits"]["train"]["hours"] == pytest.approx(told.seconds / 3600)
    assert described["splits"]["valid"]["spoken"] == 0


def test_damaged_shards_are_told_and_the_rest_is_counted(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "corpus")
    shards = Corpus.open(folder).shards("train")
    lost = read_index(shards[0])
    index_path(shards[0]).write_bytes(b"PK")
    faults.spoil_codes(shards[1])
    corpus = Corpus.open(folder)
    told, read = survey(corpus, "train"), read_samples(corpus, "train", None)
    assert told.unreadable == ["train/shard-000000.tar"]
    assert told.samples == survey(Corpus.open(plain), "train").samples - len(lost)
    assert read.damaged == {"index": len(lost), "codes": 1}


def test_entropy_counts_every_row_and_leaves_wrong_codes_out(rich_corpus: Path, plain: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(rich_corpus)
    counts = count_codes(corpus, "train")["residual"]
    assert len(counts) == 48 and counts.sum() == 3 * survey(corpus, "train").frames["residual"]
    p = counts[counts > 0] / counts.sum()
    assert unigram_entropy(corpus, "train")["audio"] == pytest.approx(float(-(p * np.log(p)).sum()))
    folder = shutil.copytree(plain, tmp_path / "corpus")
    before = count_codes(Corpus.open(folder), "train")["semantic"].sum()
    faults.spoil_codes(Corpus.open(folder).shards("train")[0])
    assert 0 < count_codes(Corpus.open(folder), "train")["semantic"].sum() < before


# --- inspect ----------------------------------------------------------------------------------------------------


def test_a_sample_is_found_by_number_and_by_key(plain: Path) -> None:
    corpus = Corpus.open(plain)
    first = len(read_index(corpus.shards("train")[0]))
    by_number = find(corpus, "train", str(first + 1))
    assert by_number.shard == corpus.shards("train")[1] and by_number.ordinal == 1
    by_key = find(corpus, "train", by_number.utterance.key)
    assert (by_key.shard, by_key.ordinal) == (by_number.shard, 1)
    assert [utterance.key for utterance in by_key.document].count(by_key.utterance.key) == 1
    assert {utterance.document for utterance in by_key.document} == {by_key.utterance.document}


@pytest.mark.parametrize(
    ("wanted", "line"), [("99999", "numbered from 0; there is no 99999"), ("no", "no sample 'no'")]
)
def test_a_sample_that_is_not_there_is_one_line(plain: Path, wanted: str, line: str) -> None:
    with pytest.raises(BadInput, match=line):
        find(Corpus.open(plain), "train", wanted)


def test_a_damaged_sample_is_one_line(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "corpus")
    faults.spoil_text(Corpus.open(folder).shards("train")[0])
    with pytest.raises(BadInput, match=r"the sample is damaged: .*sample 0: json"):
        find(Corpus.open(folder), "train", "0")


def test_what_the_loss_covers_stands_on_the_tokens(plain: Path) -> None:
    corpus = Corpus.open(plain)
    found = find(corpus, "train", "0")
    (sample, *_) = lay(find_layout("asr", {"audio_weight": 0.5}), found.document, corpus.vocabulary)
    laid = find_layout("asr", {"audio_weight": 0.5})(found.document, corpus.vocabulary, np.random.default_rng(0))[0]
    assert [run.weight for run in sample.runs] == [None, 0.5, 1.0]
    assert "".join(token.name for token in sample.runs[2].tokens) == found.document[0].text + "<|endoftext|>"
    assert sample.tokens[0].name == "<|audio_start|>" and sample.tokens[1].name.startswith("l")
    assert [token.weight or 0.0 for token in sample.tokens][1:] == laid.loss_weight[1:].tolist()
    assert sample.total == pytest.approx(float(laid.loss_weight[1:].sum()))
    shown = console()
    print_sample(found, corpus, [sample], shown)
    assert re.search(r"x 0\.5 +l\d+ l\d+ s\d+ s\d+ s\d+", said(shown)) and "x 1" in said(shown)
    assert found.utterance.text in said(shown) and "codes: l linguistic  s semantic" in said(shown)


def test_rows_of_a_residual_codebook_and_slots_of_features_have_names(rich_corpus: Path) -> None:
    corpus = Corpus.open(rich_corpus)
    document = find(corpus, "train", "2").document
    (sample,) = lay(find_layout("continuation", {}), document, corpus.vocabulary)
    assert [token.name.split(":")[0] for token in sample.tokens[1:7]] == ["r0", "r1", "r2", "r0", "r1", "r2"]


def test_a_spectrogram_is_as_wide_as_the_terminal_and_a_tone_is_one_line(rich_corpus: Path) -> None:
    found = find(Corpus.open(rich_corpus), "train", "0")
    rows = spectrogram_text(found, console(60)).plain.split("\n")
    assert len(rows) == 20 and {len(row) for row in rows} == {59}
    assert sum(row[30] == "█" for row in rows) in (1, 2, 3)


# --- verify -----------------------------------------------------------------------------------------------------


def test_whole_corpora_have_no_problems(plain: Path, rich_corpus: Path) -> None:
    assert verify(plain, workers=1) == []
    assert verify(rich_corpus, workers=1) == []
    assert verify(rich_corpus, quick=True, workers=1) == []


FAULTS = {
    faults.truncate: {"size", "hash", "truncated", "tar"},
    faults.flip: {"hash", "checksum"},
    faults.garble_index: {"index"},
    faults.remove: {"missing"},
    faults.spoil_features: {"hash", "features", "size"},
    faults.spoil_text: {"hash", "json"},
    faults.spoil_codes: {"hash", "codes"},
    faults.climb: {"hash", "members", "names"},
    faults.root: {"hash", "members", "names"},
    faults.link: {"hash", "members", "names", "tar"},
}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, set[str]]]:
    """A corpus with each fault in a shard of its own, two whole ones, and the problems to find by shard."""
    count = len(FAULTS) + 2
    folder = make_corpus(tmp_path_factory.mktemp("v") / "c", train_documents=2 * count, documents_per_shard=2)
    wanted = {}
    for shard, (fault, kinds) in zip(Corpus.open(folder).shards("train"), FAULTS.items(), strict=False):
        fault(shard)
        wanted[shard.relative_to(folder).as_posix()] = kinds
    return folder, wanted


@pytest.mark.parametrize("workers", [1, 2])
def test_every_fault_is_found_in_its_shard_and_in_no_other(
    spoilt: tuple[Path, dict[str, set[str]]], workers: int
) -> None:
    folder, wanted = spoilt
    found: dict[str, set[str]] = {}
    for problem in verify(folder, workers=workers):
        found.setdefault(problem.where.split(" ")[0], set()).add(problem.kind)
    assert found.keys() == wanted.keys()
    for (file, kinds), fault in zip(wanted.items(), FAULTS, strict=True):
        assert kinds - {"tar", "size"} <= found[file] <= kinds | {"tar"}, (fault.__name__, found[file])


def test_quick_reads_no_sample(spoilt: tuple[Path, dict[str, set[str]]]) -> None:
    folder, _ = spoilt
    assert {problem.kind for problem in verify(folder, quick=True, workers=1)} == {"size", "hash", "index", "missing"}


@pytest.mark.parametrize(
    ("change", "kind", "what"),
    [
        ({"duration": 9.0}, "frames", "at 16.67 a second are 150.0"),
        ({"words": (Word("late", 7.0, 7.2),)}, "words", "'late' is spoken from 7.00 to 7.20"),
        ({"words": (Word("b", 0.5, 0.6), Word("a", 0.1, 0.2))}, "words", "behind one at 0.50"),
        ({"codes": {"linguistic": np.zeros((1, 17), int)}}, "codes", "1 rows of semantic are wanted, there are none"),
        ({"codes": {"semantic": np.zeros((2, 25), int), "linguistic": np.zeros((1, 17), int)}}, "codes", "there are 2"),
        ({"codes": {"mimi": np.zeros((1, 5), int)}}, "codes", "the vocabulary has no codebook mimi"),
        ({"text": " ", "codes": {}, "words": (), "duration": 0.0}, "empty", "neither text nor codes"),
    ],
)
def test_samples_that_make_no_sense_are_named(tmp_path: Path, change: dict, kind: str, what: str) -> None:
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "train" / "s.tar") as writer:
        writer.write(make_utterance(rng, "good", "d"))
        fine = make_utterance(rng, "odd", "d")
        writer.write(Utterance(**{**vars(fine), **change}))
    write_manifest(tmp_path, name="odd", vocabulary=make_vocabulary(), codecs={})
    problems = verify(tmp_path, workers=1)
    assert any(p.kind == kind and what in p.what and p.where == "train/s.tar sample 1 (odd)" for p in problems), (
        problems
    )


def test_ids_that_are_not_the_texts_are_named(tmp_path: Path) -> None:
    said = make_utterance(np.random.default_rng(0), "odd", "d")
    mistaken = make_vocabulary()
    mistaken.know({said.text: (1, 2)})
    with ShardWriter(tmp_path / "train" / "s.tar", mistaken) as writer:
        writer.write(said)
    write_manifest(tmp_path, name="odd", vocabulary=make_vocabulary(), codecs={})
    (problem,) = verify(tmp_path, workers=1)
    assert problem.kind == "ids" and problem.where == "train/s.tar sample 0 (odd)"


def test_sound_that_is_none_or_of_another_length_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "train" / "s.tar") as writer:
        for key, audio in (("noise", b"fLaC and nothing"), ("short", sounding(0.2))):
            writer.write(make_utterance(rng, key, "d"), audio=audio)
    write_manifest(tmp_path, name="odd", vocabulary=make_vocabulary(), codecs={})
    problems = verify(tmp_path, workers=1)
    assert [problem.kind for problem in problems] == ["audio", "audio"]
    assert "cannot be decoded" in problems[0].what and "lasts 0.200 s" in problems[1].what


def test_an_index_that_tells_otherwise_is_named(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "corpus")
    shard = Corpus.open(folder).shards("train")[0]
    with np.load(index_path(shard), allow_pickle=False) as stored:
        arrays = dict(stored)
    arrays["frames.semantic"][0] += 1
    arrays["label.speaker"][1] = "some"
    np.savez(index_path(shard), allow_pickle=False, **arrays)
    add_columns(shard, {"wer": np.zeros(len(arrays["offset"]))})  # may come later, and is no problem
    told = [(problem.kind, problem.what) for problem in verify(folder, workers=1)]
    assert ("index", "the index tells speaker 'some', the sample 'nobody'") in told
    assert [kind for kind, _ in told] == ["counts", "index", "index"]


def test_manifest_vocabulary_and_stray_shards(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "corpus")
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["totals"]["train"]["samples"] += 1
    manifest["codecs"] = {"other": {}}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    shutil.copy(folder / "train" / "shard-000000.tar", folder / "train" / "shard-000009.tar")
    problems = verify(folder, workers=1)
    assert [problem.kind for problem in problems] == ["manifest", "manifest", "stray"]
    assert "content_hash" in problems[0].what and "totals.train.samples" in problems[1].what


# --- pages ------------------------------------------------------------------------------------------------------


def assert_stands_alone(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed")
        for name in ("src", "href", "srcset", "poster", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\(", page.html)


def test_the_corpus_report_shows_all_of_it(rich_corpus: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(rich_corpus, tmp_path / "corpus")
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["left_out"] = {"too long": {"count": 2, "examples": ["<b>three-hours.wav</b>"]}, "odd": 7}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    faults.spoil_text(Corpus.open(folder).shards("train")[0])
    corpus = Corpus.open(folder)
    funnel = measure_funnel(corpus.shards("train"), parse_filter("dnsmos >= 3.15 and wer < 0.3"))
    write_corpus_report(tmp_path / "report.html", corpus, gather(corpus), [funnel])
    page = Page(tmp_path / "report.html")
    assert_stands_alone(page)
    sections = {"summary", "splits", "samples", "distributions", "quality", "funnel", "codebooks", "labels", "data"}
    assert page.ids >= sections
    for words in (
        "duration, s",
        "dnsmos",
        "residual 2",
        "speaker 1",
        "too long 2 <b>three-hours.wav</b>",
        "json train 1",
    ):
        assert words in page.text
    assert "</script>" not in json.dumps(page.data("strip-data"))
    hours = survey(corpus, "train").seconds / 3600
    assert [stage.utterances for stage in stages_of(funnel)] == [12, 8, 8]  # of each shard 3.2 to 3.5
    assert stages_of(funnel)[0].hours == pytest.approx(hours) and 0 < stages_of(funnel)[1].length < 100
    assert "dnsmos >= 3.15" in page.text and "dropped 4; alone it would drop 4" in page.text
    assert "Words only." in page.text  # of the valid split, which has no speech


def test_a_sample_page_plays_and_shows_weights(rich_corpus: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(rich_corpus)
    found = find(corpus, "train", "u1-3")
    laid = lay(find_layout("tts", {"text_weight": 0.25}), [found.utterance], corpus.vocabulary)
    write_sample_page(tmp_path / "sample.html", found, corpus, "tts", laid)
    page = Page(tmp_path / "sample.html")
    assert_stands_alone(page)
    assert len(page.all("audio")) == 1 and len(page.all("img", "spectrogram")) == 1
    tokens = page.all("span", "token")
    assert len(tokens) == len(laid[0].tokens)
    assert tokens[0]["title"] == "text, not predicted"
    assert {token["title"] for token in tokens} >= {"text, weight 0.25", "residual, weight 1"}
    assert "encoder features 5 × 4" in page.text and "channel 1" in page.text and "dnsmos 3.3" in page.text


# --- the command ------------------------------------------------------------------------------------------------


def megaphone(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from launch.cli import main; sys.exit(main())", "data", *words]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_the_commands(rich_corpus: Path, tmp_path: Path) -> None:
    corpus = str(rich_corpus)
    files = {name: str(tmp_path / name) for name in ("s.html", "s.png", "stats.json", "report.html")}
    words = ("inspect", corpus, "--sample", "u0-1", "--layout", "asr")
    ended = megaphone(*words, "--html", files["s.html"], "--spectrogram", files["s.png"], folder=tmp_path)
    assert ended.returncode == DONE and "u0-1" in ended.stdout and "<|transcribe|>" in ended.stdout
    assert Path(files["s.png"]).read_bytes().startswith(b"\x89PNG")
    assert megaphone("stats", corpus, "--json", files["stats.json"], folder=tmp_path).returncode == DONE
    assert json.loads(Path(files["stats.json"]).read_text())["splits"]["train"]["samples"] == 12
    assert megaphone("report", corpus, "--html", files["report.html"], folder=tmp_path).returncode == DONE
    assert Page(Path(files["report.html"])).ids >= {"summary", "codebooks"}


def test_verify_ends_with_exit_code_2_and_one_line(spoilt: tuple[Path, dict[str, set[str]]], tmp_path: Path) -> None:
    ended = megaphone("verify", "--quick", "--workers", "1", str(spoilt[0]), folder=tmp_path)
    assert ended.returncode == BAD_INPUT
    (line,) = [line for line in ended.stderr.splitlines() if "error" in line]
    assert re.search(r"has \d+ problems: .*\d+ hash", line)
    assert "train/shard-000000.tar: its bytes are not those" in ended.stdout


def test_a_flac_of_the_test_lasts_what_it_says() -> None:
    wave, rate = soundfile.read(io.BytesIO(sounding(1.25)))
    assert len(wave) / rate == 1.25


def test_a_corpus_of_text_alone_is_shown_and_verified(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    with ShardWriter(folder / "train" / "s.tar") as writer:
        writer.write(Utterance(key="a", text="In the beginning", document="a"))
    whole = make_vocabulary()
    vocabulary = Vocabulary(whole.text_size, whole.specials, (), whole.tokenizer_json)
    corpus = write_manifest(folder, name="text", vocabulary=vocabulary, codecs={})
    assert verify(folder, workers=1) == []
    write_corpus_report(tmp_path / "report.html", corpus, gather(corpus))
    page = Page(tmp_path / "report.html")
    assert "No codes were read" in page.text and "In the beginning" in page.text
    assert unigram_entropy(corpus, "train") == {"audio": 0.0}
    (sample,) = lay(find_layout("text", {}), find(corpus, "train", "a").document, vocabulary)
    assert sample.counts == {"text": len(vocabulary.encode_text("In the beginning")), "special": 1}


def test_an_empty_corpus_has_a_report(tmp_path: Path) -> None:
    corpus = write_manifest(tmp_path, name="empty", vocabulary=make_vocabulary(), codecs={})
    assert verify(tmp_path, workers=1) == []
    write_corpus_report(tmp_path / "report.html", corpus, gather(corpus))
    assert "Nothing was measured of this corpus" in Page(tmp_path / "report.html").text


def test_a_stop_request_ends_every_long_look(plain: Path) -> None:
    stop = StopFlag()
    stop.name = "SIGTERM"
    corpus = Corpus.open(plain)
    for look in (lambda: verify(plain, workers=1, stop=stop), lambda: gather(corpus, stop=stop)):
        with pytest.raises(StoppedEarly, match="stopped while"):
            look()


def test_a_file_in_no_folder_is_one_line(plain: Path, tmp_path: Path) -> None:
    ended = megaphone("stats", str(plain), "--json", str(tmp_path / "no" / "s.json"), folder=tmp_path)
    assert ended.returncode == BAD_INPUT and "there is no folder" in ended.stderr and "Traceback" not in ended.stderr
