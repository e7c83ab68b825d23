"""Where the weights of a codec are: a file or folder here, a hub name, or a package that carries them.

Nothing read here is unpickled: arrays come from npy, npz and safetensors, state dicts of PyTorch through its
weights-only reader.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open

from data_pipeline.packages import PACKAGE, package_folder, package_version
from runtime.exits import BadInput
from runtime.threads import settle_vector_math

if TYPE_CHECKING:
    import torch

_HUB = re.compile(r"(?P<name>[\w.\-]+/[\w.\-]+)(@(?P<revision>[\w.\-/]+))?")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.onnx", "*.npy", "*.npz", "*.json", "*.mvn", "*.yaml")
_SAMPLE = 1 << 16  # bytes hashed at each of _SAMPLES places of a file
_SAMPLES = 64
_ONLY_TRAINING = ("masked_spec_embed",)  # tensors that models are published with or without


def setting(part: str) -> str:
    """What the configuration calls the weights of a part: of a codec, or by a whole name, such as encoder.weights."""
    return part if "." in part else f"codec.weights.{part}"


def _kind_of(part: str) -> str:
    """The option that says what weights of a part have to be."""
    return f"{setting(part).partition('.')[0]}.kind"


def weights_identity(spec: str, part: str) -> str:
    """What the weights are, for content hashes: of files their names, sizes and a hash over samples of their bytes
    (whole files up to 4 MiB), of a hub name itself (pin it with @revision), of a package its version.

    Raises BadInput where `spec` is none of these.
    """
    if spec.startswith(PACKAGE):
        name = spec.removeprefix(PACKAGE)
        return f"{package_folder(name).name} {package_version(name)}"
    path = Path(spec)
    if path.is_file():
        return _file_identity(path)
    if path.is_dir():
        files = sorted({file for pattern in _WEIGHTS for file in path.rglob(pattern)})
        return "; ".join(_file_identity(file) for file in files)
    hub_name(spec, part)
    return spec


def _file_identity(file: Path) -> str:
    size = file.stat().st_size
    hashed = xxhash.xxh3_128()
    with file.open("rb") as opened:
        if size <= _SAMPLE * _SAMPLES:
            hashed.update(opened.read())
        else:
            for place in np.linspace(0, size - _SAMPLE, _SAMPLES).astype(np.int64).tolist():
                opened.seek(place)
                hashed.update(opened.read(_SAMPLE))
    return f"{file.name} {size} {hashed.hexdigest()}"


def hub_name(spec: str, part: str) -> tuple[str, str | None]:
    """Name and revision of a hub repository. Raises BadInput for what cannot be one."""
    match = _HUB.fullmatch(spec)
    if match is None or Path(spec).is_absolute():
        raise BadInput(f"{setting(part)}={spec}: no such file or folder, and no hub name (owner/name) or package:")
    return match["name"], match["revision"]


def from_pretrained(kind: Any, spec: str, part: str) -> Any:
    """What `kind.from_pretrained`, a class of transformers, gives for `spec`: a folder or hub name.

    Models are float32 and not training, and come from safetensors that hold all of their tensors: transformers would
    fill in what is missing at random. Raises BadInput where that is no such model.
    """
    from transformers import PreTrainedModel
    from transformers.utils import logging

    settle_vector_math()
    where: dict[str, Any] = {}
    name = spec
    if not Path(spec).exists():
        name, where["revision"] = hub_name(spec, part)
    is_model = issubclass(kind, PreTrainedModel)
    if is_model:
        where |= {"use_safetensors": True, "output_loading_info": True}
        read_config(spec, part)  # without one, transformers takes the default
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        loaded = kind.from_pretrained(name, **where)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        raise BadInput(f"{setting(part)}={spec} is not what {_kind_of(part)} needs: {one_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    if not is_model:
        return loaded
    model, report = loaded
    wrong = sorted(str(name) for key in ("missing_keys", "mismatched_keys") for name in report[key])
    wrong = [name for name in wrong if not name.endswith(_ONLY_TRAINING)]
    if wrong:
        line = f"it lacks {wrong[0]}, or has it in another shape, and {len(wrong) - 1} more"
        raise BadInput(f"{setting(part)}={spec} is not what {_kind_of(part)} needs: {line}")
    return model.float().eval()


def find_file(spec: str, part: str, *names: str) -> Path:
    """The file `spec` is, or the first of `names` that the folder, package or hub repository `spec` has.

    Raises BadInput where there is none.
    """
    path = package_folder(spec.removeprefix(PACKAGE)) if spec.startswith(PACKAGE) else Path(spec)
    if path.is_file():
        return path
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise BadInput(f"{setting(part)}={spec}: the folder has no {' or '.join(names)}")
    repository, revision = hub_name(spec, part)
    return _download(repository, revision, part, names)


def _download(repository: str, revision: str | None, part: str, names: tuple[str, ...]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    problem = f"the repository has no {' or '.join(names)}"
    for name in names:
        try:
            return Path(hf_hub_download(repository, name, revision=revision))
        except LocalEntryNotFoundError as error:  # without the hub: another name may be in the cache
            problem = f"{name} is not in the cache, and the hub cannot be reached: {one_line(error)}"
        except EntryNotFoundError:
            continue
        except (OSError, ValueError, HfHubHTTPError) as error:
            raise BadInput(f"{setting(part)}={repository}: cannot be fetched: {one_line(error)}") from error
    raise BadInput(f"{setting(part)}={repository}: {problem}")


def read_config(spec: str, part: str) -> dict[str, Any]:
    """The config.json of a model. Raises BadInput where there is none."""
    file = find_file(spec, part, "config.json")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError) as error:
        raise BadInput(f"{setting(part)}: {file} is damaged: {one_line(error)}") from error
    return config


def read_tensors(spec: str, part: str, wanted: Callable[[str], str | None]) -> dict[str, torch.Tensor]:
    """Tensors of a model's safetensors, one file or indexed ones, under the names that `wanted` gives to theirs; those
    for which it gives None stay unread. Raises BadInput where there are no such files."""
    first = find_file(spec, part, "model.safetensors.index.json", "model.safetensors")
    files = [first]
    try:
        if first.suffix == ".json":
            index = json.loads(first.read_text(encoding="utf-8"))["weight_map"]
            held = sorted({file for name, file in index.items() if wanted(name) is not None})
            files = [find_file(spec, part, file) for file in held]
        tensors = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118, it is no mapping
                    if (ours := wanted(name)) is not None:
                        tensors[ours] = opened.get_tensor(name)
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise BadInput(f"{setting(part)}: {first} is damaged: {one_line(error)}") from error
    return tensors


def read_centroids(file: Path, part: str) -> np.ndarray:
    """float32 [entries, width] of an npy file. Raises BadInput for another file or shape."""
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{setting(part)}: {file} is not an npy file of centroids: {one_line(error)}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
        raise BadInput(f"{setting(part)}: {file} holds no float matrix of centroids")
    return np.ascontiguousarray(array, np.float32)


def read_state(file: Path, part: str, *, data: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors or PyTorch file, by name; without `data` those of a PyTorch file are on the meta
    device, unread. Raises BadInput for another file."""
    import pickle

    import torch
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu" if data else "meta", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise BadInput(f"{setting(part)}: {file} is not a file of tensors: {one_line(error)}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BadInput(f"{setting(part)}: {file} holds no state dict")
    return state


def one_line(error: BaseException) -> str:
    """An error of a library, short enough for a line."""
    return " ".join(str(error).split())[:160]
