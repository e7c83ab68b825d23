"""One rank of one stage: `python -m train.stage <resolved config.yaml>`.

The environment names the process group (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), as torchrun, srun
and the local launcher set it. The exit code is one of `runtime.exits`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from configs.schema import Config
from runtime import startup
from runtime.exits import BAD_INPUT, DONE, FAILED, HALTED, STOPPED_EARLY, BadInput, Halted, StoppedEarly, leave
from runtime.imports import at_once
from runtime.log_lines import stamp_output
from runtime.signals import PROFILE_SIGNAL, StopFlag
from runtime.threads import use_threads

# Megatron-Core imports it to know whether it is there; the run's tracker does when it is asked for.
MERELY_PROBED = ("wandb",)


def main(arguments: list[str]) -> int:
    """Train the stage that the config file in `arguments` describes. Returns the exit code."""
    return run_rank(arguments, _train)


def run_rank(
    arguments: list[str], work: Callable[[Config, StopFlag], None], *, start: Callable[[Path], Config] | None = None
) -> int:
    """Do `work` as one rank, with stop signals flagged and errors turned into exit codes. `start` reads the config and
    imports what the work needs; None: all that training does."""
    stop = StopFlag().install()
    signal.signal(PROFILE_SIGNAL, signal.SIG_IGN)  # until there is a step to record
    try:
        if len(arguments) != 1:
            raise BadInput(f"one argument is needed, a resolved config.yaml; there are {len(arguments)}")
        work((start or _start)(Path(arguments[0])), stop)
    except BadInput as error:
        print(f"megaphone: error: {error}", file=sys.stderr, flush=True)
        return BAD_INPUT
    except Halted as halted:
        print(f"megaphone: error: {halted}", file=sys.stderr, flush=True)
        return HALTED
    except StoppedEarly as stopped:
        print(f"megaphone: {stopped}", file=sys.stderr, flush=True)
        return STOPPED_EARLY
    except Exception:
        traceback.print_exc()
        return FAILED
    return DONE


def _start(config_file: Path) -> Config:
    from configs.compose import load_config
    from train.engines import optional_kernels

    startup.begin_with_process(again=False)
    startup.passed("interpreter of the rank")
    config = load_config(config_file)
    startup.passed("config of the rank")
    _import(config)
    if os.environ.get("RANK", "0") == "0":
        print(f"megaphone: {optional_kernels.describe()}", flush=True)
    return config


def _import(config: Config) -> None:
    """Torch, Megatron-Core, and all that this rank works with."""
    with at_once(without=MERELY_PROBED):
        before_megatron(config)
        # Only now: these import Megatron-Core.
        from train.engines.build import engine_of

        import_module("train.loop")
        engine_of(config)
    startup.passed("megatron and modules")


def before_megatron(config: Config) -> None:
    """Import torch, and make ready what has to be before Megatron-Core is imported."""
    import torch  # noqa: F401  # its share of the start is told apart

    startup.passed("torch")
    from train.engines import absent_names, optional_kernels
    from train.engines.cuda_on_cpu import emulate_cuda
    from train.engines.determinism import be_deterministic

    use_threads()
    optional_kernels.hush_megatron()
    emulate_cuda()
    absent_names.fill_in()
    if config.train.deterministic:
        be_deterministic(os.environ)


def _train(config: Config, stop: StopFlag) -> None:
    from train.loop import train
    from train.weights import prepare

    # Rank 0 converts before anyone joins: the others wait for it outside of any collective, which could time out.
    if os.environ.get("RANK", "0") == "0":
        prepare(config, stop)
    else:
        _wait_for_first_rank(stop)
    startup.passed("backbone")
    train(config, stop)


def _wait_for_first_rank(stop: StopFlag) -> None:
    """Return once rank 0 listens at the rendezvous; raises StoppedEarly at a stop signal, which Torch's own wait, in
    compiled code, would not see."""
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    while True:
        try:
            socket.create_connection(place, timeout=1).close()
            return
        except OSError:
            if stop:
                raise StoppedEarly(f"stopped by {stop.name} before training; the same command begins again") from None
            time.sleep(0.1)


if __name__ == "__main__":
    stamp_output()
    leave(main(sys.argv[1:]))
