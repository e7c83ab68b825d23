"""Starting again: real processes that fail so and so often."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launch.restarts import newest_checkpoint, run_again
from runtime.exits import BAD_INPUT, DONE, FAILED, HALTED, HUNG


def failing(folder: Path, codes: list[int], saves: bool = False) -> list[str]:
    """A command whose n-th start exits with the n-th code (the last of them from then on), having saved or not."""
    body = f"""
import sys
from pathlib import Path
starts = Path({str(folder)!r}) / 'starts'
number = len(starts.read_text()) if starts.exists() else 0
starts.write_text('x' * (number + 1))
if {saves}:
    checkpoint = Path({str(folder)!r}) / f'checkpoints/step-{{number:08d}}'
    checkpoint.mkdir(parents=True)
    (checkpoint / 'manifest.json').touch()
sys.exit({codes}[min(number, {len(codes) - 1})])
"""
    return [sys.executable, "-c", body]


def start(folder: Path, command: list[str], restarts: int) -> tuple[int, int]:
    """The exit code, and how often it was started."""
    code = run_again(
        command,
        ranks=1,
        logs=folder / "logs",
        restarts=restarts,
        pause=0.01,
        progress=lambda: newest_checkpoint(folder),
    )
    return code, len((folder / "starts").read_text())


@pytest.mark.parametrize(
    ("codes", "restarts", "expected"),
    [
        ([1, 76, 0], 2, (DONE, 3)),
        ([1], 2, (FAILED, 3)),
        ([76], 0, (HUNG, 1)),
        ([2], 5, (BAD_INPUT, 1)),
        ([3], 5, (HALTED, 1)),
    ],
)
def test_crashes_and_hangs_are_started_again_and_nothing_else(
    codes: list[int], restarts: int, expected: tuple[int, int], tmp_path: Path
) -> None:
    assert start(tmp_path, failing(tmp_path, codes), restarts) == expected


def test_a_run_that_saves_in_between_is_not_given_up(tmp_path: Path) -> None:
    assert start(tmp_path, failing(tmp_path, [1, 1, 1, 1, 0], saves=True), 1) == (DONE, 5)
