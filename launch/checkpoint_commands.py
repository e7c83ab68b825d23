"""What each `megaphone checkpoint` tool does: thin wiring between a command line and `checkpoints.tools`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from configs.schema import NewRows, Precision
from runtime.exits import DONE, FAILED, BadInput

# --- tools ----------------------------------------------------------------------------------------------------------


def checkpoint_diff(options: Namespace) -> int:
    """0: equal; 1: not."""
    from checkpoints.tools.compare import compare_folders, lines

    found = compare_folders(
        Path(options.a), Path(options.b), patterns=options.match or ["*"], optimizer=not options.weights_only
    )
    print("\n".join(lines(found, options.within, every=options.all)))
    return DONE if found.equal(options.within) else FAILED


def checkpoint_average(options: Namespace) -> int:
    from checkpoints.tools.average import average, exponential_weights
    from checkpoints.tools.opening import checkpoints_of

    given = [Path(folder) for folder in options.checkpoints]
    checkpoints = checkpoints_of(given[0]) if len(given) == 1 else given
    if options.last:
        checkpoints = checkpoints[-options.last :]
    if options.ema is not None:
        weights = exponential_weights(len(checkpoints), options.ema)
    else:
        weights = _numbers(options.weights) if options.weights else [1.0] * len(checkpoints)
    print(average(checkpoints, weights, Path(options.out), _dtype(options)))
    return DONE


def checkpoint_extract(options: Namespace) -> int:
    from checkpoints.tools.extract import extract, extract_lora

    folder, out = Path(options.folder), Path(options.out)
    if options.lora == bool(options.match):
        raise BadInput("say what to take: --match PATTERN, or --lora for the low-rank factors")
    if options.lora:
        print(extract_lora(folder, out, _dtype(options)))
    else:
        print(extract(folder, out, options.match, _dtype(options)))
    return DONE


def checkpoint_merge(options: Namespace) -> int:
    from checkpoints.lora import merge
    from checkpoints.tools.opening import checkpoints_of, new_place

    print(merge(checkpoints_of(Path(options.folder))[-1], new_place(Path(options.out))))
    return DONE


def checkpoint_consolidate(options: Namespace) -> int:
    from checkpoints.tools.extract import consolidate

    print(
        consolidate(Path(options.folder), Path(options.out), optimizer=options.optimizer, dtype=_dtype(options)),
    )
    return DONE


def checkpoint_vocab(options: Namespace) -> int:
    from checkpoints.tools.vocabulary import Wanted, change_vocabulary, read_vocabulary

    like, files = read_vocabulary(Path(options.like)) if options.like else (None, None)
    wanted = Wanted(options.rows, like, files, options.multiple, options.tensor, options.used)
    copied = tuple(int(number) for number in _numbers(options.copy.replace(",", ":"))) if options.copy else ()
    change = change_vocabulary(
        Path(options.folder),
        Path(options.out),
        wanted,
        new_rows=NewRows(options.new_rows),
        copied=copied,
        seed=options.seed,
        optimizer=options.optimizer,
        dtype=_dtype(options),
    )
    print(change)
    return DONE


def _dtype(options: Namespace) -> Precision | None:
    return Precision(options.dtype) if options.dtype else None


def _numbers(words: str) -> list[float]:
    """Numbers between colons. Raises BadInput where there are others."""
    try:
        return [float(word) for word in words.split(":")]
    except ValueError as error:
        raise BadInput(f"{words}: numbers with colons between them are wanted, such as 5:5:1") from error
