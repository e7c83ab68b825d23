"""What can be measured and how words can be timed, and settings of both that cannot be."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from configs.schema import AlignmentConfig, QualityConfig
from runtime.exits import BadInput

# Columns of each measure of one utterance.
MEASURES: dict[str, tuple[str, ...]] = {
    "level": ("level_db", "loudness_lufs"),
    "clipping": ("clipped_share",),
    "rate": ("characters_per_second",),
    "speech": ("speech_share",),
    "dnsmos": ("dnsmos_sig", "dnsmos_bak", "dnsmos_ovrl", "dnsmos_p808"),
    "transcript": ("wer", "cer"),
    "language": ("language_probability",),
    "speaker": ("speaker_consistency",),
}
# Columns that need the whole corpus: `megaphone data measure` adds them, a build does not.
CORPUS_MEASURES: dict[str, tuple[str, ...]] = {
    "duplicates": ("duplicate_audio", "duplicate_text"),
    "speaker_similarity": ("speaker_similarity",),
}
# What a stage that generates speech can measure of it: beside those of a build, how like the prompt's voice it is.
GENERATION_MEASURES = MEASURES | {"speaker_similarity": CORPUS_MEASURES["speaker_similarity"]}
ALIGNERS = ("attention", "ctc")


def check_quality(config: QualityConfig) -> None:
    """Raise BadInput for a measure that a build does not know, or names twice."""
    for name in config.measures:
        if name in CORPUS_MEASURES:
            line = f"corpus.quality.measures: {name} needs the whole corpus; megaphone data measure adds it afterwards"
            raise BadInput(line)
    check_measures("corpus.quality.measures", config.measures, MEASURES)


def check_measures(option: str, names: Sequence[str], known: Collection[str]) -> None:
    """Raise BadInput, which names the option, for a measure that is not `known`, or is named twice."""
    for name in names:
        if name not in known:
            raise BadInput(f"{option}: no measure {name}; there are {', '.join(known)}")
    if len(set(names)) != len(names):
        raise BadInput(f"{option}={list(names)}: a measure is named twice")


def check_alignment(config: AlignmentConfig) -> None:
    if config.aligner is not None and config.aligner not in ALIGNERS:
        raise BadInput(f"corpus.alignment.aligner={config.aligner}: not one of {', '.join(ALIGNERS)}, or null")
    if config.aligner == "ctc" and config.model is None:
        raise BadInput("corpus.alignment.aligner=ctc needs corpus.alignment.model: a CTC model's folder or hub name")
    if not 1 <= config.window <= 600:
        raise BadInput(f"corpus.alignment.window={config.window}: has to be from 1 to 600 seconds")
