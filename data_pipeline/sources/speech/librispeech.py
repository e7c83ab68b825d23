"""LibriSpeech as openslr.org/12 has it: <split>/<reader>/<chapter>/<utterance>.flac and one .trans.txt a chapter.
LibriTTS differs (openslr.org/60) and is a folder of audio with `.normalized.txt` transcripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.lines import read_keyed
from data_pipeline.sources.recording import Recording, Segment
from data_pipeline.sources.speech.places import FileStretch
from runtime.exits import BadInput


def librispeech(path: str, split: str | None) -> Iterator[Recording]:
    """Utterances of `split` such as train-clean-100, or of all splits that are there, chapter by chapter: a chapter is
    a document. `path` is the folder LibriSpeech or the one above it."""
    root = Path(path) / "LibriSpeech" if (Path(path) / "LibriSpeech").is_dir() else Path(path)
    chapters = sorted(root.glob(f"{split or '*'}/*/*/*.trans.txt"))
    if not chapters:
        raise BadInput(f"speech source librispeech: no {split or '*'}/<reader>/<chapter>/*.trans.txt in {root}")
    for transcript in chapters:
        folder = transcript.parent
        for _, utterance, text in read_keyed(transcript):
            yield Recording(
                safe_key(utterance),
                FileStretch(str(folder / f"{utterance}.flac")),
                (Segment(text=text, speaker=folder.parent.name),),
                document=safe_key(f"{folder.parent.name}-{folder.name}"),
            )
