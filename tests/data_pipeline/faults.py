"""Planting damage in a corpus, and how many samples a reader must then find damaged, by kind."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipeline.shards import ShardReader, ShardWriter, index_path, read_index
from data_pipeline.utterance import Utterance


def seal(shard: Path) -> None:
    """Make the checksums in the index those of the bytes in the tar, whatever they are now."""
    content = shard.read_bytes()
    with np.load(index_path(shard), allow_pickle=False) as stored:
        arrays = dict(stored)
    begin, end = arrays["offset"].tolist(), (arrays["offset"] + arrays["size"]).tolist()
    crc32 = [zlib.crc32(content[a:b]) for a, b in zip(begin, end, strict=True)]
    np.savez(index_path(shard), allow_pickle=False, **arrays | {"crc32": np.array(crc32, np.uint32)})


def change_header(shard: Path, sample: int, change: Callable[[tarfile.TarInfo], None]) -> None:
    """Rewrite the tar header of the first member of `sample`, under a right checksum."""
    offset = int(read_index(shard).offset[sample])
    content = bytearray(shard.read_bytes())
    header = tarfile.TarInfo.frombuf(bytes(content[offset : offset + 512]), "ascii", "strict")
    change(header)
    content[offset : offset + 512] = header.tobuf(tarfile.USTAR_FORMAT)
    shard.write_bytes(content)
    seal(shard)


def change_utterance(shard: Path, sample: int, change: Callable[[Utterance], None]) -> None:
    """Write the shard anew with `change` made to one utterance."""
    with ShardReader(shard) as reader:
        held = [(reader.read(ordinal), reader.read_audio(ordinal)) for ordinal in range(len(reader))]
    change(held[sample][0])
    with ShardWriter(shard) as writer:
        for utterance, audio in held:
            writer.write(utterance, audio=audio)


# --- kinds: each returns how many samples (or documents, where no sample can be counted) are lost ----------------


def truncate(shard: Path) -> dict[str, int]:
    """Cut the shard in its middle."""
    index = read_index(shard)
    size = shard.stat().st_size // 2
    shard.write_bytes(shard.read_bytes()[:size])
    return {"truncated": int((index.offset + index.size > size).sum())}


def flip(shard: Path) -> dict[str, int]:
    """Flip a byte in every second sample."""
    index = read_index(shard)
    content = bytearray(shard.read_bytes())
    rng = np.random.default_rng(len(content))
    hit = index.offset[::2] + (rng.random(len(index.offset[::2])) * index.size[::2]).astype(np.int64)
    for at in hit.tolist():
        content[at] ^= int(rng.integers(1, 256))
    shard.write_bytes(content)
    return {"checksum": len(hit)}


def garble_index(shard: Path) -> dict[str, int]:
    documents = len(read_index(shard).documents)
    content = index_path(shard).read_bytes()
    index_path(shard).write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    return {"index": documents}


def remove(shard: Path) -> dict[str, int]:
    documents = len(read_index(shard).documents)
    shard.unlink()
    return {"missing": documents}


def spoil_features(shard: Path) -> dict[str, int]:
    """Not a number among the features of the first sample, under a right checksum."""

    def give(utterance: Utterance) -> None:
        utterance.features["encoder"] = np.full((3, 4), 1.25, np.float16)

    change_utterance(shard, 0, give)
    good, bad = np.full(12, 1.25, np.float16).tobytes(), np.full(12, np.nan, np.float16).tobytes()
    content = shard.read_bytes()
    assert content.count(good) == 1
    shard.write_bytes(content.replace(good, bad))
    seal(shard)
    return {"features": 1}


def spoil_text(shard: Path) -> dict[str, int]:
    """Text of the first sample that is no UTF-8, under a right checksum."""
    with ShardReader(shard) as reader:
        text = reader.read(0).text.encode()
    content = shard.read_bytes()
    shard.write_bytes(content.replace(text, b"\xff" * len(text), 1))
    seal(shard)
    return {"json": 1}


def spoil_codes(shard: Path) -> dict[str, int]:
    """A code beyond its table, in the first sample with codes."""
    sample = int(np.flatnonzero(read_index(shard).spoken)[0])

    def change(utterance: Utterance) -> None:
        utterance.codes["semantic"] = utterance.codes["semantic"].copy()
        utterance.codes["semantic"][0, 0] = 4095

    change_utterance(shard, sample, change)
    return {"codes": 1}


def climb(shard: Path) -> dict[str, int]:
    """A member that wants to lie two folders up."""
    change_header(shard, 0, lambda header: setattr(header, "name", "../../evil.json"))
    return {"members": 1}


def root(shard: Path) -> dict[str, int]:
    """A member with an absolute path."""
    change_header(shard, 0, lambda header: setattr(header, "name", "/tmp/evil.json"))
    return {"members": 1}


def link(shard: Path) -> dict[str, int]:
    """A member that is a symbolic link out of the folder."""

    def change(header: tarfile.TarInfo) -> None:
        header.type, header.linkname = tarfile.SYMTYPE, "/etc/passwd"

    change_header(shard, 0, change)
    return {"members": 1}


ONE_EACH = (garble_index, remove, spoil_features, spoil_text, spoil_codes, climb, root, link)


def plant(shards: list[Path]) -> dict[str, int]:
    """5 % of `shards` truncated, bytes flipped in as many others, and each other fault in one; what a reader of every
    document must count, by kind."""
    share = max(1, len(shards) // 20)
    faults = [truncate] * share + [flip] * share + list(ONE_EACH)
    chosen = np.random.default_rng(0).permutation(len(shards))[: len(faults)]
    counts: dict[str, int] = {}
    for number, fault in zip(chosen.tolist(), faults, strict=True):
        for kind, count in fault(shards[number]).items():
            counts[kind] = counts.get(kind, 0) + count
    return counts
