"""Charts as data: what the page's script draws, made from metric records."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from train.metrics import Record
from train.observe.phases import BACKWARD, CHECKPOINT, COMMUNICATION, FORWARD, INCIDENT, PHASES, VALIDATION

MOST_POINTS = 1200  # of one line; a longer run is drawn as means of equal stretches

_COLOURS = {"all": "ink", "text": "text", "audio": "audio", "linguistic": "linguistic", "semantic": "semantic"}
_COLOURS |= {"data": "extra-2", "forward": "audio", "backward": "linguistic", "optimizer": "semantic"}
_COLOURS |= {"communication": "text", "other": "extra-4"}
_SPARE_COLOURS = ("extra-1", "extra-2", "extra-3", "extra-4")


@dataclass(frozen=True)
class Line:
    """One curve: y over the chart's x, None where nothing finite was recorded. `colour` names a CSS variable."""

    name: str
    colour: str
    y: list[float | None]


@dataclass(frozen=True)
class Dots:
    """Single measurements, drawn as dots in the colour of the line of the same name."""

    name: str
    colour: str
    x: list[int]
    y: list[float]


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with."""

    label: str
    colour: str
    y: float


@dataclass(frozen=True)
class Chart:
    """`style`: "lines", or "stack" for shares that add up to one. `number`: how values are written ("loss", "share",
    "scientific" or "count"). `logarithmic`: whether a logarithmic axis makes sense. `tight`: the axis need not start at
    zero. `per_point`: steps a point."""

    key: str
    title: str
    note: str
    x: list[int]
    lines: list[Line]
    dots: list[Dots] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    style: str = "lines"
    number: str = "count"
    logarithmic: bool = False
    tight: bool = False
    wide: bool = False
    per_point: int = 1

    def data(self) -> dict[str, Any]:
        return asdict(self)


def colour_of(name: str, names: Sequence[str]) -> str:
    """CSS colour of a term or modality: fixed for the known ones, in turn for others."""
    if name in _COLOURS:
        return _COLOURS[name]
    others = [other for other in names if other not in _COLOURS]
    return _SPARE_COLOURS[others.index(name) % len(_SPARE_COLOURS)]


def loss_terms(records: Sequence[Record]) -> dict[str, str]:
    """Display name to record key of every loss in the records, but for those of single sources. "lm" is left out where
    it is the whole loss."""
    keys = list(dict.fromkeys(key for record in records for key in record if key.startswith("loss/")))
    keys = [key for key in keys if key.count("/") == 1]
    if all(record.get("loss/lm", record.get("loss")) == record.get("loss") for record in records):
        keys = [key for key in keys if key != "loss/lm"]
    terms = {"all": "loss"} if any("loss" in record for record in records) else {}
    return terms | {key.removeprefix("loss/"): key for key in keys}


def charts_of(metrics: Sequence[Record], validation: Sequence[Record], entropy: dict[str, float]) -> list[Chart]:
    """Every chart that the records have data for. `entropy`: unigram entropies of the corpus's codes, in nats."""
    stretches = _buckets(metrics)

    def chart(
        key: str, title: str, note: str, columns: Mapping[str, str | _Column], among: Any = stretches, **options: Any
    ) -> Chart:
        x, buckets, width = among
        lines = []
        for name, column in columns.items():
            y = [_mean(_values(bucket, column)) for bucket in buckets]
            if any(value is not None for value in y):
                lines.append(Line(name, colour_of(name, list(columns)), y))
        return Chart(key=key, title=title, note=note, x=x, lines=lines, per_point=width, **options)

    def sparse(key: str, title: str, note: str, columns: Mapping[str, str | _Column], **options: Any) -> Chart:
        """A chart of what is measured at some steps alone: a point for each of those."""
        measured = [record for record in metrics if any(_values([record], column) for column in columns.values())]
        return chart(key, title, note, columns, _buckets(measured), **options)

    terms = loss_terms([*metrics, *validation])
    of_sources = {key.removeprefix("loss/"): key for key in _keys(metrics, "loss/") if key.count("/") == 2}
    rates = {key.removeprefix("lr/"): key for key in _keys(metrics, "lr/")}
    found = [
        chart(
            "loss",
            "Loss",
            "nats a token; lines are training, dots validation",
            dict(terms),
            dots=_validation_dots(validation, terms),
            levels=[
                Level("audio, unigram entropy", colour_of(name, list(terms)), entropy[name])
                for name in ("audio",)
                if name in entropy
            ],
            number="loss",
            logarithmic=True,
            tight=True,
            wide=True,
        ),
        chart(
            "loss_sources",
            "Loss by source",
            "nats a token of text and audio; lines are training, dots validation",
            dict(of_sources),
            dots=_validation_dots(validation, of_sources),
            number="loss",
            logarithmic=True,
        ),
        chart("ppo_reward", "Reward", _REWARD, _OF_REWARD, dots=_validation_dots(validation, _OF_REWARD), tight=True),
        chart("ppo_kl", "KL to the reference", _KL, _OF_KL, dots=_validation_dots(validation, _OF_KL), number="loss"),
        chart("ppo_answers", "Answers", "tokens, a mean over a round", {"length": "ppo/length"}),
        chart("ppo_entropy", "Entropy of the policy", "nats a token", {"all": "ppo/entropy"}, number="loss"),
        chart("ppo_difference", "Generator and trainer", _APART, dict(_DIFFERENCES), logarithmic=True, **_TINY),
        _joined(chart("lr", "Learning rate", "by parameter group", dict(rates), number="scientific")),
        chart("grad_norm", "Gradient norm", "before clipping", {"all": "grad_norm"}, number="loss", logarithmic=True),
        chart("throughput", "Throughput", "tokens a second", {"all": "tokens_per_second"}),
        chart("audio_speed", "Audio read", "seconds of speech a second", {"audio": _audio_speed}),
        _joined(chart("mfu", "MFU and HFU", _MFU, {"MFU": "mfu", "HFU": "hfu"}, number="share")),
        chart("time", "Where a step's time goes", _TIME, _time(metrics), style="stack", number="share"),
        chart("between", "Between steps", "seconds before a step, on rank 0", _named(_BETWEEN), number="loss"),
        *[sparse(*group, number="loss", logarithmic=True) for group in _norm_charts(metrics)],
        sparse("norm_update", "Relative updates", _UPDATES, _updates(metrics), number="scientific", logarithmic=True),
        sparse("memory", "Memory", "high-water mark in GiB, the highest of all ranks", _tails(metrics, "memory/")),
        sparse("slowest", "Ranks compared", _RANKS, _slowest(metrics), number="loss"),
        chart("mix", "Token mix", "share of tokens by modality", _mix(metrics), style="stack", number="share"),
        chart("sources", "Sources", "share of tokens by source", _tails(metrics, "source/"), **_SHARES),
        chart("padding", "Padding", "share of tokens", {"all": "padding"}, number="share"),
        chart("damaged", "Damaged samples", "left out so far, by kind", _counts(metrics, "damaged/")),
        chart("damaged_from", "Damaged samples by source", "left out so far", _counts(metrics, "damaged_from/")),
        chart("queue", "Packs read ahead", "waiting on rank 0 as a step asks for its own", {"packs": "queue"}),
    ]
    return [chart for chart in found if chart.lines or chart.dots]


_REWARD = "the reward model's, a mean over answers; the line is of rounds, dots are held-out questions"
_KL = "nats an answer; the line is of rounds, dots are held-out questions"
_OF_REWARD, _OF_KL = {"all": "ppo/reward"}, {"all": "ppo/kl"}
_APART = "absolute difference of a token's log-probabilities, in nats"
_DIFFERENCES = {"mean": "ppo/difference", "largest": "ppo/difference_max"}
_TINY: dict[str, Any] = {"number": "scientific"}
_MFU = "of the devices' dense peak; HFU counts what is computed again"
_TIME = "share of the step, on rank 0"
_UPDATES = "norm of a step's update over that of the parameters"
_SHARES: dict[str, Any] = {"style": "stack", "number": "share"}
_RANKS = "slowest over mean, seconds in a phase"
_BETWEEN = {what: f"time/{what}" for what in (CHECKPOINT, VALIDATION, INCIDENT)}

# --- columns ----------------------------------------------------------------------------------------------------

_Column = Callable[[Record], Any]


def _joined(chart: Chart) -> Chart:
    """The chart with lines that lie exactly on each other made one, which bears all their names."""
    lines: list[Line] = []
    for line in chart.lines:
        same = next((i for i, other in enumerate(lines) if other.y == line.y), None)
        if same is None:
            lines.append(line)
        else:
            lines[same] = replace(lines[same], name=f"{lines[same].name}, {line.name}")
    return replace(chart, lines=lines)


def _values(bucket: Sequence[Record], column: str | _Column) -> list[float]:
    """Finite numbers of a column."""
    found = [record.get(column) if isinstance(column, str) else column(record) for record in bucket]
    return [float(value) for value in found if isinstance(value, (int, float)) and math.isfinite(value)]


def _mean(values: list[float]) -> float | None:
    return float(f"{sum(values) / len(values):.5g}") if values else None


def _audio_speed(record: Record) -> float | None:
    speed = record.get("audio_hours_per_second")
    return speed * 3600 if isinstance(speed, (int, float)) else None


def _mix(metrics: Sequence[Record]) -> dict[str, str | _Column]:
    keys = _keys(metrics, "modality/")

    def share(key: str) -> _Column:
        def column(record: Record) -> float | None:
            total = sum(_values([record], str(other))[0] if _values([record], str(other)) else 0.0 for other in keys)
            own = record.get(key)
            return own / total if total and isinstance(own, (int, float)) else None

        return column

    return {key.removeprefix("modality/"): share(key) for key in keys}


def _counts(metrics: Sequence[Record], prefix: str) -> dict[str, str | _Column]:
    """Counts that stand in the records from the first of their kind on: before it they are 0."""

    def count(key: str) -> _Column:
        return lambda record: record.get(key, 0)

    return {key.removeprefix(prefix): count(key) for key in _keys(metrics, prefix)}


def _named(keys: Mapping[str, str]) -> dict[str, str | _Column]:
    return dict(keys)


def _tails(metrics: Sequence[Record], prefix: str) -> dict[str, str | _Column]:
    return {key.removeprefix(prefix): key for key in _keys(metrics, prefix)}


def _time(metrics: Sequence[Record]) -> dict[str, str | _Column]:
    """Shares of the step's own seconds; what is done between steps is none of them."""

    def share(key: str) -> _Column:
        def column(record: Record) -> float | None:
            seconds, spent = record.get("seconds"), record.get(key)
            return spent / seconds if seconds and isinstance(spent, (int, float)) else None

        return column

    return {phase: share(f"time/{phase}") for phase in PHASES if any(f"time/{phase}" in record for record in metrics)}


def _slowest(metrics: Sequence[Record]) -> dict[str, str | _Column]:
    """Of every phase, the most that any rank spent in it over the mean of all."""

    def ratio(phase: str) -> _Column:
        def column(record: Record) -> float | None:
            most, mean = record.get(f"ranks/{phase}/max"), record.get(f"ranks/{phase}/mean")
            return most / mean if most and mean else None

        return column

    return {phase: ratio(phase) for phase in (FORWARD, BACKWARD, COMMUNICATION)}


def _norm_charts(metrics: Sequence[Record]) -> list[tuple[str, str, str, dict[str, str | _Column]]]:
    """Key, title, note and columns of the charts of norms by group, and by layer where those were measured."""
    found = []
    for kind, title in (("grad", "Gradient norms"), ("param", "Parameter norms")):
        columns = _tails(metrics, f"norm/{kind}/")
        groups = {name: key for name, key in columns.items() if not name.startswith("layer-")}
        layers = {name: key for name, key in columns.items() if name.startswith("layer-")}
        found.append((f"norm_{kind}", title, "by group", groups))
        found.append((f"norm_{kind}_layers", f"{title}, layers", "by layer of the trunk", layers))

    return found


def _updates(metrics: Sequence[Record]) -> dict[str, str | _Column]:
    """The norm of a step's update over that of what it changed, by group."""

    def ratio(group: str) -> _Column:
        def column(record: Record) -> float | None:
            moved, size = record.get(f"norm/update/{group}"), record.get(f"norm/param/{group}")
            return moved / size if moved is not None and size else None

        return column

    return {name: ratio(name) for name in _tails(metrics, "norm/update/") if not name.startswith("layer-")}


def _keys(records: Sequence[Record], prefix: str) -> list[str]:
    return list(dict.fromkeys(key for record in records for key in record if key.startswith(prefix)))


def _buckets(records: Sequence[Record]) -> tuple[list[int], list[Sequence[Record]], int]:
    """Equal stretches of the records, at most MOST_POINTS: their middle steps, the stretches, records in one."""
    width = max(1, -(-len(records) // MOST_POINTS))
    buckets = [records[start : start + width] for start in range(0, len(records), width)]
    return [bucket[len(bucket) // 2]["step"] for bucket in buckets], buckets, width


def _validation_dots(validation: Sequence[Record], terms: dict[str, str]) -> list[Dots]:
    found = []
    for name, key in terms.items():
        measured = [(record["step"], values[0]) for record in validation if (values := _values([record], key))]
        if measured:
            x, y = (list(column) for column in zip(*measured, strict=True))
            found.append(Dots(name, colour_of(name, list(terms)), x, [float(f"{value:.5g}") for value in y]))
    return found
