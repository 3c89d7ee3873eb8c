"""Reading weight files that anyone may have made, strictly: no code is run, damage is named, and
every tensor has to fit."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path, PurePosixPath
from typing import TypeVar
from warnings import catch_warnings, simplefilter
from zipfile import ZipFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..files import first_line
from ..model.quantised import HALVES, Quantised, StateDict, block_kinds
from ..model.strict_loading import differences
from .distributed_checkpoint import METADATA, read_distributed
from .float8_files import join_scales
from .folders import SHARD, SUFFIXES, missing_index, weight_map
from .pickles import foreign_objects

Model = TypeVar("Model", bound=nn.Module)
_WHOLE = "diffusion_pytorch_model.safetensors"  # what Wan and diffusers call an unsharded model
_INDEX = ".index.json"
_AGAIN = "download it again"
_PLAIN = "take the .safetensors file of this model, or ask its authors for a plain state dictionary"
_PROTOCOLS = (2, 3)  # of pickles that PyTorch reads without running code


def read_weights(path: str | Path, device: str = "cpu") -> dict[str, Tensor]:
    """Reads tensors by name, quantised ones as bfloat16; otherwise as `read_stored`."""
    stored = read_stored(path, device)
    return {key: plain_tensor(value) for key, value in stored.items()}


def read_stored(path: str | Path, device: str = "cpu", aside: Collection[str] = ()) -> StateDict:
    """Reads weights by name, as they are stored.

    Args:
        path: A `.safetensors` file, a PyTorch state dictionary, a GGUF file, the index of a sharded
            model, or a folder that holds one of them or what `torch.distributed.checkpoint` writes.
        device: Where the weights go. For `meta`, only names, types and shapes are read, and with
            them whether the files are whole; PyTorch's legacy format alone is read through.
        aside: Names of tensors that are no weights, and are left out.

    Raises:
        OSError: if a file is missing, incomplete or damaged.
        ValueError: if the contents are no tensors, or quantised in a way that can't be read; code
            in a file is never run.
    """
    path = Path(path)
    distributed = (path / METADATA).is_file()
    content = _read_distributed(path, device) if distributed else _read(path)
    if isinstance(content, Mapping):
        content = {key: value for key, value in content.items() if key not in aside}
    weights = check_tensors(content, str(path))
    return {key: _move(value, device) for key, value in weights.items()}


def plain_tensor(value: Tensor | Quantised) -> Tensor:
    """A tensor as it is, or the bfloat16 of what is quantised."""
    return value.dequantise(torch.bfloat16) if isinstance(value, Quantised) else value


def _move(value: Tensor | Quantised, device: str) -> Tensor | Quantised:
    if isinstance(value, Quantised):
        return replace(value, codes=value.codes.to(device))
    return value.to(device)


def _read_distributed(folder: Path, device: str) -> object:
    try:
        with catch_warnings():  # that it is one process is meant
            simplefilter("ignore")
            return read_distributed(folder, device)
    except MemoryError:
        raise
    except ValueError as error:  # code
        raise ValueError(f"{folder}: {error}") from error
    except Exception as error:  # a damaged checkpoint fails in more ways than torch documents
        reason = first_line(error).rstrip(".")
        raise OSError(f"{folder} is incomplete or damaged ({reason}): {_AGAIN}.") from error


def _read(path: Path) -> object:
    if path.is_dir():
        path = find_weights(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no weights file {path}: check the path, or {_AGAIN}.")
    if (shard := SHARD.fullmatch(path.name)) and int(shard["number"]) > 1:
        raise ValueError(
            f"{path} is one of the model's {int(shard['number'])} shards: choose their index, "
            f"{shard['name']}{shard['suffix']}{_INDEX}, or their folder."
        )
    return _read_shards(path) if path.name.endswith(_INDEX) else _read_file(path)


def read_header(path: str | Path) -> dict[str, str]:
    """What the header of a safetensors file says beside its tensors; nothing for other files.

    Args:
        path: As in `read_stored`, which has read it.
    """
    path = Path(path)
    if (path / METADATA).is_file():
        return {}
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


def _read_shards(index: Path) -> dict[str, Tensor | Quantised]:
    files = weight_map(index)
    names = sorted({Path(name).name for name in files.values()})
    if missing := [name for name in names if not (index.parent / name).exists()]:
        raise FileNotFoundError(
            f"{index.parent} is half a download: {len(missing)} of {len(names)} files are missing "
            f"({', '.join(missing)}). Get these, or {_AGAIN}."
        )
    weights: StateDict = {}
    for name in names:
        weights |= _as_dictionary(_read_file(index.parent / name), str(index.parent / name))
    if absent := sorted(files.keys() - weights.keys()):
        raise OSError(
            f"{index.parent} does not hold {len(absent)} of the tensors that {index.name} names, "
            f"such as {absent[0]}: {_AGAIN}."
        )
    return weights


def _read_file(path: Path) -> object:
    """The beginning of a file tells its format; names are not to be trusted."""
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise OSError(f"{path} is empty: {_AGAIN}.")
    if _is_safetensors(start):
        return _read_safetensors(path)
    if start.startswith((b"PK", b"\x80")):
        return _read_torch(path, zipped=start.startswith(b"PK"))
    if start.startswith(b"GGUF"):
        return _read_gguf(path)
    raise _not_weights(path, start)


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
    if path.suffix in SUFFIXES:
        return _refusal(path, "no known beginning")
    return ValueError(f"{path} is no weights file: choose a {', '.join(SUFFIXES)} file.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:  # maps the file, whose values are read when they are used
        return load_file(path)
    except SafetensorError as error:
        raise OSError(_damaged(path, error)) from error


def _read_gguf(path: Path) -> StateDict:
    known = {*HALVES, *block_kinds()}  # says what is missing, if gguf is
    from .gguf_files import read_gguf

    try:
        weights = read_gguf(path)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file fails in more ways than gguf documents
        raise OSError(_damaged(path, error)) from error
    for name, weight in weights.items():
        if isinstance(weight, Quantised) and weight.kind not in known:
            raise ValueError(
                f"{path} holds {name} as {weight.kind}, which only ggml itself reads: take a file "
                f"in one of {', '.join(sorted(known))}, or the .safetensors file of this model."
            )
    return weights


def _read_torch(path: Path, zipped: bool) -> object:
    """A PyTorch file; with `weights_only`, whatever would run code is refused."""
    if zipped:
        _check_archive(path)
    try:
        with catch_warnings():  # of protocols, for which there is a message below
            simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
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


def check_tensors(content: object, where: str) -> StateDict:
    """Checks that an object is a state dictionary, or a dictionary of such ones, and joins FP8
    weights with their scales.

    Raises:
        ValueError: if it is something else, or if its tensors are quantised in another way.
    """
    content = _as_dictionary(content, where)
    blocks = {key: value for key, value in content.items() if isinstance(value, Quantised)}
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    weights = join_scales(tensors, where) | blocks
    known = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    # A single number, such as a LoRA's α, may be a whole one.
    tensors = {k: v for k, v in weights.items() if isinstance(v, Tensor) and v.numel() > 1}
    kinds = {value.dtype for value in tensors.values()}
    if quantised := kinds - set(known):
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in quantised))
        raise ValueError(f"{where} holds quantised weights ({names}): take the bfloat16 file.")
    return weights


def _as_dictionary(content: object, where: str) -> StateDict:
    """Names and weights; those of dictionaries within, `{"generator": {...}}`, as one."""
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{where} holds no state dictionary, but {type(content).__name__}.")
    if all(isinstance(value, Mapping) and value for value in content.values()):
        content = {
            f"{outer}.{key}": value
            for outer, inner in content.items()
            for key, value in inner.items()
        }
    if other := [
        key
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, Tensor | Quantised))
    ]:
        raise ValueError(
            f"{where} holds more than tensors ({', '.join(map(str, other[:4]))}): load it with "
            "torch.load(weights_only=True), and pass the part that is the state dictionary."
        )
    return dict(content)


def fill(
    model: Model, weights: Mapping[str, Tensor | Quantised], names: Mapping[str, str], where: str
) -> Model:
    """Gives an empty model its weights, without copies of those that are not quantised.

    Args:
        model: On the meta device.
        weights: Tensors; of several types, the widest becomes that of all, so that nothing is lost.
            Where some are quantised, these become bfloat16, and the others stay as they are.
        names: Name of each tensor → its name in the model.
        where: What to call the source in errors.

    Raises:
        ValueError: listing the keys that are missing, unexpected or misshapen.
    """
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    expected = {key: shapes[name] for key, name in names.items()}
    if wrong := differences(expected, {key: value.shape for key, value in weights.items()}):
        raise ValueError(f"{where} does not fit the model: {wrong}.")
    tensors = {key: plain_tensor(value) for key, value in weights.items()}
    quantised = any(isinstance(value, Quantised) for value in weights.values())
    widest = reduce(torch.promote_types, {value.dtype for value in tensors.values()})
    renamed = {
        name: tensors[key].to(tensors[key].dtype if quantised else widest).contiguous()
        for key, name in names.items()
    }
    model.load_state_dict(renamed, assign=True)
    return model.eval()
