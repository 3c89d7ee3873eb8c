"""Weights with what training puts around them: names, dictionaries, checkpoints in shards."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from commands import one_line, ultragen
from released_files import Code, dense_weights, equal
from torch.distributed import checkpoint

from ultragen.weights.fingerprint import fingerprint
from ultragen.weights.folders import weight_bytes
from ultragen.weights.released import load_dense, load_released, load_ultragen, save_released

# Saving says that it takes itself for the only process, which it is.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

KEY = "blocks.1.self_attn.q.weight"


@pytest.mark.parametrize(
    "prefix",
    [
        "ema.",
        "ema_model.",
        "generator.",
        "generator.model.",
        "generator_ema.model.",
        "pipe.dit.",
        "state_dict.model.diffusion_model.",
        "module.model._fsdp_wrapped_module.",
        "_fsdp_wrapped_module._orig_mod.",
    ],
)
def test_names_of_trainings(small, prefix):
    wrapped = {f"{prefix}{key}": value for key, value in small.items()}
    assert equal(save_released(load_released(wrapped)), small)


@pytest.mark.parametrize(
    "wrapper", ["_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module", "module"]
)
def test_wrappers_of_single_layers(small, wrapper):
    wrapped = {
        re.sub(r"^(blocks\.\d+\.)", rf"model.\1{wrapper}.", key): x for key, x in small.items()
    }
    assert f"model.blocks.1.{wrapper}.norm3.weight" in wrapped
    assert equal(save_released(load_released(wrapped)), small)


def test_a_dictionary_in_a_dictionary(small, tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"generator": {f"model.{key}": value for key, value in small.items()}}, path)
    assert equal(save_released(load_released(path)), small)


def test_two_models_of_a_training_in_one_file(small, tmp_path, capsys):
    changed = {key: value + 1 for key, value in small.items()}
    torch.save({"generator": small, "generator_ema": changed}, tmp_path / "both.pt")
    assert ultragen("convert", tmp_path / "both.pt", tmp_path / "out") == 2
    said = one_line(capsys)
    assert "twice, as generator." in said and "as generator_ema." in said


# torch.distributed.checkpoint


@pytest.fixture
def saved(small, tmp_path) -> Path:
    """The checkpoint of a training, with what it keeps beside the model."""
    first = small[KEY]
    content = {
        "model": small,
        "optimizer": {"state": {KEY: {"exp_avg": first, "step": torch.tensor(3.0)}}},
        "step": torch.tensor(3),
        "seed": 7,
    }
    checkpoint.save(content, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    return tmp_path / "checkpoint"


def test_a_distributed_checkpoint(small, saved, tmp_path, capsys):
    assert equal(save_released(load_released(saved)), small)
    assert ultragen("convert", saved, tmp_path / "out") == 0
    assert "2 with UltraGen's branches\n" in capsys.readouterr().out
    assert equal(save_released(load_ultragen(tmp_path / "out")), small)
    assert all(p.is_meta for p in load_ultragen(saved, device="meta").parameters())


def test_a_distributed_checkpoint_is_told_from_another(saved, small, tmp_path):
    assert weight_bytes(saved) > sum(x.nbytes for x in small.values())
    other = tmp_path / "other"
    checkpoint.save({"model": {KEY: small[KEY]}}, checkpoint_id=other, no_dist=True)
    assert fingerprint(other) != fingerprint(saved)


def test_a_distributed_checkpoint_with_our_names(small, tmp_path):
    """With the configuration beside it, as for other folders in diffusers' layout."""
    for name, model in (("ours", load_released(small)), ("dense", load_dense(dense_weights()))):
        folder = tmp_path / name
        checkpoint.save({"model": model.state_dict()}, checkpoint_id=folder, no_dist=True)
        with pytest.raises(ValueError, match=r"take its folder, with config\.json"):
            load_released(folder)
        model.save_config(folder)
        load = load_ultragen if name == "ours" else load_dense
        assert equal(load(folder).state_dict(), model.state_dict())


def test_a_damaged_distributed_checkpoint(saved, tmp_path):
    shard = next(saved.glob("*.distcp"))
    content, index = shard.read_bytes(), (saved / ".metadata").read_bytes()
    shard.write_bytes(content[:-100])
    for device in ("cpu", "meta"):
        with pytest.raises(OSError, match=rf"checkpoint is incomplete.*{shard.name} is missing or"):
            load_ultragen(saved, device=device)
    shard.unlink()
    with pytest.raises(OSError, match=f"{shard.name} is missing or cut off"):
        load_released(saved)
    shard.write_bytes(content)
    for damaged in (index[:100], b"", b"{}"):
        (saved / ".metadata").write_bytes(damaged)
        with pytest.raises(OSError, match="checkpoint is incomplete or damaged"):
            load_released(saved)


def test_code_in_a_distributed_checkpoint_is_not_run(saved, tmp_path, capsys):
    (saved / ".metadata").write_bytes(pickle.dumps(Code(tmp_path / "made")))
    assert ultragen("convert", saved, tmp_path / "out") == 2
    module = "nt" if sys.platform == "win32" else "posix"
    assert f"holds code ({module}.mkdir)" in one_line(capsys)
    assert not (tmp_path / "made").exists()
