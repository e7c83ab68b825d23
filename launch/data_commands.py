"""What each `megaphone data` command does: thin wiring between a command line and `data_pipeline`."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from configs.schema import Config
from launch.selection import read_words
from runtime.exits import DONE
from runtime.signals import stoppable


def data_build(options: Namespace) -> int:
    """All of a corpus or, where `corpus.task` or a Slurm array says so, a task's share of it."""
    from data_pipeline.build import build_share, share_of

    config = read_words(options.settings).first()
    with stoppable() as stop:
        folder = build_share(config, share_of(config.corpus, os.environ), stop=stop)
    if folder is not None:
        print(folder)
    return DONE


def data_merge(options: Namespace) -> int:
    from data_pipeline.build import merge_corpus

    with stoppable() as stop:
        print(merge_corpus(read_words(options.settings).first(), stop=stop))
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


def build_corpus(config: Config) -> Path:
    """The corpus of a recipe, built or found finished; stop signals end it between two pieces of work."""
    from data_pipeline.build import build_corpus as build

    with stoppable() as stop:
        return build(config, stop=stop)
