"""The corpus report: one page, without network, that shows what a corpus holds and what of it is not right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.corpus import Corpus
from data_pipeline.looking.charts import Bars, Curve, histogram_chart, usage_chart
from data_pipeline.looking.pages import Tile, colours_of, environment, in_bytes, left_out_kinds, short
from data_pipeline.looking.samples import gallery
from data_pipeline.looking.stats import (
    NAMES_SHOWN,
    Statistics,
    codebook_rows,
    label_counts,
    text_tokens,
    title_of,
    total_rows,
)
from data_pipeline.looking.survey import Tallied
from data_pipeline.quality.funnel import FunnelReport
from data_pipeline.shards import replace_atomically

REPORT_FILE = "report.html"


@dataclass(frozen=True)
class Share:
    """A name of a label, its samples and hours, and how long its bar is, from 0 to 100."""

    name: str
    samples: int
    hours: float
    length: float


@dataclass(frozen=True)
class Label:
    title: str
    distinct: str
    shares: list[Share]


@dataclass(frozen=True)
class Stage:
    """What a clause of a filter left: hours and utterances, what it dropped, and how long its bar is, from 0 to 100."""

    name: str
    utterances: int
    hours: float
    dropped: str
    length: float


def write_corpus_report(
    path: Path, corpus: Corpus, found: dict[str, Statistics], funnels: Sequence[FunnelReport] = ()
) -> None:
    """Write the page about `corpus`, whose statistics are `found`, to `path`. `funnels`: of filters over its train
    split."""
    shown = {split: statistics for split, statistics in found.items() if statistics.survey.samples}
    main = next(iter(shown), "train")
    charts = _histograms(found[main])
    listening = gallery(corpus, "valid" if "valid" in shown else main)
    page = (
        environment()
        .get_template("corpus.html")
        .render(
            corpus=corpus,
            tiles=_tiles(corpus, found),
            splits=list(shown),
            totals=total_rows(shown),
            main=main,
            charts=[chart for name, chart in charts if not name.startswith("column/")],
            quality=[chart for name, chart in charts if name.startswith("column/")],
            curves=_curves(corpus, found[main]),
            read=found[main].readings.read,
            labels=_labels(found[main]),
            funnels=[(report.expression, stages_of(report)) for report in funnels],
            left_out=left_out_kinds(corpus.left_out),
            unreadable=[name for statistics in found.values() for name in statistics.survey.unreadable],
            damaged=_damaged(found),
            listening=listening,
            strip_data=listening.strip_data(),
            codecs=json.dumps(corpus.codecs, indent=2),
        )
    )
    replace_atomically(path, page.encode())


def _tiles(corpus: Corpus, found: dict[str, Statistics]) -> list[Tile]:
    surveys = [statistics.survey for statistics in found.values()]
    hours = sum(told.seconds for told in surveys) / 3600
    spoken, samples = sum(told.spoken for told in surveys), sum(told.samples for told in surveys)
    speakers = {name for told in surveys if "speaker" in told.labels for name in told.labels["speaker"].samples} - {""}
    tables = {book.name: book.rows for book in corpus.vocabulary.codebooks}
    audio = sum(count * tables.get(name, 1) for told in surveys for name, count in told.frames.items())
    written = sum(text_tokens(statistics) for statistics in found.values())
    sound = sum(told.with_audio for told in surveys)
    tiles = [
        Tile("Speech", f"{hours:,.2f}" if hours < 100 else short(hours), "hours", f"{spoken:,} utterances"),
        Tile("Audio tokens", short(audio), "", " and ".join(tables) or "no codebook"),
        Tile("Text tokens", short(written), "", f"about; {short(sum(t.characters for t in surveys))} characters"),
        Tile("Samples", short(samples), "", f"in {short(sum(told.documents for told in surveys))} documents"),
        Tile("Shards", f"{sum(told.shards for told in surveys):,}", "", _size(found)),
        Tile("Sound kept", short(sound), "", f"of {short(spoken)} spoken utterances"),
    ]
    if speakers:
        tiles.insert(4, Tile("Speakers", short(len(speakers)), "", "by name"))
    return tiles


def _size(found: dict[str, Statistics]) -> str:
    return in_bytes(sum(statistics.survey.shard_bytes.total for statistics in found.values()))


def _histograms(statistics: Statistics) -> list[tuple[str, Bars]]:
    held = statistics.survey.histograms | {
        "samples of a shard": statistics.survey.shard_samples,
        "bytes of a shard": statistics.survey.shard_bytes,
    }
    colours = {"duration": "audio", "characters_per_second": "text", "characters": "text"}
    return [
        (name, histogram_chart(title_of(name), values, colours.get(name, "linguistic")))
        for name, values in held.items()
        if values.number
    ]


def _curves(corpus: Corpus, statistics: Statistics) -> list[Curve]:
    colours = colours_of([book.name for book in corpus.vocabulary.codebooks])
    rows = iter(codebook_rows(corpus, statistics))
    curves = []
    for book in corpus.vocabulary.codebooks:
        for counts in statistics.readings.usage[book.name].counts:
            if not counts.any():
                continue
            title, tokens, entries, used, perplexity, share = next(rows)
            facts = [("tokens", tokens), ("used", f"{used} of {entries}"), ("perplexity", f"{perplexity}, {share}")]
            curves.append(usage_chart(title, counts, facts, colours[book.name]))
    return curves


def _labels(statistics: Statistics) -> list[Label]:
    found = []
    for title, names in label_counts(statistics).items():
        if set(names.samples) - {""}:
            more = "more than " if names.beyond else ""
            found.append(Label(title, f"{more}{len(set(names.samples) - {''}):,}", _shares(names)))
    return found


def _shares(names: Tallied) -> list[Share]:
    """The most frequent names, by hours where there are any."""
    by_hours = sum(names.seconds.values()) > 0
    sizes = names.seconds if by_hours else names.samples
    common = sorted(names.samples, key=lambda name: (-sizes[name], -names.samples[name], name))[:NAMES_SHOWN]
    longest = max((float(sizes[name]) for name in common), default=0.0) or 1.0
    return [
        Share(name or "(none)", names.samples[name], names.seconds[name] / 3600, 100 * float(sizes[name]) / longest)
        for name in common
    ]


def stages_of(report: FunnelReport) -> list[Stage]:
    """All utterances, then what each clause left of them. Bars are shares of the hours, or of the utterances where
    nothing was spoken."""
    rows = report.funnels[0].rows
    whole = rows[0].entered
    stages = [Stage("all", whole.utterances, whole.hours, "", 100.0)]
    for row in rows:
        share = row.left.hours / whole.hours if whole.hours else row.left.utterances / max(1, whole.utterances)
        dropped = f"dropped {row.dropped.utterances:,}"
        if row.missing.utterances:
            dropped += f", of which {row.missing.utterances:,} have no value"
        dropped += f"; alone it would drop {row.alone.utterances:,}"
        stages.append(Stage(row.clause, row.left.utterances, row.left.hours, dropped, 100 * share))
    return stages


def _damaged(found: dict[str, Statistics]) -> list[list[str]]:
    return [
        [kind, split, f"{count:,}"]
        for split, statistics in found.items()
        for kind, count in statistics.readings.damaged.most_common()
    ]
