"""Hugging Face folders made to break their reader: each is refused in one line that says why; nothing is written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.formats.huggingface import HuggingFaceReader
from checkpoints.inspect import verify
from checkpoints.safety import open_regular
from launch.cli import main
from runtime.exits import BAD_INPUT, DONE, BadInput
from tests.checkpoints.safety.folders import (
    EMBEDDING,
    INDEX,
    NORM,
    PARTS,
    WEIGHTS,
    listing,
    refused,
    rewrite_config,
    rewrite_header,
    rewrite_index,
    rewrite_weights,
    split,
    to_native,
    weights,
    write_index,
    write_source,
)

Make = Callable[[Path], Any]


def start(length: int, size: int | None = None) -> Make:
    """Another length of the header; `size`: bytes of the file, which takes no room on the disk."""

    def make(folder: Path) -> None:
        path = folder / WEIGHTS
        path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
        if size is not None:
            os.truncate(path, size)

    return make


def header(change: Callable[[dict[str, Any]], Any], data: Callable[[bytes], bytes] = bytes) -> Make:
    return lambda folder: rewrite_header(folder, change, data)


def tensor(name: str = NORM, **changes: Any) -> Make:
    """Other values in the header's entry of one tensor."""
    return header(lambda held: held[name].update(changes))


def named(name: str) -> Make:
    """The norm under another name."""
    return header(lambda held: held.update({name: held.pop(NORM)}))


def moved(by: int) -> Make:
    """The tensor that lies last, at another place."""

    def change(held: dict[str, Any]) -> None:
        last = max((entry for name, entry in held.items() if name != "__metadata__"), key=lambda e: e["data_offsets"])
        last["data_offsets"] = [offset + by for offset in last["data_offsets"]]

    return header(change, lambda data: data + bytes(max(by, 0)))


def index(change: Callable[[dict[str, Any]], Any]) -> Make:
    return lambda folder: rewrite_index(folder, change)


def file_named(name: Any, tensor: str = NORM) -> Make:
    """An index that names something else as the file of one tensor."""
    return index(lambda held: held["weight_map"].update({tensor: name}))


def config(text: str | None = None, **changes: Any) -> Make:
    def make(folder: Path) -> None:
        if text is None:
            rewrite_config(folder, **changes)
        else:
            (folder / "config.json").write_text(text)

    return make


def values(**changes: Any) -> Make:
    return lambda folder: rewrite_weights(folder, **changes)


def in_place_of(name: str, put: Callable[[Path], Any]) -> Make:
    """Something else where a file was."""

    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        put(folder / name)

    return make


def link(name: str, outside: str) -> Make:
    """A file moved to another folder, and a link to it where it was."""

    def make(folder: Path) -> None:
        there = folder.parent / outside
        there.mkdir(exist_ok=True)
        (folder / name).rename(there / name)
        (folder / name).symlink_to(there / name)

    return make


def linked_folder(folder: Path) -> None:
    split(folder)
    there = folder.parent / "elsewhere"
    there.mkdir()
    (folder / PARTS[0]).rename(there / PARTS[0])
    (folder / "parts").symlink_to(there)
    listed = json.loads((folder / INDEX).read_text())
    for name, file in listed["weight_map"].items():
        listed["weight_map"][name] = f"parts/{file}" if file == PARTS[0] else file
    write_index(folder, listed)


def listed_twice(folder: Path) -> None:
    text = json.dumps(split(folder))
    write_index(folder, text.replace('"weight_map": {', f'"weight_map": {{"{NORM}": "{PARTS[0]}", '))


def dropped(folder: Path) -> None:
    rewrite_index(folder, lambda held: held["weight_map"].pop(NORM) and None)


def duplicate_header(held: dict[str, Any]) -> bytes:
    return json.dumps(held).replace("{", f'{{"{NORM}": {json.dumps(held[NORM])}, ', 1).encode()


def pickled_only(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def spoilt(value: float, count: int) -> Make:
    wrong = weights()[NORM].clone()
    wrong[:count] = value
    return values(model__norm__weight=wrong)


class Evil:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch evil-was-here",)


def a_socket(path: Path) -> None:
    """A name of a socket is short, so it is bound from its folder."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as held:
            held.bind(path.name)
    finally:
        os.chdir(before)


CASES: dict[str, tuple[Make, str]] = {
    # --- headers
    "an empty file": (in_place_of(WEIGHTS, Path.touch), r"model.safetensors: 0 bytes; no safetensors"),
    "a file of 7 bytes": (in_place_of(WEIGHTS, lambda path: path.write_bytes(b"7 bytes")), "7 bytes; no safetensors"),
    "header of length 0": (start(0), "length 0"),
    "header past the end": (start(1 << 16), "past the end of the file"),
    "header of 2^63 bytes": (start(1 << 63), "the format allows 100,000,000"),
    "header over the format's limit": (start(100_000_001, 200_000_000), "the format allows 100,000,000"),
    "header cut in its middle": (lambda folder: os.truncate(folder / WEIGHTS, 200), "past the end of the file"),
    "header not UTF-8": (header(lambda held: b'{"\xff": 1}'), "not UTF-8"),
    "header not JSON": (header(lambda held: b'{"a": '), "cannot be read as JSON"),
    "header an array": (header(lambda held: b"[]"), "not a JSON object"),
    "header a BOM first": (header(lambda held: b"\xef\xbb\xbf{}"), "not a JSON object"),
    "header nested deep": (header(lambda held: b'{"a":' * 100_000), "nested too deep"),
    "header names a tensor twice": (header(duplicate_header), "names 'model.norm.weight' twice"),
    "header with NaN": (header(lambda held: b'{"a": NaN}'), "NaN is no JSON value"),
    "an entry that is a list": (header(lambda held: held.update({NORM: []})), "described by something else"),
    "an entry without dtype": (header(lambda held: held[NORM].pop("dtype") and None), "described by something else"),
    "an entry with a field more": (tensor(stride=[1]), "described by something else"),
    "unknown dtype": (tensor(dtype="F31"), "unknown dtype 'F31'"),
    "dtype a number": (tensor(dtype=32), "unknown dtype 32"),
    "weights in int8": (tensor(dtype="I8", shape=[32]), "dtype I8; only floats"),
    "negative shape": (tensor(shape=[-8]), r"impossible shape \[-8\]"),
    "shape of a fraction": (tensor(shape=[8.0]), r"impossible shape \[8.0\]"),
    "shape of true": (tensor(shape=[True, 8]), "impossible shape"),
    "shape a word": (tensor(shape="8"), "impossible shape '8'"),
    "shape that overflows": (tensor(shape=[1 << 40, 1 << 40]), "more bytes than can be counted"),
    "shape that overflows beside 0": (tensor(shape=[0, 1 << 40, 1 << 40]), "more bytes than can be counted"),
    "shape of 10,000 axes": (tensor(shape=[1] * 10_000), "impossible shape"),
    "offsets overlap": (moved(-4), "overlaps the one before"),
    "offsets with a gap": (moved(4), "a gap of 4 bytes"),
    "offsets past the end": (tensor(data_offsets=[1 << 20, (1 << 20) + 32]), "past the end of the file"),
    "offsets out of order": (tensor(data_offsets=[64, 32]), "out of order"),
    "offsets negative": (tensor(data_offsets=[-32, 0]), "not two whole numbers"),
    "offsets of three": (tensor(data_offsets=[0, 32, 64]), "not two whole numbers"),
    "offsets not of the shape": (tensor(shape=[9]), "32 bytes of data, F32 .9. takes 36"),
    "trailing bytes": (header(lambda held: None, lambda data: data + b"more"), "4 trailing bytes"),
    "data cut short": (header(lambda held: None, lambda data: data[:-1]), "past the end of the file"),
    "tensor without a name": (named(""), "absurd tensor name ''"),
    "tensor with a newline": (named("model\nnorm"), "absurd tensor name"),
    "tensor with a NUL": (named("model\0"), "absurd tensor name"),
    "tensor with half a character": (named("\ud800"), "absurd tensor name"),
    "tensor with a name of 5,000": (named("m" * 5000), "absurd tensor name"),
    "metadata a list": (header(lambda held: held.update(__metadata__=["pt"])), "__metadata__ is malformed"),
    "metadata of numbers": (header(lambda held: held.update(__metadata__={"a": 1})), "__metadata__ is malformed"),
    # --- indexes
    "index to ../": (file_named("../model.safetensors"), "outside the folder"),
    "index to /": (file_named("/etc/passwd"), "outside the folder"),
    "index to ..": (file_named(".."), "outside the folder"),
    "index with a backslash": (file_named("..\\model.safetensors"), "outside the folder"),
    "index with a NUL": (file_named("model.safetensors\0.bin"), "outside the folder"),
    "index to a pickle": (file_named("pytorch_model.bin"), "only safetensors are read"),
    "index to a missing file": (file_named("gone.safetensors"), "gone.safetensors: missing"),
    "index to a number": (file_named(7), "names 7 as the file of"),
    "index to nothing": (file_named(None), "names None as the file of"),
    "index to a linked folder": (linked_folder, "outside the folder: 'parts/"),
    "index lists what a file lacks": (file_named(PARTS[0], "model.more.weight"), "which lacks it"),
    "index does not list a tensor": (dropped, "does not list it"),
    "index lists it elsewhere": (file_named(PARTS[0]), "lists tensor 'model.norm.weight' in .* lacks it"),
    "index names a tensor twice": (listed_twice, "names 'model.norm.weight' twice"),
    "index not an object": (index(lambda held: "[]"), "holds no JSON object"),
    "index without a map": (index(lambda held: {"metadata": {}}), "has no weight_map"),
    "index with a map of lists": (index(lambda held: {"weight_map": [1]}), "has no weight_map"),
    "index of nothing": (index(lambda held: {"weight_map": {}}), "has no weight_map"),
    "index of another size": (index(lambda held: held["metadata"].update(total_size=1)), "total_size is 1,"),
    "index of a size in words": (index(lambda held: held["metadata"].update(total_size="1")), "total_size is '1'"),
    "index with metadata a list": (index(lambda held: held.update(metadata=[])), "metadata is malformed"),
    "index nested deep": (index(lambda held: '{"a":' * 100_000), "nested too deep"),
    # --- config.json
    "config an array": (config("[]"), "holds no JSON object"),
    "config empty": (config(""), "cannot be read as JSON"),
    "config missing": (lambda folder: (folder / "config.json").unlink(), "config.json: missing"),
    "config with NaN": (config(rms_norm_eps=float("nan")), "NaN is no JSON value"),
    "config with 1e999": (config('{"model_type": "llama", "rope_theta": 1e999}'), "rope_theta is inf"),
    "config names a key twice": (config('{"hidden_size": 8, "hidden_size": 9}'), "names 'hidden_size' twice"),
    "config with words for numbers": (config(hidden_size="8"), "hidden_size is '8'"),
    "config with true for a number": (config(num_attention_heads=True), "num_attention_heads is True"),
    "config without heads": (config(num_attention_heads=0), "num_attention_heads is 0"),
    "config with 10^9 layers": (config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "config with 10^30 columns": (config(hidden_size=10**30), "hidden_size is 1000"),
    "config with a huge number": (config('{"hidden_size": ' + "9" * 5000 + "}"), "cannot be read as JSON"),
    "config with null for a number": (config(hidden_size=None), "hidden_size is None"),
    "config with words for rope": (config(rope_parameters="llama3"), "rope_parameters is 'llama3'"),
    "config of no model": (config("{}"), "model_type"),
    "config of another model": (config(num_hidden_layers=3), r"layers: 3 there, 2 in backbone\.test"),
    # --- tensors
    "a tensor too few": (values(model__norm__weight=None), "has no tensor model.norm.weight"),
    "a tensor too many": (values(model__adapter__weight=torch.ones(2)), "no place for tensor model.adapter.weight"),
    "a head that is not the tied one": (
        values(lm_head__weight=torch.ones(24, 8)),
        "lm_head.weight is not model.embed_tokens.weight",
    ),
    "a norm too long": (values(model__norm__weight=torch.ones(9)), r"model.norm.weight has shape \[9\]"),
    "an embedding too narrow": (values(model__embed_tokens__weight=torch.ones(24, 7)), r"has shape \[24, 7\]"),
    "an embedding too short": (
        values(model__embed_tokens__weight=torch.ones(23, 8)),
        r"has shape \[23, 8\], config.json says 24 rows",
    ),
    "a scalar embedding": (values(model__embed_tokens__weight=torch.ones(())), r"has shape \[\]"),
    "a NaN": (spoilt(float("nan"), 1), "model.norm.weight has 1 of 8 values that are NaN"),
    "infinities": (spoilt(-float("inf"), 3), "model.norm.weight has 3 of 8 values"),
    # --- files
    "pickled weights alone": (pickled_only, "'pytorch_model.bin' is pickled: .*save_pretrained"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "no model.safetensors"),
    "weights a link": (link(WEIGHTS, "elsewhere"), "model.safetensors: a symbolic link"),
    "weights a link to nowhere": (in_place_of(WEIGHTS, lambda path: path.symlink_to("gone")), "a symbolic link"),
    "weights a link to a device": (in_place_of(WEIGHTS, lambda path: path.symlink_to("/dev/zero")), "a symbolic link"),
    "config a link": (link("config.json", "elsewhere"), "config.json: a symbolic link"),
    "index a link to itself": (
        in_place_of(INDEX, lambda path: path.symlink_to(path.name)),
        "index.json: a symbolic link",
    ),
    "weights a FIFO": (in_place_of(WEIGHTS, os.mkfifo), "a FIFO, not a file"),
    "config a FIFO": (in_place_of("config.json", os.mkfifo), "a FIFO, not a file"),
    "index a FIFO": (in_place_of(INDEX, os.mkfifo), "a FIFO, not a file"),
    "weights a folder": (in_place_of(WEIGHTS, Path.mkdir), "a folder, not a file"),
    "config a folder": (in_place_of("config.json", Path.mkdir), "a folder, not a file"),
    "weights a socket": (in_place_of(WEIGHTS, a_socket), "model.safetensors: cannot be read"),
    "no folder": (shutil.rmtree, "config.json: missing"),
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("clean") / "source")


def test_what_is_not_tampered_with_is_converted(clean: Path, tmp_path: Path) -> None:
    """Or the cases below would show nothing."""
    assert verify(to_native(clean, tmp_path / "native")) == []
    parts = shutil.copytree(clean, tmp_path / "parts")
    split(parts)
    assert verify(to_native(parts, tmp_path / "of parts")) == []


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", CASES)
def test_a_hostile_folder_is_refused_in_one_line(
    name: str, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, says = CASES[name]
    source = shutil.copytree(clean, tmp_path / "source")
    make(source)
    with refused(tmp_path, says):
        to_native(source, tmp_path / "native")
    before = listing(tmp_path)
    assert main(["checkpoint", "convert", str(source), str(tmp_path / "converted")]) == BAD_INPUT
    assert one_line(capsys)
    begun = tmp_path / "converted.partial"  # what goes on from there once the source is mended
    assert verify(begun)
    assert {path for path in listing(tmp_path) if not path.startswith(begun.name)} == before
    code = main(["checkpoint", "inspect", str(source)])  # headers alone may be fine
    assert code == DONE or (code == BAD_INPUT and one_line(capsys))
    assert main(["checkpoint", "verify", str(source)]) == BAD_INPUT and not list(Path.cwd().glob("evil-was-here"))


def one_line(capsys: pytest.CaptureFixture[str]) -> bool:
    said = capsys.readouterr().err
    return said.count("\n") == 1 and said.startswith("megaphone: error: ") and said[:-1].isprintable()


def test_a_device_and_what_may_not_be_read_are_refused(clean: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="/dev/zero: a device, not a file"):
        open_regular(Path("/dev/zero"))
    source = shutil.copytree(clean, tmp_path / "source")
    (source / WEIGHTS).chmod(0)
    with without_privileges(tmp_path), refused(tmp_path, "model.safetensors: cannot be read .Permission denied."):
        HuggingFaceReader(source)


@contextmanager
def without_privileges(folder: Path) -> Iterator[None]:
    """Be somebody to whom permissions apply, where this process is the superuser; `folder` stays reachable."""
    if os.geteuid():
        yield
        return
    for place in (folder, *folder.parents[:3]):
        place.chmod(place.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_snapshot_of_the_hub_is_read_through_its_own_links_alone(clean: Path, tmp_path: Path) -> None:
    """The hub's cache keeps files as links from snapshots/<commit>/ into blobs/."""
    hub = tmp_path / "models--a--b"
    snapshot = hub / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (hub / "blobs").mkdir()
    for file in clean.iterdir():
        shutil.copyfile(file, hub / "blobs" / f"hash-of-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash-of-{file.name}")
    assert torch.equal(HuggingFaceReader(snapshot).read(EMBEDDING), weights()[EMBEDDING])
    outside = tmp_path / "outside"
    shutil.move(hub / "blobs" / f"hash-of-{WEIGHTS}", outside)
    (hub / "blobs" / f"hash-of-{WEIGHTS}").symlink_to(outside)
    with pytest.raises(BadInput, match="a symbolic link"):
        HuggingFaceReader(snapshot)
