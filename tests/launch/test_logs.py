"""`megaphone logs`: files that real ranks wrote, merged by time, whatever size they have and whoever still writes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.local import run_ranks
from launch.logs.reading import Line, Reader
from launch.logs.show import Wanted, followed, merged, moment, ranks_of
from launch.logs.sources import sources
from runtime.exits import DONE, FAILED, BadInput
from runtime.log_lines import Level, Levels, Stamp, Stamper, parse
from tests.launch.test_local import program

REPOSITORY = Path(__file__).resolve().parents[2]


def stamped(time: float, text: str, rank: int = 0, node: str = "node1", level: Level = Level.info) -> str:
    return f"{Stamp(time, node, rank, level)} {text}\n"


def write(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(lines))
    return file


def texts(lines: Iterator[Line]) -> list[str]:
    return [line.text for line in lines]


def test_what_real_ranks_say_is_merged_by_time_with_their_names(tmp_path: Path) -> None:
    body = f"""
        from runtime.log_lines import stamp_output

        def say(turn, number):
            while number and not os.path.exists(f'{tmp_path}/{{number - 1}}'):
                time.sleep(0.01)
            time.sleep(0.002)  # stamps tell milliseconds, and lines of the same one come in order of rank
            print(f'{{turn}} of {{rank}}', flush=True)
            while f'{{turn}} of' not in open(f'{tmp_path}/logs/rank-{{rank}}.log').read():
                time.sleep(0.01)  # a launcher stamps what rank 0 says when it reads it
            open(f'{tmp_path}/{{number}}', 'w').close()

        stamp_output()
        say('first', rank)
        os.write(2, b'past Python\\n')
        say('second', 3 + rank)
        if rank == 2:
            raise ValueError('broken')
    """
    assert run_ranks(program(body), ranks=3, logs=tmp_path / "logs") == FAILED
    lines = list(merged(sources(tmp_path), Wanted()))
    said = [(line.rank, line.text) for line in lines if line.text.startswith(("first", "second"))]
    assert said == [(rank, f"{turn} of {rank}") for turn in ("first", "second") for rank in range(3)]
    assert [line.time for line in lines] == sorted(line.time for line in lines)
    assert {line.rank for line in lines if line.text == "past Python"} == {0, 1, 2}
    assert len({line.node for line in lines}) == 1
    errors = list(merged(sources(tmp_path), Wanted(level=Level.warning)))
    assert {line.rank for line in errors} == {2}
    assert errors[0].text.startswith("Traceback") and errors[-1].text == "ValueError: broken"


def test_the_command_filters_by_rank_node_level_and_time(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    for rank in range(3):
        lines = (
            stamped(1e9 + second, f"{second} of {rank}", rank, f"node{rank // 2}", Level(second % 4))
            for second in range(rank, 60, 3)
        )
        write(tmp_path / "logs" / f"rank-{rank}.log", *lines)

    def shown(*words: str) -> list[str]:
        said = subprocess.run(
            [sys.executable, "-m", "launch.cli", "logs", str(tmp_path), *words],
            cwd=REPOSITORY,
            env={**os.environ, "TZ": "UTC"},
            capture_output=True,
            text=True,
        )
        assert said.returncode == DONE, said.stderr
        return said.stdout.splitlines()

    assert [line.split()[-3:] for line in shown()] == [[str(i), "of", str(i % 3)] for i in range(60)]
    assert shown("--rank", "1", "--node", "node0")[0] == "2001-09-09T01:46:41.000+00:00 node0 r1 I 1 of 1"
    assert len(shown("--node", "node1")) == 20 and len(shown("--level", "error")) == 15
    assert shown("--since", "2001-09-09T01:47:38")[0].endswith(" 58 of 1")
    bad = subprocess.run([sys.executable, "-m", "launch.cli", "logs", str(tmp_path), "--since", "yesterday"], text=True,
                         capture_output=True, cwd=REPOSITORY)  # fmt: skip
    assert bad.returncode == 2 and "--since yesterday" in bad.stderr


def test_slurms_files_and_stacks_are_read_with_what_they_do_not_say_themselves(tmp_path: Path) -> None:
    write(
        tmp_path / "logs" / "node-1.log",  # ranks of one torchrun, and itself
        stamped(1e9 + 1, "of rank 5", 5, "node2"),
        stamped(1e9 + 2, "of rank 4", 4, "node2"),
        f"[rank5]:[E{datetime.fromtimestamp(1e9 + 3):%m%d %H:%M:%S}.500000000 ProcessGroupNCCL.cpp:629] a timeout\n",
    )
    write(
        tmp_path / "logs" / "stacks-rank-7.txt",
        stamped(1e9 + 4, "stacks of pid 9", 7, "node2", Level.error),
        "Thread 0x1 (most recent call first):\n",
    )
    write(
        tmp_path / "slurm" / "12.log",
        "srun: error: node2: task 1: Killed\n",
        stamped(1e9 + 6, "job 12: a rank failed", -1, "node2"),
    )
    lines = list(merged(sources(tmp_path), Wanted()))
    assert [(line.rank, line.level.name, line.text.split()[-1]) for line in lines[:5]] == [
        (5, "info", "5"),
        (4, "info", "4"),
        (5, "error", "timeout"),
        (7, "error", "9"),
        (7, "error", "first):"),
    ]
    job = [line for line in lines if line.time == 1e9 + 6]
    assert [(line.rank, line.level.name) for line in job] == [(None, "error"), (-1, "info")]
    assert lines[2].time == 1e9 + 3.5
    assert parse(str(job[1])) == (Stamp(1e9 + 6, "node2", -1, Level.info), "job 12: a rank failed")


def test_a_torn_last_line_is_shown_once_and_followed_when_it_is_whole(tmp_path: Path) -> None:
    file = write(tmp_path / "logs" / "rank-0.log", stamped(1e9, "whole"), stamped(1e9 + 1, "to")[:-1])
    assert texts(merged(sources(tmp_path), Wanted())) == ["whole", "to"]
    lines = followed(lambda: sources(tmp_path), Wanted(), pause=lambda _: None)
    assert next(lines).text == "whole"
    with file.open("a") as log:
        log.write("rn\n")
    assert next(lines).text == "torn"
    write(tmp_path / "logs" / "rank-1.log", stamped(1e9 + 2, "a rank that came later", 1))
    assert next(lines).rank == 1


def test_following_files_while_they_are_written_loses_no_line(tmp_path: Path) -> None:
    files = [tmp_path / "logs" / f"rank-{rank}.log" for rank in range(2)]
    for file in files:
        write(file)

    def append(rank: int) -> None:
        with files[rank].open("a") as log:
            for number in range(2000):
                line = stamped(1e9 + number, str(number), rank)
                log.write(line[:30])
                log.flush()
                log.write(line[30:])

    writers = [threading.Thread(target=append, args=(rank,)) for rank in range(2)]
    for writer in writers:
        writer.start()
    found = list(itertools.islice(followed(lambda: sources(tmp_path), Wanted(), pause=lambda _: None), 4000))
    for writer in writers:
        writer.join()
    for rank in range(2):
        assert [int(line.text) for line in found if line.rank == rank] == list(range(2000))


def bytes_read() -> int:
    """By this process, from any file."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_large_file_is_neither_read_whole_nor_from_its_start(tmp_path: Path) -> None:
    """256 MB, mostly holes."""
    file = write(tmp_path / "logs" / "rank-0.log")
    with file.open("wb") as log:
        for number in range(4000):
            log.seek(number << 16)
            log.write(b"\n" + stamped(1e9 + number, f"line {number}").encode() + b"x" * 200 + b"\n")
    (one,) = sources(tmp_path)
    reader = Reader(one, 1e9 + 3998)
    before = bytes_read()
    first = next(line for line in reader.lines(torn=True) if line.text.startswith("line"))
    assert first.text.startswith("line 3998")
    assert bytes_read() - before < 16 << 20


@given(st.lists(st.lists(st.integers(0, 10**6), max_size=20), min_size=1, max_size=5), st.integers(0, 10**6))
def test_any_files_come_out_sorted_and_whole(
    tmp_path_factory: pytest.TempPathFactory, times: list[list[int]], since: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    for rank, own in enumerate(times):
        write(folder / "logs" / f"rank-{rank}.log", *(stamped(1e9 + t / 1000, str(t), rank) for t in sorted(own)))
    wanted = sorted(t for own in times for t in own if t >= since)
    assert [int(text) for text in texts(merged(sources(folder), Wanted(since=1e9 + since / 1000)))] == wanted


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("megaphone: error: no", "error"),
        ("RuntimeError: CUDA error: unspecified launch failure", "error"),
        ("torch.OutOfMemoryError: CUDA out of memory", "error"),
        ("[rank3]:[W1130 04:31:02.123456789 socket.cpp:1] x", "warning"),
        ("[E323 21:57:08.461980659 ProcessGroupNCCL.cpp:1538] x", "error"),
        ("W1130 04:31:02.123000 12 torch/distributed/run.py:793] x", "warning"),
        ("node1:18:22 [1] NCCL INFO x", "info"),
        ("node1:18:22 [1] misc/socket.cc:538 NCCL WARN Net : Connection closed by remote peer", "warning"),
        ("a/b.py:3: UserWarning: x", "warning"),
        ("step  10/100  loss  4.2", "info"),
    ],
)
def test_levels_by_text(line: str, level: str) -> None:
    assert Levels().of(line).name == level


def test_a_stamper_waits_for_whole_lines() -> None:
    stamper = Stamper(3, "node1")
    assert stamper("one\ntw").count("\n") == 1
    found = parse(stamper("o\r\n").rstrip("\n"))
    assert found is not None and found[1] == "two" and (found[0].rank, found[0].node) == (3, "node1")
    assert stamper.end() == ""


def test_moments_and_ranks() -> None:
    assert moment("10m", now=1000.0) == 400.0
    assert ranks_of(["3", "8-10"]) == {3, 8, 9, 10}
    for word in ("x", "3-1"):
        with pytest.raises(BadInput):
            ranks_of([word])
