"""Hugging Face -> native TP4 x PP2 -> Hugging Face against `cp` of the same bytes, and a converter that loads all; and
the dry plan of a 130B.

    python tests/benchmarks/conversion.py            1B shape, 2.2 GB, three times
    python tests/benchmarks/conversion.py --size 7b  7B shape, 13.5 GB; needs 45 GB of disk

The weights are random bf16. Everything runs through the command line, start of Python included. What is read has just
been read, so what the page cache holds of it is warm for all; every result is synced to disk before its time is taken,
copies too. `cp` writes through the page cache; a conversion writes past it, so that its check reads from the disk. A
copy comes before each way of each repetition, since disks and neighbours change within minutes. Memory is the peak over
all processes together, sampled five times a second, of anonymous and shared memory (Pss_Anon + Pss_Shmem): mapped pages
of files are the page cache's and are told apart. The result is compared with the source byte by byte.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
TENSOR, PIPELINE = 4, 2
NEEDED = 3.2  # times the source's bytes: source, native files, result, and some room


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    rows: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """A Llama's, untied, by name."""
        kv = self.hidden // self.heads * self.kv_heads
        layer = {
            "input_layernorm": (self.hidden,),
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "post_attention_layernorm": (self.hidden,),
            "mlp.gate_proj": (self.ffn, self.hidden),
            "mlp.up_proj": (self.ffn, self.hidden),
            "mlp.down_proj": (self.hidden, self.ffn),
        }
        found = {"model.embed_tokens.weight": (self.rows, self.hidden)}
        for number in range(self.layers):
            found |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
        return found | {"model.norm.weight": (self.hidden,), "lm_head.weight": (self.rows, self.hidden)}

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.rows,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "torch_dtype": "bfloat16",
        }


SHAPES = {
    "tiny": Shape(4, 256, 704, 8, 8, 1024),
    "1b": Shape(22, 2048, 5632, 32, 4, 32000),
    "7b": Shape(32, 4096, 11008, 32, 32, 32000),
}


def make(folder: Path, shape: Shape) -> int:
    """A random checkpoint in several files; returns its bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(shape.config()))
    block = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    weight_map: dict[str, str] = {}
    batch: dict[str, torch.Tensor] = {}
    total = size = files = 0
    tensors = shape.tensors()
    for number, (name, sizes) in enumerate(tensors.items()):
        elements = torch.Size(sizes).numel()
        rolled = block.roll(number * 4099)  # no two tensors alike
        batch[name] = rolled.repeat(-(-elements // len(block)))[:elements].view(sizes).clone()
        size += elements * 2
        if size > 1 << 29 or number == len(tensors) - 1:
            file = f"model-{files:05d}.safetensors"
            save_file(batch, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(batch, file)
            total, size, files, batch = total + size, 0, files + 1, {}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sync(folder)
    return total


def sync(folder: Path) -> None:
    """Put every file on disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def warm(folder: Path) -> None:
    """Read everything once."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                while stream.read(1 << 24):
                    pass


@dataclass
class Peak:
    """Bytes: own memory of all processes together at its highest, and with the mapped pages of files; CPU seconds of
    all of them, which a machine that is shared with others changes less than time by the clock."""

    own: int = 0
    mapped: int = 0
    cpu: float = 0.0


def watched(command: Sequence[str]) -> tuple[float, Peak]:
    """Seconds that a command takes, and its peak."""
    peak = Peak()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    told: list[str] = []
    before = spent()
    reader = threading.Thread(target=lambda: told.extend(process.communicate()))
    reader.start()
    while reader.is_alive():
        own, mapped = memory_of(process.pid)
        peak.own, peak.mapped = max(peak.own, own), max(peak.mapped, own + mapped)
        reader.join(0.2)
    seconds = time.perf_counter() - begun
    peak.cpu = spent() - before
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n" + "\n".join(told))
    return seconds, peak


def spent() -> float:
    """CPU seconds so far of all processes that were started here and have ended, and of those they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory_of(root: int) -> tuple[int, int]:
    """Anonymous and shared memory, and mapped pages of files, of a process and all under it, in bytes."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    tree = {root}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    own = mapped = 0
    for pid in tree:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:
            continue
        held = {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines)}
        own += held.get("Pss_Anon", 0) + held.get("Pss_Shmem", 0)
        mapped += held.get("Pss_File", 0)
    return own, mapped


def copied(source: Path, target: Path) -> tuple[float, float]:
    """Seconds of `cp` and of syncing what it wrote, and CPU seconds of it."""
    before = spent()
    begun = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    sync(target)
    seconds = time.perf_counter() - begun
    return seconds, spent() - before


def converted(source: Path, target: Path, *options: str) -> tuple[float, Peak]:
    command = [sys.executable, "-m", "launch.cli", "checkpoint", "convert", str(source), str(target), *options]
    return watched(command)


def differing(source: Path, result: Path) -> list[str]:
    """Names of tensors that are not the same bytes in both."""
    ours, theirs = (_places(folder) for folder in (source, result))
    found = sorted(ours.keys() ^ theirs.keys())
    for name in ours.keys() & theirs.keys():
        with safe_open(ours[name], "pt") as a, safe_open(theirs[name], "pt") as b:
            one, other = a.get_tensor(name), b.get_tensor(name)
            if one.dtype != other.dtype or not torch.equal(one.view(torch.int16), other.view(torch.int16)):
                found.append(name)
    return found


def _places(folder: Path) -> dict[str, Path]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


NAIVE = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
source, native, result = map(Path, sys.argv[1:4])
tensor, pipeline = map(int, sys.argv[4:])
native.mkdir(); result.mkdir()
held = {}
for path in sorted(source.glob("*.safetensors")):
    held.update(load_file(path))
names = list(held)
ranks = [{} for _ in range(tensor * pipeline)]
for number, name in enumerate(names):
    axis = 1 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0
    stage = number * pipeline // len(names)
    for rank, part in enumerate(held[name].chunk(tensor, axis) if held[name].dim() > 1 else [held[name]]):
        ranks[stage * tensor + rank][name] = part.clone()
for rank, state in enumerate(ranks):
    torch.save(state, native / f"{rank}.pt")
del held, ranks
ranks = [torch.load(native / f"{rank}.pt", weights_only=True) for rank in range(tensor * pipeline)]
held = {}
for name in names:
    axis = 1 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0
    parts = [state[name] for state in ranks if name in state]
    held[name] = torch.cat(parts, axis) if len(parts) > 1 else parts[0]
save_file(held, result / "model.safetensors", metadata={"format": "pt"})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=tuple(SHAPES), default="1b")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="a folder on the disk to use")
    parser.add_argument("--repeat", type=int, default=None, help="times; three of 1b, else once")
    parser.add_argument("--no-check", action="store_true", help="without the round trip, which is part of it else")
    parser.add_argument("--workers", default=str(len(os.sched_getaffinity(0))))
    options = parser.parse_args()
    shape = SHAPES[options.size]
    size = sum(torch.Size(sizes).numel() for sizes in shape.tensors().values()) * 2
    free = shutil.disk_usage(options.folder).free
    if free < NEEDED * size:
        print(
            f"skipped: {options.size} needs {NEEDED * size / 1e9:.0f} GB in {options.folder}, {free / 1e9:.0f} are free"
        )
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="conversion-") as made:
        how = [f"--workers={options.workers}", *(["--no-check"] if options.no_check else [])]
        measure(Path(made), shape, options.size, how, options.repeat or (3 if options.size == "1b" else 1))
    plan_130b()


def measure(work: Path, shape: Shape, named: str, how: list[str], repeat: int) -> None:
    source, native, result = work / "source", work / "native", work / "result"
    size = make(source, shape)
    load = f"{os.getloadavg()[0]:.0f} waiting for {len(os.sched_getaffinity(0))} cores"
    print(f"{named} shape: {size / 1e9:.2f} GB of random bf16, {' '.join(how)}, {load}", flush=True)

    def tell(label: str, seconds: float, cpu: float, moved: int, peak: Peak | None = None) -> None:
        memory = "" if peak is None else f"{peak.own / 1e9:6.2f} GB own, {peak.mapped / 1e9:6.2f} with mapped pages"
        print(f"  {label:<26} {seconds:7.1f} s {moved / 1e6 / seconds:7.0f} MB/s {cpu:7.1f} s CPU {memory}", flush=True)

    def copy() -> float:
        warm(source)
        seconds, cpu = copied(source, work / "copy")
        tell("cp", seconds, cpu, size)
        shutil.rmtree(work / "copy")
        return seconds

    ratios: list[float] = []
    wrong: list[str] = []
    for _ in range(repeat):
        copies = copy()
        there, peak = converted(source, native, f"--tensor={TENSOR}", f"--pipeline={PIPELINE}", *how)
        tell(f"there, TP{TENSOR} x PP{PIPELINE}", there, peak.cpu, size, peak)
        copies += copy()
        warm(native)
        back, peak = converted(native, result, *how)
        tell("and back", back, peak.cpu, size, peak)
        ratios.append((there + back) / copies)
        wrong += differing(source, result)
        if (result / "config.json").read_bytes() != (source / "config.json").read_bytes():
            wrong.append("config.json")
        shutil.rmtree(native)
        shutil.rmtree(result)
    print(f"  both: {', '.join(f'{ratio:.2f}' for ratio in ratios)} times cp; different: {len(wrong)}", flush=True)
    if available() > 3.5 * size:
        script = [sys.executable, "-c", NAIVE, str(source), str(native), str(result), str(TENSOR), str(PIPELINE)]
        warm(source)
        seconds, peak = watched(script)
        begun = time.perf_counter()
        sync(work)
        tell("loading everything, both", seconds + time.perf_counter() - begun, peak.cpu, 2 * size, peak)
    else:
        print("  no room in memory for the converter that loads everything")
    if wrong:
        raise SystemExit(f"not the same: {', '.join(wrong[:3])}")


def plan_130b() -> None:
    """Time and memory of planning Step-Audio-Chat's backbone, every piece of every rank."""
    settings = ["backbone=step_audio_chat_130b", "parallel.tensor=8", "parallel.pipeline=8", "--rows=74752"]
    seconds, peak = watched([sys.executable, "-m", "launch.cli", "checkpoint", "plan", *settings])
    print(f"dry plan of the 130B at TP8 x PP8: {seconds:.1f} s, {peak.cpu:.1f} s CPU, {peak.own / 1e9:.2f} GB own")


def available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


if __name__ == "__main__":
    main()
