"""Written conversations in the form of the chatterbot-corpus (BSD-3-Clause): a YAML file a topic, in a folder a
language, under whose `conversations` each is a list of what two people say in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.recording import Recording, Segment
from data_pipeline.sources.speech.places import Written
from runtime.exits import BadInput

_TURNS = ("human", "assistant")


def chatterbot(path: str, split: str | None, *, topics: Sequence[str] = ()) -> Iterator[Recording]:
    """Conversations of the YAML files in the folder `path`, topic by topic; `topics` names those wanted, in any order,
    `split` one of them.

    The first to speak is the human. A conversation becomes one document, `<topic>-<number>`, and each turn an
    utterance of it; what is no list of at least two texts is left out. Raises BadInput for a topic that is not there,
    or a file that is no YAML of that form.
    """
    files = {file.stem: file for file in sorted(Path(path).glob("*.yml"))}
    wanted = [split] if split is not None else sorted(topics) or list(files)
    for topic in wanted:
        if topic not in files:
            raise BadInput(f"speech source chatterbot: {path} has no topic {topic}; there are {', '.join(files)}")
        for number, turns in enumerate(_conversations(files[topic])):
            said = (
                [" ".join(turn.split()) for turn in turns if isinstance(turn, str)] if isinstance(turns, list) else []
            )
            if len(said) < 2 or len(said) != len(turns) or not all(said):
                continue
            name = safe_key(f"{topic}-{number:04d}")
            for turn, text in enumerate(said):
                segment = Segment(text=text, role=_TURNS[turn % 2])
                yield Recording(f"{name}-{turn:03d}", Written(files[topic].name), (segment,), document=name)


def _conversations(file: Path) -> list[Any]:
    try:
        written = yaml.safe_load(file.read_text(encoding="utf-8"))
        found = written["conversations"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise BadInput(f"{file}: not a file of conversations ({type(error).__name__})") from error
    if not isinstance(found, list):
        raise BadInput(f"{file}: conversations is no list")
    return found
