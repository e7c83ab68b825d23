"""What was measured already: a line an item, so that whatever ends the process costs a few items."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.shards import replace_atomically
from data_pipeline.sources.evaluation import Item
from runtime import records
from train.evaluation.measurement import Record


class Kept:
    """The records of one measurement and set, in `path`: first what decides them, then one an item.

    Those of another `identity` are thrown away. `records` are by key; `left_out` says why an item has none.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        head, *held = records.read(path) or [{}]
        if head.get("identity") != identity:
            head, held = {"identity": identity}, []
        lines = [json.dumps(record, allow_nan=False) + "\n" for record in (head, *held)]
        replace_atomically(path, "".join(lines).encode())  # without a line that a kill cut short
        self.records: dict[str, Record] = {}
        self.left_out: dict[str, str] = {}
        for line in held:
            self._take(line)

    def add(self, item: Item, record: Record) -> None:
        self._append({"key": item.key, "record": record})

    def leave_out(self, item: Item, kind: str) -> None:
        self._append({"key": item.key, "left_out": kind})

    def missing(self, items: Sequence[Item]) -> list[Item]:
        """Those of `items` of which nothing is known yet."""
        return [item for item in items if item.key not in self.records and item.key not in self.left_out]

    def _append(self, line: dict[str, Any]) -> None:
        records.append(self._path, line)
        self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        if "left_out" in line:
            self.left_out[line["key"]] = line["left_out"]
        else:
            self.records[line["key"]] = line["record"]
