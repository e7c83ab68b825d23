"""Which part of a build one process does, where many do it."""

from __future__ import annotations

from collections.abc import Mapping

from configs.schema import CorpusConfig
from runtime.exits import BadInput
from runtime.share import Share


def share_of(corpus: CorpusConfig, environment: Mapping[str, str]) -> Share:
    """The share of this process: `corpus.task` and `corpus.tasks`, else its place in a Slurm array, else everything.

    Arrays may begin anywhere and have steps. Raises BadInput for a task that is none of them.
    """
    if corpus.task is not None or corpus.tasks is not None:
        task, tasks = corpus.task or 0, corpus.tasks
        if tasks is None or not 0 <= task < tasks:
            raise BadInput(f"corpus.task={corpus.task} of corpus.tasks={corpus.tasks}: tasks are numbered from 0 up")
        return Share(task, tasks)
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return Share()
    try:
        number, count = int(environment["SLURM_ARRAY_TASK_ID"]), int(environment["SLURM_ARRAY_TASK_COUNT"])
        first, step = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", at)) for name, at in (("MIN", 0), ("STEP", 1)))
        task, beside = divmod(number - first, step)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise BadInput(
            f"the Slurm array around this process is not understood ({error}); set corpus.task and tasks"
        ) from error
    if beside or not 0 <= task < count:
        raise BadInput(
            f"Slurm array task {number} is none of {count} from {first} on; set corpus.task and corpus.tasks"
        )
    return Share(task, count)
