"""LoRAs that a machine has, in runs of the tiny 1.3B model."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from lora_files import LAYOUTS, draw_factors, in_blocks, save

from ultragen.presets import EMBEDDED, LoraChoice, Resolution
from ultragen.runs import loading, request
from ultragen.runs.compare import compare
from ultragen.runs.loading import Models, load_models
from ultragen.runs.loras import asked_for, on_this_machine, parse
from ultragen.runs.native import NativeClip, generate_native
from ultragen.runs.request import Request

PROMPT = "a calm lake"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory, and no settings of the machine's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ULTRAGEN_LORA", raising=False)
    return tmp_path


# What a machine has


@pytest.mark.parametrize(
    ("text", "name", "place", "strength"),
    [
        ("style.safetensors", "style", "style.safetensors", 1.0),
        ("a/b/style.v2.safetensors:0.5", "style.v2", "a/b/style.v2.safetensors", 0.5),
        ("owner/name:-2", "name", "owner/name", -2.0),
        ("owner/name@refs/pr/1:1.5", "name", "owner/name@refs/pr/1", 1.5),
        ("owner/name/x/style.safetensors@main", "style", "owner/name/x/style.safetensors@main", 1),
    ],
)
def test_a_lora_is_a_place_and_a_strength(text, name, place, strength, here):
    assert parse(text) == LoraChoice(name, place, strength)


def test_a_file_with_a_colon_is_a_file(here):
    (here / "style:2").touch()
    assert parse("style:2") == LoraChoice("style:2", "style:2", 1.0)


def test_what_the_variable_names_goes_before_what_lies_in_the_folder(here, monkeypatch):
    for path in ("loras/a.safetensors", "loras/b.pt", "loras/notes.txt", "more/a.safetensors"):
        (here / path).parent.mkdir(exist_ok=True)
        (here / path).touch()
    assert on_this_machine() == (
        LoraChoice("a", "loras/a.safetensors", 0.0),
        LoraChoice("b", "loras/b.pt", 0.0),
    )
    monkeypatch.setenv("ULTRAGEN_LORA", "more:0.5 owner/name")
    assert on_this_machine() == (
        LoraChoice("a", "more/a.safetensors", 0.5),
        LoraChoice("name", "owner/name", 1.0),
        LoraChoice("b", "loras/b.pt", 0.0),
    )
    assert asked_for(["b:0.3"]) == (LoraChoice("b", "loras/b.pt", 0.3),)


def test_a_request_names_loras_of_the_machine_alone():
    loras = (LoraChoice("a", "a.safetensors", 0.5), LoraChoice("b", "b.safetensors", 0.0))
    preset = replace(EMBEDDED, loras=loras)
    assert Request(PROMPT).validate(preset).loras == {"a": 0.5}
    asked = Request(PROMPT, loras={"b": 2, "a": 0})
    assert asked.validate(preset).loras == {"b": 2.0}
    assert Request(PROMPT).validate(EMBEDDED).loras == {}
    for value, says in (
        ({"c": 1.0}, "no LoRA 'c': choose from a, b"),
        ({"a.safetensors": 1.0}, "no LoRA 'a.safetensors'"),
        ({"a": float("nan")}, "strength of a must be a number from -10 to 10, not nan"),
        ({"a": 1e9}, "not 1000000000.0"),
        ({"a": "1"}, "not '1'"),
        (["a"], "must hold a strength by name"),
    ):
        with pytest.raises(ValueError, match=says):
            Request(PROMPT, loras=value).validate(preset)
    with pytest.raises(ValueError, match="it has none for this model"):
        Request(PROMPT, loras={"a": 1}).validate(EMBEDDED)


def test_requests_with_loras_can_be_keys():
    one, other = (Request(PROMPT, loras={"a": strength}) for strength in (1.0, 2.0))
    assert len({one, other, replace(one)}) == 2


def test_metadata_from_before_there_were_loras_has_none():
    old = Request(PROMPT).to_dict()
    del old["loras"]
    assert Request.from_metadata({"request": old}).loras == {}


# Runs


@pytest.fixture
def places(files, here, monkeypatch) -> Path:
    """A folder of two LoRAs that fit the tiny model, and of one that does not."""
    for name, value in files.environment.items():
        monkeypatch.setenv(name, value)
    sizes = {"544p": Resolution("544p", 96, 160, 90)}
    monkeypatch.setattr(request, "RESOLUTIONS", sizes)
    model = load_models().native.transformer
    (here / "loras").mkdir()
    for name, layer in (("one", "self_attn.v"), ("other", "ffn.0")):
        factors = draw_factors(model, in_blocks(layer))
        save(LAYOUTS["musubi"](factors, 4.0), here / "loras" / f"{name}.safetensors")
    wide = {f"blocks.0.self_attn.q.lora_{x}.weight": torch.ones(2, 5120) for x in ("A", "down")}
    save({"diffusion_model." + k: v for k, v in wide.items() if "A" in k}, here / "loras/14b.pt")
    return here


def small(models: Models) -> Models:
    preset = replace(models.preset, base_height=64, base_width=96)
    return replace(models, preset=preset)


def test_a_run_has_its_loras_and_the_next_one_its_own(places):
    models = small(load_models())
    assert [lora.name for lora in models.preset.loras] == ["one", "other"]
    assert "5120 features, and this one has" in models.left_out["14b"]
    asked = Request(PROMPT, "544p", num_frames=5, num_inference_steps=2, upscaler="lanczos")
    plain = compare(asked, models, places)
    strengths = {"one": 1.0, "other": -0.5}
    styled = compare(replace(asked, loras=strengths), models, places)
    for clip in ("native", "upscaled"):
        assert getattr(plain, clip).read_bytes() != getattr(styled, clip).read_bytes()
    told = styled.metadata["model"]["loras"]
    assert [(each["name"], each["strength"]) for each in told] == [("one", 1.0), ("other", -0.5)]
    file = places / "loras" / "one.safetensors"
    assert told[0]["sha256"] == sha256(file.read_bytes()).hexdigest()
    assert (plain.metadata["model"]["loras"], plain.metadata["request"]["loras"]) == ([], {})
    # Made again, after a run with others and on models that were just loaded.
    again = compare(Request.from_metadata(plain.metadata), models, places)
    for clip in ("native", "upscaled"):
        assert getattr(again, clip).read_bytes() == getattr(plain, clip).read_bytes()
    again = compare(Request.from_metadata(styled.metadata), small(load_models()), places)
    assert again.native.read_bytes() == styled.native.read_bytes()
    assert again.upscaled.read_bytes() == styled.upscaled.read_bytes()


def test_a_file_that_was_replaced_is_told_by_its_hash(places):
    models = small(load_models())
    asked = Request(PROMPT, "544p", num_frames=1, num_inference_steps=1, loras={"one": 1.0})
    first = generate_native(asked, models)
    (places / "loras" / "other.safetensors").replace(places / "loras" / "one.safetensors")
    again = generate_native(asked, models)  # with what is loaded
    assert (again.frames == first.frames).all() and told(again) == told(first)
    generate_native(replace(asked, loras={}), models)
    other = generate_native(asked, models)
    assert (other.frames != first.frames).any() and told(other) != told(first)


def told(clip: NativeClip) -> str:
    return clip.metadata["model"]["loras"][0]["sha256"]


def test_parts_that_come_in_turn_do_so_again(places, monkeypatch):
    """diffusers offloads a pipeline again that it has loaded a LoRA into, but not the other one."""
    turns = []
    monkeypatch.setattr(loading, "take_turns", lambda *arguments: turns.append(arguments))
    models = replace(small(load_models()), placement="in turn")
    asked = Request(PROMPT, "544p", num_frames=1, num_inference_steps=1)
    for loras, expected in (({}, 0), ({"one": 1.0}, 1), ({"one": 1.0}, 1), ({}, 2)):
        generate_native(replace(asked, loras=loras), models)
        assert len(turns) == expected
    assert turns[0] == (models.native, models.base, models.device)


def test_a_lora_that_was_named_and_does_not_fit_is_an_error(places, monkeypatch):
    with pytest.raises(ValueError, match="5120 features"):
        load_models(loras=["14b"])
    with monkeypatch.context() as patch:  # before the model is loaded
        patch.setattr(loading, "_load", None)
        with pytest.raises(OSError, match="There is no LoRA gone"):
            load_models(loras=["gone.safetensors"])
    assert load_models(loras=["one:0.5"]).preset.loras[0].strength == 0.5


def test_what_the_variable_names_and_is_not_there_is_left_out(places, monkeypatch):
    """A duplicated Space has the variables of the original, and has to come up."""
    monkeypatch.setenv("ULTRAGEN_LORA", "gone.safetensors one:0.5")
    models = load_models()
    assert [(lora.name, lora.strength) for lora in models.preset.loras] == [
        ("one", 0.5),
        ("other", 0.0),
    ]
    assert "There is no LoRA gone.safetensors" in models.left_out["gone"]


def test_a_lora_that_goes_wrong_leaves_the_models_without_any(places):
    models = small(load_models())
    asked = Request(PROMPT, "544p", num_frames=1, num_inference_steps=1)
    plain = generate_native(asked, models)
    (places / "loras" / "other.safetensors").write_bytes(b"")
    with pytest.raises(OSError, match="is empty"):
        generate_native(replace(asked, loras={"one": 1.0, "other": 1.0}), models)
    assert models.used_loras == {}
    assert (generate_native(asked, models).frames == plain.frames).all()
