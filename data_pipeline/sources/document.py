"""A document: text that belongs together, in pieces short enough to be spoken in one breath or a few."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """`pieces` are sentence-like and in reading order; joined by spaces, or by nothing in East Asian text, they are
    the document."""

    key: str
    pieces: tuple[str, ...]

    @property
    def characters(self) -> int:
        return sum(len(piece) + 1 for piece in self.pieces)
