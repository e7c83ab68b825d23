"""Times our loader against webdataset, lhotse Shar, mosaicml-streaming and megatron-energon, side by side in one run.

Every library reads the same utterances and gets the same layout code; what it does about length is its own: ours and
energon pack rows of 2,048 tokens, the others pad. Runs alternate, each in a process of its own with one thread; a
figure is the median of its runs, and in brackets the lowest and highest. `--json FILE` keeps all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests import peers
from tests.peers import corpora

LIBRARIES = ("ours", "plain_webdataset", "lhotse_shar", "mosaicml_streaming", "energon")
JOBS = (("read", 0), ("rows", 0), ("rows", 2))
RESUMES = (
    *(("ours", samples) for samples in (10_000_000, 10_000)),
    *(("lhotse", samples) for samples in (10_000_000, 1_000_000, 10_000)),
    *(("energon", samples) for samples in (10_000_000, 100_000, 10_000)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=6_000, help="read in each run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = corpora.make(Path(name) / "corpus", options.utterances)
        for module, target in (("lhotse_shar", "shar"), ("mosaicml_streaming", "mds")):
            peers.run("tests.peers.write", module, str(folder), str(Path(name) / target))
        peers.prepare_energon(folder)
        found: dict[tuple[str, int, str], list[dict[str, float]]] = defaultdict(list)
        for _ in range(options.runs):
            for job, workers in JOBS:
                for library in LIBRARIES:
                    line = peers.run(f"tests.peers.{library}", str(folder), job, str(workers), str(options.samples))
                    found[job, workers, library].append(json.loads(line.splitlines()[-1]))
        print_rates(found)
        resumed = {}
        for library, samples in RESUMES:
            line = peers.run("tests.peers.resume", library, str(folder), str(samples), timeout=7200)
            resumed[f"{library} {samples}"] = json.loads(line.splitlines()[-1])
    print("\n| resume in mid-epoch | samples | seconds to the first batch | megabytes more |\n|---|---|---|---|")
    for (library, samples), result in zip(RESUMES, resumed.values(), strict=True):
        print(f"| {library} | {samples:,} | {result['seconds']:.2f} | {result['megabytes']:.0f} |")
    if options.json:
        rates = {f"{library} {job} workers={workers}": runs for (job, workers, library), runs in found.items()}
        options.json.write_text(json.dumps({"rates": rates, "resume": resumed}, indent=2))


def print_rates(found: dict[tuple[str, int, str], list[dict[str, float]]]) -> None:
    print("| job | library | samples/s | tokens/s | of ours | padding | peak MB |\n|---|---|---|---|---|---|---|")
    for job, workers in JOBS:
        ours = median(run["samples_a_second"] for run in found[job, workers, "ours"])
        for library in LIBRARIES:
            runs = found[job, workers, library]
            rates = sorted(run["samples_a_second"] for run in runs)
            tokens = median(run["tokens_a_second"] for run in runs)
            padding = f"{runs[0]['padding']:.1%}" if runs[0]["padding"] is not None else "-"
            cells = [
                f"{job}, {workers or 'no'} workers",
                library,
                f"{median(rates):,.0f} ({rates[0]:,.0f}-{rates[-1]:,.0f})",
                f"{tokens:,.0f}" if tokens else "-",
                f"{median(rates) / ours:.2f}",
                padding,
                f"{max(run['peak_megabytes'] for run in runs):,.0f}",
            ]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
