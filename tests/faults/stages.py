"""Every stage of a recipe loses all its processes to `kill -9` in its middle; the same command, again, goes on.

    python -m tests.faults.stages [--keep FOLDER]

Step-Audio's recipe, reduced (`tests.step_audio`), runs twice: undisturbed, and with launcher and ranks killed once in
each stage. What both made has to be the same, bit for bit: curves, checkpoints, validation losses, speech said, what a
teacher answered, and all that was measured. Exit code 1 where anything differs, or a stage could not be killed.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from safetensors.numpy import load_file

from checkpoints.store import complete_checkpoints
from data_pipeline.corpus import Corpus
from runtime.exits import DONE
from runtime.run_files import MADE, METRICS_FILE, RESULTS_FILE
from tests import step_audio
from tests.faults.campaign import checkpoint_differences, curve_differences

STEPS, SAVE_EVERY, STRIKE = 6, 2, 5  # killed once it has done this many: a checkpoint is there, and steps after it
# Of a stage without steps, files that show it amid its work; a merge is too short, and is killed as it begins.
BEGUN = {
    "data_engine": f"{MADE}/*/*.done.json",
    "teacher": f"{MADE}/*/*/*.safetensors",
    "merge": "config.yaml",
    "evaluate": "items/*.jsonl",
    "evaluate_speech": "items/*.jsonl",
}


def in_middle(run: Path, stage: str) -> bool:
    if stage in BEGUN:
        return any(run.glob(BEGUN[stage]))
    return (run / METRICS_FILE).is_file() and len((run / METRICS_FILE).read_bytes().splitlines()) >= STRIKE


def disturbed(recipe: Path, run: Path, cache: Path, stages: list[str], log: Path) -> dict[str, int]:
    """Run the recipe, killing everything once in each stage. Returns how many processes died in each."""
    killed: dict[str, int] = {}
    left = iter([*stages, None])
    stage = next(left)
    while True:
        with log.open("a") as output:
            launcher = step_audio.start(recipe, run, cache=cache, output=output)
            while launcher.poll() is None:
                if stage is not None and in_middle(run / stage, stage) and not (run / stage / RESULTS_FILE).is_file():
                    killed[stage] = _kill(launcher.pid)
                    launcher.wait()
                    print(f"{stage}: {killed[stage]} processes killed", flush=True)
                    stage = next(left)
                    break
                if stage is not None and (run / stage / RESULTS_FILE).is_file():
                    print(f"{stage}: over before it could be killed", flush=True)
                    stage = next(left)
                time.sleep(0.01)
            else:
                assert launcher.returncode == DONE, f"exit code {launcher.returncode}; see {log}"
                return killed


def _kill(launcher: int) -> int:
    """Kill a launcher and all that it started; returns how many they were."""
    found = [psutil.Process(launcher), *psutil.Process(launcher).children(recursive=True)]
    for process in found:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(found[1:], timeout=60)
    return len(found)


def differences(clean: Path, hit: Path, stage: str) -> list[str]:
    """What two finished runs of a stage differ in."""
    folders = clean / stage, hit / stage
    ours, theirs = map(made, folders)
    found = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    if (folders[0] / METRICS_FILE).is_file():
        found += curve_differences(*folders)
    if complete_checkpoints(folders[0] / "checkpoints"):
        found += checkpoint_differences(*folders)
    return [f"{stage}: {name}" for name in found]


def made(run: Path) -> dict[str, Any]:
    """All that a stage made beside a curve and checkpoints, by name, as values that compare bit for bit."""
    results = json.loads((run / RESULTS_FILE).read_text())
    found: dict[str, Any] = {f"results: {key}": results.get(key) for key in ("status", "measured")}
    for when, terms in (results.get("validation") or {}).items():
        if isinstance(terms, dict):
            found[f"validation {when}"] = {name: value for name, value in terms.items() if name != "seconds"}
    for file in sorted((run / MADE).glob("*/*/*.safetensors")):
        found[str(file.relative_to(run))] = {name: array.tobytes() for name, array in load_file(file).items()}
    if (run / MADE / "manifest.json").is_file():
        corpus = Corpus.open(run / MADE)
        found["corpus"] = (corpus.content_hash, corpus.totals)
    for file in sorted(run.glob("items/*.jsonl")):
        found[str(file.relative_to(run))] = sorted(file.read_text().splitlines()[1:])
    return found


def campaign(folder: Path) -> list[str]:
    """Both runs in `folder`; returns what differs, or was not killed."""
    recipe, cache = folder / "recipe", folder / "cache"
    stages = step_audio.reduced(recipe, steps=STEPS, save_every=SAVE_EVERY)
    with (folder / "clean.log").open("w") as log:
        clean = step_audio.start(recipe, folder / "clean", cache=cache, output=log)
        assert clean.wait() == DONE, f"exit code {clean.returncode}; see {folder / 'clean.log'}"
    print("undisturbed: done", flush=True)
    killed = disturbed(recipe, folder / "hit", cache, stages, folder / "hit.log")
    found = [f"{stage}: not killed" for stage in stages if stage not in killed]
    return found + [line for stage in stages for line in differences(folder / "clean", folder / "hit", stage)]


def main() -> int:
    parser = argparse.ArgumentParser(description="kill -9 in the middle of every stage of a recipe.")
    parser.add_argument("--keep", type=Path, help="a folder for both runs, which stay; without it they go")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True)
        found = campaign(options.keep)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = campaign(Path(folder))
    print("\n".join(found) or "every stage was killed, and made what the undisturbed one made, bit for bit")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
