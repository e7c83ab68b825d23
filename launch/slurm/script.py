"""The batch script of one job: everything Slurm is told, in one file that reads well and can be submitted by hand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.schema import ClusterConfig, ContainerKind, CorpusJobConfig, Tasks
from launch.notify import WEBHOOK
from launch.preflight.meeting import NODES
from runtime.run_files import CONFIG_FILE

FIRST_PORT, PORTS = 20000, 20000
RANK_LOGS = "logs"


@dataclass(frozen=True)
class Job:
    """What one job runs. `command` is what every task runs, without the interpreter: `-m launch.cli train ...`.

    ranks_per_node: 0 for a job of one task on one node, which is no process group. parts: the tasks of such a job, and
    what each of them gets; several are an array, which share the work. All paths are absolute.
    """

    name: str
    about: str  # one line, for whoever reads the script
    folder: Path  # its run folder: the script, its log and its record are in <folder>/slurm
    command: tuple[str, ...]
    python: str  # the interpreter on the nodes
    directory: Path  # where it runs
    ranks_per_node: int = 0
    parts: CorpusJobConfig = field(default_factory=CorpusJobConfig)

    @property
    def is_group(self) -> bool:
        return self.ranks_per_node > 0

    @property
    def is_array(self) -> bool:
        return self.parts.tasks > 1


def render(job: Job, cluster: ClusterConfig) -> str:
    """The text of the batch script."""
    parts = [
        ["#!/bin/bash", f"# {job.about}", "# Written by megaphone; sbatch takes it as it is."],
        directives(job, cluster),
        ["", "set -u", *_site(cluster)],
        ["", f"PYTHON={shlex.quote(job.python)}", f"RUN={shlex.quote(str(job.folder))}", "began=$(date +%s)"],
        ["", *(_meeting(job, cluster) if job.is_group else [])],
        [_SIGNALS.format(stop=_stop(job, cluster))],
        _KEEPER if job.is_group and cluster.fewest_nodes is not None else [],
        preflight_lines(job, cluster) if job.is_group and cluster.preflight.enabled else [],
        _group(job, cluster) if job.is_group else _single(job, cluster),
        [_ENDING],
    ]
    return "\n".join(line for part in parts for line in part) + "\n"


def directives(job: Job, cluster: ClusterConfig) -> list[str]:
    """The #SBATCH lines."""
    nodes = cluster.nodes if job.is_group else 1
    tasks = _tasks_per_node(job, cluster)
    parts = job.parts
    cpus, gpus, memory = parts.cpus, parts.gpus, parts.memory or cluster.memory
    if job.is_group:
        cpus = None if cluster.cpus_per_rank is None else cluster.cpus_per_rank * job.ranks_per_node // tasks
        gpus, memory = cluster.gpus_per_node, cluster.memory
    array = f"0-{parts.tasks - 1}" + ("" if parts.at_once is None else f"%{parts.at_once}")
    told: dict[str, object] = {
        "job-name": job.name,
        "nodes": nodes,
        "ntasks-per-node": tasks,
        "array": array if job.is_array else None,
        "gpus-per-node": gpus or None,
        "cpus-per-task": cpus,
        "mem": memory,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "reservation": cluster.reservation,
        "exclude": ",".join(cluster.exclude) or None,
        "time": cluster.time_limit,
        "signal": f"B:USR1@{cluster.warning}",
        "output": str(job.folder / "slurm" / ("%A_%a.log" if job.is_array else "%j.log")).replace("\\", "\\\\"),
        "open-mode": "append",
        "chdir": str(job.directory),
        **cluster.options,
    }
    lines = [_directive(name, value) for name, value in told.items() if value is not None or name in cluster.options]
    flags = ["requeue", *(["exclusive"] if cluster.exclusive and job.is_group else [])]
    flags += ["no-kill"] if cluster.fewest_nodes is not None and job.is_group else []
    return [*lines, *(f"#SBATCH --{flag}" for flag in flags)]


def _tasks_per_node(job: Job, cluster: ClusterConfig) -> int:
    return job.ranks_per_node if job.is_group and cluster.tasks is Tasks.rank else 1


def _directive(name: str, value: object) -> str:
    return f"#SBATCH --{name}" + ("" if value is None else f"={_quoted(str(value))}")


def _quoted(value: str) -> str:
    """A value as sbatch reads its directives: in double quotes, with a backslash before what they would end."""
    plain = value and all(letter.isalnum() or letter in "-_.,:/@%+=[]" for letter in value)
    return value if plain else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _site(cluster: ClusterConfig) -> list[str]:
    lines = [f"module load {shlex.quote(module)}" for module in cluster.modules]
    lines += cluster.setup
    lines += [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()]
    return ["", *lines] if lines else []


def _meeting(job: Job, cluster: ClusterConfig) -> list[str]:
    """What ranks on all nodes find each other by."""
    tasks = _tasks_per_node(job, cluster)
    port = f"$(({FIRST_PORT} + (SLURM_JOB_ID * 7 + ${{SLURM_RESTART_COUNT:-0}}) % {PORTS}))"
    return [
        "# The first node of the list is where ranks meet; SLURM_LAUNCH_NODE_IPADDR may be the node that submitted.",
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        f"export MASTER_PORT={port}",
        "# The nodes may be fewer than those that were asked for, of which sbatch has counted the tasks.",
        f"export SLURM_NTASKS=$((SLURM_JOB_NUM_NODES * {tasks}))",
        "export CUDA_DEVICE_MAX_CONNECTIONS=1 PYTHONUNBUFFERED=1",
        *_threads(job),
    ]


def _group(job: Job, cluster: ClusterConfig) -> list[str]:
    """Ranks on all nodes, as tasks of srun or under one torchrun a node."""
    exits = '"$RUN/slurm/exits/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"'
    return [
        "# Ranks leave their exit codes here, by which the job's end is judged.",
        f"export MEGAPHONE_EXIT_CODES={exits}",
        f'mkdir -p "$MEGAPHONE_EXIT_CODES" "$RUN/{RANK_LOGS}"',
        f'[ -z "${{{WEBHOOK}:-}}" ] || "$PYTHON" -m launch.slurm.began "$RUN" &',
        "",
        _on_all_nodes(job, job.command, cluster, RANK_LOGS),
    ]


def preflight_lines(job: Job, cluster: ClusterConfig) -> list[str]:
    """The nodes are looked at by as many ranks as will train, started the same way."""
    logs = f"{RANK_LOGS}/preflight"
    command = ("-m", "launch.cli", "preflight", "--folder", str(job.folder))
    return [
        "# The nodes are looked at first. Where one is sick, as $RUN/preflight.json says, the job goes on without it.",
        f'export {NODES}=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tr "\\n" " ")',
        f'mkdir -p "$RUN/{logs}"',
        _on_all_nodes(job, command, cluster, logs),
        "wait_for_step",
        'if [ "$code" != 0 ] || [ -n "$asked" ]; then',
        '    trap "" USR1 TERM',
        '    "$PYTHON" -m launch.slurm.looked "$RUN" --code "$code" --asked "$asked" --began "$began"',
        "    exit $?",
        "fi",
        "",
    ]


def _on_all_nodes(job: Job, command: Sequence[str], cluster: ClusterConfig, logs: str) -> str:
    """The srun that runs `command` as all ranks; logs: where they write, in the run folder."""
    file = "rank-%t.log" if cluster.tasks is Tasks.rank else "node-%n.log"
    srun = ["srun", "--kill-on-bad-exit=1", f'--output="$RUN/{logs}/{file}"', "--open-mode=append"]
    return _joined([*srun, *_inside(cluster), *_started(job, command, cluster)]) + " &"


def _threads(job: Job) -> list[str]:
    """Where the site does not say: the ranks of a node share its cores."""
    share = f"$((${{SLURM_CPUS_ON_NODE:-{job.ranks_per_node}}} / {job.ranks_per_node}))"
    return [
        f"threads={share}",
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}",
    ]


def _started(job: Job, words: Sequence[str], cluster: ClusterConfig) -> list[str]:
    command = [shlex.quote(word) for word in words]
    python = '"$PYTHON"' if cluster.container is None else shlex.quote(cluster.container.python)
    if cluster.tasks is Tasks.rank:
        return [python, *command]
    meeting = [
        '--nnodes="$SLURM_JOB_NUM_NODES"',
        f"--nproc-per-node={job.ranks_per_node}",
        '--rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"',
        "--rdzv-backend=c10d",
        '--rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT"',
        "--max-restarts=0",
    ]
    return [python, "-m torch.distributed.run", *meeting, *command]


def _inside(cluster: ClusterConfig) -> list[str]:
    """What goes before a task's command to run it in a container."""
    container = cluster.container
    if container is None:
        return []
    mounts = ",".join(container.mounts)
    if container.kind is ContainerKind.pyxis:
        told = [f"--container-image={shlex.quote(container.image)}"]
        return told + ([f"--container-mounts={shlex.quote(mounts)}"] if mounts else [])
    gpus = ["--nv"] if cluster.gpus_per_node else []
    bind = [f"--bind {shlex.quote(mounts)}"] if mounts else []
    return ["apptainer exec", *gpus, *bind, shlex.quote(container.image)]


def _single(job: Job, cluster: ClusterConfig) -> list[str]:
    command = ['"$PYTHON"', *(shlex.quote(word) for word in job.command)]
    return [_joined(["srun", "--ntasks=1", *_inside(cluster), *command]) + " &"]


def _joined(words: Sequence[str], width: int = 110) -> str:
    """Words of a command over as many lines as they need."""
    lines, line = [], ""
    for word in words:
        if line and len(line) + len(word) > width:
            lines.append(line + " \\")
            line = "   "
        line = f"{line} {word}" if line else word
    return "\n".join([*lines, line])


def _stop(job: Job, cluster: ClusterConfig) -> str:
    """The command that tells every rank to save and stop."""
    if job.is_array:  # whose last task has the number of them all
        return 'scancel --quiet --signal=TERM "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'
    if not job.is_group or cluster.tasks is Tasks.rank:
        return 'scancel --quiet --signal=TERM "$SLURM_JOB_ID"'
    # torchrun would pass the signal on and kill its ranks 30 seconds later, in the middle of a large save.
    ranks = shlex.quote(re.escape(f" {job.folder}/{CONFIG_FILE}"))
    each = 'srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1'
    return f"{each} pkill -TERM -f {ranks}"


_SIGNALS = """
# Before the time limit (USR1) and at preemption (TERM) every rank is told to save and stop.
asked=
stop() {{ asked=$1; {stop}; }}
trap 'stop USR1' USR1
trap 'stop TERM' TERM

wait_for_step() {{
    step=$! code=0
    while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done  # a trapped signal cuts a wait short
}}
"""

_KEEPER = [
    "# Where a node is lost, Slurm leaves the job to this script (--no-kill); where that is lost with its own node,",
    "# to a process on the last one.",
    'if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then',
    '    last=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n 1)',
    '    srun --overlap --nodes=1 --ntasks=1 --nodelist="$last" --output=/dev/null \\',
    '        "$PYTHON" -m launch.slurm.keeper "$RUN" --began "$began" &',
    "    keeper=$!",
    "    trap 'kill -USR1 $keeper 2>/dev/null' EXIT",
    "fi",
    "",
]

_ENDING = """
wait_for_step
trap '' USR1 TERM
# Done, to be queued again, or a failure that ends the chain: what it was is in $RUN/slurm/attempts.jsonl.
"$PYTHON" -m launch.slurm.ending "$RUN" --code "$code" --asked "$asked" --began "$began"
exit $?"""
