"""What results.json tells of the speech that was said: means of its columns, and what a filter would leave of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.quality.filters import Filter
from data_pipeline.quality.funnel import measure_funnel
from data_pipeline.shards import read_index
from runtime.run_files import FUNNEL, MEASURED

DAMAGED_PROMPTS = "damaged_prompts"


def damage_file(shard: Path) -> Path:
    """Beside a shard that was made: which prompts were passed over as damaged, where any were."""
    return shard.with_suffix(".damaged.json")


def told_of(shards: Sequence[Path], columns: Collection[str], condition: Filter | None) -> dict[str, Any]:
    """Of all `shards`, which have some of `columns`: means under `MEASURED`, the funnel of `condition`, if there is
    one, under `FUNNEL`, and by kind the prompts that were passed over as damaged, if any were, under `DAMAGED_PROMPTS`.
    JSON-ready."""
    indexes = [read_index(shard) for shard in shards]
    total = sum(map(len, indexes))
    means = {}
    for name in columns:
        held = np.concatenate([index.columns.get(name, np.full(len(index), np.nan)) for index in indexes])
        known = held[~np.isnan(held)].astype(np.float64)
        mean = f"{known.mean():.4g}" if len(known) else "none"
        means[f"{name}, mean of {len(known):,} of {total:,}"] = mean
    told: dict[str, Any] = {MEASURED: means}
    if condition is not None:
        told[FUNNEL] = asdict(measure_funnel(list(shards), condition, columns))
    damaged: Counter[str] = Counter()
    for file in filter(Path.is_file, map(damage_file, shards)):
        damaged.update(json.loads(file.read_text(encoding="utf-8"))["kinds"])
    if damaged:
        told[DAMAGED_PROMPTS] = dict(damaged)
    return told
