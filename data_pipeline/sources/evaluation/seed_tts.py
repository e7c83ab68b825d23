"""SEED-TTS eval as its authors distribute it (github.com/BytedanceSpeech/seed-tts-eval): <language>/meta.lst, a line an
utterance: `name|text of the prompt|sound of the prompt|text to say`, and the recording of that text where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.evaluation.item import Item, Stretch, Turn
from data_pipeline.sources.lines import read_lines
from data_pipeline.sources.speech.places import inside
from runtime.exits import BadInput


def seed_tts(path: str, split: str | None) -> Iterator[Item]:
    """Texts to say in the voice of a prompt. `split` is en, zh or zh/hardcase; `path` the folder that holds en and zh.
    Lists of one's own of the same form are read as <split>.lst beside the sounds they name."""
    if split is None:
        raise BadInput(f"evaluation set seed_tts: {path}: give its split, such as en, zh or zh/hardcase")
    root = Path(path)
    lists = [root / split / "meta.lst", root / f"{split}.lst"]
    found = next((file for file in lists if file.is_file()), None)
    if found is None:
        raise BadInput(f"evaluation set seed_tts: neither {lists[0]} nor {lists[1]} is there")
    language = split.partition("/")[0]
    for number, line in read_lines(found):
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) not in (4, 5):
            raise BadInput(f"{found} line {number} has {len(cells)} cells; there should be 4, or 5 with a recording")
        name, said, voice, text = cells[:4]
        recording = Stretch(inside(found.parent, cells[4])) if len(cells) == 5 and cells[4] else None
        prompt = Turn("human", said, Stretch(inside(found.parent, voice)))
        yield Item(name, text, language=language, sound=recording, prompt=prompt)
