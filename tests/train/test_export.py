"""An exported run, loaded by transformers, computes what the native checkpoint computes."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from launch.commands import export_run
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import run_ranks
from tests.train.runs import run_config, tiny_config
from train import export_check


def check(folder: str) -> int:
    return export_check.main([folder])


def test_logits_and_tokenizer_of_an_export(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus")
    folder = tmp_path / "run"
    for tied in (True, False):
        folder = tmp_path / f"run-{tied}"
        config = tiny_config(
            folder, tmp_path / "corpus", train__steps=3, backbone__tied_embeddings=tied, parallel__tensor=2
        )
        run_config(config, 2)
        export_run(config)
        assert run_ranks(check, 1, str(folder)) == [0]
        agreement = json.loads((folder / "export/check.json").read_text())
        assert agreement["max_difference"] < 1e-4 and agreement["samples"] >= export_check.PACKS
        assert agreement["same_argmax"] == 1.0

    from data_pipeline.vocabulary import Vocabulary

    vocabulary = Vocabulary.load(tmp_path / "corpus")
    tokenizer = AutoTokenizer.from_pretrained(folder / "export/hf")
    for index in range(vocabulary.text_size, vocabulary.size):
        assert tokenizer.convert_tokens_to_ids(vocabulary.token_name(index)) == index
    model = AutoModelForCausalLM.from_pretrained(folder / "export/hf")
    assert model.config.vocab_size >= len(tokenizer)


def test_an_export_that_is_not_the_checkpoint_is_caught(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus")
    config = tiny_config(tmp_path / "run", tmp_path / "corpus", train__steps=2)
    run_config(config)
    export_run(config)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/export/hf")
    model.model.layers[1].mlp.up_proj.weight.data *= 1.01
    model.save_pretrained(tmp_path / "run/export/hf")
    assert run_ranks(check, 1, str(tmp_path / "run")) == [2]
