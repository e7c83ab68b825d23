"""Questions with answers that are known: LLaMA Questions, Web Questions and TriviaQA.

Spoken, as OpenAudioBench distributes them (arXiv:2502.17239): <folder>/<set>/<set>.csv with the sound of each row in
audios/; written, as TriviaQA (Joshi et al. 2017) and WebQuestions (Berant et al. 2013) are published, in one JSON file.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.sources.evaluation.item import Item, Stretch
from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.lines import text_in
from data_pipeline.sources.speech.places import inside
from runtime.exits import BadInput

SOUNDS = "audios"
_DESCRIPTION = re.compile(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^()\s]+))\)')


def llama_questions(
    path: str, split: str | None, *, question: str = "Questions", answers: str = "Answer", audio: str = "audio_filename"
) -> Iterator[Item]:
    """LLaMA Questions (300 general-knowledge questions of Nachmani et al. 2023). `path` is the folder with the table,
    the one above it, or the table; the options name its columns. An answer may list several, parted by `;`."""
    yield from _table(_table_in(path, "llama_questions"), question, [answers], audio, ";")


def web_questions(
    path: str, split: str | None, *, question: str = "question", answers: str = "answers", audio: str = "audio_filename"
) -> Iterator[Item]:
    """Web Questions, spoken (as `llama_questions`), or written: a `.json` file of utterance and targetValue."""
    if not path.endswith(".json"):
        yield from _table(_table_in(path, "web_questions"), question, [answers], audio, ";")
        return
    for number, row in enumerate(_json(path, list)):
        found = tuple(one or other for one, other in _DESCRIPTION.findall(text_in(row, "targetValue")))
        yield _item(path, number, text_in(row, "utterance"), found)


def trivia_qa(
    path: str,
    split: str | None,
    *,
    question: str = "question",
    answers: Sequence[str] = ("answer_normalized_value", "answer_normalized_aliases"),
    audio: str = "audio_filename",
) -> Iterator[Item]:
    """TriviaQA, spoken (as `llama_questions`; aliases are parted by commas), or written: one of its `.json` files. Its
    answers are the value and all aliases."""
    if not path.endswith(".json"):
        yield from _table(_table_in(path, "trivia_qa"), question, answers, audio, ",")
        return
    for number, row in enumerate(_json(path, dict).get("Data", [])):
        told = row.get("Answer") or {}
        aliases = [told.get("Value"), *told.get("Aliases", []), *told.get("NormalizedAliases", [])]
        found = tuple(dict.fromkeys(alias for alias in aliases if isinstance(alias, str)))
        yield _item(path, number, text_in(row, "Question"), found, text_in(row, "QuestionId"))


def listed(cell: str, parting: str) -> tuple[str, ...]:
    """The answers in a cell: a list as JSON or Python writes it, or names parted by `parting`."""
    if cell.startswith("[") and cell.endswith("]"):
        try:
            written = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            written = None
        if isinstance(written, list):
            return tuple(str(one).strip() for one in written if str(one).strip())
    return tuple(part.strip() for part in cell.split(parting) if part.strip())


def _table_in(path: str, name: str) -> Path:
    given = Path(path)
    places = [given] if given.suffix == ".csv" else [given / f"{name}.csv", given / name / f"{name}.csv"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise BadInput(f"evaluation set {name}: no {' nor '.join(map(str, places))}")
    return found


def _table(file: Path, question: str, answers: Sequence[str], audio: str, parting: str) -> Iterator[Item]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = csv.DictReader(opened)
            missing = [name for name in (question, *answers) if name not in (rows.fieldnames or ())]
            if missing:
                columns = ", ".join(rows.fieldnames or ())
                raise BadInput(
                    f"{file} has no column {missing[0]}; it has {columns}. The set's options name its columns"
                )
            for number, row in enumerate(rows):
                found = tuple(dict.fromkeys(one for name in answers for one in listed(text_in(row, name), parting)))
                name = text_in(row, audio)
                sound = Stretch(inside(file.parent / SOUNDS, name)) if name else None
                yield _item(str(file), number, text_in(row, question), found, Path(name).stem, sound)
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is no UTF-8 text: {error.reason} at byte {error.start}") from error


def _item(
    file: str, number: int, question: str, answers: tuple[str, ...], name: str = "", sound: Stretch | None = None
) -> Item:
    if not question:
        raise BadInput(f"{file}: question {number} is empty")
    return Item(safe_key(name or f"{number:05d}"), question, language="en", sound=sound, answers=answers)


def _json(path: str, kind: type) -> Any:
    try:
        written = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} is no JSON file: {error}") from error
    if not isinstance(written, kind):
        raise BadInput(f"{path} does not hold what this set is published as: a JSON {kind.__name__}")
    return written
