"""AISHELL-1 as openslr.org/33 has it: data_aishell/wav/<split>/<speaker>/*.wav, and one file of transcripts whose
words stand apart, data_aishell/transcript/aishell_transcript_v0.8.txt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.lines import read_keyed
from data_pipeline.sources.recording import Recording, Segment
from data_pipeline.sources.speech.places import FileStretch
from runtime.exits import BadInput

SPLITS = ("train", "dev", "test")


def aishell(path: str, split: str | None, *, keep_spaces: bool = False) -> Iterator[Recording]:
    """Utterances of `split` (train, dev or test; None: all), by speaker. `path` is data_aishell or the folder above.

    Text is as it is written, without the spaces between words unless `keep_spaces`. The few files without transcript
    are left out, as in every recipe for this corpus. The archives inside `wav/` have to be unpacked.
    """
    root = Path(path) / "data_aishell" if (Path(path) / "data_aishell").is_dir() else Path(path)
    if split is not None and split not in SPLITS:
        raise BadInput(f"speech source aishell: no split {split}; there are {', '.join(SPLITS)}")
    transcripts = sorted((root / "transcript").glob("aishell_transcript*.txt"))
    if len(transcripts) != 1:
        raise BadInput(f"speech source aishell: {root}/transcript should hold one aishell_transcript*.txt")
    texts = {key: text for _, key, text in read_keyed(transcripts[0])}
    if (packed := next((root / "wav").glob("*.tar.gz"), None)) and not any((root / "wav").glob("*/*")):
        raise BadInput(f"speech source aishell: unpack the archives in {root}/wav first, such as {packed.name}")
    for part in SPLITS if split is None else (split,):
        for file in sorted((root / "wav" / part).glob("*/*.wav")):
            if (text := texts.get(file.stem)) is not None:
                text = text if keep_spaces else text.replace(" ", "")
                segment = Segment(text=text, speaker=file.parent.name)
                yield Recording(safe_key(file.stem), FileStretch(str(file)), (segment,))
