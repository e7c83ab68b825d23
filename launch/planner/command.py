"""`megaphone plan`: topologies of a stage on so many GPUs, ranked."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from configs.checks.topology import VOCABULARY_MULTIPLE
from configs.schema import Config, Precision
from launch.planner import table
from launch.planner.attached import Attached, Encoder, Heads, parse, with_audio_input
from launch.planner.hardware import GIB, Gpu, gpu_kind
from launch.planner.rank import Proposal, Ranking, rank
from launch.planner.work import learnt
from launch.selection import read_words
from runtime.exits import DONE, BadInput

# What a plan does not depend on, and a config has to have all the same.
_UNASKED = {"codec": "whisper_dual", "corpus": "quickstart", "mixture": "quickstart", "run.name": "plan"}
_MOST_GPUS = 65536


def plan(options: Namespace) -> int:
    """Print the ranking. Raises BadInput where the GPU is not known or no topology fits."""
    gpu = gpu_kind(options.gpu)
    if not 0 <= options.headroom < 1:
        raise BadInput(f"--headroom {options.headroom}: has to be from 0 to below 1")
    config = stage_on_gpus(options.settings)
    rows = vocabulary_rows(config)
    attached = Attached(parse(Encoder, options.encoder, "--encoder"), parse(Heads, options.heads, "--heads"))
    attached = with_audio_input(attached, config, learnt(config, rows).trains)

    def ranked(gpus: int) -> Ranking:
        return rank(config, gpus, gpu, rows, options.headroom, attached, options.top)

    found = ranked(options.gpus)
    if not found.proposals:
        raise BadInput(_nothing(options.gpus, gpu, options.headroom, found, ranked))
    if options.json:
        _print_json(found)
        return DONE
    print(table.header(config, options.gpus, gpu.name))
    print(
        f"{found.tried:,} topologies can be trained; the fastest that leave {options.headroom:.0%} of a GPU's "
        f"{gpu.memory / GIB:.0f} GiB free, predicted, not measured:\n"
    )
    print("\n".join(table.rows(found.proposals)))
    print("\nGiB a GPU, of the fullest stage:\n")
    print("\n".join(table.memory_rows(found.proposals)))
    best = found.proposals[0]
    print(f"\nthe first one:\n  {table.settings(best.config)}")
    if options.explain:
        print()
        print("\n".join(table.explanation(best)))
    return DONE


def vocabulary_rows(config: Config) -> int:
    """Rows of the embedding and the head, padding included. Raises BadInput where only a tokenizer that is not at hand
    would tell."""
    if config.corpus.vocabulary_rows is not None:
        return config.corpus.vocabulary_rows
    from data_pipeline.text_tokenizer import PACKAGE, load_tokenizer_json

    spec = config.backbone.tokenizer
    if not spec.startswith(PACKAGE) and not Path(spec).is_dir():
        raise BadInput(
            f"backbone.tokenizer={spec} is no folder here to count the vocabulary by; corpus.vocabulary_rows=<rows of "
            "the embedding, audio codes included> says it"
        )
    _, ids = load_tokenizer_json(spec)
    ids += len(config.corpus.specials) + sum(book.size * book.rows for book in config.codec.codebooks.values())
    return -(-ids // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def stage_on_gpus(words: Sequence[str]) -> Config:
    """The stage that is meant, or a recipe's first, as one would train it on GPUs: bf16 without fp8, and kernels that
    need not be deterministic. Without a recipe, what a plan does not depend on is filled in."""
    given = {word.partition("=")[0] for word in words}
    if "recipe" not in given:
        words = [*words, *(f"{key}={value}" for key, value in _UNASKED.items() if key not in given)]
    config = read_words(words).first()
    return replace(config, train=replace(config.train, precision=Precision.bf16, fp8=None, deterministic=False))


def _nothing(ranks: int, gpu: Gpu, headroom: float, found: Ranking, ranked: Callable[[int], Ranking]) -> str:
    """Why nothing can be proposed, and the nearest thing that can."""
    if found.smallest is None:
        near = next((fewer for fewer in range(ranks - 1, max(0, ranks - 65), -1) if ranked(fewer).tried), None)
        hint = f"; {near} can" if near else ""
        return f"no topology of {ranks} GPUs can be trained{hint}. One reason: {found.refusals.most()}"
    needed, room = found.smallest.fullest.total / GIB, gpu.memory * (1 - headroom) / GIB
    said = (
        f"no topology of {ranks} {gpu.name} holds it: {table.topology(found.smallest.config)} comes nearest and needs "
        f"{needed:.0f} of {room:.0f} GiB a GPU"
    )
    more = ranks * 2
    while more <= min(_MOST_GPUS, ranks * 1024):
        larger = ranked(more)
        if larger.proposals:
            return f"{said}; {more} would do, as {table.topology(larger.proposals[0].config)}"
        more *= 2
    return said


def _print_json(found: Ranking) -> None:
    print(json.dumps([_described(one) for one in found.proposals], indent=2))


def _described(one: Proposal) -> dict[str, object]:
    return {
        "topology": table.topology(one.config),
        "settings": table.settings(one.config),
        "seconds": one.seconds,
        "mfu": one.mfu,
        "bubble": one.bubble,
        "exposed": one.exposed,
        "tokens_a_day": one.tokens_a_day,
        "gpu_hours": one.gpu_hours,
        "parts": asdict(one.costs.parts),
        "memory": asdict(one.fullest) | {"total": one.fullest.total},
    }
