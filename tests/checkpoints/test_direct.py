"""Runs of bytes in files, past the page cache: what lies in the file then, and where it does not lie."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints import direct
from checkpoints.direct import DirectFile, Run

SIZE = 40_000  # bytes, some pages


@given(
    ends=st.sets(st.integers(0, SIZE), min_size=2, max_size=5),
    step=st.integers(1, SIZE),
    page=st.sampled_from([4096, 8]),  # 8: nothing that a disk takes, as of file systems that ask for more than pages
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_runs_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: set[int], step: int, page: int
) -> None:
    """Several at once, each with its own begin inside a page; what is around them stays."""
    monkeypatch.setattr(direct, "_PAGE", page)
    monkeypatch.setattr(direct, "_BUFFER", 8192)
    path = tmp_path / "file"
    content = os.urandom(SIZE)
    before = bytes(SIZE)
    path.write_bytes(before)
    low, *cuts = sorted(ends)
    file = DirectFile(path, new=False)
    places = list(zip([low, *cuts], cuts, strict=False))
    runs = [Run(file, begin) for begin, _ in places]
    for first in range(0, SIZE, step):  # in turn
        for run, (begin, end) in zip(runs, places, strict=True):
            run.write(memoryview(content)[min(begin + first, end) : min(begin + first + step, end)])
    for run, (_, end) in zip(runs, places, strict=True):
        assert run.end == end
        run.flush()
    file.sync()
    file.close()
    assert path.read_bytes() == before[:low] + content[low : cuts[-1]] + before[cuts[-1] :]


def test_what_is_written_is_not_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    file = DirectFile(path, new=True)
    if file._direct is None:
        pytest.skip("this file system writes through the page cache alone")
    run = Run(file, 100)
    run.write(memoryview(bytes(9_000_000)))
    run.flush()
    file.sync()
    file.close()
    assert path.stat().st_size == 9_000_100
    with path.open("rb") as stream, pytest.raises(BlockingIOError):
        os.preadv(stream.fileno(), [bytearray(4096)], 1 << 20, os.RWF_NOWAIT)


def test_an_error_of_the_disk_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not grow so far: as a full disk, it fails when the bytes are handed over."""
    import resource
    import signal

    path = tmp_path / "file"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 22, before[1]))
    try:
        file = DirectFile(path, new=True)
        run = Run(file)
        with pytest.raises(OSError) as raised:
            run.write(memoryview(bytes(9_000_000)))
        file.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert raised.value.errno == errno.EFBIG
