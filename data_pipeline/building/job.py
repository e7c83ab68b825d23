"""Builds a corpus: from text that a voice says, or from recorded speech, encoded and written as shards.

A plan says what goes into which shard (plan.py). Where the codec learns its codebooks from the corpus, some shards
wait in `staging/` with their features until k-means has run over them; then every shard is written with its codes, and
the manifest makes the corpus a finished one. Every file appears whole, and is the same whoever makes it: so a build
that was killed goes on where it was, and any number of processes can do their shares of one build without speaking to
each other.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from configs.checks import check_corpus
from configs.schema import Config
from data_pipeline.building.folder import (
    cache_root,
    corpus_folder,
    corpus_identity,
    is_finished,
    learns_codebooks,
    says_turns,
    synthesises,
)
from data_pipeline.building.left_out import LeftOut
from data_pipeline.building.listening import describe_features
from data_pipeline.building.parts import vocabulary_of
from data_pipeline.building.plan_file import Plan, PlanEntry, is_planned, write_plan
from data_pipeline.building.tasks import (
    STAGING,
    is_staged,
    is_written,
    learn_codebook,
    read_done,
    stage_shard,
    write_shard,
)
from data_pipeline.codecs import codec_identity
from data_pipeline.codecs.whisper_kmeans import centroid_files, codebook_file
from data_pipeline.corpus import SPLITS, Corpus, write_manifest
from data_pipeline.plan import PlannedShard, plan_recordings, plan_shards
from data_pipeline.shards import PARTIAL, replace_atomically
from data_pipeline.sources import find_source
from data_pipeline.sources.speech import open_speech_source
from data_pipeline.speech import prepare_voice, voice_identity
from data_pipeline.vocabulary import VOCABULARY_FILE, Vocabulary
from runtime.exits import BadInput, StoppedEarly
from runtime.locks import only_one
from runtime.progress import Progress, hours_line
from runtime.share import Share
from runtime.signals import StopFlag
from runtime.workers import Task, Workers

LEARNT_FROM = 2  # times `codec.training_minutes` of speech whose features are kept to learn codebooks from
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
Item = TypeVar("Item")


def build_corpus(config: Config, *, stop: StopFlag | None = None) -> Path:
    """Build the run's corpus in this process and its workers unless it is there; its folder, finished.

    Raises StoppedEarly within about a second of a stop request, with all finished shards kept, and BadInput for a
    `corpus.folder` that is no corpus, settings that cannot be met, too much damage in the source, or a full disk.
    """
    folder = build_share(config, Share(), stop=stop)
    if folder is None:
        raise RuntimeError("the only task of a build ended and left shards unwritten")
    return folder


def build_share(
    config: Config, share: Share, *, stop: StopFlag | None = None, features_only: bool = False
) -> Path | None:
    """Do one task's share of the build; the finished corpus's folder, or None where other tasks' shards are missing.

    The task that finds everything there merges it. features_only: no shards, but only the share of what codebooks are
    learnt from, which all tasks need. Raises as `build_corpus` does, and StoppedEarly where it cannot go on before
    other tasks have done their part.
    """
    if config.corpus.folder is None:
        check_corpus(config)
    folder = corpus_folder(config)
    if config.corpus.folder is not None or (is_finished(folder) and not (folder / STAGING).exists()):
        return Corpus.open(folder).folder
    job = _Job(config, folder, share, stop)
    return job.guarded(job.features if features_only else job.build)


def merge_corpus(config: Config, *, stop: StopFlag | None = None) -> Path:
    """Write the manifest of a corpus whose shards are all there; its folder.

    Raises StoppedEarly where shards are missing, naming some, and BadInput where no build has begun.
    """
    if config.corpus.folder is None:
        check_corpus(config)
    folder = corpus_folder(config)
    if config.corpus.folder is not None or is_finished(folder):
        return Corpus.open(folder).folder
    if not is_planned(folder):
        raise BadInput(f"nothing to merge in {folder}: no build of this corpus has begun")
    job = _Job(config, folder, Share(), stop)
    merged = job.guarded(job.merge)
    if merged is None:
        raise StoppedEarly(f"corpus {config.corpus.name} cannot be merged yet: {job.missing()}")
    return merged


class _Job:
    """One process's part in building the corpus at `folder`."""

    def __init__(self, config: Config, folder: Path, share: Share, stop: StopFlag | None) -> None:
        self.config = config
        self.folder = folder
        self.share = share
        self.stop = stop
        self.cache = cache_root(config)
        self._begun = time.monotonic()
        self.processes = config.corpus.workers or len(os.sched_getaffinity(0))
        self.progress = Progress(f"corpus {config.corpus.name}")

    def guarded(self, work: Any) -> Path | None:
        """`work()`, alone among processes with the same share, a full disk told in one line."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            whole = "" if self.share.tasks == 1 else f".task-{self.share.task}-of-{self.share.tasks}"
            with self._alone(f"{whole}.lock"):
                return work()
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            advice = "free some or set run.cache to another disk, then run again"
            raise BadInput(f"no space left for the corpus at {self.folder}: {advice}") from error

    def _alone(self, name: str) -> AbstractContextManager[None]:
        """A lock beside the corpus: `name` says for what."""
        file = self.folder.parent / f".{self.folder.name}{name}"
        return only_one(file, lambda: self.progress.say("another process is building it; waiting"), self.stop)

    # --- the phases ---------------------------------------------------------------------------------------------

    def features(self) -> None:
        if is_finished(self.folder) or not learns_codebooks(self.config):
            return
        with self._prepared() as workers:
            self._stage(workers)

    def build(self) -> Path | None:
        if is_finished(self.folder):  # by the process that was waited for
            shutil.rmtree(self.folder / STAGING, ignore_errors=True)
            return self.folder
        with self._prepared() as workers:
            if learns_codebooks(self.config):
                self._learn(workers)
            self._write(workers)
        merged = self.merge()
        if merged is None:
            self.progress.say(f"{self.share} is done; {self.missing()}")
        return merged

    def _prepared(self) -> Workers:
        """Workers, once there are a plan, a vocabulary and a voice."""
        self.progress.say(f"building in {self.folder}" + (f", {self.share}" if self.share.tasks > 1 else ""))
        self._plan()
        vocabulary = self.vocabulary  # on disk from here on, for the processes that write shards
        if synthesises(self.config):
            _learnt_from(self.config, vocabulary)  # for its refusal, before the work rather than after
        if self.config.corpus.speech is None or says_turns(self.config):
            with self._alone(".voice.lock"):
                prepare_voice(self.config.corpus.voice, self.cache)
        self._begun = time.monotonic()
        chosen = self.config.corpus.synthesis.device if synthesises(self.config) else self.config.codec.device
        return Workers(self.processes, deal_gpus=chosen in (None, "cuda"))

    def merge(self) -> Path | None:
        """Finish the corpus if every shard is there."""
        if any(not is_written(self.folder, entry.file) for entry in self.plan.entries):
            return None
        corpus, left_out = self._write_manifest()
        shutil.rmtree(self.folder / STAGING, ignore_errors=True)
        for leftover in self.folder.rglob(f".*{PARTIAL}"):  # of processes that were killed
            leftover.unlink(missing_ok=True)
        self._say_totals(corpus, left_out)
        return self.folder

    def missing(self) -> str:
        lacking = [entry.file for entry in self.plan.entries if not is_written(self.folder, entry.file)]
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        return f"{len(lacking)} of {len(self.plan.entries)} shards are not there yet: {', '.join(lacking[:3])}{more}"

    @cached_property
    def plan(self) -> Plan:
        return Plan.open(self.folder)

    def _plan(self) -> None:
        if is_planned(self.folder):
            return
        with self._alone(".plan.lock"):
            if not is_planned(self.folder):
                write_plan(self.folder, self._planned_shards())

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The one in the folder, which is written there unless another process did."""
        if not (self.folder / VOCABULARY_FILE).is_file():
            for file, text in vocabulary_of(self.config).files().items():  # the one looked for last
                replace_atomically(self.folder / file, text.encode())
        return Vocabulary.load(self.folder)

    def _planned_shards(self) -> Iterable[PlannedShard]:
        corpus = self.config.corpus
        if corpus.speech is not None:
            return plan_recordings(corpus, self._stoppable(open_speech_source(corpus.speech).recordings()))
        return plan_shards(corpus, find_source(corpus.text).documents())

    def _stoppable(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if self.stop:
                raise StoppedEarly("corpus build stopped while it was planned; the same command begins again")
            yield item

    def _stage(self, workers: Workers) -> None:
        """This share of the features that codebooks are learnt from."""
        if all(codebook_file(self.folder, name).is_file() for name in self.config.codec.codebooks):
            return
        mine = [entry for entry in self.share.of(self._learning_shards()) if not is_staged(self.folder, entry.file)]
        tasks = [(stage_shard, (self.config, self.cache, self.folder, entry.number)) for entry in mine]
        workers.run("speech", tasks, sum(entry.seconds for entry in mine), self.progress, self.stop, told=hours_line)

    def _learn(self, workers: Workers) -> None:
        """Codebooks from the features of some shards, once every task has staged its share of those."""
        self._stage(workers)
        names = self.config.codec.codebooks
        if all(codebook_file(self.folder, name).is_file() for name in names):
            return
        learnt_from = self._learning_shards()
        lacking = [entry.file for entry in learnt_from if not is_staged(self.folder, entry.file)]
        with self._alone(".codebooks.lock"):
            missing = [name for name in names if not codebook_file(self.folder, name).is_file()]
            if missing and lacking:
                raise StoppedEarly(
                    f"waiting for other tasks: codebooks are learnt from {len(learnt_from)} shards, and {len(lacking)} "
                    f"of them have no features yet, such as {lacking[0]}; run this task again"
                )
            missing.sort(key=lambda name: -names[name].size)  # the longest first
            files = [entry.file for entry in learnt_from]
            learn: list[Task] = [(learn_codebook, (self.config, self.folder, name, files)) for name in missing]
            workers.run("codebooks", learn, len(missing), self.progress, self.stop)

    def _learning_shards(self) -> list[PlanEntry]:
        """Spoken shards to train on, evenly over the corpus, as many as codebooks need."""
        spoken = [entry for entry in self.plan.entries if entry.spoken and entry.split == "train"]
        wanted = LEARNT_FROM * self.config.codec.training_minutes / self.config.corpus.shard_minutes
        step = max(int(len(spoken) / max(wanted, 1)), 1)
        return spoken[::step]

    def _write(self, workers: Workers) -> None:
        mine = self.share.of(self.plan.entries)
        kept, left_out = 0, LeftOut()
        unwritten = []
        for entry in mine:
            if is_written(self.folder, entry.file):
                kept += _count(read_done(self.folder, entry.file), left_out)
            else:
                unwritten.append(entry)
        tasks = [(write_shard, (self.config, self.cache, self.folder, entry.number)) for entry in unwritten]
        seconds = 0.0
        total = sum(entry.seconds for entry in unwritten)
        for done in workers.each("shards", tasks, total, self.progress, self.stop, told=hours_line):
            kept += _count(done, left_out)
            left_out.judge(kept, self.config.corpus.damaged_share)
            seconds += done["entry"]["duration"]
        if seconds:
            speed = seconds / (time.monotonic() - self._begun) / self.processes
            self.progress.say(f"{seconds / 3600:.2f} h of speech written, {speed:.1f} an hour with each process")

    # --- the end ------------------------------------------------------------------------------------------------

    def _write_manifest(self) -> tuple[Corpus, LeftOut]:
        kept, left_out = 0, LeftOut()
        entries: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        for planned in sorted(self.plan.entries, key=lambda entry: entry.file):
            done = read_done(self.folder, planned.file)
            kept += _count(done, left_out)
            entries[planned.split].append(done["entry"])
        left_out.judge(kept, self.config.corpus.damaged_share)
        built_from = json.dumps(corpus_identity(self.config), indent=2)
        replace_atomically(self.folder / "built_from.json", built_from.encode())
        corpus = write_manifest(
            self.folder,
            name=self.config.corpus.name,
            vocabulary=self.vocabulary,
            codecs={self.config.codec.name: _describe_codec(self.config, self.folder, self.vocabulary)},
            entries=entries,
            left_out=left_out.describe(),
            features=describe_features(self.config),
        )
        return corpus, left_out

    def _say_totals(self, corpus: Corpus, left_out: LeftOut) -> None:
        hours = sum(totals["duration"] for totals in corpus.totals.values()) / 3600
        megabytes = sum(totals["bytes"] for totals in corpus.totals.values()) / 1e6
        samples = sum(totals["samples"] for totals in corpus.totals.values())
        self.progress.say(f"{hours:.2f} h of speech in {samples} utterances, {megabytes:.0f} MB")
        if line := left_out.line():
            self.progress.say(f"left out: {line}")


def _count(done: dict[str, Any], left_out: LeftOut) -> int:
    """Add what a shard left out; its utterances."""
    left_out.merge(done["left_out"])
    return int(done["entry"]["samples"])


def _describe_codec(config: Config, folder: Path, vocabulary: Vocabulary) -> dict[str, Any]:
    """What made the codes: a codec, with hashes of codebooks that were learnt, here or elsewhere, or a text-to-code
    model."""
    books = {name: asdict(book) for name, book in config.codec.codebooks.items()}
    described = {"codebooks": books, "group": dict(config.codec.group)}
    if synthesises(config):
        described |= {"text_to_code": voice_identity(config.corpus.voice)}
        if (learnt_from := _learnt_from(config, vocabulary)) is not None:
            described |= {"codes_of": {"content_hash": learnt_from.content_hash, "codecs": learnt_from.codecs}}
        return described
    if config.codec.kind == "whisper_kmeans":
        for name, file in centroid_files(config.codec, folder).items():
            if learns_codebooks(config):
                books[name]["file"] = file.relative_to(folder).as_posix()
            books[name]["xxh3"] = xxhash.xxh3_128_hexdigest(file.read_bytes())
    return described | {"codec": codec_identity(config.codec)}


def _learnt_from(config: Config, vocabulary: Vocabulary) -> Corpus | None:
    """The corpus that the text-to-code model learnt its codes from, if the config tells. Raises BadInput where it has
    another `vocabulary`."""
    if config.corpus.synthesis.codes_of is None:
        return None
    corpus = Corpus.open(Path(config.corpus.synthesis.codes_of))
    if corpus.vocabulary != vocabulary:
        raise BadInput(f"corpus.synthesis.codes_of={corpus.folder}: it has another vocabulary than this corpus would")
    return corpus
