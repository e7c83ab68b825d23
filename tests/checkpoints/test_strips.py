"""Tensors as strips of rows, against torch's own indexing, concatenation and bytes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import strips as strips_module
from checkpoints.archive import frame_of
from checkpoints.card_rows import hash_of
from checkpoints.hashed_file import Archive, HashedFile
from checkpoints.strips import Strips, side_by_side

DTYPES = st.sampled_from([torch.bfloat16, torch.float32, torch.uint8])
SHAPES = st.lists(st.integers(1, 7), min_size=0, max_size=4).map(tuple)


def numbered(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.arange(torch.Size(shape).numel()) % 251).to(dtype).view(shape)


def content(strips: Strips) -> bytes:
    return b"".join(block.tobytes() for block in strips.blocks())


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@given(shape=SHAPES, dtype=DTYPES, data=st.data())
@settings(deadline=None)
def test_boxes_are_those_of_torch(shape: tuple[int, ...], dtype: torch.dtype, data: st.DataObject) -> None:
    tensor = numbered(shape, dtype)
    offsets = tuple(data.draw(st.integers(0, length - 1)) for length in shape)
    sizes = tuple(data.draw(st.integers(1, length - low)) for length, low in zip(shape, offsets, strict=True))
    box = Strips.of(tensor).box(offsets, sizes)
    expected = tensor[tuple(slice(low, low + size) for low, size in zip(offsets, sizes, strict=True))]
    assert box.shape == sizes and content(box) == raw(expected) and torch.equal(box.tensor(), expected)
    again = box.box((0,) * len(sizes), tuple(-(-size // 2) for size in sizes))
    assert content(again) == raw(expected[tuple(slice(0, -(-size // 2)) for size in sizes)])


@given(shape=SHAPES, axis=st.integers(0, 3), cuts=st.sets(st.integers(1, 6)), seed=st.randoms(use_true_random=False))
@settings(deadline=None)
def test_tiles_make_up_a_tensor(shape: tuple[int, ...], axis: int, cuts: set[int], seed: object) -> None:
    tensor = numbered(shape)
    axis = min(axis, max(len(shape) - 1, 0))
    ends = sorted({*(cut for cut in cuts if shape and cut < shape[axis]), shape[axis] if shape else 1})
    places = list(zip([0, *ends], ends, strict=False))
    tiles = []
    for low, high in places:
        part = tensor.narrow(axis, low, high - low).clone() if shape else tensor
        tiles.append(((*(0,) * axis, low, *(0,) * (len(shape) - axis - 1)) if shape else (), Strips.of(part)))
    seed.shuffle(tiles)  # type: ignore[attr-defined]
    whole = side_by_side(shape, torch.float32, tiles)
    assert content(whole) == raw(tensor) and torch.equal(whole.tensor(), tensor)
    if len(shape) > 1:  # and are cut again across the seams
        assert torch.equal(whole.box((0,) * len(shape), (1, *shape[1:])).tensor(), tensor[:1])
    if len(tiles) > 1:
        with pytest.raises(ValueError, match="tiles of"):
            side_by_side(shape, torch.float32, tiles[1:])


def test_tiles_along_two_axes_are_told() -> None:
    tiles = [((row, column), Strips.of(torch.ones(1, 1))) for row in (0, 1) for column in (0, 1)]
    with pytest.raises(ValueError, match="share out 2 axes"):
        side_by_side((2, 2), torch.float32, tiles)


@pytest.mark.parametrize("columns", [slice(None), slice(3, 90)])
def test_large_and_small_strips_come_in_order(monkeypatch: pytest.MonkeyPatch, columns: slice) -> None:
    """Blocks of whole elements, from runs of memory and from what has to be copied together."""
    monkeypatch.setattr(strips_module, "BLOCK", 1 << 12)
    monkeypatch.setattr(strips_module, "_SMALL", 1 << 10)
    tensor = torch.randn(300, 100)
    order = [(0, 1), (200, 100), (1, 2), (5, 90), (3, 2)]
    view = Strips.of(tensor[:, columns])
    taken = Strips((195, view.shape[1]), torch.float32, tuple(view.rows(order)))
    expected = torch.cat([tensor[low : low + count, columns] for low, count in order])
    assert content(taken) == raw(expected)
    assert all(len(block) <= 1 << 12 and len(block) % 4 == 0 for block in taken.blocks())
    assert hash_of(taken) == hash_of(expected) == xxhash.xxh3_64_hexdigest(raw(expected))


@pytest.mark.parametrize("leading", [(), (1,)])
@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (3, 5), (2, 3, 40)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64])
def test_archives_are_those_of_torch(
    tmp_path: Path, shape: tuple[int, ...], leading: tuple[int, ...], dtype: torch.dtype
) -> None:
    tensor = numbered(shape, dtype)
    torch.serialization.set_crc32_options(False)
    try:
        expected = io.BytesIO()
        torch.save(tensor.view((*leading, *shape)), expected)
        path = tmp_path / "file"
        with HashedFile(path) as file:
            archive = Archive(file, (*leading, *shape), dtype)
            for block in Strips.of(tensor).blocks():
                archive.write(block)
            record = file.finish()
    finally:
        torch.serialization.set_crc32_options(True)
    assert path.read_bytes() == expected.getvalue()
    assert record.size == len(expected.getvalue()) and record.xxh3 == xxhash.xxh3_64_hexdigest(expected.getvalue())


def test_a_frame_takes_no_memory_of_its_tensor() -> None:
    def own() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    frame_of((1, 2), torch.float32)  # what torch needs at first
    before = own()
    frame = frame_of((1 << 15, 1 << 13), torch.float32)  # 1 GiB
    assert frame.nbytes == 1 << 30 and frame.size - frame.nbytes < 4096
    assert own() - before < 1 << 24


def test_an_archive_begun_inside_another_is_told(tmp_path: Path) -> None:
    with HashedFile(tmp_path / "file") as file:
        one, other = (Archive(file, (4,), torch.uint8) for _ in range(2))
        other.write(np.zeros(4, np.uint8))
        with pytest.raises(ValueError, match="file: an archive was begun inside another"):
            one.write(np.zeros(4, np.uint8))
