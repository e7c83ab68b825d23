"""A teacher's answers beside shards: the likeliest tokens at each place of a sample, looked up when it is laid.

For every source of a mixture and every shard of its corpus there is one safetensors file, under one manifest. A sample
is found by its key, and is the one that the teacher saw only where a checksum of its tokens agrees: what a layout draws
anew in each epoch has an answer in the first one alone. A sample without answers is laid as it is.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from configs.checks.distillation import DISTILL
from configs.schema import Config
from data_pipeline.batch import Sample, Target
from data_pipeline.shards import replace_atomically
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput

TARGET = "teacher"  # the name among a sample's targets
MANIFEST_FILE = "answers.json"
FORMAT = 1
OPEN_FILES = 64


@dataclass(frozen=True)
class Answers:
    """What a teacher says in one sample, at n of its places, of the token after each.

    places: int32 [n]; ids: int64 [n, k], -1 where there are fewer; log_chances: float16 [n, k], of the ids, over the
    tokens that can stand there; rest: float16 [n], the probability of all others.
    """

    places: np.ndarray
    ids: np.ndarray
    log_chances: np.ndarray
    rest: np.ndarray

    def target(self, length: int) -> Target:
        """For a sample of `length` places: values [length, k + 1] are ids and last -1, weights their probabilities and
        last that of all others, all 0 where the teacher was not asked."""
        width = self.ids.shape[1] + 1
        values, weight = np.full((length, width), -1, np.int64), np.zeros((length, width), np.float32)
        chances = np.exp(self.log_chances.astype(np.float32))
        known = np.concatenate([np.where(self.ids >= 0, chances, 0), self.rest.astype(np.float32)[:, None]], axis=1)
        values[self.places, :-1] = self.ids
        weight[self.places] = known / known.sum(axis=1, keepdims=True)
        return Target(values, weight)


def checksum(sample: Sample) -> int:
    """Of what a teacher's answers depend on, and the student's places."""
    return zlib.crc32(sample.tokens.astype(np.int64).tobytes() + (sample.loss_weight > 0).tobytes())


# --- writing ----------------------------------------------------------------------------------------------------------


def write_answers(file: Path, answers: Mapping[str, tuple[int, Answers]], vocabulary: Vocabulary, top_k: int) -> None:
    """One shard's, by sample key, each with the sample's checksum. The same answers give the same bytes."""
    spans: dict[str, list[int]] = {}
    end = 0
    for key, (crc, held) in answers.items():
        spans[key] = [crc, end, end + len(held.places)]
        end += len(held.places)
    small = vocabulary.size < np.iinfo(np.uint16).max  # whose last number stands for -1
    kind: Any = np.uint16 if small else np.uint32
    parts = [held for _, held in answers.values()]
    arrays = {
        "places": np.concatenate([np.zeros(0, np.int32), *(part.places for part in parts)]),
        "ids": np.concatenate([np.zeros((0, top_k), np.int64), *(part.ids for part in parts)]).astype(kind),
        "log_chances": np.concatenate([np.zeros((0, top_k), np.float16), *(part.log_chances for part in parts)]),
        "rest": np.concatenate([np.zeros(0, np.float16), *(part.rest for part in parts)]),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(file, save(arrays, metadata={"samples": json.dumps(spans)}))


def write_manifest(folder: Path, described: Mapping[str, Any]) -> None:
    """Declare the answers at `folder` complete."""
    content = json.dumps({"format": FORMAT, **described}, indent=2)
    replace_atomically(folder / MANIFEST_FILE, content.encode())


def answers_file(folder: Path, source: str, shard: str) -> Path:
    """Of a source's shard, named as in its corpus's manifest."""
    return (folder / source / shard).with_suffix(".safetensors")


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Teacher:
    """The answers at `folder`. temperature: of all probabilities; sources: what of each was laid; made_by: whose they
    are."""

    folder: Path
    temperature: float
    top_k: int
    vocabulary: dict[str, Any]
    sources: dict[str, Any]
    made_by: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Teacher:
        """Raises BadInput where there are no finished answers."""
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise BadInput(f"distillation.teacher={folder} has no {MANIFEST_FILE}: no stage has asked a teacher there")
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            if held.pop("format") != FORMAT:
                raise BadInput(f"{path}: of another format than this version reads")
            return cls(folder, **held)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path} is damaged ({error!r}); ask the teacher again") from error

    def of_source(self, name: str, described: Mapping[str, Any], vocabulary: Vocabulary) -> SourceAnswers:
        """For one source of a mixture, `described` as it was where the teacher was asked. Raises BadInput where it was
        asked about something else."""
        if self.vocabulary != vocabulary.describe():
            raise BadInput(f"source {name}: the teacher was asked in another vocabulary than this corpus has")
        asked = self.sources.get(name)
        if asked is None:
            raise BadInput(f"source {name}: the teacher was asked about {', '.join(self.sources)} alone")
        for key, value in described.items():
            if asked[key] != value:
                raise BadInput(
                    f"source {name}: the teacher was asked with {key} = {json.dumps(asked[key])}, and here it is "
                    f"{json.dumps(value)}; ask it again"
                )
        return SourceAnswers(self.folder, name)


def teacher_of(config: Config) -> Teacher | None:
    """The teacher that a stage follows, if it does. Raises BadInput where its answers are not there, or were asked for
    at another temperature."""
    if config.stage.objective != DISTILL or config.distillation.teacher is None:
        return None
    teacher = Teacher.open(Path(config.distillation.teacher))
    if teacher.temperature != config.distillation.temperature:
        raise BadInput(
            f"distillation.temperature={config.distillation.temperature}: the teacher was asked at "
            f"{teacher.temperature}; ask it again, or take that"
        )
    return teacher


class SourceAnswers:
    """The answers of one source, by shard and key."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._opened = lru_cache(OPEN_FILES)(self._open)

    def attach(self, sample: Sample, shard: str) -> Sample:
        """`sample`, of a document in `shard`, with the teacher's answers as a target; as it is where there are none for
        it. Raises BadInput for a file that is damaged or missing."""
        spans, arrays = self._opened(shard)
        crc, start, end = spans.get(sample.key, (None, 0, 0))
        if crc is None or crc != checksum(sample):
            return sample
        ids = arrays["ids"][start:end]
        answers = Answers(
            places=arrays["places"][start:end],
            ids=np.where(ids == np.iinfo(ids.dtype).max, -1, ids.astype(np.int64)),
            log_chances=arrays["log_chances"][start:end],
            rest=arrays["rest"][start:end],
        )
        return msgspec.structs.replace(sample, targets={**sample.targets, TARGET: answers.target(len(sample))})

    def _open(self, shard: str) -> tuple[dict[str, list[int]], dict[str, np.ndarray]]:
        file = answers_file(self._folder, self._name, shard)
        try:
            with safe_open(file, framework="numpy") as held:
                spans = json.loads(held.metadata()["samples"])
                return spans, {name: held.get_tensor(name) for name in ("places", "ids", "log_chances", "rest")}
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"the teacher's answers in {file} cannot be read ({error}); ask it again") from error
