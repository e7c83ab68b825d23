"""Layouts as moves of rows, against what the layouts compute."""

from __future__ import annotations

import pytest
import torch

from checkpoints.conversion.moves import Layouts, moves
from checkpoints.maps.experts import STACK, STACKED_HALVES
from checkpoints.rules import COPY, HALVES, QKV, QKV_BLOCKS, Layout
from checkpoints.strips import Strips
from configs.schema import BackboneConfig

BACKBONE = BackboneConfig(hidden=16, heads=4, kv_heads=2, head_dim=4)
CASES: dict[str, tuple[Layout, list[tuple[int, ...]]]] = {
    "copy": (COPY, [(6, 16)]),
    "halves": (HALVES, [(6, 16), (6, 16)]),
    "qkv": (QKV, [(16, 16), (8, 16), (8, 16)]),
    "qkv bias": (QKV, [(16,), (8,), (8,)]),
    "qkv blocks": (QKV_BLOCKS, [(32, 16)]),
    "stack": (STACK, [(6, 16)] * 3),
    "stacked halves": (STACKED_HALVES, [(6, 16)] * 4),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_are_moved_as_the_layout_computes(name: str, dtype: torch.dtype) -> None:
    layout, shapes = CASES[name]
    parts = [torch.randn(shape).to(dtype) for shape in shapes]
    layouts = Layouts(BACKBONE)
    expected = layout.fuse(parts, BACKBONE)
    fused = layouts.fuse(layout, [Strips.of(part) for part in parts])
    assert fused.shape == tuple(expected.shape) == layouts.fused(layout, shapes)
    assert torch.equal(fused.tensor(), expected)
    held = {part.data_ptr(): part.nbytes for part in parts}
    for strip in fused.strips:  # nothing was copied
        address = strip.columns[0].ctypes.data
        assert any(begin <= address < begin + length for begin, length in held.items())

    apart = layouts.split(layout, Strips.of(expected))
    assert [one.shape for one in apart] == shapes == [tuple(shape) for shape in layouts.parted(layout, fused.shape)]
    assert all(torch.equal(one.tensor(), part) for one, part in zip(apart, parts, strict=True))
    both = layouts.split(layout, fused)  # by way of views of views
    assert all(torch.equal(one.tensor(), part) for one, part in zip(both, parts, strict=True))


OTHERS = {
    "transposes": Layout(lambda parts, _: parts[0].t(), lambda whole, _: [whole.t()]),
    "reverses a row": Layout(lambda parts, _: parts[0].flip(-1), lambda whole, _: [whole.flip(-1)]),
    "drops rows": Layout(lambda parts, _: parts[0][1:], lambda whole, _: [whole]),
    "repeats rows": Layout(
        lambda parts, _: torch.cat([parts[0], parts[0]]), lambda whole, _: [whole[: len(whole) // 2]]
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_does_more_than_move_rows_is_computed(name: str) -> None:
    layout, tensor = OTHERS[name], torch.randn(6, 6)
    assert moves(lambda tensors: [layout.fuse(tensors, BACKBONE)], [(6, 6)]) is None
    expected = layout.fuse([tensor], BACKBONE)
    layouts = Layouts(BACKBONE)
    assert torch.equal(layouts.fuse(layout, [Strips.of(tensor)]).tensor(), expected)
    assert layouts.fused(layout, [(6, 6)]) == tuple(expected.shape)


def test_parts_that_are_not_alike_are_computed() -> None:
    with pytest.raises(RuntimeError):  # as torch itself would say
        Layouts(BACKBONE).fuse(HALVES, [Strips.of(torch.ones(2, 3)), Strips.of(torch.ones(2, 4))])
