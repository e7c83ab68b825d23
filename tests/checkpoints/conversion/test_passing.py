"""Tensors that pass by once, against what torch makes of them."""

from __future__ import annotations

import pytest
import torch

from checkpoints import strips
from checkpoints.card_rows import hash_of
from checkpoints.conversion.moves import Layouts
from checkpoints.conversion.passing import Apart, Look, Sink, pour
from checkpoints.rules import HALVES, Layout
from checkpoints.strips import Bytes, Strips, width_of
from tests.checkpoints.conversion.test_moves import BACKBONE, CASES, OTHERS


def into(tensor: torch.Tensor) -> Sink:
    """Puts rows where they are said to belong."""
    held = tensor.view(-1).view(torch.uint8).numpy().reshape(-1, width_of(tensor.shape, tensor.dtype))

    def put(first: int, rows: Bytes) -> None:
        held[first : first + len(rows)] = rows

    return put


@pytest.mark.parametrize("name", [name for name in CASES if name != "qkv blocks"])
@pytest.mark.parametrize("block", [32, 100, 1 << 20])
def test_rows_come_apart_as_the_layout_computes(monkeypatch: pytest.MonkeyPatch, name: str, block: int) -> None:
    monkeypatch.setattr(strips, "BLOCK", block)
    monkeypatch.setattr(strips, "_SMALL", 40)
    layout, shapes = CASES[name]
    parts = [torch.randn(shape) for shape in shapes]
    whole = layout.fuse(parts, BACKBONE)
    layouts = Layouts(BACKBONE)
    runs = layouts.woven(layout, tuple(whole.shape))
    assert runs is not None
    for given in (Strips.of(whole), layouts.fuse(layout, [Strips.of(part) for part in parts])):
        made, fused = [torch.zeros(shape) for shape in shapes], torch.zeros(whole.shape)
        looks, look = [Look(torch.float32) for _ in parts], Look()
        sinks: dict[int, list[Sink]] = {
            number: [one, into(tensor)] for number, (one, tensor) in enumerate(zip(looks, made, strict=True))
        }
        pour(given, [look, into(fused), Apart(runs, sinks)])
        assert torch.equal(fused, whole) and look.xxh3 == hash_of(whole)
        for tensor, part, one in zip(made, parts, looks, strict=True):
            assert torch.equal(tensor, part) and one.xxh3 == hash_of(part) and one.nonfinite == 0


@pytest.mark.parametrize("layout", [*OTHERS.values(), CASES["qkv blocks"][0]], ids=[*OTHERS, "qkv blocks"])
def test_what_a_hash_cannot_follow_is_told(layout: Layout) -> None:
    """More than rows moved, and rows of one tensor in another order than its own."""
    assert Layouts(BACKBONE).woven(layout, (32, 16) if layout is CASES["qkv blocks"][0] else (6, 6)) is None


def test_values_that_are_no_numbers_are_counted_where_they_belong() -> None:
    parts = [torch.ones(4, 16), torch.ones(4, 16)]
    parts[1][1, 3], parts[1][3, 0] = float("nan"), float("-inf")
    looks = [Look(torch.float32), Look(torch.float32)]
    runs = Layouts(BACKBONE).woven(HALVES, (8, 16))
    assert runs is not None
    pour(Strips.of(torch.cat(parts)), [Apart(runs, {0: looks[:1], 1: looks[1:]})])
    assert [look.nonfinite for look in looks] == [0, 2]


def test_tensors_without_elements_and_axes() -> None:
    for tensor in (torch.ones(0, 3), torch.ones(()), torch.ones(0)):
        look = Look(tensor.dtype)
        pour(Strips.of(tensor), [look])
        assert look.xxh3 == hash_of(tensor)
