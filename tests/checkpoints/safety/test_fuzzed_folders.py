"""Headers and indexes that were valid until somebody cut, flipped, spliced or doubled bytes of them.

What is accepted all the same has to be what safetensors' own reader makes of the file; everything else is refused in
one line, within a second or two, and leaves nothing behind.
"""

from __future__ import annotations

import itertools
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from checkpoints.formats.huggingface import HuggingFaceReader
from checkpoints.inspect import verify
from checkpoints.pickle_scan import why_refused
from runtime.exits import BadInput
from tests.checkpoints.safety.folders import INDEX, WEIGHTS, listing, split, to_native, write_native, write_source

SECONDS = 20  # of one example, on a machine that does other things too
EXAMPLES = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# What valid files hold and mutations should meet often.
_WORDS = rb"""{ } [ ] " , : 0 -1 1e9 99999999999999999999 null NaN ../ \u0000 model.norm.weight data_offsets F32 BF16
shape __metadata__ weight_map"""
WORDS = st.sampled_from([*_WORDS.split(), b"\xff", b"\n", b"\0"])
Mutation = Callable[[bytes], bytes]


@st.composite
def mutations(draw: st.DrawFn) -> list[Mutation]:
    """One to three changes, at places given as fractions of a length that is not known yet."""
    places = st.floats(0, 1, allow_nan=False)

    def one() -> Mutation:
        kind = draw(st.sampled_from(["truncate", "flip", "splice", "replace", "double", "drop"]))
        at, to, bit, word = draw(places), draw(places), draw(st.integers(0, 7)), draw(WORDS)

        def mutate(content: bytes) -> bytes:
            i, j = sorted((int(at * len(content)), int(to * len(content))))
            if kind == "truncate":
                return content[:i]
            if kind == "flip":
                return content[:i] + bytes(byte ^ 1 << bit for byte in content[i : i + 1]) + content[i + 1 :]
            if kind == "splice":
                return content[:i] + word + content[i:]
            if kind == "replace":
                return content[:i] + word + content[i + len(word) :]
            j = min(j, i + 200)
            return (
                content[:j]
                + (content[i:j] if kind == "double" else b"")[: j - i]
                + content[j if kind == "double" else i + 9 :]
            )

        return mutate

    return [one() for _ in range(draw(st.integers(1, 3)))]


def mutated(content: bytes, changes: list[Mutation]) -> bytes:
    for change in changes:
        content = change(content)
    return content


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise in the main thread what takes longer."""

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"still at it after {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


_numbers = itertools.count()


def examine(parent: Path, source: Path, expected: Callable[[], dict[str, torch.Tensor]]) -> None:
    """Convert a folder that may be anything: either what `expected` gives comes of it, or one line and nothing."""
    native = parent / f"native-{next(_numbers)}"
    before = listing(parent)
    with within(SECONDS):
        try:
            to_native(source, native)
        except BadInput as error:
            said = str(error)
            assert said and "\n" not in said and said.isprintable() and len(said) < 2000
            assert listing(parent) == before
            assert verify(native)
            return
    assert verify(native) == []
    shutil.rmtree(native)
    assert listing(parent) == before
    reader = HuggingFaceReader(source)
    there = expected()
    assert reader.names == set(there)
    assert all(torch.equal(reader.read(name), tensor) for name, tensor in there.items())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source")


@given(changes=mutations(), keep_length=st.booleans())
@EXAMPLES
def test_headers(source: Path, changes: list[Mutation], keep_length: bool) -> None:
    """The header's text alone, under its old length or its new one."""
    content = _original(source / WEIGHTS)
    length = int.from_bytes(content[:8], "little")
    text = mutated(content[8 : 8 + length], changes)
    said = length if keep_length else len(text)
    (source / WEIGHTS).write_bytes(said.to_bytes(8, "little") + text + content[8 + length :])
    examine(source.parent, source, lambda: load_file(source / WEIGHTS))


@given(changes=mutations())
@EXAMPLES
def test_whole_files(source: Path, changes: list[Mutation]) -> None:
    (source / WEIGHTS).write_bytes(mutated(_original(source / WEIGHTS), changes))
    examine(source.parent, source, lambda: load_file(source / WEIGHTS))


@given(changes=mutations())
@EXAMPLES
def test_indexes(source: Path, changes: list[Mutation]) -> None:
    """An index that is accepted names every tensor in the file that has it."""
    if not (source / INDEX).exists():
        split(source)
    (source / INDEX).write_bytes(mutated(_original(source / INDEX), changes))

    def expected() -> dict[str, torch.Tensor]:
        listed = json.loads((source / INDEX).read_text())["weight_map"]
        return {name: load_file(source / file)[name] for name, file in listed.items()}

    examine(source.parent, source, expected)


@given(changes=mutations())
@EXAMPLES
def test_configs(source: Path, changes: list[Mutation]) -> None:
    (source / "config.json").write_bytes(mutated(_original(source / "config.json"), changes))
    examine(source.parent, source, lambda: load_file(source / WEIGHTS))


@pytest.fixture
def native(tmp_path: Path) -> Path:
    return write_native(tmp_path / "native")


@given(changes=mutations(), of=st.sampled_from(["manifest.json", "tensors/.metadata"]))
@EXAMPLES
def test_native_manifests_and_indexes(native: Path, changes: list[Mutation], of: str) -> None:
    """Without a manifest that vouches for it a changed index never passes; a changed manifest says nothing else of
    tensors than the index does."""
    for name in ("manifest.json", "tensors/.metadata"):
        (native / name).write_bytes(_original(native / name))
    content = mutated(_original(native / of), changes)
    (native / of).write_bytes(content)
    with within(SECONDS):
        found = verify(native)
        if of == "tensors/.metadata":
            why_refused(content)  # whatever it is given
            assert found or content == _original(native / of)
    assert all("\n" not in line for line in found)


def _original(path: Path) -> bytes:
    """What a file held when it was first asked for: examples of one test share a folder."""
    return _originals.setdefault(path, path.read_bytes())


_originals: dict[Path, bytes] = {}
