"""lhotse Shar folders: cuts.000000.jsonl.gz, and beside each recording.000000.tar with the sound of its cuts in order.

lhotse reads the cuts. The tars are not unpacked: where each member lies is read from their headers.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.lines import read_json_lines
from data_pipeline.sources.recording import Recording
from data_pipeline.sources.speech.lhotse_cuts import read_cut, segments_of
from data_pipeline.sources.speech.places import FilePart, Nowhere, Place
from runtime.exits import BadInput


def lhotse_shar(path: str, split: str | None, *, field: str = "recording") -> Iterator[Recording]:
    """The cuts of all shards, in their order. `split` is a subfolder. `field` says which audio is meant, where there
    are several, such as target_recording. A cut that has none is counted as empty, and one whose tar is missing or cut
    short as that."""
    folder = Path(path) / (split or "")
    shards = sorted(folder.glob("cuts.*.jsonl*"))
    if not shards:
        raise BadInput(f"speech source lhotse_shar: no cuts.*.jsonl.gz in {folder}")
    if not any(folder.glob(f"{field}.*.tar")):
        raise BadInput(f"speech source lhotse_shar: no {field}.*.tar in {folder}")
    for shard in shards:
        tar = folder / f"{field}.{shard.name.split('.')[1]}.tar"
        places = _members(tar)
        for line, row in read_json_lines(shard):
            cut = read_cut(row, f"{shard} line {line}")
            name, place = next(places)
            if name not in (cut.id, ""):
                raise BadInput(f"{tar} does not fit {shard.name}: it holds {name} where cut {cut.id} should be")
            # Whatever its recording has, a tar has the cut's own channels only.
            channels = cut.channel if isinstance(cut.channel, list) else [cut.channel]
            yield Recording(safe_key(cut.id), place, segments_of(cut, channels), duration=cut.duration)


def _members(tar: Path) -> Iterator[tuple[str, Place]]:
    """Cut and place of each sound in a tar; where it breaks off, or is missing, without end no cut and no place.
    Members come in pairs: the sound, then what lhotse knows of it."""
    lost = "decode"
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                lost = "truncated"  # if it ends before the cuts do
                name, _, kind = member.name.rpartition(".")
                if kind == "nodata":
                    yield name, Nowhere(f"{tar}: {member.name}", "empty")
                elif kind not in ("json", "nometa"):
                    yield name, FilePart(str(tar), member.offset_data, member.size, member.name)
    except FileNotFoundError:
        lost = "missing"
    except tarfile.TarError:
        pass  # at its first member: no tar; later: what follows is lost
    while True:
        yield "", Nowhere(str(tar), lost)
