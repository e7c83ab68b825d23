"""One measurement in a process of its own: gets ready, waits for its turn on the device, tells parts as they come."""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

from tests.benchmarks.gpu import shapes
from tests.benchmarks.gpu.plan import MARK, by_name
from train.engines.cuda_on_cpu import emulate_cuda


def main() -> None:
    name, scale_name = sys.argv[1:]
    warnings.filterwarnings("ignore")
    measurement = by_name(name)
    try:
        emulate_cuda()
        call = measurement.load()  # imports, while another measurement has the device
        scale = shapes.TINY if scale_name == "tiny" else shapes.FULL
        if not sys.stdin.readline():
            return  # whoever would have given the turn is gone
        for part, figures in call(scale, **measurement.given):
            _tell({"part": part, "figures": figures})
    except Exception as error:
        _tell({"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"})
        raise
    _tell({"done": True})
    sys.stdout.flush()
    os._exit(0)  # process groups and compilers take seconds to say good-bye


def _tell(what: dict[str, Any]) -> None:
    print(MARK + json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
