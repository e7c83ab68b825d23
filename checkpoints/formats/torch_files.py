"""Files that `torch.save` wrote, in whatever program: memory-mapped, and without running anything they name.

Training programs put objects of their own beside tensors: arguments, enumerations, loss scalers. None of those classes
is imported, installed or not. A name from a known program is replaced by `Inert`, which keeps what it is given and
does nothing; any other name, and any pickle that torch's own restricted reader refuses, is refused.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.serialization import (
    add_safe_globals,
    clear_safe_globals,
    get_safe_globals,
    get_unsafe_globals_in_checkpoint,
)

from checkpoints.safety import open_regular, quoted
from checkpoints.torch_file import WAY_OUT, check_archive, refusal
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
T = TypeVar("T")
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

    Raises BadInput, one line with the way out, where it is no plain file, is damaged, is of the form that torch wrote
    before 1.6, or names code.
    """
    with open_regular(path) as stream:
        check_archive(stream, os.fstat(stream.fileno()).st_size, str(path))
    with _nothing_else_allowed():
        try:
            named = get_unsafe_globals_in_checkpoint(path)
        except Exception as error:  # a damaged archive or pickle can raise nearly anything
            raise refusal(str(path), error) from error
        if strange := sorted(name for name in named if name not in _NAMES and not name.startswith(_PROGRAMS)):
            raise BadInput(f"{path}: refused, it names {quoted(strange[0])}, which no checkpoint needs; {WAY_OUT}")
        add_safe_globals([(Inert, name) for name in named])
        try:
            return torch.load(str(path), map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:
            raise refusal(str(path), error) from error


@contextmanager
def _nothing_else_allowed() -> Iterator[None]:
    """Without the names that others have told torch to allow, whose classes would be made: Megatron-Core does so for
    its own checkpoints. For one thread at a time, since torch keeps one list for all; it is as it was afterwards."""
    with _one_at_a_time:
        before = get_safe_globals()
        clear_safe_globals()
        try:
            yield
        finally:
            clear_safe_globals()
            add_safe_globals(before)


def damaged_unless(kind: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorates what reads a foreign folder, given it or `self.folder`: where what a file holds is not what `kind` has
    there, whatever that runs into is raised as BadInput, in one line."""

    def decorate(read: Callable[..., T]) -> Callable[..., T]:
        @wraps(read)
        def guarded(self: Any, *arguments: Any) -> T:
            try:
                return read(self, *arguments)
            except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
                folder = arguments[0] if arguments and isinstance(arguments[0], Path) else self.folder
                what = (str(error).splitlines() or [""])[0]
                raise BadInput(
                    f"{folder}: damaged, or no {kind} of a form that is read ({type(error).__name__}: {what[:200]})"
                ) from error

        return guarded

    return decorate


def save(value: Any, path: Path) -> None:
    """`torch.save`, onto the disk. Raises OSError with what the disk said, which torch's archive writer hides."""
    try:
        with path.open("wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:
        hidden = error.__context__
        if not isinstance(hidden, OSError):
            raise
        raise OSError(hidden.errno, hidden.strerror, str(path)) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def load_mapping(path: Path) -> Mapping[str, Any]:
    """As `load`, of a file that has to hold a mapping."""
    held = load(path)
    if not isinstance(held, Mapping):
        raise BadInput(f"{path}: holds no mapping but {type(held).__name__}")
    return held
