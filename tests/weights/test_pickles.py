"""PyTorch files that could run code, or can't be checked for it."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import pytest
import torch
from released_files import Code, equal

from ultragen.weights.released import load_released, save_released


def save_zip(content: object, path: Path, protocol: int) -> None:
    torch.save(content, path, pickle_protocol=protocol)


def save_legacy(content: object, path: Path, protocol: int) -> None:
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)


def save_pickle(content: object, path: Path, protocol: int) -> None:
    path.write_bytes(pickle.dumps(content, protocol=protocol))


REFUSED = r"only weights are loaded.*could run code, so it is refused; take the \.safetensors file"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, small, save, protocol):
    path, made = tmp_path / "ultragen.ckpt", tmp_path / "made"
    tensors = {} if save is save_pickle else small
    save({**tensors, "a": Code(made), "b": Code(made)}, path, protocol)
    with pytest.raises(ValueError, match=rf"holds code \(posix\.mkdir\), and {REFUSED}"):
        load_released(path)
    assert not made.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_weights_in_a_protocol_that_can_not_be_checked(tmp_path, small, save, protocol):
    path = tmp_path / "ultragen.ckpt"
    save(small, path, protocol)
    if protocol in (2, 3):
        assert equal(save_released(load_released(path)), small)
        return
    named = protocol if protocol > 1 else 0  # what came before 2 has no number in the file
    with pytest.raises(ValueError, match=rf"with protocol {named}, which.*saved by torch\.save"):
        load_released(path)
    # Where it is cut off within the pickle, nothing tells that it is one.
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises((OSError, ValueError), match=r"incomplete or damaged|with protocol"):
        load_released(path)


def test_a_torchscript_program_is_named(tmp_path):
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"is a TorchScript program.*take the \.safetensors"):
            load_released(path)


def test_a_whole_pickled_model_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear.*refused"):
        load_released(path)
