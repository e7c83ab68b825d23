"""Folders of other programs whose files of torch.save were made to break their reader: one line, and no code runs."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.cli import main
from runtime.exits import BAD_INPUT
from tests.checkpoints.safety.folders import listing

# Where each format keeps what its reader looks at first.
PLACES = {
    "Megatron-LM": "iter_0000005/mp_rank_00/model_optim_rng.pt",
    "DeepSpeed": "global_step5/mp_rank_00_model_states.pt",
    "DeepSpeed pipeline": "global_step5/layer_01-model_00-model_states.pt",
    "DeepSpeed universal": "global_step5/zero/decoder.final_layernorm.weight/fp32.pt",
    "torch": "weights.pt",
}


class Evil:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch evil-was-here",)


class Eval:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("open('evil-was-here', 'w')",)


def saved(held: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(held, buffer)
    return buffer.getvalue()


def legacy(held: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(held, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def deflated(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return packed.getvalue()


def bytes_of(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


def link(path: Path) -> None:
    path.with_name("elsewhere").write_bytes(saved({"model": {"a": torch.ones(2)}}))
    path.symlink_to("elsewhere")


CONTENTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "runs a command": (bytes_of(saved({"model": Evil()})), "system"),
    "evaluates": (bytes_of(saved({"model": Eval()})), "eval"),
    "runs a command, in the old form": (bytes_of(legacy(Evil())), "no archive of torch.save"),
    "a bare pickle": (bytes_of(pickle.dumps({"model": Evil()})), "no archive of torch.save"),
    "compressed": (bytes_of(deflated(saved({"model": {"a": torch.ones(2)}}))), "compressed"),
    "cut short": (bytes_of(saved({"model": {"a": torch.ones(2)}})[:-40]), "damaged archive"),
    "nothing": (bytes_of(b""), "no archive of torch.save"),
    "a list": (bytes_of(saved([1, 2])), "."),
    "a link": (link, "a symbolic link"),
    "a FIFO": (os.mkfifo, "a FIFO"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("kind", PLACES)
def test_a_hostile_file_of_another_program_is_refused(
    kind: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put, says = CONTENTS[content]
    source = tmp_path / "source"
    place = source / PLACES[kind]
    place.parent.mkdir(parents=True)
    put(place)
    before = listing(tmp_path)
    folder = source / Path(PLACES[kind]).parts[0] if "/" in PLACES[kind] else source
    commands = [["inspect", str(folder)]]
    if content == "runs a command":
        commands += [["convert", str(folder), str(tmp_path / "out"), "backbone=tiny"]]
    for command in commands:
        assert main(["checkpoint", *command]) == BAD_INPUT
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and said.startswith("megaphone: error: ") and said[:-1].isprintable(), said
    assert listing(tmp_path) == before
    assert not list(Path.cwd().glob("evil-was-here"))
    if kind == "torch" and content != "a list":
        assert says in said


@pytest.mark.parametrize("pointer", ["latest", "latest_universal", "latest_checkpointed_iteration.txt"])
@pytest.mark.parametrize("names", ["../elsewhere", "/etc", "..", "gone", "", "link", "\0", "a\nb"])
def test_a_pointer_leads_to_a_folder_beside_it_alone(
    pointer: str, names: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And to a real one."""
    source = tmp_path / "source"
    there = tmp_path / "elsewhere" / "mp_rank_00"
    there.mkdir(parents=True)
    (there / "model_optim_rng.pt").write_bytes(saved({"model": {"a": torch.ones(2)}}))
    source.mkdir()
    (source / "link").symlink_to(tmp_path / "elsewhere")
    (source / pointer).write_text(names)
    assert main(["checkpoint", "inspect", str(source)]) == BAD_INPUT
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and pointer in said and said[:-1].isprintable()
