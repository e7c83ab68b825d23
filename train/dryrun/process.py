"""The process that builds ranks, one after another, and says what it found."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from configs.compose import load_config
from configs.schema import Config
from runtime.exits import BAD_INPUT, DONE, FAILED, BadInput


def main(arguments: list[str]) -> int:
    """Do what the JSON file in `arguments` asks for. Returns the exit code.

    It has `configs`, resolved YAML files; `answer`, the file that gets a list of what `dry_run` returns for each;
    `gpus`, the size of the world; `ranks`, null for all that differ; `gpu`, whether to go a GPU's way through the code;
    and `step`, whether a training step is run.
    """
    try:
        request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
        prepare()
        logging.disable(logging.WARNING)  # of ranks that are nobody's
        asked = {key: request[key] for key in ("gpus", "ranks", "gpu", "step")}
        found = [dry_run(load_config(Path(file)), **asked, say=_say) for file in request["configs"]]
        Path(request["answer"]).write_text(json.dumps(found), encoding="utf-8")
    except BadInput as error:
        print(f"megaphone: error: {error}", file=sys.stderr, flush=True)
        return BAD_INPUT
    except Exception:
        traceback.print_exc()
        return FAILED
    return DONE


def prepare() -> None:
    """As `train.stage` does before it trains. Once a process."""
    import warnings

    import torch

    from train.engines import absent_names, optional_kernels
    from train.engines.cuda_on_cpu import emulate_cuda

    torch.set_num_threads(1)
    optional_kernels.hush_megatron()
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    emulate_cuda()
    absent_names.fill_in()


def dry_run(
    config: Config,
    gpus: int,
    ranks: list[int] | None = None,
    *,
    gpu: bool = True,
    step: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Build `ranks` of `gpus` (None: those that differ), JSON-ready: rows of the vocabulary, parameters of the whole
    model, how many ranks are alike, and a `RankReport` of each.

    Raises BadInput for whatever training refuses, with the rank's number where only that rank knows it.
    """
    from configs.audio_input import audio_input_of
    from configs.checks import check
    from configs.checks.ppo import PPO
    from data_pipeline.layouts import layouts_of
    from train.dryrun.rank import build_rank
    from train.dryrun.ranks import Exchange, Waiting, world_of
    from train.models.speech_lm import check_layouts

    check(config, gpus)
    check_layouts(layouts_of(config.mixture.sources), audio_input_of(config))
    if config.encoder is not None:  # nothing is read here
        config = replace(config, encoder=replace(config.encoder, weights=None))
    if config.train.fp8 is not None:
        config = replace(config, train=replace(config.train, fp8=None))
        say("train.fp8 needs TransformerEngine on a GPU: ranks are built without it; fp8 copies of weights come beside")
    rows = vocabulary_rows(config)
    if config.stage.objective == PPO:
        config = replace(config, stage=replace(config.stage, objective="sft"))
        say("of stage.objective=ppo the policy alone is built: critic, reward model and reference come beside it")
    if step and config.backbone.experts is not None:
        step = False
        say("where tokens go among experts depends on data, which is not here: ranks are built, and no step is run")
    world = world_of(config, gpus)
    distinct = world.distinct()
    wanted = distinct if ranks is None else ranks
    exchange, whole = Exchange(world), dict[str, int]()
    for rank in wanted:
        if not 0 <= rank < gpus:
            raise BadInput(f"--ranks: {rank} is none of the ranks 0 to {gpus - 1}")
    found: dict[int, Any] = {}
    while not set(distinct) | set(wanted) <= found.keys():  # ranks tell each other what they hold, some rounds of it
        for rank in sorted({*distinct, *wanted} - found.keys()):
            try:
                build = partial(build_rank, config, rows, exchange, rank, gpu=gpu, step=step and rank in wanted)
                report, names = _guarded(rank, build)
            except Waiting:
                continue
            whole.update(names)
            found[rank] = report
            say(f"rank {rank} of {gpus}, pipeline stage {report.stage}: {report.seconds:.1f} s")
    return {
        "stage": config.stage.name,
        "gpus": gpus,
        "vocabulary_rows": rows,
        "parameters": sum(whole.values()),
        "alike": gpus // len(distinct),
        "ranks": [asdict(found[rank]) for rank in wanted],
    }


def vocabulary_rows(config: Config) -> int:
    """Rows of embedding and head, from the settings alone: no corpus is there. Raises BadInput where they depend on a
    tokenizer that is not here."""
    if config.corpus.vocabulary_rows is not None:
        return config.corpus.vocabulary_rows
    from data_pipeline.building.parts import vocabulary_of

    try:
        return vocabulary_of(config).padded_size
    except BadInput as error:
        raise BadInput(f"{error}; corpus.vocabulary_rows=<n> says how many rows there will be") from error


def _guarded(rank: int, build: Callable[[], Any]) -> Any:
    """`build`, its errors with the number of the rank that they are of."""
    try:
        return build()
    except BadInput as error:
        raise BadInput(f"rank {rank}: {error}") from error
    except (RuntimeError, ValueError, AssertionError) as error:
        traceback.print_exc()
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadInput(f"rank {rank} cannot be built: {reason[0]}") from error


def _say(line: str) -> None:
    print(f"megaphone: {line}", file=sys.stderr, flush=True)
