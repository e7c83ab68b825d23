"""Files that `torch.save` wrote, in whatever program: memory-mapped, and without running anything they name.

Training programs put objects of their own beside tensors: arguments, enumerations, loss scalers. None of those classes
is imported, installed or not. A name from a known program is replaced by `Inert`, which keeps what it is given and
does nothing; any other name, and any pickle that torch's own restricted reader refuses, is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from runtime.exits import BadInput

_PROGRAMS = ("deepspeed.", "megatron.", "transformer_engine.", "apex.", "numpy.")
_NAMES = {
    "argparse.Namespace",
    "builtins.complex",
    "builtins.range",
    "builtins.set",
    "builtins.slice",
    "collections.defaultdict",
    "datetime.timedelta",
    "pathlib.PosixPath",
    "signal.Signals",
    "torch.device",
    "types.SimpleNamespace",
}
_one_at_a_time = threading.Lock()  # torch keeps its list of allowed names in one place for all threads


class Inert:
    """Stands for an object of another program. arguments: what it would have been made of; state: what it held."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Inert:
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __init__(self, *arguments: Any) -> None:
        """Everything is kept before."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def fields(value: Any) -> Mapping[str, Any]:
    """Attributes that an object of another program held, such as the arguments of a run; none where it held none."""
    state = value.state if isinstance(value, Inert) else value
    return state if isinstance(state, Mapping) else {}


def load(path: Path) -> Any:
    """What a file holds, its tensors on the CPU and read from disk only where they are looked at.

    Raises BadInput where it is damaged, is of the form that torch wrote before 1.6, or names code.
    """
    try:
        named = get_unsafe_globals_in_checkpoint(path)
    except FileNotFoundError as error:
        raise BadInput(f"{path}: missing") from error
    except ValueError as error:
        raise BadInput(
            f"{path}: not written by torch.save, or before torch 1.6, whose form cannot be read in parts; loading and "
            "saving it once where it was made mends that"
        ) from error
    except Exception as error:  # a damaged archive or pickle can raise nearly anything
        raise BadInput(f"{path}: cannot be read ({_line(error)})") from error
    if strange := sorted(name for name in named if name not in _NAMES and not name.startswith(_PROGRAMS)):
        raise BadInput(
            f"{path}: refused, it names {strange[0]}, which no checkpoint needs; if you trust it, load it where it was "
            "made and save its tensors as safetensors"
        )
    try:
        with _one_at_a_time, safe_globals([(Inert, name) for name in named]):
            return torch.load(str(path), map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        raise BadInput(f"{path}: cannot be read ({_line(error)})") from error


def load_mapping(path: Path) -> Mapping[str, Any]:
    """As `load`, of a file that has to hold a mapping."""
    held = load(path)
    if not isinstance(held, Mapping):
        raise BadInput(f"{path}: holds no mapping but {type(held).__name__}")
    return held


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
