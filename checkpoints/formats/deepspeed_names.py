"""What DeepSpeed's folders of every form have in common: parameters by name, and Adam's state of those trained."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path

import torch

from runtime.exits import BadInput

MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "fp32_param"


def kinds_of(dtype: torch.dtype) -> tuple[str, ...]:
    """Of the state that a parameter of this dtype has: fp32 copies where it is rounded."""
    return MOMENTS if dtype is torch.float32 else (*MOMENTS, MASTER)


def trained_in(config: object) -> torch.dtype:
    """The precision of parameters by DeepSpeed's configuration, which its files keep."""
    for key, dtype in (("bf16", torch.bfloat16), ("bfloat16", torch.bfloat16), ("fp16", torch.float16)):
        section = config.get(key) if isinstance(config, Mapping) else None
        if isinstance(section, Mapping) and section.get("enabled"):
            return dtype
    return torch.float32


class ByName:
    """Names of a folder, and which state there is. `_foreign`: the folder's own name of each; `_trained`: those of
    them that have state."""

    folder: Path
    kinds: tuple[str, ...]
    _foreign: dict[str, str]
    _trained: Container[str]

    @property
    def names(self) -> set[str]:
        return set(self._foreign)

    def state_names(self, kind: str) -> set[str]:
        if kind not in self.kinds:
            return set()
        return {name for name, foreign in self._foreign.items() if foreign in self._trained}

    def _known(self, name: str) -> str:
        if name not in self._foreign:
            raise BadInput(f"{self.folder}: has no tensor {name}")
        return self._foreign[name]

    def _with_state(self, kind: str, name: str) -> str:
        """The folder's own name of a parameter. Raises BadInput where it has no such state."""
        if name not in self.state_names(kind):
            raise BadInput(f"{self.folder}: has no {kind} of {name}")
        return self._foreign[name]
