"""Sets that models are measured on, read from local folders. The one registry of their kinds is here.

A kind is a function `(path, split, **options) -> Iterator[Item]` that reads how a set is laid out and decodes nothing;
keyword-only parameters are its options. Every kind of data_pipeline/sources/speech is one as well: its recordings that
have a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from configs.schema import EvaluationSetConfig, SpeechSourceConfig
from data_pipeline.sources.evaluation.corpora import corpus, tasks, text
from data_pipeline.sources.evaluation.dialogues import step_eval_audio_360
from data_pipeline.sources.evaluation.item import InShard, Item, Recorded, Stretch, Turn
from data_pipeline.sources.evaluation.questions import llama_questions, trivia_qa, web_questions
from data_pipeline.sources.evaluation.seed_tts import seed_tts
from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.options import check_options
from data_pipeline.sources.speech import KINDS as SPEECH_KINDS
from data_pipeline.sources.speech import open_speech_source
from runtime.exits import BadInput

KINDS: dict[str, Callable[..., Iterator[Item]]] = {
    "corpus": corpus,
    "llama_questions": llama_questions,
    "seed_tts": seed_tts,
    "step_eval_audio_360": step_eval_audio_360,
    "tasks": tasks,
    "text": text,
    "trivia_qa": trivia_qa,
    "web_questions": web_questions,
}
DEFAULT_LANGUAGE = "en"


def check_set(name: str, config: EvaluationSetConfig) -> None:
    """Raise BadInput for a kind or an option that is not there."""
    if config.kind in KINDS:
        check_options(f"evaluation set {name}", KINDS[config.kind], config.options)
    elif config.kind in SPEECH_KINDS:
        check_options(f"evaluation set {name}", SPEECH_KINDS[config.kind].read, config.options)
    else:
        known = ", ".join([*KINDS, *SPEECH_KINDS])
        raise BadInput(f"evaluation.sets.{name}.kind={config.kind}: no such kind of set; there are {known}")


def read_set(config: EvaluationSetConfig, path: Path) -> list[Item]:
    """All items of the set at `path`, in its own order, each with a language. Raises BadInput where the set is not what
    its kind says, holds nothing, or has two items of one key."""
    if config.kind in KINDS:
        found = list(KINDS[config.kind](str(path), config.split, **config.options))
    else:
        found = list(_spoken(config, path))
    if not found:
        part = f" in split {config.split}" if config.split else ""
        raise BadInput(f"evaluation set {config.kind}: {path} holds nothing{part}")
    keys = [item.key for item in found]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadInput(f"evaluation set {config.kind}: {path} holds {twice} twice")
    return [replace(item, language=item.language or config.language or DEFAULT_LANGUAGE) for item in found]


def _spoken(config: EvaluationSetConfig, path: Path) -> Iterator[Item]:
    source = open_speech_source(
        SpeechSourceConfig(config.kind, str(path), config.split, config.language, options=config.options)
    )
    for recording in source.recordings():
        for number, segment in enumerate(recording.segments):
            if segment.text:
                sound = Stretch(recording.audio, segment.start, segment.end, segment.channel)
                key = recording.key if len(recording.segments) == 1 else safe_key(f"{recording.key}-{number}")
                yield Item(key, segment.text, segment.language, sound)


__all__ = ["KINDS", "InShard", "Item", "Recorded", "Stretch", "Turn", "check_set", "read_set"]
