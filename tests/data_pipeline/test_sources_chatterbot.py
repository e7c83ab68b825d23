"""The chatterbot-corpus: what its files become, and the package's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.schema import SpeechSourceConfig
from data_pipeline.sources.speech import open_speech_source
from runtime.exits import BadInput

PACKAGE = "package:chatterbot_corpus/data/english"


def told(path: str, split: str | None = None, **options: object) -> dict[str, list[tuple[str, str]]]:
    """Role and text of each turn, by conversation."""
    found: dict[str, list[tuple[str, str]]] = {}
    for recording in open_speech_source(SpeechSourceConfig("chatterbot", path, split, options=options)).recordings():
        (segment,) = recording.segments
        assert recording.key == f"{recording.document}-{len(found.get(recording.document, [])):03d}"
        found.setdefault(recording.document, []).append((segment.role, segment.text))
    return found


def test_lists_of_texts_become_turns(tmp_path: Path) -> None:
    (tmp_path / "food.yml").write_text(
        "conversations:\n- - Do you\n    eat?\n  - No.\n  - Why?\n- - Alone.\n- [1, 2]\n- x\n"
    )
    (tmp_path / "art.yml").write_text("conversations:\n- [Hi., Hello.]\n")
    food = {"food-0000": [("human", "Do you eat?"), ("assistant", "No."), ("human", "Why?")]}
    art = {"art-0000": [("human", "Hi."), ("assistant", "Hello.")]}
    assert told(str(tmp_path)) == art | food
    assert told(str(tmp_path), topics=["food"]) == food == told(str(tmp_path), "food")


@pytest.mark.parametrize("text", ["conversations: 3\n", "- a\n", "conversations: [\n", "\xff"])
def test_what_is_no_such_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "food.yml").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput, match=r"food\.yml: "):
        told(str(tmp_path))


def test_a_topic_has_to_be_there() -> None:
    with pytest.raises(BadInput, match="has no topic cars; there are ai, botprofile"):
        told(PACKAGE, "cars")


def test_the_package_carries_conversations() -> None:
    found = told(PACKAGE, topics=["science", "food"])
    assert len(found) == 45 and sum(map(len, found.values())) == 90
    (_, asked), (_, answered) = found["science-0000"]
    assert asked == "what are the laws of thermodynamics" and answered.startswith("i'm not a physicist, but")


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(BadInput, match="package no_such_corpus is not installed"):
        told("package:no_such_corpus/data")
