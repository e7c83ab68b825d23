"""Mixtures and the making of corpora: values that cannot work, refused in one line."""

from __future__ import annotations

import math

from configs.checks.topology import VOCABULARY_MULTIPLE
from configs.schema import Config, CorpusConfig, CutConfig, SourceConfig
from runtime.exits import BadInput


def check_mixture(config: Config) -> None:
    if not config.mixture.sources:
        raise BadInput("mixture.sources is empty: there is nothing to train on")
    for name, source in config.mixture.sources.items():
        _check_source(f"mixture.sources.{name}", source)


def _check_source(key: str, source: SourceConfig) -> None:
    if not 0 < source.weight < math.inf:
        raise BadInput(f"{key}.weight={source.weight}: has to be above 0, and finite")
    if source.epochs is not None and source.epochs < 1:
        raise BadInput(f"{key}.epochs={source.epochs}: has to be above 0, or null")
    if source.layout is None and not source.sources:
        raise BadInput(f"{key} has neither a layout nor sources of its own: give {key}.layout")
    if source.sources:
        for name in ("layout", "corpus", "options", "filter", "epochs"):
            if getattr(source, name):
                raise BadInput(f"{key}.{name} is of a mixture inside the mixture; give it to {key}.sources.*")
    for name, inner in source.sources.items():
        _check_source(f"{key}.sources.{name}", inner)


def check_cut(cut: CutConfig, where: str) -> None:
    """Raise BadInput for the first value of `cut`, the section `where` of a config, that cannot work."""
    if not 0 < cut.lower_threshold <= cut.threshold < 1:
        raise BadInput(
            f"{where}: needs 0 < lower_threshold <= threshold < 1, got {cut.lower_threshold} and {cut.threshold}"
        )
    for key in ("shortest_speech", "shortest_silence", "longest_silence", "padding"):
        if getattr(cut, key) < 0:
            raise BadInput(f"{where}.{key}={getattr(cut, key)}: has to be 0 or above")
    if cut.longest < 1 or cut.longest < 4 * cut.padding:
        raise BadInput(f"{where}.longest={cut.longest}: has to be at least 1 s and 4 x padding")
    if cut.channels not in ("mix", "each"):
        raise BadInput(f"{where}.channels={cut.channels}: not one of mix, each")


ROLES = ("system", "human", "assistant", "chosen", "rejected")  # in conversations, and the answers of preferences


def check_making(corpus: CorpusConfig) -> None:
    check_cut(corpus.cut, "corpus.cut")
    if len(set(corpus.specials)) < len(corpus.specials) or not all(corpus.specials):
        raise BadInput(f"corpus.specials={corpus.specials}: has a token twice, or an empty one")
    if corpus.vocabulary_rows is not None and (
        corpus.vocabulary_rows <= 0 or corpus.vocabulary_rows % VOCABULARY_MULTIPLE
    ):
        raise BadInput(
            f"corpus.vocabulary_rows={corpus.vocabulary_rows}: has to be a multiple of {VOCABULARY_MULTIPLE}, or null"
        )
    synthesis = corpus.synthesis
    for key in ("temperature", "seconds_per_character", "batch"):
        if not getattr(synthesis, key) > 0:
            raise BadInput(f"corpus.synthesis.{key}={getattr(synthesis, key)}: has to be above 0")
    if not 0 < synthesis.top_p <= 1:
        raise BadInput(f"corpus.synthesis.top_p={synthesis.top_p}: has to be above 0 and at most 1")
    for role in corpus.spoken_roles:
        if role not in ROLES:
            raise BadInput(f"corpus.spoken_roles={corpus.spoken_roles}: {role} is not one of {', '.join(ROLES)}")
    if corpus.spoken_roles and not corpus.voice.startswith("piper:"):
        raise BadInput(f"corpus.spoken_roles wants a voice that gives sound, and corpus.voice={corpus.voice} is none")
