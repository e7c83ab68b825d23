"""Shards are plain WebDataset tars: other people's tools read them as they are. (webdataset itself: test_shards.py)"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from dataclasses import asdict

import numpy as np
import pytest

from data_pipeline.corpus import Corpus
from data_pipeline.sample_bytes import STORED
from data_pipeline.shards import ShardReader
from tests import peers
from tests.data_pipeline.synthetic import make_corpus

SOUND = b"fLaC" + bytes(range(256))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus.open(make_corpus(tmp_path_factory.mktemp("corpus") / "c", audio=SOUND))


def utterances(corpus, split):
    for shard in corpus.shards(split):
        with ShardReader(shard) as reader:
            yield from (reader.read(sample) for sample in range(len(reader)))


def test_megatron_energon_reads_every_sample_as_it_is(corpus):
    peers.prepare_energon(corpus.folder)
    lines = peers.run("tests.peers.energon_samples", str(corpus.folder)).splitlines()
    found = {(sample["split"], sample["key"].rpartition("/")[2]): sample for sample in map(json.loads, lines)}
    expected = [("train", one) for one in utterances(corpus, "train")]
    expected += [("val", one) for one in utterances(corpus, "valid")]
    assert len(lines) == len(found) == len(expected) > 0
    for split, utterance in expected:
        sample = found[split, utterance.key]
        words = [[word.text, word.start, word.end] for word in utterance.words]
        described = {name: value for name, value in asdict(utterance).items() if name in STORED}
        assert sample["described"] == described | {"words": words, "ids": list(utterance.ids)}
        assert sample["codes"] == {name: codes.tolist() for name, codes in utterance.codes.items()}


def test_tar_extracts_what_the_reader_reads(corpus, tmp_path):
    for shard in corpus.shards("train"):
        subprocess.run(["tar", "-xf", shard, "-C", tmp_path], check=True)
    for utterance in utterances(corpus, "train"):
        assert json.loads((tmp_path / f"{utterance.key}.json").read_text(encoding="utf-8"))["text"] == utterance.text
        for name, codes in utterance.codes.items():
            assert np.array_equal(np.load(tmp_path / f"{utterance.key}.{name}.npy", allow_pickle=False), codes)
        assert (tmp_path / f"{utterance.key}.flac").exists() == utterance.spoken
        if utterance.spoken:
            assert (tmp_path / f"{utterance.key}.flac").read_bytes() == SOUND


def test_pythons_tarfile_reads_it_as_a_stream(corpus):
    for shard in corpus.shards("train"):
        with tarfile.open(fileobj=io.BytesIO(shard.read_bytes()), mode="r|") as archive, ShardReader(shard) as reader:
            members = [(member.name, member.isfile()) for member in archive]
            assert all(regular for _, regular in members)
            keys = list(dict.fromkeys(name.partition(".")[0] for name, _ in members))
            assert keys == [reader.read(sample).key for sample in range(len(reader))]
