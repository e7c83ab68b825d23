"""Sequence layouts: how the utterances of one document become samples. The one registry of them is here.

A layout is a pure function `(utterances, vocabulary, rng, **options) -> list[Sample]` of one document's utterances:
none, one or many samples, keyed `document/part`. Where its docstring says nothing else, a sample ends with the
end-of-text token and has one column. Options called templates hold text in which special tokens stand by name, in
angle brackets.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.schema import SourceConfig
from data_pipeline.batch import Sample
from data_pipeline.layouts.assembly import check_marks, specials_in
from data_pipeline.layouts.channels import CHANNELS, channels
from data_pipeline.layouts.chat import chat
from data_pipeline.layouts.chunked import chunked
from data_pipeline.layouts.dialogues import asr_dialogue, tts_dialogue
from data_pipeline.layouts.groups import frame_columns
from data_pipeline.layouts.interleaved import interleaved, spans
from data_pipeline.layouts.paired import asr, tts
from data_pipeline.layouts.preferences import preferences
from data_pipeline.layouts.residual import csm
from data_pipeline.layouts.resynthesis import resynthesis
from data_pipeline.layouts.segments import intlv, itts
from data_pipeline.layouts.single import continuation, text
from data_pipeline.layouts.templates import template_of
from data_pipeline.layouts.units import units
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput

_LAYOUTS: dict[str, Callable[..., list[Sample]]] = {
    "asr": asr,
    "asr_dialogue": asr_dialogue,
    "channels": channels,
    "chat": chat,
    "chunked": chunked,
    "continuation": continuation,
    "csm": csm,
    "interleaved": interleaved,
    "intlv": intlv,
    "itts": itts,
    "preferences": preferences,
    "resynthesis": resynthesis,
    "spans": spans,
    "text": text,
    "tts": tts,
    "tts_dialogue": tts_dialogue,
    "units": units,
}
_SEVERAL_COLUMNS = {"channels", "csm"}
_CHATS = {"asr_dialogue", "chat", "preferences", "tts_dialogue"}
_DRAWING_NOTHING = {"asr", "continuation", "text", "tts"}
_OF_WHOLE_DOCUMENTS = {"chat", "preferences"}
_OPTIONS_AS = {"preferences": "chat"}
_TEMPLATES = {"begin", "end", "listen", "marks", "speak", "task", "turn", "unit"}


@dataclass(frozen=True)
class Layout:
    """A layout with its options set."""

    name: str
    options: dict[str, Any]

    def __call__(
        self, utterances: Sequence[Utterance], vocabulary: Vocabulary, rng: np.random.Generator
    ) -> list[Sample]:
        return _LAYOUTS[self.name](utterances, vocabulary, rng, **self.options)

    @property
    def spoken(self) -> bool:
        """Whether it wants documents that have speech, as codes, only."""
        settings = self._settings()
        if settings.get("encoder"):  # what is heard needs no codes; what is said may
            return settings.get("says", "text") != "text" or settings.get("form") == "AQAA"
        return self.name != "text" and settings.get("form") != "TQTA"

    @property
    def specials(self) -> tuple[str, ...]:
        """The special tokens that it writes beside the end of text, by name, sorted."""
        found: set[str] = set()
        settings = self._settings()
        if self.name in _CHATS:
            found.update(template_of(*(settings[name] for name in ("template", "begin", "heads", "tail"))).specials)
        for option, value in settings.items():
            if option in _TEMPLATES:
                found.update(*(specials_in(part) for part in ([value] if isinstance(value, str) else value)))
        return tuple(sorted(found))

    def columns(self, vocabulary: Vocabulary) -> int:
        """Columns of its samples: 1, or more where a place holds several tokens. Raises BadInput for codebooks that
        it cannot use."""
        if self.name == "channels":
            return CHANNELS
        return frame_columns(vocabulary) if self.name == "csm" or self._settings().get("frames") else 1

    @property
    def draws(self) -> bool:
        """Whether its samples may depend on what it draws."""
        return self.name not in _DRAWING_NOTHING

    @property
    def whole(self) -> bool:
        """Whether its samples make no sense in pieces: one that is longer than a pack is left out, not cut."""
        return self.name in _CHATS or self.sounds

    @property
    def sounds(self) -> bool:
        """Whether it wants the sound of utterances, and gives it to its samples (`data_pipeline.batch.Wave`)."""
        return self.name == "resynthesis"

    @property
    def of_whole_documents(self) -> bool:
        """Whether it wants no document of which an utterance is damaged, or does not pass the filter."""
        return self.name in _OF_WHOLE_DOCUMENTS

    @property
    def of_pairs(self) -> bool:
        """Whether its samples are two answers to compare, not sequences to learn."""
        return self.name == "preferences"

    @property
    def plain(self) -> bool:
        """Whether its samples are one column of tokens, with feature slots in it or not: no further targets,
        no sound."""
        return not (self.sounds or self.name in _SEVERAL_COLUMNS or self._settings().get("frames"))

    @property
    def hears(self) -> tuple[str, int] | None:
        """The features that its slots hold, and how many frames of them a place stands for; None: it has no slots."""
        settings = self._settings()
        if not settings.get("encoder") or settings.get("form") == "TQTA":
            return None
        return settings["encoder"], settings["stride"]

    def check(self, vocabulary: Vocabulary) -> None:
        """Raises BadInput, before any document is read, for a vocabulary without its special tokens or with codebooks
        that it cannot use, and for values of options that are out of range."""
        missing = [name for name in self.specials if not vocabulary.has_special(name)]
        if missing:
            raise BadInput(
                f"layout {self.name} needs the special tokens {', '.join(missing)}, which the corpus's vocabulary "
                "lacks; build the corpus with them, or change the layout's templates"
            )
        check_marks(self._settings().get("marks", ()))
        self.columns(vocabulary)
        self([], vocabulary, np.random.default_rng(0))

    def _settings(self) -> dict[str, Any]:
        return {name: parameter.default for name, parameter in _options_of(self.name).items()} | self.options


def find_layout(name: str, options: Mapping[str, Any]) -> Layout:
    """The layout `name` with `options`. Raises BadInput, naming the choices, for an unknown name or option, and for
    a value of another type than the option has."""
    if name not in _LAYOUTS:
        raise BadInput(f"unknown layout {name!r}; choose from {', '.join(_LAYOUTS)}")
    known = _options_of(name)
    taken = {}
    for option, value in options.items():
        if option not in known:
            raise BadInput(f"layout {name} has no option {option!r}; it has {', '.join(known) or 'none'}")
        taken[option] = _typed(f"layout {name}: option {option}", value, known[option])
    return Layout(name, taken)


def layouts_of(sources: Mapping[str, SourceConfig], prefix: str = "") -> dict[str, Layout]:
    """The layouts of a mixture's sources with a weight above 0, at all levels, by path.

    Raises BadInput as `find_layout` does, naming the source.
    """
    found: dict[str, Layout] = {}
    for name, source in sorted(sources.items()):
        if source.weight and source.sources:
            found |= layouts_of(source.sources, f"{prefix}{name}.")
        elif source.weight:
            try:
                found[prefix + name] = find_layout(source.layout or "", source.options)
            except BadInput as error:
                raise BadInput(f"source {prefix}{name}: {error}") from None
    return found


def wanted_specials(layouts: Iterable[Layout]) -> tuple[str, ...]:
    """The special tokens that a corpus has to have for all of `layouts`, sorted."""
    return tuple(sorted({name for layout in layouts for name in layout.specials}))


def check_same_columns(layouts: Mapping[str, Layout], vocabulary: Vocabulary) -> None:
    """Raises BadInput where the layouts of a mixture, by source, make samples of different columns."""
    columns = {source: layout.columns(vocabulary) for source, layout in layouts.items()}
    if len(set(columns.values())) > 1:
        counts = ", ".join(f"{source} makes {count}" for source, count in columns.items())
        raise BadInput(
            f"the layouts of a mixture have to make the same number of columns: {counts}; see their option frames"
        )


def _options_of(name: str) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(_LAYOUTS[_OPTIONS_AS.get(name, name)]).parameters.values()
    return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


_TYPES: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "Mapping[str, str]": ("texts by name like {{RAP: Sing it.}}", str),
    "int": ("a number like {}", int),
    "float": ("a number like {}", (int, float)),
    "bool": ("true or false", bool),
    "str": ("text like {!r}", str),
    "Sequence[int]": ("a list of whole numbers", int),
    "Sequence[str]": ("a list of texts", str),
}


def _typed(what: str, value: Any, parameter: inspect.Parameter) -> Any:
    """`value`, lists as lists, if it is of the parameter's type; else BadInput."""
    wanted, kind = _TYPES[parameter.annotation]
    if parameter.annotation.startswith("Mapping"):
        if not isinstance(value, Mapping) or not all(isinstance(part, kind) for part in (*value, *value.values())):
            raise BadInput(f"{what} must be {wanted.format()}, got {value!r}")
        return dict(value)
    many = parameter.annotation.startswith("Sequence")
    found = list(value) if many and isinstance(value, Sequence) and not isinstance(value, str) else value
    parts = found if many and isinstance(found, list) else [found]
    fits = all(isinstance(part, kind) and (kind is bool or not isinstance(part, bool)) for part in parts)
    if not fits or many != isinstance(found, list):
        raise BadInput(f"{what} must be {wanted.format(parameter.default)}, got {value!r}")
    return found
