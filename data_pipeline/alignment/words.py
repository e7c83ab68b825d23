"""What an aligner takes for the words of a text."""

from __future__ import annotations

UNSPACED = ("zh", "yue", "ja", "th")  # languages that are written without spaces between words


def words_of(text: str, language: str) -> list[str]:
    """What stands between spaces; in languages without them every character, with the punctuation after it, and runs
    of Latin letters and digits whole."""
    if language not in UNSPACED:
        return text.split()
    words: list[str] = []
    for written in text.split():
        whole = ""  # the run under way
        for character in written:
            latin = character.isascii() and character.isalnum()
            if latin and whole and whole[-1].isascii() and whole[-1].isalnum():
                whole += character
            elif not character.isalnum() and (whole or words):  # punctuation, and marks on the letter before
                if whole:
                    whole += character
                else:
                    words[-1] += character
            else:
                words += [whole] if whole else []
                whole = character
        words += [whole] if whole else []
    return words
