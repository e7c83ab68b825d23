"""Prints how far each topology's curve is from the single process's: the table in the README."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.data_pipeline.synthetic import make_corpus
from tests.train.runs import run_config, tiny_config
from tests.train.test_topologies import TOPOLOGIES


def main() -> None:
    print("| topology | processes | largest loss difference | largest gradient-norm difference |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = make_corpus(folder / "corpus")
        single = run_config(tiny_config(folder / "single", corpus))
        for number, (topology, (processes, parallel)) in enumerate(TOPOLOGIES.items()):
            changes = {f"parallel__{key}": value for key, value in parallel.items()}
            curve = run_config(tiny_config(folder / str(number), corpus, **changes), processes)
            loss, norm = (
                max(abs(ours[key] / theirs[key] - 1) for ours, theirs in zip(curve, single, strict=True))
                for key in ("loss", "grad_norm")
            )
            print(f"| {topology} | {processes} | {loss:.1e} | {norm:.1e} |", flush=True)


if __name__ == "__main__":
    main()
