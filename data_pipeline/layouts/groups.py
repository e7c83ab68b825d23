"""Grouped codes: codebooks of different rates laid in one stream, so many codes of each in turn.

Two codes of a 16.67 Hz codebook and three of a 25 Hz one, `[L L S S S]`, are both 120 ms of speech (Step-Audio,
arXiv:2502.11946, section 3.1). Any ordered codebooks work; `Codebook.per_group` holds the counts.
"""

from __future__ import annotations

import numpy as np

from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput


def group_length(vocabulary: Vocabulary) -> int:
    """Tokens of one group."""
    return sum(book.per_group for book in vocabulary.codebooks)


def group_seconds(vocabulary: Vocabulary) -> float:
    """Seconds of speech that one group stands for, by the codebook with the highest rate: others may be rounded."""
    book = max(vocabulary.codebooks, key=lambda book: book.rate)
    return book.per_group / book.rate


def check_codes(utterance: Utterance, vocabulary: Vocabulary) -> None:
    """Raises BadInput unless a spoken utterance has one row of codes, all in range, for each codebook."""
    for book in vocabulary.codebooks if utterance.spoken else ():
        codes = utterance.codes.get(book.name)
        if codes is None or len(codes) != 1:
            raise BadInput(f"utterance {utterance.key} has no single row of codes for codebook {book.name}")
        if codes.size and (codes.min() < 0 or codes.max() >= book.size):
            raise BadInput(f"utterance {utterance.key} has codes outside codebook {book.name} of {book.size}")


def lay_groups(utterance: Utterance, vocabulary: Vocabulary) -> np.ndarray:
    """Token ids of the utterance's codes, int64 [groups, group length]; codes that fill no whole group are dropped.

    An utterance that was not spoken has 0 groups. Raises BadInput where codes and vocabulary disagree.
    """
    if not utterance.spoken:
        return np.empty((0, group_length(vocabulary)), np.int64)
    check_codes(utterance, vocabulary)
    rows = {book: utterance.codes[book.name][0] for book in vocabulary.codebooks}
    groups = min(len(codes) // book.per_group for book, codes in rows.items())
    laid = [
        vocabulary.encode_codes(book.name, codes[: groups * book.per_group]).reshape(groups, book.per_group)
        for book, codes in rows.items()
    ]
    return np.concatenate(laid, axis=1)


def ungroup(ids: np.ndarray, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """Codes by codebook, int64 [1, frames], of token ids `[n]` that are whole groups.

    Raises BadInput naming the first position whose token is not of the codebook whose turn it is.
    """
    length = group_length(vocabulary)
    turn = np.repeat(np.arange(len(vocabulary.codebooks)), [book.per_group for book in vocabulary.codebooks])
    expected = np.resize(turn, len(ids))
    starts = np.array([vocabulary.ranges[book.name].start for book in vocabulary.codebooks])
    codes = np.asarray(ids, np.int64) - starts[expected]
    sizes = np.array([book.size for book in vocabulary.codebooks])
    wrong = np.flatnonzero((codes < 0) | (codes >= sizes[expected]))
    if wrong.size:
        at = int(wrong[0])
        book = vocabulary.codebooks[expected[at]]
        raise BadInput(f"token {ids[at]} at position {at} is not of codebook {book.name}, whose turn it is")
    if len(ids) % length:
        raise BadInput(f"codes end inside a group: {len(ids)} tokens at position {len(ids)}, groups have {length}")
    return {book.name: codes[expected == number][None] for number, book in enumerate(vocabulary.codebooks)}
