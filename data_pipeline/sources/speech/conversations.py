"""Conversations: a line of JSON each, with the turns in their order, spoken or written.

    {"id": "7", "messages": [
        {"role": "system", "text": "Answer briefly."},
        {"role": "human", "text": "What day is it?", "audio": "7/question.wav", "speaker": "anna"},
        {"role": "assistant", "text": "It is Monday.", "audio": "7/answer.wav", "style": "happy"}]}

A conversation becomes one document, and each turn an utterance of it, with codes where it has sound. The corpus's voice
says what was written by the roles in `corpus.spoken_roles`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.sources.address import is_url
from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.lines import number_in, read_lines, text_in
from data_pipeline.sources.recording import MIXED, Recording, Segment
from data_pipeline.sources.speech.places import Nowhere, Written, beside
from runtime.exits import BadInput

ROLES = {"system": "system", "human": "human", "user": "human", "assistant": "assistant", "gpt": "assistant"}
"""Roles by the names that files give them."""


class Keys(NamedTuple):
    """What the role, the text and the sound of a message are called."""

    role: str
    text: str
    audio: str


class NoConversation(Exception):
    """A line that is no conversation; `kind` as UnreadableAudio has it."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


def conversations(
    path: str,
    split: str | None,
    *,
    messages: str = "messages",
    role: str = "role",
    text: str = "text",
    audio: str = "audio",
    id: str = "id",
    split_column: str = "split",
    audio_folder: str | None = None,
) -> Iterator[Recording]:
    """The lines of a `.jsonl` file (or `.jsonl.gz`), in their order. The options name its keys, such as role: from,
    text: value for ShareGPT's.

    A message has a role (system, human or user, assistant), a text, an audio file or both, and may have speaker, lang,
    style, channel (without one: all mixed) and, in seconds, offset and duration or end, where its sound is a part of
    the file. Paths are relative to `audio_folder`, else to the file. `split` keeps the lines whose `split_column` says
    so. A line that is no conversation is told by its number when the corpus is built, and counts as damaged; so does
    one with another role. A conversation with a turn that cannot be read is left out whole.
    """
    keys = Keys(role, text, audio)
    base = base_of(path, audio_folder)

    def turns(row: dict[str, Any], name: str) -> Iterator[Recording]:
        for number, message in enumerate(messages_in(row.get(messages), "messages")):
            yield turn(message, number, keys, name, base, path)

    yield from of_lines(path, split, turns, id=id, split_column=split_column)


def of_lines(
    path: str,
    split: str | None,
    turns: Callable[[dict[str, Any], str], Iterator[Recording]],
    *,
    id: str,
    split_column: str,
) -> Iterator[Recording]:
    """The turns of every line of `path`, as `turns` makes them of its object and its name; of a line for which that
    raises NoConversation, a recording that cannot be read."""
    for number, line in read_lines(path):
        try:
            row = _object(line)
            if split is not None and text_in(row, split_column) != split:
                continue
            name = safe_key(text_in(row, id) or f"{Path(path).name.partition('.')[0]}-{number}")
            found = list(turns(row, name))
        except NoConversation as damaged:
            lost = Nowhere(f"{path} line {number}: {damaged}", damaged.kind)
            found = [Recording(safe_key(f"line-{number}"), lost, (Segment(),))]
        yield from found


def base_of(path: str, audio_folder: str | None) -> str:
    """The folder that paths of audio in the file `path` are relative to."""
    return audio_folder or path.rpartition("/")[0] or ("." if not is_url(path) else "")


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise NoConversation("conversation", f"no JSON ({type(error).__name__})") from error
    if not isinstance(row, dict):
        raise NoConversation("conversation", "no JSON object")
    return row


def messages_in(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise NoConversation("conversation", f"no list of {key}")
    return value


def turn(message: Any, number: int, keys: Keys, name: str, base: str, path: str) -> Recording:
    """Message `number` of the conversation `name`. Raises NoConversation."""
    if not isinstance(message, dict):
        raise NoConversation("conversation", f"message {number} is no JSON object")
    said = message.get(keys.role)
    if not isinstance(said, str) or said not in ROLES:
        raise NoConversation("role", f"message {number} has the role {said!r}; there are {', '.join(ROLES)}")
    for key in (keys.text, keys.audio):
        if not isinstance(message.get(key) or "", str):
            raise NoConversation("conversation", f"{key} of message {number} is no text")
    file, text = text_in(message, keys.audio), text_in(message, keys.text)
    if not file and not text:
        raise NoConversation("conversation", f"message {number} has neither {keys.text} nor {keys.audio}")
    place = beside(base, file) if file else Written(path)
    segment = _segment(message, ROLES[said], text, f"message {number}")
    return Recording(safe_key(f"{name}-{number:03d}"), place, (segment,), document=name)


def _segment(message: dict[str, Any], role: str, text: str, where: str) -> Segment:
    try:
        start = number_in(message, "offset", where) or 0.0
        duration, end = number_in(message, "duration", where), number_in(message, "end", where)
        channel = number_in(message, "channel", where)
    except BadInput as error:
        raise NoConversation("conversation", str(error)) from error
    if "offset" not in message and end is None:
        duration = None  # it is that of the file
    return Segment(
        start=start,
        end=start + duration if duration is not None else end,
        text=text,
        speaker=text_in(message, "speaker"),
        language=text_in(message, "lang"),
        channel=MIXED if channel is None else int(channel),
        role=role,
        style=text_in(message, "style"),
    )
