"""The telephone prompts that come with Asterisk: one voice a language, recorded by a human, and what it says.

Debian has them as asterisk-core-sounds-en-g722 (and -es, -fr, -it, -ru; also -wav): folders of prompts, and a file of
lines `digits/1: one` in the documentation. Comments begin with a semicolon.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.lines import read_lines
from data_pipeline.sources.recording import Recording, Segment
from data_pipeline.sources.speech.places import FileStretch
from runtime.exits import BadInput

_SUFFIXES = (".flac", ".wav", ".g722")  # best first, where a prompt is there in several


def asterisk(path: str, split: str | None, *, transcripts: str = "", speaker: str = "") -> Iterator[Recording]:
    """Prompts in `path`, such as /usr/share/asterisk/sounds/en, that say something, in the order of the transcripts.

    `transcripts` is the file of lines; by default core-sounds-<language>.txt, in the folder or where Debian has it.
    The speaker is the folder's real name, such as en_US_f_Allison, if `speaker` does not say. `split` is a subfolder
    such as `digits`. Tones and silences, whose text is in square brackets, are left out.
    """
    folder = Path(path)
    real = folder.resolve().name
    language = real.partition("_")[0]
    for number, line in read_lines(_transcripts(folder, language, transcripts)):
        name, colon, text = (part.strip() for part in line.partition(":"))
        if line.startswith(";") or not colon or (split and not name.startswith(f"{split}/")):
            continue
        if name.startswith(("/", "..")) or "/../" in name:
            raise BadInput(f"transcripts of {folder} line {number} lead out of it: {name}")
        file = next((found for end in _SUFFIXES if (found := folder / f"{name}{end}").is_file()), None)
        if file is not None and text and not (text.startswith("[") and text.endswith("]")):
            segment = Segment(text=text, speaker=speaker or real, language=language)
            yield Recording(safe_key(name), FileStretch(str(file)), (segment,))


def _transcripts(folder: Path, language: str, given: str) -> Path:
    if given:
        return Path(given)
    name = f"core-sounds-{language}.txt"
    places = (folder / name, Path(f"/usr/share/doc/asterisk-core-sounds-{language}/{name}"))
    for place in places:
        for file in (place, place.with_name(f"{name}.gz")):
            if file.is_file():
                return file
    raise BadInput(f"speech source asterisk: {name} is neither in {places[0].parent} nor in {places[1].parent}")
