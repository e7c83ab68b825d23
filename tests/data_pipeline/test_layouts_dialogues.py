"""Synthesis and recognition as chats, token for token: Step-Audio-TTS's dialogue, and a transcript as an answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from configs.compose import compose_stage
from data_pipeline.layouts import find_layout, layouts_of, wanted_specials
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from tests.data_pipeline.layout_material import GROUPED, lay, said, speak, step_audio

RNG = np.random.default_rng(0)
STEP = step_audio()
TRAINED_ON = ["system human assistant hum it out loud, then say hello to the people in the house", "(RAP) oh\nno"]


def spoken(key: str, text: str, **fields: str) -> Utterance:
    return speak(GROUPED, 0.6, RNG, text, key=key, **{"speaker": "ann", **fields})


def systems(samples: list) -> dict[str, str]:
    """System prompt and target text of each sample, "" where there is none."""
    found = {}
    for sample in samples:
        parts = [part for part in said(sample, GROUPED) if isinstance(part, str)]
        told = next((part.removeprefix("system\n") for part in parts if part.startswith("system\n")), "")
        texts = [part.removeprefix("human\n") for part in parts if part.startswith("human\n")]
        found[texts[1]] = f"{told} < {texts[0]}"
    return found


# --- Step-Audio -------------------------------------------------------------------------------------------------


def coded(key: str, text: str, codes: list[list[int]], **fields: str) -> Utterance:
    arrays = {"linguistic": np.array([codes[0]]), "semantic": np.array([codes[1]])}
    settings = {"key": key, "document": "d", "speaker": "Ann"} | fields
    return Utterance(text=text, duration=0.12, codes=arrays, **settings)


ANN = [coded("1", "hello, you", [[1, 2], [3, 4, 5]]), coded("2", "hum it", [[12, 700], [5, 4000, 33]])]
PROMPT_CODES, TARGET_CODES = [65537, 65538, 66563, 66564, 66565], [65548, 66236, 66565, 70560, 66593]


def letters(text: str) -> list[int]:
    """Ids of text inside a line in `step_audio`'s tokenizer, by its table alone."""
    table = Tokenizer.from_str(STEP.tokenizer_json)
    return [table.token_to_id({"\n": "<0x0A>", " ": "▁"}.get(letter, letter)) for letter in text]


def test_step_audio_tts_byte_for_byte():
    """[1] [4] system .. [3] [4] human .. [3] [4] assistant codes [3] [4] human .. [3] [4] assistant codes [3], and no
    dummy space at the start of a part: `human` does not begin with the token of a space and an h."""

    other = replace(ANN[0], key="3", speaker="Bob")
    options = {"system": "Be [{speaker}]!", "begin": "<s>"}
    samples = {sample.key: sample for sample in lay("tts_dialogue", [*ANN, other], STEP, **options)}
    assert sorted(samples) == ["d/1", "d/2"]  # Bob said nothing else
    sample = samples["d/2"]
    assert sample.tokens.tolist() == [
        1, 4, *letters("system\nBe [Ann]!"), 3, 4, *letters("human\nhello, you"), 3, 4, *letters("assistant\n"),
        *PROMPT_CODES, 3, 4, *letters("human\nhum it"), 3, 4, *letters("assistant\n"), *TARGET_CODES, 3,
    ]  # fmt: skip
    assert sample.loss_weight.tolist() == [0] * (len(sample) - 6) + [1] * 6
    assert Tokenizer.from_str(STEP.tokenizer_json).token_to_id("▁h") in STEP.encode_text(
        "human"
    )  # what the assembly has to avoid

    samples = lay("tts_dialogue", ANN, STEP, prompt_weight=0.5, begin="<s>")
    assert [sample.loss_weight.sum() for sample in samples] == [9, 9]


def sentencepiece() -> Vocabulary:
    """Step-Audio's vocabulary over a byte-pair model that was trained the way of SentencePiece: spaces as ▁, a dummy
    one before all, bytes for what it does not know. Its special tokens have the ids that Step-Audio's have."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fixed = ["<unk>", "<s>", "</s>", "<|EOT|>", "<|BOT|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*fixed, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator([line.replace("\n", " ") for line in TRAINED_ON] * 4, trainer)
    return replace(STEP, tokenizer_json=tokenizer.to_str())


@pytest.mark.parametrize("roles_marked", [False, True])
def test_step_audio_tts_by_the_steps_of_its_code(roles_marked: bool) -> None:
    """Put together here as its tts.py does, each part encoded by itself and joined by ids: texts behind a line break
    whose ids are taken off, roles as they come. A tokenizer that marks the start of what it is given marks the roles
    then, which heads with a space reproduce; else both are one."""
    vocabulary = sentencepiece()
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer_json)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    def inside(text: str) -> list[int]:
        return encode("\n" + text)[len(encode("\n")) :]

    def role(text: str) -> list[int]:
        return encode(text) if roles_marked else inside(text)

    assert [tokenizer.token_to_id(name) for name in ("<s>", "<|EOT|>", "<|BOT|>")] == [1, 3, 4]
    assert encode("human\n") != inside("human\n")
    system, prompt, target = "Say it in the house of [Ann]\n- hum it,  or not", "(hum)hello, you", "(hum)hum it"
    wanted = [
        *[1, 4, *role(f"system\n{system}"), 3],
        *[4, *role("human\n"), *inside(prompt), 3, 4, *role("assistant\n"), *PROMPT_CODES, 3],
        *[4, *role("human\n"), *inside(target), 3, 4, *role("assistant\n"), *TARGET_CODES, 3],
    ]
    space = " " if roles_marked else ""
    options = {"heads": [f"<|BOT|>{space}{name}\n" for name in ("system", "human", "assistant")], "tail": "<|EOT|>"}
    if not roles_marked:
        options = {}
    styled = [replace(utterance, style="hum") for utterance in ANN]
    written = {"system": system.replace("Ann", "{speaker}"), "begin": "<s>"}
    sample = lay("tts_dialogue", styled, vocabulary, **written, **options)[1]
    assert sample.tokens.tolist() == wanted
    assert sample.loss_weight.tolist() == [0] * (len(wanted) - 6) + [1] * 6
    texts = [ids for ids in sample.tokens.tolist() if ids < 65536]
    assert vocabulary.decode_text(texts) == (
        f"<s><|BOT|>{space}system\n{system}<|EOT|><|BOT|>{space}human\n{prompt}<|EOT|><|BOT|>{space}assistant\n<|EOT|>"
        f"<|BOT|>{space}human\n{target}<|EOT|><|BOT|>{space}assistant\n<|EOT|>"
    )


# --- prompts ----------------------------------------------------------------------------------------------------


def test_prompts_are_drawn_from_the_speaker_s_other_utterances():
    document = [spoken(str(i), f"text {i}", speaker="ab"[i % 2]) for i in range(6)]
    prompts = set()
    for seed in range(30):
        sample = lay("tts_dialogue", document, GROUPED, seed)[0]
        prompts.add(said(sample, GROUPED)[1])
    assert prompts == {"human\ntext 2", "human\ntext 4"}


def test_styles_are_written_before_the_text_and_some_have_a_system_prompt_of_their_own() -> None:
    """A rap is prompted by a rap, as Step-Audio's built-in voices are; a mood by any plain or moody utterance."""
    document = [
        *[spoken("1", "one", style="RAP"), spoken("2", "two"), spoken("3", "three", style="sad")],
        *[spoken("4", "four", style="RAP"), spoken("5", "five", style="hum")],
    ]
    options = {"system": "As {speaker}.", "styles": {"RAP": "Rap, {speaker}!", "hum": "Hum."}}
    assert systems(lay("tts_dialogue", document, GROUPED, **options)) == {
        "(RAP)one": "Rap, ann! < (RAP)four",
        "two": "As ann. < (sad)three",
        "(sad)three": "As ann. < two",
        "(RAP)four": "Rap, ann! < (RAP)one",
    }
    plain = systems(lay("tts_dialogue", document[1:3], GROUPED, tag=""))
    assert plain == {"two": " < three", "three": " < two"}


def test_speakers_that_have_no_name_or_are_cloned() -> None:
    nobody = [spoken("1", "one", speaker=""), spoken("2", "two", speaker="")]
    options = {"system": "As {speaker}.", "unnamed": "As before."}
    assert systems(lay("tts_dialogue", nobody, GROUPED, **options)) == {
        "one": "As before. < two",
        "two": "As before. < one",
    }
    ann = [spoken(str(number), f"text {number}") for number in range(400)]
    told = [
        prompt.partition(" <")[0]
        for prompt in systems(lay("tts_dialogue", ann, GROUPED, clone_share=0.25, **options)).values()
    ]
    assert set(told) == {"As ann.", "As before."} and told.count("As before.") == pytest.approx(100, abs=35)


# --- recognition ------------------------------------------------------------------------------------------------


def test_recognition_as_a_chat() -> None:
    utterance = spoken("1", "in the beginning")
    (sample,) = lay("asr_dialogue", [utterance, spoken("2", "")], GROUPED, system="You write.", instruction="Write:")
    assert said(sample, GROUPED) == [
        "<|BOT|>", "system\nYou write.", "<|EOT|>", "<|BOT|>", "human\nWrite:", 25, "<|EOT|>",
        "<|BOT|>", "assistant\nin the beginning", "<|EOT|>",
    ]  # fmt: skip
    answer = len(GROUPED.encode_text("in the beginning")) + 1
    assert sample.loss_weight.tolist() == [0.0] * (len(sample) - answer) + [1.0] * answer
    assert sample.key == "d/1"
    vectors = {"whisper": np.ones((30, 2), np.float16)}
    heard = [replace(utterance, codes={}, features=vectors)]
    (sample,) = lay("asr_dialogue", heard, GROUPED, encoder="whisper", stride=4)
    assert said(sample, GROUPED)[2] == -8 and not find_layout("asr_dialogue", {"encoder": "whisper"}).spoken


# --- mixtures of ours -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["step_audio_sft_tts", "step_audio_sft_chat"])
def test_the_mixtures_of_step_audio_s_fine_tuning_lay_conversations(name: str) -> None:
    """Every source makes a sample of a spoken conversation, with loss on a part of it only: the answer."""
    sources = compose_stage("quickstart", "tiny", None, [f"mixture={name}"]).mixture.sources
    layouts = layouts_of(sources)
    assert wanted_specials(layouts.values()) == ("<|BOT|>", "<|EOT|>")
    conversation = [
        spoken(str(number), "in the beginning was a word", role=("human", "assistant")[number % 2])
        for number in range(4)
    ]
    for layout in layouts.values():
        layout.check(GROUPED)
        samples = layout(conversation, GROUPED, RNG)
        assert samples and all(0 < np.count_nonzero(sample.loss_weight) < len(sample) / 2 for sample in samples)
