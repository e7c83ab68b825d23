"""What Megatron-Core does in a step of the real engine, written down as it happens, in the words of `order`."""

from __future__ import annotations

from typing import Any

from launch.planner.order import Compute, Instruction, Pass, Post, Transfer, Wait

ROWS, LENGTH = 64, 32

Told = list[tuple[str, Any]]
"""Computations, posts as sorted transfers, and waits for the n-th of a transfer, those in a row as one set."""


def told(instructions: list[Instruction]) -> Told:
    """Instructions without what is a matter of writing: numbers of handles, and the order of transfers in one go."""
    written: Told = []
    names: list[str] = []
    for instruction in instructions:
        match instruction:
            case Compute(kind, chunk, microbatch):
                written.append(("compute", (kind.value, chunk, microbatch)))
            case Post(transfers):
                names += [name(transfer, names) for transfer in transfers]
                written.append(("post", tuple(sorted(map(_short, transfers)))))
            case Wait(handle):
                written.append(("wait", {names[handle]}))
    return _joined(written)


def name(transfer: Transfer, before: list[str]) -> str:
    short = _short(transfer)
    return f"{short}{sum(other.rstrip('0123456789') == short for other in before)}"


def steps_of_engine(topologies: list[tuple[int, int, int]]) -> list[Told]:
    """Of this rank, for each (pipeline ranks, chunks, micro-batches): a step of the engine on a world of as many
    ranks, or of several data-parallel copies."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from train.engines import process_groups

    recorder = _Recorder()
    found = []
    for ranks, chunks, microbatches in topologies:
        recorder.begin()
        _step(ranks, chunks, microbatches)
        found.append(recorder.written())
        parallel_state.destroy_model_parallel()
    dist.barrier()
    process_groups.leave()
    return found


def _step(ranks: int, chunks: int, microbatches: int) -> None:
    import torch

    from configs.schema import BackboneConfig, Config
    from data_pipeline.batch import Batch
    from data_pipeline.chunks import chunk_of
    from train.engines import process_groups
    from train.engines.megatron import MegatronEngine
    from train.objectives.next_token import NextToken

    config = Config()
    config.backbone = BackboneConfig(
        name="test", layers=8, hidden=32, ffn=64, heads=4, kv_heads=2, tokenizer="none", init_std=0.1
    )
    config.train.sequence_length = LENGTH
    config.parallel.pipeline = ranks
    config.parallel.virtual_pipeline = chunks if chunks > 1 else None
    engine = MegatronEngine(config, ROWS, NextToken(("text",)), process_groups.join(config.parallel))
    numbers = torch.arange(LENGTH)[None]
    batch = Batch(
        tokens=numbers,
        labels=numbers,
        loss_weight=torch.ones(1, LENGTH),
        positions=numbers,
        label_modality=torch.zeros(1, LENGTH, dtype=torch.int8),
        cu_seqlens=torch.tensor([0, LENGTH], dtype=torch.int32),
        longest=LENGTH,
        chunks=(chunk_of([LENGTH], 0, LENGTH),),
    )
    outcome = engine.train_step([batch] * microbatches, 1e-3, [], lambda _: True)
    assert outcome.gradient_norm is not None and outcome.gradient_norm > 0


class _Recorder:
    """Megatron-Core's functions with a note taken of each call; what they do stays as it is."""

    def __init__(self) -> None:
        from megatron.core.pipeline_parallel import p2p_communication, schedules

        schedules.forward_step = self._forward(schedules.forward_step)
        schedules.backward_step = self._backward(schedules.backward_step)
        for transfers in ("_p2p_ops", "_batched_p2p_ops"):
            setattr(p2p_communication, transfers, self._transfers(getattr(p2p_communication, transfers)))
        self.begin()

    def begin(self) -> None:
        self._notes: Told = []
        self._names: list[str] = []
        self._outputs: list[tuple[Any, tuple[int, int]]] = []  # of forward passes, with chunk and micro-batch

    def written(self) -> Told:
        return _joined(self._notes)

    def _forward(self, real: Any) -> Any:
        def noted(*arguments: Any, **options: Any) -> Any:
            place = options.get("vp_stage") or 0, options["current_microbatch"]
            self._notes.append(("compute", ("F", *place)))
            made = real(*arguments, **options)
            self._outputs.append((_tensor(made[0]), place))
            return made

        return noted

    def _backward(self, real: Any) -> Any:
        def noted(given: Any, output: Any, *others: Any) -> Any:
            (place,) = [place for made, place in self._outputs if made is _tensor(output)]
            self._notes.append(("compute", ("B", *place)))
            return real(given, output, *others)

        return noted

    def _transfers(self, real: Any) -> Any:
        sides = {
            "tensor_send_prev": Transfer(Pass.backward, send=True),
            "tensor_recv_prev": Transfer(Pass.forward, send=False),
            "tensor_send_next": Transfer(Pass.forward, send=True),
            "tensor_recv_next": Transfer(Pass.backward, send=False),
        }

        def noted(**options: Any) -> Any:
            requests = real(**options)
            begun = {key: sides[key] for key in sides if options[key] is not None}
            if not begun:
                return requests
            self._notes.append(("post", tuple(sorted(map(_short, begun.values())))))
            names = {}
            for key, transfer in begun.items():
                names[key] = name(transfer, self._names)
                self._names.append(names[key])
            if isinstance(requests, list):  # in the order of `sides`, as Megatron-Core asks for them
                return [_Request(self._notes, *pair) for pair in zip(names.values(), requests, strict=True)]
            return {key: _Request(self._notes, names[f"tensor_{key}"], made) for key, made in requests.items()}

        return noted


class _Request:
    """A request of a transfer, with a note taken of who waits for it."""

    def __init__(self, notes: Told, name: str, real: Any) -> None:
        self._notes, self._name, self._real = notes, name, real

    def wait(self) -> None:
        self._notes.append(("wait", {self._name}))
        self._real.wait()


def _short(transfer: Transfer) -> str:
    return f"{'send' if transfer.send else 'receive'} {transfer.kind.value} "


def _tensor(made: Any) -> Any:
    return made[0] if isinstance(made, list) else made


def _joined(notes: Told) -> Told:
    """Waits in a row as one: who waits for all of them may do so in any order."""
    joined: Told = []
    for kind, what in notes:
        if kind == "wait" and joined and joined[-1][0] == "wait":
            joined[-1] = ("wait", joined[-1][1] | what)
        else:
            joined.append((kind, what))
    return joined
