"""Corpora that lhotse and Hugging Face `datasets` wrote come back without loss: samples, texts, speakers, times."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from lhotse import CutSet, MonoCut, MultiCut, SupervisionSegment
from lhotse import Recording as LhotseRecording
from lhotse.supervision import AlignmentItem

from data_pipeline.sources.recording import MIXED, Recording, Segment, SpeechSource, UnreadableAudio
from data_pipeline.sources.speech.huggingface import Cell
from data_pipeline.utterance import Word
from runtime.exits import BadInput
from tests.data_pipeline.sounds import speechlike, write_sound
from tests.data_pipeline.test_sources_layouts import lines, read, source

# --- lhotse ---------------------------------------------------------------------------------------------------------


def lhotse_corpus(folder: Path) -> CutSet:
    """Seven cuts: whole files and stretches, one channel, two, and one of two; names that are no file names."""
    cuts = []
    for number in range(7):
        channels = 1 + number % 2
        file = write_sound(folder / f"audio/r{number}.flac", speechlike(2.0, channels=channels, seed=number))
        recording = LhotseRecording.from_file(file)
        words = [AlignmentItem("guten", 0.3, 0.25, 0.9), AlignmentItem("Tag", 0.6, 0.5)]
        said = SupervisionSegment(
            id=f"s{number}",
            recording_id=recording.id,
            start=0.25,
            duration=1.0 + 0.1 * number,
            channel=recording.channel_ids if channels == 2 and number != 3 else recording.channel_ids[-1],
            text=f"guten Tag {number} äöü",
            speaker=f"speaker {number % 3}",
            language="de",
            custom={"snr": 12.5, "note": "kept by nobody"},
            alignment={"word": words},
        )
        cut = recording.to_cut()
        if number == 3:
            cut = MonoCut(id="../outside/3", start=0, duration=2.0, channel=1, recording=recording)
        cut.supervisions = [said]
        if number == 4:
            cut = cut.truncate(offset=0.1003, duration=1.8)
        cuts.append(cut)
    return CutSet.from_cuts(cuts)


def expected_segments(cut: MonoCut | MultiCut, in_file: bool) -> Iterator[Segment]:
    for said in cut.supervisions:
        held = said.channel if isinstance(said.channel, list) else [said.channel]
        channel = MIXED if len(held) > 1 else held[0] if in_file or isinstance(cut, MultiCut) else 0
        words = tuple(
            Word(word.symbol, pytest.approx(word.start - said.start), pytest.approx(word.end - said.start))
            for word in said.alignment["word"]
        )
        times = pytest.approx(said.start), pytest.approx(min(said.end, cut.duration))
        yield Segment(*times, said.text, said.speaker, said.language, channel, words=words, quality=(("snr", 12.5),))


def assert_same(opened, cuts: CutSet, in_file: bool) -> None:
    found = list(opened.recordings())
    assert len(found) == len(cuts)
    for recording, cut in zip(found, cuts, strict=True):
        samples = opened.sound(recording).samples
        wanted = cut.load_audio()
        if in_file and samples.shape != wanted.shape:  # all channels of the file are there: the cut's is one of them
            samples = samples[[cut.channel]]
        assert np.array_equal(samples, wanted)
        assert recording.duration == cut.duration
        assert list(recording.segments) == list(expected_segments(cut, in_file))
        assert pickle.loads(pickle.dumps(recording)) == recording


@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_shar_comes_back_without_loss(tmp_path: Path, kind: str) -> None:
    cuts = lhotse_corpus(tmp_path)
    (tmp_path / "shar").mkdir()
    cuts.to_shar(tmp_path / "shar", fields={"recording": kind}, shard_size=3)
    assert_same(source("lhotse_shar", tmp_path / "shar"), CutSet.from_shar(in_dir=tmp_path / "shar"), in_file=False)
    shutil.rmtree(tmp_path / "audio")  # nothing but the shards is read
    opened = source("lhotse_shar", tmp_path / "shar")
    third = list(opened.recordings())[3]
    wave = np.frombuffer(speechlike(2.0, channels=2, seed=3)[:, 1].tobytes(), np.float32)
    assert np.array_equal(opened.sound(third).channel(third.segments[0].channel), wave)
    assert np.array_equal(opened.sound(third, 0.5, 0.75).samples[0], wave[8_000:12_000])


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_cuts_come_back_without_loss(tmp_path: Path, name: str) -> None:
    cuts = lhotse_corpus(tmp_path)
    cuts.to_file(tmp_path / name)
    assert_same(source("lhotse_cuts", tmp_path / name), cuts, in_file=True)


def test_what_cuts_ask_for_beyond_a_stretch_lhotse_does(tmp_path: Path) -> None:
    cuts = list(lhotse_corpus(tmp_path))[::2]  # of one channel
    faster = cuts[0].perturb_speed(1.1)
    mixed = cuts[1].mix(cuts[3], offset_other_by=0.5, snr=10)
    padded = cuts[2].pad(duration=3.0)
    CutSet.from_cuts([faster, mixed, padded]).to_file(tmp_path / "cuts.jsonl")
    opened = source("lhotse_cuts", tmp_path / "cuts.jsonl")
    for recording, cut in zip(opened.recordings(), (faster, mixed, padded), strict=True):
        samples = opened.sound(recording).samples
        assert np.allclose(samples, cut.load_audio(), atol=1e-6)
        assert np.allclose(opened.sound(recording, 0.5, 1.0).samples, samples[:, 8_000:16_000])


def test_commands_in_cuts_are_not_run(tmp_path: Path) -> None:
    cut = next(iter(lhotse_corpus(tmp_path))).to_dict()
    cut["recording"]["sources"][0].update(type="command", source=f"touch {tmp_path}/ran; cat {tmp_path}/audio/r0.flac")
    with pytest.raises(BadInput, match="commands are not run"):
        read("lhotse_cuts", lines(tmp_path / "cuts.jsonl", json.dumps(cut)))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(BadInput, match="line 1 is no cut"):
        read("lhotse_cuts", lines(tmp_path / "cuts.jsonl", '{"id": 1}'))


def kind_of(opened: SpeechSource, recording: Recording) -> str:
    try:
        opened.sound(recording)
    except UnreadableAudio as error:
        return error.kind
    return "sound"


def test_damaged_shar(tmp_path: Path) -> None:
    shar = tmp_path / "shar"
    shar.mkdir()
    lhotse_corpus(tmp_path).to_shar(shar, fields={"recording": "flac"}, shard_size=3)
    opened = source("lhotse_shar", shar)
    recordings = list(opened.recordings())
    tar = shar / "recording.000001.tar"
    content = tar.read_bytes()
    for lost, kinds in (
        (lambda: tar.write_bytes(content[: len(content) // 4]), {"truncated"}),
        (lambda: tar.write_bytes(b"x" * 5000), {"decode"}),
        (tar.unlink, {"missing"}),
    ):
        lost()
        again = list(opened.recordings())
        assert [recording.key for recording in again] == [recording.key for recording in recordings]
        assert {kind_of(opened, recording) for recording in again[4:6]} == kinds
        assert kind_of(opened, again[0]) == kind_of(opened, again[6]) == "sound"
    assert kind_of(opened, recordings[5]) == "missing"
    shutil.copy(shar / "recording.000000.tar", tar)
    with pytest.raises(BadInput, match=r"does not fit cuts.000001"):
        list(opened.recordings())


def test_a_cut_without_sound_is_counted_as_empty(tmp_path: Path) -> None:
    shar = tmp_path / "shar"
    shar.mkdir()
    cuts = list(lhotse_corpus(tmp_path))[:2]
    cuts[1].recording = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CutSet.from_cuts(cuts).to_shar(shar, fields={"recording": "flac"})
    opened = source("lhotse_shar", shar)
    first, second = opened.recordings()
    assert opened.sound(first).duration == 2.0
    assert kind_of(opened, second) == "empty"


def test_members_of_a_tar_are_never_paths(tmp_path: Path) -> None:
    shar = tmp_path / "a/shar"
    shar.mkdir(parents=True)
    cuts = lhotse_corpus(tmp_path)
    before = {file for file in tmp_path.rglob("*") if shar not in file.parents}
    cuts.to_shar(shar, fields={"recording": "flac"}, shard_size=100)
    with tarfile.open(shar / "recording.000000.tar") as tar:
        assert "../outside/3.flac" in tar.getnames()
    opened = source("lhotse_shar", shar)
    keys = [recording.key for recording in opened.recordings()]
    assert all(opened.sound(recording).duration > 1 for recording in opened.recordings())
    assert keys[3].startswith("outside_3-x")
    assert {file for file in tmp_path.rglob("*") if shar not in file.parents} == before


# --- Hugging Face datasets ------------------------------------------------------------------------------------------


def dataset(folder: Path, count: int = 6, start: int = 0) -> datasets.Dataset:
    files = []
    for number in range(start, start + count):
        wave = speechlike(1.0 + 0.1 * number, channels=1 + number % 2, seed=number)
        files.append(str(write_sound(folder / f"wavs/{number}.{('wav', 'flac')[number % 2]}", wave)))
    rows = {
        "id": [f"row/{number}" for number in range(start, start + count)],
        "audio": [{"bytes": None, "path": file} for file in files],
        "sentence": [f"Satz {number} 你好" for number in range(start, start + count)],
        "speaker_id": [number % 3 for number in range(count)],
        "language": [number % 2 for number in range(count)],
    }
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "audio": datasets.Audio(sampling_rate=16_000),
            "sentence": datasets.Value("string"),
            "speaker_id": datasets.Value("int64"),
            "language": datasets.ClassLabel(names=["de", "zh"]),
        }
    )
    return datasets.Dataset.from_dict(rows).cast(features)  # encoding, which is not needed, would want torchcodec


def assert_rows(opened, first: int = 0, count: int = 6) -> None:
    found = list(opened.recordings())
    assert len(found) == count
    assert len({recording.key for recording in found}) == count
    for number, recording in enumerate(found, first):
        wave = speechlike(1.0 + 0.1 * number, channels=1 + number % 2, seed=number)
        assert np.array_equal(opened.sound(recording).samples.T, wave)
        assert np.array_equal(opened.sound(recording, 0.25, 0.5).samples.T, wave[4_000:8_000])
        language = ("de", "zh")[(number - first) % 2]
        said = Segment(text=f"Satz {number} 你好", speaker=str((number - first) % 3), language=language, channel=MIXED)
        assert recording.segments == (said,)
        assert pickle.loads(pickle.dumps(recording)) == recording


@pytest.mark.parametrize("shards", [1, 3])
def test_saved_datasets_come_back_without_loss(tmp_path: Path, shards: int) -> None:
    dataset(tmp_path / "made").save_to_disk(tmp_path / "saved", num_shards=shards)
    shutil.rmtree(tmp_path / "made")
    assert_rows(source("huggingface", tmp_path / "saved"))


def test_saved_splits(tmp_path: Path) -> None:
    both = datasets.DatasetDict(train=dataset(tmp_path), test=dataset(tmp_path, 2, start=6))
    both.save_to_disk(tmp_path / "saved")
    assert_rows(source("huggingface", tmp_path / "saved", "train"))
    assert_rows(source("huggingface", tmp_path / "saved", "test"), first=6, count=2)
    assert len(read("huggingface", tmp_path / "saved")) == 8
    with pytest.raises(BadInput, match="no split dev; it has train, test"):
        read("huggingface", tmp_path / "saved", "dev")


def embedded(made: datasets.Dataset) -> datasets.Dataset:
    """With the files' bytes in the table, as push_to_hub does before it writes parquet."""
    from datasets.table import embed_table_storage

    formatted = made.with_format("arrow").map(embed_table_storage, batched=True, batch_size=2)
    return formatted.with_format(None)


def test_parquet_comes_back_without_loss(tmp_path: Path) -> None:
    data = tmp_path / "hub/data"
    data.mkdir(parents=True)
    made = embedded(dataset(tmp_path / "made"))
    for number in range(2):
        made.shard(2, number, contiguous=True).to_parquet(data / f"train-{number:05d}-of-00002.parquet", batch_size=2)
    embedded(dataset(tmp_path / "made", 2, start=6)).to_parquet(data / "test-00000-of-00001.parquet")
    shutil.rmtree(tmp_path / "made")
    assert pyarrow.parquet.ParquetFile(data / "train-00000-of-00002.parquet").num_row_groups == 2
    assert_rows(source("huggingface", tmp_path / "hub", "train"))
    assert_rows(source("huggingface", data / "test-00000-of-00001.parquet"), first=6, count=2)
    with pytest.raises(BadInput, match=r"no \.parquet or \.arrow files for split dev"):
        read("huggingface", tmp_path / "hub", "dev")


def test_columns_are_named_or_found(tmp_path: Path) -> None:
    wave = speechlike(1.0)
    content = write_sound(tmp_path / "a.wav", wave).read_bytes()
    table = pyarrow.table({"sound": [content], "words": ["hi"], "seconds": [1.0]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    opened = source("huggingface", tmp_path / "x.parquet", audio="sound", text="words", duration="seconds")
    (found,) = opened.recordings()
    assert (found.key, found.segments[0].text, found.duration) == ("x-0", "hi", 1.0)
    assert np.array_equal(opened.sound(found).samples.T, wave)
    assert read("huggingface", tmp_path / "x.parquet", audio="sound")[0].segments == ()
    for options, said in (({}, "no column audio; it has sound, words, seconds"), ({"text": "t"}, "no column t")):
        with pytest.raises(BadInput, match=said):
            read("huggingface", tmp_path / "x.parquet", **{"audio": "audio", **options} if not options else
                 {"audio": "sound", **options})  # fmt: skip


def test_paths_in_a_dataset_stay_in_its_folder(tmp_path: Path) -> None:
    secret = write_sound(tmp_path / "secret.wav", speechlike(1.0))
    inner = write_sound(tmp_path / "set/wavs/a.wav", speechlike(1.0))
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    paths = ["wavs/a.wav", "../secret.wav", str(secret), "wavs/../../secret.wav", "memory://secret.wav", None]
    cells = pyarrow.array([{"bytes": None, "path": path} for path in paths], kind)
    pyarrow.parquet.write_table(pyarrow.table({"audio": cells}), tmp_path / "set/x.parquet")
    opened = source("huggingface", tmp_path / "set")
    first, *others = opened.recordings()
    assert opened.sound(first).duration == 1.0
    assert [kind_of(opened, recording) for recording in others] == ["outside"] * 4 + ["empty"]
    followed = source("huggingface", tmp_path / "set", follow_paths=True)
    assert followed.sound(list(followed.recordings())[2]).duration == 1.0
    assert inner.is_file()


def test_damaged_tables(tmp_path: Path) -> None:
    made = embedded(dataset(tmp_path / "made"))
    made.to_parquet(tmp_path / "x.parquet", batch_size=2)
    opened = source("huggingface", tmp_path / "x.parquet")
    recordings = list(opened.recordings())
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    (tmp_path / "y.parquet").write_bytes(content[:-200])
    with pytest.raises(BadInput, match=r"y\.parquet is no parquet file"):
        read("huggingface", tmp_path / "y.parquet")
    gone = Cell(str(tmp_path / "gone.parquet"), "audio", 0, 0, 0, str(tmp_path), False)
    with pytest.raises(UnreadableAudio) as caught:
        list(gone.blocks(0.0, None, None))
    assert caught.value.kind == "missing"
    assert len(recordings) == 6
    made.save_to_disk(tmp_path / "saved")
    (tmp_path / "saved/state.json").write_text("{")
    with pytest.raises(BadInput, match=r"state\.json"):
        read("huggingface", tmp_path / "saved")
    with gzip.open(tmp_path / "cuts.jsonl.gz", "wb") as file:
        file.write(b"{}\n" * 1000)
    packed = (tmp_path / "cuts.jsonl.gz").read_bytes()
    (tmp_path / "cuts.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(BadInput):
        read("lhotse_cuts", tmp_path / "cuts.jsonl.gz")
