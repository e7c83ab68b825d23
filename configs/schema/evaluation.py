"""What a trained model is measured on beyond its losses: sets of things to hear, say or answer, and measurements."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omegaconf import MISSING


class MeasurementKind(StrEnum):
    asr = "asr"  # transcripts: word and character error rates
    tts = "tts"  # speech of texts, read back by an outside recogniser; voice against the prompt's; DNSMOS
    resynthesis = "resynthesis"  # recorded speech through codec and decoder, measured likewise beside the recording
    questions = "questions"  # answers in text to spoken or written questions: accuracy by a rule-based match
    perplexity = "perplexity"  # of text, among ids of text alone, beside the backbone's own
    codebooks = "codebooks"  # of each codebook's codes, a token, in a layout that the model was trained on
    tasks = "tasks"  # zero-shot sets of text, through lm-evaluation-harness


class Asked(StrEnum):
    spoken = "spoken"
    written = "written"


@dataclass
class EvaluationSetConfig:
    """One set, as it lies on a disk."""

    # data_pipeline/sources/evaluation has the kinds and their options; any kind of data_pipeline/sources/speech too
    kind: str = MISSING
    path: str | None = None  # relative to evaluation.folder; None: the run's own corpus (kind corpus)
    split: str | None = None  # the set's own word for a part of it, such as test-clean or zh; None: the kind says
    language: str | None = None  # where the set names none; None: the kind's own, else en
    options: dict[str, Any] = field(default_factory=dict)  # of the kind, checked against its signature


@dataclass
class MeasurementConfig:
    """One measurement, of each of its sets."""

    kind: MeasurementKind = MISSING
    sets: list[str] = field(default_factory=list)  # names among evaluation.sets
    limit: int | None = None  # items of a set that are measured, spread evenly over it; None: all
    batch: int = 8  # items given to the model together
    asked: Asked = Asked.spoken  # of questions: the question's sound, or its text
    answer_tokens: int = 64  # of questions: longest answer
    layout: str | None = None  # of questions and codebooks: a layout of the mixture; None: chat, and continuation
    window: int = 1024  # of perplexity: tokens that are read together; the first of them is given


@dataclass
class EvaluationConfig:
    """What `megaphone evaluate` and stages of kind evaluate measure. The judges (an outside recogniser, a speaker
    encoder, DNSMOS) are those of corpus.quality."""

    name: str = "none"
    model: str | None = None  # a Hugging Face folder with its vocabulary.json; None: the export of stage.weights' stage
    # Run folder (or stage:<name>) of the flow that makes mels of codes; None: nothing is heard of tts.
    decoder: str | None = None
    vocoder: str | None = None  # and of the vocoder that makes sound of mels; None: Griffin-Lim serves
    folder: str = "evaluation_sets"  # where sets lie
    require_sets: bool = False  # end where a set is missing; else it is told and left out
    players: int = 4  # items of a measurement and set that can be listened to on the page
    damaged_share: float = 0.01  # of a set's items that cannot be read; above it the evaluation ends
    device: str | None = None  # cpu, cuda or cuda:<n>; None: cuda if there
    bf16: bool = False  # the model's weights and activations in bfloat16, else float32
    sets: dict[str, EvaluationSetConfig] = field(default_factory=dict)
    measurements: dict[str, MeasurementConfig] = field(default_factory=dict)
