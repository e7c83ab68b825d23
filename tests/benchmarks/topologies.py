"""Prints how far each topology's curve is from the single process's: the table in the README."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.train.matrix import Matrix, differences, rows

STEPS = 12


def main() -> None:
    print("| topology | processes | largest loss difference | largest gradient-norm difference |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(Path(folder), STEPS)
        for row in rows():
            loss, norm = differences(*matrix.run(row))
            print(f"| {row.name} | {row.processes} | {loss:.1e} | {norm:.1e} |", flush=True)


if __name__ == "__main__":
    main()
