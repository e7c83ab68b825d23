"""DeepSpeed's own checkpoint folder, as its tools read it, of the state that native checkpoints hold.

    <folder>/global_step100/    zero_pp_rank_*_optim_states.pt, mp_rank_*_model_states.pt, layer_*-model_states.pt
    <folder>/latest             the newest of them
    <folder>/zero_to_fp32.py    DeepSpeed's script

DeepSpeed writes it; here it is told how tensor-parallel ranks share each parameter, without which its tools cannot
put the parts together, and kept from two things: entries that are None, over which that tool stumbles, and a disk that
fails on one rank, which would leave the others waiting for it for ever.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

from checkpoints.agreement import gather, on_first_rank, together
from checkpoints.atomic import partial_of, put_in_place, write_file
from checkpoints.formats.torch_files import save
from train.engines import deepspeed_library
from train.engines.deepspeed_state import Held

LATEST = "latest"
_DOING = "cannot save DeepSpeed's own checkpoint"


def tag_of(step: int) -> str:
    """The name of a step's checkpoint."""
    return f"global_step{step}"


def tagged(folder: Path) -> list[Path]:
    """The checkpoints in a folder."""
    return sorted(folder.glob("global_step*"))


def save_folder(engine: Any, model: torch.nn.Module, held: Sequence[Held], folder: Path, step: int) -> Path:
    """Have a DeepSpeed engine save its state; all ranks call this. Returns where it is.

    It appears whole or not at all. Raises BadInput on all ranks where the disk fails.
    """
    partial, final = partial_of(folder / tag_of(step)), folder / tag_of(step)
    on_first_rank(lambda: _make_empty(partial), _DOING)
    engine.global_steps = step
    engine.module.universal_checkpoint_info = _layout(engine, held)
    with _noting_failures(engine) as failures, _without_empty_entries(model), deepspeed_library.silence():
        engine.save_checkpoint(str(partial), tag=final.name, client_state={"iteration": step}, save_latest=False)
    together(failures.report, _DOING)
    on_first_rank(lambda: _finish(partial, final), _DOING)
    return final


def _make_empty(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _finish(partial: Path, final: Path) -> None:
    from deepspeed.utils import zero_to_fp32

    put_in_place(partial / final.name, final)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copyfile(str(zero_to_fp32.__file__), final.parent / "zero_to_fp32.py")
    write_file(final.parent / LATEST, final.name)


# --- how ranks share parameters -------------------------------------------------------------------------------------


def _layout(engine: Any, held: Sequence[Held]) -> dict[str, Any]:
    """What `ds_to_universal` asks for: patterns of names by how tensor-parallel ranks share the parameter.

    By rows is what it takes for granted. The vocabulary's padding is part of our models, so its rows are no vocabulary
    to it: it would cut padding off. Patterns that nothing matches it refuses, so there is one only for what is trained.
    """
    mine: dict[str, set[str]] = {}
    for one in held:
        if one.parameter.requires_grad:
            name = engine.param_names[one.parameter]
            if getattr(one.parameter, "ds_pipe_replicated", False):
                mine.setdefault("pipeline_replicated", set()).add(f"{re.escape(name)}$")
            else:
                mine.setdefault(_shared_as(one), set()).add(_pattern(name))
    found: dict[str, set[str]] = {}
    for part in gather(mine):
        for kind, patterns in part.items():
            found.setdefault(kind, set()).update(patterns)
    return {
        "universal_checkpoint_version": 0.4,
        "original_vocab_size": 0,
        "vocabulary_parameter_patterns": [],
        "parameter_to_average_patterns": [],
        "parameter_with_row_parallelism_patterns": sorted(found.get("columns", ())),
        "tp_replicated_parameter_patterns": sorted(found.get("whole", ())),
        "parameter_with_2_sub_params_cat_dim_0": sorted(found.get("halves", ())),
        "pipeline_replicated_parameter_patterns": sorted(found.get("pipeline_replicated", ())),
    }


def _pattern(name: str) -> str:
    """Of a name and those of other layers that differ by the layer's number alone."""
    return r"\.".join(r"\d+" if part.isdigit() else re.escape(part) for part in name.split(".")) + "$"


def _shared_as(one: Held) -> str:
    if isinstance(one.template, ShardedTensorFactory):  # gate and up, each shared out by itself
        return "halves"
    stacked = one.template.prepend_axis_num
    shape, whole = one.shape, one.template.global_shape[stacked:]
    cut = [axis for axis, (ours, all_of_it) in enumerate(zip(shape, whole, strict=True)) if ours != all_of_it]
    return "whole" if not cut else ("rows", "columns")[cut[0]]


# --- keeping DeepSpeed from stumbling -------------------------------------------------------------------------------


@contextmanager
def _without_empty_entries(model: torch.nn.Module) -> Iterator[None]:
    """Keep Megatron-Core's `_extra_state`, which is None without TransformerEngine, out of state dicts."""

    def drop(_: torch.nn.Module, state: dict[str, Any], *__: Any) -> None:
        for name in [name for name, value in state.items() if value is None]:
            del state[name]

    hook = model._register_state_dict_hook(drop)
    try:
        yield
    finally:
        hook.remove()


class _Failures:
    """Writes files as DeepSpeed does, and keeps the first failure for when all ranks are done. Puts down the stage of
    ZeRO where DeepSpeed forgets it, which is in bf16 with ZeRO-1: its `zero_to_fp32` refuses a file without."""

    def __init__(self, writer: Any, stage: int) -> None:
        self._writer = writer
        self._stage = stage
        self._error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        if isinstance(state_dict.get("optimizer_state_dict"), dict):
            state_dict["optimizer_state_dict"].setdefault("zero_stage", self._stage)
        try:
            save(state_dict, Path(path))
        except OSError as error:
            self._error = self._error or error

    def report(self) -> None:
        if self._error is not None:
            raise self._error


@contextmanager
def _noting_failures(engine: Any) -> Iterator[_Failures]:
    writer, copy_script = engine.checkpoint_engine, engine._copy_recovery_script
    engine.checkpoint_engine = failures = _Failures(writer, engine.zero_optimization_stage())
    engine._copy_recovery_script = lambda _: None  # it is copied once everything else is there
    try:
        yield failures
    finally:
        engine.checkpoint_engine, engine._copy_recovery_script = writer, copy_script
