"""What a stage of kind generate makes of an earlier stage's model: speech, or what the model says of speech that is
there."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Made(Enum):
    speech = "speech"  # a corpus: texts continued to audio codes
    teacher = "teacher"  # the likeliest tokens at every place that a student of the same mixture is asked about


@dataclass
class GenerationConfig:
    """`stage.weights` names the model: an earlier stage, whose export it is, or an export's folder. A corpus is laid by
    the layout `tts` or `tts_dialogue` of the stage's mixture, as the model learnt it; its defaults are those of
    Step-Audio's tts.py where that has them. What is said is left in the corpus however it sounds: what is measured of
    it are columns, for the filters of those who learn from it.
    """

    makes: Made = Made.speech
    # --- speech
    texts: str = "world_english_bible"  # a text source, as corpus.text
    utterances: int = 1000  # texts that are said
    prompts: str | None = None  # condition on the utterances of the run's corpus that voices are taken from; None: all
    prompt_seconds: float = 10.0  # of a prompt at most
    # Of a model that learnt `tts`: whether the prompt's speech is given, and goes on with the new text. Else it speaks
    # as it likes. Models that learnt `tts_dialogue` are always given it.
    prompted: bool = True
    system: str = ""  # what stands before all, for a model that learnt `tts`
    document: int = 4  # texts said after one prompt, which make one document
    shard: int = 64  # texts of one shard, which is the unit of resumable work
    validation_share: float = 0.05  # of shards
    temperature: float = 0.7  # 0: the likeliest code
    top_p: float = 1.0
    repetition_window: int = 10  # tokens
    repetition_share: float = 0.1  # of the window; a last token that is more of it cannot come again at once; 1: it can
    longest: int = 8192  # tokens of prompt and speech
    seconds_per_character: float | None = 0.2  # longest speech, which then counts as not ended; None: `longest` alone
    # --- speech, heard
    # Run folder (or stage:<name>) of the flow that makes mels of codes; None: nothing is heard.
    decoder: str | None = None
    vocoder: str | None = None  # and of the vocoder that makes sound of mels; None: Griffin-Lim serves
    # Of that sound: names as in corpus.quality.measures, by its judges; and speaker_similarity, to the prompt's voice.
    measures: list[str] = field(default_factory=list)
    funnel: str | None = None  # condition; results and report tell what its clauses would drop, nothing is dropped here
    # --- teacher
    top_k: int = 32  # likeliest tokens kept at a place
    # --- both
    batch: int = 16  # texts, or samples, that the model has at once
    device: str | None = None  # cpu, cuda or cuda:<n>; None: cuda if there; under inference.engine=megatron None alone
    bf16: bool = False  # weights and activations in bfloat16, else float32
    seed: int = 1234
