"""DeepSpeed's universal checkpoints, read and written: one folder a parameter, whole over all ranks.

    latest_universal                    the name of the folder below
    global_step100/
        zero/<parameter>/fp32.pt        {"param": fp32 tensor, "cat_dim": ...}; exp_avg.pt, exp_avg_sq.pt likewise
        zero/<parameter>/step.pt        steps that the optimiser took
        zero/optimizer_state.pt         options that DeepSpeed sets again when it loads
        mp_rank_00_model_states.pt      counters, for ZeRO-1 and 2
        zero_pp_rank_0_mp_rank_00_model_states.pt   the same for ZeRO-3

DeepSpeed's `ds_to_universal` writes tensors of ZeRO-3 flat; their shapes stand in the model states beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from checkpoints.atomic import replacing
from checkpoints.formats.deepspeed_names import MASTER, MOMENTS, ByName, kinds_of, trained_in
from checkpoints.formats.megatron_names import cut_of, local_name, native_names
from checkpoints.formats.source import TensorSource, TrainedSource
from checkpoints.formats.tensor_parallel import Cut
from checkpoints.formats.torch_files import damaged_unless, load, load_mapping, save
from runtime.exits import BadInput, StoppedEarly

LATEST = "latest_universal"
_WRITTEN_AS = "0.19.8"  # the version of DeepSpeed whose form this is
_GROUPS = 64  # at least as many parameter groups as an optimiser has


_guarded = damaged_unless("universal checkpoint")


class UniversalSource(ByName):
    """Parameters and moments of a universal folder. Parameters are the fp32 ones, rounded to the precision they were
    trained in."""

    @_guarded
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = sorted(path.parent.relative_to(folder / "zero").as_posix() for path in folder.glob("zero/**/fp32.pt"))
        if not found:
            raise BadInput(f"{folder}: has no zero/<parameter>/fp32.pt")
        models = [load_mapping(file) for file in sorted(folder.glob("*_model_states.pt"))]
        self._shapes = {
            name: tuple(shape)
            for state in models
            for group in state.get("param_shapes") or ()
            for name, shape in group.items()
        }
        self._dtype = trained_in(models[0].get("ds_config")) if models else torch.float32
        self._foreign = {}
        for name, native in native_names(found).items():
            self._foreign.setdefault(native, name)
        self._trained: set[str] = {name for name in found if (self._file(name, MOMENTS[0])).is_file()}
        self._check_frozen(models)
        self.kinds = kinds_of(self._dtype) if self._trained else ()
        self.step = self._steps(models[0] if models else {}) if self._trained else 0

    @_guarded
    def shape_and_dtype(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        return tuple(self._tensor("fp32", self._known(name)).shape), self._dtype

    @_guarded
    def read(self, name: str) -> torch.Tensor:
        return self._tensor("fp32", self._known(name)).to(self._dtype)

    @_guarded
    def state(self, kind: str, name: str) -> torch.Tensor:
        return self._tensor("fp32" if kind == MASTER else kind, self._with_state(kind, name))

    def _tensor(self, kind: str, foreign: str) -> torch.Tensor:
        file = self._file(foreign, kind)
        held = load(file)
        tensor = held.get("param") if isinstance(held, Mapping) else held
        if not isinstance(tensor, torch.Tensor):
            raise BadInput(f"{file}: holds no tensor")
        if isinstance(held, Mapping) or foreign not in self._shapes:
            return tensor
        if tensor.numel() != prod(self._shapes[foreign]):
            raise BadInput(f"{file}: {tensor.numel()} elements, not those of {list(self._shapes[foreign])}")
        return tensor.view(self._shapes[foreign])  # of ZeRO-3

    def _check_frozen(self, models: list[Mapping[str, Any]]) -> None:
        """`ds_to_universal` keeps of a frozen parameter one tensor-parallel rank's part alone."""
        shared = any((state.get("checkpoint_parallel_dimensions") or {}).get("tp_degree", 1) > 1 for state in models)
        for native, foreign in self._foreign.items() if shared else ():
            if foreign not in self._trained and cut_of(native, {}) is not Cut.whole:
                raise BadInput(
                    f"{self.folder}: {native} was frozen, and of it there is one tensor-parallel rank's part alone; "
                    "read the ZeRO folder that this one was made of"
                )

    def _steps(self, model: Mapping[str, Any]) -> int:
        file = self._file(min(self._trained), "step")
        if file.is_file():
            return int(load(file))
        common = self.folder / "zero" / "optimizer_state.pt"
        inner = load_mapping(common).get("optimizer_state_dict") or {} if common.is_file() else {}
        for state in inner.get("state", {}).values():
            if "step" in state:
                return int(state["step"])
        return int(model.get("global_steps", 0))

    def _file(self, foreign: str, kind: str) -> Path:
        return self.folder / "zero" / foreign / f"{kind}.pt"


def write_universal(source: TensorSource, out: Path, stop: object = None) -> Path:
    """Write a source with Adam's state as a universal folder that a DeepSpeed engine loads, on any ranks and with any
    ZeRO stage: `engine.load_checkpoint(out)` with `{"checkpoint": {"load_universal": true}}` in its configuration.

    Parameters of Megatron's names are called as in a model of separate norms (`input_layernorm`), which is what
    Megaphone trains; others keep their names. Memory holds one tensor at a time. Learning rates and the like are left
    to the engine that loads it. DeepSpeed 0.19.8's ZeRO-3 then counts steps once a parameter group where torch's Adam
    does the counting, whoever wrote the folder: take one group there.

    Returns `out`. Raises BadInput where the source has no optimiser state or the disk fails, StoppedEarly when `stop`
    turns true; `out` then is as it was.
    """
    if not isinstance(source, TrainedSource) or not source.kinds:
        raise BadInput(
            f"{source.folder}: has no optimiser state, and DeepSpeed's universal form is of a training state; a run "
            "with engine.name=deepspeed starts from the weights as they are (stage.weights)"
        )
    shapes = {name: source.shape_and_dtype(name)[0] for name in source.names}
    dtypes = {source.shape_and_dtype(name)[1] for name in source.names}
    try:
        with replacing(out) as partial:
            folder = partial / f"global_step{source.step}"
            for name in sorted(source.names):
                if stop:
                    raise StoppedEarly("conversion stopped; nothing was kept, the same command starts it again")
                _write_parameter(source, name, shapes, folder / "zero" / local_name(name))
            _write_common(source, folder, shapes, dtypes)
            (partial / LATEST).write_text(folder.name, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write {out}: {error.strerror or error}") from error
    return out


def _write_parameter(source: TrainedSource, name: str, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    folder.mkdir(parents=True)
    how = _shared_as(cut_of(name, shapes))
    trained = name in source.state_names(MOMENTS[0])
    master = name in source.state_names(MASTER)
    whole = source.state(MASTER, name) if master else source.read(name).float()
    _save({"param": whole.contiguous(), **how}, folder / "fp32.pt")
    for kind in MOMENTS if trained else ():
        _save({"param": source.state(kind, name).contiguous(), **how}, folder / f"{kind}.pt")
    if trained:
        _save(torch.tensor(float(source.step)), folder / "step.pt")


def _write_common(
    source: TrainedSource, folder: Path, shapes: Mapping[str, tuple[int, ...]], dtypes: set[torch.dtype]
) -> None:
    # Parameter groups without options: DeepSpeed sets those it finds, by the group's number, whatever the group is of.
    groups: list[dict[str, Any]] = [{"params": []} for _ in range(_GROUPS)]
    step = torch.tensor(float(source.step))
    inner = {"state": {0: {"step": step}}, "param_groups": groups}  # where ZeRO-3 looks
    common = {"ds_version": _WRITTEN_AS, "param_groups": groups, "optimizer_state_dict": inner}
    _save(common, folder / "zero" / "optimizer_state.pt")
    counters = {
        "module": {},
        "global_steps": source.step,
        "skipped_steps": 0,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "param_shapes": [{local_name(name): torch.Size(shape) for name, shape in sorted(shapes.items())}],
        "ds_config": {"bf16": {"enabled": torch.bfloat16 in dtypes}, "fp16": {"enabled": torch.float16 in dtypes}},
        "ds_version": _WRITTEN_AS,
    }
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        _save(counters, folder / name)


def _shared_as(cut: Cut | None) -> dict[str, Any]:
    """What DeepSpeed has to know to give tensor-parallel ranks their parts; of what all have whole, nothing."""
    if cut is Cut.halves:
        return {"cat_dim": 0, "param_n_sub_params": 2}
    return {"cat_dim": 1 if cut is Cut.columns else 0} if cut in (Cut.rows, Cut.columns) else {}


def _save(value: Any, file: Path) -> None:
    """Save it, of a view no more than it shows: torch.save writes a view's whole storage."""
    if isinstance(value, dict) and isinstance(value.get("param"), torch.Tensor):
        tensor = value["param"]
        if tensor.untyped_storage().nbytes() != tensor.nbytes:
            value = {**value, "param": tensor.clone()}
    save(value, file)
