"""Which codebooks a corpus's codes are of: what has to be the same where one model learns from several corpora.

Learnt codebooks have the same names and sizes whatever they were learnt from, so a vocabulary does not tell them apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from data_pipeline.corpus import Corpus
from runtime.exits import BadInput

CODEBOOKS_FILE = "codebooks.json"
"""Beside a checkpoint's vocabulary: the codebooks that it was trained on, as `codebooks_in` gives them."""


def codebooks_in(corpus: Corpus) -> dict[str, str]:
    """Each codebook of a corpus, by name, as far as its manifest tells: of learnt ones a hash of the centroids, of
    published ones the kind of codec (the same weights may lie in a folder or on a hub); of codes that a model made,
    those that it had learnt. Raises BadInput where the manifest is damaged."""
    try:
        return _in_codecs(corpus.codecs)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{corpus.folder}: its manifest's codecs are damaged ({error!r}); do not trust it") from error


def _in_codecs(codecs: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for described in codecs.values():
        if "codes_of" in described:
            learnt = described["codes_of"]
            found |= _in_codecs(learnt.get("codecs", learnt))
        elif "codec" in described:
            kind = json.loads(described["codec"])["kind"]
            hashes = {name: book.get("xxh3") for name, book in described["codebooks"].items()}
            if any(hashes.values()) or kind != "whisper_kmeans":  # else of a version that did not tell
                found |= {name: kind if known is None else f"{kind} {known}" for name, known in hashes.items()}
    return found


def apart(these: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """Names of codebooks that both have, and not the same."""
    return sorted(name for name in these.keys() & others.keys() if these[name] != others[name])


def as_file(corpus: Corpus) -> dict[str, str]:
    """The file that a checkpoint keeps, by its name."""
    return {CODEBOOKS_FILE: json.dumps(codebooks_in(corpus), indent=2)}
