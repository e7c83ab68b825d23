"""Measures by name, from their settings."""

from __future__ import annotations

from collections.abc import Callable

from configs.checks.quality import check_quality
from configs.schema import QualityConfig
from data_pipeline.quality.clipping import Clipping
from data_pipeline.quality.dnsmos import Dnsmos
from data_pipeline.quality.language import Language
from data_pipeline.quality.level import Level
from data_pipeline.quality.measure import Measure
from data_pipeline.quality.rate import Rate
from data_pipeline.quality.speaker import SpeakerConsistency
from data_pipeline.quality.speech import SpeechShare
from data_pipeline.quality.transcript import Transcript

_OPEN: dict[str, Callable[[QualityConfig], Measure]] = {
    "level": lambda config: Level(),
    "clipping": lambda config: Clipping(),
    "rate": lambda config: Rate(),
    "speech": lambda config: SpeechShare(),
    "dnsmos": lambda config: Dnsmos(config.dnsmos),
    "transcript": lambda config: Transcript(config.recogniser),
    "language": lambda config: Language(),
    "speaker": lambda config: SpeakerConsistency(config.speaker),
}


def open_measures(config: QualityConfig) -> list[Measure]:
    """The measures of `config.measures`, in that order. Cheap: weights are read by the first `measure`, so that
    `identity` can be asked for anywhere. Raises BadInput for a measure that is not there."""
    check_quality(config)
    return [_OPEN[name](config) for name in config.measures]
