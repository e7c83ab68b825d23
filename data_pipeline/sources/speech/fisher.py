"""Two-channel telephone dialogue, Fisher style: a sphere or wav file a call, a speaker a channel, and a transcript.

fe_03_00001.sph
fe_03_00001.txt     1.41 3.97 A: hi ((how are)) you [laughter]
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.lines import read_lines, read_table
from data_pipeline.sources.recording import Recording, Segment
from data_pipeline.sources.speech.places import FileStretch
from runtime.exits import BadInput

_TURN = re.compile(r"(\d+(?:\.\d+)?)\s+(\d+(?:\.\d+)?)\s+([AB])\S*:\s*(.*)")
_AUDIO = (".sph", ".wav", ".flac")


def fisher(path: str, split: str | None, *, keep_marks: bool = False, window: float = 0.0) -> Iterator[Recording]:
    """Calls anywhere under `path` (of its subfolder `split`) that have a transcript, A on channel 0 and B on 1.

    Turns are in the order of their starts and may overlap. Speakers are the PINs of `*_calldata.tbl` where that is
    there, else the call's name and A or B. Without `keep_marks`, marks of doubt and of noises are taken out of the
    text, and a turn of nothing but noises is left out. With a `window` of seconds, a call is instead stretches of that
    length, each a document with both channels whole, without text: what dialogue models without text learn from.
    """
    root = Path(path) / (split or "")
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in (*_AUDIO, ".txt"))
    transcripts = {file.stem: file for file in files if file.suffix.lower() == ".txt"}
    calls = [file for file in files if file.suffix.lower() in _AUDIO and file.stem in transcripts]
    if not calls:
        raise BadInput(f"speech source fisher: {root} holds no .sph, .wav or .flac with a .txt of the same name")
    pins = _pins(root)
    for call in calls:
        turns = []
        speakers = pins.get(call.stem.split("_")[-1], (f"{call.stem}-A", f"{call.stem}-B"))
        for number, line in read_lines(transcripts[call.stem]):
            if line.startswith("#") or not line.strip():
                continue
            turn = _TURN.fullmatch(line.strip())
            if turn is None or float(turn[2]) <= float(turn[1]):
                raise BadInput(f"{transcripts[call.stem]} line {number} is not `start end A: text`: {line}")
            text = turn[4] if keep_marks else _plain(turn[4])
            if text:
                channel = "AB".index(turn[3])
                turns.append(Segment(float(turn[1]), float(turn[2]), text, speakers[channel], channel=channel))
        turns.sort(key=lambda turn: (turn.start, turn.channel))
        if window > 0:
            both = tuple(Segment(speaker=speaker, channel=channel) for channel, speaker in enumerate(speakers))
            for number in range(int(max((turn.end or 0.0 for turn in turns), default=0.0) / window)):
                place = FileStretch(os.fspath(call), number * window, (number + 1) * window)
                yield Recording(safe_key(f"{call.stem}-{number:04d}"), place, both, duration=window)
            continue
        yield Recording(safe_key(call.stem), FileStretch(os.fspath(call)), tuple(turns))


def _plain(text: str) -> str:
    """Words that were heard: without brackets of doubt, and without noises, which stand in square brackets."""
    return " ".join(re.sub(r"\[[^\]]*\]|\(\(|\)\)", " ", text).split())


def _pins(root: Path) -> dict[str, tuple[str, str]]:
    """Speakers of A and B by the call's number."""
    found = {}
    for table in sorted(root.rglob("*_calldata.tbl")):
        for _, row in read_table(table, ","):
            if (call := row.get("CALL_ID")) and "APIN" in row and "BPIN" in row:
                found[call] = (row["APIN"], row["BPIN"])
    return found
