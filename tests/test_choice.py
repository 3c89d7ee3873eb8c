"""Which model runs on which machine, and what is said about it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from wan_files import WanFiles, make_wan

from ultragen import choice
from ultragen.choice import choose
from ultragen.hardware import GIB, Hardware
from ultragen.presets import EMBEDDED, EMBEDDED_MODEL, ULTRAGEN_SOURCE, WAN, WAN_SOURCE

H100 = Hardware("cuda", "NVIDIA H100", 79 * GIB, True)
L4 = Hardware("cuda", "NVIDIA L4", 22 * GIB, True)
A4000 = Hardware("cuda", "RTX A4000", 15 * GIB, True)
LAPTOP = Hardware("cuda", "RTX 3050", 4 * GIB, True)
T4 = Hardware("cuda", "Tesla T4", int(14.5 * GIB), False)
V100 = Hardware("cuda", "Tesla V100", 31 * GIB, False)
CPU = Hardware("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> WanFiles:
    return make_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in ("SPACE_ID", "ULTRAGEN_MODEL", WAN_SOURCE.variable, ULTRAGEN_SOURCE.variable):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def machine(monkeypatch, files):
    """Sets the hardware, and whether weights, of the true size or the files' own, are there."""

    def make(hardware: Hardware, weights: bool = True, size: int = 20 * 10**9) -> None:
        monkeypatch.setattr(choice, "find_hardware", lambda: hardware)
        monkeypatch.setattr(choice, "weight_bytes", lambda path: size)
        if weights:
            for name, value in files.environment.items():
                if name != "ULTRAGEN_MODEL":
                    monkeypatch.setenv(name, value)

    return make


@pytest.mark.parametrize(
    ("hardware", "name", "says"),
    [
        (H100, "wan", "Its weights are here, and NVIDIA H100 can run it"),
        (L4, "wan", "NVIDIA L4 can run it"),
        (A4000, "embedded", "RTX A4000 has only 15.0 GiB free"),
        (LAPTOP, "embedded", "does not fit RTX 3050: it takes 11.6 GiB"),
        (T4, "embedded", "Tesla T4, which computes no bfloat16"),
        (
            CPU,
            "embedded",
            "needs a CUDA GPU: on a CPU, denoising one clip would take about 13 days",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Hardware) else None,
)
def test_auto_takes_what_the_machine_can_run(machine, hardware, name, says):
    machine(hardware)
    for asked in (None, "auto"):
        found = choose(asked)
        assert found.name == name
        assert says in found.why
        assert found.preset == (WAN if name == "wan" else choose("embedded").preset)
    assert ("24 GB" in found.other) is (name == "embedded")


def test_auto_without_weights_neither_downloads_nor_looks_at_the_gpu(monkeypatch):
    def never(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr(choice, "find_hardware", never)
    found = choose()
    assert (found.name, found.folder) == ("embedded", EMBEDDED_MODEL)
    absent = "Not on this machine: the Wan base model and the released UltraGen weights."
    assert absent in found.why
    assert "ULTRAGEN_MODEL=wan downloads what is missing" in found.other


def test_auto_names_the_path_that_is_not_there(machine, monkeypatch):
    machine(H100)
    monkeypatch.setenv("ULTRAGEN_WEIGHTS", "/no/such.ckpt")
    assert "the released UltraGen weights (/no/such.ckpt)" in choose().why


def test_auto_does_not_start_on_half_a_download(machine, files, tmp_path, monkeypatch):
    machine(H100)
    shutil.copytree(files.base, tmp_path / "wan")
    (tmp_path / "wan" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    monkeypatch.setenv("ULTRAGEN_WAN", str(tmp_path / "wan"))
    found = choose()
    assert found.name == "embedded"
    assert "vae holds no weights" in found.why


@pytest.mark.parametrize("hardware", [H100, L4, A4000, V100], ids=lambda h: h.name)
def test_wan_runs_where_it_fits_even_slowly(machine, hardware):
    machine(hardware, weights=False)
    assert choose("wan").name == "wan"


@pytest.mark.parametrize(
    ("hardware", "says"),
    [
        (CPU, "about 13 days"),
        (LAPTOP, "it takes 11.6 GiB of memory at least, and 4.0 GiB are free"),
        (T4, "Tesla T4, which computes no bfloat16 and so would need float32: it takes 22.2 GiB"),
    ],
    ids=lambda value: value.name if isinstance(value, Hardware) else None,
)
def test_wan_is_refused_where_it_can_not_run(machine, hardware, says):
    machine(hardware, weights=False)
    with pytest.raises(ValueError) as caught:
        choose("wan")
    assert says in str(caught.value)
    assert "ULTRAGEN_MODEL=embedded" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_duplicated_space_comes_up_on_its_cpu(machine, monkeypatch):
    """It copies the variables of the original, not its GPU."""
    monkeypatch.setenv("SPACE_ID", "me/ultragen")
    monkeypatch.setenv("ULTRAGEN_MODEL", "wan")
    machine(CPU, weights=False)
    found = choose()
    assert found.name == "embedded"
    assert "needs a CUDA GPU" in found.why and "24 GB or more" in found.other
    machine(L4, weights=False)
    assert choose().name == "wan"


def test_tiny_weights_of_the_same_layout_run_anywhere(machine, monkeypatch):
    machine(CPU, size=10**6)
    assert choose("wan").name == choose("auto").name == "wan"


def test_the_variable_is_read_unless_a_name_is_given(monkeypatch):
    monkeypatch.setenv("ULTRAGEN_MODEL", "embedded")
    assert choose().name == "embedded"
    monkeypatch.setenv("ULTRAGEN_MODEL", "nonsense")
    assert choose("embedded").name == "embedded"
    with pytest.raises(ValueError, match="no model 'nonsense': choose auto, embedded, wan, or an"):
        choose()
    monkeypatch.setenv("ULTRAGEN_MODEL", "")
    assert choose().name == "embedded"


# Folders


def pipeline_folder(path: Path, **index: object) -> Path:
    path.mkdir()
    (path / "model_index.json").write_text(json.dumps(index))
    return path


@pytest.mark.parametrize(
    ("vae", "preset"),
    [
        (["diffusers", "AutoencoderKLWan"], WAN),
        (["ultragen.autoencoder", "CompactAutoencoder"], EMBEDDED),
    ],
)
def test_the_preset_of_a_folder_is_that_of_its_autoencoder(vae, preset, tmp_path):
    folder = pipeline_folder(tmp_path / "model", _class_name="UltraGenPipeline", vae=vae)
    found = choose(folder)
    assert (found.preset, found.folder, found.name) == (preset, folder, str(folder))
    assert str(folder) in found.why


def test_a_distilled_folder_brings_its_steps_and_no_guidance(tmp_path):
    index = {"_class_name": "UltraGenPipeline", "distilled_steps": 4}
    preset = choose(pipeline_folder(tmp_path / "student", **index)).preset
    assert {steps for _, _, steps in preset.ladder} == {4}
    plain = replace(preset, ladder=EMBEDDED.ladder)
    assert plain == replace(EMBEDDED, num_inference_steps=4, guidance_scale=1.0)
    index["distilled_steps"] = None
    assert choose(pipeline_folder(tmp_path / "plain", **index)).preset is EMBEDDED


def test_a_large_folder_needs_a_gpu_too(machine, tmp_path):
    vae = ["diffusers", "AutoencoderKLWan"]
    folder = pipeline_folder(tmp_path / "model", _class_name="UltraGenPipeline", vae=vae)
    machine(CPU)
    with pytest.raises(ValueError, match="about 13 days"):
        choose(folder)
    machine(H100)
    assert choose(folder).preset is WAN


def test_what_belongs_into_another_variable(files):
    with pytest.raises(ValueError) as caught:
        choose(files.ultragen)
    assert f"ULTRAGEN_WEIGHTS={files.ultragen} and ULTRAGEN_MODEL=wan" in str(caught.value)
    with pytest.raises(ValueError) as caught:
        choose(files.base)
    assert f"ULTRAGEN_WAN={files.base} and ULTRAGEN_MODEL=wan" in str(caught.value)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(OSError, match=r"model_index\.json is missing"):
        choose(tmp_path)
