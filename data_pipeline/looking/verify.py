"""Whether a corpus is what it says: manifest, indexes, tars, checksums, and every sample of them."""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.corpus import MANIFEST_FILE, SPLITS, Corpus, content_hash, describe_shard
from data_pipeline.looking.samples import read_sound
from data_pipeline.shards import LABELS, DamagedSample, ShardReader, read_index
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput, StoppedEarly
from runtime.progress import Progress
from runtime.signals import StopFlag
from runtime.workers import Task, Workers, report_done

FRAMES_OFF = 2.0  # frames that a codec may round away or pad
RATE_OFF = 0.001  # relative: 16.67 frames a second stand for 16 2/3
AUDIO_SECONDS_OFF = 0.02
WORD_SECONDS_OFF = 0.1  # an aligner may put a word's end a frame or two behind the sound's
MOST_OF_A_SHARD = 1000  # problems told of one shard


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be. `where` names a file, or a file and a sample of it.

    Kinds: those of DamagedSample; manifest, vocabulary, stray (a file that no manifest names), size, hash and counts
    of whole shards; tar (what `tarfile` finds) and names (a member that is a path, a link or out of place); key,
    index (the index tells otherwise than the sample), frames, audio, words and empty of samples.
    """

    kind: str
    where: str
    what: str


def verify(
    folder: Path, *, quick: bool = False, workers: int | None = None, stop: StopFlag | None = None
) -> list[Problem]:
    """All problems of the corpus in `folder`, in the order of its shards.

    quick: read each shard once for its checksum and its index, and no sample. workers: processes, None for one a core.
    Raises BadInput where there is no corpus to look at, StoppedEarly within about a second of a stop request.
    """
    corpus = Corpus.open(folder)
    corpus.require_local("data verify")
    problems = [*_manifest_problems(corpus), *_vocabulary_problems(corpus.vocabulary), *_stray_files(corpus)]
    tasks: list[Task] = [
        (verify_shard, (corpus.folder, entry, corpus.vocabulary, quick))
        for split in SPLITS
        for entry in corpus.splits[split]
    ]
    total = float(sum(task[1][1].get("bytes", 0) for task in tasks))
    progress = Progress(f"corpus {corpus.name}")
    try:
        with Workers(min(workers or len(os.sched_getaffinity(0)), max(1, len(tasks)))) as pool:
            for found in pool.run("verifying", tasks, total, progress, stop):
                problems += found
    except StoppedEarly:
        raise StoppedEarly("stopped while verifying; nothing is known of the rest of the corpus") from None
    return problems


def verify_shard(folder: Path, entry: dict[str, Any], vocabulary: Vocabulary, quick: bool) -> list[Problem]:
    """Problems of one shard, at most MOST_OF_A_SHARD of them and a line that says how many more."""
    shard, file = folder / entry["file"], entry["file"]
    problems: list[Problem] = []
    try:
        problems += _entry_problems(shard, folder, entry)
        if not quick and shard.is_file():
            problems += _tar_problems(shard, file)
            problems += _sample_problems(shard, file, vocabulary)
    except DamagedSample as damaged:
        problems.append(Problem(damaged.kind, file, "its index cannot be read"))
    except OSError as error:
        problems.append(Problem("missing", file, f"cannot be read: {error.strerror}"))
    if quick:
        report_done(float(entry.get("bytes", 0)))
    if len(problems) > MOST_OF_A_SHARD:
        rest = Counter(problem.kind for problem in problems[MOST_OF_A_SHARD:])
        problems[MOST_OF_A_SHARD:] = [Problem(kind, file, f"and {count} more") for kind, count in rest.items()]
    return problems


# --- the whole --------------------------------------------------------------------------------------------------


def _manifest_problems(corpus: Corpus) -> Iterator[Problem]:
    told = json.loads((corpus.folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    hashed = content_hash(corpus.vocabulary, corpus.splits, corpus.codecs)
    if hashed != corpus.content_hash:
        what = f"content_hash is {corpus.content_hash}, and what it covers hashes to {hashed}"
        yield Problem("manifest", MANIFEST_FILE, what)
    for split in SPLITS:
        files = Counter(entry["file"] for entry in corpus.splits[split])
        for file, times in files.items():
            if times > 1:
                yield Problem("manifest", MANIFEST_FILE, f"{file} is listed {times} times")
        for name, total in corpus.totals.get(split, {}).items():
            if name != "frames":
                found = sum(entry.get(name, 0) for entry in told["splits"][split])
                if abs(found - total) > 0.01:
                    what = f"totals.{split}.{name} is {total}, and its shards add up to {found}"
                    yield Problem("manifest", MANIFEST_FILE, what)


def _vocabulary_problems(vocabulary: Vocabulary) -> Iterator[Problem]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(vocabulary.tokenizer_json)
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= vocabulary.text_size:
        what = f"the tokenizer has id {highest}, beyond its text range of {vocabulary.text_size}"
        yield Problem("vocabulary", "vocabulary.json", what)
    for name in (vocabulary.end_of_text, *vocabulary.specials):
        try:
            vocabulary.special(name)
        except BadInput as error:
            yield Problem("vocabulary", "vocabulary.json", str(error))
    names = [book.name for book in vocabulary.codebooks]
    if len(set(names)) != len(names) or {"text", "special"} & set(names):
        yield Problem("vocabulary", "vocabulary.json", f"names of codebooks clash: {', '.join(names)}")


def _stray_files(corpus: Corpus) -> Iterator[Problem]:
    known = {entry["file"] for split in SPLITS for entry in corpus.splits[split]}
    for split in SPLITS:
        for path in sorted((corpus.folder / split).glob("*.tar")):
            if (file := path.relative_to(corpus.folder).as_posix()) not in known:
                yield Problem("stray", file, "no manifest entry names it")


# --- a shard ----------------------------------------------------------------------------------------------------


def _entry_problems(shard: Path, folder: Path, entry: dict[str, Any]) -> Iterator[Problem]:
    """Where the shard is not what the manifest's entry tells."""
    file = entry["file"]
    if not shard.is_file():
        yield Problem("missing", file, "the shard is not there")
        return
    size = shard.stat().st_size
    if size != entry.get("bytes", size):
        yield Problem("size", file, f"{size} bytes, and the manifest tells {entry['bytes']}")
    found = describe_shard(shard, folder)
    if found["xxh3"] != entry.get("xxh3", found["xxh3"]):
        yield Problem("hash", file, "its bytes are not those that the manifest was written for")
    for name in ("samples", "documents", "spoken_documents", "characters", "duration", "frames"):
        told = entry.get(name, found[name])
        if found[name] != told:
            yield Problem("counts", file, f"the index tells {name} {found[name]}, the manifest {told}")


def _tar_problems(shard: Path, file: str) -> Iterator[Problem]:
    """What `tarfile` makes of the shard, whether its members lie where the index says, and whether each is a plain
    file that no program could put outside the folder it unpacks to."""
    index = read_index(shard)
    begin, middle = index.offset, index.offset + index.size
    end = middle + index.audio_size
    if (begin[1:] < end[:-1]).any() or (index.size <= 0).any() or (len(begin) and begin[0] < 0):
        yield Problem("index", file, "samples overlap or have no bytes")
        return
    covered = 0
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                safe = member.isreg() and "/" not in member.name and "\\" not in member.name and ".." not in member.name
                if not safe:
                    what = "link" if member.issym() or member.islnk() else "path" if member.isreg() else "special file"
                    yield Problem("names", file, f"member {member.name!r} is a {what}")
                row = int(np.searchsorted(begin, member.offset, side="right")) - 1
                if row < 0 or member.offset >= end[row]:
                    yield Problem("names", file, f"member {member.name!r} belongs to no sample of the index")
                else:
                    covered += 1
    except (tarfile.TarError, OSError, ValueError) as error:
        yield Problem("tar", file, f"tarfile cannot read it: {error}")
    if covered < len(index):
        yield Problem("tar", file, f"{covered} members, fewer than the {len(index)} samples of the index")


def _sample_problems(shard: Path, file: str, vocabulary: Vocabulary) -> Iterator[Problem]:
    keys: set[str] = set()
    with ShardReader(shard) as reader:
        for sample in range(len(reader)):
            where = f"{file} sample {sample}"
            try:
                utterance = reader.read(sample)
            except DamagedSample as damaged:
                yield Problem(damaged.kind, where, _MEANING[damaged.kind])
                continue
            where = f"{where} ({utterance.key})"
            if utterance.key in keys:
                yield Problem("key", where, "another sample of this shard has the same key")
            keys.add(utterance.key)
            for kind, what in _utterance_problems(utterance, vocabulary):
                yield Problem(kind, where, what)
            yield from (Problem("index", where, what) for what in _index_problems(reader, sample, utterance))
            yield from (Problem(kind, where, what) for kind, what in _audio_problems(reader, sample, utterance))
            report_done(float(reader.index.size[sample] + reader.index.audio_size[sample]))


_MEANING = {
    "missing": "the shard cannot be opened",
    "index": "its index cannot be read",
    "truncated": "its bytes are cut off",
    "checksum": "its bytes have changed",
    "members": "its tar members are not those of a sample",
    "json": "its description cannot be used",
    "codes": "its codes are no arrays of whole numbers",
    "features": "its features are not all finite numbers",
}


# --- a sample ---------------------------------------------------------------------------------------------------


def _utterance_problems(utterance: Utterance, vocabulary: Vocabulary) -> Iterator[tuple[str, str]]:
    books = {book.name: book for book in vocabulary.codebooks}
    if not utterance.text.strip() and not utterance.spoken:
        yield "empty", "it has neither text nor codes"
    if utterance.ids and list(utterance.ids) != vocabulary.encode_text(utterance.text):
        yield "ids", "they are not what the corpus's tokenizer makes of its text"
    for name in utterance.codes.keys() - books.keys():
        yield "codes", f"the vocabulary has no codebook {name}"
    for name, book in books.items() if utterance.spoken else ():
        codes = utterance.codes.get(name)
        if codes is None or len(codes) != book.rows:
            rows = "none" if codes is None else len(codes)
            yield "codes", f"{book.rows} rows of {name} are wanted, there are {rows}"
        elif codes.size and (codes.min() < 0 or codes.max() >= book.size):
            yield "codes", f"codes of {name} go from {codes.min()} to {codes.max()}, and it has {book.size} entries"
        elif not codes.size:
            yield "empty", f"it has no frames of {name}"
        else:
            wanted = book.rate * utterance.duration
            if abs(codes.shape[1] - wanted) > FRAMES_OFF + RATE_OFF * wanted:
                what = f"{codes.shape[1]} frames of {name}, and {utterance.duration:.3f} s at {book.rate} a second"
                yield "frames", f"{what} are {wanted:.1f}"
    yield from _word_problems(utterance)


def _word_problems(utterance: Utterance) -> Iterator[tuple[str, str]]:
    at = 0.0
    for word in utterance.words:
        if not at <= word.start <= word.end or word.end > utterance.duration + WORD_SECONDS_OFF:
            what = f"from {word.start:.2f} to {word.end:.2f} of {utterance.duration:.2f} s, behind one at {at:.2f}"
            yield "words", f"{word.text!r} is spoken {what}"
            return
        at = word.start


def _index_problems(reader: ShardReader, sample: int, utterance: Utterance) -> Iterator[str]:
    """Where the index tells otherwise than the sample does."""
    index = reader.index
    pairs: list[tuple[str, Any, Any]] = [
        ("characters", int(index.characters[sample]), len(utterance.text)),
        ("duration", float(index.duration[sample]), utterance.duration),
    ]
    held = {name: codes.shape[1] for name, codes in utterance.codes.items()}
    pairs += [(f"frames of {name}", int(count[sample]), held.get(name, 0)) for name, count in index.frames.items()]
    pairs += [
        (name, str(index.labels[name][sample]), getattr(utterance, name)) for name in LABELS if name in index.labels
    ]
    for name, told, found in pairs:
        if told != found:
            yield f"the index tells {name} {told!r}, the sample {found!r}"
    if len(utterance.codes.keys() - index.frames.keys()):
        yield f"the index knows no frames of {', '.join(sorted(utterance.codes.keys() - index.frames.keys()))}"


def _audio_problems(reader: ShardReader, sample: int, utterance: Utterance) -> Iterator[tuple[str, str]]:
    try:
        audio = reader.read_audio(sample)
        if audio is None:
            return
        wave, rate = read_sound(audio, utterance.key)
    except DamagedSample as damaged:
        yield damaged.kind, "its sound cannot be decoded" if damaged.kind == "audio" else "its sound cannot be read"
        return
    if abs(len(wave) / rate - utterance.duration) > AUDIO_SECONDS_OFF:
        yield "audio", f"its sound lasts {len(wave) / rate:.3f} s, and it tells {utterance.duration:.3f} s"


# --- telling ----------------------------------------------------------------------------------------------------


def tell(problems: list[Problem], say: Callable[[str], None], most: int = 20) -> str:
    """Say problems kind by kind, at most `most` of each; returns one line that sums them up."""
    by_kind: dict[str, list[Problem]] = {}
    for problem in problems:
        by_kind.setdefault(problem.kind, []).append(problem)
    for kind, found in by_kind.items():
        say(f"{kind}: {len(found)}")
        for problem in found[:most]:
            say(f"  {problem.where}: {problem.what}")
        if len(found) > most:
            say(f"  and {len(found) - most} more")
    return ", ".join(f"{len(found)} {kind}" for kind, found in by_kind.items())
