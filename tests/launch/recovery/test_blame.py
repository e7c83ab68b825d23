"""Who is named: texts that the sources in the table print, and ranks that really fail."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from launch.local import run_ranks
from launch.logs.reading import Line
from launch.recovery.blame import Blame, Evidence, blame
from launch.recovery.causes import cause_of
from launch.recovery.look import look
from runtime.exits import FAILED, HUNG
from runtime.log_lines import Level
from tests.launch.test_local import program

STAMPED = "from runtime.log_lines import end_output, stamp_output\nstamp_output()\n"


@pytest.mark.parametrize(
    ("text", "kind", "broken"),
    [
        ("NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.", "GPU broken", True),
        ("NVRM: Xid (PCI:0000:3b:00): 794, pid=1", "GPU error", False),
        ("NVRM: Xid (PCI:0000:3b:00): 31, pid=1, Ch 00000010, MMU Fault", "GPU error", False),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "GPU broken", True),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "out of GPU memory", False),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", "CUDA error", False),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.", "out of host memory", False),
        ("OSError: [Errno 28] No space left on device", "file system", False),
        (
            "torch.distributed.DistBackendError: NCCL error in: x.cpp:1, unhandled system error",
            "NCCL system error",
            False,
        ),
        ("Fatal Python error: Segmentation fault", "killed", False),
        ("ValueError: broken", "exception", False),
    ],
)
def test_a_line_is_told_by_its_text(text: str, kind: str, broken: bool) -> None:
    cause = cause_of(text)
    assert cause is not None and (cause.kind, cause.broken) == (kind, broken)


@pytest.mark.parametrize("text", ["loss 2.3, no error", "UserWarning: a thing", "retrying after an error: later"])
def test_a_line_that_tells_of_no_failure(text: str) -> None:
    assert cause_of(text) is None


def line(time: float, rank: int | None, text: str, node: str = "", level: Level = Level.error) -> Line:
    return Line(time, node or ("-" if rank is None else f"node{rank // 2}"), rank, level, text)


def named(*lines: Line, **evidence: object) -> Blame:
    found = blame(Evidence(lines, ranks=4, **evidence))  # type: ignore[arg-type]
    assert found is not None
    return found


LOST_PEER = "RuntimeError: [../gloo/transport/tcp/pair.cc:525] Connection closed by peer"


def test_those_that_lost_a_peer_are_not_blamed_for_it() -> None:
    found = named(
        line(1, 0, LOST_PEER),
        line(2, 1, LOST_PEER),
        line(3, 2, "ValueError: broken"),
        line(4, 3, LOST_PEER),
        ends=dict.fromkeys(range(4), FAILED),
    )
    assert (found.rank, found.node, found.kind, found.why) == (2, "node1", "exception", "ValueError: broken")


def test_broken_hardware_outweighs_what_came_before_it() -> None:
    found = named(
        line(1, 0, "ValueError: broken"), line(2, 3, "RuntimeError: CUDA error: uncorrectable ECC error encountered")
    )
    assert (found.rank, found.node, found.broken) == (3, "node1", True)


def test_what_most_ranks_end_with_is_no_nodes_fault() -> None:
    found = named(*(line(rank, rank, "ValueError: bad data") for rank in range(4)))
    assert (found.rank, found.node) == (None, None)
    assert str(found).startswith("all ranks: exception")


def test_a_lost_node_is_blamed_before_all() -> None:
    found = named(line(1, 0, LOST_PEER), line(1, 2, "hello", level=Level.info), lost=["node1"])
    assert (found.rank, found.node, found.kind) == (2, "node1", "node lost")


def test_a_node_that_slurm_says_failed() -> None:
    assert named(line(1, None, "srun: error: Node failure on node7")).node == "node7"


def test_the_first_task_that_srun_saw_killed() -> None:
    found = named(
        line(1, None, "srun: error: node1: task 3: Killed"), line(2, None, "srun: error: node0: tasks 0-1: Killed")
    )
    assert (found.rank, found.node, found.kind) == (3, "node1", "killed")


def test_a_kill_for_memory_says_so() -> None:
    found = named(
        line(1, None, "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0."), ends={2: -signal.SIGKILL}
    )
    assert (found.rank, found.kind) == (2, "out of host memory")


def test_whom_the_watchdog_names() -> None:
    text = "megaphone: error: no progress for 30 s in the training of step 3: rank 1 does not answer (pid 7 on node5)"
    found = named(line(1, 0, text), ends={0: HUNG})
    assert (found.rank, found.kind) == (1, "hung")
    assert found.node == "node5"


def test_a_heartbeat_that_stopped_where_others_only_lost_a_peer() -> None:
    found = named(line(1, 0, LOST_PEER), line(1, 3, "hello", level=Level.info), silent=[3])
    assert (found.rank, found.node, found.kind) == (3, "node1", "no heartbeat")


def test_nothing_is_made_up() -> None:
    assert blame(Evidence([line(1, 0, "hello", level=Level.info)])) is None


def test_a_rank_that_raises_while_others_wait_for_it(tmp_path: Path) -> None:
    body = STAMPED + (
        "if rank == 1:\n    raise ValueError('broken')\n"
        "time.sleep(0.5)\nraise RuntimeError('gloo/transport/tcp/pair.cc:525 Connection closed by peer')\n"
    )
    ends: dict[int, int] = {}
    assert run_ranks(program(body), ranks=3, logs=tmp_path / "logs", ends=ends) == FAILED
    found = look(tmp_path, 0.0, ends, 3)
    assert found is not None and (found.rank, found.kind, found.why) == (1, "exception", "ValueError: broken")
    assert found.node


def test_a_rank_that_is_killed(tmp_path: Path) -> None:
    body = STAMPED + (
        "print('here')\nif rank == 2:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(0.3)\nraise RuntimeError('Connection reset by peer')\n"
    )
    ends: dict[int, int] = {}
    assert run_ranks(program(body), ranks=3, logs=tmp_path / "logs", ends=ends) == FAILED
    found = look(tmp_path, 0.0, ends, 3)
    assert found is not None and (found.rank, found.kind, found.why) == (2, "killed", "killed by SIGKILL")
    assert found.node


def test_an_earlier_start_is_not_looked_at(tmp_path: Path) -> None:
    body = STAMPED + "raise ValueError('of the first start')"
    run_ranks(program(body), ranks=1, logs=tmp_path / "logs")
    assert look(tmp_path, 4e9, {}, 1, now=5e9) is None
