"""Reading weight files that anyone may have made, strictly: no code is run, damage is named, and
every tensor has to fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")
_WHOLE = "diffusion_pytorch_model.safetensors"  # what Wan and diffusers call an unsharded model
_INDEX = ".index.json"
_AGAIN = "download it again"
_LISTED = 50  # keys in an error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads tensors by name onto the CPU.

    Args:
        path: A `.safetensors` file, a PyTorch state dictionary, the index of a sharded model, or a
            folder that holds one of them.

    Raises:
        OSError: if a file is missing, incomplete or damaged.
        ValueError: if the contents are no plain tensors; code in a file is never run.
    """
    path = Path(path)
    if path.is_dir():
        path = find_weights(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no weights file {path}: check the path, or {_AGAIN}.")
    return _read_shards(path) if path.name.endswith(_INDEX) else _read_file(path)


def find_weights(folder: Path) -> Path:
    """The weights file of a folder, or the index of its shards.

    Raises:
        OSError: if there is none.
        ValueError: if there are several.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for wanted in (
        [path for path in files if path.name.endswith(_INDEX)],
        [path for path in files if path.name == _WHOLE],
        *([path for path in files if path.suffix == suffix] for suffix in SUFFIXES),
    ):
        if len(wanted) > 1:
            names = ", ".join(path.name for path in wanted)
            raise ValueError(f"{folder} holds several models ({names}): name one of the files.")
        if wanted:
            return wanted[0]
    if unfinished := [path.name for path in files if path.suffix in (".incomplete", ".part")]:
        raise OSError(f"{folder} holds half a download ({unfinished[0]}): start it again.")
    raise FileNotFoundError(
        f"{folder} holds no weights: choose a folder with a {', '.join(SUFFIXES[:-1])} or "
        f"{SUFFIXES[-1]} file."
    )


def read_json(path: Path) -> dict[str, Any]:
    """Reads an object from a JSON file.

    Raises:
        OSError: if the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {path}: {_AGAIN}.") from error
    except ValueError as error:
        raise OSError(f"{path} is damaged ({error}): {_AGAIN}.") from error
    if not isinstance(content, dict):
        raise OSError(f"{path} is damaged (no object): {_AGAIN}.")
    return content


def _read_shards(index: Path) -> dict[str, Tensor]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict):
        raise OSError(f"{index} is damaged (no weight_map): {_AGAIN}.")
    names = sorted({Path(name).name for name in files.values()})
    if missing := [name for name in names if not (index.parent / name).exists()]:
        raise FileNotFoundError(
            f"{index.parent} is half a download: {len(missing)} of {len(names)} files are missing "
            f"({', '.join(missing)}). Get these, or {_AGAIN}."
        )
    weights: dict[str, Tensor] = {}
    for name in names:
        weights |= _read_file(index.parent / name)
    if absent := sorted(files.keys() - weights.keys()):
        raise OSError(
            f"{index.parent} does not hold {len(absent)} of the tensors that {index.name} names, "
            f"such as {absent[0]}: {_AGAIN}."
        )
    return weights


def _read_file(path: Path) -> dict[str, Tensor]:
    """The beginning of a file tells its format; names are not to be trusted."""
    with path.open("rb") as file:
        start = file.read(16)
    content: object
    if not start:
        raise OSError(f"{path} is empty: {_AGAIN}.")
    if start[5:9] == b"\0\0\0{":  # the header's length in 8 bytes, the upper ones zero
        content = _read_safetensors(path)
    elif start.startswith((b"PK", b"\x80")):
        content = _read_torch(path, zipped=start.startswith(b"PK"))
    else:
        raise _not_weights(path, start)
    return check_tensors(content, str(path))


def _not_weights(path: Path, start: bytes) -> Exception:
    """What a file is instead, by its beginning."""
    if start.startswith(b"version "):
        return OSError(f"{path} is only a pointer to the file: run 'git lfs pull'.")
    if start.lstrip().startswith((b"<", b"{")):
        return OSError(
            f"{path} is a web page or a message, not weights: the download was refused. Open its "
            "address in a browser to see why."
        )
    if start.startswith(b"GGUF"):
        return ValueError(f"{path} holds quantised GGUF weights: take the .safetensors file.")
    if path.suffix in SUFFIXES:
        return OSError(_damaged(path, "no known beginning"))
    return ValueError(f"{path} is no weights file: choose a {', '.join(SUFFIXES)} file.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise OSError(_damaged(path, error)) from error


def _read_torch(path: Path, zipped: bool) -> object:
    """A PyTorch file; with `weights_only`, whatever would run code is refused."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file fails in more ways than torch documents
        code = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, UnpicklingError) and code:
            raise ValueError(
                f"{path} holds Python objects ({code.group(1)}) beside tensors; loading them could "
                "run code, so it is refused. Take the .safetensors file of this model, or ask its "
                "authors for a plain state dictionary."
            ) from error
        raise OSError(_damaged(path, error)) from error


def _damaged(path: Path, error: object) -> str:
    reason = re.split(r"[.\n]", str(error))[0].strip() or type(error).__name__
    size = path.stat().st_size
    return f"{path} is incomplete or damaged ({size:,} bytes; {reason}): {_AGAIN}."


def check_tensors(content: object, where: str) -> dict[str, Tensor]:
    """Checks that an object is a plain state dictionary.

    Raises:
        ValueError: if it is something else, or if its tensors are quantised.
    """
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{where} holds no state dictionary, but {type(content).__name__}.")
    if other := [
        key
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]:
        raise ValueError(
            f"{where} holds more than tensors ({', '.join(map(str, other[:4]))}): load it with "
            "torch.load(weights_only=True), and pass the part that is the state dictionary."
        )
    known = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if quantised := {value.dtype for value in content.values()} - set(known):
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in quantised))
        raise ValueError(f"{where} holds quantised weights ({names}): take the bfloat16 file.")
    return dict(content)


def wrong_keys(expected: Iterable[str], found: Iterable[str]) -> str:
    """The names that are missing and those that are not expected; empty if there are none."""
    expected, found = dict.fromkeys(expected), dict.fromkeys(found)
    return _listed(
        missing=[key for key in expected if key not in found],
        unexpected=[key for key in found if key not in expected],
    )


def fill(
    model: Model, weights: Mapping[str, Tensor], names: Mapping[str, str], where: str
) -> Model:
    """Gives an empty model its weights, without copies.

    Args:
        model: On the meta device.
        weights: Tensors; of several types, the widest becomes that of all, so that nothing is lost.
        names: Name of each tensor → its name in the model.
        where: What to call the source in errors.

    Raises:
        ValueError: listing the keys that are missing, unexpected or misshapen.
    """
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    misshapen = [
        f"{key} is {_by(weights[key].shape)}, not {_by(shapes[name])}"
        for key, name in names.items()
        if key in weights and weights[key].shape != shapes[name]
    ]
    if wrong := "; ".join(filter(None, (wrong_keys(names, weights), _listed(misshapen=misshapen)))):
        raise ValueError(f"{where} does not fit the model: {wrong}.")
    dtype = reduce(torch.promote_types, {value.dtype for value in weights.values()})
    renamed = {name: weights[key].to(dtype).contiguous() for key, name in names.items()}
    model.load_state_dict(renamed, assign=True)
    return model.eval()


def _listed(**kinds: list[str]) -> str:
    """Each kind with its number and its keys, the first of them where there are many."""
    return "; ".join(
        f"{kind} ({len(keys)}): {', '.join(keys[:_LISTED])}"
        + (f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else "")
        for kind, keys in kinds.items()
        if keys
    )


def _by(shape: Iterable[int]) -> str:
    return " × ".join(map(str, shape))
