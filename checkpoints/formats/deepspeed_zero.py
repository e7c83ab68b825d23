"""DeepSpeed's checkpoint folders: ZeRO-1, 2 and 3, and its pipeline, with or without tensor parallelism.

    mp_rank_01_model_states.pt                      parameters of model-parallel rank 1; of a pipeline only metadata
    layer_03-model_01-model_states.pt               a pipeline's: parameters of layer 3, tensor-parallel rank 1
    [bf16_]zero_pp_rank_2_mp_rank_01_optim_states.pt  data-parallel rank 2's share of fp32 parameters and moments
    zero_pp_rank_2_mp_rank_01_model_states.pt       ZeRO-3: metadata, and shares of frozen parameters

A share is a range of all parameters of a group laid end to end (ZeRO-1, 2), or of each parameter by itself (ZeRO-3).
Files are mapped, not read; a tensor is put together when it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from checkpoints.formats.deepspeed_names import MASTER, ByName, kinds_of, trained_in
from checkpoints.formats.megatron_names import is_parameter, native_names
from checkpoints.formats.tensor_parallel import Cut, merged, merged_shape
from checkpoints.formats.torch_files import Inert, damaged_unless, fields, load_mapping
from checkpoints.safety import quoted
from runtime.exits import BadInput

_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
_OPTIMIZER = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_LAYER = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")

_guarded = damaged_unless("DeepSpeed checkpoint")


@dataclass(frozen=True)
class _Share:
    """A range of one flattened tensor of a group, in the optimiser's file of a data-parallel rank."""

    data_rank: int
    group: int
    start: int
    length: int


class ZeroSource(ByName):
    """Parameters, and what ZeRO holds of the optimiser, by the model's names (Megatron's in their native spelling).

    step: of the optimiser. Of ZeRO-3 parameters are the fp32 ones, rounded to the precision they were trained in.
    """

    @_guarded
    def __init__(self, folder: Path) -> None:
        """Raises BadInput where files are missing, damaged or not plain, or where nothing says how tensor-parallel
        ranks share a parameter."""
        self.folder = folder
        self._models = _files(folder, _MODEL)
        self._optimizers = {place: load_mapping(file) for place, file in _files(folder, _OPTIMIZER).items()}
        if not self._models:
            raise BadInput(f"{folder}: has no mp_rank_*_model_states.pt")
        self._states = {place: load_mapping(file) for place, file in sorted(self._models.items())}
        first = next(iter(self._states.values()))
        self._dtype = trained_in(first.get("ds_config"))
        self._stage = self._zero_stage()
        self._check_complete()
        dimensions = first.get("checkpoint_parallel_dimensions") or {}
        ranks = sorted({rank for _, rank in self._models})
        self._pipeline = int(dimensions.get("pp_degree") or 1)
        if len(ranks) % self._pipeline or ranks != list(range(len(ranks))):
            raise BadInput(f"{folder}: has files of model-parallel ranks {ranks}, not of all")
        self._tensor = len(ranks) // self._pipeline
        self._info = _layout(first, folder)
        self._shapes: dict[str, dict[int, tuple[int, ...]]] = {}  # of what is trained, by model-parallel rank
        self._shares: dict[tuple[int, str], list[_Share]] = {}
        self._find_shares()
        self._weights = self._whole_weights()
        self._frozen = self._frozen_names() if self._stage == 3 else set()
        foreign = {*self._weights, *self._shapes, *self._frozen}
        foreign -= {name for name in foreign if self._is_copy(name)}
        names = native_names(sorted(foreign, key=_natural))
        self._foreign = {}
        for name, native in names.items():
            self._foreign.setdefault(native, name)  # a tied copy on a later stage is the same tensor
        self._trained = self._shapes
        self.kinds = kinds_of(self._dtype) if self._shares else ()
        self.step = self._taken(first)
        for name in self._foreign.values():
            self._cut(name)

    @_guarded
    def shape_and_dtype(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        foreign = self._known(name)
        if foreign in self._weights:
            parts = self._weights[foreign]
            return merged_shape([part.shape for part in parts], self._cut(foreign), name), parts[0].dtype
        if foreign in self._frozen:
            fragment = next(iter(self._states.values()))["frozen_param_fragments"][foreign]
            return self._frozen_shape(foreign), fragment.dtype
        return self._trained_shape(foreign, name), self._dtype

    @_guarded
    def read(self, name: str) -> torch.Tensor:
        foreign = self._known(name)
        if foreign in self._weights:
            return merged(self._weights[foreign], self._cut(foreign), name)
        if foreign in self._frozen:
            return self._frozen_tensor(foreign)
        return self._together(MASTER, foreign, name).to(self._dtype)

    @_guarded
    def state(self, kind: str, name: str) -> torch.Tensor:
        return self._together(kind, self._with_state(kind, name), name)

    # --- what files there are -------------------------------------------------------------------------------

    def _zero_stage(self) -> int:
        if not self._optimizers:
            return 0
        held = self._optimizer_of(next(iter(self._optimizers.values())))
        stage = held.get("zero_stage", 1)
        return int(stage.arguments[0] if isinstance(stage, Inert) else stage)

    def _optimizer_of(self, file: Mapping[str, Any]) -> Mapping[str, Any]:
        held = file.get("optimizer_state_dict")
        if not isinstance(held, Mapping):
            raise BadInput(f"{self.folder}: an optimiser's file has no optimizer_state_dict")
        return held

    def _check_complete(self) -> None:
        if not self._optimizers:
            return
        count = self._optimizer_of(next(iter(self._optimizers.values()))).get("partition_count", 1)
        sizes = max(count) if isinstance(count, list) else int(count)
        missing = sorted(
            (data, rank)
            for rank in {rank for _, rank in self._models}
            for data in range(sizes)
            if (data, rank) not in self._optimizers
        )
        if missing:
            data, rank = missing[0]
            raise BadInput(
                f"{self.folder}: no zero_pp_rank_{data}_mp_rank_{rank:02d}_optim_states.pt ({len(missing)} such files "
                f"missing of {sizes * len({rank for _, rank in self._models})})"
            )

    def _taken(self, first: Mapping[str, Any]) -> int:
        """Steps that the optimiser took; where it does not say, those that the run did."""
        for file in self._optimizers.values():
            held = self._optimizer_of(file)
            inner = held.get("base_optimizer_state" if self._stage < 3 else "optimizer_state_dict", {})
            for state in [*inner.get("state", {}).values(), *inner.get("param_groups", [])]:
                if "step" in state:
                    return int(state["step"])
        return int(first.get("global_steps", 0))

    # --- parameters that are whole in their files ------------------------------------------------------------

    def _whole_weights(self) -> dict[str, list[torch.Tensor]]:
        """By name, one part a tensor-parallel rank."""
        found: dict[str, list[torch.Tensor]] = {}
        if self._stage == 3:
            return found
        if layers := _files(self.folder, _LAYER):
            for (layer, _), file in sorted(layers.items()):
                for name, tensor in load_mapping(file).items():
                    if isinstance(tensor, torch.Tensor) and is_parameter(name):
                        found.setdefault(f"{layer}.{name}", []).append(tensor)
        else:
            for state in self._states.values():
                buffers = set(state.get("buffer_names") or ())
                for name, tensor in (state.get("module") or {}).items():
                    if isinstance(tensor, torch.Tensor) and is_parameter(name) and name not in buffers:
                        found.setdefault(name, []).append(tensor)
        for name, parts in found.items():
            if len(parts) != self._tensor:
                raise BadInput(f"{self.folder}: {name} is in {len(parts)} files, not those of {self._tensor} ranks")
        return found

    # --- shares ---------------------------------------------------------------------------------------------

    def _find_shares(self) -> None:
        for (_, rank), state in self._states.items():
            for group in state.get("param_shapes") or ():
                for name, shape in group.items():
                    self._shapes.setdefault(name, {})[rank] = tuple(shape)
        for (data, rank), file in sorted(self._optimizers.items()):
            found = self._of_parameters if self._stage == 3 else self._of_groups
            for name, share in found(data, rank, self._optimizer_of(file)):
                self._shares.setdefault((rank, name), []).append(share)

    def _of_groups(self, data: int, rank: int, held: Mapping[str, Any]) -> list[tuple[str, _Share]]:
        """ZeRO-1 and 2 say where each parameter's part begins in a rank's range."""
        if not isinstance(held.get("base_optimizer_state"), Mapping) or "param_slice_mappings" not in held:
            raise BadInput(
                f"{self.folder}: its optimiser state does not say which parameters it is of; elastic checkpoints and "
                "those of DeepSpeed before 0.7.5 do not"
            )
        return [
            (name, _Share(data, group, int(fields(where)["start"]), int(fields(where)["numel"])))
            for group, mapping in enumerate(held["param_slice_mappings"])
            for name, where in mapping.items()
        ]

    def _of_parameters(self, data: int, rank: int, held: Mapping[str, Any]) -> list[tuple[str, _Share]]:
        """ZeRO-3 cuts each parameter in as many equal ranges as there are ranks, the last one padded."""
        state = self._states.get((data, rank)) or self._states[(0, rank)]
        world = int(held["partition_count"])
        found = []
        for group, shapes in enumerate(state["param_shapes"]):
            start = 0
            for name, shape in shapes.items():
                length = -(-prod(shape) // world)
                used = max(0, min(length, prod(shape) - data * length))
                found.append((name, _Share(data, group, start, used)))
                start += length
        return found

    def _flat(self, kind: str, data: int, rank: int, group: int) -> torch.Tensor:
        held = self._optimizer_of(self._optimizers[(data, rank)])
        try:
            if kind == MASTER:
                return held["fp32_flat_groups" if self._stage == 3 else "single_partition_of_fp32_groups"][group]
            inner = held["optimizer_state_dict" if self._stage == 3 else "base_optimizer_state"]
            return inner["state"][group][kind]
        except (KeyError, IndexError, TypeError) as error:
            raise BadInput(
                f"{self.folder}: data-parallel rank {data} has no {kind} of parameter group {group}"
            ) from error

    def _together(self, kind: str, foreign: str, name: str) -> torch.Tensor:
        """One tensor of what ZeRO has cut up, over data- and tensor-parallel ranks."""
        parts = []
        for rank, shape in sorted(self._shapes[foreign].items()):
            ranges = [
                self._flat(kind, share.data_rank, rank, share.group).narrow(0, share.start, share.length)
                for share in self._shares.get((rank, foreign), [])
            ]
            flat = torch.cat(ranges) if ranges else torch.empty(0)
            if flat.numel() != prod(shape):
                raise BadInput(f"{self.folder}: {kind} of {name} has {flat.numel()} of {prod(shape)} elements")
            parts.append(flat.view(shape))
        return merged(parts, self._cut(foreign), name)

    def _trained_shape(self, foreign: str, name: str) -> tuple[int, ...]:
        return merged_shape([shape for _, shape in sorted(self._shapes[foreign].items())], self._cut(foreign), name)

    # --- frozen parameters of ZeRO-3 -------------------------------------------------------------------------

    def _frozen_names(self) -> set[str]:
        return set(next(iter(self._states.values())).get("frozen_param_shapes") or ())

    def _frozen_shape(self, foreign: str) -> tuple[int, ...]:
        return tuple(next(iter(self._states.values()))["frozen_param_shapes"][foreign])

    def _frozen_tensor(self, foreign: str) -> torch.Tensor:
        shape = self._frozen_shape(foreign)
        flat = torch.cat([state["frozen_param_fragments"][foreign].flatten() for state in self._states.values()])
        return flat[: prod(shape)].view(shape)

    # --- tensor parallelism ----------------------------------------------------------------------------------

    def _is_copy(self, foreign: str) -> bool:
        return _matches(self._info.get("pipeline_replicated_parameter_patterns"), foreign)

    def _cut(self, foreign: str) -> Cut:
        """How tensor-parallel ranks share a parameter, by what the folder says for DeepSpeed's own tools."""
        if self._tensor == 1:
            return Cut.whole
        if not self._info:
            raise BadInput(
                f"{self.folder}: {self._tensor} tensor-parallel ranks share {foreign}, and nothing in it says how "
                "(universal_checkpoint_info); convert it where the model is, with DeepSpeed's ds_to_universal"
            )
        for key, cut in (
            ("tp_replicated_parameter_patterns", Cut.whole),
            ("parameter_to_average_patterns", Cut.mean),
            ("parameter_with_2_sub_params_cat_dim_0", Cut.halves),
            ("parameter_with_row_parallelism_patterns", Cut.columns),
        ):
            if _matches(self._info.get(key), foreign):
                return cut
        if foreign in self._weights and foreign not in self._shapes and self._is_shared(foreign):
            return Cut.whole  # frozen: patterns are of what is trained
        return Cut.rows

    def _is_shared(self, foreign: str) -> bool:
        parts = self._weights[foreign]
        return all(torch.equal(parts[0], part) for part in parts[1:])


def _files(folder: Path, pattern: re.Pattern[str]) -> dict[tuple[int, int], Path]:
    """Files whose names match, by the two numbers in them (0 where there is none)."""
    found = {}
    for path in sorted(folder.iterdir()):
        if match := pattern.fullmatch(path.name):
            found[int(match[1] or 0), int(match[2])] = path
    return found


def _layout(state: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """`universal_checkpoint_info`, checked for what is not read."""
    info = state.get("universal_checkpoint_info") or {}
    for key in ("parameter_with_sub_params", "affine_map", "ds_autoep_layers"):
        if info.get(key):
            raise BadInput(f"{folder}: its {key} is DeepSpeed's own tensor parallelism, which is not read")
    for patterns in info.values():
        for pattern in patterns if isinstance(patterns, list) else ():
            if not _is_harmless(pattern):
                raise BadInput(f"{folder}: its pattern {quoted(pattern)} is refused")
    return info


def _is_harmless(pattern: object) -> bool:
    """Whether it is a pattern, and none that repeats a group: those that repeat inside can take for ever to match."""
    if not isinstance(pattern, str) or len(pattern) > 1000 or re.search(r"\)[*+{?]", pattern):
        return False
    try:
        return bool(re.compile(pattern))
    except re.error:
        return False


def _matches(patterns: object, name: str) -> bool:
    """Whether one of DeepSpeed's patterns matches."""
    return isinstance(patterns, list) and any(re.match(pattern, name) for pattern in patterns)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts by the numbers in a name, not by their digits."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
