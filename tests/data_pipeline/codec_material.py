"""Small models of the architectures of published codecs, with random weights, in the files that those come in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from configs.schema import CodebookConfig, CodecConfig, EncoderConfig

SAMPLE_RATE = 16_000


def sound(samples: int, seed: int = 0) -> np.ndarray:
    """float32 [samples]: noise whose loudness and colour change, in [-1, 1]."""
    rng, time = np.random.default_rng(seed), np.arange(samples)
    noise = rng.standard_normal(samples + 1)
    colour = 0.5 + 0.5 * np.sin(time / (2_500 + 300 * (seed % 5)))
    tone = np.sin(time * (0.05 + 0.03 * np.sin(time / 4_000)))
    loudness = 0.2 + 0.15 * np.sin(time / (900 + 200 * (seed % 5)))
    return (loudness * (colour * np.diff(noise) + tone)).clip(-1, 1).astype(np.float32)


def config_of(kind: str, weights: dict[str, Path], books: dict[str, dict[str, Any]], **more: Any) -> CodecConfig:
    groups = more.pop("group", dict.fromkeys(books, 1))
    codebooks = {name: CodebookConfig(**book) for name, book in books.items()}
    places = {part: str(path) for part, path in weights.items()}
    return CodecConfig(name=kind, kind=kind, weights=places, codebooks=codebooks, group=groups, **more)


def random_state(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Tensors of the size that keeps activations near one: norms about 1 and 0, matrices scaled by their inputs."""
    rng, state = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape)
        if len(shape) == 1:
            values = values * 0.1 + ("norm" in name and name.endswith("weight"))
        elif "embed" not in name and "codebook" not in name:
            values = values / np.sqrt(np.prod(shape[1:]))
        state[name] = torch.from_numpy(values.astype(np.float32))
    return state


# --- Step-Audio and CosyVoice -----------------------------------------------------------------------------------


def tokenizer_onnx(file: Path, entries: int, seed: int = 0, stride: int = 4) -> np.ndarray:
    """An ONNX model with the published inputs: the best matching of [entries, 128] rows, which it returns, to the mean
    of every `stride` mel frames, the last incomplete ones left out."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rows = np.random.default_rng(seed).standard_normal((entries, 128)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["feats"], ["pooled"], kernel_shape=[stride], strides=[stride]),
        helper.make_node("MatMul", ["rows", "pooled"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["codes"], axis=1, keepdims=0),
        helper.make_node("Identity", ["feats_length"], ["unused"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tokenizer",
        [
            helper.make_tensor_value_info("feats", TensorProto.FLOAT, [1, 128, "frames"]),
            helper.make_tensor_value_info("feats_length", TensorProto.INT32, [1]),
        ],
        [helper.make_tensor_value_info("codes", TensorProto.INT64, [1, "codes"])],
        [numpy_helper.from_array(rows, "rows")],
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    return rows


def sanm_shapes(
    width: int = 16, inner: int = 24, blocks: int = 3, tp_blocks: int = 0, kernel: int = 11, entering: int = 560
) -> dict[str, tuple[int, ...]]:
    """Of Paraformer's encoder, or with `tp_blocks` of SenseVoice-small's."""
    norms = ("after_norm", "tp_norm") if tp_blocks else ("after_norm",)
    shapes: dict[str, tuple[int, ...]] = {
        f"encoder.{norm}.{leaf}": (width,) for norm in norms for leaf in ("weight", "bias")
    }
    stacks = [("encoders0", 1), ("encoders", blocks - 1), ("tp_encoders", tp_blocks)]
    for at in (f"encoder.{stack}.{number}" for stack, count in stacks for number in range(count)):
        read = entering if "encoders0" in at else width
        for name, shape in {
            "norm1.weight": (read,),
            "norm1.bias": (read,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "self_attn.linear_q_k_v.weight": (3 * width, read),
            "self_attn.linear_q_k_v.bias": (3 * width,),
            "self_attn.linear_out.weight": (width, width),
            "self_attn.linear_out.bias": (width,),
            "self_attn.fsmn_block.weight": (width, 1, kernel),
            "feed_forward.w_1.weight": (inner, width),
            "feed_forward.w_1.bias": (inner,),
            "feed_forward.w_2.weight": (width, inner),
            "feed_forward.w_2.bias": (width,),
        }.items():
            shapes[f"{at}.{name}"] = shape
    return shapes


def write_statistics(folder: Path, width: int, rng: np.random.Generator) -> None:
    shift, scale = rng.normal(-9, 1, width), rng.uniform(0.1, 0.3, width)
    text = f"<Nnet>\n<Splice> {width} {width}\n[ 0 ]\n"
    for tag, values in (("AddShift", shift), ("Rescale", scale)):
        text += f"<{tag}> {width} {width}\n<LearnRateCoef> 0 [ {' '.join(f'{value:.6f}' for value in values)} ]\n"
    (folder / "am.mvn").write_text(text + "</Nnet>\n")


def funasr(folder: Path, encoder: EncoderConfig, seed: int = 1) -> EncoderConfig:
    """`encoder` with weights: a folder as FunASR publishes SenseVoice-small and Paraformer, with more than the encoder
    in its model."""
    folder.mkdir(parents=True)
    sizes = (encoder.width, encoder.ffn, encoder.layers, encoder.tp_layers, encoder.kernel, 7 * encoder.mels)
    state = random_state(sanm_shapes(*sizes), seed)
    state["embed.weight"] = torch.zeros(16, 7 * encoder.mels)
    state["ctc.ctc_lo.bias"] = torch.zeros(5)
    torch.save(state, folder / "model.pt")
    write_statistics(folder, 7 * encoder.mels, np.random.default_rng(2))
    return replace(encoder, weights=str(folder))


def step_audio(
    folder: Path, *, pickled: bool = False, width: int = 16, inner: int = 24, blocks: int = 3
) -> CodecConfig:
    folder.mkdir(parents=True)
    state = random_state(sanm_shapes(width, inner, blocks), seed=1)
    state["decoder.output_layer.bias"] = torch.zeros(5)
    if pickled:
        torch.save({"state_dict": state}, folder / "model.pt")
    else:
        save_file(state, folder / "model.safetensors")
    rng = np.random.default_rng(2)
    write_statistics(folder, 560, rng)
    np.save(folder / "linguistic_tokenizer.npy", rng.standard_normal((32, width)).astype(np.float32))
    tokenizer_onnx(folder / "speech_tokenizer_v1.onnx", 64)
    weights = dict.fromkeys(("paraformer", "centroids", "semantic"), folder)
    books = {"linguistic": {"size": 32, "rate": 50 / 3}, "semantic": {"size": 64, "rate": 25.0}}
    return config_of("step_audio", weights, books, group={"linguistic": 2, "semantic": 3})


def cosyvoice(folder: Path) -> CodecConfig:
    tokenizer_onnx(folder / "speech_tokenizer_v2.onnx", 81)
    return config_of("cosyvoice", {"model": folder}, {"fsq": {"size": 81, "rate": 25.0}})


# --- changed Whisper encoders -----------------------------------------------------------------------------------


def whisper_shapes(prefix: str, width: int, inner: int, layers: int, mels: int = 128) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}conv1.weight": (width, mels, 3),
        f"{prefix}conv1.bias": (width,),
        f"{prefix}conv2.weight": (width, width, 3),
        f"{prefix}conv2.bias": (width,),
    }
    for layer in range(layers):
        at = f"{prefix}layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{at}self_attn.{part}.weight"] = (width, width)
            if part != "k_proj":
                shapes[f"{at}self_attn.{part}.bias"] = (width,)
        for part, shape in (("fc1", (inner, width)), ("fc2", (width, inner))):
            shapes[f"{at}{part}.weight"], shapes[f"{at}{part}.bias"] = shape, shape[:1]
        for part in ("self_attn_layer_norm", "final_layer_norm"):
            shapes[f"{at}{part}.weight"] = shapes[f"{at}{part}.bias"] = (width,)
    return shapes


def glm4_voice(folder: Path, **changes: Any) -> CodecConfig:
    """`changes`: of the config.json, sizes among them."""
    folder.mkdir(parents=True)
    shape = {
        "model_type": "whisper",
        "d_model": 16,
        "num_mel_bins": 128,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "encoder_layers": 4,
        "max_source_positions": 1500,
        "activation_function": "gelu",
        "pooling_kernel_size": 4,
        "pooling_type": "avg",
        "pooling_position": 2,
        "quantize_position": 2,
        "quantize_vocab_size": 64,
        "quantize_causal_block_size": 20,
        "encoder_causal_convolution": True,
    } | changes
    (folder / "config.json").write_text(json.dumps(shape))
    width, entries = shape["d_model"], shape["quantize_vocab_size"]
    shapes = whisper_shapes("model.encoder.", width, shape["encoder_ffn_dim"], shape["encoder_layers"]) | {
        "model.encoder.embed_positions.weight": (1500, width),
        "model.encoder.embed_positions2.weight": (375, width),
        "model.encoder.codebook.weight": (entries, width),
        "model.encoder.ema_count": (entries,),
        "model.encoder.layer_norm.weight": (width,),
        "model.encoder.layer_norm.bias": (width,),
        "model.decoder.embed_tokens.weight": (10, width),
    }
    save_file(random_state(shapes, seed=3), folder / "model.safetensors")
    return config_of("glm4_voice", {"encoder": folder}, {"speech": {"size": entries, "rate": 12.5}})


BAICHUAN_SIZES = (32, 16, 8, 4)


def baichuan(folder: Path) -> CodecConfig:
    """In two files with an index, as large models are published."""
    folder.mkdir(parents=True)
    shape = {
        "d_model": 16,
        "num_mel_bins": 128,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "encoder_layers": 2,
        "activation_function": "gelu",
        "max_audio_seconds": 30,
        "sampling_rate": 16_000,
        "hop_length": 160,
        "stride_size": 2,
        "kernel_size": 3,
        "avg_pooler": 4,
        "vq_config": {"codebook_sizes": list(BAICHUAN_SIZES)},
    }
    (folder / "config.json").write_text(json.dumps({"audio_config": shape}))
    first = whisper_shapes("audio_tokenizer.audio_model.", 16, 24, 2) | {
        "audio_tokenizer.audio_model.positional_embedding": (1500, 16),
        "audio_tokenizer.audio_model.layer_norm.weight": (16,),
        "audio_tokenizer.audio_model.layer_norm.bias": (16,),
        "model.embed_tokens.weight": (10, 16),
    }
    bridge = "audio_tokenizer.audio_bridge_model."
    second: dict[str, tuple[int, ...]] = {
        f"{bridge}gate_proj.weight": (64, 16, 4),
        f"{bridge}up_proj.weight": (64, 16, 4),
        f"{bridge}down_proj.weight": (64, 64),
        f"{bridge}layer_norm.weight": (64,),
        f"{bridge}layer_norm.bias": (64,),
        f"{bridge}proj_decoder.weight": (16, 64),
    }
    second |= {f"{bridge}vq_list.{place}.codebook.embed": (size, 64) for place, size in enumerate(BAICHUAN_SIZES)}
    files = {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": second}
    for seed, (name, shapes) in enumerate(files.items()):
        save_file(random_state(shapes, seed=10 + seed), folder / name)
    weight_map = {tensor: name for name, shapes in files.items() for tensor in shapes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    books = {f"rvq_{place}": {"size": size, "rate": 12.5} for place, size in enumerate(BAICHUAN_SIZES)}
    return config_of("baichuan", {"model": folder}, books)


# --- models of transformers -------------------------------------------------------------------------------------


SMALL_MIMI = {
    "num_filters": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "codebook_size": 64,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "num_quantizers": 8,
    "sliding_window": 10,
    "upsample_groups": 32,
}
SMALL_HUBERT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


def mimi(folder: Path, shape: dict[str, Any] = SMALL_MIMI, rows: int = 6) -> CodecConfig:
    from transformers import MimiConfig, MimiModel

    torch.manual_seed(4)
    model = MimiModel(MimiConfig(**shape)).eval()
    state = model.state_dict()
    rng = np.random.default_rng(5)
    for name, value in state.items():
        if name.endswith("embed_sum"):
            state[name] = torch.from_numpy(rng.standard_normal(value.shape).astype(np.float32))
        elif name.endswith("cluster_usage"):
            state[name] = torch.ones_like(value)
    model.load_state_dict(state)
    model.save_pretrained(folder)
    books = {"mimi": {"size": model.config.codebook_size, "rate": 12.5, "rows": rows}}
    return config_of("mimi", {"model": folder}, books)


def hubert(
    folder: Path, *, stable: bool = False, shape: dict[str, Any] = SMALL_HUBERT, layer: int = 2, entries: int = 24
) -> CodecConfig:
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(6)
    norm = "layer" if stable else "group"
    model = HubertModel(HubertConfig(**shape, do_stable_layer_norm=stable, feat_extract_norm=norm))
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=stable).save_pretrained(folder)
    centroids = np.random.default_rng(7).standard_normal((entries, model.config.hidden_size))
    np.save(folder / "centroids.npy", centroids.astype(np.float32))
    books = {"unit": {"size": entries, "rate": 50.0, "layer": layer}}
    return config_of("hubert_kmeans", dict.fromkeys(("encoder", "centroids"), folder), books)


PUBLISHED: dict[str, Callable[[Path], CodecConfig]] = {
    "step_audio": step_audio,
    "cosyvoice": cosyvoice,
    "glm4_voice": glm4_voice,
    "mimi": mimi,
    "hubert_kmeans": hubert,
    "baichuan": baichuan,
}
