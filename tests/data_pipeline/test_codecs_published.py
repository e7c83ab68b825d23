"""Published codecs on small models of their architecture: what all of them promise, and each one's arithmetic against
an independent computation."""

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from configs.schema import CodecConfig
from data_pipeline.codecs import Codec, codebooks_of, codec_identity, learns, open_codec
from data_pipeline.codecs.batching import batches
from data_pipeline.codecs.log_mel import LogMel
from data_pipeline.codecs.nearest import nearest
from data_pipeline.packages import package_folder
from runtime.exits import BadInput
from tests.data_pipeline.codec_material import BAICHUAN_SIZES, PUBLISHED, glm4_voice, hubert, mimi, sound

KINDS = sorted(PUBLISHED)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    """Config and codec of a kind, made once."""

    @lru_cache
    def make(kind: str) -> tuple[CodecConfig, Codec]:
        config = PUBLISHED[kind](tmp_path_factory.mktemp(kind) / "model")
        return config, open_codec(config)

    return make


# --- what all promise -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, derandomize=True)
@given(lengths=st.lists(st.integers(0, 45_000), min_size=1, max_size=6), budget=st.floats(0.5, 12.0))
def test_codes_do_not_depend_on_the_batch(opened, kind: str, lengths: list[int], budget: float) -> None:
    _, codec = opened(kind)
    if hasattr(codec, "_budget"):
        codec._budget = budget * codec.sample_rate
    waves = [sound(length, seed) for seed, length in enumerate(lengths)]
    together = codec.encode(waves)
    assert len(together) == len(waves)
    for wave, of in zip(waves, together, strict=True):
        (alone,) = codec.encode([wave])
        for book in codec.codebooks:
            codes = of[book.name]
            assert codes.dtype == np.int32 and codes.shape[0] == book.rows
            assert np.array_equal(codes, alone[book.name])
            assert not codes.size or 0 <= codes.min() <= codes.max() < book.size


@pytest.mark.parametrize("kind", KINDS)
def test_codes_differ_with_the_sound(opened, kind: str) -> None:
    _, codec = opened(kind)
    for book, codes in codec.encode([sound(60_000)])[0].items():
        assert len(np.unique(codes)) > 3, book


@pytest.mark.parametrize("kind", KINDS)
def test_codebooks_and_identity_need_no_weights(opened, kind: str, tmp_path: Path) -> None:
    config, codec = opened(kind)
    assert codebooks_of(config) == codec.codebooks
    assert not learns(config)
    assert codec.identity() == codec_identity(config)
    # moved, it is the same; changed, it is another
    again = PUBLISHED[kind](tmp_path / "again")
    assert codec_identity(again) == codec_identity(config)
    part, where = sorted(again.weights.items())[0]
    file = next(file for file in sorted(Path(where).iterdir()) if file.suffix in (".safetensors", ".onnx", ".npy"))
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert codec_identity(again) != codec_identity(config), part


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_weights_are_one_line(kind: str, tmp_path: Path) -> None:
    config = PUBLISHED[kind](tmp_path / "model")

    def refused(pattern: str) -> None:
        with pytest.raises(BadInput, match=pattern) as raised:
            open_codec(config)
        assert "\n" not in str(raised.value)

    book = next(iter(config.codebooks.values()))
    size = book.size
    book.size = size + 1
    if kind != "cosyvoice":  # an ONNX graph does not say how many codes there are
        refused(r"codec\.")
    book.size = size
    for file in sorted((tmp_path / "model").iterdir()):  # every file cut short, then missing
        content = file.read_bytes()
        if file.name == "preprocessor_config.json":
            continue
        file.write_bytes(content[: len(content) // 2])
        if file.suffix != ".onnx" or kind != "step_audio":
            refused(r"codec\.weights\.")
        file.unlink()
        refused(r"codec\.weights\.")
        file.write_bytes(content)
    for part in config.weights:
        right, config.weights[part] = config.weights[part], str(tmp_path / "nothing" / "here")
        refused(rf"codec\.weights\.{part}=.*no such file or folder")
        config.weights[part] = right
    open_codec(config)


@settings(max_examples=100)
@given(st.lists(st.integers(0, 1000), max_size=30), st.floats(1, 5000))
def test_batches_hold_everything_once_and_keep_to_the_budget(lengths: list[int], budget: float) -> None:
    made = list(batches(lengths, budget))
    assert sorted(index for batch in made for index in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
    longest = [max(lengths[index] for index in batch) for batch in made]
    assert longest == sorted(longest, reverse=True)


@settings(max_examples=30)
@given(st.integers(0, 50), st.integers(1, 30), st.integers(0, 2**31))
def test_nearest_is_the_nearest(points: int, entries: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cloud, centroids = rng.standard_normal((points, 6)), rng.standard_normal((entries, 6))
    found = nearest(torch.tensor(cloud).float(), torch.tensor(centroids).float()).numpy()
    distances = np.linalg.norm(cloud[:, None] - centroids[None], axis=2)
    assert (distances[np.arange(points), found] <= distances.min(1, initial=np.inf) + 1e-6).all()


@pytest.mark.parametrize("mels", [80, 128])
def test_log_mel_is_whispers(mels: int) -> None:
    from transformers import WhisperFeatureExtractor

    wave = sound(30_123)
    theirs = WhisperFeatureExtractor(feature_size=mels)._np_extract_fbank_features(wave[None], "cpu")[0]
    ours = LogMel(mels)(wave).numpy()
    assert ours.shape == theirs.shape == (mels, 188)
    assert np.abs(ours - theirs).max() < 1e-4


# --- arithmetic in float64 --------------------------------------------------------------------------------------

State = dict[str, np.ndarray]


def float64(*files: Path) -> State:
    return {name: value.numpy().astype(np.float64) for file in files for name, value in load_file(file).items()}


def gelu(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return 0.5 * x * (1 + erf(x / 2**0.5))


def norm(x: np.ndarray, state: State, name: str, eps: float = 1e-5) -> np.ndarray:
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: np.ndarray, state: State, name: str) -> np.ndarray:
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0.0)


def convolution(x: np.ndarray, state: State, name: str, sides: tuple[int, int], stride: int) -> np.ndarray:
    """[time, channels] through a convolution of width 3."""
    padded = np.pad(x, (sides, (0, 0)))
    places = range(0, len(padded) - 2, stride)
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return np.stack([np.einsum("ki,oik->o", padded[place : place + 3], weight) + bias for place in places])


def whisper(mel: np.ndarray, state: State, prefix: str, positions: str, layers: int, sides, seen) -> np.ndarray:
    """[frames, width] of [mel frames, bands]; two heads; `seen` [frames, frames] is true where a frame may look."""
    x = gelu(convolution(mel, state, f"{prefix}conv1", sides, 1))
    x = gelu(convolution(x, state, f"{prefix}conv2", sides, 2))
    x = x + state[positions][: len(x)]
    for layer in range(layers):
        at = f"{prefix}layers.{layer}."
        normed = norm(x, state, f"{at}self_attn_layer_norm")
        q, k, v = (
            linear(normed, state, f"{at}self_attn.{part}").reshape(len(x), 2, -1).swapaxes(0, 1)
            for part in ("q_proj", "k_proj", "v_proj")
        )
        scores = np.where(seen, q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(x), -1)
        x = x + linear(mixed, state, f"{at}self_attn.out_proj")
        inner = gelu(linear(norm(x, state, f"{at}final_layer_norm"), state, f"{at}fc1"))
        x = x + linear(inner, state, f"{at}fc2")
    return x


def closest(points: np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - table[None], axis=2).argmin(1)


def whisper_mel(wave: np.ndarray) -> np.ndarray:
    from transformers import WhisperFeatureExtractor

    mel = WhisperFeatureExtractor(feature_size=128)._np_extract_fbank_features(wave[None], "cpu")[0]
    return mel.T.astype(np.float64)


# --- GLM-4-Voice ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block, causal, pool", [(20, True, "avg"), (None, False, "avg"), (7, True, "max")])
def test_glm4_voice_is_block_causal_attention_then_pooling(tmp_path: Path, block, causal: bool, pool: str) -> None:
    config = glm4_voice(
        tmp_path / "glm", quantize_causal_block_size=block, encoder_causal_convolution=causal, pooling_type=pool
    )
    wave = sound(33_000)
    ((_, codes),) = open_codec(config).encode([wave])[0].items()
    state = float64(tmp_path / "glm" / "model.safetensors")
    count = -(-len(wave) // 1280)
    frames = np.arange(4 * count)
    real = np.broadcast_to(frames * 320 < len(wave), (len(frames), len(frames)))
    earlier = frames[None] <= frames[:, None]
    same = (frames[None] // block == frames[:, None] // block) if block else np.ones_like(earlier)
    seen = real & (earlier | same)
    mel = whisper_mel(np.pad(wave, (0, count * 1280 - len(wave))))
    sides = (2, 0) if causal else (1, 1)
    x = whisper(mel, state, "model.encoder.", "model.encoder.embed_positions.weight", 2, sides, seen)
    grouped = x.reshape(count, 4, -1)
    pooled = grouped.mean(1) if pool == "avg" else grouped.max(1)
    assert codes.shape == (1, 26)  # 25.8 codes, rounded up
    assert np.array_equal(codes[0], closest(pooled, state["model.encoder.codebook.weight"]))


def test_glm4_voice_encodes_windows_of_30_seconds(opened) -> None:
    _, codec = opened("glm4_voice")
    wave = sound(30 * 16_000 + 5_000)
    (codes,) = codec.encode([wave])
    first, second = codec.encode([wave[: 30 * 16_000], wave[30 * 16_000 :]])
    assert codes["speech"].shape == (1, 375 + 4)
    assert np.array_equal(codes["speech"], np.concatenate([first["speech"], second["speech"]], axis=1))


def test_glm4_voice_that_pools_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="another layer"):
        open_codec(glm4_voice(tmp_path / "glm", pooling_position=1))
    with pytest.raises(BadInput, match=r"config\.json is no GLM-4-Voice tokenizer's: 'sum'"):
        open_codec(glm4_voice(tmp_path / "other", pooling_type="sum"))


# --- Baichuan ---------------------------------------------------------------------------------------------------


def test_baichuan_quantises_residuals_of_the_gated_bridge(opened) -> None:
    config, codec = opened("baichuan")
    folder = Path(config.weights["model"])
    state = float64(*sorted(folder.glob("*.safetensors")))
    wave = sound(40_000)
    (codes,) = codec.encode([wave])
    # the published program fills up to 30 s, keeps the mel frames that touch sound, and sets the rest to zero
    valid = 40_000 // 160 + 1
    mel = whisper_mel(np.pad(wave, (0, 480_000 - len(wave))))[:valid]
    seen = np.ones((126, 126), bool)
    prefix = "audio_tokenizer.audio_model."
    x = whisper(mel, state, prefix, f"{prefix}positional_embedding", 2, (1, 1), seen)
    assert len(x) == 126
    x = norm(x, state, f"{prefix}layer_norm")[:124].reshape(31, 4, 16)
    bridge = "audio_tokenizer.audio_bridge_model."
    gate, up = (np.einsum("tki,oik->to", x, state[f"{bridge}{name}.weight"]) for name in ("gate_proj", "up_proj"))
    residual = gate / (1 + np.exp(-gate)) * up @ state[f"{bridge}down_proj.weight"].T + x.reshape(31, 64)
    residual = norm(residual, state, f"{bridge}layer_norm")
    for place in range(len(BAICHUAN_SIZES)):
        table = state[f"{bridge}vq_list.{place}.codebook.embed"]
        expected = closest(residual, table)
        assert np.array_equal(codes[f"rvq_{place}"], expected[None])
        residual = residual - table[expected]


# --- HuBERT -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stable", [False, True])
def test_hubert_units_are_those_of_transformers_layer(tmp_path: Path, stable: bool) -> None:
    from transformers import HubertModel

    config = hubert(tmp_path / "hubert", stable=stable)
    wave = sound(20_000)
    (codes,) = open_codec(config).encode([wave])
    values = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7) if stable else wave
    with torch.no_grad():
        model = HubertModel.from_pretrained(tmp_path / "hubert").eval()
        states = model(torch.from_numpy(values)[None], output_hidden_states=True).hidden_states[2][0]
    centroids = np.load(tmp_path / "hubert" / "centroids.npy")
    assert codes["unit"].shape == (1, (20_000 - 400) // 320 + 1)
    assert np.array_equal(codes["unit"][0], closest(states.numpy().astype(np.float64), centroids))


def test_hubert_centroids_of_joblib_are_not_unpickled(tmp_path: Path) -> None:
    config = hubert(tmp_path / "hubert")
    file = tmp_path / "kmeans.npy"
    np.save(file, np.array([{"cluster_centers_": 1}], dtype=object), allow_pickle=True)
    config.weights["centroids"] = str(file)
    with pytest.raises(BadInput, match="not an npy file of centroids"):
        open_codec(config)


# --- Mimi -------------------------------------------------------------------------------------------------------


def test_mimi_codes_are_those_of_transformers(opened) -> None:
    from transformers import MimiModel

    config, codec = opened("mimi")
    assert codec.sample_rate == 24_000
    wave = sound(24_000)
    (codes,) = codec.encode([wave])
    whole = np.pad(wave, (0, 13 * 1920 - len(wave)))
    with torch.no_grad():
        model = MimiModel.from_pretrained(config.weights["model"]).eval()
        theirs = model.encode(torch.from_numpy(whole)[None, None], num_quantizers=6).audio_codes[0].numpy()
    assert codes["mimi"].shape == (6, 13)
    assert np.array_equal(codes["mimi"], theirs)


@settings(max_examples=15, derandomize=True)
@given(cuts=st.lists(st.integers(0, 7_000), min_size=1, max_size=8))
def test_mimi_streams_to_the_same_codes(opened, cuts: list[int]) -> None:
    _, codec = opened("mimi")
    wave = sound(sum(cuts))
    stream = codec.stream()
    starts = np.cumsum([0, *cuts])
    parts = [
        stream.encode(wave[start : start + cut], last=place == len(cuts) - 1)["mimi"]
        for place, (start, cut) in enumerate(zip(starts, cuts, strict=False))
    ]
    assert np.array_equal(np.concatenate(parts, axis=1), codec.encode([wave])[0]["mimi"])
    with pytest.raises(ValueError, match="ended"):
        stream.encode(wave)


def test_a_long_wave_has_the_same_codes_piece_by_piece(opened, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = sound(70_000)
    for kind in ("mimi", "step_audio"):
        _, codec = opened(kind)
        waves = [wave, wave[:9_000], wave[::-1].copy()]
        whole = codec.encode(waves)
        with monkeypatch.context() as patched:
            patched.setattr(f"data_pipeline.codecs.{kind}.LONG", 1)
            pieces = codec.encode(waves)
        for of, same in zip(whole, pieces, strict=True):
            assert all(np.array_equal(of[book], same[book]) for book in of), kind


def test_more_rows_than_the_model_has_are_refused(tmp_path: Path) -> None:
    config = mimi(tmp_path / "mimi")
    config.codebooks["mimi"].rows = 9
    with pytest.raises(BadInput, match=r"rows=9: the model has 8"):
        open_codec(config)


# --- hub names and packages -------------------------------------------------------------------------------------

HUB = """
import sys
import numpy as np
from pathlib import Path
from data_pipeline.codecs import codec_identity, open_codec
from runtime.exits import BadInput
from tests.data_pipeline.codec_material import PUBLISHED, sound

for kind, name in zip(sys.argv[2::2], sys.argv[3::2]):
    config = PUBLISHED[kind](Path(sys.argv[1]) / kind)
    here = open_codec(config).encode([sound(30_000)])[0]
    config.weights = dict.fromkeys(config.weights, name)
    assert name in codec_identity(config)
    from_hub = open_codec(config).encode([sound(30_000)])[0]
    assert all(np.array_equal(here[book], from_hub[book]) for book in here), kind
    config.weights = dict.fromkeys(config.weights, "somebody/nothing")
    try:
        open_codec(config)
    except BadInput as refused:
        print(refused)
"""


def test_hub_names_are_found_in_the_hubs_cache(tmp_path: Path) -> None:
    """Without the network, as on most clusters' nodes: a revision, a branch, and Step-Audio's nested folder."""
    commit, nested = (
        "0123456789abcdef0123456789abcdef01234567",
        "dengcunqin/" + ("speech_paraformer-large_asr_nat-zh-cantonese-en-16k-vocab8501-online"),
    )
    kinds = {"glm4_voice": f"a/glm@{commit}", "mimi": "a/mimi", "baichuan": "a/baichuan", "step_audio": "a/step"}
    for kind, spec in kinds.items():
        repository = tmp_path / "hub" / f"models--{spec.partition('@')[0].replace('/', '--')}"
        snapshot = repository / "snapshots" / commit
        PUBLISHED[kind](snapshot)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
        if kind == "step_audio":
            (snapshot / nested).mkdir(parents=True)
            for name in ("model.safetensors", "am.mvn"):
                (snapshot / name).rename(snapshot / nested / name)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    words = [word for kind, spec in kinds.items() for word in (kind, spec)]
    done = subprocess.run(
        [sys.executable, "-c", HUB, str(tmp_path), *words],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("codec.weights.")]  # libraries print too
    assert len(lines) == len(kinds)
    assert all("somebody/nothing" in line for line in lines), lines


def test_a_package_that_carries_weights_is_found(tmp_path: Path) -> None:
    config = hubert(tmp_path / "hubert")
    config.weights["centroids"] = "package:numpy"  # a package, but of no centroids
    with pytest.raises(BadInput, match=r"package:numpy: the folder has no centroids\.npy or unit\.npy"):
        open_codec(config)
    assert json.loads(codec_identity(config))["weights"]["centroids"].startswith(package_folder("numpy").name)
