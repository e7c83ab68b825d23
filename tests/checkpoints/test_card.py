"""Cards: rows made apart and merged, hashes, what is claimed twice or not at all, and the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints.card import Card, LeftOut, LogitsAgreement, RoundTrip, Row, RowsChange, Side, read_card, write_card
from checkpoints.card_rows import check_rows, compare, entry_of, hash_of, source_entry
from checkpoints.claims import check_claims
from checkpoints.convert import export_huggingface, import_huggingface
from checkpoints.finite import check_finite, count_nonfinite
from checkpoints.inspect import verify
from checkpoints.tiling import tiles
from runtime.exits import BadInput
from tests.checkpoints.models import tokenizer_json, vocabulary
from tests.checkpoints.safety.folders import ROWS, tiny, weights, write_source

EQUAL = LogitsAgreement("a reference", "2 samples", 64, 2e-6, 0.9999999, 1.0, 1e-4)


def row(name: str = "a", *, dtype: torch.dtype = torch.float32) -> tuple[Row, torch.Tensor]:
    made = torch.arange(6.0).view(3, 2)
    target = entry_of(name.upper(), made.to(dtype), (3,))
    return Row(name.upper(), "copy", (source_entry(name, made, dtype),), (target,)), made.to(dtype)


def card(*rows: Row, **changes: object) -> Card:
    plain = Card(Side("huggingface", "source"), Side("native", "target", {"tensor": 2}), "test", rows)
    return replace(plain, **changes)


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_a_hash_is_of_the_bytes_in_row_major_order(dtype: torch.dtype) -> None:
    tensor = (torch.arange(24) % 5).view(4, 6).to(dtype)
    raw = bytes(tensor.view(torch.uint8).flatten().tolist())
    assert hash_of(tensor) == xxhash.xxh3_64_hexdigest(raw)
    assert hash_of(tensor.t()) == hash_of(tensor.t().contiguous()) != hash_of(tensor)
    assert hash_of(torch.tensor(1.0)) == hash_of(torch.ones(1)) and hash_of(torch.ones(0)) == xxhash.xxh3_64_hexdigest(
        b""
    )


def test_a_row_survives_json_and_says_what_came_back() -> None:
    made, tensor = row()
    assert Row.from_plain(json.loads(json.dumps(made.plain()))) == made
    assert made.targets[0].label == "A[3]" and made.cast is None and made.sources[0].expected is None
    assert compare(made, [tensor]) == RoundTrip(1, 1)
    assert compare(made, [tensor + 1e-7]).differing == ("a",)


def test_a_cast_is_compared_after_it() -> None:
    made, tensor = row(dtype=torch.bfloat16)
    assert made.cast == "float32 to bfloat16"
    assert compare(made, [tensor]) == RoundTrip(1, 0, 1)
    assert compare(made, [tensor.float()]).differing == ("a",)


def test_changed_rows_are_compared_where_they_were_kept() -> None:
    old = torch.randn(6, 2)
    resized = RowsChange(4, 9, "drawn")
    grown = torch.cat([old[:4], torch.randn(5, 2)])
    made = Row("E", "copy", (source_entry("e", old, old.dtype, resized),), (entry_of("E", grown),), resized)
    assert compare(made, [grown]) == RoundTrip(1, 0, 1)
    grown[3, 1] += 1
    assert compare(made, [grown]).differing == ("e",)


def test_parts_of_a_round_trip_add_up() -> None:
    parts = [RoundTrip(3, 2, 1), RoundTrip(2, 1, 0, ("b",))]
    merged = RoundTrip.merged(parts)
    assert merged == RoundTrip(5, 3, 1, ("b",))
    assert str(merged) == "3 of 5 tensors bit-identical, 1 after the stated cast or change of rows; not: b"


def test_a_tensor_in_two_rows_is_refused() -> None:
    made, _ = row()
    check_rows([made, row("b")[0]])
    with pytest.raises(BadInput, match="a is claimed twice: by A and by A"):
        check_rows([made, made])
    with pytest.raises(BadInput, match=r"A\[3\] is claimed twice"):
        check_rows([made, replace(row("b")[0], targets=made.targets)])


# --- claims ---------------------------------------------------------------------------------------------------------


def test_claims() -> None:
    rules = [("qkv", ["q", "k"]), ("norm", ["n"])]
    assert check_claims(rules, {"q", "k", "n"}, "here") == []
    because = {"inv_freq": "computed"}.get
    assert check_claims(rules, {"q", "k", "n", "inv_freq"}, "here", because) == [LeftOut("inv_freq", "computed")]
    with pytest.raises(BadInput, match=r"here: no place for tensor x \(1 such\)"):
        check_claims(rules, {"q", "k", "n", "x", "inv_freq"}, "here", because)
    with pytest.raises(BadInput, match=r"here: has no tensor k \(2 missing\)"):
        check_claims(rules, {"q"}, "here")
    with pytest.raises(BadInput, match="'q' is claimed twice: by qkv and by other"):
        check_claims([*rules, ("other", ["q"])], {"q", "k", "n"}, "here")
    with pytest.raises(BadInput, match="'q' is claimed twice: by qkv and by qkv"):
        check_claims([("qkv", ["q", "q"])], {"q"}, "here")


# --- what is not a number -------------------------------------------------------------------------------------------


@given(
    places=st.lists(st.integers(0, 999), max_size=5, unique=True),
    value=st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
@settings(deadline=None)
def test_values_that_are_no_numbers_are_counted(places: list[int], value: float, dtype: torch.dtype) -> None:
    tensor = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    tensor[::2] = torch.finfo(dtype).min  # their sum would overflow
    tensor[places] = value
    assert count_nonfinite(tensor.view(torch.uint8).numpy(), dtype) == len(places)
    if places:
        with pytest.raises(BadInput, match=f"x has {len(places)} of 1,000 values"):
            check_finite(len(places), 1000, "x", "here")
    check_finite(len(places), 1000, "x", "here", allowed=True)
    check_finite(0, 1000, "x", "here")


# --- pieces that make up a tensor -----------------------------------------------------------------------------------


@given(shape=st.lists(st.integers(1, 4), max_size=3), seed=st.randoms(use_true_random=False))
@settings(deadline=None)
def test_boxes_that_tile_and_boxes_that_do_not(shape: list[int], seed: object) -> None:
    """Against a count of every place; boxes come from cutting the whole again and again, or are one of them moved."""
    boxes = [([0] * len(shape), list(shape))]
    for _ in range(4 if shape else 0):
        offsets, sizes = boxes.pop(seed.randrange(len(boxes)))  # type: ignore[attr-defined]
        axis = seed.randrange(len(shape))  # type: ignore[attr-defined]
        cut = seed.randint(0, sizes[axis])  # type: ignore[attr-defined]
        low, high = list(sizes), list(sizes)
        low[axis], high[axis] = cut, sizes[axis] - cut
        behind = list(offsets)
        behind[axis] += cut
        boxes += [(offsets, low), (behind, high)]
    assert tiles(shape, boxes)
    spoilt = [*boxes]
    index = seed.randrange(len(boxes))  # type: ignore[attr-defined]
    spoilt[index] = boxes[seed.randrange(len(boxes))]  # type: ignore[attr-defined]
    covered = torch.zeros(shape, dtype=torch.int)
    for offsets, sizes in spoilt:
        covered[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))] += 1
    assert tiles(shape, spoilt) == bool((covered == 1).all())
    assert not tiles([*shape, 2], boxes) and not tiles(shape, [([-1] * len(shape), shape)] if shape else [])


# --- the card -------------------------------------------------------------------------------------------------------


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = tuple(row(name)[0] for name in "ab")
    written = card(
        *rows,
        left_out=(LeftOut("c", "a buffer"),),
        round_trip=RoundTrip(2, 2),
        logits=EQUAL,
        commit="0123",
        versions={"a": "1"},
    )
    write_card(tmp_path, written)
    assert read_card(tmp_path) == written
    for text in ("{", "[]", "{}", json.dumps({"format": 2})):
        (tmp_path / "card.json").write_text(text)
        with pytest.raises(BadInput, match=r"card.json: (damaged|format 2)"):
            read_card(tmp_path)
    (tmp_path / "card.json").unlink()
    with pytest.raises(BadInput, match="cannot be read"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("changes", "verdict", "differs"),
    [
        ({}, "not proved: nothing was compared", False),
        ({"round_trip": RoundTrip(1, 1)}, "equal: 1 of 1 tensors bit-identical", False),
        ({"round_trip": RoundTrip(1, 0, 0, ("a",))}, "not equal: 0 of 1 .* not: a", True),
        ({"logits": EQUAL}, "^equal: logits' largest difference 2.0e-06", False),
        (
            {"round_trip": RoundTrip(1, 1), "logits": replace(EQUAL, max_abs=0.2)},
            "not equal: 1 of 1 .*; logits' .* 2.0e-01",
            True,
        ),
    ],
)
def test_a_verdict_is_one_line_and_first_on_the_page(
    changes: dict[str, object], verdict: str, differs: bool, tmp_path: Path
) -> None:
    written = card(row()[0], **changes)
    assert written.differs == differs
    write_card(tmp_path, written)
    lines = (tmp_path / "card.md").read_text().splitlines()
    assert lines[0] == "# source → target"
    with pytest.raises(BadInput, match=verdict):
        raise BadInput(lines[2].strip("*"))


def test_a_stated_cast_is_no_difference_and_a_wrong_tensor_beside_it_is() -> None:
    cast, _ = row(dtype=torch.bfloat16)
    off = replace(EQUAL, max_abs=0.2)
    stated = card(cast, round_trip=RoundTrip(1, 0, 1), logits=off)
    assert not stated.differs and stated.verdict.startswith("equal but for the cast of float32 to bfloat16: 0 of 1")
    wrong = replace(stated, round_trip=RoundTrip(1, 0, 0, ("a",)))
    assert wrong.differs and wrong.verdict.startswith("not equal but for the cast of float32 to bfloat16: 0 of 1")


def test_a_page_has_tables_that_hold_whatever_names_hold(tmp_path: Path) -> None:
    odd = entry_of("a|b`c", torch.ones(2, dtype=torch.bfloat16))
    resized = RowsChange(1, 3, "drawn by lot")
    rows = (
        Row("odd", "copy", (odd,), (odd,)),
        Row("rows", "copy", (entry_of("r", torch.ones(2, 2)),), (entry_of("R", torch.ones(3, 2)),), resized),
        Row("cast", "halves", (entry_of("g", torch.ones(2)), entry_of("u", torch.ones(2))), (odd,), None, ("by hand",)),
    )
    write_card(tmp_path, card(*rows))
    page = (tmp_path / "card.md").read_text()
    for table in page.split("\n\n"):
        if table.startswith("|"):
            widths = {line.replace("\\|", "").count("|") for line in table.splitlines()}
            assert len(widths) == 1, table
    assert "2 rows became 3: the first 1 kept; rows 1 to 1 of the source left out; new ones: drawn by lot" in page
    assert "cast from float32 to bfloat16" in page and "by hand" in page and str(tmp_path) not in page


def test_conversions_leave_cards_that_name_every_tensor(tmp_path: Path) -> None:
    """Both ways; hashes are those of the source as safetensors gives it, and no path of this machine is in a card."""
    source = write_source(tmp_path / "source")
    native = import_huggingface(source, tmp_path / "native", tiny(), text_size=ROWS - 4, padded_size=32)
    described = vocabulary(ROWS - 4, (), ())
    out = export_huggingface(
        native, tmp_path / "out", tiny(), vocabulary=described, tokenizer_json=tokenizer_json(ROWS - 4), token_names=()
    )
    there, back = read_card(native), read_card(out)
    hashes = {entry.label: entry.xxh3 for row in there.rows for entry in row.sources}
    assert hashes == {name: hash_of(tensor) for name, tensor in weights().items()}
    assert (there.source.format, there.target.format, back.target.format) == ("huggingface", "native", "huggingface")
    embedding = next(row for row in there.rows if row.resized is not None)
    assert embedding.resized is not None and (embedding.resized.kept, embedding.resized.rows) == (ROWS - 4, 32)
    after = {entry.label: entry.xxh3 for row in back.rows for entry in row.targets}
    assert after.keys() == hashes.keys()
    assert {name for name, digest in after.items() if digest != hashes[name]} == {"model.embed_tokens.weight"}
    for folder in (native, out):
        assert str(tmp_path) not in (folder / "card.json").read_text() + (folder / "card.md").read_text()
        assert read_card(folder).versions
    (native / "card.json").write_text("{}")
    assert "card.json" in verify(native)[0]
