"""config.json of an architecture as a table of keys, read into a BackboneConfig and written from one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from checkpoints.maps import rotary
from configs.schema import BackboneConfig
from runtime.exits import BadInput

LLAMA_KEYS: Mapping[str, str] = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
    "max_positions": "max_position_embeddings",
    "init_std": "initializer_range",
}
"""Fields of BackboneConfig and what most of Hugging Face's text LLMs call them."""

_WHOLE = ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "max_positions")
_OPTIONAL = ("head_dim", "norm_eps", "tied_embeddings", "init_std", "max_positions")


@dataclass(frozen=True)
class ConfigForm:
    """config.json of one architecture.

    class_name: transformers' class. keys: fields of BackboneConfig by name and what they are called. defaults: values
    of keys that config.json may leave out. fixed: keys with the only value that is computed here, assumed where
    config.json leaves them out. meant: fields of BackboneConfig that every model of this architecture has. read,
    write: what is more than a renamed value: further fields of a config.json, further keys of a backbone.
    """

    name: str
    class_name: str
    model_type: str
    keys: Mapping[str, str] = field(default_factory=lambda: LLAMA_KEYS)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    meant: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda written: {}
    write: Callable[[BackboneConfig], dict[str, Any]] = lambda backbone: {}
    rope: bool = True  # whether rope_theta, rope_parameters and rope_scaling say where tokens stand
    rope_share: float | None = None  # assumed where partial_rotary_factor is left out; None: heads rotate as a whole

    def read_config(self, written: Mapping[str, Any]) -> BackboneConfig:
        """The backbone that `written`, a config.json, describes. Raises BadInput where none here is computed so."""
        for key, value in self.fixed.items():
            if written.get(key) not in (None, value):
                raise BadInput(f"config.json: {key}={written[key]!r}; of {self.name} only {key}={value!r} is computed")
        fields = {name: self._value(name, key, written) for name, key in self.keys.items()}
        fields = {name: value for name, value in fields.items() if value is not None}
        if self.rope:
            fields |= rotary.read(written, self.rope_share)
        fields |= {**self.meant, **self.read(written)}
        fields["head_dim"] = fields.get("head_dim") or fields["hidden"] // fields["heads"]
        return BackboneConfig(
            name=str(written.get("_name_or_path") or self.name), architecture=self.name, tokenizer="", **fields
        )

    def write_config(self, backbone: BackboneConfig) -> dict[str, Any]:
        """config.json of `backbone`, but for its vocabulary."""
        written = {key: getattr(backbone, name) for name, key in self.keys.items()}
        if "head_dim" in self.keys:
            written[self.keys["head_dim"]] = backbone.head_dim or backbone.hidden // backbone.heads
        return {
            "architectures": [self.class_name],
            "model_type": self.model_type,
            **written,
            **(rotary.write(backbone, self.rope_share is not None) if self.rope else {}),
            **self.fixed,
            **self.write(backbone),
        }

    def _value(self, name: str, key: str, written: Mapping[str, Any]) -> Any:
        """A field's value, of the right type; None: as BackboneConfig has it."""
        value: Any = written.get(key)
        if value is None:
            value = self.defaults.get(key)
        if value is None and name == "kv_heads":
            value = written.get(self.keys["heads"])
        if value is None and name in _OPTIONAL:
            return None
        if name == "tied_embeddings":
            if not isinstance(value, bool):
                raise BadInput(f"config.json: {key}={value!r} is neither true nor false")
            return value
        number = isinstance(value, int if name in _WHOLE else int | float) and not isinstance(value, bool)
        if not number or not 0 < value < float("inf"):
            raise BadInput(
                f"config.json: {key}={value!r} is no {'whole number' if name in _WHOLE else 'number'} above 0"
            )
        return value if name in _WHOLE else float(value)


def whole(written: Mapping[str, Any], key: str) -> int:
    """A positive whole number of a config.json. Raises BadInput where it is none."""
    value = written.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise BadInput(f"config.json: {key}={value!r} is no whole number above 0")
    return value


def number(written: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A positive number of a config.json. Raises BadInput where it is none, or not there and without a default."""
    value = written.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise BadInput(f"config.json: {key}={value!r} is no number above 0")
    return float(value)
