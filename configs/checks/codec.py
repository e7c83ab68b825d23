"""The kinds of codec: which weights, codebooks and options each has, and settings of them that cannot be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from configs.schema import CodecConfig
from runtime.exits import BadInput


@dataclass(frozen=True)
class CodecKind:
    """weights: names of the parts it needs; `extra` of those it may be given. books: names of its codebooks, or None
    where the config chooses them; `most` of them, with up to `rows` tables each. layers: each codebook names the
    encoder layer that it quantises. options: names with their defaults."""

    weights: tuple[str, ...]
    extra: tuple[str, ...] = ()
    books: tuple[str, ...] | None = None
    most: int = 1
    rows: int = 1
    layers: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


CODEC_KINDS = {
    "whisper_kmeans": CodecKind(("encoder",), extra=("centroids",), most=8, layers=True),
    "hubert_kmeans": CodecKind(("encoder", "centroids"), layers=True),
    "step_audio": CodecKind(
        ("paraformer", "centroids", "semantic"),
        books=("linguistic", "semantic"),
        most=2,
        options={"normalise": True},
    ),
    "cosyvoice": CodecKind(("model",)),
    "glm4_voice": CodecKind(("encoder",)),
    "mimi": CodecKind(("model",), rows=64),
    "baichuan": CodecKind(("model",), most=64),
}
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
_SAME_RATE = 0.01  # relative difference of the groups a second that two codebooks make, for rates are written rounded


def check_codec(codec: CodecConfig) -> None:
    """Raise BadInput for the first value of a codec that cannot work. One without codebooks is no codec, and passes."""
    if not codec.codebooks:
        return
    if codec.kind not in CODEC_KINDS:
        raise BadInput(f"codec.kind={codec.kind}: not one of {', '.join(CODEC_KINDS)}")
    kind = CODEC_KINDS[codec.kind]
    _check_names(codec, kind)
    _check_codebooks(codec, kind)
    _check_options(codec, kind)
    if codec.device is not None and not _DEVICE.fullmatch(codec.device):
        raise BadInput(f"codec.device={codec.device}: has to be cpu, cuda or cuda:<number>, or null")
    if codec.batch_seconds is not None and not codec.batch_seconds > 0:
        raise BadInput(f"codec.batch_seconds={codec.batch_seconds}: has to be above 0, or null")
    if not codec.training_minutes > 0:
        raise BadInput(f"codec.training_minutes={codec.training_minutes}: has to be above 0")


def _check_names(codec: CodecConfig, kind: CodecKind) -> None:
    wanted = ", ".join(kind.weights)
    for part in kind.weights:
        if part not in codec.weights:
            raise BadInput(f"codec.weights.{part} is not given; codec.kind={codec.kind} needs {wanted}")
    for part in codec.weights:
        if part not in kind.weights + kind.extra:
            raise BadInput(f"codec.weights.{part}: codec.kind={codec.kind} has no such part, it has {wanted}")
    if kind.books is not None and set(codec.codebooks) != set(kind.books):
        raise BadInput(f"codec.codebooks: codec.kind={codec.kind} has {', '.join(kind.books)}")
    if len(codec.codebooks) > kind.most:
        raise BadInput(f"codec.codebooks: codec.kind={codec.kind} has at most {kind.most}, not {len(codec.codebooks)}")
    if set(codec.group) != set(codec.codebooks):
        raise BadInput(f"codec.group names {sorted(codec.group)}, the codebooks are {sorted(codec.codebooks)}")


def _check_codebooks(codec: CodecConfig, kind: CodecKind) -> None:
    groups = {}
    for name, book in codec.codebooks.items():
        for key, value in (("size", book.size), ("rate", book.rate), ("rows", book.rows)):
            if not value > 0:
                raise BadInput(f"codec.codebooks.{name}.{key}={value}: has to be above 0")
        if book.rows > kind.rows:
            raise BadInput(f"codec.codebooks.{name}.rows={book.rows}: codec.kind={codec.kind} has at most {kind.rows}")
        if (book.layer is not None) != kind.layers or (book.layer is not None and book.layer < 1):
            wanted = "a layer from 1 on" if kind.layers else "no layer"
            raise BadInput(f"codec.codebooks.{name}.layer={book.layer}: codec.kind={codec.kind} wants {wanted}")
        if codec.group[name] < 1:
            raise BadInput(f"codec.group.{name}={codec.group[name]}: has to be above 0")
        groups[name] = book.rate / codec.group[name]
    slowest, fastest = min(groups, key=groups.__getitem__), max(groups, key=groups.__getitem__)
    if groups[fastest] > (1 + _SAME_RATE) * groups[slowest]:
        raise BadInput(
            f"codec.group: {slowest} makes {groups[slowest]:.4g} groups a second and {fastest} {groups[fastest]:.4g}; "
            "rate / group has to be the same"
        )


def _check_options(codec: CodecConfig, kind: CodecKind) -> None:
    for name, value in codec.options.items():
        if name not in kind.options:
            known = ", ".join(kind.options) or "none"
            raise BadInput(f"codec.options.{name}: codec.kind={codec.kind} has {known}")
        if type(value) is not type(kind.options[name]):
            wanted = type(kind.options[name]).__name__
            raise BadInput(f"codec.options.{name}={value}: has to be a {wanted}")
