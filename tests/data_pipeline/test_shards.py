from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import webdataset

from data_pipeline.corpus import MANIFEST_FILE, Corpus, write_manifest
from data_pipeline.damage import DamageTally
from data_pipeline.documents import Documents
from data_pipeline.layouts import find_layout
from data_pipeline.sample_bytes import _npy_header
from data_pipeline.shards import DamagedSample, ShardReader, ShardWriter, add_columns, index_path, read_index
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput
from tests.checkpoints.disks import small_disk
from tests.data_pipeline.synthetic import make_corpus, make_utterance, make_vocabulary

FLAC = b"fLaC" + bytes(range(256)) * 3


@pytest.fixture
def utterances():
    rng = np.random.default_rng(0)
    return [make_utterance(rng, f"u{i}", f"d{i // 2}", spoken=i % 4 < 2) for i in range(8)]


@pytest.fixture
def shard(tmp_path, utterances):
    path = tmp_path / "shard-000000.tar"
    with ShardWriter(path) as writer:
        for utterance in utterances:
            writer.write(utterance, audio=FLAC if utterance.spoken else None)
    return path


def assert_same(one: Utterance, other: Utterance) -> None:
    assert replace(one, codes={}) == replace(other, codes={})
    assert one.codes.keys() == other.codes.keys()
    for name in one.codes:
        np.testing.assert_array_equal(one.codes[name], other.codes[name])


def damage(shard, sample: int, kind: str) -> str:
    """Read `sample` and return the kind of damage found."""
    with ShardReader(shard) as reader, pytest.raises(DamagedSample) as caught:
        reader.read(sample)
    assert f"sample {sample}" in caught.value.where
    return caught.value.kind


def test_reads_back_what_was_written(shard, utterances):
    with ShardReader(shard) as reader:
        assert len(reader) == len(utterances)
        for i, utterance in enumerate(utterances):
            assert_same(reader.read(i), utterance)
            assert reader.read_audio(i) == (FLAC if utterance.spoken else None)


def test_index_counts(shard, utterances):
    index = read_index(shard)
    assert index.documents.tolist() == [[0, 2], [2, 4], [4, 6], [6, 8]]
    assert index.spoken_documents.tolist() == [[0, 2], [4, 6]]
    assert index.characters.tolist() == [len(u.text) for u in utterances]
    assert index.frames["semantic"].tolist() == [u.codes["semantic"].shape[1] if u.spoken else 0 for u in utterances]


def test_webdataset_and_tar_read_a_shard(shard, utterances):
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [u.key for u in utterances]
    assert samples[0]["json"]["text"] == utterances[0].text
    np.testing.assert_array_equal(samples[0]["linguistic.npy"], utterances[0].codes["linguistic"])
    assert samples[0]["flac"] == FLAC
    listed = subprocess.run(["tar", "tf", str(shard)], capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines()[:4] == ["u0.json", "u0.linguistic.npy", "u0.semantic.npy", "u0.flac"]
    assert not listed.stderr


def test_same_utterances_give_the_same_bytes(shard, utterances, tmp_path):
    again = tmp_path / "again.tar"
    with ShardWriter(again) as writer:
        for utterance in utterances:
            writer.write(utterance, audio=FLAC if utterance.spoken else None)
    assert again.read_bytes() == shard.read_bytes()
    assert index_path(again).read_bytes() == index_path(shard).read_bytes()


def test_nothing_appears_when_writing_fails(tmp_path, utterances):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "shard.tar") as writer:
        writer.write(utterances[0])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_behind_when_the_last_bytes_find_the_disk_full(tmp_path, utterances):
    """What is buffered is written as the file is closed, and fails there."""
    with small_disk(tmp_path / "disk", 4096 * 3):
        path = tmp_path / "disk" / "full.tar"
        (tmp_path / "disk" / "other").write_bytes(bytes(4096 * 3))
        with pytest.raises(OSError), ShardWriter(path) as writer:
            for utterance in utterances:
                writer.write(utterance)
        assert [file.name for file in path.parent.iterdir()] == ["other"]


@pytest.mark.parametrize("key", ["a.b", "../a", "a/b", "", "x" * 100])
def test_keys_that_could_be_paths_or_end_early_are_refused(tmp_path, key):
    with pytest.raises(ValueError), ShardWriter(tmp_path / "shard.tar") as writer:
        writer.write(Utterance(key=key, text="a", document="d"))


def test_a_document_that_comes_again_is_refused(tmp_path):
    with pytest.raises(ValueError, match="stand together"), ShardWriter(tmp_path / "shard.tar") as writer:
        for key, document in (("a", "1"), ("b", "2"), ("c", "1")):
            writer.write(Utterance(key=key, text="a", document=document))


def test_ids_of_texts_are_kept_and_layouts_get_them(tmp_path, utterances):
    mistaken = make_vocabulary()  # so that ids that were kept differ from those that are encoded
    mistaken.know({utterances[0].text: (1, 2)})
    with ShardWriter(tmp_path / "train" / "s.tar", mistaken) as writer:
        for utterance in utterances:
            writer.write(utterance)
    corpus = write_manifest(tmp_path, name="c", vocabulary=make_vocabulary(), codecs={})
    documents = Documents(corpus, "train", DamageTally(0.0), spoken=False)
    first, second = documents.read(0)
    assert first.ids == (1, 2) and second.ids == tuple(make_vocabulary().encode_text(second.text))
    samples = find_layout("text", {})([first], corpus.vocabulary, np.random.default_rng(0))
    assert samples[0].tokens[:-1].tolist() == [1, 2]
    assert documents.read(1) and corpus.vocabulary.encode_text(first.text) == make_vocabulary().encode_text(first.text)


def test_truncated_shard_loses_its_end_only(shard, utterances):
    os.truncate(shard, int(read_index(shard).offset[5]) + 100)
    with ShardReader(shard) as reader:
        assert_same(reader.read(4), utterances[4])
    assert [damage(shard, i, "truncated") for i in (5, 6, 7)] == ["truncated"] * 3


def test_every_flipped_byte_is_noticed(shard, utterances):
    index = read_index(shard)
    good = shard.read_bytes()
    rng = np.random.default_rng(1)
    for at in rng.integers(0, index.size[0], 40):
        bad = bytearray(good)
        bad[at] ^= 1 << int(rng.integers(8))
        shard.write_bytes(bad)
        assert damage(shard, 0, "checksum") == "checksum"


def rewrite(shard, sample: int, change) -> None:
    """Change a span in place and mend its checksum, so that only what is inside can give it away."""
    index = read_index(shard)
    content = bytearray(shard.read_bytes())
    begin = int(index.offset[sample])
    end = begin + int(index.size[sample])
    content[begin:end] = change(bytes(content[begin:end]))
    shard.write_bytes(content)
    arrays = dict(np.load(index_path(shard), allow_pickle=False))
    arrays["crc32"][sample] = zlib.crc32(bytes(content[begin:end]))
    np.savez(index_path(shard), **arrays)


@pytest.mark.parametrize(
    "kind, change",
    [
        ("json", lambda span: span.replace(b'{"key"', b'["key"')),
        ("json", lambda span: span.replace(b'"words":[[', b'"words":[{')),
        ("json", lambda span: span.replace(b'"text":"', b'"tixt":"')),
        ("codes", lambda span: span.replace(b"\x93NUMPY", b"\x94NUMPY")),
        ("codes", lambda span: span.replace(b"'descr': '<i2'", b"'descr': '|O' ")),
        ("codes", lambda span: span.replace(b"'descr': '<i2'", b"'descr': '<f4'")),
        ("members", lambda span: b"\xff" * 512 + span[512:]),
        ("members", lambda span: bytes(len(span))),
    ],
)
def test_damage_inside_is_named_and_never_a_traceback(shard, kind, change):
    rewrite(shard, 0, change)
    assert damage(shard, 0, kind) == kind


def test_objects_are_never_unpickled(shard, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    np.savez(index_path(shard), offset=np.array([Bomb()], dtype=object))
    with pytest.raises(DamagedSample, match="index"):
        read_index(shard)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x00" * 100])
def test_damaged_index(shard, content):
    index_path(shard).write_bytes(content)
    with pytest.raises(DamagedSample, match="index"):
        ShardReader(shard)


def test_missing_files(shard):
    shard.unlink()
    with pytest.raises(DamagedSample, match="missing"):
        ShardReader(shard)
    index_path(shard).unlink()
    with pytest.raises(DamagedSample, match="index"):
        ShardReader(shard)


# --- corpus ---------------------------------------------------------------------------------------------------------


def test_manifest_adds_up(tmp_path):
    corpus = Corpus.open(make_corpus(tmp_path / "c", train_documents=20, documents_per_shard=8))
    assert corpus.vocabulary == make_vocabulary()
    assert [entry["documents"] for entry in corpus.splits["train"]] == [8, 8, 4]
    assert [entry["spoken_documents"] for entry in corpus.splits["train"]] == [6, 6, 3]
    assert corpus.totals["train"]["samples"] == sum(len(read_index(path)) for path in corpus.shards("train"))
    for entry, path in zip(corpus.splits["train"], corpus.shards("train"), strict=True):
        assert entry["bytes"] == path.stat().st_size
        assert tarfile.is_tarfile(path)


def test_content_hash_follows_content_alone(tmp_path):
    one, same, other = (make_corpus(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert Corpus.open(one).content_hash == Corpus.open(same).content_hash != Corpus.open(other).content_hash


def test_a_tar_without_index_is_not_declared_complete(tmp_path):
    folder = make_corpus(tmp_path / "c")
    index_path(next((folder / "train").glob("*.tar"))).unlink()
    with pytest.raises(DamagedSample, match="index"):
        write_manifest(folder, name="c", vocabulary=make_vocabulary(), codecs={})


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: (folder / MANIFEST_FILE).unlink(), "unfinished"),
        (lambda folder: (folder / MANIFEST_FILE).write_text("{"), "damaged"),
        (lambda folder: (folder / MANIFEST_FILE).write_text("[]"), "damaged"),
        (lambda folder: change_manifest(folder, splits={"train": []}), "damaged"),
        (lambda folder: change_manifest(folder, splits={"train": [{"file": "a.tar"}], "valid": []}), "damaged"),
        (lambda folder: change_manifest(folder, format=99), "format 99"),
        (lambda folder: change_manifest(folder, vocabulary={"text_size": 3}), "vocabulary"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
    ],
)
def test_what_is_not_a_finished_corpus_is_refused_in_one_line(tmp_path, spoil, message):
    folder = make_corpus(tmp_path / "c")
    spoil(folder)
    with pytest.raises(BadInput, match=message) as caught:
        Corpus.open(folder)
    assert "\n" not in str(caught.value)


def change_manifest(folder, **changed) -> None:
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_missing_folder_and_any_other_folder_are_refused(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        Corpus.open(tmp_path / "none")
    with pytest.raises(BadInput, match="not a corpus"):
        Corpus.open(tmp_path)


# --- columns, labels, features ------------------------------------------------------------------------------------


def test_what_filters_ask_for_is_in_the_index_and_can_be_added_to(tmp_path):
    path = tmp_path / "shard.tar"
    with ShardWriter(path) as shard:
        shard.write(Utterance("a", "hello", "a", language="en", speaker="ann", quality={"wer": 0.25}))
        shard.write(Utterance("b", "", "b", language="zh"))
    index = read_index(path)
    assert index.columns["wer"].tolist()[0] == 0.25 and np.isnan(index.columns["wer"][1])
    assert index.labels["language"].tolist() == ["en", "zh"] and index.labels["speaker"].tolist() == ["ann", ""]
    before = path.read_bytes()
    add_columns(path, {"dnsmos": np.array([3.0, 2.0])})
    add_columns(path, {"dnsmos": np.array([3.5, 2.0]), "wer": np.array([0.5, 0.5])})
    index = read_index(path)
    assert index.columns["dnsmos"].tolist() == [3.5, 2.0] and index.columns["wer"].tolist() == [0.5, 0.5]
    assert path.read_bytes() == before
    add_columns(path, {"dnsmos": np.zeros(3)})
    with pytest.raises(DamagedSample, match="index"):
        read_index(path)


def test_features_come_back_and_are_refused_where_they_are_not_numbers(tmp_path):
    path = tmp_path / "shard.tar"
    features = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float16)
    codes = np.arange(4)[None]
    with ShardWriter(path) as shard:
        shard.write(Utterance("a", "hello", "a", codes={"semantic": codes}, features={"whisper": features}))
        with pytest.raises(ValueError, match="finite"):
            shard.write(Utterance("b", "", "b", features={"whisper": np.full((2, 3), np.nan)}))
    with ShardReader(path) as reader:
        found = reader.read(0)
    assert np.array_equal(found.features["whisper"], features) and found.features["whisper"].dtype == np.float16
    assert np.array_equal(found.codes["semantic"], codes)


def test_threads_that_read_headers_at_once_find_no_damage(shard):
    """Each allocation may collect garbage, and a finaliser let another thread in, in the middle of numpy's parsing."""

    class Cycle:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            for _ in range(3):
                pass

    packed = io.BytesIO()
    np.save(packed, np.zeros((2, 3), np.int32))
    header = packed.getvalue()[:128]

    def read_again_and_again(_: int) -> int:
        read_index(shard)
        for _ in range(500):
            Cycle()
            _npy_header.__wrapped__(header)  # past what it remembers
        return 500

    held, every = gc.get_threshold(), sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)
        gc.set_threshold(1)
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(read_again_and_again, range(4))) == [500] * 4
    finally:
        gc.set_threshold(*held)
        sys.setswitchinterval(every)
