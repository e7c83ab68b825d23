"""All measurements of a config, of one model. What is measured already is kept; sets that are not there are told."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from configs.schema import Config, EvaluationSetConfig, MeasurementConfig, MeasurementKind
from data_pipeline.audio import SAMPLE_RATE, encode_wav
from data_pipeline.build import corpus_folder
from data_pipeline.looking.samples import spread
from data_pipeline.quality.errors import NORMALISER
from data_pipeline.sample_bytes import DamagedSample
from data_pipeline.shards import replace_atomically
from data_pipeline.sources.evaluation import Item, check_set, read_set
from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.recording import UnreadableAudio
from runtime import run_files
from runtime.exits import BadInput, StoppedEarly
from runtime.progress import Progress
from runtime.run_files import RESULTS_FILE
from runtime.signals import StopFlag
from train.evaluation.build import open_measurement
from train.evaluation.figures import Figure
from train.evaluation.kept import Kept
from train.evaluation.matching import RULE
from train.evaluation.measurement import Found, Measurement
from train.evaluation.speech import RESYNTHESIS, SPEECH
from train.evaluation.subject import Subject

EVALUATION_FILE = "evaluation.json"
ITEMS = "items"  # folder of what was measured of single items
SOUNDS = "sounds"
_LISTENED = (MeasurementKind.tts, MeasurementKind.resynthesis)


@dataclass(frozen=True)
class Measured:
    """Figures of one measurement and set. `of`: items that the set has; `left_out`: how many were not measured, by
    reason; `seconds`: that this run took, without what was there before."""

    measurement: str
    kind: str
    set: str
    items: int
    of: int
    left_out: dict[str, int]
    figures: dict[str, Figure]
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Everything. `missing` has the places of sets that are not there, `impossible` why measurements were not made."""

    measured: list[Measured]
    missing: dict[str, str]
    impossible: dict[str, str]


def evaluate(config: Config, subject: Subject, stop: StopFlag, say: Callable[[str], None]) -> Evaluation:
    """Measure, and write evaluation.json and results.json into the run folder, with a line an item in items/.

    Raises BadInput where a set is not what it should be or too much of it cannot be read, where nothing could be
    measured, and where a set is missing that `evaluation.require_sets` asks for; StoppedEarly at a stop signal, with
    what is done kept.
    """
    evaluation = config.evaluation
    for name, one in evaluation.sets.items():
        check_set(name, one)
    wanted = {name for measurement in evaluation.measurements.values() for name in measurement.sets}
    places = {name: place_of(config, evaluation.sets[name]) for name in sorted(wanted)}
    missing = {name: str(place) for name, place in places.items() if not place.exists()}
    if missing:
        told = ", ".join(f"{name} ({place})" for name, place in missing.items())
        if evaluation.require_sets:
            raise BadInput(f"evaluation sets are missing: {told}")
        say(f"sets that are not there, and are left out: {told}")
    measured, impossible = [], {}
    for name, settings in evaluation.measurements.items():
        there = [set_name for set_name in settings.sets if set_name not in missing]
        if not there:
            continue
        try:
            measurement = open_measurement(subject, settings)
        except BadInput as error:
            impossible[name] = str(error)
            say(f"{name} is not measured: {error}")
            continue
        for set_name in there:
            run = _Run(config, subject, name, settings, set_name, stop)
            measured.append(run.measure(measurement, read_set(evaluation.sets[set_name], places[set_name])))
            say(line_of(measured[-1]))
    if not measured:
        reasons = [*impossible.values(), *(f"set {name} is not there" for name in missing)]
        raise BadInput(f"nothing could be measured: {'; '.join(reasons)}")
    found = Evaluation(measured, missing, impossible)
    _write(config, subject, found)
    return found


class _Run:
    """One measurement of one set."""

    def __init__(
        self, config: Config, subject: Subject, name: str, settings: MeasurementConfig, set_name: str, stop: StopFlag
    ) -> None:
        self._evaluation = config.evaluation
        self._folder = Path(config.run.folder)
        self._name, self._set, self._settings, self._stop = name, set_name, settings, stop
        self._place = place_name(name, set_name)
        self._identity = _identity(config, subject, settings, set_name)

    def measure(self, measurement: Measurement, items: list[Item]) -> Measured:
        begun = time.monotonic()
        # The harness has a limit of its own, of a task's questions.
        limit = None if self._settings.kind is MeasurementKind.tasks else self._settings.limit
        chosen = items if limit is None else spread(items, limit)
        heard = {item.key for item in spread(chosen, self._evaluation.players)}
        kept = Kept(self._folder / ITEMS / f"{self._place}.jsonl", self._identity)
        todo = kept.missing(chosen)
        left_out: Counter[str] = Counter()
        with Progress("evaluation").phase(f"{self._name} of {self._set}", len(chosen)) as show:
            show(len(chosen) - len(todo))
            for together in _batches(todo, self._settings.batch):
                if self._stop:
                    raise StoppedEarly(f"stopped by {self._stop.name}; the same command goes on from what is measured")
                left_out.update(self._measure(measurement, together, kept, heard))
                show(len(chosen) - len(kept.missing(chosen)) + left_out.total())
        found = [kept.records[item.key] for item in chosen if item.key in kept.records]
        if left_out.total() > self._evaluation.damaged_share * len(chosen) or not found:
            told = ", ".join(f"{count} of kind {kind}" for kind, count in sorted(left_out.items()))
            raise BadInput(
                f"evaluation set {self._set}: {left_out.total()} of {len(chosen)} items cannot be read ({told}), more "
                f"than evaluation.damaged_share={self._evaluation.damaged_share:g}"
            )
        return Measured(
            self._name,
            self._settings.kind.value,
            self._set,
            len(found),
            len(items),
            dict(left_out),
            measurement.total(found),
            time.monotonic() - begun,
        )

    def _measure(self, measurement: Measurement, items: Sequence[Item], kept: Kept, heard: set[str]) -> list[str]:
        """Keep the records of `items`; returns why some have none."""
        prepared, ready, left_out = [], [], []
        for item in items:
            try:
                prepared.append(measurement.prepare(item))
            except (UnreadableAudio, DamagedSample) as error:
                left_out.append(error.kind)
            else:
                ready.append(item)
        for item, found in zip(ready, measurement.measure(prepared) if prepared else (), strict=True):
            if item.key in heard:
                self._keep_sounds(item, found)
            kept.add(item, found.record)
        return left_out

    def _keep_sounds(self, item: Item, found: Found) -> None:
        """As wav, beside the record, before it: a record is there once all of its item is."""
        folder = self._folder / SOUNDS / self._place
        for name, wave in found.sounds.items():
            try:
                sound = encode_wav(wave(), SAMPLE_RATE)
            except UnreadableAudio:
                continue  # a corpus that keeps no sound
            folder.mkdir(parents=True, exist_ok=True)
            replace_atomically(folder / f"{safe_key(item.key)}.{name}.wav", sound)


def place_of(config: Config, one: EvaluationSetConfig) -> Path:
    """Where a set lies, whether it is there or not."""
    if one.path is None:
        return corpus_folder(config)
    return Path(config.evaluation.folder) / one.path  # an absolute path stays as it is


def line_of(measured: Measured) -> str:
    """A measurement in one line."""
    told = ", ".join(f"{name} {written(figure)}" for name, figure in measured.figures.items())
    return f"{measured.measurement} of {measured.set}, {measured.items} of {measured.of} items: {told}"


def written(figure: Figure) -> str:
    """A figure with its range, as `12.3 % [10.1, 14.2]`."""
    unit = f" {figure.unit}" if figure.unit == "%" else ""
    span = "" if figure.low is None or figure.high is None else f" [{figure.low:.4g}, {figure.high:.4g}]"
    return f"{figure.value:.4g}{unit}{span}"


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _identity(config: Config, subject: Subject, settings: MeasurementConfig, set_name: str) -> str:
    """What decides the records of a measurement and set."""
    limit = settings.limit if settings.kind is MeasurementKind.tasks else None
    deciding = asdict(settings) | {"sets": None, "limit": limit}
    told: list[Any] = [
        subject.fingerprint(),
        deciding,
        asdict(config.evaluation.sets[set_name]),
        str(place_of(config, config.evaluation.sets[set_name])),
        asdict(config.mixture),
        config.evaluation.bf16,
    ]
    if settings.kind in _LISTENED:
        told += [subject.judges.describe(), config.evaluation.decoder, config.evaluation.vocoder]
    return xxhash.xxh3_128_hexdigest(json.dumps(told, sort_keys=True, default=str).encode())


def _write(config: Config, subject: Subject, found: Evaluation) -> None:
    folder = Path(config.run.folder)
    judged = any(one.kind in _LISTENED for one in found.measured)
    told = {
        "evaluation": config.evaluation.name,
        "model": str(subject.export),
        "normaliser": NORMALISER,
        "match": RULE,
        "judges": subject.judges.describe() if judged else {},
        "ranges": "95 %, by a bootstrap over items, or from the standard errors of lm-evaluation-harness",
        **asdict(found),
    }
    replace_atomically(folder / EVALUATION_FILE, (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode())
    results = {
        "status": "finished",
        "model": str(subject.export),
        run_files.MEASURED: {
            f"{one.measurement} of {one.set}: {name}": written(figure)
            for one in found.measured
            for name, figure in one.figures.items()
        },
        run_files.SOUNDS: _made(folder, found.measured),
        "missing": sorted(found.missing),
    }
    replace_atomically(folder / RESULTS_FILE, (json.dumps(results, indent=2) + "\n").encode())


def _made(folder: Path, measured: Sequence[Measured]) -> dict[str, str]:
    """Files of speech that the model made, relative to the run folder, by what they are."""
    return {
        f"{one.measurement} of {one.set}: {file.name.removesuffix('.wav')}": file.relative_to(folder).as_posix()
        for one in measured
        for name in (SPEECH, RESYNTHESIS)
        for file in sorted((folder / SOUNDS / place_name(one.measurement, one.set)).glob(f"*.{name}.wav"))
    }


def place_name(measurement: str, set_name: str) -> str:
    """The name of what belongs to a measurement and set in items/ and sounds/."""
    return f"{safe_key(measurement)}.{safe_key(set_name)}"
