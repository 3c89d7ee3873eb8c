"""Reading weight files that anyone may have made, strictly: no code is run, damage is named, and
every tensor has to fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import reduce
from pathlib import Path, PurePosixPath
from typing import TypeVar
from warnings import catch_warnings, simplefilter
from zipfile import ZipFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..model.strict_loading import differences
from .folders import SHARD, SUFFIXES, missing_index, weight_map
from .pickles import foreign_objects

Model = TypeVar("Model", bound=nn.Module)
_WHOLE = "diffusion_pytorch_model.safetensors"  # what Wan and diffusers call an unsharded model
_INDEX = ".index.json"
_AGAIN = "download it again"
_PLAIN = "take the .safetensors file of this model, or ask its authors for a plain state dictionary"
_PROTOCOLS = (2, 3)  # of pickles that PyTorch reads without running code


def read_weights(path: str | Path, device: str = "cpu") -> dict[str, Tensor]:
    """Reads tensors by name.

    Args:
        path: A `.safetensors` file, a PyTorch state dictionary, the index of a sharded model, or a
            folder that holds one of them.
        device: Where the tensors go. For `meta`, only names, types and shapes are read, and with
            them whether the files are whole; PyTorch's legacy format alone is read through.

    Raises:
        OSError: if a file is missing, incomplete or damaged.
        ValueError: if the contents are no plain tensors; code in a file is never run.
    """
    path = Path(path)
    if path.is_dir():
        path = find_weights(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no weights file {path}: check the path, or {_AGAIN}.")
    if (shard := SHARD.fullmatch(path.name)) and int(shard["number"]) > 1:
        raise ValueError(
            f"{path} is one of the model's {int(shard['number'])} shards: choose their index, "
            f"{shard['name']}{shard['suffix']}{_INDEX}, or their folder."
        )
    read = _read_shards if path.name.endswith(_INDEX) else _read_file
    return read(path, device)


def read_header(path: str | Path) -> dict[str, str]:
    """What the header of a safetensors file says beside its tensors; nothing for other files.

    Args:
        path: As in `read_weights`, which has read it.
    """
    path = Path(path)
    if path.is_dir():
        path = find_weights(path)
    with path.open("rb") as file:
        if not _is_safetensors(file.read(16)):
            return {}
    with safe_open(path, framework="pt") as opened:
        return opened.metadata() or {}


def find_weights(folder: Path) -> Path:
    """The weights file of a folder, or the index of its shards.

    Raises:
        OSError: if there is none.
        ValueError: if there are several.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if index := missing_index(path.name for path in files):
        raise FileNotFoundError(
            f"{folder} holds shards of a model without their index, {index}: get that file too, or "
            "download the model again."
        )
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


def _read_shards(index: Path, device: str) -> dict[str, Tensor]:
    files = weight_map(index)
    names = sorted({Path(name).name for name in files.values()})
    if missing := [name for name in names if not (index.parent / name).exists()]:
        raise FileNotFoundError(
            f"{index.parent} is half a download: {len(missing)} of {len(names)} files are missing "
            f"({', '.join(missing)}). Get these, or {_AGAIN}."
        )
    weights: dict[str, Tensor] = {}
    for name in names:
        weights |= _read_file(index.parent / name, device)
    if absent := sorted(files.keys() - weights.keys()):
        raise OSError(
            f"{index.parent} does not hold {len(absent)} of the tensors that {index.name} names, "
            f"such as {absent[0]}: {_AGAIN}."
        )
    return weights


def _read_file(path: Path, device: str) -> dict[str, Tensor]:
    """The beginning of a file tells its format; names are not to be trusted."""
    with path.open("rb") as file:
        start = file.read(16)
    content: object
    if not start:
        raise OSError(f"{path} is empty: {_AGAIN}.")
    if _is_safetensors(start):
        content = _read_safetensors(path, device)
    elif start.startswith((b"PK", b"\x80")):
        content = _read_torch(path, device, zipped=start.startswith(b"PK"))
    else:
        raise _not_weights(path, start)
    return check_tensors(content, str(path))


def _is_safetensors(start: bytes) -> bool:
    """By the header's length in 8 bytes, the upper ones zero, and its first brace."""
    return start[5:9] == b"\0\0\0{"


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
        return _refusal(path, "no known beginning")
    return ValueError(f"{path} is no weights file: choose a {', '.join(SUFFIXES)} file.")


def _read_safetensors(path: Path, device: str) -> dict[str, Tensor]:
    try:  # maps the file, whose values are read when they are used
        return {key: value.to(device) for key, value in load_file(path).items()}
    except SafetensorError as error:
        raise OSError(_damaged(path, error)) from error


def _read_torch(path: Path, device: str, zipped: bool) -> object:
    """A PyTorch file; with `weights_only`, whatever would run code is refused."""
    if zipped:
        _check_archive(path)
    try:
        with catch_warnings():  # of protocols, for which there is a message below
            simplefilter("ignore")
            return torch.load(path, map_location=device, weights_only=True, mmap=zipped)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file fails in more ways than torch documents
        raise _refusal(path, error) from error


def _check_archive(path: Path) -> None:
    """Tells PyTorch's own zip archives from others."""
    try:
        with ZipFile(path) as archive:
            members = archive.namelist()
    except Exception as error:  # as above
        raise OSError(_damaged(path, error)) from error
    names = {PurePosixPath(member).name for member in members}
    if "constants.pkl" in names:
        raise ValueError(
            f"{path} is a TorchScript program, whose code could be run, and only weights are "
            f"loaded: {_PLAIN}."
        )
    if "data.pkl" not in names:
        raise ValueError(
            f"{path} is a zip archive, but no PyTorch checkpoint (it holds "
            f"{', '.join(members[:3]) or 'nothing'}): choose a {', '.join(SUFFIXES)} file."
        )


def _refusal(path: Path, error: object) -> Exception:
    """Why PyTorch does not read a file: code, a protocol that it can't check, or damage."""
    protocol, foreign = foreign_objects(path)
    if foreign:
        return ValueError(
            f"{path} holds code ({', '.join(foreign[:4])}), and only weights are loaded: "
            f"unpickling it could run code, so it is refused; {_PLAIN}."
        )
    if protocol is not None and protocol not in _PROTOCOLS:
        return ValueError(
            f"{path} is pickled with protocol {protocol}, which PyTorch can't read without running "
            f"code: {_PLAIN}, saved by torch.save with the protocol that it takes by itself."
        )
    return OSError(_damaged(path, error))


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
    expected = {key: shapes[name] for key, name in names.items()}
    if wrong := differences(expected, {key: value.shape for key, value in weights.items()}):
        raise ValueError(f"{where} does not fit the model: {wrong}.")
    dtype = reduce(torch.promote_types, {value.dtype for value in weights.values()})
    renamed = {name: weights[key].to(dtype).contiguous() for key, name in names.items()}
    model.load_state_dict(renamed, assign=True)
    return model.eval()
