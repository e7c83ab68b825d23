"""Mozilla Common Voice as distributed: a folder a language with clips/ and validated.tsv, train.tsv and others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.lines import number_in, read_table, text_in
from data_pipeline.sources.recording import Recording, Segment
from data_pipeline.sources.speech.places import inside
from runtime.exits import BadInput


def common_voice(path: str, split: str | None) -> Iterator[Recording]:
    """Clips of `<split>.tsv` (None: validated), in its order. `path` is the folder of a language, whose name is the
    language where the table does not say it. Speakers are the hashed `client_id`s; votes are kept as quality."""
    folder = Path(path)
    table = folder / f"{split or 'validated'}.tsv"
    if not table.is_file():
        there = ", ".join(sorted(file.stem for file in folder.glob("*.tsv"))) or "no .tsv"
        raise BadInput(f"speech source common_voice: {table} is not there; {folder} has {there}")
    durations = _durations(folder / "clip_durations.tsv")
    for number, row in read_table(table):
        clip = text_in(row, "path")
        if not clip:
            raise BadInput(f"{table} line {number} has no path")
        clip = clip if Path(clip).suffix else f"{clip}.mp3"
        where = f"{table} line {number}"
        votes = {name: number_in(row, name, where) for name in ("up_votes", "down_votes")}
        segment = Segment(
            text=text_in(row, "sentence"),
            speaker=text_in(row, "client_id"),
            language=text_in(row, "locale") or folder.resolve().name,
            quality=tuple((name, value) for name, value in votes.items() if value is not None),
        )
        yield Recording(
            safe_key(Path(clip).stem), inside(folder / "clips", clip), (segment,), duration=durations.get(clip)
        )


def _durations(path: Path) -> dict[str, float]:
    """Seconds by clip, from the table of milliseconds that newer releases have."""
    if not path.is_file():
        return {}
    found = {}
    for number, row in read_table(path):
        milliseconds = number_in(row, "duration[ms]", f"{path} line {number}")
        if milliseconds is not None:
            found[text_in(row, "clip")] = milliseconds / 1000
    return found
