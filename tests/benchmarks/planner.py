"""The planner beside published throughput: a table, and how the constants were fitted (`--fit`).

python tests/benchmarks/planner.py
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launch.planner import hardware
from tests.launch.planner.published import Row, read

EAGER = ("foundry", "internevo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true", help="fit the constants anew to the rows that say so")
    options = parser.parse_args()
    if options.fit:
        fit()
    else:
        show(read())


def show(rows: list[Row]) -> None:
    print(f"{'configuration':<46} {'source':<12} {'published':>10} {'predicted':>10} {'error':>8}   tokens/s/GPU")
    for row in rows:
        mark = ", ".join([*["fitted"] * row.fitted, *(f"{name} assumed" for name in row.assumed)])
        print(f"{row.name:<46} {row.source:<12} {row.tokens:10.1f} {row.predicted:10.1f} {row.error:8.1%}   {mark}")
    fitted_models = {row.model for row in rows if row.fitted}
    for name, chosen in (
        ("fitted", [row for row in rows if row.fitted]),
        ("held out", [row for row in rows if not row.fitted]),
        ("held out, nothing assumed", [row for row in rows if not row.fitted and not row.assumed]),
        ("held out, of a model that no fitted row has", [row for row in rows if row.model not in fitted_models]),
    ):
        errors = [abs(row.error) for row in chosen]
        print(f"{name}: {len(errors)} rows, median error {median(errors):.1%}, worst {max(errors):.1%}")


# What is fitted: its name here, what kernels' own benchmarks lead one to expect, and how far off that may be.
_EXPECTED = {
    "hopper.matmul": (0.75, 0.05),  # cuBLAS on H100, 8192 x 8192 x 8192: 700 to 790 TFLOP/s
    "hopper.attention": (0.5, 0.1),  # FlashAttention-2 to -3: 350 to 650 TFLOP/s (2407.08608, figures 5 and 6)
    "ampere.matmul": (0.8, 0.05),
    "ampere.attention": (0.55, 0.1),  # FlashAttention-2: 63 to 73 % of the peak at best (2307.08691, section 4.1)
    "edge": (150.0, 50.0),  # a tile's side
    "nemo.hidden": (0.5, 0.25),
    "eager.passes": (1.5, 0.5),
    "500w.clock": (0.85, 0.1),
}
_TRUST = 0.03  # error of a row that the model itself leaves


def fit() -> None:
    """The likeliest constants, where errors of rows and of expectations are normal (maximum a posteriori)."""
    from scipy.optimize import least_squares

    rows = [row for row in read() if row.fitted]
    expected, spread = zip(*_EXPECTED.values(), strict=True)

    def residuals(values: list[float]) -> list[float]:
        constants = dict(zip(_EXPECTED, values, strict=True))
        errors = [math.log(1 + _with(row, constants).error) / _TRUST for row in rows]
        return errors + [(value - mean) / by for value, mean, by in zip(values, expected, spread, strict=True)]

    constants = dict(zip(_EXPECTED, least_squares(residuals, expected, x_scale=spread).x, strict=True))
    for name, value in constants.items():
        print(f"{name} = {value:.3g}")
    show([_with(row, constants) for row in read()])


def _with(row: Row, constants: dict[str, float]) -> Row:
    ampere = row.gpu.name.startswith("a")
    generation = "ampere" if ampere else "hopper"
    reached = replace(
        hardware.AMPERE if ampere else hardware.HOPPER,
        matmul=constants[f"{generation}.matmul"],
        attention=constants[f"{generation}.attention"],
        edge=constants["edge"],
    )
    peak = hardware.GPUS["h100"].peak * constants["500w.clock"] if row.gpu.name == "h100-500w" else row.gpu.peak
    software = row.software
    if software.name == "nemo":
        software = replace(software, hidden=constants["nemo.hidden"])
    elif software.name in EAGER:
        software = replace(software, passes=constants["eager.passes"])
    return replace(row, gpu=replace(row.gpu, reached=reached, peak=peak), software=software)


if __name__ == "__main__":
    main()
