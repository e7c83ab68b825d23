"""Bytes gone wrong anywhere in a shard end in DamagedSample, and nothing is ever written."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.corpus import MANIFEST_FILE, Corpus
from data_pipeline.sample_bytes import DAMAGE_KINDS
from data_pipeline.shards import (
    DamagedSample,
    ShardReader,
    ShardWriter,
    add_columns,
    columns_path,
    index_path,
)
from runtime.exits import BadInput
from tests.data_pipeline.faults import seal
from tests.data_pipeline.synthetic import make_corpus, make_utterance

DAMAGE = settings(max_examples=300)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a shard of six utterances, its index and its later columns, below an otherwise empty one."""
    folder = tmp_path_factory.mktemp("faults") / "corpus"
    rng = np.random.default_rng(0)
    path = folder / "shard.tar"
    with ShardWriter(path) as writer:
        for number in range(6):
            utterance = make_utterance(rng, f"u{number}", f"d{number // 2}", spoken=number != 3)
            utterance.features["encoder"] = rng.standard_normal((5, 8)).astype(np.float16)
            writer.write(utterance, audio=b"fLaC" + bytes(100))
    add_columns(path, {"dnsmos": np.arange(6.0)})
    return path


def read_all(shard: Path) -> set[str]:
    """Read every sample and its audio; the kinds of damage met. Any other exception is the test's failure."""
    kinds = set()
    try:
        reader = ShardReader(shard)
    except DamagedSample as damaged:
        return {damaged.kind}
    with reader:
        for sample in range(len(reader)):
            for read in (reader.read, reader.read_audio):
                try:
                    read(sample)
                except DamagedSample as damaged:
                    kinds.add(damaged.kind)
    return kinds


@given(data=st.data())
@DAMAGE
def test_flipped_and_missing_bytes_are_damage_and_nothing_else(whole: Path, data: st.DataObject) -> None:
    victim = data.draw(st.sampled_from([whole, index_path(whole), columns_path(whole)]))
    content = victim.read_bytes()
    spoilt = bytearray(content)
    for at, bits in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(1, 255)), max_size=4)):
        spoilt[at] ^= bits
    del spoilt[data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content) - 1))) :]
    before = sorted(whole.parent.parent.rglob("*"))
    victim.write_bytes(spoilt)
    try:
        assert read_all(whole) <= set(DAMAGE_KINDS)
        assert sorted(whole.parent.parent.rglob("*")) == before
    finally:
        victim.write_bytes(content)
    assert read_all(whole) == set()


@given(data=st.data())
@DAMAGE
def test_wrong_content_under_a_right_checksum_is_damage_and_nothing_else(whole: Path, data: st.DataObject) -> None:
    content, index = whole.read_bytes(), index_path(whole).read_bytes()
    spoilt = bytearray(content)
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)):
        spoilt[at] = byte
    whole.write_bytes(spoilt)
    seal(whole)
    try:
        assert read_all(whole) <= {"members", "json", "codes", "features", "checksum"}  # the last of the sound's
    finally:
        whole.write_bytes(content)
        index_path(whole).write_bytes(index)


def tar_of(shard: Path, header: tarfile.TarInfo, content: bytes) -> None:
    """A shard of one sample made of one member, `header`."""
    header.size = len(content)
    span = header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
    with ShardWriter(shard) as writer:
        writer.write(make_utterance(np.random.default_rng(0), "u", "d", spoken=False))
    shard.write_bytes(span + bytes(1024))
    with np.load(index_path(shard), allow_pickle=False) as stored:
        arrays = dict(stored) | {"size": np.array([len(span)])}
    np.savez(index_path(shard), allow_pickle=False, **arrays)
    seal(shard)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../evil.json"},
        {"name": "/evil.json"},
        {"name": "sub/evil.json"},
        {"name": "..json"},
        {"name": "u.json", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"name": "u.json", "type": tarfile.LNKTYPE, "linkname": "other"},
        {"name": "u.json", "type": tarfile.CHRTYPE},
        {"name": "a" * 90 + "/../../../" + "u.json"},
    ],
)
def test_a_member_that_is_a_path_or_no_file_is_damage(tmp_path: Path, change: dict) -> None:
    header = tarfile.TarInfo()
    for name, value in change.items():
        setattr(header, name, value)
    shard = tmp_path / "deep" / "corpus" / "s.tar"
    tar_of(shard, header, b'{"key":"u","text":"t","document":"d"}')
    before = sorted(tmp_path.rglob("*"))
    assert read_all(shard) == {"members"}
    assert sorted(tmp_path.rglob("*")) == before


def test_the_same_member_under_a_plain_name_is_read(tmp_path: Path) -> None:
    tar_of(tmp_path / "s.tar", tarfile.TarInfo("u.json"), b'{"key":"u","text":"t","document":"d"}')
    assert read_all(tmp_path / "s.tar") == set()


@pytest.mark.parametrize(
    "described",
    [
        b"[]",
        b'{"text":"t","document":"d"}',
        b'{"key":"u","text":7,"document":"d"}',
        b'{"key":"u","text":"t","document":"d","speaker":null}',
        b'{"key":"u","text":"t","document":"d","duration":NaN}',
        b'{"key":"u","text":"t","document":"d","duration":"1"}',
        b'{"key":"u","text":"t","document":"d","words":[["t",0,Infinity]]}',
        b'{"key":"u","text":"t","document":"d","words":[["t",0]]}',
        b'{"key":"u","text":"\\ud800","document":"d"}',
        b'{"key":"u","text":"\xed\xa0\x80","document":"d"}',
        b"[" * 100_000,
    ],
)
def test_a_description_that_layouts_cannot_use_is_damage(tmp_path: Path, described: bytes) -> None:
    tar_of(tmp_path / "s.tar", tarfile.TarInfo("u.json"), described)
    assert read_all(tmp_path / "s.tar") == {"json"}


def test_an_escaped_pair_is_a_letter(tmp_path: Path) -> None:
    tar_of(tmp_path / "s.tar", tarfile.TarInfo("u.json"), b'{"key":"u","text":"\\ud83d\\ude00","document":"d"}')
    with ShardReader(tmp_path / "s.tar") as reader:
        assert reader.read(0).text == "\U0001f600"


def test_features_that_are_not_numbers_are_damage_of_their_own_kind(tmp_path: Path) -> None:
    shard = tmp_path / "s.tar"
    utterance = make_utterance(np.random.default_rng(0), "u", "d")
    utterance.features["encoder"] = np.ones((4, 2), np.float16)
    with ShardWriter(shard) as writer:
        writer.write(utterance)
    ones, spoilt = io.BytesIO(), io.BytesIO()
    np.save(ones, utterance.features["encoder"])
    utterance.features["encoder"][2, 1] = np.nan
    np.save(spoilt, utterance.features["encoder"])
    content = shard.read_bytes()
    assert content.count(ones.getvalue()) == 1
    shard.write_bytes(content.replace(ones.getvalue(), spoilt.getvalue()))
    seal(shard)
    assert read_all(shard) == {"features"}


@pytest.mark.parametrize("file", ["../../evil.tar", "/evil.tar", "train/../../evil.tar", "train\\..\\evil.tar"])
def test_a_manifest_that_names_a_shard_outside_is_refused(tmp_path: Path, file: str) -> None:
    corpus = make_corpus(tmp_path / "corpus", train_documents=1, valid_documents=1)
    manifest = json.loads((corpus / MANIFEST_FILE).read_text())
    manifest["splits"]["train"][0]["file"] = file
    (corpus / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="names a shard outside the corpus"):
        Corpus.open(corpus)
