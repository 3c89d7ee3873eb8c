"""The command that converts weights."""

from __future__ import annotations

import shutil

import pytest
import torch
from commands import one_line, ultragen
from released_files import Code, dense_weights, equal
from safetensors.torch import save_file

from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.weights.read import read_header, read_weights
from ultragen.weights.released import load_dense, load_ultragen, save_released


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


def test_convert_writes_the_authors_names_and_back(small, tmp_path, capsys):
    source, folder = tmp_path / "ultragen_1080p.ckpt", tmp_path / "folder"
    torch.save(small, source)
    assert ultragen("convert", source, folder) == 0
    for name in ("back.safetensors", "back.ckpt"):
        assert ultragen("convert", folder, tmp_path / name) == 0
        assert equal(read_weights(tmp_path / name), small)
        assert read_header(tmp_path / name) == {}
    assert ultragen("convert", folder, tmp_path / "back.ckpt") == 1
    assert "already holds back.ckpt" in capsys.readouterr().err
    assert ultragen("convert", folder, tmp_path / "back.ckpt", "--overwrite") == 0


def test_settings_of_ones_own_travel_in_the_header(tmp_path, capsys):
    """The paper's layout has settings that the authors' names can't tell."""
    save_file(dense_weights(), tmp_path / "wan.safetensors")
    model = UltraGenTransformer3DModel.from_wan(
        load_dense(tmp_path / "wan.safetensors"), window_size=(34.0, 60.0)
    )
    model.save_pretrained(tmp_path / "own")
    assert ultragen("convert", tmp_path / "own", tmp_path / "own.ckpt") == 2
    assert "can't tell" in one_line(capsys)
    assert not (tmp_path / "own.ckpt").exists()
    one_file = tmp_path / "own.safetensors"
    assert ultragen("convert", tmp_path / "own", one_file) == 0
    assert ultragen("convert", one_file, tmp_path / "again") == 0
    for source in (one_file, tmp_path / "again"):
        back = load_ultragen(source)
        assert equal(back.state_dict(), model.state_dict())
        for name in ("window_size", "uneven", "global_keys_from", "timestep_dtype"):
            assert list(back.config[name]) == list(model.config[name])


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("{", "corrupt"),
        ("[]", "corrupt"),
        ('{"num_layers": 3}', "num_layers"),
        ('{"uneven": "melt"}', "uneven"),
        ('{"eps": "small"}', "eps"),
    ],
)
def test_a_header_that_no_one_wrote_is_refused(small, tmp_path, header, says):
    save_file(small, tmp_path / "odd.safetensors", {"ultragen": header})
    with pytest.raises(OSError, match=says):
        load_ultragen(tmp_path / "odd.safetensors")
