"""What goes into which shard of recorded speech, on disk as in memory; how utterances are cut; what is left out."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import CorpusConfig
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.building.cutting import cut_long
from data_pipeline.building.left_out import LeftOut
from data_pipeline.building.plan_file import INDEX_FILE, PLAN_FILE, Plan, is_planned, write_plan
from data_pipeline.building.recorded import WINDOW, windows
from data_pipeline.plan import LARGEST, PlannedShard, plan_recordings, plan_shards, seconds_of, split_of
from data_pipeline.sources import Document
from data_pipeline.sources.recording import Recording, Segment
from data_pipeline.sources.speech.lhotse_cuts import LhotseCut
from data_pipeline.sources.speech.places import FilePart, FileStretch, Nowhere
from data_pipeline.utterance import Utterance, Word
from runtime.exits import BadInput

CORPUS = CorpusConfig(name="c", shard_minutes=1.0, validation_share=0.3)


@st.composite
def recordings(draw: st.DrawFn) -> list[Recording]:
    """Recordings of up to five minutes, in documents of one to a dozen."""
    found = []
    for document in range(draw(st.integers(1, 12))):
        named = draw(st.booleans())
        for part in range(draw(st.integers(1, 12)) if named else 1):
            duration = draw(st.one_of(st.none(), st.floats(0.1, 300)))
            key = f"d{document}-{part}"
            found.append(Recording(key, FileStretch(key), duration=duration, document=f"d{document}" if named else ""))
    return found


@given(recordings())
def test_every_recording_is_planned_once_in_order_and_documents_stay_together(given_: list[Recording]) -> None:
    shards = list(plan_recordings(CORPUS, iter(given_)))
    assert [shard.file for shard in sorted(shards, key=lambda s: s.file)] == sorted({shard.file for shard in shards})
    planned = {split: [r.key for s in shards if s.split == split for r in s.recordings] for split in ("train", "valid")}
    for split, keys in planned.items():
        assert keys == [r.key for r in given_ if split_of(r.document or r.key, CORPUS) == split]
    for shard in shards:
        assert shard.file.startswith(f"{shard.split}/speech-") and shard.recordings
        documents = [r.document for r in shard.recordings]
        assert sum(a != b for a, b in pairwise(documents)) + 1 == len(set(documents))
        before_last = sum(map(seconds_of, shard.recordings[:-1]))
        assert before_last < LARGEST * 60
        if len(set(documents)) > 1 and documents[-1] != documents[-2]:
            assert before_last < 60
    everywhere = [d for shard in shards for d in {r.document for r in shard.recordings}]
    assert len(everywhere) == len(set(everywhere))  # a document that goes on in another shard has another name there


def test_recordings_that_come_or_go_move_no_other_to_another_split() -> None:
    corpus = CorpusConfig(name="c", validation_share=0.25)
    splits = [split_of(f"key-{number}", corpus) for number in range(4000)]
    assert abs(splits.count("valid") / 4000 - 0.25) < 0.03
    assert split_of("key-7", corpus) == splits[7]
    assert [split_of(f"key-{n}", CorpusConfig(name="c", validation_share=0.25, seed=2)) for n in range(4000)] != splits


PLACES = [
    FileStretch("/data/a b.flac", 1.5, None),
    FileStretch("ünï\udcff.wav"),
    FilePart("/data/x.tar", 512, 99, "../member.wav"),
    Nowhere("x", "outside"),
    LhotseCut("cut-1", '{"id": "cut-1"}'),
]


def test_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    words = (Word("so", 0.1, 0.4), Word("ist\u2019s", 0.5, 0.75))
    segment = Segment(1.25, 3.5, "so ist\u2019s", "eva", "de", 1, "human", words, (("snr", 31.5),))
    spoken = [Recording(f"r{n}", place, (segment, Segment()), 9.0, "book") for n, place in enumerate(PLACES)]
    shards = [
        PlannedShard("train", "train/speech-000000.tar", True, recordings=tuple(spoken)),
        PlannedShard("valid", "valid/text-000000.tar", False, (Document("d", ("one\n", "two \u2028")),)),
    ]
    plan = write_plan(tmp_path, iter(shards))
    assert is_planned(tmp_path) and [plan.read(number) for number in range(2)] == shards
    assert [(e.number, e.file, e.split, e.spoken, e.pieces) for e in plan.entries] == [
        (0, shards[0].file, "train", True, 10),
        (1, shards[1].file, "valid", False, 2),
    ]
    again = write_plan(tmp_path, iter(shards))
    assert again.entries == plan.entries
    assert sorted(path.name for path in tmp_path.iterdir()) == [INDEX_FILE, PLAN_FILE]


def test_same_plan_same_bytes(tmp_path: Path) -> None:
    documents = [Document(f"d{n}", tuple(f"piece {n} {m}" for m in range(5))) for n in range(40)]
    corpus = CorpusConfig(name="c", speech_minutes=0.5, shard_minutes=0.1, text_characters=300)
    written = []
    for name in "ab":
        (tmp_path / name).mkdir()
        write_plan(tmp_path / name, plan_shards(corpus, documents))
        written.append([(tmp_path / name / file).read_bytes() for file in (PLAN_FILE, INDEX_FILE)])
    assert written[0] == written[1]


def test_nothing_to_plan_and_damaged_plans_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nothing to build"):
        write_plan(tmp_path, [])
    assert not list(tmp_path.iterdir())
    with pytest.raises(BadInput, match="no build of this corpus has begun"):
        Plan.open(tmp_path)
    shard = PlannedShard("train", "train/a.tar", False, (Document("d", ("one",)),))
    write_plan(tmp_path, [shard])
    line = (tmp_path / PLAN_FILE).read_bytes()
    (tmp_path / PLAN_FILE).write_bytes(line.replace(b"documents", b"d\x00cuments"))
    with pytest.raises(BadInput, match=r"plan\.jsonl line 1 is damaged"):
        Plan.open(tmp_path).read(0)
    (tmp_path / INDEX_FILE).write_bytes(b"PK" + bytes(40))
    with pytest.raises(BadInput, match="is damaged"):
        Plan.open(tmp_path)


def test_plan_names_no_class_but_places_of_sound(tmp_path: Path) -> None:
    shard = PlannedShard("train", "train/a.tar", True, recordings=(Recording("r", FileStretch("f")),))
    write_plan(tmp_path, [shard])
    line = (tmp_path / PLAN_FILE).read_bytes()
    (tmp_path / PLAN_FILE).write_bytes(line.replace(b'"places","FileStretch"', b'"places","os","    "  '))
    with pytest.raises(BadInput, match="is damaged"):
        Plan.open(tmp_path).read(0)
    with pytest.raises(TypeError, match="dataclass of a module of"):
        write_plan(tmp_path, [PlannedShard("train", "train/a.tar", True, recordings=(Recording("r", Path("/x")),))])


# --- cutting ----------------------------------------------------------------------------------------------------


def utterance_of(words: list[Word]) -> Utterance:
    return Utterance(key="u", text=" ".join(word.text for word in words), document="d", words=tuple(words))


@st.composite
def timed_words(draw: st.DrawFn) -> tuple[list[Word], float]:
    at, words = draw(st.floats(0, 9)), []
    for number in range(draw(st.integers(1, 30))):
        length = draw(st.floats(0.05, 0.9))
        words.append(Word(f"w{number}", round(at, 3), round(at + length, 3)))
        at += length + draw(st.floats(0, 3))
    return words, at + draw(st.floats(0, 9))


@given(timed_words(), st.floats(1.0, 8.0))
def test_parts_are_short_enough_and_hold_every_word_once_within_them(
    said: tuple[list[Word], float], longest: float
) -> None:
    words, duration = said
    wave = np.zeros(round(duration * SAMPLE_RATE), np.float32)
    cuts = cut_long(wave, utterance_of(words), longest)
    assert cuts[0].start == 0 and cuts[-1].end == pytest.approx(len(wave) / SAMPLE_RATE)
    assert all(a.end == b.start for a, b in pairwise(cuts))
    assert all(cut.end - cut.start <= longest + 1e-6 for cut in cuts)
    held = [(word.text, word.start + cut.start, word.end + cut.start) for cut in cuts for word in cut.words]
    assert [text for text, _, _ in held] == [word.text for word in words]
    assert np.allclose([times[1:] for times in held], [(word.start, word.end) for word in words], atol=2e-4)
    for cut in cuts:
        assert cut.text == " ".join(word.text for word in cut.words)
        assert all(word.start >= -1e-6 and word.end <= cut.end - cut.start + 1e-3 for word in cut.words)


def test_cut_is_in_the_longest_late_pause() -> None:
    times = [(0.0, 1.0), (3.0, 4.0), (4.1, 6.0), (7.5, 8.0), (8.2, 9.0), (9.1, 12.0)]
    words = [Word(f"w{n}", start, end) for n, (start, end) in enumerate(times)]
    cuts = cut_long(np.zeros(12 * SAMPLE_RATE, np.float32), utterance_of(words), 10.0)
    assert [(cut.start, cut.end, cut.text) for cut in cuts] == [(0, 6.75, "w0 w1 w2"), (6.75, 12, "w3 w4 w5")]


def test_without_words_the_quietest_place_is_cut_and_no_text_is_claimed() -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 25 * SAMPLE_RATE).astype(np.float32)
    for second in (3, 8, 15):
        wave[second * SAMPLE_RATE : second * SAMPLE_RATE + 800] = 0  # 50 ms
    cuts = cut_long(wave, Utterance(key="u", text="what was said", document="d"), 10.0)
    assert [round(cut.end) for cut in cuts] == [8, 15, 25] and {cut.text for cut in cuts} == {""}


@given(st.lists(st.tuples(st.floats(0, 5000), st.floats(0.1, 900)), min_size=1, max_size=30), st.booleans())
def test_windows_hold_every_segment_once_and_stay_short(spans: list[tuple[float, float]], open_end: bool) -> None:
    segments = [Segment(start, start + length) for start, length in spans]
    if open_end:
        segments.append(Segment(100.0, None))
    found = list(windows(segments))
    in_order = sorted(segments, key=lambda s: (s.start, s.channel))
    assert [segment for window in found for segment in window] == in_order
    for window in found:
        if len(window) > 1:  # a longer one is alone, or has others inside it
            longest = max(s.end - s.start for s in window if s.end is not None)
            assert max(s.end or 1e9 for s in window) - window[0].start <= max(WINDOW, longest)


# --- left out ---------------------------------------------------------------------------------------------------


def test_left_out_adds_up_and_names_a_few() -> None:
    first, second = LeftOut(), LeftOut()
    for number in range(9):
        first.add("decode", f"a{number}")
    second.add("no_text", "b", 3)
    second.add("decode", "c")
    first.merge(second.describe())
    assert first.describe() == {
        "decode": {"count": 10, "examples": ["a0", "a1", "a2", "a3", "a4"]},
        "no_text": {"count": 3, "examples": ["b"]},
    }
    assert first.line() == "10 decode (such as a0), 3 no_text (such as b)"
    assert first.damaged == 10


def test_only_damage_stops_a_build_and_only_from_a_hundred_on() -> None:
    left_out = LeftOut()
    left_out.add("alignment", "a", 10_000)
    left_out.judge(100, 0.0)
    left_out.add("truncated", "b.flac", 3)
    left_out.judge(96, 0.01)
    left_out.judge(300, 0.01)
    with pytest.raises(
        BadInput, match=r"^3 of 299 utterances could not be read, more than corpus.damaged_share 0.01: "
    ):
        left_out.judge(296, 0.01)
