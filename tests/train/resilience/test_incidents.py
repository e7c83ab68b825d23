"""Steps that must not be learned from, really caused in real runs: what all ranks do about them, and what is left."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from configs.compose import to_yaml
from configs.schema import Config
from runtime.exits import DONE, HALTED
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import RankFailed, run_ranks
from tests.train.runs import metrics, run_config, stage, tiny_config
from train.resilience import incidents

STEPS = 12
CURVE = ("step", "tokens", "loss", "loss/text", "loss/audio", "grad_norm", "lr/trunk", "samples")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


def config_of(folder: Path, corpus: Path, **changes: Any) -> Config:
    settings = {"train__steps": STEPS, "checkpoint__every": 4, "train__log_samples": True, **changes}
    return tiny_config(folder, corpus, **settings)


@pytest.fixture(scope="module")
def clean(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two data-parallel ranks with the distributed optimiser, and nothing happens to them."""
    folder = tmp_path_factory.mktemp("clean")
    return run_config(config_of(folder, corpus, parallel__distributed_optimizer=True), 2)


def curve(lines: list[dict[str, Any]]) -> list[list[Any]]:
    return [[line.get(key) for key in CURVE] for line in lines]


def poisoned_stage(config_file: str, victim: int, factor: float, fault: dict[str, Any]) -> int:
    """The stage, but gradients of rank `victim` are multiplied by `factor` in its `turns`-th training steps, or where
    a pack's first sample is one of `samples`. With `kill` the rank is killed after so many training steps."""
    from configs.compose import load_config

    engine: Any = engine_class(load_config(Path(config_file)))
    original, done = engine.train_step, [0]
    here = int(os.environ["RANK"]) == victim

    def train_step(self: Any, batches: Any, *rest: Any, **named: Any) -> Any:
        done[0] += 1
        if here and done[0] == fault.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        first = [int(batch.tokens.sum()) for batch in batches]
        poison = here and (done[0] in fault.get("turns", ()) or any(total in fault.get("sums", ()) for total in first))
        hooks = []
        if poison:
            models = self.models if hasattr(self, "models") else [self.model]
            # Of a norm: those of matrices may go into the engine's buffer without passing a hook.
            parameter = next(one for model in models for one in model.parameters() if one.dim() == 1)
            hooks = [parameter.register_hook(lambda gradient: gradient * factor)]
        if here and (record := fault.get("record")):
            with open(record, "a") as file:
                print(*first, file=file)
        try:
            return original(self, batches, *rest, **named)
        finally:
            for hook in hooks:
                hook.remove()

    engine.train_step = train_step
    return stage(config_file)


def engine_class(config: Config) -> type:
    if config.engine.name == "megatron":
        from train.engines.megatron import MegatronEngine

        return MegatronEngine
    from train.engines.deepspeed import DeepSpeedEngine
    from train.engines.deepspeed_pipeline import DeepSpeedPipeline

    return DeepSpeedPipeline if config.parallel.pipeline > 1 else DeepSpeedEngine


def lacking_stage(config_file: str, positions: list[int]) -> int:
    """The stage on data that lacks the steps of data at `positions`."""
    from data_pipeline.loader import Loader

    original = Loader.next_step

    def next_step(self: Any) -> Any:
        while self.position in positions:
            original(self)
        return original(self)

    Loader.next_step = next_step
    return stage(config_file)


def run_lacking(config: Config, *positions: int) -> list[dict[str, Any]]:
    Path(config.run.folder).mkdir(parents=True, exist_ok=True)
    (Path(config.run.folder) / "config.yaml").write_text(to_yaml(config))
    assert run_ranks(lacking_stage, 2, str(Path(config.run.folder) / "config.yaml"), list(positions)) == [DONE, DONE]
    return metrics(Path(config.run.folder))


def run_poisoned(config: Config, factor: float, world: int = 2, victim: int = 1, **fault: Any) -> list[int]:
    folder = Path(config.run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    return run_ranks(poisoned_stage, world, str(folder / "config.yaml"), victim, factor, fault)


NAN = float("nan")


@pytest.mark.parametrize("turn", [2, 7])
@pytest.mark.parametrize("distributed", [True, False])
def test_a_passing_fault_is_redone_and_leaves_no_trace_in_the_curve(
    turn: int, distributed: bool, corpus: Path, clean: list[dict[str, Any]], tmp_path: Path
) -> None:
    """NaN in one rank's gradients only, before the first checkpoint and after it."""
    settings = {"resilience__on_nonfinite": "rewind", "parallel__distributed_optimizer": distributed}
    config = config_of(tmp_path / "run", corpus, **settings)
    assert run_poisoned(config, NAN, turns=[turn]) == [DONE, DONE]
    if distributed:
        assert curve(metrics(tmp_path / "run")) == curve(clean)
    else:
        expected = run_config(config_of(tmp_path / "clean", corpus, **settings), 2)
        assert curve(metrics(tmp_path / "run")) == curve(expected)
    (incident,) = incidents.read(tmp_path / "run")
    assert (incident["step"], incident["position"], incident["action"]) == (turn, turn - 1, "redo")
    assert incident["grad_norm"] == "nan" and isinstance(incident["loss"], float)
    assert [entry["finite_gradients"] for entry in incident["ranks"]] == [True, False]
    assert all(entry["finite_loss"] and len(entry["loss"]) == 2 for entry in incident["ranks"])
    keys = [entry["samples"] for entry in incident["ranks"]]
    assert [keys[place % 2][place // 2] for place in range(4)] == clean[turn - 1]["samples"]


@pytest.fixture(scope="module")
def seventh(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """What tells the data of rank 1's seventh step from all other data: the sum of its first pack's tokens."""
    folder = tmp_path_factory.mktemp("recorded")
    config = config_of(folder / "run", corpus, parallel__distributed_optimizer=True)
    assert run_poisoned(config, 1.0, record=str(folder / "record")) == [DONE, DONE]
    sums = [line.split()[0] for line in (folder / "record").read_text().splitlines()]
    assert len(sums) == STEPS and sums.count(sums[6]) == 1
    return int(sums[6])


def test_data_that_spoils_every_try_is_left_out_and_a_killed_run_decides_the_same(
    seventh: int, corpus: Path, clean: list[dict[str, Any]], tmp_path: Path
) -> None:
    settings = {"parallel__distributed_optimizer": True, "resilience__on_nonfinite": "rewind"}
    whole = config_of(tmp_path / "whole", corpus, **settings)
    assert run_poisoned(whole, NAN, sums=[seventh]) == [DONE, DONE]
    lines = metrics(tmp_path / "whole")
    assert curve(lines[:6]) == curve(clean[:6])
    assert [line["samples"] for line in lines[6:-1]] == [line["samples"] for line in clean[7:]]
    assert len(lines) == STEPS
    told = [(incident["step"], incident["action"]) for incident in incidents.read(tmp_path / "whole")]
    assert told == [(7, "redo"), (7, "leave out")]

    skipping = config_of(tmp_path / "skipping", corpus, **{**settings, "resilience__on_nonfinite": "skip"})
    assert run_poisoned(skipping, NAN, sums=[seventh]) == [DONE, DONE]
    assert curve(metrics(tmp_path / "skipping")) == curve(lines), "with the same data left out the run is the same"

    killed = config_of(tmp_path / "killed", corpus, **settings)
    with pytest.raises(RankFailed):
        run_poisoned(killed, NAN, sums=[seventh], kill=9)  # between the second try and the next checkpoint
    assert run_poisoned(killed, NAN, sums=[seventh]) == [DONE, DONE]
    assert curve(metrics(tmp_path / "killed")) == curve(lines)


SPIKES = {"resilience__on_spike": "rewind", "resilience__warmup": 4, "resilience__spike_bound": 20.0}


@pytest.mark.parametrize(("leave_out", "left_out"), [(3, (4, 5, 6)), (4, (6,))])
def test_a_spike_that_recurs_takes_the_data_before_it_along(
    leave_out: int, left_out: tuple[int, ...], seventh: int, corpus: Path, tmp_path: Path
) -> None:
    """Steps of data before it go too, where a checkpoint, here of step 4, is old enough to have learned nothing from
    them; else its own data alone. The run then is one whose data never had them."""
    settings = {"parallel__distributed_optimizer": True, "resilience__leave_out": leave_out}
    config = config_of(tmp_path / "run", corpus, **settings, **SPIKES)
    assert run_poisoned(config, 1e5, sums=[seventh]) == [DONE, DONE]
    told = [(each["position"], each["kind"], each["action"]) for each in incidents.read(tmp_path / "run")]
    assert told == [(6, "spike", "redo"), (6, "spike", "leave out")]
    lacking = config_of(tmp_path / "lacking", corpus, parallel__distributed_optimizer=True)
    assert curve(metrics(tmp_path / "run")) == curve(run_lacking(lacking, *left_out))


ZERO = {"engine__name": "deepspeed", "engine__zero_stage": 2}
PIPELINE = {"engine__name": "deepspeed", "engine__zero_stage": 1, "parallel__pipeline": 2}


@pytest.mark.parametrize(
    ("engine", "kind", "policy", "left_out"),
    [
        (ZERO, "nonfinite", "rewind", (5, 6)),
        (ZERO, "spike", "skip", (6,)),
        (PIPELINE, "nonfinite", "skip", (6,)),
    ],
    ids=["ZeRO-2, NaN, rewind", "ZeRO-2, spike, skip", "pipeline, NaN, skip"],
)
def test_incidents_under_deepspeed_leave_a_run_whose_data_lacked_theirs(
    engine: dict[str, Any],
    kind: str,
    policy: str,
    left_out: tuple[int, ...],
    seventh: int,
    corpus: Path,
    tmp_path: Path,
) -> None:
    """The seventh step's data spoils every try. One step of data before it goes with it, where the policy goes back."""
    settings = {**SPIKES, "resilience__on_spike": None, f"resilience__on_{kind}": policy, "checkpoint__every": 1}
    if policy == "rewind":
        settings["resilience__leave_out"] = 2
    config = config_of(tmp_path / "run", corpus, train__steps=9, **settings, **engine)
    assert run_poisoned(config, NAN if kind == "nonfinite" else 1e5, sums=[seventh]) == [DONE, DONE]
    told = [(each["position"], each["action"]) for each in incidents.read(tmp_path / "run")]
    assert told == ([(6, "redo"), (6, "leave out")] if policy == "rewind" else [(6, "skip")])
    lacking = config_of(tmp_path / "lacking", corpus, train__steps=9, checkpoint__every=0, **engine)
    assert curve(metrics(tmp_path / "run")) == curve(run_lacking(lacking, *left_out))


def test_stop_is_one_line_and_keeps_the_checkpoint_before(
    seventh: int, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path / "run", corpus, parallel__distributed_optimizer=True)
    assert run_poisoned(config, NAN, sums=[seventh]) == [HALTED, HALTED]
    assert [path.name for path in sorted((tmp_path / "run/checkpoints").glob("step-*"))] == ["step-00000004"]
    (incident,) = incidents.read(tmp_path / "run")
    assert incident["action"] == "stop"
    assert len(metrics(tmp_path / "run")) == 6
