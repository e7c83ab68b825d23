"""Names that others gave to things, as keys that are safe anywhere: in a tar, a path, a URL."""

from __future__ import annotations

import re
import unicodedata

import xxhash

LONGEST_KEY = 56  # characters
_SAFE = re.compile(rf"[A-Za-z0-9_\-]{{1,{LONGEST_KEY}}}")
_HASHED = re.compile(r".*-x[0-9a-f]{20}")
_READABLE = LONGEST_KEY - len("-x") - 20


def safe_key(name: str) -> str:
    """`name` where it is made of at most 56 letters, digits, `_` and `-`; else what can be read of it, and its hash.

    Different names have different keys: 80 bits of hash stand for the name, and a name that looks like such a key is
    hashed as well. The same name has the same key on every machine.
    """
    if _SAFE.fullmatch(name) and not _HASHED.fullmatch(name):
        return name
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    readable = re.sub(r"[^A-Za-z0-9]+", "_", plain).strip("_")[-_READABLE:].strip("_")
    digest = xxhash.xxh3_128_hexdigest(name.encode("utf-8", "surrogatepass"))[:20]
    return f"{readable}-x{digest}" if readable else f"x-x{digest}"
