"""A folder of audio files; beside each, where it is transcribed, a text file with the same name but `.txt`.

calls/
  2024/interview 7.flac
  2024/interview 7.txt
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.lines import read_lines
from data_pipeline.sources.recording import MIXED, Recording, Segment
from data_pipeline.sources.speech.places import FileStretch
from runtime.exits import BadInput

_KINDS = "wav flac mp3 ogg oga opus m4a mp4 aac webm mka sph g722 aiff aif au w64 caf wma amr"
AUDIO_SUFFIXES = frozenset(f".{kind}" for kind in _KINDS.split())


def audio_folder(
    path: str, split: str | None, *, transcript: str = ".txt", speakers: bool = False
) -> Iterator[Recording]:
    """All audio files under `path` (of its subfolder `split`), in the order of their names.

    `transcript` is the ending of the text files. With `speakers`, a file's folder is its speaker. A file without
    text beside it has no segments, so that it is cut by voice activity; with an empty one, it is one segment of speech
    without transcript.
    """
    root = Path(path) / (split or "")
    if not root.is_dir():
        raise BadInput(f"speech source audio_folder: {root} is no folder")
    for folder, names in _folders(str(root)):
        audio = [name for name in names if os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES]
        stems = Counter(os.path.splitext(name)[0] for name in audio)
        held = set(names)
        for name in audio:
            stem = os.path.splitext(name)[0]
            segments: tuple[Segment, ...] = ()
            if stem + transcript in held:
                text = " ".join(line.strip() for _, line in read_lines(os.path.join(folder, stem + transcript)))
                segments = (Segment(text=text, speaker=os.path.basename(folder) if speakers else "", channel=MIXED),)
            file = os.path.join(folder, name)
            called = os.path.relpath(os.path.join(folder, stem if stems[stem] == 1 else name), root)
            yield Recording(safe_key(called), FileStretch(file), segments)


def _folders(folder: str, above: frozenset[str] = frozenset()) -> Iterator[tuple[str, list[str]]]:
    """`folder` and those under it, each with the sorted names of its files. Links to folders are followed, but not
    back into a folder above."""
    real = os.path.realpath(folder)
    if real in above:
        return
    names: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            (folders if entry.is_dir() else names).append(entry.name)
    yield folder, sorted(names)
    for name in sorted(folders):
        yield from _folders(os.path.join(folder, name), above | {real})
