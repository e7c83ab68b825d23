"""Stages on corpora of other codes are refused before a process starts; those of the same codes, however made, go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.schema import Config, SourceConfig, StageKind
from data_pipeline.codebooks import as_file
from data_pipeline.corpus import Corpus, write_manifest
from data_pipeline.vocabulary import Vocabulary
from launch.training import require_made_from
from runtime.exits import BadInput
from tests.checkpoints.native import make_native, weights
from tests.data_pipeline.synthetic import make_vocabulary
from tests.train.runs import tiny_config


def learnt(linguistic: str, **centroids: str) -> dict[str, Any]:
    """The codecs of a manifest: codebooks learnt from a corpus, or from another one's `centroids`."""
    codec = json.dumps({"kind": "whisper_kmeans", "weights": {"encoder": "base", **centroids}})
    books = {"linguistic": {"size": 8, "xxh3": linguistic}, "semantic": {"size": 16, "xxh3": "s"}}
    return {"whisper_dual": {"codec": codec, "codebooks": books}}


def published(kind: str) -> dict[str, Any]:
    return {kind: {"codec": json.dumps({"kind": kind}), "codebooks": {"linguistic": {}, "semantic": {}}}}


FIRST = learnt("l")
SAID = {"generated": {"codes_of": FIRST, "prompts": "hash"}}
VOICED = {"any": {"codes_of": {"content_hash": "hash", "codecs": FIRST}, "text_to_code": "lm"}}


def corpus(folder: Path, codecs: Mapping[str, Any], vocabulary: Vocabulary | None = None) -> Corpus:
    folder.mkdir()
    return write_manifest(folder, name=folder.name, vocabulary=vocabulary or make_vocabulary(), codecs=codecs)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The second stage of a run whose first one was trained on codes of `FIRST`."""
    first = corpus(tmp_path / "first", FIRST)
    checkpoint = tmp_path / "run/first/checkpoints/step-00000003"
    checkpoint.parent.mkdir(parents=True)
    make_native(checkpoint, weights(), texts=as_file(first), vocabulary=first.vocabulary.describe())
    return tiny_config(tmp_path / "run/second", tmp_path / "other", stage__weights="first")


@pytest.mark.parametrize(
    "codecs",
    [FIRST, learnt("l", centroids="first"), SAID, VOICED, {}, {"whisper_dual": {**FIRST["whisper_dual"], "more": 1}}],
    ids=["itself", "its centroids", "said", "voiced", "unknown", "more"],
)
def test_the_same_codes_go(config: Config, tmp_path: Path, codecs: Mapping[str, Any]) -> None:
    corpus(tmp_path / "other", codecs)
    require_made_from(config)


@pytest.mark.parametrize("codecs", [learnt("k"), published("step_audio"), {"generated": {"codes_of": learnt("k")}}])
@pytest.mark.parametrize("named", ["stage", "folder", "source", "merge"])
def test_other_codes_are_one_line(config: Config, tmp_path: Path, codecs: Mapping[str, Any], named: str) -> None:
    other = corpus(tmp_path / "other", codecs).folder
    said = r"stage\.weights=first: .*step-00000003 was trained on another codebook linguistic than that of .*/other"
    if named == "folder":
        config.stage.weights = str(tmp_path / "run/first/checkpoints/step-00000003")
        said = r"stage\.weights=.*codec\.weights\.centroids"
    elif named == "source":
        config.stage.weights, config.corpus.folder = "backbone", str(tmp_path / "first")
        config.mixture.sources["tts"] = SourceConfig(layout="tts", corpus=str(other))
        said = r"mixture\.sources\.tts\.corpus=.*/other: codebook linguistic is another than that of .*/first"
    elif named == "merge":
        config.stage.kind, config.stage.weights, config.merge.weights = StageKind.merge, "backbone", {"first": 1.0}
        said = r"merge\.weights\.first=first: .* was trained on another codebook linguistic"
    with pytest.raises(BadInput, match=said):
        require_made_from(config)


def test_other_ids_are_one_line(config: Config, tmp_path: Path) -> None:
    fewer = make_vocabulary()
    more = replace(fewer, specials=(*fewer.specials, "<|more|>"))
    corpus(tmp_path / "other", FIRST, more)
    with pytest.raises(BadInput, match=r"stage\.weights=first: in .* .* linguistic has the ids .*checkpoint vocab"):
        require_made_from(config)


def test_a_decoder_of_other_codes_is_one_line_and_of_other_ids_goes(config: Config, tmp_path: Path) -> None:
    more = replace(make_vocabulary(), specials=(*make_vocabulary().specials, "<|more|>"))
    corpus(tmp_path / "other", FIRST, more)
    config.stage.kind, config.stage.weights = StageKind.evaluate, "backbone"
    config.evaluation.decoder = str(tmp_path / "run/first")
    require_made_from(config)
    config.corpus.folder = str(corpus(tmp_path / "third", learnt("k")).folder)
    with pytest.raises(BadInput, match=r"^evaluation\.decoder=.*/run/first: .* was trained on another codebook ling"):
        require_made_from(config)


def test_a_damaged_manifest_is_one_line(config: Config, tmp_path: Path) -> None:
    corpus(tmp_path / "other", {"odd": {"codec": "{", "codebooks": {}}})
    with pytest.raises(BadInput, match=r"other: its manifest's codecs are damaged"):
        require_made_from(config)
