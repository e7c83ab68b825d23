"""Text from files: rows and files become documents, none is lost, and names are safe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlencode

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.sources import Document, find_source
from data_pipeline.sources.sentences import pieces_of
from runtime.exits import BadInput
from tests.data_pipeline.test_sources_layouts import lines

STORY = "Once there was a king. He had a daughter! Was she happy? " * 4


def documents(name: str, **options: str) -> list[Document]:
    return find_source(f"{name}?{urlencode(options)}" if options else name).documents()


def test_json_lines(tmp_path: Path) -> None:
    rows = [{"text": STORY, "id": "tale/1"}, {"text": "Short.\n\nTwo  lines."}, {"text": "   "}, {"text": None}]
    file = lines(tmp_path / "a.jsonl.gz", *map(json.dumps, rows))
    first, second = documents(f"jsonl:{file}")
    assert " ".join(first.pieces) == STORY.strip() and len(first.pieces) > 1
    assert first.key.startswith("tale_1-x")
    assert (second.key, second.pieces) == ("a-2", ("Short. Two lines.",))
    assert documents(f"jsonl:{tmp_path}/?.jsonl.gz") == [first, second]
    assert documents(f"jsonl:{tmp_path}") == documents(f"jsonl:{tmp_path}/*.gz") == [first, second]
    with pytest.raises(BadInput, match="line 1 has no body; its keys are text, id"):
        documents(f"jsonl:{file}", field="body")
    lines(file, *['{"id": "x", "text": "same name"}'] * 2)
    with pytest.raises(BadInput, match="two documents are called x"):
        documents(f"jsonl:{file}")


def test_parquet(tmp_path: Path) -> None:
    for number in range(2):
        table = pyarrow.table({"content": [STORY, f"Tale {number}.", None], "size": [1, 2, 3]})
        pyarrow.parquet.write_table(table, tmp_path / f"part-{number}.parquet", row_group_size=2)
    found = documents(f"parquet:{tmp_path}", field="content")
    assert [document.key for document in found] == ["part-0-0", "part-0-1", "part-1-0", "part-1-1"]
    assert found[3].pieces == ("Tale 1.",)
    with pytest.raises(BadInput, match="has no column text; it has content, size"):
        documents(f"parquet:{tmp_path}")
    (tmp_path / "part-1.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(BadInput, match=r"part-1\.parquet is no parquet file"):
        documents(f"parquet:{tmp_path}", field="content")


def test_plain_files(tmp_path: Path) -> None:
    lines(tmp_path / "a/one.txt", "The first line", "goes on.", "", "", "Another paragraph.")
    lines(tmp_path / "two.txt.gz", "Packed.")
    (tmp_path / "empty.txt").touch()
    first, second = documents(f"plain:{tmp_path}")
    assert first.key.startswith("a_one-x") and first.pieces == ("The first line goes on. Another paragraph.",)
    assert (second.key, second.pieces) == ("two", ("Packed.",))
    found = documents(f"plain:{tmp_path}/a/one.txt", paragraphs="true")
    assert [(document.key, document.pieces) for document in found] == [
        ("one-0", ("The first line goes on.",)),
        ("one-1", ("Another paragraph.",)),
    ]


def test_what_a_source_says_of_itself(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", '{"text": "Hallo."}')
    german = find_source(f"jsonl:{file}?language=de&licence=CC0-1.0")
    assert (german.language, german.licence) == ("de", "CC0-1.0")
    plain = find_source(f"jsonl:{file}")
    assert (plain.language, plain.licence) == ("en", "not stated")
    before = plain.identity()
    assert before == german.identity() != find_source(f"jsonl:{file}?field=body").identity()
    lines(file, '{"text": "Hallo, hallo."}')
    assert plain.identity() != before


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    for name, options, said in (
        ("library_of_babel", {}, "there are world_english_bible, jsonl:<path>, parquet:<path>, plain:<path>"),
        (f"tape:{tmp_path}", {}, "no such text source"),
        (f"jsonl:{tmp_path}", {}, r"no file \*\.jsonl or"),
        (f"jsonl:{tmp_path}", {"colour": "red"}, "corpus.text=jsonl has no option 'colour'; it has field, id"),
        ("world_english_bible", {"field": "text"}, "no such text source"),
        (f"plain:{tmp_path}", {"paragraphs": "perhaps"}, "option paragraphs must be true or false"),
    ):
        with pytest.raises(BadInput, match=said):
            documents(name, **options)


CHINESE = "从前有一个国王。他有一个女儿！她快乐吗？是的，她很快乐；因为春天来了。"


def test_chinese_is_cut_at_its_own_stops_and_gets_no_spaces() -> None:
    pieces = pieces_of(CHINESE * 12)
    assert "".join(pieces) == CHINESE * 12
    assert len(pieces) > 1 and all(len(piece) <= 235 and piece[-1] in "。！？" for piece in pieces)
    assert pieces_of("他说：“走。”他们走了。Then they went. 走！", shortest=1, longest=12) == [
        "他说：“走。”",
        "他们走了。",
        "Then they",
        "went.",
        "走！",
    ]


def test_curly_quotes_of_english_keep_their_spaces() -> None:
    text = "“Go,” he said. “Now.” “No,” she said."
    assert pieces_of(text, shortest=90, longest=235) == [text]


@given(st.text(st.sampled_from("国王来了。，！？ ab.,!"), max_size=300))
def test_no_character_is_lost_in_any_mixture(text: str) -> None:
    pieces = pieces_of(text, shortest=10, longest=30)
    assert re.sub(r"\s", "", "".join(pieces)) == re.sub(r"\s", "", text)
