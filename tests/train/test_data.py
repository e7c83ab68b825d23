"""Training and its data: sources that end, and worker processes of the loader, on real ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from configs.compose import to_yaml
from configs.schema import Config, SourceConfig
from launch.runfolder import is_finished
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import free_port
from tests.train.runs import metrics, run_config, tiny_config


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "c", train_documents=16)


def bounded(folder: Path, corpus: Path) -> Config:
    config = tiny_config(folder, corpus, train__steps=1000, train__log_samples=True, train__validate_every=1000)
    talk = {"asr": SourceConfig("asr", 1, epochs=1), "say": SourceConfig("continuation", 1, epochs=2)}
    config.mixture.sources = {
        "talk": SourceConfig(weight=2, sources=talk),
        "text": SourceConfig("text", 1, epochs=1),
    }
    return OmegaConf.to_object(OmegaConf.structured(config))  # type: ignore[return-value]


def documents_of(config: Config) -> Counter[str]:
    """How many different documents of each source were trained on, by source and epoch."""
    steps = metrics(Path(config.run.folder))
    keys = {key.split("#")[0] for step in steps for pack in step["samples"] for key in pack}
    return Counter(source_epoch for source_epoch, _ in {tuple(k.rsplit("/", 2)[:2]) for k in keys})


def test_training_ends_with_its_data(tmp_path: Path, corpus: Path) -> None:
    config = bounded(tmp_path / "two", corpus)
    two = run_config(config, 2)
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert results["status"] == "exhausted"
    assert results["step"] == len(two) < 1000
    assert is_finished(config)
    assert documents_of(config) == {"talk.asr/0": 12, "talk.say/0": 12, "talk.say/1": 12, "text/0": 16}

    again = run_config(config, 2)  # goes on from the checkpoint, and finds the same end
    assert again == two
    one = run_config(bounded(tmp_path / "one", corpus), 1)
    assert [step["samples"] for step in one] == [step["samples"] for step in two]
    assert [step["loss"] for step in one] == pytest.approx([step["loss"] for step in two], rel=1e-4)


def test_worker_processes_change_nothing(tmp_path: Path, corpus: Path) -> None:
    changes = {"train__steps": 6, "train__log_samples": True}
    plain = run_config(tiny_config(tmp_path / "plain", corpus, **changes))
    config = tiny_config(tmp_path / "workers", corpus, loader__workers=2, **changes)
    folder = Path(config.run.folder)
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    # A process of its own: ranks of `run_ranks` may not have children.
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    finished = subprocess.run(
        [sys.executable, "-m", "train.stage", str(folder / "config.yaml")],
        env=os.environ | group | {"MASTER_PORT": str(free_port()), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr
    workers = metrics(folder)
    for key in ("samples", "loss", "grad_norm", "tokens"):
        assert [step[key] for step in workers] == [step[key] for step in plain]
