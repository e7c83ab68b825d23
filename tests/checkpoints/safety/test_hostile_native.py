"""Native checkpoints made to break their reader: `verify` says why, an export refuses, no code runs."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from checkpoints.convert import export_huggingface
from checkpoints.inspect import describe, verify
from checkpoints.pickle_scan import why_refused
from runtime.exits import BadInput
from tests.checkpoints.models import tokenizer_json, vocabulary
from tests.checkpoints.safety.folders import ROWS, change_manifest, refused, replace_file, tiny, vouch, write_native

NORM = "model.decoder.final_layernorm.weight"
INDEX, COMMON = "tensors/.metadata", "tensors/common.pt"
Make = Callable[[Path], Any]


class Evil:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch evil-was-here",)


def saved(held: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(held, buffer)
    return buffer.getvalue()


def other_index(change: Callable[[Metadata], Any]) -> Make:
    """An index with something else in it."""

    def make(native: Path) -> None:
        found = pickle.loads((native / INDEX).read_bytes())
        changed = change(found)
        replace_file(native, INDEX, changed if isinstance(changed, bytes) else pickle.dumps(found))

    return make


def of_norm(change: Callable[[TensorStorageMetadata], Any]) -> Make:
    return other_index(lambda found: change(found.state_dict_metadata[NORM]) and None)


def norm_place(**changes: Any) -> Make:
    def change(found: Metadata) -> None:
        place = next(key for key in found.storage_data if key.fqn == NORM)
        found.storage_data[place] = replace(found.storage_data[place], **changes)

    return other_index(change)


def other_piece(content: bytes) -> Make:
    """Something else where the final norm's tensor was."""

    def make(native: Path) -> None:
        found = pickle.loads((native / INDEX).read_bytes())
        place = next(key for key in found.storage_data if key.fqn == NORM)
        (native / "tensors" / "more.distcp").write_bytes(content)
        found.storage_data[place] = replace(
            found.storage_data[place], relative_path="more.distcp", offset=0, length=len(content)
        )
        (native / INDEX).write_bytes(pickle.dumps(found))
        vouch(native)

    return make


def deflated(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return packed.getvalue() + bytes(1000)  # behind the archive, so that lengths alone do not tell


def renamed(content: bytes) -> bytes:
    """The same archive, its tensor's bytes under a name that nothing says."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            new.writestr(name.replace("data/0", "data/9"), old.read(name))
    return packed.getvalue() + bytes(1000)


def manifest(change: Callable[[dict[str, Any]], Any]) -> Make:
    return lambda native: change_manifest(native, change)


def linked(name: str) -> Make:
    def make(native: Path) -> None:
        shutil.move(native / name, native.parent / "outside")
        (native / name).symlink_to(native.parent / "outside")

    return make


def in_place_of(name: str, put: Callable[[Path], Any]) -> Make:
    def make(native: Path) -> None:
        (native / name).unlink()
        put(native / name)

    return make


def one_byte(native: Path) -> None:
    path = next((native / "tensors").glob("*.distcp"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def overlapping(stored: TensorStorageMetadata) -> None:
    """Two halves, the second one of which lies on the first one."""
    chunk = stored.chunks[0]
    stored.chunks[:] = [replace(chunk, sizes=torch.Size([4])), replace(chunk, sizes=torch.Size([4]))]


# cos.system((S'touch evil-was-here'tR. and others, as bytes: what no pickler would write.
SYSTEM = b"\x80\x02cos\nsystem\nX\x13\x00\x00\x00touch evil-was-here\x85R."
MEMO_OF_4G = b"\x80\x02}r\xff\xff\xff\xff."
STRING_OF_4G = b"\x80\x02X\xff\xff\xff\xffabc."
ON_A_CLASS = (
    b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n"  # the class itself gets an attribute
    b"N}X\x04\x00\x00\x00evilK\x01s\x86b."
)
ON_AN_ENUM = (
    b"\x80\x02ctorch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING\nN}X\x04\x00\x00\x00evilK\x01s\x86b."
)

CASES: dict[str, tuple[Make, str]] = {
    # --- the index
    "index that runs a command": (lambda native: replace_file(native, INDEX, SYSTEM), "os.system|posix.system"),
    "index that holds an object": (
        lambda native: replace_file(native, INDEX, pickle.dumps(Evil())),
        "not allowed here",
    ),
    "index with a memo of 2^32": (lambda native: replace_file(native, INDEX, MEMO_OF_4G), "a memo larger than itself"),
    "index with a string of 2^32": (lambda native: replace_file(native, INDEX, STRING_OF_4G), "refused"),
    "index that changes a class": (lambda native: replace_file(native, INDEX, ON_A_CLASS), "on a class|attribute"),
    "index that changes an enum": (lambda native: replace_file(native, INDEX, ON_AN_ENUM), "refused"),
    "index of text opcodes": (lambda native: replace_file(native, INDEX, b"(lp0\nI1\na."), "opcode 0x70|opcode 0x49"),
    "index of nothing": (lambda native: replace_file(native, INDEX, b""), "no end"),
    "index of a list": (lambda native: replace_file(native, INDEX, pickle.dumps([1])), "not the index"),
    "index with bytes behind": (
        lambda native: replace_file(native, INDEX, (native / INDEX).read_bytes() + b"."),
        "behind its end",
    ),
    "index cut short": (lambda native: replace_file(native, INDEX, (native / INDEX).read_bytes()[:-20]), "refused"),
    "index to another folder": (norm_place(relative_path="../other.distcp"), "points outside"),
    "index to /": (norm_place(relative_path="/etc/passwd"), "points outside"),
    "index to a missing file": (norm_place(relative_path="gone.distcp"), "gone.distcp: missing"),
    "index past the end of a file": (norm_place(length=1 << 40), "past the end"),
    "index to a negative place": (norm_place(offset=-1), "past the end"),
    "index with a huge shape": (
        of_norm(lambda norm: setattr(norm, "size", torch.Size([1 << 50]))),
        "do not make up|name different",
    ),
    "index with a huge piece": (
        of_norm(lambda norm: norm.chunks.__setitem__(0, replace(norm.chunks[0], sizes=torch.Size([1 << 50])))),
        "fewer bytes than its shape",
    ),
    "index with overlapping pieces": (of_norm(overlapping), "do not make up"),
    "index with a hole": (of_norm(lambda norm: norm.chunks.clear()), "do not make up"),
    "index with words for a shape": (of_norm(lambda norm: setattr(norm, "size", ("8",))), "impossible shape"),
    "index without a place": (
        other_index(lambda found: found.storage_data.pop(MetadataIndex(NORM, torch.Size([0]))) and None),
        "no place for",
    ),
    "index of another dtype": (
        of_norm(lambda norm: setattr(norm.properties, "dtype", torch.int32)),
        "name different|the index says",
    ),
    # --- tensors
    "a piece that runs a command": (other_piece(saved(Evil())), "refused, it holds more than plain tensors"),
    "a piece of another shape": (other_piece(saved(torch.ones(9))), r"is \[9\] torch.float32, the index says \[8\]"),
    "a piece that broadcasts": (other_piece(saved(torch.ones(1)) + bytes(99)), "the index says|damaged|refused"),
    "a piece of another dtype": (other_piece(saved(torch.ones(8, dtype=torch.int32))), r"\[8\] torch.int32"),
    "a piece that is sparse": (other_piece(saved(torch.ones(8).to_sparse())), "no plain tensor|refused"),
    "a piece that is a list": (other_piece(saved([torch.ones(8)])), "no plain tensor"),
    "a piece that is compressed": (other_piece(deflated(saved(torch.ones(8)))), "compressed|damaged"),
    "a piece under another key": (other_piece(renamed(saved(torch.ones(8)))), "refused|damaged"),
    "a piece that is no archive": (other_piece(bytes(3000)), "no archive of torch.save"),
    "a bare pickle": (other_piece(pickle.dumps([1]) + bytes(3000)), "no archive of torch.save"),
    "common.pt that runs a command": (lambda native: replace_file(native, COMMON, saved(Evil())), "common.pt: refused"),
    "common.pt a bare pickle": (lambda native: replace_file(native, COMMON, pickle.dumps(Evil())), "no archive"),
    # --- the manifest
    "manifest not JSON": (manifest(lambda held: "{"), "cannot be read as JSON"),
    "manifest an array": (manifest(lambda held: "[]"), "no JSON object"),
    "manifest names a key twice": (manifest(lambda held: '{"step": 1, "step": 2}'), "names 'step' twice"),
    "manifest nested deep": (manifest(lambda held: '{"a":' * 100_000), "nested too deep"),
    "manifest of another format": (manifest(lambda held: held.update(format="2")), "this version reads format 1"),
    "manifest names a file outside": (
        manifest(lambda held: held["files"].update({"../a": {"size": 1, "xxh3": ""}})),
        "outside",
    ),
    "manifest names a file at /": (
        manifest(lambda held: held["files"].update({"/a": {"size": 1, "xxh3": ""}})),
        "outside",
    ),
    "manifest with sizes in words": (manifest(lambda held: held["files"][COMMON].update(size="1")), "no size and hash"),
    "manifest with shapes in words": (manifest(lambda held: held["tensors"][NORM].update(shape=["8"])), "impossible"),
    "manifest with a shape below 0": (manifest(lambda held: held["tensors"][NORM].update(shape=[-8])), "impossible"),
    "manifest of other shapes": (manifest(lambda held: held["tensors"][NORM].update(shape=[9])), "different tensors"),
    "manifest of other tensors": (manifest(lambda held: held["tensors"].pop(NORM)), "different tensors"),
    "manifest of more parameters": (manifest(lambda held: held.update(parameters=7)), "counts 7 parameters"),
    "manifest with words for ranges": (manifest(lambda held: held.update(vocabulary={"ranges": {"a": "b"}})), "ranges"),
    "manifest with a list of origins": (manifest(lambda held: held.update(origin=[])), "origin is no object"),
    "manifest with unknown keys": (manifest(lambda held: held.update(code="import os")), "damaged"),
    "manifest a FIFO": (in_place_of("manifest.json", os.mkfifo), "no manifest.json"),
    "manifest a link": (linked("manifest.json"), "no manifest.json"),
    "no manifest": (in_place_of("manifest.json", lambda path: None), "no manifest.json"),
    # --- files
    "a changed byte": (one_byte, "its contents changed"),
    "a missing file": (in_place_of(COMMON, lambda path: None), "common.pt: missing"),
    "a link": (linked(COMMON), "common.pt: a symbolic link"),
    "a linked folder": (linked("tensors"), "tensors: a symbolic link"),
    "a FIFO": (in_place_of(COMMON, os.mkfifo), "common.pt: 0 bytes"),
    "a FIFO of 0 bytes": (
        lambda native: (
            in_place_of(COMMON, os.mkfifo)(native),
            change_manifest(native, lambda held: held["files"][COMMON].update(size=0)),
        ),
        "a FIFO, not a file",
    ),
    "a file more": (lambda native: (native / "tensors" / "more").write_bytes(b""), "tensors/more: not in the manifest"),
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_native(tmp_path_factory.mktemp("clean") / "native")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", CASES)
def test_a_hostile_checkpoint_is_refused_in_one_line(name: str, clean: Path, tmp_path: Path) -> None:
    make, says = CASES[name]
    native = shutil.copytree(clean, tmp_path / "native")
    make(native)
    problems = verify(native)
    assert problems, "verify finds nothing"
    with refused(tmp_path, says):
        raise BadInput(problems[0])
    try:
        assert describe(native)
    except BadInput as error:
        assert "\n" not in str(error)
    assert not list(Path.cwd().glob("evil-was-here"))


SEEN_BY_EXPORT = [
    name
    for name in CASES
    if name.startswith(("index", "a piece", "a bare", "manifest n", "a changed", "a missing", "a link"))
    and name not in ("a piece that is a list", "index of another dtype")
]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", SEEN_BY_EXPORT)
def test_a_hostile_checkpoint_is_not_exported(name: str, clean: Path, tmp_path: Path) -> None:
    native = shutil.copytree(clean, tmp_path / "native")
    CASES[name][0](native)
    with refused(tmp_path, "."):
        export(native, tmp_path / "out")


def test_weights_that_are_not_numbers_are_not_exported(clean: Path, tmp_path: Path) -> None:
    assert export(clean, tmp_path / "fine").is_dir()
    native = shutil.copytree(clean, tmp_path / "native")
    other_piece(saved(torch.tensor([1.0] * 6 + [float("nan"), float("inf")])))(native)
    with refused(tmp_path, "decoder.final_layernorm.weight.* has 2 of 8 values"):
        export(native, tmp_path / "out")


def test_no_unfinished_checkpoint_passes(clean: Path, tmp_path: Path) -> None:
    """Not even one that has everything: its name says that whoever made it was not done."""
    assert "unfinished" in verify(shutil.copytree(clean, tmp_path / "native.partial"))[0]


def test_a_scan_of_opcodes_agrees_with_pickletools() -> None:
    for protocol in (2, 3, 4, 5):
        assert why_refused(pickle.dumps({"a": [1, 2.5, None, True, (1, 2, 3, 4)] * 300}, protocol=protocol)) is None
    assert why_refused(b"\x80\x04N") == "it has no end"
    assert why_refused(b"\x80\x04cos\n") == "ends inside a name"


def export(native: Path, out: Path) -> Path:
    described = vocabulary(ROWS, (), ())
    return export_huggingface(
        native, out, tiny(), vocabulary=described, tokenizer_json=tokenizer_json(ROWS), token_names=()
    )
