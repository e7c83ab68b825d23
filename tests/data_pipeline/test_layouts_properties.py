"""What holds for every layout, over documents of all kinds."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import SourceConfig
from data_pipeline.batch import Sample, collate
from data_pipeline.layouts import _LAYOUTS, check_same_columns, find_layout, layouts_of, wanted_specials
from data_pipeline.layouts.groups import group_length, unframe, ungroup
from data_pipeline.packing import fill_packs, split_long
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from tests.data_pipeline.layout_material import GROUPED, RESIDUAL, SINGLE, lay, speak
from tests.data_pipeline.synthetic import SPECIALS

MARKED = {"marks": ["<|audio_start|>", "<|audio_end|>"]}
# layout, options, and the loss weights that its docstring speaks of
KINDS: list[tuple[str, dict[str, Any], set[float]]] = [
    ("asr", {}, {0, 1}),
    ("asr", {"audio_weight": 0.25, "marks": [], "task": "write:"}, {0.25, 1}),
    ("asr", {"encoder": "whisper", "stride": 4}, {0, 1}),
    ("channels", {"block": 16, "next_weight": 0.5}, {0.5}),
    ("asr_dialogue", {"instruction": "Write: ", "template": "chatml"}, {0, 1}),
    ("asr_dialogue", {"encoder": "whisper", "stride": 4, "system": "You write.", **MARKED}, {0, 1}),
    ("chat", {"form": "TQTA"}, {0, 1}),
    ("chat", {"form": "TQTA", "template": "llama3"}, {0, 1}),
    ("chat", {"form": "AQTA"}, {0, 1}),
    ("chat", {"form": "TAQTA", "loss": "all"}, {0, 1}),
    ("chat", {"form": "AQAA", "history": "audio", **MARKED}, {0, 1}),
    ("chat", {"form": "AQAA", "chunks": [4, 20], "audio_weight": 0.5}, {0, 0.5, 1}),
    ("chat", {"form": "TAQTA", "encoder": "whisper", "stride": 5, "history": "audio", **MARKED}, {0, 1}),
    ("chunked", {"text_chunk": 3, "audio_chunk": 20}, {1}),
    ("chunked", {"text_chunk": 3, "audio_chunk": 20, "share": 0.5, "least_ratio": 3.0, "text_weight": 0.0}, {0, 1}),
    ("continuation", {}, {1}),
    ("csm", {"depth_share": 0.25}, {0, 1}),
    ("interleaved", {"shortest": 1, "longest": 3}, {1}),
    ("intlv", {}, {0, 1}),
    ("itts", {"shortest": 2}, {0, 1}),
    ("spans", {"mean_length": 2.0, "ratio": 0.5}, {1}),
    ("spans", {"level": "token"}, {1}),
    ("text", {}, {1}),
    ("tts", {}, {0, 1}),
    ("tts_dialogue", {"system": "Be {speaker}.", "prompt_weight": 0.5}, {0, 0.5, 1}),
    ("tts_dialogue", {"unnamed": "Speak.", "clone_share": 0.5, "template": "chatml"}, {0, 1}),
    ("units", {"encoder": "whisper"}, {0, 1}),
    ("units", {"says": "both", "seconds": 0.5, "listen_weight": 0.5}, {0, 0.5, 1}),
]
# Answers to compare, and sound: test_preferences.py and test_layouts_resynthesis.py make such.
WITH_OTHER_DOCUMENTS = {"preferences", "resynthesis"}
FRAMED = {
    "asr",
    "asr_dialogue",
    "chat",
    "chunked",
    "continuation",
    "interleaved",
    "intlv",
    "itts",
    "spans",
    "text",
    "tts",
    "tts_dialogue",
}


def test_every_layout_is_in_the_list():
    assert {name for name, _, _ in KINDS} | WITH_OTHER_DOCUMENTS == set(_LAYOUTS)


def vocabulary_of(name: str, *, frames: bool) -> Vocabulary:
    return SINGLE if name == "channels" else RESIDUAL if frames or name == "csm" else GROUPED


def document(seed: int, utterances: int, vocabulary: Vocabulary, *, two_channels: bool) -> list[Utterance]:
    """Utterances of all kinds: without speech, text, word times, role; of one or two speakers; shorter than a group."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(utterances):
        words = " ".join(rng.choice(["in", "was,", "a", "word.", "waters"], int(rng.integers(0, 9))).tolist())
        role = ("human", "assistant")[number % 2] if rng.random() < 0.9 else "system"
        made = speak(
            vocabulary,
            float(rng.choice([0.03, 0.5, 1.0, 2.3])),
            rng,
            words,
            key=f"u{number}",
            speaker=str(rng.choice(["ann", "bob"])),
            role="" if two_channels else role,
            channel=number % 2 if two_channels else 0,
        )
        made = replace(made, features={"whisper": rng.random((round(50 * made.duration), 3)).astype(np.float16)})
        if rng.random() < 0.2:
            made = replace(made, words=())
        if rng.random() < 0.1 and not two_channels:
            made = replace(made, codes={}, words=())
        found.append(made)
    return found


def arrays(sample: Sample) -> list[np.ndarray]:
    targets = [array for _, target in sorted(sample.targets.items()) for array in (target.values, target.weight)]
    vectors = [run.vectors for run in sample.slots]
    return [sample.tokens, sample.loss_weight, sample.modality, sample.group, *targets, *vectors]


def check_sample(sample: Sample, vocabulary: Vocabulary, weights: set[float]) -> None:
    assert len(sample) > 0
    assert [array.dtype for array in arrays(sample)[:4]] == [np.int64, np.float32, np.uint8, np.int32]
    assert sample.tokens.shape == sample.loss_weight.shape == sample.modality.shape
    assert sample.group.shape == (len(sample),) and np.all(np.isin(np.diff(sample.group), (0, 1)))
    assert sample.tokens.min() >= -1 and sample.tokens.max() < vocabulary.size
    real = sample.tokens >= 0
    np.testing.assert_array_equal(sample.modality, vocabulary.modality_of(sample.tokens))
    assert np.all(sample.loss_weight[~real] == 0)
    assert set(np.unique(sample.loss_weight[real]).tolist()) <= {float(np.float32(weight)) for weight in weights}
    filled = np.zeros(len(sample), bool)
    for run in sample.slots:
        assert run.frames.sum() == len(run.vectors) and not filled[run.start : run.start + run.places].any()
        filled[run.start : run.start + run.places] = True
    np.testing.assert_array_equal(filled, ~real.reshape(len(sample), -1).any(axis=1))
    for target in sample.targets.values():
        assert len(target.values) == len(sample) and target.values.shape == target.weight.shape
        assert target.weight.dtype == np.float32 and target.weight.min() >= 0


def check_codes(sample: Sample, utterances: list[Utterance], vocabulary: Vocabulary) -> None:
    """The codes come back whole and in phase, and every stretch of them is one of the document's."""
    if sample.tokens.ndim == 2:
        audio = sample.modality[:, 0] > 0
        back = unframe(sample.tokens[audio], vocabulary)
    else:
        audio = sample.modality > 0
        back = ungroup(sample.tokens[audio], vocabulary)
        edges = np.diff(audio.astype(int), prepend=0, append=0)
        for start, end in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
            ungroup(sample.tokens[start:end], vocabulary)
        together = sample.group[audio].reshape(-1, group_length(vocabulary))
        assert np.all(together == together[:, :1])
    spoken = [u for u in utterances if u.spoken]
    for book in vocabulary.codebooks:
        known = {tuple(frame) for u in spoken for frame in u.codes[book.name].T.tolist()} | {(0,) * book.rows}
        assert {tuple(frame) for frame in back[book.name].T.tolist()} <= known


def check_cuts(samples: list[Sample], longest: int, padding_id: int) -> None:
    """Cut, packed and collated: nothing is lost, and no group is in two pieces."""
    pieces = [piece for sample in samples for piece in split_long(sample, longest)]
    assert len({piece.key for piece in pieces}) == len(pieces)
    for sample in samples:
        own = [piece for piece in pieces if piece.key.split("#")[0] == sample.key]
        for array, *parts in zip(arrays(sample)[:4], *(arrays(piece)[:4] for piece in own), strict=True):
            np.testing.assert_array_equal(np.concatenate(parts), array)
        assert all(before.group[-1] != after.group[0] for before, after in pairwise(own))
        assert sum(piece.audio_seconds for piece in own) == pytest.approx(sample.audio_seconds)
        for name, target in sample.targets.items():
            np.testing.assert_array_equal(np.concatenate([piece.targets[name].values for piece in own]), target.values)
        assert sum(run.places for piece in own for run in piece.slots) == sum(run.places for run in sample.slots)
        if sample.slots:
            vectors = [run.vectors for piece in own for run in piece.slots]
            np.testing.assert_array_equal(np.concatenate(vectors), np.concatenate([r.vectors for r in sample.slots]))
    packs = fill_packs(pieces, longest, padding_id)
    batch = collate(packs)
    assert batch.tokens.shape[1] == longest * len(packs)
    for splice in batch.splices.values():
        assert splice.frames.sum() == len(splice.vectors) == splice.runs[-1]
        assert bool((batch.tokens[0][splice.places] == -1).all())


@pytest.mark.parametrize(
    "name, options, weights",
    [*KINDS, *((name, {**options, "frames": True}, weights) for name, options, weights in KINDS if name in FRAMED)],
)
@given(seed=st.integers(0, 100_000), utterances=st.integers(0, 6), two_channels=st.booleans())
@settings(max_examples=12)
def test_what_holds_for_every_layout(name, options, weights, seed, utterances, two_channels):
    vocabulary = vocabulary_of(name, frames="frames" in options)
    if name == "channels":
        utterances, two_channels = min(utterances, 2), True
    spoken = document(seed, utterances, vocabulary, two_channels=two_channels)
    before = [{k: v.copy() for k, v in u.codes.items()} for u in spoken]
    samples = lay(name, spoken, vocabulary, seed, **options)
    again = lay(name, spoken, vocabulary, seed, **options)
    for utterance, codes in zip(spoken, before, strict=True):
        assert all(np.array_equal(utterance.codes[book], codes[book]) for book in codes)
    assert len({sample.key for sample in samples}) == len(samples)
    layout = find_layout(name, options)
    columns = layout.columns(vocabulary)
    for sample, same in zip(samples, again, strict=True):
        assert sample.key == same.key and sample.key.startswith("d/")
        for one, other in zip(arrays(sample), arrays(same), strict=True):
            np.testing.assert_array_equal(one, other)
        assert (sample.tokens.shape[1] if sample.tokens.ndim > 1 else 1) == columns
        assert not layout.plain or not (sample.tokens.ndim > 1 or sample.targets)
        assert {(run.encoder, run.stride) for run in sample.slots} <= {layout.hears}
        check_sample(sample, vocabulary, weights)
        if name != "channels":
            check_codes(sample, spoken, vocabulary)
    if not layout.draws:
        rng = np.random.default_rng(seed)
        layout(spoken, vocabulary, rng)
        assert rng.bit_generator.state == np.random.default_rng(seed).bit_generator.state
    if samples:
        widest = max(int(np.bincount(sample.group).max()) for sample in samples)
        check_cuts(samples, max(widest, 24), vocabulary.special("<|endoftext|>"))


@pytest.mark.parametrize("name, options, weights", KINDS)
def test_ordinary_documents_give_samples_with_every_weight(name, options, weights):
    """Else the properties would hold of nothing."""
    vocabulary = vocabulary_of(name, frames=False)
    found: set[float] = set()
    for seed in range(30):
        number = 2 if name == "channels" else 5
        for sample in lay(
            name, document(seed, number, vocabulary, two_channels=name == "channels"), vocabulary, **options
        ):
            found |= set(sample.loss_weight[sample.tokens >= 0].tolist())
    assert found == weights


# --- what layouts need ------------------------------------------------------------------------------------------


def test_special_tokens_that_a_mixture_wants():
    layouts = [
        find_layout("asr", {}),
        find_layout("chat", {"begin": "<s>"}),
        find_layout("asr", {"task": "<listen> to"}),
    ]
    assert wanted_specials(layouts) == (
        "<listen>", "<s>", "<|BOT|>", "<|EOT|>", "<|audio_end|>", "<|audio_start|>", "<|transcribe|>"
    )  # fmt: skip
    assert sorted(SPECIALS) == list(
        wanted_specials([find_layout(n, {}) for n in ("asr", "tts", "interleaved", "text")])
    )
    assert wanted_specials([find_layout("text", {}), find_layout("spans", {"marks": []})]) == ()


def test_layouts_of_a_nested_mixture():
    asr, text = SourceConfig(layout="asr", weight=1.0), SourceConfig(layout="text", weight=2.0)
    unused = SourceConfig(layout="karaoke", weight=0.0)
    mixture = {"words": text, "speech": SourceConfig(weight=1.0, sources={"asr": asr, "unused": unused})}
    assert {path: layout.name for path, layout in layouts_of(mixture).items()} == {"speech.asr": "asr", "words": "text"}
    unused.weight = 1.0
    with pytest.raises(BadInput, match=r"source speech\.unused: unknown layout 'karaoke'"):
        layouts_of(mixture)


def test_columns_of_a_mixture_have_to_agree():
    assert (
        check_same_columns({"a": find_layout("text", {"frames": True}), "b": find_layout("csm", {})}, RESIDUAL) is None
    )
    with pytest.raises(BadInput, match="a makes 1, b makes 5"):
        check_same_columns({"a": find_layout("text", {}), "b": find_layout("csm", {})}, RESIDUAL)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("chat", {"heads": "<|BOT|>"}, "option heads must be a list of texts"),
        ("chat", {"chunks": [1.5, 2]}, "option chunks must be a list of whole numbers"),
        ("chat", {"form": 3}, "option form must be text like 'AQTA'"),
        ("asr", {"frames": 1}, "option frames must be true or false"),
        ("asr", {"marks": ["<a>", 2]}, "option marks must be a list of texts"),
        ("csm", {"depth_share": [0.5]}, "must be a number like 0.0625"),
        ("tts_dialogue", {"styles": ["RAP"]}, "option styles must be texts by name like {RAP: Sing it.}"),
    ],
)
def test_options_of_another_type_are_refused(name, options, message):
    with pytest.raises(BadInput, match=message):
        find_layout(name, options)


@pytest.mark.parametrize(
    "name, options",
    [("spans", {"ratio": 1.5}), ("spans", {"mean_length": 0.5}), ("spans", {"level": "letter"}),
     ("intlv", {"pause": 0.0}), ("intlv", {"audio_weight": -1.0}), ("itts", {"shortest": 0}),
     ("chunked", {"text_chunk": 0}), ("chunked", {"audio_weight": -1.0}), ("chunked", {"share": 1.5}),
     ("chunked", {"least_ratio": -1.0}), ("asr", {"stride": 0}), ("chat", {"stride": 0}),
     ("tts_dialogue", {"prompt_weight": -1.0}), ("csm", {"depth_share": 2.0}), ("channels", {"next_weight": -1.0}),
     ("channels", {"longest_run": 0}), ("asr_dialogue", {"stride": 0}), ("tts_dialogue", {"clone_share": 1.5}),
     ("tts_dialogue", {"clone_share": 0.5, "system": "Be {speaker}."})],
)  # fmt: skip
def test_values_out_of_range_are_refused_with_no_document_at_hand(name, options):
    with pytest.raises(BadInput):
        lay(name, [], vocabulary_of(name, frames=False), **options)
