"""Parts of training by themselves: attention by kernel, the vocabulary's loss, the flow decoder, Whisper's encoder as a
tokeniser."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from configs.alibi import alibi_slopes
from configs.schema import DecoderConfig
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.batch import Waves, collate
from tests.benchmarks.gpu import training
from tests.benchmarks.gpu.rows import attended, packed_rows
from tests.benchmarks.gpu.shapes import BACKBONES, Scale, backbone
from train.models.attention import kernels
from train.models.attention.row import packed_row
from train.models.decoder.flow import draw
from train.models.decoder.learning import FLOW, FlowTask, TrainedFlow
from train.models.heads.terms import Targets
from train.models.heads.vocabulary_loss import vocabulary_loss


def _seconds(call: Callable[[], Any], place: torch.device, times: int = 5) -> float:
    """Median of so many calls after one."""
    call()
    found = []
    for _ in range(times):
        if place.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if place.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return median(found)


def _peak(call: Callable[[], Any], place: torch.device) -> float | None:
    """GiB that a call takes beyond what is there."""
    if place.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


# --- attention --------------------------------------------------------------------------------------------------------


def attention(scale: Scale) -> Iterator[tuple[str, dict[str, Any]]]:
    """Forward and backward of one layer's attention in bf16, Step-Audio-TTS-3B's heads, over a row of packed samples;
    FlexAttention as we have its blocks cut, and as the compiler does. On a CPU by the one kernel that runs there."""
    place = training.device()
    shape = backbone("3b", "sqrt_alibi", scale)
    packs = packed_rows(1, scale.length, scale.ids, seed=1, words=scale.words)
    row = packed_row(collate(packs).to(place))
    size = shape.hidden // shape.heads
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(scale.length, heads, size, device=place, dtype=torch.bfloat16, requires_grad=True)
        for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    slopes = torch.tensor(alibi_slopes(shape.heads), device=place)
    flops = 14 * shape.heads * size * attended(packs)  # products of both passes, scores of the backward one again
    cuda = place.type == "cuda"
    plain, biased = (kernels.varlen, kernels.flex) if cuda else (kernels.sdpa, kernels.sdpa)
    for name, kernel, bias, cut in (
        ("no bias", plain, None, kernels.WIDE),
        ("sqrt-ALiBi", biased, slopes, kernels.WIDE),
        ("sqrt-ALiBi, as the compiler cuts", biased, slopes, None),
    ):

        def both(kernel: kernels.Kernel = kernel, bias: torch.Tensor | None = bias) -> None:
            kernel(query, key, value, row, bias, size**-0.5).sum().backward()

        with mock.patch.object(kernels, "WIDE", cut):
            seconds = _seconds(both, place)
        yield name, {"seconds": seconds, "tflops": flops / seconds / 1e12}


# --- the vocabulary's loss --------------------------------------------------------------------------------------------


def loss(scale: Scale) -> Iterator[tuple[str, dict[str, Any]]]:
    """Forward and backward in bf16, of 8,192 places: ours in chunks, torch's over all logits, and that compiled."""
    place = training.device()
    rows = scale.ids.rows
    for width in (64,) if scale.tiny else (576, 3072):
        generator = torch.Generator(place).manual_seed(0)
        states = torch.randn(scale.length, width, generator=generator, device=place, dtype=torch.bfloat16)
        weight = torch.randn(rows, width, generator=generator, device=place, dtype=torch.bfloat16).mul_(0.02)
        labels = torch.randint(rows, (1, scale.length), generator=generator, device=place)
        states.requires_grad_()
        weight.requires_grad_()
        ones = torch.ones(1, scale.length, device=place)

        def ours(chunk: int) -> None:
            vocabulary_loss(states, weight, Targets(labels, ones, chunk=chunk))[0].backward()  # noqa: B023

        def plain() -> torch.Tensor:
            return F.cross_entropy((states @ weight.t()).float(), labels[0], reduction="sum")  # noqa: B023

        compiled = torch.compile(plain) if place.type == "cuda" else plain
        sizes = (64,) if scale.tiny else (1024, 4096)
        ways: dict[str, Callable[[], Any]] = {f"ours, chunks of {size}": lambda size=size: ours(size) for size in sizes}
        ways |= {"torch, plain": lambda: plain().backward(), "torch, compiled": lambda: compiled().backward()}  # noqa: B023
        for name, call in ways.items():
            seconds = _seconds(call, place)
            yield f"hidden {width}: {name}", {"seconds": seconds, "gib": _peak(call, place)}


# --- the flow decoder -------------------------------------------------------------------------------------------------


def flow(scale: Scale) -> Iterator[tuple[str, dict[str, Any]]]:
    """Step-Audio's decoder, random weights, crops of 12 s: a training step with fused AdamW, and Euler's method. fp32
    with TF32, as its recipe trains in fp32."""
    place = training.device()
    torch.set_float32_matmul_precision("high")
    sizes = OmegaConf.load(BACKBONES.parent / "decoder" / ("tiny.yaml" if scale.tiny else "step_audio.yaml"))
    config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DecoderConfig), sizes))
    samples, seconds, times = (1, 0.6, 1) if scale.tiny else (16, config.seconds, 5)
    codes = scale.ids.linguistic + scale.ids.semantic
    torch.manual_seed(0)
    model = TrainedFlow(config, codes, 5 / 0.12).to(place)
    count = int(seconds * config.mel.rate)
    rng = np.random.default_rng(0)
    waves = Waves(
        samples=torch.from_numpy(rng.standard_normal((samples, count), np.float32) * 0.1).to(place),
        lengths=torch.full((samples,), count, device=place),
        speakers=torch.zeros(samples, config.speaker_width, device=place),
        seeds=torch.arange(samples, device=place),
        places=torch.zeros(samples, 1, dtype=torch.int64, device=place),
    )
    frames, length = count // config.mel.hop, int(seconds / 0.12) * 5
    task = FlowTask(
        ids=torch.from_numpy(rng.integers(0, codes, (samples, length))),
        lengths=torch.full((samples,), length),
        frames=torch.full((samples,), frames),
        most_frames=frames,
        drawn=draw(list(range(samples)), [frames] * samples, config),
    ).to(place)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        model(waves, task)[FLOW]["total"].div(samples * frames * config.mel.bands).backward()
        adam.step()
        adam.zero_grad()

    one = _seconds(step, place, times)
    yield (
        "training",
        {
            "seconds": one,
            "sound_a_second": samples * seconds / one,
            "gib": _peak(step, place),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
    )

    @torch.no_grad()
    def say() -> None:
        speakers, prompt = waves.speakers, torch.zeros_like(task.drawn.noise)
        conditions = model.flow.conditions(task.ids, task.lengths, speakers, prompt, task.frames)
        mask = torch.ones(samples, 1, frames, device=place)
        steps, guidance = 1 if scale.tiny else config.flow.euler_steps, config.flow.guidance
        model.flow.integrate(task.drawn.noise, mask, conditions, steps, guidance)

    one = _seconds(say, place, times)
    yield "synthesis", {"seconds": one, "sound_a_second": samples * seconds / one, "gib": _peak(say, place)}


# --- Whisper's encoder ------------------------------------------------------------------------------------------------


def whisper(scale: Scale) -> Iterator[tuple[str, dict[str, Any]]]:
    """Audio-hours a second through the encoder that the corpora's codec uses, and the nearest of 4,096 centroids;
    random weights of Whisper tiny's and medium's sizes. As corpora are built: fp32, sound cut in batches by length."""
    import tempfile

    from transformers import WhisperConfig, WhisperModel

    from data_pipeline.codecs.nearest import nearest
    from data_pipeline.codecs.whisper_encoder import WhisperFeatures

    place = training.device()
    torch.set_float32_matmul_precision("high")
    rng = np.random.default_rng(0)
    sounds = 2 if scale.tiny else 240
    waves = [
        rng.standard_normal(int(SAMPLE_RATE * rng.uniform(2, 4 if scale.tiny else 20)), np.float32) * 0.1
        for _ in range(sounds)
    ]
    hours = sum(map(len, waves)) / SAMPLE_RATE / 3600
    for name, width, layers in (("tiny", 64, 1),) if scale.tiny else (("tiny", 384, 4), ("medium", 1024, 24)):
        config = WhisperConfig(
            d_model=width,
            encoder_layers=layers,
            encoder_attention_heads=width // 64,
            encoder_ffn_dim=4 * width,
            decoder_layers=1,
            decoder_attention_heads=width // 64,
            decoder_ffn_dim=width,
            vocab_size=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
        with tempfile.TemporaryDirectory() as folder:
            WhisperModel(config).save_pretrained(folder)
            features = WhisperFeatures(folder, place.type)
        centroids = torch.randn(4096, width, device=place)

        def tokenise() -> None:
            for states in features.hidden_states(waves, {layers}):  # noqa: B023
                nearest(torch.from_numpy(states[layers]).to(place), centroids).cpu()  # noqa: B023

        tokenise()
        began = time.perf_counter()
        tokenise()
        seconds = time.perf_counter() - began
        yield name, {"seconds": seconds, "audio_hours_a_second": hours / seconds, "hours": hours}
