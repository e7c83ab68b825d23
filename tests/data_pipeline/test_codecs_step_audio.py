"""Step-Audio's pair: streaming Paraformer against the published procedure in float64, and the ONNX tokenizer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from data_pipeline.codecs import open_codec
from data_pipeline.codecs.low_frame_rate import filterbank
from data_pipeline.codecs.paraformer import features_in
from data_pipeline.codecs.step_audio import StepAudio, peak_normalised
from runtime.exits import BadInput
from tests.data_pipeline.codec_material import config_of, cosyvoice, sound, step_audio, tokenizer_onnx

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("step_audio") / "model"


@pytest.fixture(scope="module")
def codec(folder: Path) -> StepAudio:
    opened = open_codec(step_audio(folder))
    assert isinstance(opened, StepAudio)
    return opened


# --- filterbanks ------------------------------------------------------------------------------------------------


def kaldi_filterbank(wave: np.ndarray) -> np.ndarray:
    """float64 [frames, 80] by Kaldi's definition: mean removed, pre-emphasis 0.97, Hamming, 512 points, power, mel
    triangles from 20 Hz to 8000 Hz, log floored at float32's epsilon."""
    count = (len(wave) - 400) // 160 + 1 if len(wave) >= 400 else 0
    frames = np.stack([wave[160 * i : 160 * i + 400] for i in range(count)]).astype(np.float64) * 32768
    frames -= frames.mean(1, keepdims=True)
    frames -= 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(400) / 399)
    power = np.abs(np.fft.rfft(frames * window, 512)) ** 2
    mel = lambda hertz: 1127 * np.log(1 + hertz / 700)  # noqa: E731
    edges = np.linspace(mel(20.0), mel(8000.0), 82)
    bins = mel(np.arange(256) * 16_000 / 512)[None]
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    weights = np.maximum(np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)), 0)
    return np.log(np.maximum(power[:, :256] @ weights.T, np.finfo(np.float32).eps))


def test_filterbanks_are_kaldis() -> None:
    wave = sound(8_000)
    ours = filterbank(wave)
    assert ours.shape == (48, 80)
    assert np.abs(ours - kaldi_filterbank(wave)).max() < 2e-3
    assert filterbank(wave[:399]).shape == (0, 80)


# --- the published procedure, chunk by chunk --------------------------------------------------------------------


class Published:
    """The program's loop over chunks of 3840 samples with the caches that it keeps, in float64."""

    def __init__(self, folder: Path) -> None:
        self.state = {
            name.removeprefix("encoder."): value.numpy().astype(np.float64)
            for name, value in load_file(folder / "model.safetensors").items()
        }
        text = (folder / "am.mvn").read_text().split("<LearnRateCoef> 0 [")
        self.shift, self.scale = (np.array(part.split("]")[0].split(), np.float64) for part in text[1:])
        self.centroids = np.load(folder / "linguistic_tokenizer.npy").astype(np.float64)

    def features(self, wave: np.ndarray) -> list[np.ndarray]:
        """Of each chunk: low frame rate features, what cannot be completed kept for the next."""
        found, samples, rows = [], np.zeros(0), None
        chunks = len(wave) // 3840 + 1
        for number in range(chunks):
            chunk = wave[3840 * number : 3840 * (number + 1)]
            final = number == chunks - 1
            if final and not len(chunk):
                break
            samples = np.concatenate([samples, chunk])
            count = (len(samples) - 400) // 160 + 1 if len(samples) >= 400 else 0
            frames = kaldi_filterbank(samples) if count else np.zeros((0, 80))
            samples = samples[160 * count :]
            if rows is None and count:
                rows = np.repeat(frames[:1], 3, axis=0)
            if not count or len(rows) + count < 7:
                if count or rows is None or len(rows) <= 3:
                    break  # nothing is left that makes a feature
                frames = np.zeros((0, 80))
            rows = np.concatenate([rows, frames])
            made, start = [], 0
            while start < len(rows) - 3 and (start + 7 <= len(rows) or final):
                stack = rows[start : start + 7]
                made.append(np.concatenate([stack, np.repeat(stack[-1:], 7 - len(stack), axis=0)]).reshape(-1))
                start += 6
            rows = rows[min(start, len(rows) - 1) :]
            found.append((np.array(made) + self.shift) * self.scale)
        return found

    def codes(self, wave: np.ndarray) -> np.ndarray:
        state, width, done = self.state, 16, 0
        overlap, caches, found = np.zeros((5, 560)), {}, [np.zeros(0, np.int64)]
        for features in self.features(wave):
            half = 280
            speeds = np.exp(-np.arange(half) * np.log(10_000) / (half - 1))
            angles = np.arange(done + 1, done + 1 + len(features))[:, None] * speeds
            x = features * width**0.5 + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
            done += len(features)
            x = np.concatenate([overlap, x])
            overlap = x[-5:]
            for block in range(3):
                at = "encoders0.0." if block == 0 else f"encoders.{block - 1}."
                entering = x
                x = self.linear(self.norm(x, f"{at}norm1"), f"{at}self_attn.linear_q_k_v")
                q, k, v = np.split(x, 3, axis=1)
                kernel = state[f"{at}self_attn.fsmn_block.weight"][:, 0]
                room = np.pad(v, ((5, 5), (0, 0)))
                memory = v + sum(room[tap : tap + len(v)] * kernel[:, tap] for tap in range(11))
                keys, values = k[:-5], v[:-5]
                if block in caches:
                    old_keys, old_values = caches[block]
                    k, v = np.concatenate([old_keys, k]), np.concatenate([old_values, v])
                    keys = np.concatenate([old_keys, keys])[-16:]
                    values = np.concatenate([old_values, values])[-16:]
                caches[block] = keys, values
                mixed = []
                for head in range(4):
                    part = slice(4 * head, 4 * head + 4)
                    scores = np.exp(q[:, part] * 4**-0.5 @ k[:, part].T)
                    mixed.append(scores / scores.sum(1, keepdims=True) @ v[:, part])
                x = self.linear(np.concatenate(mixed, axis=1), f"{at}self_attn.linear_out") + memory
                x = x if block == 0 else entering + x
                inner = self.linear(self.norm(x, f"{at}norm2"), f"{at}feed_forward.w_1")
                x = x + self.linear(np.maximum(inner, 0), f"{at}feed_forward.w_2")
            out = self.norm(x, "after_norm")[-len(features) :]
            found.append(np.linalg.norm(out[:, None] - self.centroids[None], axis=2).argmin(1))
        return np.concatenate(found)

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        scaled = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-12)
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]


# About every end that a last chunk can have: none, too short for a frame, for a feature, for another, whole.
ENDS = [0, 399, 880, 3839, 3840, 3841, 3919, 3920, 4640, 4719, 4720, 4880, 7680, 9_000, 38_400, 50_001]


@pytest.mark.parametrize("samples", ENDS)
def test_linguistic_codes_are_the_published_procedures(codec: StepAudio, folder: Path, samples: int) -> None:
    wave = sound(samples)
    expected = Published(folder).codes(wave)
    (codes,) = codec.linguistic.codes([wave], 1e6)
    assert len(codes) == len(expected) == features_in(samples)
    assert np.array_equal(codes, expected)


@settings(max_examples=200)
@given(st.integers(0, 40_000))
def test_the_number_of_codes_is_that_of_the_procedure(samples: int) -> None:
    rest, chunks = samples % 3840, samples // 3840
    rows = (1 if chunks else 3) + max((rest + (320 if chunks else 0) - 400) // 160 + 1, 0)
    tail = sum(start + 3 < rows for start in range(0, rows, 6)) if rest and rows >= 7 else 0
    assert features_in(samples) == 4 * chunks + tail
    assert abs(features_in(samples) - samples / 960) <= 2.5


@settings(max_examples=25, derandomize=True)
@given(cuts=st.lists(st.integers(0, 9_000), min_size=1, max_size=8))
def test_linguistic_codes_stream_to_the_same(codec: StepAudio, cuts: list[int]) -> None:
    """Whatever pieces the sound comes in; codes come every 240 ms."""
    wave = sound(sum(cuts))
    stream, parts, start = codec.linguistic.stream(), [], 0
    for place, cut in enumerate(cuts):
        last = place == len(cuts) - 1
        parts.append(stream.encode(wave[start : start + cut], last=last)["linguistic"][0])
        start += cut
        if not last:
            assert sum(map(len, parts)) == start // 3840 * 4
    assert np.array_equal(np.concatenate(parts), codec.linguistic.codes([wave], 1e6)[0])
    with pytest.raises(ValueError, match="ended"):
        stream.encode(wave)


# --- the pair ---------------------------------------------------------------------------------------------------


def test_the_pair_is_of_the_peak_normalised_wave(codec: StepAudio, folder: Path) -> None:
    wave = 0.1 * sound(30_000)
    assert np.isclose(np.abs(peak_normalised(wave)).max(), 0.999)
    assert np.isclose(np.abs(peak_normalised(wave / np.abs(wave).max() * 0.005)).max(), 0.4995)
    (codes,) = codec.encode([wave])
    assert np.array_equal(codes["linguistic"][0], Published(folder).codes(peak_normalised(wave)))
    assert codes["semantic"].shape == (1, 46)
    assert np.array_equal(codec.encode([wave * 2])[0]["linguistic"], codes["linguistic"])
    config = step_audio(folder.with_name("as_it_is"))
    config.options["normalise"] = False
    as_it_is = open_codec(config).encode([peak_normalised(wave)])[0]
    assert all(np.array_equal(as_it_is[name], codes[name]) for name in codes)


def test_a_pickled_state_dict_loads_without_running_it(tmp_path: Path, codec: StepAudio) -> None:
    config = step_audio(tmp_path / "pt", pickled=True)
    wave = sound(20_000)
    assert np.array_equal(open_codec(config).encode([wave])[0]["linguistic"], codec.encode([wave])[0]["linguistic"])

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"state_dict": {"encoder.encoders0.0.norm1.weight": Evil()}}, tmp_path / "pt" / "model.pt")
    with pytest.raises(BadInput, match="not a file of tensors"):
        open_codec(config)
    assert not (tmp_path / "touched").exists()


# --- the ONNX tokenizer -----------------------------------------------------------------------------------------


def test_semantic_codes_are_those_of_the_log_mel(tmp_path: Path) -> None:
    from transformers import WhisperFeatureExtractor

    rows = tokenizer_onnx(tmp_path / "model.onnx", 81).astype(np.float64)
    config = config_of("cosyvoice", {"model": tmp_path / "model.onnx"}, {"fsq": {"size": 81, "rate": 25.0}})
    wave = sound(25_000)
    mel = WhisperFeatureExtractor(feature_size=128)._np_extract_fbank_features(wave[None], "cpu")[0]
    pooled = mel[:, : mel.shape[1] // 4 * 4].reshape(128, -1, 4).mean(2)
    assert np.array_equal(open_codec(config).encode([wave])[0]["fsq"][0], (rows @ pooled).argmax(0))


def test_windows_of_30_seconds_and_a_rest_below_480_samples(tmp_path: Path) -> None:
    codec = open_codec(cosyvoice(tmp_path))
    wave = sound(30 * 16_000 + 479)
    (codes,) = codec.encode([wave])
    assert codes["fsq"].shape == (1, 750)
    assert np.array_equal(codes["fsq"], codec.encode([wave[: 30 * 16_000]])[0]["fsq"])
    assert codec.encode([wave[:479]])[0]["fsq"].shape == (1, 0)


def test_models_that_are_not_such_a_tokenizer_are_one_line(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    config = cosyvoice(tmp_path / "fast")
    tokenizer_onnx(tmp_path / "fast" / "speech_tokenizer_v2.onnx", 81, stride=2)
    with pytest.raises(BadInput, match=r"gives 50 codes for 1\.00 s, not 25\.0 a second"):
        open_codec(config).encode([sound(16_000)])
    config = cosyvoice(tmp_path / "large")
    config.codebooks["fsq"].size = 3
    with pytest.raises(BadInput, match=r"gives code \d+, the size is 3"):
        open_codec(config).encode([sound(16_000)])
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "other",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(other, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "large" / "speech_tokenizer_v2.onnx")
    with pytest.raises(BadInput, match="not a log mel"):
        open_codec(config)
