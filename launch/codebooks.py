"""Whether all that a stage works with speaks of the same codes: its corpora, and the models that it begins with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from checkpoints.layout import complete_checkpoints
from checkpoints.manifest import MANIFEST_FILE, read_manifest
from checkpoints.safety import read_json_object
from configs.checks.ppo import PPO
from configs.schema import Config, SourceConfig, StageKind
from data_pipeline.build import corpus_folder
from data_pipeline.codebooks import CODEBOOKS_FILE, apart, codebooks_in
from data_pipeline.corpus import Corpus
from data_pipeline.remote.opening import corpus_at
from runtime.exits import BadInput

_ADVICE = (
    "a corpus whose codebooks are learnt takes those of an earlier one by codec.weights.centroids (its folder, or "
    "stage:<name>)"
)


def require_same_codebooks(config: Config) -> None:
    """Raise BadInput where two corpora of this stage, or one and a model that it begins with, are known to have other
    codebooks, or a model other ids for them. What does not tell, such as a converted text LLM, is taken as it is."""
    corpus = Corpus.open(corpus_folder(config))
    known = codebooks_in(corpus)
    for option, where in _corpora("mixture.sources", config.mixture.sources):
        folder = corpus_at(where, config)
        for name in apart(known, codebooks_in(Corpus.open(folder))):
            raise BadInput(f"{option}={where}: codebook {name} is another than that of {corpus.folder}; {_ADVICE}")
    models = list(_checkpoints(config, _models(config)))
    for option, checkpoint in (*models, *_checkpoints(config, _decoders(config))):
        if (checkpoint / CODEBOOKS_FILE).is_file():
            for name in apart(known, read_json_object(checkpoint / CODEBOOKS_FILE)):
                raise BadInput(
                    f"{option}: {checkpoint} was trained on another codebook {name} than that of {corpus.folder}; "
                    + _ADVICE
                )
    for option, checkpoint in models:
        _require_same_ids(corpus, option, checkpoint)


def _require_same_ids(corpus: Corpus, option: str, checkpoint: Path) -> None:
    ranges: Mapping[str, Any] = (read_manifest(checkpoint).vocabulary or {}).get("ranges", {})
    for book in corpus.vocabulary.codebooks:
        ids = corpus.vocabulary.ranges[book.name]
        theirs = ranges.get(book.name, [ids.start, ids.stop])
        if theirs != [ids.start, ids.stop]:
            raise BadInput(
                f"{option}: in {checkpoint} codebook {book.name} has the ids {theirs[0]} to {theirs[1]}, in "
                f"{corpus.folder} {ids.start} to {ids.stop}; move its rows with megaphone checkpoint vocab"
            )


def _corpora(where: str, sources: Mapping[str, SourceConfig]) -> Iterator[tuple[str, str]]:
    for name, source in sources.items():
        if source.corpus is not None:
            yield f"{where}.{name}.corpus", source.corpus
        yield from _corpora(f"{where}.{name}.sources", source.sources)


def _models(config: Config) -> Iterator[tuple[str, str | None]]:
    """Option and name of the models that a stage begins with: stages, run folders or checkpoints."""
    yield from ((f"merge.weights.{name}", name) for name in config.merge.weights)
    if config.stage.kind is not StageKind.decoder and config.stage.weights != "backbone":
        yield "stage.weights", config.stage.weights
    if config.stage.objective == PPO:
        yield "ppo.reward", config.ppo.reward


def _decoders(config: Config) -> Iterator[tuple[str, str | None]]:
    """The same of what makes sound of codes, whatever their ids."""
    if config.stage.kind is StageKind.generate:
        yield "generation.decoder", config.generation.decoder
    if config.stage.kind is StageKind.evaluate:
        yield "evaluation.decoder", config.evaluation.decoder


def _checkpoints(config: Config, named: Iterable[tuple[str, str | None]]) -> Iterator[tuple[str, Path]]:
    """What is set, and the native checkpoint that it leads to, a run's newest, where there is one."""
    stages = Path(config.run.folder).parent
    for option, name in named:
        runs = () if name is None else (stages / name, Path(name))
        found = [path for run in runs for path in complete_checkpoints(run / "checkpoints")[-1:]]
        found += [run for run in runs if (run / MANIFEST_FILE).is_file()]
        yield from ((f"{option}={name}", path) for path in found[:1])
