"""Codecs of the config: those that are published pass, impossible ones are refused in one line that names the key."""

from __future__ import annotations

from copy import deepcopy

import pytest

from configs.checks import check
from configs.checks.codec import CODEC_KINDS, check_codec
from configs.compose import compose_stage, groups
from configs.schema import CodebookConfig, CodecConfig
from data_pipeline.codecs import codebooks_of
from data_pipeline.vocabulary import Codebook
from runtime.exits import BadInput
from tests.configs.recipes import write_recipe

PAIR = CodecConfig(
    name="pair",
    weights={"encoder": "x"},
    codebooks={
        "linguistic": CodebookConfig(size=8, rate=16.667, layer=2),
        "semantic": CodebookConfig(size=16, rate=25.0, layer=1),
    },
    group={"linguistic": 2, "semantic": 3},
)


def test_every_codec_of_the_configs_passes(tmp_path) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    kinds = set()
    for name in groups()["codec"]:
        place = ["codec.weights.encoder=e", "codec.weights.centroids=c"] if name == "mhubert" else []
        config = compose_stage(recipe, "tiny", "pretrain", [f"codec={name}", *place])
        check(config)
        kinds.add(config.codec.kind)
    assert kinds == set(CODEC_KINDS)


def test_published_numbers(tmp_path) -> None:
    """Ids that the published vocabularies add: 1024 + 4096, 16384, 32 x 2048, 6561, 19,456 in eight tables."""
    recipe = write_recipe(tmp_path / "recipe")
    ids = {"step_audio": 5120, "glm4_voice": 16384, "mimi": 65536, "cosyvoice2": 6561, "baichuan": 19456}
    for name, entries in ids.items():
        codec = compose_stage(recipe, "tiny", "pretrain", [f"codec={name}"]).codec
        assert sum(book.entries for book in codebooks_of(codec)) == entries, name
    assert codebooks_of(PAIR) == (Codebook("linguistic", 8, 16.667, 2), Codebook("semantic", 16, 25.0, 3))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("kind", "other", "codec.kind=other: not one of whisper_kmeans"),
        ("weights", {}, "codec.weights.encoder is not given"),
        ("weights", {"encoder": "x", "decoder": "y"}, "codec.weights.decoder: codec.kind=whisper_kmeans has no such"),
        ("group", {"linguistic": 2}, "codec.group names"),
        ("group", {"linguistic": 1, "semantic": 3}, "semantic makes 8.333 groups a second and linguistic 16.67"),
        ("group", {"linguistic": 0, "semantic": 3}, "codec.group.linguistic=0"),
        ("codebooks.semantic.size", 0, "codec.codebooks.semantic.size=0"),
        ("codebooks.semantic.rate", -1.0, "codec.codebooks.semantic.rate=-1.0"),
        ("codebooks.semantic.rows", 2, "rows=2: codec.kind=whisper_kmeans has at most 1"),
        ("codebooks.semantic.layer", None, "layer=None: codec.kind=whisper_kmeans wants a layer from 1 on"),
        ("codebooks.semantic.layer", 0, "layer=0"),
        ("options", {"normalise": True}, "codec.options.normalise: codec.kind=whisper_kmeans has none"),
        ("device", "gpu", "codec.device=gpu"),
        ("batch_seconds", 0.0, "codec.batch_seconds=0.0"),
        ("training_minutes", -1.0, "codec.training_minutes=-1.0"),
    ],
)
def test_impossible_values_are_refused(path: str, value: object, said: str) -> None:
    codec = deepcopy(PAIR)
    *inner, key = path.split(".")
    where: object = codec
    for step in inner:
        where = where[step] if isinstance(where, dict) else getattr(where, step)
    setattr(where, key, value)
    with pytest.raises(BadInput) as raised:
        check_codec(codec)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_kind_has_its_own_codebooks_and_options() -> None:
    codec = CodecConfig(
        name="s",
        kind="step_audio",
        weights=dict.fromkeys(("paraformer", "centroids", "semantic"), "x"),
        codebooks={"linguistic": CodebookConfig(size=8, rate=50 / 3), "other": CodebookConfig(size=8, rate=25.0)},
        group={"linguistic": 2, "other": 3},
    )
    with pytest.raises(BadInput, match="step_audio has linguistic, semantic"):
        check_codec(codec)
    codec.codebooks["semantic"] = codec.codebooks.pop("other")
    codec.group["semantic"] = codec.group.pop("other")
    codec.options = {"normalise": "yes"}
    with pytest.raises(BadInput, match=r"codec\.options\.normalise=yes: has to be a bool"):
        check_codec(codec)
    codec.options = {"normalise": False}
    check_codec(codec)
    codec.codebooks["semantic"].layer = 1
    with pytest.raises(BadInput, match="wants no layer"):
        check_codec(codec)


def test_no_codebooks_are_no_codec() -> None:
    check_codec(CodecConfig())
