"""Random faults over a tiny run of two ranks: in the end its curve and its parameters are those of an undisturbed one.

    python -m tests.faults.campaign [--faults 30] [--steps 200] [--seed 1]

Everything is the real thing: launcher, ranks, signals, a file system that is full. Each fault comes once the run has
recovered from the one before. Exit code 1 where a fault was not noticed, or any bit differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from checkpoints.formats.native import NativeReader
from checkpoints.metadata import read_metadata, tensor_records
from checkpoints.store import complete_checkpoints
from configs.compose import to_yaml
from configs.schema import Config
from tests.data_pipeline.synthetic import make_corpus
from tests.faults.launcher import RANKS
from tests.faults.plan import SAID, Fault, Kind, plan
from tests.faults.rank import POISON
from tests.train.runs import tiny_config
from train.metrics import read_metrics

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 240.0  # seconds for any one fault to be overcome
CURVE = ("step", "tokens", "audio_hours", "loss", "loss/text", "loss/audio", "grad_norm", "lr/trunk", "samples")
DISK = 64 * 2**20  # bytes of the file system that checkpoints are on


@dataclass
class Met:
    """A fault, as it was met. `reached`: steps done when it struck; `exit_code`: of the launcher, None: it went on."""

    fault: Fault
    reached: int
    line: str = ""
    exit_code: int | None = None
    repeated: int = 0  # steps
    seconds: float = 0.0  # until the run was past `reached`


def config_of(folder: Path, corpus: Path, steps: int) -> Config:
    return tiny_config(
        folder,
        corpus,
        train__steps=steps,
        train__log_samples=True,
        checkpoint__every=10,
        checkpoint__keep=3,
        parallel__distributed_optimizer=True,
        resilience__on_nonfinite="rewind",
        resilience__most_incidents=100,
        resilience__hang_seconds=5.0,
        resilience__restarts=3,
        resilience__restart_pause=0.1,
    )


class Run:
    """One run of the campaign: its launcher, started as often as need be, and what it says."""

    def __init__(self, config: Config) -> None:
        self.folder = Path(config.run.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_file = self.folder / "config.yaml"
        self.config_file.write_text(to_yaml(config))
        self.said_file = self.folder / "said.txt"
        self.starts = 0
        self.start()

    def start(self) -> None:
        self.starts += 1
        with self.said_file.open("ab") as said:
            self.launcher = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.launcher", str(self.config_file)],
                cwd=REPOSITORY,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    def said(self, since: int = 0) -> str:
        return self.said_file.read_bytes()[since:].decode("utf-8", "replace")

    def step(self) -> int:
        """Steps done, as the metrics say."""
        lines = read_metrics(self.folder)
        return lines[-1]["step"] if lines else 0

    def begun(self) -> tuple[int, int]:
        """Changes when the run goes back to a checkpoint, or does a step again where there is none."""
        with contextlib.suppress(FileNotFoundError):
            incidents = self.folder / "incidents.jsonl"
            lines = incidents.read_bytes().count(b"\n") if incidents.exists() else 0
            return (self.folder / "metrics.jsonl").stat().st_ino, lines
        return 0, 0

    def pid(self, rank: int) -> int:
        """The process of a rank, waited for where the run is just beginning again."""
        found: list[int] = []
        wait_for(lambda: found.extend(self._pids(rank)) or found, f"a process of rank {rank}")
        return found[0]

    def _pids(self, rank: int) -> Iterator[int]:
        for process in psutil.Process(self.launcher.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                ours = "tests.faults.rank" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
                if ours and process.environ().get("RANK") == str(rank):
                    yield process.pid

    def finish(self) -> None:
        """Wait for the launcher, which has to end well."""
        code = self.launcher.wait(PATIENCE)
        if code != 0:
            raise AssertionError(f"the launcher exited with {code}:\n{self.said()[-4000:]}")


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.02)


# --- faults -----------------------------------------------------------------------------------------------------------


def strike(run: Run, fault: Fault, draw: random.Random) -> Met:
    """Cause one fault, and stay until the run is past it."""
    wait_for(lambda: run.step() >= fault.step or run.launcher.poll() is not None, f"step {fault.step}")
    time.sleep(fault.delay)
    met = Met(fault, run.step())
    begun, heard, began = run.begun(), run.said_file.stat().st_size, time.monotonic()
    undo = _cause(run, fault)

    def again() -> bool:
        """Whether the run has begun again; until then, how far it got."""
        if run.begun() != begun:
            return True
        met.reached = max(met.reached, run.step())
        if (code := run.launcher.poll()) is not None:
            met.exit_code = code
            undo()
            if fault.kind is Kind.truncate:
                _truncate(run, draw)
            run.start()
        return False

    wait_for(again, f"the run to begin again after {fault}")
    low = run.step()
    met.repeated = met.reached - low if low <= met.reached else 0
    wait_for(lambda: run.step() > met.reached or run.launcher.poll() is not None, f"the run to be past {fault}")
    met.seconds = time.monotonic() - began
    found = SAID[fault.kind].search(run.said(heard))
    if found is None:
        raise AssertionError(f"{fault} was not noticed; the run said:\n{run.said(heard)[-4000:]}")
    met.line = found[0]
    return met


def _cause(run: Run, fault: Fault) -> Callable[[], None]:
    """Cause a fault; returns what makes good again what the campaign did to the machine."""
    if fault.kind is Kind.poison:
        (run.folder / POISON.format(fault.rank)).touch()
    elif fault.kind is Kind.full:
        return _fill(run, run.pid(1))
    else:
        number = {Kind.kill: signal.SIGKILL, Kind.hang: signal.SIGSTOP}.get(fault.kind, signal.SIGTERM)
        os.kill(run.pid(fault.rank), number)
    return lambda: None


def _fill(run: Run, pid: int) -> Callable[[], None]:
    """Leave no room for the next checkpoint: a full file system, or where none could be mounted a limit to the files of
    one rank."""
    folder = run.folder / "checkpoints"
    if not os.path.ismount(folder):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (16 * 1024, resource.RLIM_INFINITY))
        return lambda: None
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(64 * 1024))
    return filler.unlink


def _truncate(run: Run, draw: random.Random) -> None:
    """Cut one file of the newest checkpoint short."""
    parts = sorted(complete_checkpoints(run.folder / "checkpoints")[-1].glob("tensors/*.distcp"))
    part = draw.choice([part for part in parts if part.stat().st_size])
    with part.open("r+b") as file:
        file.truncate(draw.randrange(part.stat().st_size))


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Give `folder` a small file system of its own, where mounting is allowed."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


# --- the campaign -----------------------------------------------------------------------------------------------------


def differences(clean: Path, faulty: Path) -> list[str]:
    """What differs between two finished runs: lines of the curve, tensors of the last checkpoint, optimiser's too."""
    return curve_differences(clean, faulty) + checkpoint_differences(clean, faulty)


def curve_differences(clean: Path, faulty: Path) -> list[str]:
    curves = [[[line.get(key) for key in CURVE] for line in read_metrics(folder)] for folder in (clean, faulty)]
    found = [f"step {ours[0]} of the curve" for ours, theirs in zip(*curves, strict=False) if ours != theirs]
    if len(curves[0]) != len(curves[1]):
        found.append(f"{len(curves[1])} steps in place of {len(curves[0])}")
    return found


def checkpoint_differences(clean: Path, faulty: Path) -> list[str]:
    last = [complete_checkpoints(folder / "checkpoints")[-1] / "tensors" for folder in (clean, faulty)]
    names = [set(tensor_records(read_metadata(folder))) for folder in last]
    if last[0].parent.name != last[1].parent.name or names[0] != names[1]:
        return ["other checkpoints"]
    ours, theirs = (NativeReader(folder) for folder in last)
    return [name for name in sorted(names[0]) if not torch.equal(ours.read(name), theirs.read(name))]


def campaign(folder: Path, faults: int, steps: int, seed: int) -> tuple[list[Met], list[str], dict[str, float]]:
    """Run with and without faults; returns how each was met, what differs in the end, and seconds of both runs."""
    corpus = make_corpus(folder / "corpus")
    began = time.monotonic()
    clean = Run(config_of(folder / "clean", corpus, steps))
    clean.finish()
    seconds = {"clean": time.monotonic() - began}
    draw = random.Random(seed)
    began = time.monotonic()
    with disk(folder / "faulty" / "checkpoints"):
        run = Run(config_of(folder / "faulty", corpus, steps))
        try:
            met = [strike(run, fault, draw) for fault in plan(seed, faults, steps, RANKS)]
            run.finish()
        finally:
            run.launcher.kill()
        seconds["faulty"] = time.monotonic() - began
        return met, differences(clean.folder, run.folder), seconds


def table(met: list[Met]) -> str:
    lines = [
        "| | fault | rank | at step | noticed by | exit | steps again | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, each in enumerate(met, 1):
        code = "goes on" if each.exit_code is None else each.exit_code
        lines.append(
            f"| {number} | {each.fault.kind.value} | {each.fault.rank} | {each.reached} | {each.line} | {code} | "
            f"{each.repeated} | {each.seconds:.1f} |"
        )
    return "\n".join(lines)


def summary(met: list[Met]) -> str:
    """A row a kind."""
    lines = ["| fault | times | steps again, mean | seconds, mean | longest |", "|---|---|---|---|---|"]
    for kind in Kind:
        those = [each for each in met if each.fault.kind is kind]
        if those:
            repeated = sum(each.repeated for each in those) / len(those)
            lost = [each.seconds for each in those]
            lines.append(
                f"| {kind.value} | {len(those)} | {repeated:.1f} | {sum(lost) / len(lost):.1f} | {max(lost):.1f} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Random faults over a tiny run; it must end as if nothing had happened."
    )
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        met, different, seconds = campaign(Path(folder), options.faults, options.steps, options.seed)
    print(table(met), summary(met), sep="\n\n")
    print(
        f"\n{options.steps} steps: {seconds['clean']:.0f} s undisturbed, "
        f"{seconds['faulty']:.0f} s with {len(met)} faults"
    )
    print("curve and last checkpoint: " + ("; ".join(different) if different else "equal, bit for bit"))
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
