"""Grouped codes: codebooks of different rates laid in one stream, so many codes of each in turn.

Two codes of a 16.67 Hz codebook and three of a 25 Hz one, `[L L S S S]`, are both 120 ms of speech (Step-Audio,
arXiv:2502.11946, section 3.1). Any ordered codebooks work; `Codebook.per_group` holds the counts. A frame of a
residual codebook stands whole, its rows one after the other.

Where all codebooks have one frame a group, a group can also stand in one place of the sequence, as a frame of so many
columns, with one more column for text (Sesame CSM's 33 columns; Baichuan-Audio, arXiv:2502.17239, has 8 and text).
"""

from __future__ import annotations

import numpy as np

from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Codebook, Vocabulary
from runtime.exits import BadInput


def group_length(vocabulary: Vocabulary) -> int:
    """Tokens of one group."""
    return sum(book.per_group * book.rows for book in vocabulary.codebooks)


def frame_columns(vocabulary: Vocabulary) -> int:
    """Columns of frames: all rows of all codebooks, in order, and one of text. Raises BadInput where a codebook has
    several frames a group."""
    for book in vocabulary.codebooks:
        if book.per_group != 1:
            raise BadInput(
                f"codebook {book.name} has {book.per_group} codes a group; a layout of frames needs codebooks of one"
            )
    return group_length(vocabulary) + 1


def tables_of_group(vocabulary: Vocabulary) -> list[range]:
    """The ids that each place of a group chooses among."""
    books, starts = vocabulary.turns, vocabulary.first_ids
    return [range(start, start + book.size) for book, start in zip(books, starts.tolist(), strict=True)]


def check_codes(utterance: Utterance, vocabulary: Vocabulary) -> None:
    """Raises BadInput unless a spoken utterance has the rows of each codebook, all codes in range."""
    for book in vocabulary.codebooks if utterance.spoken else ():
        codes = _rows(utterance, book)
        # As numbers without a sign negative ones are the largest: one look at the codes instead of two.
        if codes.size and codes.view(codes.dtype.str.replace("i", "u")).max() >= book.size:
            raise BadInput(f"utterance {utterance.key} has codes outside codebook {book.name} of {book.size}")


def _rows(utterance: Utterance, book: Codebook) -> np.ndarray:
    codes = utterance.codes.get(book.name)
    if codes is None or codes.ndim != 2 or len(codes) != book.rows:
        wanted = "single row" if book.rows == 1 else f"{book.rows} rows"
        raise BadInput(f"utterance {utterance.key} has no {wanted} of codes for codebook {book.name}")
    return codes


def lay_groups(utterance: Utterance, vocabulary: Vocabulary) -> np.ndarray:
    """Token ids of the utterance's codes, int64 [groups, group length]; codes that fill no whole group are dropped.

    An utterance that was not spoken has 0 groups. Raises BadInput where a codebook has no codes, or other rows of them.
    All are in range: whoever reads or makes utterances asks `check_codes`, once.
    """
    if not utterance.spoken:
        return np.empty((0, group_length(vocabulary)), np.int64)
    found = [_rows(utterance, book) for book in vocabulary.codebooks]
    groups = min(codes.shape[1] // book.per_group for book, codes in zip(vocabulary.codebooks, found, strict=True))
    starts = vocabulary.first_ids
    laid = np.empty((groups, len(starts)), np.int64)
    at = 0
    for book, whole in zip(vocabulary.codebooks, found, strict=True):
        codes = whole[:, : groups * book.per_group]
        frames = laid[:, at : at + book.per_group * book.rows].reshape(groups, book.per_group, book.rows)
        frames[:] = codes.reshape(book.rows, groups, book.per_group).transpose(1, 2, 0)
        at += book.per_group * book.rows
    laid += starts
    return laid


def ungroup(ids: np.ndarray, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """Codes by codebook, int64 [rows, frames], of token ids `[n]` that are whole groups.

    Raises BadInput naming the first position whose token is not of the codebook whose turn it is.
    """
    length = group_length(vocabulary)
    books, starts = vocabulary.turns, vocabulary.first_ids
    turns = np.resize(np.arange(length), len(ids))
    codes = np.asarray(ids, np.int64) - starts[turns]
    sizes = np.array([book.size for book in books])
    wrong = np.flatnonzero((codes < 0) | (codes >= sizes[turns]))
    if wrong.size:
        at = int(wrong[0])
        raise BadInput(f"token {ids[at]} at position {at} is not of codebook {books[turns[at]].name}, whose turn it is")
    if len(ids) % length:
        raise BadInput(f"codes end inside a group: {len(ids)} tokens at position {len(ids)}, groups have {length}")
    return _by_codebook(codes.reshape(-1, length), vocabulary)


def unframe(frames: np.ndarray, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """Codes by codebook, int64 [rows, frames], of frames of audio `[n, columns]`, the last column text (-1 there).

    Raises BadInput naming the first frame and column whose token is not of that column's table.
    """
    columns = frame_columns(vocabulary)
    if frames.ndim != 2 or frames.shape[1] != columns:
        raise BadInput(f"frames of {columns} columns wanted, got an array of shape {frames.shape}")
    books, starts = vocabulary.turns, vocabulary.first_ids
    codes = np.asarray(frames[:, :-1], np.int64) - starts
    wrong = np.argwhere((codes < 0) | (codes >= np.array([book.size for book in books])))
    texts = np.flatnonzero(frames[:, -1] != -1)
    if texts.size and (not wrong.size or texts[0] <= wrong[0, 0]):
        raise BadInput(f"frame {texts[0]} has text {frames[texts[0], -1]} where audio was wanted")
    if wrong.size:
        at, column = wrong[0].tolist()
        raise BadInput(f"token {frames[at, column]} in frame {at}, column {column}, is not of codebook "
                       f"{books[column].name}, whose column it is")  # fmt: skip
    return _by_codebook(codes, vocabulary)


def _by_codebook(groups: np.ndarray, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """The codes `[groups, group length]`, int64 [rows, frames] for each codebook."""
    ends = np.cumsum([book.per_group * book.rows for book in vocabulary.codebooks])[:-1]
    parts = np.split(groups, ends, axis=1)
    return {book.name: part.reshape(-1, book.rows).T for book, part in zip(vocabulary.codebooks, parts, strict=True)}
