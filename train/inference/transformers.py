"""One model of transformers in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.continuing import Opening, Said, continued
from data_pipeline.drawing import Grammar, Sampling
from data_pipeline.exported_model import read_exported


class TransformersEngine:
    """The weights have to fit one device, beside those that are trained. New ones are copied into the model."""

    def __init__(self, rows: int, *, device: str | None, bf16: bool, model: Any = None) -> None:
        self._rows = rows
        self._device = device
        self._bf16 = bf16
        self.model = model

    def take(self, export: Path) -> None:
        """As `InferenceEngine.take`. Raises RuntimeError for later weights that are not all there."""
        if self.model is None:
            self.model = read_exported(export, str(export), self._rows, device=self._device, bf16=self._bf16)
            return
        from safetensors.torch import load_file

        own, filled = self.model.state_dict(), set()
        for file in sorted(export.glob("*.safetensors")):
            held = load_file(file)
            filled |= {own[name].data_ptr() for name in held}
            self.model.load_state_dict(held, strict=False)
        lacking = [name for name, tensor in own.items() if tensor.data_ptr() not in filled]  # a tied head is no lack
        if lacking:
            raise RuntimeError(f"{export} lacks {lacking[0]}")

    def continued(
        self, openings: Sequence[Opening], grammar: Grammar, sampling: Sampling, *, tell: bool = False
    ) -> list[Said]:
        return continued(self.model, openings, grammar, sampling, tell=tell)
