"""Layouts of every shape through real shards and the loader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.schema import Config, SourceConfig
from data_pipeline.batch import Pack, collate
from data_pipeline.corpus import Corpus, write_manifest
from data_pipeline.damage import DamageTally
from data_pipeline.layouts.groups import unframe
from data_pipeline.loader import Loader, make_loader
from data_pipeline.mixture import open_mixture
from data_pipeline.sample_bytes import DamagedSample
from data_pipeline.shards import ShardReader, ShardWriter
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from tests.data_pipeline.layout_material import GROUPED, RESIDUAL, SINGLE, speak
from tests.data_pipeline.synthetic import make_config, make_corpus


def dialogues(folder: Path, vocabulary: Vocabulary, *, features: bool = False, coded: bool = True) -> Corpus:
    """Twelve documents of four turns each; with `features` those of an encoder, 50 a second."""
    rng = np.random.default_rng(0)
    kept: list[Utterance] = []
    for number in range(12):
        for part in range(4):
            role, name = ("human", "assistant")[part % 2], f"d{number:02d}"
            made = speak(vocabulary, 1.2, rng, "in the beginning", key=f"{name}-{part}", document=name, role=role)
            made = replace(made, speaker=role, codes=made.codes if coded else {})
            if features:
                made = replace(made, features={"whisper": rng.random((60, 3)).astype(np.float16)})
            kept.append(made)
    for split in ("train", "valid"):
        with ShardWriter(folder / split / "shard-000000.tar") as writer:
            for utterance in kept:
                writer.write(utterance)
    kept = {"whisper": {"encoder": "whisper", "kind": "vectors", "width": 3}} if features else {}
    write_manifest(folder, name="dialogues", vocabulary=vocabulary, codecs={}, features=kept)
    return Corpus.open(folder)


def mixture(**sources: SourceConfig) -> Config:
    config = make_config({"text": 1.0})
    config.mixture.sources = sources
    return config


def packs_of(config: Config, corpus: Corpus, steps: int = 5) -> list[Pack]:
    loader = make_loader(config, corpus, split="train", rank=0, world=1)
    return [pack for _ in range(steps) for pack in loader.next_step()]


def test_frames_of_several_columns(tmp_path):
    corpus = dialogues(tmp_path, RESIDUAL)
    config = mixture(
        csm=SourceConfig(layout="csm", weight=2.0),
        text=SourceConfig(layout="text", weight=1.0, options={"frames": True}),
        intlv=SourceConfig(layout="intlv", weight=1.0, options={"frames": True}),
    )
    packs = packs_of(config, corpus)
    assert {pack.tokens.shape for pack in packs} == {(128, 5)}
    assert {key.split("/")[0] for pack in packs for key in pack.keys} == {"csm", "text", "intlv"}
    for pack in packs:
        unframe(pack.tokens[pack.tokens[:, 0] >= 0], RESIDUAL)
    assert collate(packs[:2]).tokens.shape == (1, 256, 5)


def test_feature_slots(tmp_path):
    """Vectors come out of the shards as they went in, at places whose tokens are -1; codes are not needed."""
    corpus = dialogues(tmp_path, SINGLE, features=True, coded=False)
    config = mixture(
        units=SourceConfig(layout="units", weight=1.0, options={"encoder": "whisper", "stride": 2}),
        chat=SourceConfig(layout="chat", weight=1.0, options={"encoder": "whisper", "stride": 5}),
    )
    packs = packs_of(config, corpus)
    batch = collate(packs)
    splice = batch.splices["whisper"]
    assert bool((batch.tokens[0, splice.places] == -1).all()) and int((batch.tokens == -1).sum()) == len(splice.places)
    assert splice.vectors.shape[1] == 3 and splice.frames.sum() == len(splice.vectors)
    assert {key.split("/")[0] for pack in packs for key in pack.keys} == {"units", "chat"}


def test_a_line_says_where_all_samples_are_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.lanes.MOST_EMPTY", 20)
    corpus = dialogues(tmp_path, SINGLE)
    config = mixture(chat=SourceConfig(layout="chat", weight=1.0))
    config.train.sequence_length = 16
    with pytest.raises(BadInput, match=r"made no sample of 20 documents .* longer than train.sequence_length 16"):
        packs_of(config, corpus)


def test_one_stream_of_chunks_spans_and_segments(tmp_path):
    corpus = Corpus.open(make_corpus(tmp_path))
    config = mixture(
        spans=SourceConfig(layout="spans", weight=1.0),
        itts=SourceConfig(layout="itts", weight=1.0),
        chunks=SourceConfig(layout="chunked", weight=1.0, options={"text_chunk": 5, "audio_chunk": 15}),
    )
    packs = packs_of(config, corpus)
    assert {key.split("/")[0] for pack in packs for key in pack.keys} == {"spans", "itts", "chunks"}


def test_a_vocabulary_without_the_special_tokens_is_refused_before_any_document_is_read(tmp_path):
    corpus = Corpus.open(make_corpus(tmp_path))
    config = mixture(talk=SourceConfig(layout="chat", weight=1.0))
    with pytest.raises(BadInput, match=r"source talk: layout chat needs the special tokens <\|BOT\|>, <\|EOT\|>"):
        open_mixture(config, corpus, "train", DamageTally(1.0))


def test_a_mixture_of_other_columns_is_refused_before_any_document_is_read(tmp_path):
    corpus = dialogues(tmp_path, RESIDUAL)
    config = mixture(csm=SourceConfig(layout="csm", weight=1.0), text=SourceConfig(layout="text", weight=1.0))
    with pytest.raises(BadInput, match="csm makes 5, text makes 1; see their option frames"):
        open_mixture(config, corpus, "train", DamageTally(1.0))


# --- conversations that cannot be used --------------------------------------------------------------------------------


def keys_of(packs: list[Pack]) -> set[str]:
    """Documents that the packs hold something of."""
    return {key.split("/")[2] for pack in packs for key in pack.keys}


def read_once(corpus: Corpus, source: SourceConfig, length: int = 400) -> tuple[list[Pack], Loader]:
    config = mixture(chat=source)
    config.train.sequence_length, config.loader.lanes, config.train.global_batch = length, 1, 1
    config.loader.damaged_share = 0.9
    loader = make_loader(config, corpus, split="train", rank=0, world=1)
    packs = []
    while loader.has_next():
        packs += loader.next_step()
    return packs, loader


def talks(folder: Path) -> Corpus:
    """`dialogues` with a vocabulary of chats; d03 has a strange role, d05 is ten times as long, d07 was badly heard."""
    corpus = dialogues(folder, GROUPED)
    (shard,) = corpus.shards("train")
    with ShardReader(shard) as reader:
        held = [reader.read(sample) for sample in range(len(reader))]
    with ShardWriter(shard) as writer:
        for utterance in held:
            wer = 0.5 if utterance.key == "d07-2" else 0.1
            changed = replace(utterance, quality={"wer": wer}, source="talks")
            if utterance.key == "d03-1":
                changed = replace(changed, role="narrator")
            if utterance.key == "d05-3":
                changed = replace(changed, text=" ".join(["in the beginning"] * 200))
            writer.write(changed)
    write_manifest(folder, name="dialogues", vocabulary=GROUPED, codecs={})
    return Corpus.open(folder)


def test_conversations_are_read_whole_or_left_out_and_counted(tmp_path):
    everything = {f"d{number:02d}" for number in range(12)}
    corpus = talks(tmp_path)
    packs, loader = read_once(corpus, SourceConfig(layout="chat", weight=1.0, epochs=1))
    assert keys_of(packs) == everything - {"d03", "d05"}
    assert loader.damaged == {"role": 1, "too_long": 1}
    role, too_long = sorted(loader.damaged_names)
    assert role == "source chat: d03: d03-1 has the role 'narrator': role"
    assert too_long.startswith("source chat: d05/0, ") and too_long.endswith(" tokens: too_long")
    packs, _ = read_once(corpus, SourceConfig(layout="chat", weight=1.0, epochs=1, filter="wer < 0.2"))
    assert keys_of(packs) == everything - {"d03", "d05", "d07"}
    for pack in packs:
        assert not any("#" in key for key in pack.keys)

    with ShardReader(corpus.shards("train")[0]) as reader:
        place = int(reader.index.offset[4 * 9 + 2]) + 700
    with corpus.shards("train")[0].open("r+b") as file:  # d09 loses its third turn
        file.seek(place)
        file.write(b"\xff\xfe")
    packs, loader = read_once(corpus, SourceConfig(layout="chat", weight=1.0, epochs=1))
    assert keys_of(packs) == everything - {"d03", "d05", "d09"} and loader.damaged["checksum"] == 1


def test_conversations_that_are_too_long_stop_no_run(tmp_path):
    """They are counted; a share of them above `damaged_share` is no fault of the corpus."""
    tally = DamageTally(0.01)
    tally.read = 200
    for number in range(100):
        tally.add(DamagedSample("too_long", f"d{number}"))
    tally.judge()
    for number in range(3):
        tally.add(DamagedSample("role", f"d{number}"))
    with pytest.raises(BadInput, match=r"3 of 200 samples read are damaged, .*; the first is "):
        tally.judge()


def test_places_know_their_source(tmp_path):
    corpus = dialogues(tmp_path, GROUPED)
    config = mixture(chat=SourceConfig(layout="chat", weight=1.0), words=SourceConfig(layout="text", weight=1.0))
    packs = packs_of(config, corpus)
    for pack in packs:
        (row,) = collate([pack], ("chat", "words")).sources.tolist()
        at = 0
        for key, length in zip(pack.keys, pack.lengths, strict=False):
            assert row[at : at + length] == [("chat", "words").index(key.split("/")[0])] * length
            at += length
        assert row[at:] == [0] * pack.padding
    assert collate(packs).sources is None
