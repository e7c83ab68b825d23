"""Conversations whose last turn is to be answered: StepEval-Audio-360 (arXiv:2502.11946, section 6.3).

Its answers are judged by people or by another model; here they are only collected. The layout of the published folder
could not be seen: what is read is JSON lines, one conversation each, with the keys that the options name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.sources.evaluation.item import Item, Stretch, Turn
from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.lines import read_json_lines, text_in
from data_pipeline.sources.speech.conversations import ROLES
from data_pipeline.sources.speech.places import beside
from runtime.exits import BadInput


def step_eval_audio_360(
    path: str,
    split: str | None,
    *,
    messages: str = "messages",
    role: str = "role",
    text: str = "text",
    audio: str = "audio",
    id: str = "id",
    category: str = "category",
    language: str = "zh",
) -> Iterator[Item]:
    """Conversations of a `.jsonl` file, or of the one in a folder. Every human turn has a text, a sound file (relative
    to the file) or both. Turns of the assistant after the last human one are left out; `split` keeps one category."""
    file = _file(Path(path))
    for number, row in read_json_lines(file):
        where = f"{file} line {number}"
        if split is not None and text_in(row, category) != split:
            continue
        told = row.get(messages)
        if not isinstance(told, list) or not told or not all(isinstance(one, dict) for one in told):
            raise BadInput(f"{where}: {messages} is no list of messages")
        turns = [_turn(one, role, text, audio, file, where) for one in told]
        while turns and turns[-1].role != "human":
            turns.pop()
        if not turns:
            raise BadInput(f"{where}: nobody asks anything")
        name = safe_key(text_in(row, id) or f"{file.stem}-{number}")
        *earlier, last = turns
        yield Item(name, last.text, language, last.sound, category=text_in(row, category), turns=tuple(earlier))


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.jsonl"))
    if len(found) != 1:
        raise BadInput(f"evaluation set step_eval_audio_360: {path} should hold one .jsonl file, it holds {len(found)}")
    return found[0]


def _turn(message: dict[str, Any], role: str, text: str, audio: str, file: Path, where: str) -> Turn:
    said = ROLES.get(text_in(message, role))
    if said is None:
        raise BadInput(f"{where}: {role} is {message.get(role)!r}; there are {', '.join(ROLES)}")
    sound = Stretch(beside(str(file.parent), text_in(message, audio))) if text_in(message, audio) else None
    return Turn(said, text_in(message, text), sound)
