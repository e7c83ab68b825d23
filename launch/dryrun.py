"""`megaphone dryrun`: what every rank of a topology would hold, found out on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from configs.checks import check
from configs.checks.cluster import processes
from configs.checks.topology import data_parallel_size, model_parallel_size
from configs.compose import to_yaml
from configs.schema import Config
from launch.selection import read_words
from runtime.exits import BAD_INPUT, DONE, BadInput

DRY_RUN = "train.dryrun"
GB = 1e9
PARTS = ("weights", "gradients", "optimizer", "other", "step")


def dryrun(options: Namespace) -> int:
    """Every stage that is meant, rank by rank: built, stepped, and its memory in a table."""
    selection = read_words(options.settings)
    stages = selection.stages() if selection.recipe and not selection.stage else [selection.one()]
    gpus = [world_size(config, options.gpus) for config in stages]
    for config, size in zip(stages, gpus, strict=True):
        _check(config, size)
    found = [
        stage
        for size in sorted(set(gpus))
        for stage in _build([config for config, n in zip(stages, gpus, strict=True) if n == size], size, options)
    ]
    print(json.dumps(found) if options.json else "\n\n".join(table(stage) for stage in found), flush=True)
    if options.memory is not None:
        for stage in found:
            refuse_overrun(stage, options.memory)
    return DONE


def world_size(config: Config, asked: int | None = None) -> int:
    """Ranks of the world: `asked`; else what `parallel.data` makes, else those of the cluster where it has several
    nodes, else one copy of the model."""
    if asked is not None:
        return asked
    if config.parallel.data is None and config.cluster.nodes > 1:
        return processes(config.cluster)
    return model_parallel_size(config) * data_parallel_size(config)


def _check(config: Config, gpus: int) -> None:
    """Raise BadInput for what training would refuse, and for what no dry run can show."""
    check(config, gpus)
    if config.engine.name != "megatron":
        raise BadInput(f"engine.name={config.engine.name}: a dry run builds ranks of engine.name=megatron alone")


def _build(stages: Sequence[Config], gpus: int, options: Namespace) -> list[dict[str, Any]]:
    """What the process that builds ranks says of each stage. Raises BadInput with the line that it ends with."""
    with TemporaryDirectory(prefix="megaphone-dryrun-") as folder:
        files = [Path(folder) / f"{number}.yaml" for number in range(len(stages))]
        for file, config in zip(files, stages, strict=True):
            file.write_text(to_yaml(config), encoding="utf-8")
        request = Path(folder) / "request.json"
        asked = {"gpus": gpus, "ranks": ranks_of(options.ranks), "gpu": not options.cpu, "step": not options.no_step}
        answer = Path(folder) / "answer.json"
        places = {"configs": [str(file) for file in files], "answer": str(answer)}
        request.write_text(json.dumps({**places, **asked}), encoding="utf-8")
        command = [sys.executable, "-m", DRY_RUN, str(request)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if line.startswith("megaphone: rank"):
                    print(line, end="", file=sys.stderr, flush=True)
        if process.returncode == BAD_INPUT:
            raise BadInput(said[-1].removeprefix("megaphone: error: ").strip())
        if process.returncode != DONE:
            raise RuntimeError(f"{DRY_RUN} failed with code {process.returncode}:\n{''.join(said)}")
        found: list[dict[str, Any]] = json.loads(answer.read_text(encoding="utf-8"))
        return found


def ranks_of(words: str | None) -> list[int] | None:
    """The numbers of `0,8,56`; None, or "distinct": all ranks that differ in what they hold."""
    if words is None or words == "distinct":
        return None
    if not all(word.isdecimal() for word in words.split(",")):
        raise BadInput(f"--ranks {words}: numbers with commas between them are wanted, or distinct")
    return [int(word) for word in words.split(",")]


def table(stage: dict[str, Any]) -> str:
    """A line a rank: what it holds, and its memory in GB (1e9 bytes), the worst rank marked."""
    ranks = stage["ranks"]
    stepped = ranks[0]["step"] is not None
    worst = max(ranks, key=total)
    lines = [
        f"stage {stage['stage']}: {stage['parameters']:,} parameters ({stage['parameters'] / 1e9:.3f} B) with "
        f"{stage['vocabulary_rows']:,} rows of vocabulary, on {stage['gpus']:,} ranks; of each kind below there are "
        f"{stage['alike']:,}",
        f"{'rank':>6} {'stage':>5} {'parameters':>14}"
        + "".join(f" {part:>9}" for part in (*PARTS, "total"))
        + "  GB, holds",
    ]
    for rank in ranks:
        parts = [rank[part] for part in PARTS]
        figures = "".join(f" {'-' if part is None else f'{part / GB:.2f}':>9}" for part in (*parts, total(rank)))
        mark = " <- most" if rank is worst and len(ranks) > 1 else ""
        lines.append(
            f"{rank['rank']:>6} {rank['stage']:>5} {rank['parameters']:>14,}{figures}  {'|'.join(rank['chunks'])}{mark}"
        )
    if stepped:
        lines.append(
            f"step: activations of the micro-batches under way, and what the pass works with, when that is most (of "
            f"{ranks[0]['micro_batches']} micro-batches, their packs full); CUDA, NCCL and fragmentation are not in it"
        )
    return "\n".join(lines)


def total(rank: dict[str, Any]) -> int:
    """Bytes of a rank at most."""
    return sum(rank[part] or 0 for part in PARTS)


def refuse_overrun(stage: dict[str, Any], memory: float) -> None:
    """Raise BadInput where a rank of this stage needs more than `memory` GB."""
    worst = max(stage["ranks"], key=total)
    if total(worst) <= memory * GB:
        return
    parts = ", ".join(f"{part} {worst[part] / GB:.1f}" for part in PARTS if worst[part])
    largest = max((part for part in PARTS if worst[part]), key=lambda part: worst[part])
    advice = {
        "step": "recompute more (parallel.recompute), cut packs (parallel.tensor, context) or shorten them",
        "optimizer": "share it out (parallel.distributed_optimizer=true)",
    }.get(largest, "share the model over more ranks (parallel.tensor, parallel.pipeline)")
    raise BadInput(
        f"stage {stage['stage']}: rank {worst['rank']} (pipeline stage {worst['stage']}) needs {total(worst) / GB:.1f} "
        f"of {memory:g} GB: {parts}; {advice}"
    )
