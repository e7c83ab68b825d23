"""One sample of a corpus: found by its key or number, and shown on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.corpus import Corpus
from data_pipeline.looking.laid import SLOT, SPECIAL, Laid, Token, short_names
from data_pipeline.looking.samples import facts, read_sound
from data_pipeline.looking.spectrogram import RANGE_DB, log_mel, palette
from data_pipeline.shards import DamagedSample, ShardReader
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import TEXT, Vocabulary
from runtime.exits import BadInput

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

CODES_SHOWN = 64  # of a row, and of a run of codes in a layout
BANDS_SHOWN = 20  # rows of a spectrogram in half blocks: twice as many bands
_SHADES = " ░▒▓█"
_COLOURS = ("bright_cyan", "bright_magenta", "bright_green", "bright_yellow", "bright_red")


@dataclass(frozen=True)
class Found:
    """A sample where it lies: its shard, its ordinal in it, the utterance and its sound; and its whole document."""

    shard: Path
    ordinal: int
    utterance: Utterance
    audio: bytes | None
    document: list[Utterance]


def find(corpus: Corpus, split: str, wanted: str) -> Found:
    """The sample `wanted` of a split: a number from 0 on, in the order of the shards, or a key.

    Raises BadInput where there is none, and where it cannot be read. A key is looked for in the tars' headers, so
    finding one takes a small read a sample.
    """
    shard, ordinal = _by_number(corpus, split, int(wanted)) if wanted.isdecimal() else _by_key(corpus, split, wanted)
    try:
        with ShardReader(shard) as reader:
            utterance, audio = reader.read(ordinal), reader.read_audio(ordinal)
            number = reader.index.document[ordinal]
            document = _document(reader, np.flatnonzero(reader.index.document == number))
            return Found(shard, ordinal, utterance, audio, document)
    except DamagedSample as damaged:
        raise BadInput(f"the sample is damaged: {damaged}") from damaged


def _document(reader: ShardReader, samples: np.ndarray) -> list[Utterance]:
    whole = []
    for sample in samples.tolist():
        try:
            whole.append(reader.read(sample))
        except DamagedSample:
            continue  # as the loader does; the one that was asked for is there
    return whole


def _by_number(corpus: Corpus, split: str, number: int) -> tuple[Path, int]:
    before = 0
    for shard, entry in zip(corpus.shards(split), corpus.splits[split], strict=True):
        if number < before + entry["samples"]:
            return shard, number - before
        before += entry["samples"]
    raise BadInput(f"{corpus.folder} has {before} samples in its {split} split, numbered from 0; there is no {number}")


def _by_key(corpus: Corpus, split: str, key: str) -> tuple[Path, int]:
    wanted = f"{key}.json"
    for shard in corpus.shards(split):
        try:
            with ShardReader(shard) as reader:
                ordinal = next((at for at in range(len(reader)) if reader.first_member(at) == wanted), None)
        except DamagedSample:
            continue
        if ordinal is not None:
            return shard, ordinal
    raise BadInput(f"{corpus.folder} has no sample {key!r} in its {split} split, in what can be read of it")


# --- on a terminal ----------------------------------------------------------------------------------------------


def print_sample(found: Found, corpus: Corpus, laid: Sequence[Laid], console: Console) -> None:
    """Text, facts, words, codes and spectrogram of a sample, then what the layout made of its document."""
    from rich.text import Text

    utterance = found.utterance
    where = f"{found.shard.relative_to(corpus.folder)} sample {found.ordinal}"
    console.print(Text(utterance.key, style="bold") + Text(f"  {where}, document {utterance.document}", style="dim"))
    console.print(Text(utterance.text or "(no text)"))
    told = [("seconds", f"{utterance.duration:.2f}"), ("speaker", utterance.speaker), ("source", utterance.source)]
    line = "  ".join(f"{name} {value}" for name, value in [*told, *facts(utterance)] if value)
    console.print(Text(line, style="dim"))
    if utterance.words:
        words = "  ".join(f"{word.start:.2f} {word.text}" for word in utterance.words)
        console.print(Text("words ", style="dim") + Text(words))
    colours = _colours(corpus.vocabulary)
    for name, rows in utterance.codes.items():
        for number, row in enumerate(rows):
            label = name if len(rows) == 1 else f"{name} {number}"
            more = f" … {len(row)} in all" if len(row) > CODES_SHOWN else ""
            codes = " ".join(map(str, row[:CODES_SHOWN].tolist())) + more
            console.print(Text(f"{label} ", style="dim") + Text(codes, style=colours.get(name, "")))
    for name, vectors in utterance.features.items():
        mean, deviation = float(vectors.mean(dtype=np.float64)), float(vectors.std(dtype=np.float64))
        size = f"{name} features {len(vectors)} x {vectors.shape[1]}"
        console.print(Text(f"{size}, mean {mean:.3g}, deviation {deviation:.3g}", style="dim"))
    if found.audio is not None:
        console.print(spectrogram_text(found, console))
    for sample in laid:
        _print_laid(sample, colours, console)
    if laid and corpus.vocabulary.codebooks:
        legend = "  ".join(f"{short} {name}" for name, short in short_names(corpus.vocabulary).items())
        console.print(Text(f"codes: {legend}", style="dim"))


def _print_laid(laid: Laid, colours: dict[str, str], console: Console) -> None:
    """A line for each run of one weight."""
    from rich.text import Text

    kinds = ", ".join(f"{count} {kind}" for kind, count in laid.counts.items())
    summary = f"  {len(laid.tokens)} tokens ({kinds}); loss on {laid.weighted}, weights add up to {laid.total:g}"
    console.print(Text(laid.key, style="bold") + Text(summary, style="dim"))
    for weight, tokens in laid.runs:
        covered = bool(weight)
        head = Text(f"{'first' if weight is None else f'x {weight:g}':>7}  ", style="bold" if covered else "dim")
        console.print(head + _run(tokens, colours, covered))


def _run(tokens: list[Token], colours: dict[str, str], covered: bool) -> Text:
    """Tokens of one run: text with a bar between its tokens, codes with spaces, long stretches of them cut."""
    from rich.text import Text

    shown = Text()
    before, stretch = "", 0
    for token in tokens:
        stretch = 0 if token.kind in (TEXT, SPECIAL) else stretch + 1
        if stretch > CODES_SHOWN:
            if stretch == CODES_SHOWN + 1:
                shown.append(" …")
            before = token.kind
            continue
        if shown:
            shown.append("│" if token.kind == before == TEXT else " ", style="dim")
        style = "bold" if token.kind == SPECIAL else "italic" if token.kind == SLOT else colours.get(token.kind, "")
        shown.append(token.name.replace("\n", "⏎"), style=style if covered else f"{style} dim".strip())
        before = token.kind
    return shown


def spectrogram_text(found: Found, console: Console) -> Text:
    """The log-mel spectrogram as wide as the terminal: half blocks in colour, or shades where there is none."""
    from rich.text import Text

    assert found.audio is not None
    try:
        wave, rate = read_sound(found.audio, str(found.shard))
    except DamagedSample:
        return Text("its sound cannot be decoded", style="bold red")
    loud = log_mel(wave, rate)[::-1] / RANGE_DB + 1  # 0 to 1, high bands first
    colour = console.color_system in ("256", "truecolor")
    picture = _shrink(loud, 2 * BANDS_SHOWN if colour else BANDS_SHOWN, min(console.width - 1, loud.shape[1]))
    if not colour:
        levels = np.minimum((picture * len(_SHADES)).astype(int), len(_SHADES) - 1)
        return Text("\n".join("".join(_SHADES[level] for level in row) for row in levels))
    shown = Text()
    shades = palette()[np.round(255 * picture).astype(int)]
    for upper, lower in zip(shades[::2], shades[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            shown.append("▀", style=f"rgb({','.join(map(str, above))}) on rgb({','.join(map(str, below))})")
        shown.append("\n")
    return shown


def _shrink(picture: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """`picture` as [rows, columns], each cell the loudest of what it stands for."""
    for axis, wanted in ((0, rows), (1, columns)):
        edges = np.arange(wanted) * picture.shape[axis] // wanted
        picture = np.maximum.reduceat(picture, edges, axis=axis)
    return picture


def _colours(vocabulary: Vocabulary) -> dict[str, str]:
    return {book.name: _COLOURS[number % len(_COLOURS)] for number, book in enumerate(vocabulary.codebooks)}
