"""The fault run: real training over a corpus with every kind of damage, counted exactly wherever it is told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from configs.compose import to_yaml
from configs.schema import Config, SourceConfig
from data_pipeline.corpus import MANIFEST_FILE, Corpus
from data_pipeline.sample_bytes import DAMAGE_KINDS
from runtime.exits import BAD_INPUT, DONE
from tests.data_pipeline.faults import plant
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import run_ranks
from tests.train.runs import metrics, stage, tiny_config
from train.report import write_report

LEFT_OUT = {"empty text": {"count": 3, "examples": ["a.wav", "b.wav"]}}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A corpus of 40 shards with its damage, and that damage by kind."""
    folder = make_corpus(tmp_path_factory.mktemp("faults") / "corpus", train_documents=80, documents_per_shard=2)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest | {"left_out": LEFT_OUT}))
    shards = Corpus.open(folder).shards("train")
    assert len(shards) == 40
    return folder, plant(shards)


def config_of(folder: Path, corpus: Path, **changes: object) -> Config:
    """Reads every document once, then has no more data."""
    sources = {"text": SourceConfig(layout="text", weight=1.0, epochs=1)}
    changes = {"train__steps": 50, "train__sequence_length": 64, "loader__damaged_share": 0.9} | changes
    config = tiny_config(folder, corpus, **changes)
    config.mixture.sources = sources
    return config


def train(config: Config, world: int) -> tuple[list[int], str]:
    """Train on `world` ranks; their exit codes, and all that they printed."""
    folder = Path(config.run.folder)
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    codes = run_ranks(printing_stage, world, str(folder / "config.yaml"), str(folder / "printed"))
    return codes, (folder / "printed").read_text()


def printing_stage(config_file: str, printed: str) -> int:
    with open(printed, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    return stage(config_file)


def files_around(corpus: Path) -> set[Path]:
    """All files in the corpus and beside it: where `../../` of a shard would lead."""
    return set(corpus.parent.rglob("*"))


def test_training_goes_on_and_every_fault_is_counted_as_it_was_planted(
    planted: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    corpus, counts = planted
    assert set(counts) == set(DAMAGE_KINDS) - {"audio"}  # no layout of this run reads the sound
    before = files_around(corpus)
    run = tmp_path / "run"
    assert train(config_of(run, corpus, train__steps=3), 1)[0] == [DONE]
    codes, said = train(config_of(run, corpus), 2)  # goes on, on two ranks
    assert codes == [DONE, DONE]

    lines = metrics(run)
    told = [{key: value for key, value in line.items() if key.startswith("damaged/")} for line in lines]
    assert told[-1] == {f"damaged/{kind}": count for kind, count in counts.items()}
    for kind in counts:
        so_far = [line.get(f"damaged/{kind}", 0) for line in told]
        assert so_far == sorted(so_far)
        assert said.count(f"of kind {kind}, left out") == 1
    results = json.loads((run / "results.json").read_text())
    assert results["status"] == "exhausted"
    assert results["damaged"] == counts
    assert results["left_out"] == LEFT_OUT

    page = write_report(run).read_text()
    for kind, count in counts.items():
        assert f'<tr><td>{kind}</td><td class="number">{count}</td></tr>' in page
    assert "empty text" in page and "a.wav; b.wav" in page
    assert files_around(corpus) - before == set()
    assert not any(Path(name).exists() for name in ("/tmp/evil.json", str(corpus.parent / "evil.json")))


def test_the_share_limit_stops_the_run_with_one_clear_line(
    planted: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    corpus, _ = planted
    codes, said = train(config_of(tmp_path / "run", corpus, loader__damaged_share=0.02), 1)
    assert codes == [BAD_INPUT]
    (line,) = [line for line in said.splitlines() if "error" in line]
    assert line.startswith("megaphone: error: ")
    assert "samples read are damaged, more than loader.damaged_share 0.02; the first is " in line
    damaged, read = (int(word) for word in line.split(": error: ")[1].split() if word.isdecimal())
    assert read >= 100 and damaged > 0.02 * read
    assert os.fspath(corpus / "train") in line
