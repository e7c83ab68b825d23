"""Importing much at once, cheaply."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_once(*, without: tuple[str, ...] = ()) -> Iterator[None]:
    """Import in here what a process works with.

    The garbage collector rests meanwhile, and later leaves alone what is there by then: modules live as long as the
    process, and going through all of theirs again and again takes a fifth of the time of importing torch and
    Megatron-Core. `without`: libraries that others import only to see whether they are there, and that take long; in
    here they are not, unless they are imported already.
    """
    hidden = [name for name in without if name not in sys.modules]
    collecting = gc.isenabled()
    gc.disable()
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # what `import` takes for "there is no such module"
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        gc.freeze()
        if collecting:
            gc.enable()
