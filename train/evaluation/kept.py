"""What was measured already: a line an item, so that whatever ends the process costs a few items."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.shards import replace_atomically
from data_pipeline.sources.evaluation import Item
from runtime import records
from train.evaluation.measurement import Record


class Kept:
    """The records of one measurement and set, by key, in `path`: first what decides them, then one an item. Those of
    another `identity` are thrown away."""

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        head, *held = records.read(path) or [{}]
        if head.get("identity") != identity:
            head, held = {"identity": identity}, []
        lines = [json.dumps(record, allow_nan=False) + "\n" for record in (head, *held)]
        replace_atomically(path, "".join(lines).encode())  # without a line that a kill cut short
        self.records: dict[str, Record] = {line["key"]: line["record"] for line in held}

    def add(self, item: Item, record: Record) -> None:
        """On disk before this returns."""
        records.append(self._path, {"key": item.key, "record": record})
        self.records[item.key] = record

    def missing(self, items: Sequence[Item]) -> list[Item]:
        """Those of `items` that have no record yet."""
        return [item for item in items if item.key not in self.records]
