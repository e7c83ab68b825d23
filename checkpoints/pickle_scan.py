"""The opcodes of a pickle, looked at before any unpickler acts on them.

A closed list of names keeps a pickle from calling things; it does not keep it from asking for a memo table of 2^32
entries, which the C unpickler allocates at once. This scan lets through the opcodes that Torch's own indexes are made
of, with arguments that the bytes themselves bound.
"""

from __future__ import annotations

_NO_ARGUMENT = b".(0)N}]tlasueb\x81R\x85\x86\x87\x88\x89\x94\x93"
_FIXED = {b"K": 1, b"M": 2, b"J": 4, b"G": 8, b"h": 1, b"j": 4, b"\x80": 1, b"\x95": 8}
_COUNTED = {b"\x8c": 1, b"X": 4, b"\x8a": 1}  # bytes of the length before the argument
_PUTS = {b"q": 1, b"r": 4}
_LINES = b"c"  # two lines of text


def why_refused(content: bytes) -> str | None:
    """What is wrong with the opcodes of a pickle, None where nothing is. Nothing is unpickled."""
    place, size = 0, len(content)
    fixed = dict.fromkeys(_NO_ARGUMENT, 0) | {code[0]: width for code, width in _FIXED.items()}
    counted = {code[0]: width for code, width in _COUNTED.items()}
    puts = {code[0]: width for code, width in _PUTS.items()}
    stop, lines = b"."[0], _LINES[0]
    while place < size:
        code = content[place]
        place += 1
        if (width := fixed.get(code)) is not None:
            if code == stop:
                return None if place == size else f"{size - place} bytes behind its end"
            place += width
        elif (width := counted.get(code)) is not None:
            place += width + int.from_bytes(content[place : place + width], "little")
        elif (width := puts.get(code)) is not None:
            if int.from_bytes(content[place : place + width], "little") > size:
                return "it asks for a memo larger than itself"
            place += width
        elif code == lines:
            for _ in range(2):
                place = content.find(b"\n", place) + 1
                if not place:
                    return "ends inside a name"
        else:
            return f"opcode {code:#04x} is not allowed here"
    return "it has no end"
