"""`stage:<name>` where a config names what an earlier stage made, whose folder is not known before it ran.

It stands for that stage's corpus in `corpus.folder`, in `codec.weights` (whose codebooks a corpus keeps), in the
`corpus` of a mixture's source, and in `distillation.teacher` for what a teacher said of one; for its run folder in
`evaluation.decoder`, `evaluation.vocoder`, their namesakes of `generation`, and `ppo.reward`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from configs.schema import Config, SourceConfig

PREFIX = "stage:"


FolderOf = Callable[[str], str | None]


def replaced(config: Config, corpus_of: FolderOf, run_of: FolderOf) -> Config:
    """A copy with every reference replaced by what `corpus_of` or `run_of` says of the stage's name; None leaves it as
    it is."""

    def known(value: str | None, folder_of: FolderOf = corpus_of) -> str | None:
        named = stage_in(value)
        return (named and folder_of(named)) or value

    def sources(given: Mapping[str, SourceConfig]) -> dict[str, SourceConfig]:
        return {
            name: replace(source, corpus=known(source.corpus), sources=sources(source.sources))
            for name, source in given.items()
        }

    weights = {part: known(value) or value for part, value in config.codec.weights.items()}
    return replace(
        config,
        corpus=replace(config.corpus, folder=known(config.corpus.folder)),
        codec=replace(config.codec, weights=weights),
        mixture=replace(config.mixture, sources=sources(config.mixture.sources)),
        distillation=replace(config.distillation, teacher=known(config.distillation.teacher)),
        ppo=replace(config.ppo, reward=known(config.ppo.reward, run_of)),
        evaluation=replace(
            config.evaluation,
            decoder=known(config.evaluation.decoder, run_of),
            vocoder=known(config.evaluation.vocoder, run_of),
        ),
        generation=replace(
            config.generation,
            decoder=known(config.generation.decoder, run_of),
            vocoder=known(config.generation.vocoder, run_of),
        ),
    )


def references(config: Config) -> Iterator[tuple[str, str]]:
    """The option and the stage's name of every reference."""
    yield from _named("corpus.folder", config.corpus.folder)
    for part, value in config.codec.weights.items():
        yield from _named(f"codec.weights.{part}", value)
    yield from _in_sources("mixture.sources", config.mixture.sources)
    yield from _named("evaluation.decoder", config.evaluation.decoder)
    yield from _named("evaluation.vocoder", config.evaluation.vocoder)
    yield from _named("generation.decoder", config.generation.decoder)
    yield from _named("generation.vocoder", config.generation.vocoder)
    yield from _named("distillation.teacher", config.distillation.teacher)
    yield from _named("ppo.reward", config.ppo.reward)


def stage_in(value: str | None) -> str | None:
    """The stage that a value refers to; None: it is no reference."""
    return value.removeprefix(PREFIX) if value is not None and value.startswith(PREFIX) else None


def _in_sources(where: str, given: Mapping[str, SourceConfig]) -> Iterator[tuple[str, str]]:
    for name, source in given.items():
        yield from _named(f"{where}.{name}.corpus", source.corpus)
        yield from _in_sources(f"{where}.{name}.sources", source.sources)


def _named(option: str, value: str | None) -> Iterator[tuple[str, str]]:
    stage = stage_in(value)
    if stage is not None:
        yield option, stage
