"""Published throughput beside what the planner predicts for the same config."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from configs.schema import (
    BackboneConfig,
    Config,
    EngineConfig,
    ExpertsConfig,
    ParallelConfig,
    Precision,
    Recompute,
    RecomputeMethod,
    TrainConfig,
)
from launch.planner.costs import chunk_costs
from launch.planner.hardware import GPUS, Gpu, Software
from launch.planner.step import step_seconds
from launch.planner.work import model_work, products_of

FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Row:
    """One published figure. tokens: a second and GPU."""

    name: str
    model: str
    source: str
    fitted: bool
    assumed: tuple[str, ...]
    config: Config
    rows: int
    gpus: int
    gpu: Gpu
    software: Software
    tokens: float

    @property
    def predicted(self) -> float:
        costs = chunk_costs(self.config, self.rows, self.gpus, self.gpu, self.software)
        train = self.config.train
        return train.global_batch * train.sequence_length / step_seconds(costs) / self.gpus

    @property
    def error(self) -> float:
        return self.predicted / self.tokens - 1


def read(file: Path = FILE) -> list[Row]:
    written = yaml.safe_load(file.read_text())
    return [_row(row, written) for row in written["rows"]]


def _row(row: dict[str, Any], written: dict[str, Any]) -> Row:
    model, source = written["models"][row["model"]], row["source"]
    stack = source.split("-")[0]
    name = {"dgxc": "nemo", "megatron": "nemo"}.get(stack, stack)
    config = _config(row, model)
    count = row["gpus"]
    value = row["published"]
    if "seconds" in value:
        tokens = row["batch"] * row["sequence"] / value["seconds"] / count
    elif "tflops" in value:
        tokens = value["tflops"] * 1e12 / full_flops(config, model["rows"])
    else:
        tokens = value["tokens"]
    sizes = " ".join(f"{key.upper()}{row[key]}" for key in ("tp", "pp", "vpp", "cp", "ep", "zero") if key in row)
    return Row(
        f"{row['model']} x{count} {sizes}".strip(),
        row["model"],
        source,
        row.get("fitted", False),
        tuple(row.get("assumed", ())),
        config,
        model["rows"],
        count,
        _gpu(row.get("gpu", "h100"), written["gpus"]),
        Software(name, **written["software"][name]),
        tokens,
    )


def _config(row: dict[str, Any], model: dict[str, Any]) -> Config:
    numbers = {key: model[key] for key in ("layers", "hidden", "ffn", "heads", "kv_heads")}
    experts = None
    if "experts" in model:
        experts = ExpertsConfig(count=model["experts"], ffn=model["ffn"], top_k=model["top_k"])
    tensor, zero, again = row.get("tp", 1), row.get("zero"), row.get("recompute", 0)
    parallel = ParallelConfig(
        tensor=tensor,
        pipeline=row.get("pp", 1),
        virtual_pipeline=row.get("vpp"),
        context=row.get("cp", 1),
        expert=row.get("ep", 1),
        sequence=tensor > 1 and not row.get("plain", False),
        distributed_optimizer=zero is None,
        overlap_gradients=zero is None,
        overlap_parameters=zero is None and row["source"] != "internevo",
        recompute=Recompute.full if again else Recompute.none,
        recompute_method=RecomputeMethod.block,
        recompute_layers=again or 1,
    )
    if row.get("layout") == "spare":  # embedding and head count as layers
        each = (model["layers"] + 2) // (parallel.pipeline * row["vpp"])
        middle = parallel.pipeline * row["vpp"] - 2
        parallel.pipeline_layout = f"E{'t' * (each - 1)}|({'t' * each}|)*{middle}{'t' * (each - 1)}L"
    train = TrainConfig(
        global_batch=row["batch"],
        micro_batch=row["micro"],
        sequence_length=row["sequence"],
        precision=Precision.bf16,
        deterministic=False,
    )
    backbone = BackboneConfig(name=row["model"], tied_embeddings=False, tokenizer="none", experts=experts, **numbers)
    engine = EngineConfig(name="deepspeed", zero_stage=zero) if zero is not None else EngineConfig()
    return Config(backbone=backbone, parallel=parallel, train=train, engine=engine)


def _gpu(name: str, own: dict[str, Any]) -> Gpu:
    if name in GPUS:
        return GPUS[name]
    said = own[name]
    kind = GPUS[said["like"]]
    return replace(
        kind,
        name=name,
        peak=kind.peak * said.get("clock", 1.0),
        memory=float(said.get("memory", kind.memory)),
        bandwidth=float(said.get("bandwidth", kind.bandwidth)),
        network=float(said.get("network", kind.network)),
    )


def full_flops(config: Config, rows: int) -> float:
    """FLOPs a token with the whole score matrix."""
    products = products_of(model_work(config, rows))
    matrices = sum(one.forward + one.backward for one in products if not one.name.endswith(".core"))
    backbone = config.backbone
    return matrices + 12 * backbone.layers * backbone.hidden * config.train.sequence_length
