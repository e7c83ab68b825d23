"""Sets that are corpora, text files, or folders of tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.corpus import SPLITS, Corpus
from data_pipeline.shards import ShardReader
from data_pipeline.sources.evaluation.item import InShard, Item, Turn
from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.sentences import joined
from data_pipeline.sources.text import KINDS, find_source
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput

TASK_FILES = ("*.yaml", "*.yml")


def corpus(path: str, split: str | None, *, spoken: bool = True, prompted: bool = False) -> Iterator[Item]:
    """Utterances of a corpus, spoken ones alone or only those that were not. `split` is train or valid (valid).
    prompted: with the one before of the same document and speaker as a prompt, or the one after; what stands alone is
    left out."""
    if prompted and not spoken:
        raise BadInput("evaluation set corpus: prompted asks for speech, and spoken=false leaves it out")
    if split is not None and split not in SPLITS:
        raise BadInput(f"evaluation set corpus: no split {split}; there are {', '.join(SPLITS)}")
    for shard in Corpus.open(Path(path)).shards(split or "valid"):
        with ShardReader(shard) as reader:
            numbers = np.flatnonzero(reader.index.spoken == spoken).tolist()
            for order, number in enumerate(numbers):
                held = reader.read(number)
                prompt = _beside(reader, numbers, order, held) if prompted else None
                if prompted and prompt is None:
                    continue
                key, place = f"{held.document}/{held.key}", InShard(shard, number)
                sound = place if spoken else None
                yield Item(key, held.text, held.language, sound, prompt=prompt, stored=place)


def _beside(reader: ShardReader, numbers: Sequence[int], order: int, one: Utterance) -> Turn | None:
    """The utterance before `one`, which is at `order` of `numbers`, or else after it, of its document and speaker."""
    for other in (order - 1, order + 1):
        if 0 <= other < len(numbers):
            held = reader.read(numbers[other])
            if (held.document, held.speaker) == (one.document, one.speaker):
                return Turn("human", held.text, InShard(reader.path, numbers[other]))
    return None


def text(path: str, split: str | None, *, kind: str = "plain", field: str = "text") -> Iterator[Item]:
    """Documents of text: plain files, jsonl or parquet (`kind`), whose `field` holds them."""
    if kind not in KINDS:
        raise BadInput(f"evaluation set text: kind {kind} is none of {', '.join(KINDS)}")
    options = "" if kind == "plain" else f"?field={field}"
    for document in find_source(f"{kind}:{path}{options}").documents():
        whole = document.pieces[0]
        for piece in document.pieces[1:]:
            whole = joined(whole, piece)
        yield Item(document.key, whole)


def tasks(path: str, split: str | None) -> Iterator[Item]:
    """Tasks of lm-evaluation-harness: a YAML file each, in `path`, beside the data that they name."""
    files = sorted(file for pattern in TASK_FILES for file in Path(path).glob(pattern) if not file.name.startswith("_"))
    if not files:
        raise BadInput(f"evaluation set tasks: {path} holds no task, a .yaml file each")
    for file in files:
        if split is None or file.stem == split:
            yield Item(safe_key(file.stem), str(file))
