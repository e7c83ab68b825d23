"""The statistics of a corpus as tables and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_pipeline.corpus import SPLITS, Corpus
from data_pipeline.looking.pages import in_bytes, number, short
from data_pipeline.looking.survey import READ, Readings, Survey, Tallied, read_samples, survey
from runtime.signals import StopFlag

if TYPE_CHECKING:
    from rich.console import Console

NAMES_SHOWN = 12  # of a label; the rest are summed up
_BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Statistics:
    """Of one split: what its indexes tell, and what was seen in the samples that were read."""

    survey: Survey
    readings: Readings


def gather(corpus: Corpus, *, read: int | None = READ, stop: StopFlag | None = None) -> dict[str, Statistics]:
    """Statistics by split. `read`: samples of each split that are read, None for all."""
    return {split: Statistics(survey(corpus, split, stop), read_samples(corpus, split, read, stop)) for split in SPLITS}


def as_json(corpus: Corpus, found: dict[str, Statistics]) -> dict[str, Any]:
    """All of it, JSON-ready."""
    return {
        "corpus": corpus.name,
        "folder": str(corpus.folder),
        "content_hash": corpus.content_hash,
        "splits": {split: _split_json(corpus, statistics) for split, statistics in found.items()},
    }


def print_tables(corpus: Corpus, found: dict[str, Statistics], console: Console) -> None:
    """Totals, codebooks, labels and distributions of every split that has samples."""
    shown = {split: statistics for split, statistics in found.items() if statistics.survey.samples}
    console.print(f"[bold]{corpus.name}[/bold]  {corpus.folder}", highlight=False)
    _print(console, "", list(shown), [[name, *cells] for name, *cells in total_rows(shown)])
    for split, statistics in shown.items():
        told, read = statistics.survey, statistics.readings
        if told.unreadable:
            names = ", ".join(told.unreadable[:3])
            console.print(f"{split}: {len(told.unreadable)} shards have no readable index: {names}", highlight=False)
        if read.damaged:
            kinds = ", ".join(f"{count} {kind}" for kind, count in read.damaged.most_common())
            console.print(f"{split}: of the samples read, damaged were {kinds}", highlight=False)
        rows = codebook_rows(corpus, statistics)
        if rows:
            _print(console, f"{split}: codebooks, in {read.read:,} samples read", CODEBOOK_HEAD, rows)
        for label, tallied in label_counts(statistics).items():
            if set(tallied.samples) - {""}:
                _print(console, f"{split}: {label}", ["samples", "hours"], label_rows(tallied))
        _print(console, f"{split}: distributions", ["mean", "5 %", "median", "95 %", "", ""], _distributions(told))


def total_rows(found: dict[str, Statistics]) -> list[list[str]]:
    """Rows of name and one cell a split."""
    surveys = [statistics.survey for statistics in found.values()]
    rows = [
        ["hours", *(f"{told.seconds / 3600:,.2f}" for told in surveys)],
        ["utterances", *(f"{told.samples:,}" for told in surveys)],
        ["of them spoken", *(f"{told.spoken:,}" for told in surveys)],
        ["of them with sound kept", *(f"{told.with_audio:,}" for told in surveys)],
        ["documents", *(f"{told.documents:,}" for told in surveys)],
        ["characters", *(f"{told.characters:,}" for told in surveys)],
        ["text tokens, about", *(short(text_tokens(statistics)) for statistics in found.values())],
        ["shards", *(f"{told.shards:,}" for told in surveys)],
        ["bytes", *(in_bytes(told.shard_bytes.total) for told in surveys)],
        ["bytes of a shard, median", *(in_bytes(told.shard_bytes.quantile(0.5)) for told in surveys)],
    ]
    for name in sorted({name for told in surveys for name in told.frames}):
        rows.insert(6, [f"frames of {name}", *(f"{told.frames[name]:,}" for told in surveys)])
    return rows


def text_tokens(statistics: Statistics) -> float:
    """Text tokens of a split, from its characters and the tokens a character of the samples read."""
    read = statistics.readings
    return statistics.survey.characters * read.text_tokens / read.characters if read.characters else 0.0


CODEBOOK_HEAD = ["tokens", "entries", "used", "perplexity", "of entries"]


def codebook_rows(corpus: Corpus, statistics: Statistics) -> list[list[str]]:
    """A row for each table of each codebook: tokens in the split, entries, the share used, perplexity."""
    rows = []
    for book in corpus.vocabulary.codebooks:
        usage = statistics.readings.usage[book.name]
        for row, perplexity in enumerate(usage.perplexity):
            name = book.name if book.rows == 1 else f"{book.name} {row}"
            tokens = f"{statistics.survey.frames[book.name]:,}"
            used = f"{100 * float((usage.counts[row] > 0).mean()):.1f} %"
            share = f"{100 * perplexity / book.size:.1f} %"
            rows.append([name, tokens, f"{book.size:,}", used, f"{perplexity:,.1f}", share])
    return rows if any(usage.counts.any() for usage in statistics.readings.usage.values()) else []


def label_counts(statistics: Statistics) -> dict[str, Tallied]:
    """Labels of the index; and licences, counted in the samples read where the index has none."""
    labels = dict(statistics.survey.labels)
    if "licence" not in labels:
        labels["licence, of samples read"] = statistics.readings.licences
    return labels


def label_rows(names: Tallied) -> list[list[str]]:
    """The most frequent names with samples and hours, and a row for the rest."""
    common = names.samples.most_common(NAMES_SHOWN)
    rows = [[name or "(none)", f"{count:,}", f"{names.seconds[name] / 3600:,.2f}"] for name, count in common]
    rest = len(names.samples) - len(common)
    if rest or names.beyond:
        others = sum(names.samples.values()) - sum(count for _, count in common) + names.beyond
        seconds = sum(names.seconds.values()) - sum(names.seconds[name] for name, _ in common)
        more = "more than " if names.beyond else ""
        rows.append([f"{more}{rest:,} others", f"{others:,}", f"{seconds / 3600:,.2f}"])
    return rows


def title_of(name: str) -> str:
    """What a histogram shows, in words."""
    titles = {
        "duration": "duration, s",
        "characters_per_second": "characters a second",
        "characters": "characters of an utterance",
    }
    return titles.get(name, name.removeprefix("column/"))


def _distributions(told: Survey) -> list[list[str]]:
    rows = []
    for name, held in told.histograms.items():
        if not held.number:
            continue
        values = [held.mean, *(held.quantile(share) for share in (0.05, 0.5, 0.95))]
        unknown = f"{held.unknown:,} without" if held.unknown else ""
        rows.append([title_of(name), *map(number, values), _sparkline(held.bars(24)[1].tolist()), unknown])
    return rows


def _sparkline(counts: list[int]) -> str:
    highest = max(counts, default=0) or 1
    return "".join(_BLOCKS[-(-count * (len(_BLOCKS) - 1) // highest)] for count in counts)


def _print(console: Console, title: str, head: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("", *head, title=title or None, title_justify="left", box=box.SIMPLE_HEAD, highlight=False)
    for column in table.columns:
        column.no_wrap = True
        column.justify = "left" if column is table.columns[0] else "right"
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _split_json(corpus: Corpus, statistics: Statistics) -> dict[str, Any]:
    told, read = statistics.survey, statistics.readings
    return {
        "shards": told.shards,
        "unreadable": told.unreadable,
        "samples": told.samples,
        "spoken": told.spoken,
        "with_audio": told.with_audio,
        "documents": told.documents,
        "hours": told.seconds / 3600,
        "characters": told.characters,
        "text_tokens": text_tokens(statistics),
        "frames": dict(told.frames),
        "bytes": int(told.shard_bytes.total),
        "audio_bytes": told.audio_bytes,
        "shard_bytes": told.shard_bytes.data(),
        "shard_samples": told.shard_samples.data(),
        "histograms": {name: held.data() for name, held in told.histograms.items()},
        "labels": {
            label: {
                "distinct": len(names.samples),
                "beyond": names.beyond,
                "samples": dict(names.samples.most_common(1000)),
                "hours": {name: names.seconds[name] / 3600 for name, _ in names.samples.most_common(1000)},
            }
            for label, names in told.labels.items()
        },
        "read": {
            "samples": read.read,
            "damaged": dict(read.damaged),
            "licences": dict(read.licences.samples),
            "with_word_times": read.timed,
            "features": {name: {"width": width} for name, width in read.feature_widths.items()},
            "codebooks": {
                book.name: {
                    "entries": book.size,
                    "used": [float((row > 0).mean()) for row in read.usage[book.name].counts],
                    "perplexity": read.usage[book.name].perplexity,
                }
                for book in corpus.vocabulary.codebooks
            },
        },
    }
