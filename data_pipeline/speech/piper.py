"""Piper voices (VITS in ONNX), with exact word times and no hidden randomness.

The model as shipped draws its noise inside the graph and keeps its phoneme durations to itself. The patched
copy takes the noise as inputs and gives the durations, so that what is said depends on text and seed alone,
and every word's time is a sum of frame counts.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.audio import resample, with_silence
from data_pipeline.packages import only_file, package_folder, package_version
from data_pipeline.speech.voice import Spoken
from data_pipeline.speech.words import align_words, divide
from data_pipeline.utterance import Word
from runtime.exits import BadInput

SILENCE = 0.08  # seconds before and after; a bare Piper clip can start inside its first consonant
HOP = 256  # samples a duration frame, of every VITS voice Piper ships
LONGEST = 4096  # duration frames, 47 s at 22.05 kHz
PAUSES = frozenset(" _^$.,!?;:\u2026\u2014\u00a1\u00bf\"'()")
STRESS = frozenset("\u02c8\u02cc\u02d0")
_SILENT = str.maketrans({'"': None, "(": None, ")": ","})  # no reader says quotes or brackets
LICENCE = "CC0-1.0"  # of joe; the dataset's

_LATENT_NOISE, _DURATION_NOISE = "/RandomNormalLike", "/dp/RandomNormalLike"


def _model_file(name: str) -> Path:
    file = Path(name)
    if file.suffix == ".onnx":
        if not file.is_file():
            raise BadInput(f"corpus.voice=piper:{name}: no such file")
        return file
    return only_file(package_folder(name), "*.onnx")


def _patched_file(name: str, cache: Path) -> Path:
    return cache / "voices" / _model_file(name).name


def identity(name: str) -> str:
    """What determines the sound beside text and seed, for content hashes."""
    file = _model_file(name)
    versions = " ".join(f"{p} {package_version(p)}" for p in (name, "piper-tts", "onnxruntime"))
    return f"{file.name} {file.stat().st_size} {versions}"


def prepare(name: str, cache: Path) -> None:
    """Write the patched model into `cache` unless it is there."""
    source, patched = _model_file(name), _patched_file(name, cache)
    if not patched.is_file():
        patched.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f"{source}.json", f"{patched}.json")
        unfinished = patched.with_suffix(f".{os.getpid()}")
        try:
            _patch(source, unfinished)
            os.replace(unfinished, patched)
        finally:
            unfinished.unlink(missing_ok=True)


def _patch(source: Path, target: Path) -> None:
    import onnx

    model = onnx.load(str(source))
    graph = model.graph
    durations = [node.output[0] for node in graph.node if node.op_type == "Ceil"]
    noises = {node.name: node for node in graph.node if node.op_type == "RandomNormalLike"}
    if len(durations) != 1 or set(noises) != {_LATENT_NOISE, _DURATION_NOISE}:
        raise BadInput(f"{source} is not a Piper voice this release knows: its graph has other noise or durations")
    nodes: list[Any] = []
    for node in graph.node:
        if node.name not in noises:
            nodes.append(node)
            continue
        # The noise's shape is known only inside the graph: a long enough input is cut to the shape of what it joins.
        name = "latent_noise" if node.name == _LATENT_NOISE else "duration_noise"
        nodes.append(onnx.helper.make_node("Shape", [node.input[0]], [f"{name}_shape"]))
        nodes.append(onnx.helper.make_node("Slice", [name, "zeros_of_three", f"{name}_shape"], [node.output[0]]))
        graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, None, None]))
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, np.int64), "zeros_of_three"))
    graph.output.append(onnx.helper.make_tensor_value_info(durations[0], onnx.TensorProto.FLOAT, None))
    target.write_bytes(model.SerializeToString())


class PiperVoice:
    """A Piper voice on one thread."""

    def __init__(self, name: str, cache: Path) -> None:
        try:
            import onnxruntime
            from piper.phonemize_espeak import ESPEAK_DATA_DIR, EspeakPhonemizer
        except ModuleNotFoundError as error:
            raise BadInput(f"corpus.voice=piper:{name} needs {error.name}: pip install piper-tts") from error

        patched = _patched_file(name, cache)
        self._config = json.loads(Path(f"{patched}.json").read_text(encoding="utf-8"))
        self.speaker = patched.stem
        self.licence = LICENCE
        self._rate = int(self._config["audio"]["sample_rate"])
        self._phonemizer = EspeakPhonemizer(ESPEAK_DATA_DIR)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(patched), options, providers=["CPUExecutionProvider"])

    def phonemes(self, text: str) -> list[str]:
        """Phonemes of each sentence of `text`; spaces stand between spoken words."""
        sentences = self._phonemizer.phonemize(self._config["espeak"]["voice"], text)
        return [joined for sentence in sentences if (joined := "".join(sentence)).strip()]

    def speak(self, text: str, seed: int) -> Spoken | None:
        """See `Voice.speak`. Sentences are said one after the other, as Piper does."""
        rng = np.random.default_rng(seed)
        waves: list[np.ndarray] = []
        spoken: list[SpokenWord] = []
        start = 0
        for phonemes in self.phonemes(text.translate(_SILENT)):
            wave, samples = self._synthesize(phonemes, rng)
            spoken += _spoken_words(phonemes, samples, start)
            waves.append(wave)
            start += len(wave)
        words = self._timed(text.split(), spoken) if waves else None
        if words is None:
            return None
        wave = with_silence(resample(np.concatenate(waves), self._rate), SILENCE, SILENCE)
        return Spoken(wave, words)

    def _synthesize(self, phonemes: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """float32 [samples] at the voice's rate, and how many samples each phoneme takes, "^" and "$" included."""
        table = self._config["phoneme_id_map"]
        pad = table["_"]
        ids: list[int] = []
        owner: list[int] = []  # which phoneme an id belongs to; the pad after it is its own
        for index, phoneme in enumerate(["^", *phonemes, "$"]):
            of_phoneme = [*table.get(phoneme, []), *(pad if phoneme != "$" and phoneme in table else [])]
            ids += of_phoneme
            owner += [index] * len(of_phoneme)
        inference = self._config["inference"]
        wave, frames = self._session.run(
            None,
            {
                "input": np.asarray([ids], np.int64),
                "input_lengths": np.asarray([len(ids)], np.int64),
                "scales": np.asarray(
                    [inference["noise_scale"], inference["length_scale"], inference["noise_w"]], np.float32
                ),
                "duration_noise": rng.standard_normal((1, 2, len(ids)), np.float32),
                "latent_noise": rng.standard_normal((1, 192, LONGEST), np.float32),
            },
        )
        samples = np.bincount(owner, weights=frames.reshape(-1) * HOP, minlength=len(phonemes) + 2).astype(np.int64)
        wave = np.clip(wave.reshape(-1), -1.0, 1.0)
        if samples.sum() != len(wave):
            raise BadInput(f"voice {self.speaker}: {len(wave)} samples said, but its durations sum to {samples.sum()}")
        return wave, samples

    def _timed(self, written: list[str], spoken: list[SpokenWord]) -> tuple[Word, ...] | None:
        """The written words with the times of what was said for them."""
        alone = ["".join(map(_sounds, self.phonemes(word.translate(_SILENT)))) for word in written]
        steps = align_words(alone, [word.sounds for word in spoken])
        if steps is None:
            return None
        words = []
        for i, i_end, j, j_end in steps:
            cuts = [start for word in spoken[j:j_end] for start in word.starts] + [spoken[j_end - 1].end]
            edges = divide(len(cuts) - 1, [len(sounds) for sounds in alone[i:i_end]])
            for text, first, last in zip(written[i:i_end], edges[:-1], edges[1:], strict=True):
                start, end = cuts[first] / self._rate, cuts[last] / self._rate
                words.append(Word(text, round(SILENCE + start, 4), round(SILENCE + end, 4)))
        return tuple(words)


@dataclass
class SpokenWord:
    """What was said between two pauses: its sounds, the sample at which each starts, and where the last ends."""

    sounds: str
    starts: list[int]
    end: int


def _sounds(phonemes: str) -> str:
    """Phonemes without stress, length and pauses: what a written word alone and in its sentence share."""
    return "".join(p for p in phonemes if p not in STRESS and p not in PAUSES)


def _spoken_words(phonemes: str, samples: np.ndarray, at: int) -> list[SpokenWord]:
    """Words of one sentence that starts at sample `at`; `samples` counts "^" and "$" too."""
    words: list[SpokenWord] = []
    paused = True
    at += int(samples[0])
    for phoneme, length in zip(phonemes, samples[1:-1].tolist(), strict=True):
        if phoneme in PAUSES:
            paused = True
        elif paused:  # a stress mark may come first: the word starts with it
            paused = False
            words.append(SpokenWord(_sounds(phoneme), [at], at + length))
        else:
            word = words[-1]
            if sound := _sounds(phoneme):
                if word.sounds:
                    word.starts.append(at)
                word.sounds += sound
            word.end = at + length
        at += length
    return words
