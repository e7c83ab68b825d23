"""A small corpus of preferences: spoken questions, and two spoken answers with their texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipeline.corpus import write_manifest
from data_pipeline.layouts.preferences import ANSWERS
from data_pipeline.shards import ShardWriter
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from tests.data_pipeline.synthetic import SPECIALS, WORDS, make_utterance, make_vocabulary

CHAT = ("<|BOT|>", "<|EOT|>")


def vocabulary() -> Vocabulary:
    return replace(make_vocabulary(), specials=(*SPECIALS, *CHAT))


def make_pair(rng: np.random.Generator, document: str) -> list[Utterance]:
    """A question, and two answers of which the one preferred names its second word."""
    question = make_utterance(rng, f"{document}-0", document)
    named = question.text.removesuffix(".").split()[1]
    answers = []
    for number, (role, word) in enumerate(zip(ANSWERS, (named, str(rng.choice(WORDS)) + "!"), strict=True), 1):
        said = make_utterance(rng, f"{document}-{number}", document)
        answers.append(replace(said, text=f"{word} and so on", role=role, words=()))
    return [replace(question, role="human"), *answers]


def make_pairs(folder: Path, train: int = 40, valid: int = 8) -> Path:
    """A finished corpus of preferences in `folder`, which is returned."""
    rng = np.random.default_rng(5)
    for split, documents in (("train", train), ("valid", valid)):
        with ShardWriter(folder / split / "shard-000000.tar") as writer:
            for number in range(documents):
                for utterance in make_pair(rng, f"{split}-{number:04d}"):
                    writer.write(utterance)
    write_manifest(folder, name="pairs", vocabulary=vocabulary(), codecs={"synthetic": {"seed": 5}})
    return folder
