"""Whether a node sees the corpus that the others see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from configs.schema import Config
from launch.preflight.node import Report
from runtime.exits import BadInput

_SHARDS = 500  # whose sizes are looked at, evenly over the corpus


@dataclass(frozen=True)
class Seen:
    """What a node sees of the corpus; rows: of its vocabulary, padding included, where it is there."""

    report: Report
    rows: int | None


def look(config: Config) -> Seen:
    """Content hash of the corpus, hash of its tokenizer's bytes, and whether shards have the sizes that it says."""
    import xxhash

    from data_pipeline.build import corpus_folder
    from data_pipeline.corpus import Corpus
    from data_pipeline.remote.mirror import mirror_at
    from data_pipeline.vocabulary import TOKENIZER_FILE

    try:
        folder = corpus_folder(config)
        if config.corpus.folder is None and not folder.is_dir():
            return Seen(Report(facts={"corpus": "not built", "tokenizer": "not built"}), None)
        corpus = Corpus.open(folder)
        tokenizer = xxhash.xxh3_128_hexdigest((folder / TOKENIZER_FILE).read_bytes())
    except (BadInput, OSError) as error:
        return Seen(Report(facts={"corpus": "none", "tokenizer": "none"}, lacks=[f"corpus: {error}"]), None)
    report = Report(facts={"corpus": corpus.content_hash, "tokenizer": tokenizer})
    if mirror_at(folder) is None:  # shards behind a URL come as they are read
        report.lacks += _short(folder, [entry for split in corpus.splits.values() for entry in split])
    return Seen(report, corpus.vocabulary.padded_size)


def _short(folder: Path, entries: list[dict[str, object]]) -> list[str]:
    chosen = entries[:: -(-len(entries) // _SHARDS) or 1]
    wrong = [str(entry["file"]) for entry in chosen if _size(folder / str(entry["file"])) != entry["bytes"]]
    if not wrong:
        return []
    return [f"corpus: {len(wrong)} of {len(chosen)} shards missing or of another size, such as {wrong[0]}"]


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None
