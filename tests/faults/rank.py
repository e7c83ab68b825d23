"""One rank of the campaign's run: the real stage, whose gradients can be made NaN once, as by a bit that flipped.

`python -m tests.faults.rank <config.yaml>`. A file `poison-<rank>` in the run folder is taken away by that rank, which
then spoils the gradient of one parameter in one step.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from runtime.exits import leave
from train.stage import main

POISON = "poison-{}"
SHORTEST = 0.05  # seconds of a step at least: on a fast machine the run would be over before its faults


def poison_once(file: Path) -> None:
    """Spoil gradients of this rank's next training step whenever `file` appears; no step is all too short."""
    from train.engines.megatron import MegatronEngine

    original = MegatronEngine.train_step

    def train_step(self: MegatronEngine, *arguments: Any, **named: Any) -> Any:
        time.sleep(SHORTEST)
        if not file.exists():
            return original(self, *arguments, **named)
        file.unlink()
        # Of a norm: those of matrices may go into the engine's buffer without passing a hook.
        parameter = next(one for one in self.models[0].parameters() if one.dim() == 1)
        hook = parameter.register_hook(lambda gradient: gradient * float("nan"))
        try:
            return original(self, *arguments, **named)
        finally:
            hook.remove()

    MegatronEngine.train_step = train_step  # type: ignore[method-assign]


if __name__ == "__main__":
    from train.engines.cuda_on_cpu import emulate_cuda

    emulate_cuda()
    poison_once(Path(sys.argv[1]).parent / POISON.format(os.environ["RANK"]))
    leave(main(sys.argv[1:]))
