"""Layouts that hear through an encoder: what corpora have to keep for them, and a control for validation."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from configs.audio_input import audio_input_of
from configs.schema import Config
from data_pipeline.batch import FeatureSlots, Pack
from data_pipeline.building.listening import encoder_identity
from data_pipeline.corpus import Corpus
from data_pipeline.layouts import Layout
from runtime.exits import BadInput


def check_features(config: Config, layout: Layout, corpus: Corpus) -> None:
    """Raises BadInput where a corpus keeps not the features that the layout's slots hold, or those of another width or
    encoder than the model's."""
    if layout.hears is None:
        return
    name, _ = layout.hears
    if name not in corpus.features:
        kept = ", ".join(corpus.features) or "none"
        raise BadInput(
            f"{corpus.folder} has no features {name} (it has {kept}); build it with encoder and corpus.features"
        )
    audio = audio_input_of(config)
    if audio is None:
        return  # read without a model
    kept, width = corpus.features[name], audio.width
    if kept["width"] != width:
        raise BadInput(
            f"{corpus.folder}: features {name} are {kept['width']} wide, encoder {audio.encoder.name} {width}"
        )
    if audio.encoder.weights is not None:
        expected = encoder_identity(audio.encoder, kept["kind"])
        if kept["encoder"] != expected:
            raise BadInput(f"{corpus.folder}: features {name} are of {kept['encoder']}, not {expected}")


def spoken_documents_suffice(layout: Layout, corpus: Corpus) -> bool:
    """Whether a layout that needs features finds all documents that have some among those that have codes, as where
    corpora are built with both."""
    return layout.hears is not None and layout.hears[0] in corpus.features and bool(corpus.codecs)


# --- the control ------------------------------------------------------------------------------------------------------


class _Heard(NamedTuple):
    """A run of slots: in which pack, which of its runs, and of which utterance."""

    pack: int
    number: int
    utterance: str
    run: FeatureSlots


def with_others_sound(packs: Sequence[Pack]) -> list[Pack]:
    """`packs` in which each run of slots holds the vectors of another utterance.

    It is that of the next longer run, cut, or begun again, to the run's own length: so places, and whatever can be told
    from how many there are, stay as they were. Raises BadInput where all are of one utterance.
    """
    heard = sorted(_heard(packs), key=lambda one: (len(one.run.vectors), one.utterance, one.pack, one.number))
    slots = [list(pack.slots) for pack in packs]
    for place, one in enumerate(heard):
        after = heard[place + 1 :] + heard[:place]
        other = next((candidate for candidate in after if candidate.utterance != one.utterance), None)
        if other is None:
            raise BadInput("validation hears one utterance alone, and its control needs two; set adapter.control=false")
        vectors = np.resize(other.run.vectors, one.run.vectors.shape)  # begins again at its end
        slots[one.pack][one.number] = replace(one.run, vectors=vectors)
    return [replace(pack, slots=tuple(own)) for pack, own in zip(packs, slots, strict=True)]


def _heard(packs: Sequence[Pack]) -> list[_Heard]:
    found = []
    for place, pack in enumerate(packs):
        ends = list(accumulate(pack.lengths))
        for number, run in enumerate(pack.slots):
            key = pack.keys[bisect_right(ends, run.start)]
            utterance = key.partition("/")[2].partition("#")[0]  # without its source, and which piece it is
            found.append(_Heard(place, number, utterance, run))
    return found
