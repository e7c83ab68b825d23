"""What is done of a conversion, kept beside what it has written, so that it goes on wherever it was cut off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from checkpoints.atomic import write_file
from checkpoints.card import Row
from checkpoints.conversion.job import Job
from checkpoints.manifest import FileRecord
from runtime.exits import BadInput

WORK = "work"  # folder inside an unfinished conversion
_PLAN = "plan.json"
_FORMAT = 1


@dataclass(frozen=True)
class Place:
    """Where a piece of a native tensor is: `offset` and `length` are those of its archive in `file`."""

    name: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Done:
    """A finished item: the rows it adds to the card, and of native files their records and what is where in them."""

    rows: tuple[Row, ...]
    files: dict[str, FileRecord] = field(default_factory=dict)
    places: tuple[Place, ...] = ()


def write_done(folder: Path, number: int, done: Done) -> None:
    """Mark an item finished; all it wrote is on disk."""
    plain = {
        "rows": [row.plain() for row in done.rows],
        "files": {name: asdict(record) for name, record in done.files.items()},
        "places": [asdict(place) for place in done.places],
    }
    write_file(_file(folder, number), json.dumps(plain))


def read_done(folder: Path, number: int) -> Done:
    """Raises BadInput where it is damaged."""
    path = _file(folder, number)
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return Done(
            tuple(Row.from_plain(row) for row in plain["rows"]),
            {name: FileRecord(**record) for name, record in plain["files"].items()},
            tuple(
                Place(**{**place, "offsets": tuple(place["offsets"]), "sizes": tuple(place["sizes"])})
                for place in plain["places"]
            ),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is damaged ({error!r}); remove it to have its tensors written again") from error


def is_done(folder: Path, number: int) -> bool:
    return _file(folder, number).is_file()


def fingerprint(files: list[Path]) -> dict[str, list[int]]:
    """Size and time of change of every file, by path: what tells whether a source is still what it was."""
    return {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def begin(job: Job, source: Mapping[str, list[int]]) -> None:
    """Begin a conversion, or go on with one. Raises BadInput where the folder holds another one, or one whose source
    has changed since."""
    path = job.folder / WORK / _PLAN
    plain = {"format": _FORMAT, "job": job.plain(), "source": dict(source)}
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(plain, indent=1))
        return
    found = begun(job.folder)
    again = f"remove {job.folder} to begin again"
    if found is None or found.get("job") != json.loads(json.dumps(plain["job"])):
        raise BadInput(f"{job.folder} was begun with other options; finish it with those, or {again}")
    if found.get("source") != plain["source"]:
        raise BadInput(f"{job.source} has changed since its conversion into {job.folder} began; {again}")


def begun(folder: Path) -> dict[str, Any] | None:
    """What a folder says it was begun as; None where it says nothing that is understood."""
    try:
        found = json.loads((folder / WORK / _PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _file(folder: Path, number: int) -> Path:
    return folder / WORK / f"{number:06d}.json"
