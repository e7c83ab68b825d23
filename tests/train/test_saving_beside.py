"""A save whose copy is made beside the next step holds the state before that step, on every engine, bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.manifest import FileRecord, problems, read_manifest
from checkpoints.pieces import Piece
from configs.schema import Config
from tests.ranks import RankFailed, run_ranks
from tests.train.runs import run_config, stage, tiny_config
from tests.train.test_engines import ZERO_3, zero
from tests.train.test_resume import corpus, curve, write

__all__ = ["corpus"]  # a fixture

STEPS = 3  # the state after the first two is saved in the background, the last one's is waited for
OVERLAPPED = {
    "parallel__distributed_optimizer": True,
    "parallel__overlap_gradients": True,
    "parallel__overlap_parameters": True,
}
ENGINES = [
    pytest.param({}, id="plain Adam"),
    pytest.param(OVERLAPPED, id="distributed optimiser, overlapped"),
    pytest.param({"parallel__distributed_optimizer": True, "train__precision": "bf16"}, id="distributed, bf16"),
    pytest.param(zero(1), id="ZeRO-1"),
    pytest.param(ZERO_3, id="ZeRO-3"),
]


def config_of(folder: Path, corpus: Path, **changes: Any) -> Config:
    return tiny_config(folder, corpus, train__steps=STEPS, checkpoint__every=1, checkpoint__keep=0, **changes)


def late_stage(config_file: str) -> int:
    """The stage, but every copy waits until the next step is about to update what is copied."""
    return _stage_that_copies_when(config_file, lambda: None)


def killed_stage(config_file: str) -> int:
    """As `late_stage`, but the second copy never comes to its end: the rank dies in it."""
    import os
    import signal

    turns = iter(range(1, 1000))
    return _stage_that_copies_when(
        config_file, lambda: os.kill(os.getpid(), signal.SIGKILL) if next(turns) == 2 else None
    )


def _stage_that_copies_when(config_file: str, copying: Callable[[], None]) -> int:
    from checkpoints.saving import Saver
    from checkpoints.staging import Staging

    stage_pieces, settle = Staging.stage, Saver.settle
    due = threading.Event()

    def late(self: Staging, pieces: list[Piece], abandon: threading.Event | None = None) -> list[Piece]:
        if abandon is not None:  # not the first, which only takes memory
            due.wait(5)  # without `settle` before the update the tensors have long changed by then
            due.clear()
            copying()
        return stage_pieces(self, pieces, abandon)

    def settled(self: Saver) -> None:
        due.set()
        settle(self)

    Staging.stage = late  # type: ignore[method-assign]
    Saver.settle = settled  # type: ignore[method-assign]
    return stage(config_file)


@pytest.mark.parametrize("settings", ENGINES)
def test_a_copy_made_beside_the_next_step_is_of_the_step_saved(
    settings: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    late = config_of(tmp_path / "late", corpus, checkpoint__asynchronous=True, **settings)
    waited = config_of(tmp_path / "waited", corpus, **settings)
    assert curve(run_config(late, 2, program=late_stage)) == curve(run_config(waited, 2))
    files = {}
    for step in range(1, STEPS + 1):
        one, other = (tmp_path / name / f"checkpoints/step-{step:08d}" for name in ("late", "waited"))
        assert problems(one) == []
        files[step], expected = _state(one), _state(other)
        assert files[step] == expected, step
    assert files[1] != files[2]


def _state(checkpoint: Path) -> dict[str, FileRecord]:
    """Sizes and hashes of the files whose content does not name their folder."""
    files = read_manifest(checkpoint).files
    return {name: record for name, record in files.items() if name == "state.json" or name.endswith(".distcp")}


def test_killed_in_a_copy_beside_a_step(corpus: Path, tmp_path: Path) -> None:
    whole = run_config(config_of(tmp_path / "whole", corpus), 1)
    config = config_of(tmp_path / "run", corpus, checkpoint__asynchronous=True)
    with pytest.raises(RankFailed):
        run_ranks(killed_stage, 1, write(config))
    checkpoints = tmp_path / "run/checkpoints"
    assert [path.name for path in sorted(checkpoints.iterdir())] == ["step-00000001", "step-00000002.partial"]
    assert problems(checkpoints / "step-00000001") == []
    assert curve(run_config(config, 1)) == curve(whole)


def test_buffers_are_copied_at_once(corpus: Path, tmp_path: Path) -> None:
    """They may change in a forward pass, parameters only in an update."""
    assert run_ranks(live_with_a_buffer, 1, write(config_of(tmp_path, corpus))) == [(False, True)]


def live_with_a_buffer(config_file: str) -> tuple[bool, bool]:
    """Whether what is saved of a buffer and of a parameter is the tensor itself."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values

    from configs.compose import load_config
    from train.engines import process_groups
    from train.engines.megatron import MegatronEngine
    from train.objectives.next_token import NextToken

    config = load_config(Path(config_file))
    engine = MegatronEngine(config, 256, NextToken(("text",)), process_groups.join(config.parallel))
    norm = engine.models[0].decoder.final_layernorm
    norm.register_buffer("seen", torch.ones(3))
    saved = nested_values(engine.sharded_state(optimizer=True, loading=False))
    at = {value.key: value.data.data_ptr() for value in saved if hasattr(value, "key") and value.data is not None}
    (buffer,) = [where for key, where in at.items() if key.endswith("final_layernorm.seen")]
    (weight,) = [where for key, where in at.items() if key == "model.decoder.final_layernorm.weight"]
    return buffer == norm.seen.data_ptr(), weight == norm.weight.data_ptr()
