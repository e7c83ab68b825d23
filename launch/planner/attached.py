"""What a speech model has beside its trunk: an audio encoder and an adapter on the first pipeline stage, audio heads on
the last one.

All are small beside the trunk and stand whole on every tensor- and context-parallel rank, which all compute the same.
FLOPs of what the config itself has are those that `train.audio_input` counts; of what is told beside it 2 a weight and
position forward, twice that backward where it is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

from configs.audio_input import audio_input_of
from configs.schema import AdapterKind, Config
from launch.planner.memory import StageMemory
from launch.planner.times import BF16, FP32, Seconds, Setting
from runtime.exits import BadInput
from train.audio_input import clip_of, heard_passes, most_heard, of_audio_input

_KEPT = 16  # widths of hidden that a trained layer with an MLP of four times its width keeps for its backward pass


@dataclass(frozen=True)
class Encoder:
    """A transformer over sound, such as Whisper's: MLPs of two matrices, attention over a whole clip.

    positions: of a clip, such as 1500 for 30 s; clips: of one packed row; trained: whether it learns; counted: FLOPs of
    one packed row, forward and backward, where its parts are known.
    """

    layers: int
    hidden: int
    ffn: int
    positions: int = 1500
    clips: int = 1
    trained: bool = False
    counted: tuple[float, float] | None = None

    @property
    def elements(self) -> int:
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.ffn)

    @property
    def flops(self) -> tuple[float, float]:
        """Forward and backward, of one packed row."""
        if self.counted is not None:
            return self.counted
        attention = 4.0 * self.layers * self.hidden * self.positions
        forward = self.clips * self.positions * (2.0 * self.elements + attention)
        return forward, 2 * forward * self.trained


@dataclass(frozen=True)
class Adapter:
    """What makes places of an encoder's vectors (`with_audio_input` tells it of a config).

    elements: of its parameters; width: of the vectors; layers: over these, each four times as wide inside; vectors: of
    one packed row; flops: of the same, forward and backward.
    """

    elements: int
    width: int
    layers: int
    vectors: int
    flops: tuple[float, float]
    trained: bool

    def activations(self, micro_batch: int) -> float:
        """Bytes that a forward pass keeps for its backward pass."""
        return micro_batch * self.vectors * self.width * (1 + self.layers * _KEPT) * BF16 * self.trained


@dataclass(frozen=True)
class Heads:
    """A depth transformer over the codebooks of a frame (gated MLPs), and a table and a head for each codebook; always
    trained. share: of a row's places that are frames of several codes."""

    layers: int
    hidden: int
    ffn: int
    codebooks: int
    rows: int
    share: float = 1.0

    @property
    def trunk(self) -> int:
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.ffn)

    @property
    def elements(self) -> int:
        return self.trunk + 2 * self.codebooks * self.rows * self.hidden

    def forward_flops(self, length: int) -> float:
        """Of one packed row of `length` places: every codebook of every frame goes through the trunk and its head."""
        return self.share * length * self.codebooks * 2.0 * (self.trunk + self.rows * self.hidden)


@dataclass(frozen=True)
class Attached:
    encoder: Encoder | None = None
    heads: Heads | None = None
    adapter: Adapter | None = None

    def first_seconds(self, setting: Setting, micro_batch: int) -> tuple[Seconds, Seconds]:
        """Forward and backward of encoder and adapter over a micro-batch."""
        there, back = Seconds(), Seconds()
        for (forward, backward), width in self._hearing():
            there += _seconds(forward * micro_batch, width, setting)
            back += _seconds(backward * micro_batch, width, setting)
        return there, back

    def _hearing(self) -> Iterator[tuple[tuple[float, float], int]]:
        """FLOPs of one packed row, forward and backward, of what hears, and how wide it is."""
        if self.encoder is not None:
            yield self.encoder.flops, self.encoder.hidden
        if self.adapter is not None:
            yield self.adapter.flops, self.adapter.width

    def last_seconds(self, setting: Setting, micro_batch: int, length: int) -> tuple[Seconds, Seconds]:
        if self.heads is None:
            return Seconds(), Seconds()
        flops = self.heads.forward_flops(length) * micro_batch / setting.context
        seconds = _seconds(flops, self.heads.hidden, setting)
        return seconds, seconds * 2

    def first_flops(self) -> float:
        """Of one packed row, forward and backward."""
        return sum(forward + backward for (forward, backward), _ in self._hearing())

    def last_flops(self, length: int) -> float:
        return 3 * self.heads.forward_flops(length) if self.heads else 0.0

    def flops(self, config: Config) -> float:
        """Model FLOPs of a step."""
        train = config.train
        return train.global_batch * (self.first_flops() + self.last_flops(train.sequence_length))

    def held(self, first: bool) -> tuple[int, int]:
        """Parameters on the first or the last stage, and those of them that are trained."""
        if first:
            parts = [part for part in (self.encoder, self.adapter) if part is not None]
            return sum(part.elements for part in parts), sum(map(_learnt, parts))
        return (self.heads.elements, self.heads.elements) if self.heads else (0, 0)

    def add_memory(self, config: Config, stages: list[StageMemory], flights: float) -> list[StageMemory]:
        """The stages with what stands beside the trunk; flights: micro-batches that the first stage holds at once."""
        shares = (config.parallel.data or 1) * config.parallel.context if config.parallel.distributed_optimizer else 1
        train, added = config.train, list(stages)
        if self.encoder is not None:
            encoder = self.encoder
            places = encoder.clips * encoder.positions * train.micro_batch
            of_layer = places * encoder.hidden * _KEPT * BF16
            activations = of_layer * (encoder.layers * flights if encoder.trained else 1)
            added[0] = replace(added[0], encoder=int(_state(encoder.elements, _learnt(encoder), shares) + activations))
        if self.adapter is not None:
            adapter = self.adapter
            held = _state(adapter.elements, _learnt(adapter), shares) + adapter.activations(train.micro_batch) * flights
            added[0] = replace(added[0], encoder=added[0].encoder + int(held))
        if self.heads is not None:
            heads = self.heads
            frames = heads.share * train.sequence_length * train.micro_batch / config.parallel.context
            kept = frames * heads.codebooks * heads.hidden * _KEPT * heads.layers * BF16
            logits = frames * heads.codebooks * heads.rows * (BF16 + 2 * FP32)
            added[-1] = replace(added[-1], heads=int(_state(heads.elements, heads.elements, shares) + kept + logits))
        return added


def with_audio_input(attached: Attached, config: Config, trains: Callable[[str], bool]) -> Attached:
    """`attached`, and the adapter and encoder that the config itself has; trains: whether the parameter of a name
    learns. All places of a row are taken as heard: those that hold text cost nothing here, so this is at most.

    Raises BadInput where both name an encoder.
    """
    audio, sizes = audio_input_of(config), of_audio_input(config)
    if audio is None:
        return attached
    encoder, adapter = audio.encoder, audio.adapter

    def learns(part: str) -> bool:
        return any(trains(name) for name in sizes if name.startswith(part))

    heard = most_heard(audio, config.train.sequence_length)
    passes = list(heard_passes(config, heard, trains))

    def flops(part: str) -> tuple[float, float]:
        mine = [one for one in passes if one.name.startswith(part)]
        return sum(one.forward for one in mine), sum(one.backward for one in mine)

    beside = Adapter(
        elements=sum(size for name, size in sizes.items() if name.startswith("adapter.")),
        width=encoder.width,
        layers=adapter.layers if adapter.kind is AdapterKind.transformer else 0,
        vectors=round(heard.vectors),
        flops=flops("adapter."),
        trained=learns("adapter."),
    )
    if not encoder.in_model:
        return replace(attached, adapter=beside)
    if attached.encoder is not None:
        raise BadInput(f"--encoder: {encoder.name} is in the config's model already; leave one of them out")
    positions = clip_of(encoder)
    clips = -(-round(heard.vectors) // positions)
    layers = encoder.layers + encoder.tp_layers
    inside = Encoder(layers, encoder.width, encoder.ffn, positions, clips, learns("encoder."), flops("encoder."))
    return replace(attached, adapter=beside, encoder=inside)


def _learnt(part: Encoder | Adapter) -> int:
    """Parameters that learn."""
    return part.elements if part.trained else 0


def _seconds(flops: float, hidden: int, setting: Setting) -> Seconds:
    reached = setting.gpu.reached
    edges = 1 + 3 * reached.edge / hidden
    return Seconds(products=flops * edges / (setting.gpu.peak * reached.matmul))


def _state(elements: int, trained: int, shares: int) -> float:
    """Bytes of weights in bf16, and of trained ones' gradients and Adam's share in fp32."""
    return BF16 * elements + trained * (FP32 + 3 * FP32 / shares)


def parse(kind: type[Any], text: str | None, option: str) -> Any:
    """An Encoder or Heads from "layers=32,hidden=1280,...". Raises BadInput with one line."""
    if text is None:
        return None
    known = {field.name: field.type for field in fields(kind) if str(field.type) in _READERS}
    numbers: dict[str, Any] = {}
    for word in text.split(","):
        key, _, value = word.partition("=")
        if key not in known:
            raise BadInput(f"{option}: {key or 'an empty word'} is not one of {', '.join(known)}")
        try:
            numbers[key] = _READERS[str(known[key])](value)
        except ValueError as error:
            raise BadInput(f"{option}: {key}={value} is no {known[key]}") from error
        if numbers[key] < 0 or (known[key] != "bool" and not numbers[key]):
            raise BadInput(f"{option}: {key}={value} has to be above 0")
    try:
        return kind(**numbers)
    except TypeError as error:
        missing = [field.name for field in fields(kind) if field.name not in numbers and field.default is MISSING]
        raise BadInput(f"{option} needs {', '.join(missing)} too") from error


def _boolean(word: str) -> bool:
    if word not in ("true", "false"):
        raise ValueError(word)
    return word == "true"


_READERS: dict[str, Callable[[str], Any]] = {"bool": _boolean, "int": int, "float": float}
