"""Files of a folder behind a URL, through fsspec, with patience for storage that is away for a while."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import IO, Any, TypeVar

from data_pipeline.remote.storage import file_system, is_unreachable, refusal
from runtime.exits import BadInput

PATIENCE = 300.0  # seconds for which a storage that fails is asked again
FIRST_PATIENCE = 20.0  # the same of one that nobody here has reached yet: its address may be mistyped
PART = 16 << 20  # bytes of one request
AT_ONCE = 8  # requests under way together; so a fetch holds PART * AT_ONCE bytes of memory at most
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between two tries

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFolder:
    """The folder at `url`. A file that is not there is FileNotFoundError at once, what the storage refuses is BadInput;
    whatever else goes wrong is tried again for `patience` seconds and is then BadInput, with the last error: data must
    not depend on the network's mood.

    reached: whether this storage has answered before. Where it has not, and no connection to it comes about, that is
    told after `FIRST_PATIENCE`.
    """

    url: str
    patience: float = PATIENCE
    reached: bool = True

    @cached_property
    def _place(self) -> tuple[Any, str]:
        return file_system(self.url)

    def size(self, file: str) -> int:
        """Bytes of a file."""
        system, root = self._place
        return int(self._patiently(file, lambda: _info(system, f"{root}/{file}")["size"]))

    def read(self, file: str) -> bytes:
        """A whole small file."""
        system, root = self._place
        return self._patiently(file, lambda: system.cat_file(f"{root}/{file}"))

    def copy(self, file: str, spans: Sequence[tuple[int, int]], size: int, to: IO[bytes]) -> None:
        """Put bytes begin..end of each of `spans`, of a file of `size` bytes, into `to` at the same places."""
        parts = [(at, min(at + PART, end)) for begin, end in spans for at in range(begin, end, PART)]
        for first in range(0, len(parts), AT_ONCE):
            some = parts[first : first + AT_ONCE]
            contents = self._patiently(file, partial(self._parts, file, some, size))
            for (begin, _), content in zip(some, contents, strict=True):
                to.seek(begin)
                to.write(content)  # all of it: pwrite may write less on a disk that is nearly full

    def _parts(self, file: str, parts: Sequence[tuple[int, int]], size: int) -> list[bytes]:
        system, root = self._place
        begins, ends = zip(*parts, strict=True)
        contents = system.cat_ranges([f"{root}/{file}"] * len(parts), list(begins), list(ends), on_error="raise")
        whole = []
        for (begin, end), content in zip(parts, contents, strict=True):
            if len(content) == size > end - begin:  # a server that knows no ranges sends all
                content = content[begin:end]
            if len(content) != end - begin:
                raise OSError(f"{len(content)} bytes came of {end - begin}")
            whole.append(content)
        return whole

    def _patiently(self, file: str, act: Callable[[], T]) -> T:
        began, wait, patience, advice = time.monotonic(), _FIRST_WAIT, self.patience, ""
        if not self.reached:
            patience = min(patience, FIRST_PATIENCE)
            advice = "; it was never reached from here: is the address right, and the storage up?"
        while True:
            try:
                return act()
            except BadInput:
                raise
            except Exception as error:  # each kind of storage has errors of its own
                if (refused := refusal(error)) is not None:
                    raise BadInput(f"{self.url}/{file} cannot be read: {refused}") from error
                if isinstance(error, FileNotFoundError):
                    raise
                if not is_unreachable(error):  # it has answered
                    patience, advice = self.patience, ""
                said = str(error) or type(error).__name__
                if time.monotonic() - began + wait > patience:
                    raise BadInput(
                        f"{self.url}/{file} cannot be read ({said}), tried for {patience:g} s{advice}"
                    ) from error
                print(f"megaphone: {self.url}/{file}: {said}; again in {wait:g} s", file=sys.stderr, flush=True)
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)


def _info(system: Any, path: str) -> dict[str, Any]:
    system.invalidate_cache()  # of listings: what is asked for may be newer
    return system.info(path)
