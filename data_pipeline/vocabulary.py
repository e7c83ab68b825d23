"""One vocabulary for text, special tokens and audio codes.

Text ids keep their place; special tokens follow, then one contiguous range a codebook, then padding up to a
multiple that every tensor-parallel size divides. The ranges are written where a corpus is made and compared
where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from runtime.exits import BadInput

TEXT = "text"
VOCABULARY_FILE = "vocabulary.json"
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Codebook:
    """Code tables of one name (the key of `Utterance.codes`): entries of each, codes a second, and codes in one group.

    `rows` is above one for residual codebooks: so many tables, one code of each in every frame. Row r has the ids from
    r x size on in the codebook's range.
    """

    name: str
    size: int
    rate: float
    per_group: int = 1
    rows: int = 1

    @property
    def entries(self) -> int:
        """Ids of all its tables."""
        return self.rows * self.size


@dataclass(frozen=True)
class Vocabulary:
    """Named id ranges, with the text tokenizer they start from.

    `text_size` counts the text tokenizer's own ids. `end_of_text` is the text tokenizer's document separator.
    `tokenizer_json` is the serialised `tokenizers` model; it is kept as text so that a vocabulary can be
    pickled to loader workers and compared by value.
    """

    text_size: int
    specials: tuple[str, ...]
    codebooks: tuple[Codebook, ...]
    tokenizer_json: str
    end_of_text: str = "<|endoftext|>"
    multiple: int = 128

    # --- ranges ---------------------------------------------------------------------------------------------

    @cached_property
    def ranges(self) -> dict[str, range]:
        """Every named range: "text", "special", then one for each codebook, in id order."""
        start = self.text_size + len(self.specials)
        ranges = {TEXT: range(self.text_size), "special": range(self.text_size, start)}
        for book in self.codebooks:
            ranges[book.name] = range(start, start + book.entries)
            start += book.entries
        return ranges

    @cached_property
    def tables(self) -> tuple[range, ...]:
        """The ids that one place chooses among, in id order: text and special tokens together, then each table of each
        codebook."""
        text = range(self.text_size + len(self.specials))
        starts = [(self.ranges[book.name].start, book) for book in self.codebooks]
        return (
            text,
            *(
                range(at := start + row * book.size, at + book.size)
                for start, book in starts
                for row in range(book.rows)
            ),
        )

    def table_of(self, ids: np.ndarray) -> np.ndarray:
        """The number of each id's table, int64, same shape."""
        return np.searchsorted([table.start for table in self.tables], ids, side="right") - 1

    @cached_property
    def turns(self) -> tuple[Codebook, ...]:
        """The codebook of each token of a group of codes."""
        return tuple(book for book in self.codebooks for _ in range(book.per_group * book.rows))

    @cached_property
    def first_ids(self) -> np.ndarray:
        """The id of code 0 of each token of a group of codes, int64 [group length], not to be written to."""
        rows = [(book, row) for book in self.codebooks for _ in range(book.per_group) for row in range(book.rows)]
        starts = np.array([self.ranges[book.name].start + row * book.size for book, row in rows], np.int64)
        starts.flags.writeable = False
        return starts

    @cached_property
    def group_seconds(self) -> float:
        """Seconds of speech that a group of codes stands for, by the codebook with the highest rate: others may be
        rounded."""
        book = max(self.codebooks, key=lambda book: book.rate)
        return book.per_group / book.rate

    @property
    def size(self) -> int:
        """Ids in use."""
        return self.text_size + len(self.specials) + sum(book.entries for book in self.codebooks)

    @property
    def padded_size(self) -> int:
        """Rows of the embedding: `size` rounded up to `multiple`."""
        return -(-self.size // self.multiple) * self.multiple

    # --- modalities -----------------------------------------------------------------------------------------

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names by modality number: 0 is text (special tokens included), then the codebooks in order."""
        return (TEXT, *(book.name for book in self.codebooks))

    def modality_of(self, ids: np.ndarray) -> np.ndarray:
        """Modality number of each id, uint8, same shape; 0 for -1, which is no id."""
        return self._modality_starts.searchsorted(ids, side="right").astype(np.uint8)

    @cached_property
    def _modality_starts(self) -> np.ndarray:
        return np.array([self.ranges[book.name].start for book in self.codebooks], np.int64)

    # --- encoding -------------------------------------------------------------------------------------------

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        tokenizer.encode_special_tokens = True  # as text: what somebody wrote cannot end his turn
        return tokenizer

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: a tokenizer that was pickled forgets how it encodes special tokens."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def encode_text(self, text: str) -> list[int]:
        """Ids of `text`, without any begin or end token; the name of a special token in it is text like any other."""
        known = self._known.get(text)
        return self._tokenizer.encode(text, add_special_tokens=False).ids if known is None else list(known)

    def know(self, ids: Mapping[str, Sequence[int]]) -> None:
        """Be told what `encode_text` gives for some texts, which are those of one document of a corpus that keeps the
        ids of its texts; of the texts told of before, nothing is known any more."""
        self._known.clear()
        self._known.update(ids)

    @cached_property
    def _known(self) -> dict[str, Sequence[int]]:
        return {}

    def decode_text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def encode_inside(self, text: str) -> list[int]:
        """Ids of `text` as it stands after a line break or a special token: a tokenizer that marks the start of what
        it is given (SentencePiece's dummy prefix) does not mark it there. Step-Audio's way: behind a line break, whose
        ids are then taken off."""
        whole = self.encode_text("\n" + text)
        head = self._line_break
        return whole[len(head) :] if whole[: len(head)] == head else self.encode_text(text)

    @cached_property
    def _line_break(self) -> list[int]:
        return self.encode_text("\n")

    def has_special(self, name: str) -> bool:
        """Whether `special` knows `name`."""
        return self.id_of(name) >= 0

    def special(self, name: str) -> int:
        """Id of a special token: one of `specials`, or one the text tokenizer already has."""
        found = self.id_of(name)
        if found < 0:
            raise BadInput(f"vocabulary has no special token {name!r}; it has {', '.join(self.specials)}")
        return found

    def id_of(self, name: str) -> int:
        """Id of the text or special token of that name, -1 where there is none."""
        ids = self._special_ids
        if name not in ids:
            found = self._tokenizer.token_to_id(name)
            ids[name] = -1 if found is None else int(found)
        return ids[name]

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        """Of `specials`, and of every name that was asked for."""
        return {name: self.text_size + number for number, name in enumerate(self.specials)}

    def token_name(self, index: int) -> str:
        """The string an exported tokenizer has for a special or audio id, such as `<|semantic_12|>`."""
        for name, ids in self.ranges.items():
            if index in ids:
                if name == TEXT:
                    return self._tokenizer.id_to_token(index) or ""  # an id that the tokenizer leaves unused
                return self.specials[index - ids.start] if name == "special" else f"<|{name}_{index - ids.start}|>"
        raise BadInput(f"token id {index} is outside the vocabulary of {self.size}")

    # --- files ----------------------------------------------------------------------------------------------

    def describe(self) -> dict:
        """What has to agree between a corpus, a checkpoint and a run; JSON-ready."""
        described = asdict(self)
        del described["tokenizer_json"]
        described["ranges"] = {name: [ids.start, ids.stop] for name, ids in self.ranges.items()}
        return json.loads(json.dumps(described))  # tuples as lists, so that it equals its own copy in a file

    def files(self) -> dict[str, str]:
        """What `load` reads: contents by file name."""
        return {TOKENIZER_FILE: self.tokenizer_json, VOCABULARY_FILE: json.dumps(self.describe(), indent=2)}

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files().items():
            (folder / name).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """Read what `save` wrote. Raises BadInput where a file is missing or damaged, or its ranges do not add up."""
        for name in (VOCABULARY_FILE, TOKENIZER_FILE):
            if not (folder / name).is_file():
                raise BadInput(f"{folder} has no {name}: not a folder with a vocabulary")
        try:
            described = json.loads((folder / VOCABULARY_FILE).read_text(encoding="utf-8"))
            written = described.pop("ranges")
            described["specials"] = tuple(described["specials"])
            described["codebooks"] = tuple(Codebook(**book) for book in described["codebooks"])
            vocabulary = cls(**described, tokenizer_json=(folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{folder / VOCABULARY_FILE} is damaged ({error!r})") from error
        if {name: [ids.start, ids.stop] for name, ids in vocabulary.ranges.items()} != written:
            raise BadInput(f"{folder / VOCABULARY_FILE}: its ranges do not follow from its sizes")
        return vocabulary
