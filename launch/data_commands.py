"""What each `megaphone data` command does: thin wiring between a command line and `data_pipeline`."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import Config, Launcher, SourceConfig
from launch.earlier import require_settled, settled
from launch.notify import hide_words
from launch.selection import read_words
from runtime.exits import DONE, BadInput
from runtime.signals import stoppable

if TYPE_CHECKING:
    from data_pipeline.layouts import Layout

STATS_WIDTH = 110  # characters that the widest table of statistics wants


def data_build(options: Namespace) -> int:
    """All of a corpus or, where `corpus.task` or a Slurm array says so, a task's share of it; or jobs that do."""
    from data_pipeline.build import build_share, share_of

    words = hide_words(options.settings)
    config = settled(read_words(words).first())
    require_settled(config)
    if config.launcher is Launcher.slurm:
        return _submit(config, words)
    with stoppable() as stop:
        share = share_of(config.corpus, os.environ)
        folder = build_share(config, share, stop=stop, features_only=options.features)
    if folder is not None:
        print(folder)
    return DONE


def _submit(config: Config, words: list[str]) -> int:
    from launch.slurm.submit import submit_corpus

    submitted = submit_corpus(config, words)
    for job in submitted:
        print(f"{job.kind:<8} job {job.id}: {job.name}")
    where = f"submitted; see megaphone status {config.run.folder}"
    print(f"megaphone: {where if submitted else 'this corpus is there already'}", flush=True)
    return DONE


def data_merge(options: Namespace) -> int:
    from data_pipeline.build import merge_corpus

    with stoppable() as stop:
        print(merge_corpus(settled(read_words(options.settings).first()), stop=stop))
    return DONE


def data_entropy(options: Namespace) -> int:
    from data_pipeline.build import corpus_folder
    from data_pipeline.corpus import SPLITS, Corpus
    from data_pipeline.entropy import unigram_entropy

    corpus = Corpus.open(corpus_folder(read_words(options.settings).first()))
    for split in SPLITS:
        for name, nats in unigram_entropy(corpus, split).items():
            print(f"{split:<6} {name:<12} {nats:.4f} nats a token")
    return DONE


def data_inspect(options: Namespace) -> int:
    """One sample on the terminal; `--layout` with what the loss covers, `--html` and `--spectrogram` as files."""
    from rich.console import Console

    from data_pipeline.corpus import Corpus
    from data_pipeline.looking.inspect import find, print_sample
    from data_pipeline.looking.laid import lay
    from data_pipeline.looking.sample_page import write_sample_page
    from data_pipeline.looking.samples import read_sound
    from data_pipeline.looking.spectrogram import spectrogram_png
    from data_pipeline.shards import replace_atomically

    picture, page = _file(options.spectrogram), _file(options.html)
    folder, config = _corpus(options.corpus)
    layout = _layout(options.layout, config) if options.layout else None
    corpus = Corpus.open(folder)
    if layout is not None:
        layout.check(corpus.vocabulary)
    found = find(corpus, options.split, options.sample)
    laid = [] if layout is None else lay(layout, found.document, corpus.vocabulary, options.seed)
    laid = [sample for sample in laid if sample.key.endswith(f"/{found.utterance.key}")] or laid  # its own, or all
    print_sample(found, corpus, laid, Console(soft_wrap=True, highlight=False))
    if picture:
        if found.audio is None:
            raise BadInput(f"{found.utterance.key} has no sound in the corpus, so it has no spectrogram")
        replace_atomically(picture, spectrogram_png(*read_sound(found.audio, found.utterance.key)))
    if page:
        write_sample_page(page, found, corpus, options.layout or "", laid)
    return DONE


def _layout(name: str, config: Config | None) -> Layout:
    """The layout of the mixture's source `name`, with its options; else the layout of that name as it is."""
    from data_pipeline.layouts import find_layout

    source = _source(name, config.mixture.sources) if config else None
    if source is not None and source.layout is not None:
        return find_layout(source.layout, source.options)
    return find_layout(name, {})


def _source(name: str, sources: Mapping[str, SourceConfig]) -> SourceConfig | None:
    """The source `name` of a mixture or of one inside it."""
    inside = (_source(name, source.sources) for source in sources.values())
    return sources.get(name) or next((source for source in inside if source is not None), None)


def data_stats(options: Namespace) -> int:
    """What a corpus holds, split by split, as tables; `--json` also as a file."""
    from rich.console import Console

    from data_pipeline.corpus import Corpus
    from data_pipeline.looking.stats import as_json, gather, print_tables
    from data_pipeline.shards import replace_atomically

    file = _file(options.json)
    corpus = Corpus.open(_corpus(options.corpus)[0])
    with stoppable() as stop:
        found = gather(corpus, read=None if options.read_all else options.read, stop=stop)
    print_tables(corpus, found, Console(width=max(Console().width, STATS_WIDTH)))
    if file:
        replace_atomically(file, json.dumps(as_json(corpus, found), indent=2, allow_nan=False).encode())
    return DONE


def data_report(options: Namespace) -> int:
    """The corpus as one page, with the funnels of `--filter` or of a recipe's mixture; says where it is."""
    from data_pipeline.corpus import Corpus
    from data_pipeline.looking.report import REPORT_FILE, write_corpus_report
    from data_pipeline.looking.stats import gather
    from data_pipeline.quality.filters import parse_filter
    from data_pipeline.quality.funnel import measure_funnel

    folder, config = _corpus(options.corpus)
    corpus = Corpus.open(folder)
    path = _file(options.html) or corpus.folder / REPORT_FILE
    wanted = [options.filter] if options.filter else sorted(set(_filters(config.mixture.sources)) if config else ())
    conditions = [parse_filter(expression) for expression in wanted]
    with stoppable() as stop:
        found = gather(corpus, read=options.read, stop=stop)
        funnels = [measure_funnel(corpus.shards("train"), condition) for condition in conditions]
        write_corpus_report(path, corpus, found, funnels)
    print(path)
    return DONE


def _filters(sources: Mapping[str, SourceConfig]) -> Iterator[str]:
    """Filters of the sources that read the run's corpus, at all levels of a mixture."""
    for source in sources.values():
        if source.filter is not None and source.corpus is None:
            yield source.filter
        yield from _filters(source.sources)


def data_verify(options: Namespace) -> int:
    """Exit code 2 and one line where anything is wrong, after the problems kind by kind."""
    from data_pipeline.looking.verify import tell, verify

    folder, _ = _corpus(options.corpus)
    with stoppable() as stop:
        problems = verify(folder, quick=options.quick, workers=options.workers, stop=stop)
    if problems:
        raise BadInput(f"{folder} has {len(problems)} problems: {tell(problems, print)}")
    checked = "checksums agree" if options.quick else "every shard and sample is as the manifest tells"
    print(f"{folder}: {checked}")
    return DONE


def data_measure(options: Namespace) -> int:
    """Adds the columns of `--measures`; says what was damaged, and fails where nothing could be read."""
    from configs.schema import QualityConfig
    from data_pipeline.corpus import Corpus
    from data_pipeline.quality.corpus_measures import measure_corpus

    folder, config = _corpus(options.corpus)
    weights = config.corpus.quality if config else QualityConfig()
    names = [name for name in options.measures.split(",") if name]
    with stoppable() as stop:
        done = measure_corpus(
            Corpus.open(folder), weights, names, again=options.again, workers=options.workers, stop=stop
        )
    for line in done.damaged:
        print(f"damaged, not measured: {line}")
    print(f"{done.shards} shards measured, {done.skipped} had all of it before, {len(done.damaged)} samples damaged")
    return DONE


def data_duplicates(options: Namespace) -> int:
    import os

    from data_pipeline.corpus import Corpus
    from data_pipeline.quality.duplicates import find_duplicates

    folder, _ = _corpus(options.corpus)
    with stoppable() as stop:
        found = find_duplicates(Corpus.open(folder), options.workers or len(os.sched_getaffinity(0)), stop)
    print(f"sound: {found.audio:,} copies ({found.audio_hours:.2f} hours) of {found.compared_audio:,} utterances")
    print(f"text:  {found.text:,} copies of {found.compared_text:,} utterances")
    return DONE


def data_funnel(options: Namespace) -> int:
    from data_pipeline.corpus import Corpus
    from data_pipeline.quality.filters import parse_filter
    from data_pipeline.quality.funnel import as_html, as_text, measure_funnel
    from data_pipeline.shards import replace_atomically

    file = _file(options.html)
    condition = parse_filter(options.filter)
    folder, _ = _corpus(options.corpus)
    report = measure_funnel(Corpus.open(folder).shards(options.split), condition)
    print(as_text(report))
    if file:
        replace_atomically(file, as_html(report).encode())
    return DONE


def _file(word: str | None) -> Path | None:
    """A file to write, None where none is wanted. Raises BadInput where its folder is not there."""
    if word is None:
        return None
    path = Path(word)
    if not path.parent.is_dir():
        raise BadInput(f"cannot write {path}: there is no folder {path.parent}")
    return path


def _corpus(words: list[str]) -> tuple[Path, Config | None]:
    """The corpus that a command line means: a folder, a URL, or that of a recipe's settings, then with its config."""
    from data_pipeline.build import corpus_folder
    from data_pipeline.remote.opening import corpus_at

    folders = [word for word in words if "=" not in word]
    if len(folders) > 1:
        raise BadInput(f"one corpus at a time: {' or '.join(folders)}")
    if words == folders:
        if not folders:
            raise BadInput("name a corpus: its folder, or settings such as recipe=quickstart")
        return corpus_at(folders[0], Config()), None

    settings = [word for word in words if "=" in word] + [f"corpus.folder={folder}" for folder in folders]
    config = read_words(settings).first()
    return corpus_folder(config), config


def build_corpus(config: Config) -> Path:
    """The corpus of a recipe, built or found finished; stop signals end it between two pieces of work."""
    from data_pipeline.build import build_corpus as build

    with stoppable() as stop:
        return build(config, stop=stop)
