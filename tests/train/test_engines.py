"""Changing engines and ZeRO stages in mid-flight: one native checkpoint, parameters and Adam state, for all of them."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.manifest import read_manifest
from configs.schema import Config
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import RankFailed, run_ranks
from tests.train.runs import run_config, stage, tiny_config
from tests.train.test_resume import CURVE, curve, write

EVERY, STEPS = 3, 12
MEGATRON: dict[str, Any] = {}
DISTRIBUTED = {"parallel__distributed_optimizer": True}


def zero(number: int, **more: Any) -> dict[str, Any]:
    return {"engine__name": "deepspeed", "engine__zero_stage": number, **more}


# No parameter stays whole on every rank, as small ones do by default.
CUT = {"stage3_param_persistence_threshold": 0}
ON_CPU = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
ZERO_3 = zero(3, engine__deepspeed={"zero_optimization": CUT})
OFFLOADED = zero(3, engine__deepspeed={"zero_optimization": {**CUT, **ON_CPU}})


each_kind = pytest.mark.parametrize(
    ("processes", "settings"),
    [
        (2, zero(0)),
        (2, zero(2)),
        (2, ZERO_3),
        (2, OFFLOADED),
        (2, zero(1, parallel__pipeline=2)),
        (2, zero(1, train__precision="bf16")),
    ],
    ids=["ZeRO-0", "ZeRO-2", "ZeRO-3", "ZeRO-3 on the CPU", "pipeline", "ZeRO-1 bf16"],
)


def config_of(folder: Path, corpus: Path, **changes: Any) -> Config:
    settings = {"train__steps": STEPS, "checkpoint__every": EVERY, "train__log_samples": True, "checkpoint__keep": 0}
    return tiny_config(folder, corpus, **{**settings, **changes})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture(scope="module")
def expected(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One process of the Megatron engine, uninterrupted."""
    return run_config(config_of(tmp_path_factory.mktemp("expected"), corpus))


def go_on(folder: Path, corpus: Path, legs: list[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Train `EVERY` steps in each of `legs` (processes, settings), every one from the checkpoint of the one before."""
    lines: list[dict[str, Any]] = []
    for number, (processes, settings) in enumerate(legs, start=1):
        # All legs are of one run of STEPS steps; the checkpoints past a leg's end are taken away.
        lines = run_config(config_of(folder, corpus, **settings), processes)
        for checkpoint in (folder / "checkpoints").glob("step-*"):
            if number < len(legs) and int(checkpoint.name[5:]) > EVERY * number:
                shutil.rmtree(checkpoint)
    return lines


@pytest.mark.parametrize(
    "legs",
    [
        [(2, zero(1)), (2, ZERO_3), (1, MEGATRON), (2, zero(2))],
        [(2, DISTRIBUTED), (4, zero(1, parallel__pipeline=2)), (1, zero(0)), (2, DISTRIBUTED)],
    ],
    ids=["ZeRO-1, ZeRO-3, Megatron, ZeRO-2", "distributed optimiser, pipeline, ZeRO-0 alone, distributed optimiser"],
)
def test_a_run_goes_on_under_another_engine_with_its_adam_state(
    legs: list[tuple[int, dict[str, Any]]], corpus: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    for ours, theirs in zip(go_on(tmp_path, corpus, legs), expected, strict=True):
        assert ours["samples"] == theirs["samples"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4), ours["step"]
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3), ours["step"]


def test_bf16_keeps_its_fp32_parameters_from_engine_to_engine(corpus: Path, tmp_path: Path) -> None:
    """What an engine hands on is what the next writes down again: a leg of no steps changes no tensor's bits."""
    bf16 = {"train__precision": "bf16", "train__steps": EVERY}
    config = config_of(tmp_path, corpus, **bf16, **DISTRIBUTED)
    run_config(config, 2)
    tensors = []
    checkpoint = tmp_path / f"checkpoints/step-{EVERY:08d}"
    for settings in (zero(1), ZERO_3, zero(2), MEGATRON, DISTRIBUTED):
        (before,) = run_ranks(read_all, 1, str(checkpoint / "tensors"))
        tensors.append(before)
        run_ranks(save_again, 2, write(config_of(tmp_path, corpus, **bf16, **settings)))
    assert len(tensors[0]) == len(read_manifest(checkpoint).tensors) > 30
    assert all(again == tensors[0] for again in tensors[1:])


def test_zero_3_starts_from_the_same_bits_and_never_holds_a_whole_model(corpus: Path, tmp_path: Path) -> None:
    """Only its share, and the parameter that is being filled."""
    settings = {"train__precision": "bf16", "stage__lora": {"rank": 4, "alpha": 8}}
    whole, cut = (
        run_ranks(built, 2, write(config_of(tmp_path / name, corpus, **settings, **stage)))
        for name, stage in (("whole", zero(2)), ("cut", ZERO_3))
    )
    values = [rank[0] for rank in (*whole, *cut)]
    assert len(values[0]) > 30 and all(others == values[0] for others in values)
    size = whole[0][1]
    for _, held, largest in cut:
        assert held <= size / 2 + largest + size / 20, "more than the share and one parameter"


def built(config_file: str) -> tuple[dict[str, bytes], int, int]:
    """Of an engine just built: bits of its parameters, the most bytes that they took on this rank while it was built,
    and those of the largest one."""
    from configs.compose import load_config
    from runtime.signals import StopFlag
    from train.engines import deepspeed_cut
    from train.loop import _joined

    most, cut = [0], deepspeed_cut._cut
    models: list[Any] = []
    fill = deepspeed_cut.fill_and_cut

    def taken(model: Any) -> int:
        tensors = [getattr(parameter, "ds_tensor", parameter) for parameter in model.parameters()]
        whole = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_tensor")]
        return sum(tensor.untyped_storage().nbytes() for tensor in [*tensors, *whole])

    def fill_and_cut(model: Any, *arguments: Any) -> None:
        models.append(model)
        fill(model, *arguments)

    def counting_cut(*arguments: Any) -> None:
        most[0] = max(most[0], taken(models[0]))
        cut(*arguments)

    from train.engines import deepspeed

    deepspeed_cut._cut, deepspeed.fill_and_cut = counting_cut, fill_and_cut
    with _joined(load_config(Path(config_file)), StopFlag()) as stage:
        engine: Any = stage.engine
        if not models:
            most[0] = taken(engine.model)
        weights = {held.name: engine.state._weight(held).detach() for held in engine.held}
        stage.loader.close()
    bits = {name: weight.view(torch.uint8).numpy().tobytes() for name, weight in weights.items()}
    return bits, most[0], max(len(content) for content in bits.values())


def read_all(folder: str) -> dict[str, bytes]:
    from checkpoints.formats.native import NativeReader

    reader = NativeReader(Path(folder))
    return {name: reader.read(name).float().numpy().tobytes() for name in reader.tensors}


def save_again(config_file: str) -> None:
    """Load the newest checkpoint of a run, and save it in its place."""
    from configs.compose import load_config
    from runtime.signals import StopFlag
    from train.loop import _joined

    with _joined(load_config(Path(config_file)), StopFlag()) as stage:
        stage.progress = stage.checkpoints.resume()
        stage.checkpoints.save(stage.progress)


@each_kind
def test_killed_and_started_again_deepspeed_has_the_curve_of_a_run_that_nothing_happened_to(
    processes: int, settings: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    settings = {**settings, "train__steps": 6}
    whole = run_config(config_of(tmp_path / "whole", corpus, **settings), processes)
    config = config_of(tmp_path / "killed", corpus, **settings)
    with pytest.raises(RankFailed):
        run_ranks(killed_stage, processes, write(config), 1, 5)
    assert curve(run_config(config, processes)) == curve(whole)
    assert {"grad_norm", "loss"} <= set(CURVE)


def killed_stage(config_file: str, victim: int, turn: int) -> int:
    """The stage, but rank `victim` is killed as it begins its `turn`-th step."""
    from train.engines.deepspeed import DeepSpeedEngine
    from train.engines.deepspeed_pipeline import DeepSpeedPipeline

    for engine in (DeepSpeedEngine, DeepSpeedPipeline):
        original, turns = engine.train_step, iter(range(1, 1_000_000))

        def hit(self: Any, *arguments: Any, original: Any = original, turns: Any = turns, **named: Any) -> Any:
            if next(turns) == turn and int(os.environ["RANK"]) == victim:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, *arguments, **named)

        engine.train_step = hit  # type: ignore[method-assign]
    return stage(config_file)


@each_kind
def test_a_step_that_is_not_accepted_changes_nothing(
    processes: int, settings: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    for answers in run_ranks(refuse_one, processes, write(config_of(tmp_path, corpus, **settings))):
        before, refused, after = answers
        assert before == refused != after


def refuse_one(config_file: str) -> list[str]:
    """Hashes of all that this rank would save: before a step that is refused, after it, and after one that is not."""
    import hashlib

    from configs.compose import load_config
    from runtime.signals import StopFlag
    from train.loop import _joined

    with _joined(load_config(Path(config_file)), StopFlag()) as stage:

        def state() -> str:
            from megatron.core.dist_checkpointing.dict_utils import nested_values

            saved = stage.engine.sharded_state(optimizer=True, loading=False)
            tensors = [value.data for value in nested_values(saved) if getattr(value, "data", None) is not None]
            every = [str(saved["optimizer"]["step"]).encode(), *(t.float().cpu().numpy().tobytes() for t in tensors)]
            return hashlib.sha256(b"".join(every)).hexdigest()

        batches = stage._micro_batches(stage.loader.next_step())
        hashes = [state()]
        for answer in (False, True):
            asked: list[float] = []
            stage.engine.train_step(batches, 1e-3, [], lambda seen, a=answer, to=asked: (to.append(seen.sums[0]), a)[1])
            assert len(asked) == 1
            hashes.append(state())
        stage.loader.close()
        return hashes


def compiles_unasked() -> bool:
    """Whether DeepSpeed would compile its operator for inference as it joins a process group on a CPU."""
    from train.engines import deepspeed_library

    deepspeed_library.load()
    from deepspeed.comm.torch import build_shm_op

    return build_shm_op() is not None


def test_deepspeed_compiles_nothing_on_a_cpu() -> None:
    """A rank killed while it did would leave a lock at which every later run on the machine waits."""
    assert run_ranks(compiles_unasked, 1) == [False]
