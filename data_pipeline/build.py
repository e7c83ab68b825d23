"""Builds a corpus: text is chosen, spoken, encoded, quantised and written as shards.

Phases: speech (each shard's sound and encoder features, into `staging/`), codebooks (k-means), shards (codes), and
the manifest, which makes the corpus a finished one. Every file appears whole, so a build that was killed goes on
where it was and ends with the same bytes. A corpus lives in the cache under the hash of all that determines it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash

from configs.schema import Config
from data_pipeline.build_tasks import STAGING, is_spoken, is_written, learn_codebook, speak_shard, write_shard
from data_pipeline.codecs import codebooks_of, codec_identity
from data_pipeline.codecs.whisper_kmeans import codebook_file, pooling
from data_pipeline.corpus import MANIFEST_FILE, Corpus, write_manifest
from data_pipeline.packages import package_version
from data_pipeline.plan import PlannedShard, plan_shards
from data_pipeline.progress import Progress
from data_pipeline.shards import replace_atomically
from data_pipeline.sources import find_source
from data_pipeline.speech import prepare_voice, voice_identity
from data_pipeline.text_tokenizer import load_tokenizer_json, tokenizer_identity
from data_pipeline.vocabulary import Vocabulary
from data_pipeline.workers import Task, Workers
from runtime.exits import BadInput, StoppedEarly
from runtime.signals import StopFlag

SPECIALS = ("<|audio_start|>", "<|audio_end|>", "<|transcribe|>", "<|speak|>")
BUILD_FORMAT = 2  # raised when the same settings come to give other bytes
_NOT_CONTENT = {"folder", "workers"}  # settings of a corpus that do not change what is in it
_NUMERIC_PACKAGES = ("numpy", "scikit-learn", "soxr", "torch", "transformers")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def cache_root(config: Config) -> Path:
    """Where corpora and converted assets are kept: `run.cache`, else $MEGAPHONE_CACHE, else ~/.cache/megaphone."""
    return Path(config.run.cache or os.environ.get("MEGAPHONE_CACHE") or "~/.cache/megaphone").expanduser()


def corpus_folder(config: Config) -> Path:
    """The folder of the run's corpus, whether it is built or not: `corpus.folder`, else one in the cache."""
    if config.corpus.folder is not None:
        return Path(config.corpus.folder)
    content = json.dumps(corpus_identity(config), sort_keys=True)
    return cache_root(config) / "corpora" / f"{config.corpus.name}-{xxhash.xxh3_64_hexdigest(content.encode())}"


def corpus_identity(config: Config) -> dict[str, Any]:
    """All that determines a corpus, JSON-ready. Raises BadInput for a source, voice, codec or package not there."""
    codebooks_of(config.codec), pooling(config.codec)
    return {
        "format": BUILD_FORMAT,
        "corpus": {key: value for key, value in asdict(config.corpus).items() if key not in _NOT_CONTENT},
        "text": find_source(config.corpus.text).identity(),
        "voice": voice_identity(config.corpus.voice),
        "codec": codec_identity(config.codec),
        "tokenizer": tokenizer_identity(config.backbone.tokenizer),
        "packages": {name: package_version(name) for name in _NUMERIC_PACKAGES},
    }


def build_corpus(config: Config, *, stop: StopFlag | None = None) -> Path:
    """Build the run's corpus unless it is there; its folder, finished.

    Raises StoppedEarly within about a second of a stop request, with all finished shards kept, and BadInput for a
    `corpus.folder` that is no corpus, settings that cannot be met, or a full disk.
    """
    folder = corpus_folder(config)
    if config.corpus.folder is not None or (_is_finished(folder) and not (folder / STAGING).exists()):
        return Corpus.open(folder).folder
    progress = Progress(f"corpus {config.corpus.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(folder, progress, stop):
            if not _is_finished(folder):
                _build(config, folder, progress, stop)
            shutil.rmtree(folder / STAGING, ignore_errors=True)
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        line = f"no space left for the corpus at {folder}: free some or set run.cache to another disk, then run again"
        raise BadInput(line) from error
    return folder


def _is_finished(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).is_file()


@contextmanager
def _one_at_a_time(folder: Path, progress: Progress, stop: StopFlag | None) -> Iterator[None]:
    """Hold the build lock of `folder`, waiting for another process that builds it. The kernel frees it on any end."""
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        waiting = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    progress.say("another process is building it; waiting")
                    waiting = True
                if stop:
                    raise StoppedEarly("stopped while another process was building the corpus") from None
                time.sleep(0.5)
        yield


def _build(config: Config, folder: Path, progress: Progress, stop: StopFlag | None) -> None:
    cache = cache_root(config)
    progress.say(f"building in {folder}")
    shards = plan_shards(config.corpus, find_source(config.corpus.text).documents())
    spoken = [planned for planned in shards if planned.spoken]
    prepare_voice(config.corpus.voice, cache)
    with Workers(config.corpus.workers or len(os.sched_getaffinity(0))) as workers:
        silent = [planned for planned in spoken if not is_spoken(folder, planned)]
        seconds = 60 * config.corpus.speech_minutes * len(silent) / max(len(spoken), 1)
        speak = [(speak_shard, (config, cache, folder, planned)) for planned in silent]
        workers.run("speech", speak, seconds, progress, stop)

        learnt_from = [planned for planned in spoken if planned.split == "train"]
        missing = [name for name in config.codec.codebooks if not codebook_file(folder, name).is_file()]
        missing.sort(key=lambda name: -config.codec.codebooks[name].size)  # the longest first
        learn: list[Task] = [(learn_codebook, (config, folder, name, learnt_from)) for name in missing]
        read_tokenizer: Task = (load_tokenizer_json, (config.backbone.tokenizer,))
        *_, (tokenizer_json, text_size) = workers.run(
            "codebooks", [*learn, read_tokenizer], len(missing), progress, stop
        )
        unwritten = [planned for planned in shards if not is_written(folder, planned)]
        pieces = sum(planned.pieces for planned in unwritten)
        write = [(write_shard, (config, folder, planned)) for planned in unwritten]
        workers.run("shards", write, pieces, progress, stop)
    built_from = json.dumps(corpus_identity(config), indent=2)
    replace_atomically(folder / "built_from.json", built_from.encode())
    vocabulary = Vocabulary(
        text_size=text_size,
        specials=SPECIALS,
        codebooks=codebooks_of(config.codec),
        tokenizer_json=tokenizer_json,
    )
    codecs = {config.codec.name: _describe_codec(config, folder)}
    corpus = write_manifest(folder, name=config.corpus.name, vocabulary=vocabulary, codecs=codecs)
    _say_totals(corpus, spoken, progress)


def _describe_codec(config: Config, folder: Path) -> dict[str, Any]:
    books = {}
    for name, book in config.codec.codebooks.items():
        file = codebook_file(folder, name)
        books[name] = asdict(book) | {
            "file": file.relative_to(folder).as_posix(),
            "xxh3": xxhash.xxh3_128_hexdigest(file.read_bytes()),
        }
    return {"codec": codec_identity(config.codec), "codebooks": books, "group": dict(config.codec.group)}


def _say_totals(corpus: Corpus, spoken: list[PlannedShard], progress: Progress) -> None:
    minutes = sum(totals["duration"] for totals in corpus.totals.values()) / 60
    megabytes = sum(totals["bytes"] for totals in corpus.totals.values()) / 1e6
    planned = sum(shard.pieces for shard in spoken)
    timed = sum(entry["samples"] for entries in corpus.splits.values() for entry in entries if entry["duration"] > 0)
    progress.say(
        f"{minutes:.1f} minutes of speech, {megabytes:.0f} MB; "
        f"{planned - timed} of {planned} pieces left out because their words could not be timed"
    )
