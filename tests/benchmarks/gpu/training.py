"""A training step of our Megatron engine: tokens a second, MFU, memory, where its time goes, where the host waits."""

from __future__ import annotations

import gc
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch

from configs.schema import BackboneConfig, Config, Fp8Config, Precision, Recompute, RecomputeMethod
from data_pipeline.batch import Batch, Pack, collate
from tests.benchmarks.gpu import older_torch
from tests.benchmarks.gpu.rows import MODALITIES, attended, packed_rows, predicted, real_tokens
from tests.benchmarks.gpu.shapes import Scale, backbone
from train.engines import megatron, process_groups
from train.engines.megatron import MegatronEngine
from train.flops import Recomputed, StepFlops, device_peak_flops, step_flops
from train.models.fp8 import check_fp8_here
from train.objectives.next_token import NextToken

ROOT = Path(__file__).resolve().parents[3]
LEARNING_RATE = 3e-4
ADAM = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
_KERNELS_TOLD = 14


def device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


# --- ours -----------------------------------------------------------------------------------------------------------


def ours(
    scale: Scale,
    *,
    shape: str,
    positions: str,
    packs: int,
    micro_batches: int,
    recompute: tuple[str, ...] = ("none",),
    fp8: bool = False,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """packs: of a micro-batch, which is one row; micro_batches: of a step. One part for each kind of `recompute`.

    seconds_of_start: building, compiling and the first steps."""
    older_torch.mend()
    config = config_of(backbone(shape, positions, scale), scale, packs)
    place = process_groups.join(config.parallel)
    if fp8:
        config.train.fp8 = fp8_of(config, place)
    data = data_of(scale, packs, micro_batches)
    for kind in recompute:
        config.parallel.recompute = Recompute(kind)
        part = "" if kind == "none" else f"recompute {kind}"
        try:
            yield part, _ours(config, scale, data, packs, place)
        except torch.OutOfMemoryError as error:
            yield part, {"failed": f"out of memory: {str(error).splitlines()[0]}"}
        free()


def config_of(shape: BackboneConfig, scale: Scale, packs: int, recompute: str = "none") -> Config:
    config = Config(backbone=shape)
    config.parallel.recompute = Recompute(recompute)
    config.parallel.recompute_method = RecomputeMethod.uniform
    config.train.precision = Precision.bf16
    config.train.sequence_length = scale.length
    config.train.micro_batch = packs
    config.train.deterministic = False  # as the others are
    config.loss.chunk = 4096 if not scale.tiny else 64
    return config


def fp8_of(config: Config, place: torch.device) -> Fp8Config:
    """The option as it is by default, but of a model of toy size; raises BadInput where this GPU cannot."""
    fp8 = Fp8Config() if config.backbone.layers > 2 else Fp8Config(bf16_first=0, bf16_last=0)
    if place.type == "cuda":
        check_fp8_here(replace(config, train=replace(config.train, fp8=fp8)))
    return fp8


def data_of(scale: Scale, packs: int, micro_batches: int) -> list[list[Pack]]:
    """Packs of the steps to come; they are used in turns."""
    size = packs * micro_batches
    steps = 4 if not scale.tiny else 2
    rows = packed_rows(steps * size, scale.length, scale.ids, seed=1, words=scale.words)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _ours(config: Config, scale: Scale, data: list[list[Pack]], packs: int, place: torch.device) -> dict[str, Any]:
    began = time.perf_counter()
    engine, objective = build(config, scale, place)
    splits: list[dict[str, float]] = []

    def step(batches: list[Batch]) -> float:
        outcome = engine.train_step(batches, LEARNING_RATE, [], lambda _: True)
        splits.append(dict(outcome.seconds))
        return objective.averages(outcome.sums, outcome.counts)["lm"]

    def rows(number: int) -> list[Batch]:
        chosen = data[number % len(data)]
        return [collate(chosen[start : start + packs]) for start in range(0, len(chosen), packs)]

    found = timed(lambda number: step(rows(number)), scale, place)
    found["seconds_of_start"] = time.perf_counter() - began - sum(found["step_seconds"])
    timed_splits = splits[-scale.timed :]
    found["time_split"] = {
        phase: sum(one[phase] for one in timed_splits) / sum(sum(one.values()) for one in timed_splits)
        for phase in timed_splits[0]
    }
    found |= speed(config, scale, data, found["step_seconds"], place)
    if config.parallel.recompute is not Recompute.none:
        return found
    batches = rows(0)
    found["host_waits"] = host_waits(lambda: step(batches), place)
    found["profile"] = profile(lambda: step(batches), place)
    return found


def build(config: Config, scale: Scale, place: torch.device, *, by_name: bool = False) -> tuple[MegatronEngine, Any]:
    """by_name: weights as training draws them, on the CPU; else as Megatron-Core does on the device, which for billions
    saves half a minute."""
    objective = NextToken(MODALITIES, config.loss)
    initialise = megatron.initialise if by_name else lambda *_: None
    with mock.patch.object(megatron, "initialise", initialise):
        return MegatronEngine(config, scale.ids.rows, objective, place), objective


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- what is measured, of ours and of the others ----------------------------------------------------------------------


def timed(step: Callable[[int], float], scale: Scale, place: torch.device) -> dict[str, Any]:
    """Seconds of `scale.timed` steps after `scale.warm` others, losses of all, and peak memory."""
    losses = [step(number) for number in range(scale.warm)]
    if place.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for number in range(scale.warm, scale.warm + scale.timed):
        began = time.perf_counter()
        losses.append(step(number))
        if place.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    found: dict[str, Any] = {"step_seconds": seconds, "losses": losses}
    if place.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        found["reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
    return found


def speed(
    config: Config, scale: Scale, data: list[list[Pack]], seconds: list[float], place: torch.device
) -> dict[str, Any]:
    """Tokens a second and MFU of the median step, over the mean batch: padding counts nothing."""
    one = median(seconds)
    flops = flops_of(config, scale, data)
    peak = device_peak_flops(torch.cuda.get_device_name(place), Precision.bf16) if place.type == "cuda" else None
    tokens = sum(map(real_tokens, data)) / len(data)
    return {
        "tokens_a_step": tokens,
        "tokens_a_second": tokens / one,
        "tflops": flops.model / one / 1e12,
        "mfu": None if peak is None else flops.model / one / peak,
        "hfu": None if peak is None else flops.hardware / one / peak,
    }


def flops_of(config: Config, scale: Scale, data: list[list[Pack]]) -> StepFlops:
    """Of the mean step."""
    rows = [pack for packs in data for pack in packs]
    return step_flops(
        config.backbone,
        scale.ids.rows,
        real_tokens(rows) / len(data),
        attended(rows) / len(data),
        recomputed=Recomputed.of(config, scale.ids.rows),
        predicted=predicted(rows) / len(data),
    )


def host_waits(step: Callable[[], Any], place: torch.device) -> dict[str, int] | None:
    """How often the host waits for the device in a step, by the line that makes it; None: no device."""
    if place.type != "cuda":
        step()
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines = (f"{_short(found.filename)}:{found.lineno}" for found in caught if "synchroniz" in str(found.message))
    return dict(Counter(lines).most_common())


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else "/".join(path.parts[-3:])


def profile(step: Callable[[], Any], place: torch.device) -> dict[str, Any]:
    """The kernels (on a CPU, operators) that a step spends most time in, and the share of it that the device works."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    cuda = place.type == "cuda"
    with profiler(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        began = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    rows = [
        (row.key, (row.self_device_time_total if cuda else row.self_cpu_time_total) / 1e6, row.count)
        for row in seen.key_averages()
    ]
    rows.sort(key=lambda row: -row[1])
    return {
        "seconds": seconds,
        "busy": sum(row[1] for row in rows) / seconds,
        "kernels": [
            {"name": name[:100], "seconds": spent, "calls": calls} for name, spent, calls in rows[:_KERNELS_TOLD]
        ],
    }
