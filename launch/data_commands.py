"""What each `megaphone data` command does: thin wiring between a command line and `data_pipeline`."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from configs.schema import Config
from launch.selection import read_words
from runtime.exits import DONE, BadInput
from runtime.signals import stoppable

STATS_WIDTH = 110  # characters that the widest table of statistics wants


def data_build(options: Namespace) -> int:
    config = read_words(options.settings).first()
    print(build_corpus(config))
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


def data_stats(options: Namespace) -> int:
    """What a corpus holds, split by split, as tables; `--json` also as a file."""
    from rich.console import Console

    from data_pipeline.corpus import Corpus
    from data_pipeline.looking.stats import as_json, gather, print_tables
    from data_pipeline.shards import replace_atomically

    corpus = Corpus.open(_corpus(options.corpus)[0])
    with stoppable() as stop:
        found = gather(corpus, read=None if options.read_all else options.read, stop=stop)
    print_tables(corpus, found, Console(width=max(Console().width, STATS_WIDTH)))
    if options.json:
        replace_atomically(Path(options.json), json.dumps(as_json(corpus, found), indent=2, allow_nan=False).encode())
    return DONE


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


def _corpus(words: list[str]) -> tuple[Path, Config | None]:
    """The corpus that a command line means: a folder, or the one of a recipe's settings, then with its config."""
    folders = [word for word in words if "=" not in word]
    if len(folders) > 1:
        raise BadInput(f"one corpus at a time: {' or '.join(folders)}")
    if words == folders:
        if not folders:
            raise BadInput("name a corpus: its folder, or settings such as recipe=quickstart")
        return Path(folders[0]), None
    from data_pipeline.build import corpus_folder

    settings = [word for word in words if "=" in word] + [f"corpus.folder={folder}" for folder in folders]
    config = read_words(settings).first()
    return corpus_folder(config), config


def build_corpus(config: Config) -> Path:
    """The corpus of a recipe, built or found finished; stop signals end it between two pieces of work."""
    from data_pipeline.build import build_corpus as build

    with stoppable() as stop:
        return build(config, stop=stop)
