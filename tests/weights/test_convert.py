"""The command that converts weights."""

from __future__ import annotations

import shutil

import torch
from commands import ultragen
from released_files import Code, dense_weights, equal
from safetensors.torch import save_file

from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.weights.released import load_ultragen, save_released


def test_convert(small, tmp_path, capsys):
    source, out = tmp_path / "ultragen_1080p.ckpt", tmp_path / "models" / "ultragen"
    torch.save(small, source)
    assert ultragen("convert", source, out) == 0
    assert "3 layers, 2 with UltraGen's branches\n" in capsys.readouterr().out
    loaded = UltraGenTransformer3DModel.from_pretrained(out)
    assert equal(save_released(loaded), small)
    assert loaded.config.timestep_dtype == "bfloat16"
    assert ultragen("convert", source, out) == 1
    assert "already holds config.json" in capsys.readouterr().err
    # Shards of an earlier model don't stay.
    (out / "diffusion_pytorch_model-00001-of-00002.safetensors").touch()
    assert ultragen("convert", source, out, "--overwrite") == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    # Our own folder again.
    assert ultragen("convert", out, tmp_path / "again") == 0
    assert equal(save_released(load_ultragen(tmp_path / "again")), small)


def test_convert_makes_a_start_for_training_of_dense_wan(tmp_path, capsys):
    save_file(dense_weights(), tmp_path / "wan.safetensors")
    assert ultragen("convert", tmp_path / "wan.safetensors", tmp_path / "out") == 0
    assert "2 with UltraGen's branches, which are untrained" in capsys.readouterr().out
    model = load_ultragen(tmp_path / "out")
    assert model.layer_kinds == ["even", "odd"]
    assert torch.equal(model.proj_out.weight, dense_weights()["head.head.weight"])


def test_convert_refuses_in_one_line(small, tmp_path, capsys):
    source = tmp_path / "in" / "model.ckpt"
    source.parent.mkdir()
    torch.save({"a": Code(tmp_path / "made")}, source)
    for arguments, says, code in (
        ((source, tmp_path / "out"), "refused", 2),
        ((source, source.parent), "choose another folder", 2),
        ((tmp_path / "nothing", tmp_path / "out"), "There is no weights file", 1),
    ):
        assert ultragen("convert", *arguments) == code
        printed = capsys.readouterr()
        assert says in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert not (tmp_path / "out").exists()
    assert [path.name for path in source.parent.iterdir()] == ["model.ckpt"]
    shutil.rmtree(source.parent)
