"""One rank of a stage that trains a part of the speech decoder: `python -m train.decoder <resolved config.yaml>`.

The loop is `train.stage`'s; what the objective is (`train.objectives.decoding`) says what is trained.
"""

from __future__ import annotations

import sys

from runtime.exits import leave
from runtime.log_lines import stamp_output
from train.stage import main

if __name__ == "__main__":
    stamp_output()
    leave(main(sys.argv[1:]))
