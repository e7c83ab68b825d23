"""Where files are: a path on this machine, or a URL that fsspec knows."""

from __future__ import annotations


def is_url(path: str) -> bool:
    return "://" in path
