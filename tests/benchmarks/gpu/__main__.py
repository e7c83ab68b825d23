"""Speed on one GPU: training beside what others would train with, what goes on beside it, and whether it is right.

    python -m tests.benchmarks.gpu                   # one GPU, some nine minutes, nothing to download
    python -m tests.benchmarks.gpu --tiny            # the same path at toy sizes, on a CPU too, in about a minute
    python -m tests.benchmarks.gpu --only 3b loss    # measurements whose names hold one of these words
    python -m tests.benchmarks.gpu --list

What is there and what is missing is said first. Every measurement is a process of its own with a limit, and the JSON
file is written after every part of it: what breaks or hangs costs itself alone. The most important come first; what has
no time left is said to be so. A table at the end has figures, aims, and what failed and why.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu import libraries, runner, table
from tests.benchmarks.gpu.plan import CHECK, MEASUREMENTS, Measurement

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ":!tests/benchmarks/results"  # a change that is none of the code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="toy sizes: proves the script, measures nothing")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="measurements whose names hold one of these")
    parser.add_argument("--minutes", type=float, default=8.8, help="after which nothing more is begun (default: 8.8)")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "benchmarks" / "results")
    parser.add_argument("--commit", help="of the tree, where git cannot tell")
    parser.add_argument("--list", action="store_true", help="print the measurements and stop")
    options = parser.parse_args()
    wanted = [one for one in MEASUREMENTS if not options.only or any(word in one.name for word in options.only)]
    if options.list:
        print("\n".join(f"{one.name:28} {one.seconds:4.0f} s at most" for one in wanted))
        return 0
    until = time.monotonic() + 60 * options.minutes
    versions = libraries.versions()
    print("found   " + ", ".join(f"{name} {version}" for name, version in versions.items() if version))
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        print("missing " + ", ".join(missing))
    lacking = [name for name in libraries.NEEDED if versions[name] is None]
    if lacking:
        print(f"nothing can be measured without {', '.join(lacking)}: {libraries.how_to_bring(lacking)}")
        return 2
    return _measured(options, wanted, versions, until)


def _measured(
    options: argparse.Namespace, wanted: list[Measurement], versions: dict[str, str | None], until: float
) -> int:
    began = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
    options.out.mkdir(parents=True, exist_ok=True)
    file, log_file = (options.out / f"gpu-{began}.{kind}" for kind in ("json", "log"))
    results: dict[str, Any] = {
        "began": began,
        "scale": "tiny" if options.tiny else "full",
        "commit": options.commit or _commit(),
        "driver": _said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "versions": versions,
        "measurements": {},
    }
    scratch = Path(tempfile.mkdtemp(prefix="megaphone-gpu-"))
    try:
        with log_file.open("w", encoding="utf-8") as log:

            def measure(some: list[Measurement]) -> None:
                runner.run(some, results["scale"], until, results, file, scratch, log)

            measure([CHECK])
            found = results["measurements"][CHECK.name]
            name = found["parts"].get("", {}).get("name")
            print(f"device  {name or found.get('why')}")
            if name is None or (name == "cpu" and not options.tiny):
                print("no GPU that torch can use: --tiny proves the script on a CPU")
                return 2
            absent = {one.name: [name for name in one.needs if versions.get(name) is None] for one in wanted}
            for one, names in absent.items():
                if names:
                    results["measurements"][one] = {"state": "skipped", "why": f"without {', '.join(names)}"}
            measure([one for one in wanted if not absent[one.name]])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print("\n" + "\n".join(table.lines(results)))
    print(f"\n{file}\n{log_file}")
    measured = {name: one for name, one in results["measurements"].items() if one["state"] != "skipped"}
    return 1 if any(table.failures(measured)) else 0


def _commit() -> str | None:
    """With a mark where the tree has changes that are in no commit."""
    commit = _said("git", "rev-parse", "HEAD")
    return (
        f"{commit}{' and changes' if _said('git', 'status', '--porcelain', '--', '.', RESULTS) else ''}"
        if commit
        else None
    )


def _said(*command: str) -> str | None:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    sys.exit(main())
