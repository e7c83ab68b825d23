"""Metric files of a run: one JSON object a line, continuous over resumes.

`metrics.jsonl` has one object a step, `validation.jsonl` one a validation. The lines are strict JSON: a number that
is not finite stands as the string "nan", "inf" or "-inf", and reading turns it back into a float.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from runtime.run_files import METRICS_FILE, VALIDATION_FILE

NOT_FINITE = ("nan", "inf", "-inf")

Record = dict[str, Any]


class MetricLog:
    """Appends to the metric files of a run folder. One process writes; rank 0.

    resume_step: the step that the run goes on from, 0 for a new run. Lines of later steps, which the run is about to
    repeat, and a line that a kill cut short are dropped first, so that the curve has every step once.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = _reopen(folder / METRICS_FILE, resume_step)
        self._validation = _reopen(folder / VALIDATION_FILE, resume_step)

    def step(self, record: Mapping[str, Any]) -> None:
        """Append one step to `metrics.jsonl`. The record needs a `step`."""
        _append(self._metrics, record)

    def validation(self, record: Mapping[str, Any]) -> None:
        """Append one validation to `validation.jsonl`. Its `step` is the number of steps trained before it."""
        _append(self._validation, record)

    def sync(self) -> None:
        """Put every line on disk. Called before a checkpoint, so that no checkpoint outlives the curve behind it."""
        for file in (self._metrics, self._validation):
            os.fsync(file.fileno())

    def close(self) -> None:
        self._metrics.close()
        self._validation.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(folder: Path) -> list[Record]:
    """Records of `metrics.jsonl` in step order, one a step; empty where there is no file. See `_parse`."""
    return _read(folder / METRICS_FILE)


def read_validation(folder: Path) -> list[Record]:
    """Records of `validation.jsonl` in step order, one a step; empty where there is no file."""
    return _read(folder / VALIDATION_FILE)


# --- lines ------------------------------------------------------------------------------------------------------


def _append(file: IO[str], record: Mapping[str, Any]) -> None:
    file.write(_line(record))
    file.flush()


def _line(record: Mapping[str, Any]) -> str:
    if "step" not in record:
        raise ValueError(f"a metric record needs a step; this one has {', '.join(record)}")
    plain = {key: _to_json(value) for key, value in record.items()}
    return json.dumps(plain, allow_nan=False, separators=(", ", ": ")) + "\n"


def _to_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def _parse(line: str) -> Record | None:
    """The record of a line, or None where the line is torn or otherwise no record."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    return {key: float(value) if value in NOT_FINITE else value for key, value in record.items()}


def _read(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        records = _records(file)
    by_step = {record["step"]: record for record in records}  # a step told twice: the later telling holds
    return [by_step[step] for step in sorted(by_step)]


def _records(lines: Iterable[str]) -> list[Record]:
    return [record for line in lines if line.endswith("\n") and (record := _parse(line)) is not None]


def _reopen(path: Path, resume_step: int) -> IO[str]:
    """Open for appending, after dropping what is beyond `resume_step` or unreadable, in one atomic step."""
    kept = [record for record in _read(path) if record["step"] <= resume_step]
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(_line(record) for record in kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return path.open("a", encoding="utf-8")
