"""Conversions as users run them: there and back, cut off and gone on with, shared, refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from checkpoints import direct, strips
from checkpoints.card import read_card
from checkpoints.conversion import job as jobs
from checkpoints.conversion.engine import How, run
from checkpoints.conversion.job import Target
from checkpoints.conversion.wanted import Wanted, plan_job
from checkpoints.formats.native import NativeReader
from checkpoints.formats.stacking import NativeSource
from checkpoints.inspect import verify
from checkpoints.layout import TENSORS
from checkpoints.manifest import read_manifest
from configs.schema import ParallelConfig
from runtime.exits import STOPPED_EARLY, BadInput, StoppedEarly
from runtime.share import Share
from runtime.signals import stoppable
from tests.checkpoints.disks import small_disk
from tests.checkpoints.models import ROWS, backbone, tensors, tokenizer_json, write_model
from tests.ranks import run_ranks

TOPOLOGY = ParallelConfig(tensor=2, pipeline=2, pipeline_layout="Ett|tL")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of transformers in bf16, with a tokenizer and a file of somebody's beside."""
    folder = write_model(tmp_path_factory.mktemp("made") / "source", backbone(tied_embeddings=False), torch.bfloat16)
    (folder / "tokenizer.json").write_text(tokenizer_json(ROWS))
    (folder / "README.md").write_text("# somebody's model\n")
    return folder


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "source"))


@pytest.fixture
def small_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item for every few tensors of a tiny model."""
    monkeypatch.setattr(jobs, "_LEAST_ITEM", 4096)


def convert(source: Path, destination: Path, how: How | None = None, **wanted: Any) -> Path | None:
    job, beside = plan_job(source, destination, Wanted(**wanted))
    return run(job, destination, beside, how or How())


class Looks:
    """Does something at each look of a conversion whether it is to stop, and asks for that at the last one."""

    def __init__(self, last: int | None = None) -> None:
        self.last, self.looks = last, 0

    def __bool__(self) -> bool:
        self.looks += 1
        self.act()
        return self.last is not None and self.looks >= self.last

    def act(self) -> None:
        pass


def same_folder(one: Path, other: Path) -> bool:
    def names(folder: Path) -> set[str]:
        return {path.name for path in folder.iterdir()} - {"card.json", "card.md"}

    return names(one) == names(other) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names(one)
    )


# --- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_items")
def test_there_and_back_is_the_same_folder(source: Path, tmp_path: Path) -> None:
    native = convert(source, tmp_path / "native", How(check=True), parallel=TOPOLOGY)
    assert native is not None and verify(native) == []
    assert {path.name.split("_")[2] for path in (native / TENSORS).glob("*.distcp")} == {"0", "1", "2", "3"}
    card = read_card(native)
    assert card.verdict.startswith("equal: 30 of 30 tensors bit-identical") and card.target.topology["tensor"] == 2
    assert read_manifest(native).backbone is not None

    back = convert(native, tmp_path / "back", How(check=True))
    assert back is not None and same_folder(source, back)
    assert read_card(back).verdict.startswith("equal")


def test_a_native_checkpoint_is_cut_for_another_topology(source: Path, tmp_path: Path) -> None:
    one = convert(source, tmp_path / "one")
    assert one is not None
    four = convert(one, tmp_path / "four", How(check=True), target=Target.native, parallel=TOPOLOGY)
    assert four is not None and verify(four) == []
    a, b = NativeReader(one / TENSORS), NativeReader(four / TENSORS)
    assert all(torch.equal(a.read(name), b.read(name)) for name in a.tensors) and a.tensors == b.tensors
    back = convert(four, tmp_path / "back")
    assert back is not None and same_folder(source, back)


def test_a_cast_and_other_rows_are_told(source: Path, tmp_path: Path) -> None:
    native = convert(source, tmp_path / "native", How(check=True), dtype="float32", rows=128)
    assert native is not None
    before = tensors(source)["model.embed_tokens.weight"]
    after = NativeReader(native / TENSORS).read("model.embedding.word_embeddings.weight")
    assert after.shape == (128, 32) and torch.equal(after[:ROWS], before.float())
    (row,) = (row for row in read_card(native).rows if row.rule.startswith("embedding"))
    assert row.cast == "bfloat16 to float32" and row.resized is not None and row.resized.kept == ROWS
    assert "30 after the stated cast or change of rows" in read_card(native).verdict
    back = convert(native, tmp_path / "back", dtype="float32")
    assert back is not None
    config = json.loads((back / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "float32"


def test_several_files_get_an_index_that_loads(source: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    back = convert(source, tmp_path / "back", target=Target.huggingface, shard_bytes=20_000)
    assert back is not None and len(list(back.glob("model-*-of-*.safetensors"))) > 2
    loaded = AutoModelForCausalLM.from_pretrained(back, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in tensors(source).items())


def test_files_that_say_no_architecture_are_converted_by_a_given_one(source: Path, tmp_path: Path) -> None:
    """Plain safetensors, under the architecture's names and under Megatron's."""
    native = convert(source, tmp_path / "native", parallel=TOPOLOGY)
    assert native is not None
    plain = Path(shutil.copy(source / "model.safetensors", tmp_path / "theirs.safetensors"))
    layers = NativeSource(native)
    save_file({name: layers.read(name).clone() for name in layers.names}, tmp_path / "megatrons.safetensors")
    expected = NativeReader(native / TENSORS)
    for number, file in enumerate((plain, tmp_path / "megatrons.safetensors")):
        with pytest.raises(BadInput, match="does not say its backbone"):
            convert(file, tmp_path / "none")
        made = convert(file, tmp_path / str(number), How(check=True), backbone=backbone(tied_embeddings=False))
        assert made is not None and read_card(made).verdict.startswith("equal")
        found = NativeReader(made / TENSORS)
        assert found.tensors == expected.tensors
        assert all(torch.equal(found.read(name), expected.read(name)) for name in found.tensors)


# --- cut off --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_items")
@pytest.mark.parametrize("target", [Target.native, Target.huggingface])
def test_a_stop_keeps_what_is_done(source: Path, tmp_path: Path, target: Target) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    with pytest.raises(StoppedEarly, match="conversion stopped"):
        convert(source, out, How(stop=Looks(25)), target=target)
    done = {path: path.stat().st_mtime_ns for path in (partial / "work").glob("0*.json")}
    assert done and not out.exists()
    with pytest.raises(BadInput):
        plan_job(partial, tmp_path / "other", Wanted())  # what is half done is no source
    with pytest.raises(BadInput, match="begun with other options"):
        convert(source, out, target=target, dtype="float32")

    again = Looks()
    assert convert(source, out, How(stop=again, check=True), target=target) == out
    assert read_card(out).verdict.startswith("equal: 30 of 30")
    assert not partial.exists() and not (out / "work").exists()
    assert verify(out) == [] or target is Target.huggingface


def test_bare_safetensors_of_any_source(source: Path, tmp_path: Path) -> None:
    """Of a Hugging Face folder and of a native one, and taken back from there."""
    native = convert(source, tmp_path / "native", parallel=TOPOLOGY)
    assert native is not None
    expected = tensors(source)
    for number, given in enumerate((source, native)):
        bare = convert(given, tmp_path / str(number), How(check=True), target=Target.safetensors)
        assert bare is not None and read_card(bare).verdict.startswith("equal")
        assert {path.name for path in bare.iterdir()} == {"model.safetensors", "card.json", "card.md"}
        found = tensors(bare)
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    again = convert(bare, tmp_path / "again", backbone=backbone(tied_embeddings=False), parallel=TOPOLOGY)
    assert again is not None
    a, b = NativeReader(native / TENSORS), NativeReader(again / TENSORS)
    assert all(torch.equal(a.read(name), b.read(name)) for name in a.tensors)


@pytest.mark.usefixtures("small_items")
def test_a_source_that_changed_meanwhile_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedEarly):
        convert(source, tmp_path / "out", How(stop=Looks(12)))
    weights = source / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    with pytest.raises(BadInput, match=r"has changed since its conversion .* began; remove .*out\.partial"):
        convert(source, tmp_path / "out")


@pytest.mark.usefixtures("small_items")
def test_a_source_damaged_on_the_way_is_refused(source: Path, tmp_path: Path) -> None:
    native = convert(source, tmp_path / "native", parallel=TOPOLOGY)
    assert native is not None

    class Damages(Looks):
        def act(self) -> None:
            if self.looks == 60:  # after its files were hashed
                last = sorted((native / TENSORS).glob("__3_*"))[-1]
                os.truncate(last, last.stat().st_size // 2)

    damages = Damages()
    with pytest.raises(BadInput) as raised:
        convert(native, tmp_path / "out", How(stop=damages))
    assert damages.looks >= 60 and "\n" not in str(raised.value) and not (tmp_path / "out").exists()
    with pytest.raises(BadInput, match=r"out\.partial|refused"):
        convert(native, tmp_path / "out")


def test_weights_that_are_no_numbers_are_refused(source: Path, tmp_path: Path) -> None:
    held = tensors(source)
    held["model.norm.weight"][3] = float("nan")
    save_file(held, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"model.norm.weight has 1 of 32 values that are NaN"):
        convert(source, tmp_path / "out")


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source", backbone(hidden=256, ffn=704))
    with small_disk(tmp_path / "disk", 2_000_000) as mounted:
        with pytest.raises(BadInput, match=r"cannot write .*out.*: it takes 0.01 GB more, 0.00 GB" if mounted else ""):
            convert(source, tmp_path / "disk" / "out")
        assert not list((tmp_path / "disk").rglob("*.distcp")) or not mounted


# --- real processes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Some 110 MB in bf16: seven items."""
    folder = tmp_path_factory.mktemp("large") / "source"
    write_model(folder, backbone(layers=9, hidden=768, ffn=2048, heads=8, kv_heads=4), torch.bfloat16)
    yield folder
    shutil.rmtree(folder.parent)


def until_more_is_done(alive: Callable[[], bool], work: Path, done: int) -> int:
    """Wait for another item, as long as its process lives; how many there are then."""
    while alive() and len(list(work.glob("0*.json"))) <= done:
        time.sleep(0.002)
    return len(list(work.glob("0*.json")))


def go_on(source: Path, destination: Path) -> None:
    """In a process of its own, which a signal asks to stop."""
    with stoppable() as stop:
        try:
            convert(source, destination, How(stop=stop), parallel=ParallelConfig(tensor=2))
        except StoppedEarly:
            sys.exit(STOPPED_EARLY)


def test_killed_then_stopped_and_gone_on_with(large: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "out.partial" / "work"
    words = [sys.executable, "-m", "launch.cli", "checkpoint", "convert", str(large), str(out), "--tensor=2"]
    process = subprocess.Popen([*words, "--workers=2"], start_new_session=True, stderr=subprocess.PIPE, text=True)
    done = until_more_is_done(lambda: process.poll() is None, work, 0)
    os.killpg(process.pid, signal.SIGKILL)
    assert done and not out.exists(), process.communicate()[1]
    process.communicate()

    again = multiprocessing.get_context("forkserver").Process(target=go_on, args=(large, out))
    again.start()
    until_more_is_done(again.is_alive, work, len(list(work.glob("0*.json"))))
    assert again.pid is not None
    os.kill(again.pid, signal.SIGTERM)
    again.join(60)
    kept = {path.name: path.read_text() for path in work.glob("0*.json")}
    assert again.exitcode == STOPPED_EARLY and len(kept) > done and not out.exists()

    files = [name for text in kept.values() for name in json.loads(text)["files"]]
    before = {name: (out.with_name("out.partial") / TENSORS / name).stat().st_mtime_ns for name in files}
    assert convert(large, out, How(check=True), parallel=ParallelConfig(tensor=2)) == out
    assert read_card(out).verdict.startswith("equal") and verify(out) == []
    assert {name: (out / TENSORS / name).stat().st_mtime_ns for name in files} == before
    assert not list(tmp_path.glob("*partial*")) and not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("small_items")
def test_shares_of_one_conversion_meet(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each share does its own part; the last to end finishes; whoever comes after finds it done."""
    out = tmp_path / "out"
    assert convert(source, out, How(share=Share(0, 2)), parallel=TOPOLOGY) is None
    assert "8 of 16 items are" in capfd.readouterr().err and not out.exists()
    assert convert(source, out, How(share=Share(1, 2), check=True), parallel=TOPOLOGY) == out
    assert verify(out) == [] and read_card(out).verdict.startswith("equal: 30 of 30")


def share(source: str, out: str) -> bool:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return convert(Path(source), Path(out), How(share=Share(rank, world)), parallel=TOPOLOGY) is not None


def test_processes_share_at_the_same_time(source: Path, tmp_path: Path) -> None:
    finished = run_ranks(share, 2, str(source), str(tmp_path / "out"))
    assert any(finished) and verify(tmp_path / "out") == []


def measured(source: Path, destination: Path, told: Any) -> None:
    """In a process of its own, where no memory that was freed before serves again: its own at most, in bytes."""

    def own() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    class Highest(Looks):
        most = 0

        def act(self) -> None:
            self.most = max(self.most, own())

    seen = Highest()
    convert(source, destination, parallel=ParallelConfig(tensor=2))  # what torch needs at first
    before = own()
    convert(source, destination, How(stop=seen), parallel=ParallelConfig(tensor=2))
    told.put((seen.looks, seen.most - before))


def test_memory_is_that_of_buffers(large: Path, tmp_path: Path) -> None:
    """One a rank's file and one to lay rows together in, whatever the size of tensors."""
    context = multiprocessing.get_context("forkserver")
    told = context.Queue()
    process = context.Process(target=measured, args=(large, tmp_path / "out", told))
    process.start()
    looks, most = told.get(timeout=100)
    process.join()
    assert looks > 50 and most < 2 * (2 * direct._BUFFER + strips.BLOCK)  # of 110 MB
