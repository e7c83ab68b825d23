"""A teacher spread over ranks says what transformers says on one device, on every topology, and after `kill -9`."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from configs.schema import Config, InferenceKind, Made, SourceConfig, StageKind
from data_pipeline.corpus import Corpus
from data_pipeline.exported_model import read_exported
from data_pipeline.step1_model import Step1Config, Step1ForCausalLM
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import DONE, STOPPED_EARLY, BadInput
from runtime.signals import StopFlag
from tests.data_pipeline.synthetic import make_corpus, make_vocabulary
from tests.ranks import RankFailed, run_ranks
from tests.train.generation.test_generation import generation, written
from tests.train.runs import tiny_config
from train.generation.asking import Inquiry
from train.inference.rows import STEP, Reading, Said, lay

VOCABULARY = replace(make_vocabulary(), specials=("<|more|>", *make_vocabulary().specials))  # not the student's
TOP_K, TEMPERATURE = 40, 1.5  # more than the smallest table has
_SHAPE = {
    "vocab_size": VOCABULARY.padded_size,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
MODELS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "tied": (LlamaForCausalLM, LlamaConfig(**_SHAPE, num_key_value_heads=2, tie_word_embeddings=True)),
    "biased": (Qwen2ForCausalLM, Qwen2Config(**_SHAPE, num_key_value_heads=2, tie_word_embeddings=False)),
    "experts": (
        MixtralForCausalLM,
        MixtralConfig(**_SHAPE, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2),
    ),
    "alibi": (Step1ForCausalLM, Step1Config(**_SHAPE, num_attention_groups=2, tie_word_embeddings=False)),
}
# Model, topology and whether in bf16, on four ranks; where these have room for two copies there are two.
READERS: list[tuple[str, dict[str, Any], bool]] = [
    ("tied", {"tensor": 2, "pipeline": 2}, False),
    ("tied", {"pipeline": 2, "virtual_pipeline": 2}, False),
    ("biased", {"tensor": 2, "pipeline": 2, "sequence": True, "pipeline_layout": "Et|tttL"}, False),
    ("experts", {"tensor": 2, "sequence": True}, False),
    ("alibi", {"tensor": 2}, False),
    ("alibi", {"tensor": 2, "pipeline": 2}, True),
]


def export(folder: Path, name: str) -> Path:
    """A random model as an export is."""
    torch.manual_seed(0)
    kind, config = MODELS[name]
    model = kind(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and norms, which begin alike
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    model.save_pretrained(folder / name)
    VOCABULARY.save(folder / name)
    return folder / name


def stage(room: Path, name: str, teacher: str, **parallel: Any) -> Config:
    """A stage that asks; `parallel`: of Megatron's engine, none where transformers answers."""
    config = tiny_config(room / name, room / "corpus")
    config.mixture.sources = {
        "tts": SourceConfig(layout="tts", weight=1.0, options={"text_weight": 0.5}),
        "continuation": SourceConfig(layout="continuation", weight=1.0),
    }
    config.stage.kind, config.stage.weights = StageKind.generate, str(room / teacher)
    config.generation.makes, config.generation.top_k, config.generation.batch = Made.teacher, TOP_K, 5
    config.distillation.temperature, config.loss.chunk = TEMPERATURE, 7
    config.train.sequence_length = 384  # no sample is cut: pieces are not found in another vocabulary
    if parallel:
        config.inference.engine = InferenceKind.megatron
        config.parallel = replace(config.parallel, **parallel)
    return config


def readings() -> list[Reading]:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, VOCABULARY.size, int(length)) for length in rng.integers(10, 60, 9)]
    ids.append(rng.integers(0, VOCABULARY.size, 130))  # longer than a row
    return [Reading(one, np.sort(rng.choice(len(one) - 1, len(one) // 2, replace=False))) for one in ids]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("room")
    make_corpus(room / "corpus", train_documents=16, valid_documents=4, documents_per_shard=4)
    for name in MODELS:
        export(room, name)
    return room


# --- what is said -----------------------------------------------------------------------------------------------------


def read_by_all(room: Path) -> list[tuple[list[Said] | None, bool]]:
    """What each of `READERS` says, and whether this rank has heard of a signal to the last rank of all."""
    from megatron.core import parallel_state

    from train.engines import process_groups
    from train.generation.spread import Spread
    from train.inference.megatron import Reader, as_exported
    from train.inference.replica import Replica

    found = []
    for name, parallel, half in READERS:
        config, stop = stage(room, "unused", name, **parallel), StopFlag()
        config.generation.bf16, config.train.sequence_length = half, 96
        model, rows = as_exported(config, room / name)
        device = process_groups.join(config.parallel)
        replica = Replica(stop)
        said = Spread(config, VOCABULARY, replica, Reader(model, rows, room / name, device))._read(readings())
        stop.name = "SIGTERM" if os.environ["RANK"] == "3" else None
        replica.hear()
        found.append((said, bool(stop)))
        parallel_state.destroy_model_parallel()
    process_groups.leave()
    return found


def test_every_topology_says_what_transformers_says(room: Path) -> None:
    ranks = run_ranks(read_by_all, 4, room, timeout=240)
    for number, (name, parallel, half) in enumerate(READERS):
        copies = 4 // (parallel.get("tensor", 1) * parallel.get("pipeline", 1))
        answers = [found[number][0] for found in ranks if found[number][0] is not None]
        assert len(answers) == copies, "leaders, and nobody else, are told"
        heard = [found[number][1] for found in ranks]
        assert heard[3] and heard.count(True) == 4 // copies, "a signal to one rank is one to its copy"
        model = read_exported(room / name, name, VOCABULARY.size, device="cpu")
        for said in answers:
            errors = errors_of(model, said)
            assert errors.mean() < 0.05 if half else errors.max() < 1e-4


def errors_of(model: Any, said: list[Said]) -> np.ndarray:
    """Of each log-probability, against float64's over transformers' logits: of that id, and of the id of that rank."""
    errors = []
    for reading, found in zip(readings(), said, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(reading.ids)[None]).logits[0].double() / TEMPERATURE
        for place, ids, log_chances in zip(reading.places, *found, strict=True):
            (due,) = [table for table in VOCABULARY.tables if reading.ids[place + 1] in table]
            q, wide = logits[place, due.start : due.stop].log_softmax(0).numpy(), min(TOP_K, len(due))
            assert (ids[wide:] == -1).all() and len(set(ids[:wide])) == wide
            errors += [log_chances[:wide] - np.sort(q)[::-1][:wide], log_chances[:wide] - q[ids[:wide] - due.start]]
    return np.abs(np.concatenate(errors))


def test_rows_are_full_even_and_of_one_length() -> None:
    given = readings()
    rows = lay(given, VOCABULARY, 96, multiple=4)
    assert len(rows) % 4 == 0 and sorted(n for row in rows for n in row.samples) == list(range(len(given)))
    (width,) = {row.batch.tokens.shape[1] for row in rows}
    assert width % STEP == 0 and width - STEP < max(96, max(len(one.ids) for one in given)) <= width
    for row in rows:
        own = [given[number] for number in row.samples]
        assert sum(len(part.places) for part in row.ranges) == sum(len(one.places) for one in own) == len(row.order)
        tokens = np.concatenate([np.zeros(0, np.int64), *(one.ids for one in own)])
        assert row.batch.tokens[0, : len(tokens)].tolist() == tokens.tolist()
        for part in row.ranges:  # the token after is of the table that is asked about
            due = row.batch.tokens[0, part.places + 1]
            assert bool(((due >= part.start) & (due < part.stop)).all())


# --- the stage --------------------------------------------------------------------------------------------------------


def ended_amid(file: str, number: int, rank: str) -> int:
    """The stage, in which `rank` gets signal `number` when it has read four times."""
    from train.inference.megatron import Reader

    read, left = Reader.read, iter(range(4))

    def counted(self: Reader, *given: Any) -> Any:
        if next(left, None) is None and os.environ["RANK"] == rank:
            os.kill(os.getpid(), number)
        return read(self, *given)

    Reader.read = counted  # type: ignore[method-assign]
    return generation(file)


def answers(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.safetensors"))}


def test_a_stage_answers_alike_however_it_is_run_and_ended(room: Path) -> None:
    """By transformers; by two copies of two tensor-parallel ranks; by one copy whose second rank is stopped, then
    killed amid a piece; and the rest of that by a pipeline."""
    assert run_ranks(generation, 1, written(stage(room, "alone", "tied"))) == [DONE]
    assert run_ranks(generation, 4, written(stage(room, "spread", "tied", tensor=2))) == [DONE] * 4
    alone, spread = answers(room / "alone/corpus"), answers(room / "spread/corpus")
    assert alone.keys() == spread.keys() and len(alone) == 10
    for name in ("answers.json", "made_from.json"):
        assert (room / "alone/corpus" / name).read_bytes() == (room / "spread/corpus" / name).read_bytes()
    for name in alone:
        ours, theirs = (load_file(room / run / "corpus" / name) for run in ("spread", "alone"))
        assert np.array_equal(ours["places"], theirs["places"]) and len(ours["places"])
        swapped = ours["ids"] != theirs["ids"]
        assert swapped.mean() < 0.01, "more than ties"
        for key in ("log_chances", "rest"):  # the same numbers, or neighbours in float16
            assert np.allclose(ours[key], theirs[key], rtol=2**-10, atol=1e-4)

    folder, file = room / "ended/corpus", written(stage(room, "ended", "tied", tensor=2))
    assert run_ranks(ended_amid, 2, file, signal.SIGTERM, "1") == [STOPPED_EARLY] * 2
    stopped = answers(folder)
    with pytest.raises(RankFailed):
        run_ranks(ended_amid, 2, file, signal.SIGKILL, "1")
    killed = answers(folder)
    assert 0 < len(stopped) < len(killed) < len(spread)
    assert all(spread[name] == killed[name] for name in killed), "other bytes on the same ranks of a copy"
    assert run_ranks(generation, 2, written(stage(room, "ended", "tied", pipeline=2))) == [DONE] * 2
    assert answers(folder).keys() == spread.keys()
    assert all(answers(folder)[name] == killed[name] for name in killed)


def test_what_cannot_be_spread_is_one_line_before_any_process_group(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.generation.spread import ask

    corpus = Corpus.open(room / "corpus")
    for name, parallel, line in (
        ("experts", {"tensor": 2}, r"experts: backbone.experts with parallel.tensor=2 needs parallel.sequence=true"),
        ("tied", {"pipeline": 8}, r"tied: parallel.pipeline=8 does not divide backbone.layers=4"),
    ):
        config = stage(room, "refused", name, **parallel)
        config.backbone.layers = 8  # what is asked is the export
        monkeypatch.setenv("WORLD_SIZE", str(config.parallel.tensor * config.parallel.pipeline))
        inquiry = Inquiry(config, corpus, VOCABULARY, room / "refused", StopFlag())
        with pytest.raises(BadInput, match=line):
            ask(config, room / name, inquiry, StopFlag())
    config = stage(room, "refused", "tied", tensor=2)
    config.mixture.sources["asr"] = SourceConfig(layout="asr", weight=1.0, options={"encoder": "toy", "stride": 2})
    with pytest.raises(BadInput, match=r"source asr: layout asr is not of tokens alone"):
        Inquiry(config, corpus, Vocabulary.load(room / "tied"), room / "refused", StopFlag())
