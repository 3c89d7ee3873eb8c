"""Which model runs on which machine, and what is said about it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import UMT5Config, UMT5EncoderModel
from wan_files import WanFiles, make_wan

from ultragen.hardware import GIB, Hardware
from ultragen.presets import EMBEDDED, EMBEDDED_MODEL, ULTRAGEN_SOURCE, WAN, WAN_SOURCE
from ultragen.runs import choice
from ultragen.runs.choice import choose
from ultragen.weights.released import load_released, load_ultragen

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


def half(files: WanFiles, folder: Path) -> Path:
    content = files.ultragen.read_bytes()
    (folder / "half.ckpt").write_bytes(content[: len(content) // 2])
    return folder / "half.ckpt"


def half_in_safetensors(files: WanFiles, folder: Path) -> Path:
    save_file(torch.load(files.ultragen), folder / "x.safetensors")
    content = (folder / "x.safetensors").read_bytes()
    (folder / "x.safetensors").write_bytes(content[: len(content) // 2])
    return folder / "x.safetensors"


def half_converted(files: WanFiles, folder: Path) -> Path:
    load_released(files.ultragen).save_pretrained(folder, max_shard_size="200KB")
    next(folder.glob("*-00001-of-*.safetensors")).unlink()
    return folder


def another(files: WanFiles, folder: Path) -> Path:
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2)}, folder / "x.safetensors")
    return folder / "x.safetensors"


def some_keys(files: WanFiles, folder: Path) -> Path:
    weights = torch.load(files.ultragen)
    for key in [key for key in weights if "cross_attn" in key]:
        del weights[key]
    torch.save(weights, folder / "x.ckpt")
    return folder


WRONG = [
    (half, "half.ckpt is incomplete or damaged"),
    (half_in_safetensors, "x.safetensors is incomplete or damaged"),
    (half_converted, "is half a download: 1 of"),
    (another, "x.safetensors looks like Flux"),
    (some_keys, "does not fit the model: missing (30): blocks.0.cross_attn"),
    (lambda files, folder: folder, "holds no weights"),
    (lambda files, folder: files.base / "transformer", "is dense Wan without UltraGen's branches"),
]


@pytest.mark.parametrize(("make", "says"), WRONG, ids=[says for _, says in WRONG])
def test_auto_does_not_start_on_wrong_weights(make, says, machine, files, tmp_path, monkeypatch):
    machine(H100)
    monkeypatch.setenv("ULTRAGEN_WEIGHTS", str(make(files, tmp_path)))
    found = choose("auto")
    assert found.name == "embedded"
    assert says in found.why and "shipped with the code" in found.why
    assert len(found.why) < 600
    # Who asks for it sees the error, but a Space comes up.
    assert choose("wan").name == "wan"
    monkeypatch.setenv("SPACE_ID", "me/ultragen")
    found = choose("wan")
    assert found.name == "embedded" and says in found.why


def lacks_a_weight(folder: Path, part: str) -> None:
    [path] = (folder / part).glob("*.safetensors")
    weights = load_file(path)
    del weights[max(weights)]
    save_file(weights, path, metadata={"format": "pt"})


def of_another_width(folder: Path) -> None:
    """A text encoder that is whole, but another model's."""
    config = UMT5Config.from_pretrained(folder / "text_encoder")
    config.d_model += config.num_heads
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (partial(lacks_a_weight, part="vae"), "vae does not fit its config.json: missing (1): "),
        (partial(lacks_a_weight, part="text_encoder"), "text_encoder does not fit its config.js"),
        (of_another_width, "The transformer was trained with {'text features': "),
    ],
)
def test_auto_does_not_start_on_a_wrong_base_model(
    damage, says, machine, files, tmp_path, monkeypatch
):
    machine(H100)
    shutil.copytree(files.base, tmp_path / "wan")
    damage(tmp_path / "wan")
    monkeypatch.setenv("ULTRAGEN_WAN", str(tmp_path / "wan"))
    found = choose("auto")
    assert found.name == "embedded" and says in found.why
    assert choose("wan").name == "wan"
    monkeypatch.setenv("SPACE_ID", "me/ultragen")
    assert choose("wan").name == "embedded"
    # What the download will bring is not missing.
    shutil.rmtree(tmp_path / "wan" / "vae")
    assert choose("wan").name == "wan"
    assert choose("auto").name == "embedded"


def converted(files: WanFiles, folder: Path) -> Path:
    load_released(files.ultragen).save_pretrained(folder)
    return folder


def in_shards(files: WanFiles, folder: Path) -> Path:
    load_released(files.ultragen).save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def with_prefixes(files: WanFiles, folder: Path) -> Path:
    weights = {f"model.module.{key}": value for key, value in torch.load(files.ultragen).items()}
    torch.save(weights, folder / "x.pt", _use_new_zipfile_serialization=False)
    return folder / "x.pt"


def in_safetensors(files: WanFiles, folder: Path) -> Path:
    save_file(torch.load(files.ultragen), folder / "x.safetensors")
    return folder


def in_a_folder(files: WanFiles, folder: Path) -> Path:
    shutil.copy(files.ultragen, folder)
    return folder


KINDS = [converted, in_shards, with_prefixes, in_safetensors, in_a_folder]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_auto_takes_weights_of_every_kind(make, machine, files, tmp_path, monkeypatch):
    machine(H100)
    path = make(files, tmp_path)
    monkeypatch.setenv("ULTRAGEN_WEIGHTS", str(path))
    assert choose("auto").name == "wan"
    # No value is read for that.
    looked_at, loaded = load_ultragen(path, device="meta"), load_ultragen(path)
    assert {x.device.type for x in looked_at.parameters()} == {"meta"}
    assert looked_at.config == loaded.config
    assert looked_at.dtype == loaded.dtype


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
        (["ultragen.model.autoencoder", "CompactAutoencoder"], EMBEDDED),
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


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_weights_alone_belong_into_another_variable(make, files, tmp_path):
    folder = make(files, tmp_path)
    folder = folder if folder.is_dir() else folder.parent
    with pytest.raises(ValueError) as caught:
        choose(folder)
    assert f"set ULTRAGEN_WEIGHTS={folder} and ULTRAGEN_MODEL=wan" in str(caught.value)
    assert "no pipeline, which has a model_index.json" in str(caught.value)


def test_a_folder_may_be_named_from_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = pipeline_folder(tmp_path / "model", _class_name="UltraGenPipeline")
    monkeypatch.setenv("ULTRAGEN_MODEL", "~/model")
    found = choose()
    assert (found.folder, found.name) == (folder, str(folder))


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(OSError, match=r"model_index\.json is missing"):
        choose(tmp_path)
