"""A teacher's ids in a student's vocabulary: by the names of tokens and codebooks, wherever their ids are."""

from __future__ import annotations

import numpy as np

from data_pipeline.vocabulary import TEXT, Vocabulary
from runtime.exits import BadInput


def same_ids(teacher: Vocabulary, student: Vocabulary) -> np.ndarray:
    """The student's id of each of the teacher's, int64 [teacher.size], -1 where the student has no such token.

    Raises BadInput where the two have codebooks of one name that are not of one size, group and rows.
    """
    known = {(book.name, book.size, book.per_group, book.rows) for book in student.codebooks}
    for book in teacher.codebooks:
        if (book.name, book.size, book.per_group, book.rows) not in known:
            raise BadInput(f"the teacher's codebook {book.name} of {book.size} is not among the student's")
    found = np.full(teacher.size, -1, np.int64)
    for name, ids in teacher.ranges.items():
        if name == TEXT and teacher.tokenizer_json == student.tokenizer_json:
            found[ids] = np.arange(len(ids))
        elif name in student.ranges and name not in (TEXT, "special"):
            found[ids] = np.arange(len(ids)) + student.ranges[name].start
        else:
            names = [teacher.token_name(index) for index in ids]
            found[ids] = [student.id_of(token) if token else -1 for token in names]
    return found
