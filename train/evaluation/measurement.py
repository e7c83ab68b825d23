"""What a measurement is: numbers of single items, and figures of a whole set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from data_pipeline.sources.evaluation import Item
from data_pipeline.utterance import Utterance
from train.evaluation.figures import Figure

Record = dict[str, Any]
"""What was measured of one item, ready for JSON."""


@dataclass(frozen=True)
class Found:
    """The record of one item, and sounds to listen to by name, as the judges hear them: float32 [samples], 16 kHz."""

    record: Record
    sounds: Mapping[str, Callable[[], np.ndarray]] = field(default_factory=dict)


class Measurement(Protocol):
    """One kind of measurement, of one model.

    `prepare` and `measure` are called for a few items at a time, so that what is done is kept when a process dies.
    """

    def prepare(self, item: Item) -> Any:
        """The item as `measure` wants it: decoded, encoded. Raises UnreadableAudio or DamagedSample for one that cannot
        be read, and BadInput where the set has not what this measurement needs."""
        ...

    def measure(self, prepared: Sequence[Any]) -> list[Found]:
        """What the model does with each of some items, which are given to it together."""
        ...

    def total(self, records: Sequence[Record]) -> dict[str, Figure]:
        """Figures by name over the records of a set, at least one."""
        ...


class Speak(Protocol):
    """Texts into codes."""

    def __call__(self, texts: Sequence[str], prompt: Utterance | None) -> list[dict[str, np.ndarray] | None]:
        """Codes of each text by codebook, int [rows, frames], in the voice of `prompt`, which has text and codes; None
        for one that did not end."""
        ...


class Decode(Protocol):
    """Codes into sound."""

    def __call__(self, codes: Mapping[str, np.ndarray], voice: np.ndarray | None) -> tuple[np.ndarray, int]:
        """float32 [samples], and samples a second, of codes by codebook, int [rows, frames]; in the voice of `voice`,
        float32 [samples] at 16 kHz, if there is one and ways to follow it."""
        ...
