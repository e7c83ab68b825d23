"""Preferences: a line of JSON each, a prompt with an answer that was chosen and one that was rejected.

    {"id": "7",
     "prompt": [{"role": "human", "text": "What day is it?", "audio": "7/question.wav"}],
     "chosen": "It is Monday.",
     "rejected": "I did not hear you."}

as data sets of preferences have it: each of the three is a text, a message or a list of messages. Without a prompt,
`chosen` and `rejected` are whole conversations, and what they begin with alike is the prompt. A pair becomes one
document: the turns of the prompt, then both answers, whose roles are `chosen` and `rejected`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile
from typing import Any

from data_pipeline.sources.recording import Recording
from data_pipeline.sources.speech.conversations import Keys, NoConversation, base_of, messages_in, of_lines, turn


def preferences(
    path: str,
    split: str | None,
    *,
    prompt: str = "prompt",
    chosen: str = "chosen",
    rejected: str = "rejected",
    role: str = "role",
    text: str = "text",
    audio: str = "audio",
    id: str = "id",
    split_column: str = "split",
    audio_folder: str | None = None,
) -> Iterator[Recording]:
    """The lines of a `.jsonl` file (or `.jsonl.gz`), in their order. The options name its keys, such as text: content
    for TRL's conversational form; messages, splits, paths and damage are as in `conversations`."""
    keys = Keys(role, text, audio)
    base = base_of(path, audio_folder)

    def turns(row: dict[str, Any], name: str) -> Iterator[Recording]:
        asked, *answers = _parts(row, (prompt, chosen, rejected), keys)
        number = 0
        for kind, messages in zip(("", "chosen", "rejected"), (asked, *answers), strict=True):
            for message in messages:
                said = turn(message, number, keys, name, base, path)
                number += 1
                yield _answer(said, kind) if kind else said

    yield from of_lines(path, split, turns, id=id, split_column=split_column)


def _parts(row: dict[str, Any], names: tuple[str, str, str], keys: Keys) -> tuple[list[Any], list[Any], list[Any]]:
    """The messages of prompt, chosen and rejected answer."""
    prompt, first, second = names
    chosen, rejected = (_messages(row.get(name), keys, name, "assistant") for name in (first, second))
    if row.get(prompt) is not None:
        return _messages(row[prompt], keys, prompt, "human"), chosen, rejected
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))))
    if not shared or shared in (len(chosen), len(rejected)):
        raise NoConversation(
            "conversation", f"no {prompt}, and {first} and {second} do not begin alike and then differ"
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _messages(value: Any, keys: Keys, name: str, role: str) -> list[Any]:
    """A list of messages, given as such, as one message, or as the text that somebody in `role` says."""
    if isinstance(value, str):
        value = {keys.role: role, keys.text: value}
    return [value] if isinstance(value, dict) else messages_in(value, f"messages in {name}")


def _answer(said: Recording, kind: str) -> Recording:
    (segment,) = said.segments
    if segment.role != "assistant":
        raise NoConversation("role", f"a {kind} answer has the role {segment.role}; answers are the assistant's")
    return replace(said, segments=(replace(segment, role=kind),))
