"""Commands that make clips: their results, and bad settings in one line."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
from commands import PROMPT, SMALL, one_line, ultragen

from ultragen.runs.recipe import read_recipe
from ultragen.runs.request import Request
from ultragen.sampling import parallel_guidance
from ultragen.video import probe_video


def test_generate(fake, tmp_path, capsys):
    out = tmp_path / "new" / "lake.mp4"
    assert ultragen("generate", "--prompt", PROMPT, *SMALL, "--seed", 3, "--out", out) == 0
    info = probe_video(out)
    assert (info.height, info.width, info.num_frames, info.codec) == (544, 960, 5, "h264")
    assert sorted(path.name for path in out.parent.iterdir()) == ["lake.json", "lake.mp4"]
    request = Request.from_metadata(out.with_suffix(".json"))
    assert (request.prompt, request.seed, request.num_inference_steps) == (PROMPT, 3, 2)
    # The base model was not asked for, and did not run.
    assert fake.native.calls[0]["seed"] == 3
    assert fake.base.calls == []
    printed = capsys.readouterr().out
    assert "Native clip: denoising" in printed and str(out) in printed
    assert "Base clip" not in printed
    seconds = json.loads(out.with_suffix(".json").read_text())["seconds"]
    assert set(seconds["measured"]) == {"text", "denoise", "decode", "encode"}
    assert seconds["loading"] >= 0
    assert seconds["total"] == pytest.approx(sum(seconds["measured"].values()))


def test_generate_keeps_the_usual_rows(fake, tmp_path):
    out = tmp_path / "lake.mp4"
    code = ultragen(
        "generate", "--prompt", PROMPT, *SMALL, "--resolution", "720P", "--windows", 4,
        "--guidance-scale", 1.5, "--negative-prompt", "rain", "--out", out,
    )  # fmt: skip
    assert code == 0
    assert (probe_video(out).height, probe_video(out).width) == (720, 1280)
    request = Request.from_metadata(out.with_suffix(".json"))
    assert (request.windows, request.guidance_scale, request.negative_prompt) == (4, 1.5, "rain")


@pytest.mark.parametrize(
    ("size", "columns", "rows"),
    [
        (("--aspect", "9:16"), 544, 960),
        (("--resolution", "720p", "--aspect", "21:9"), 1720, 720),
        (("--width", 720, "--height", 1280), 720, 1280),
        (("--width", 960, "--height", 544), 960, 544),
    ],
)
def test_a_shape_by_its_name_or_its_sides(fake, tmp_path, size, columns, rows):
    out = tmp_path / "lake.mp4"
    code = ultragen("generate", "--prompt", PROMPT, *SMALL, *size, "--fps", 24, "--out", out)
    assert code == 0
    info = probe_video(out)
    assert (info.width, info.height, info.fps) == (columns, rows, 24)
    metadata = json.loads(out.with_suffix(".json").read_text())
    assert metadata["sizes"]["files"] == [rows, columns]


@pytest.mark.parametrize("suffix", [".webm", ".GIF", ".webp"])
def test_another_kind_of_file_by_its_suffix(fake, tmp_path, capsys, suffix):
    out = tmp_path / f"lake{suffix}"
    assert ultragen("generate", "--prompt", PROMPT, *SMALL, "--out", out) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"lake.json", out.name}
    magic = {".webm": b"\x1aE\xdf\xa3", ".GIF": b"GIF89a", ".webp": b"RIFF"}[suffix]
    assert out.read_bytes().startswith(magic)
    assert f"({out.stat().st_size / 1e6:.2f} MB)" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["generate", "compare"])
@pytest.mark.parametrize(
    ("size", "said"),
    [
        (("--aspect", "3:2"), "the nearest are 4:3 and 16:9"),
        (("--width", 1000, "--height", 1000), "1080 × 1080 (1080p in 1:1) and 960 × 720"),
        (("--width", 1000), "--height is missing"),
        (("--height", 1000), "--width is missing"),
        (("--width", 960, "--height", 544, "--aspect", "1:1"), "leave out one of the two"),
        (("--width", 960, "--height", 544, "--resolution", "544p"), "leave out one of the two"),
        (("--fps", 60), "--fps must be one of 12, 15, 16, 24, not 60"),
    ],
)
def test_a_shape_that_there_is_not(fake, tmp_path, capsys, command, size, said):
    out = tmp_path / ("lake.mp4" if command == "generate" else "run")
    assert ultragen(command, "--prompt", PROMPT, *size, "--out", out) == 2
    assert said in one_line(capsys)
    assert fake.native.calls == [] and list(tmp_path.iterdir()) == []


def test_compare(fake, tmp_path, capsys):
    out = tmp_path / "run"
    code = ultragen("compare", "--prompt", PROMPT, *SMALL, "--upscaler", "lanczos", "--out", out)
    assert code == 0
    names = {path.name for path in out.iterdir()}
    assert names == {
        "native.mp4",
        "upscaled.mp4",
        "side_by_side.mp4",
        "metadata.json",
        "poster.jpg",
    }
    assert probe_video(out / "side_by_side.mp4").width == 1920
    metadata = json.loads((out / "metadata.json").read_text())
    assert metadata["files"]["native"] == "native.mp4"
    assert metadata["request"]["upscaler"] == "lanczos"
    printed = capsys.readouterr().out
    for stage in ("Native clip: denoising", "Base clip: upscaling", "Writing the files"):
        assert stage in printed


def test_compare_with_the_base_model_at_full_size(fake, tmp_path):
    out = tmp_path / "run"
    assert ultragen("compare", "--prompt", PROMPT, *SMALL, "--base-native", "--out", out) == 0
    assert (out / "base_native.mp4").exists()


def test_noise_can_be_chosen(fake, tmp_path, capsys):
    run = ("compare", "--prompt", PROMPT, *SMALL, "--overwrite", "--out", tmp_path / "run")
    for given, used in (((), "spectral"), (("--noise", "independent"), "independent")):
        assert ultragen(*run, *given) == 0
        assert fake.native.calls[-1]["noise"] == fake.base.calls[-1]["noise"] == used
        metadata = json.loads((tmp_path / "run" / "metadata.json").read_text())
        assert metadata["request"]["noise"] == used
    capsys.readouterr()
    assert ultragen(*run, "--noise", "pink") == 2
    assert "independent, spectral" in one_line(capsys)


def test_guidance_is_computed_between_noise_levels(fake, tmp_path, capsys):
    run = ("compare", "--prompt", PROMPT, *SMALL, "--overwrite", "--out", tmp_path / "run")
    assert ultragen(*run, "--guidance-scale", 3, "--guidance-interval", "0.6-1") == 0
    for pipe in (fake.native, fake.base):
        assert pipe.calls[-1]["interval"] == (0.6, 1.0)
    metadata = tmp_path / "run" / "metadata.json"
    assert json.loads(metadata.read_text())["request"]["guidance_interval"] == "0.6-1"
    again = ("compare", "--from", metadata, *SMALL, "--out", tmp_path / "again")
    assert ultragen(*again) == 0
    assert fake.native.calls[-1]["interval"] == (0.6, 1.0)
    capsys.readouterr()
    assert ultragen(*run, "--guidance-interval", "1-0.6") == 2
    assert "--guidance-interval must be two rising noise levels" in one_line(capsys)


def test_a_cache_predicts_steps_of_one_run_alone(fake, tmp_path, capsys):
    run = ("compare", "--prompt", PROMPT, *SMALL, "--overwrite", "--out", tmp_path / "run")
    assert ultragen(*run, "--steps", 8, "--cache", "Taylor-3") == 0
    for pipe in (fake.native, fake.base):
        assert pipe.calls[-1]["cache"].cache_interval == 3
        assert pipe.transformer.cache is None
    metadata = tmp_path / "run" / "metadata.json"
    assert json.loads(metadata.read_text())["request"]["cache"] == "taylor-3"
    again = ("generate", "--from", metadata, "--frames", 5, "--out", tmp_path / "again.mp4")
    assert ultragen(*again) == 0
    assert fake.native.calls[-1]["cache"].cache_interval == 3
    assert ultragen(*again, "--cache", "off", "--overwrite") == 0
    assert fake.native.calls[-1]["cache"] is None
    capsys.readouterr()
    assert ultragen(*run, "--cache", "tea") == 2
    assert "--cache 'tea' is unknown: choose from off, taylor-2, taylor-3" in one_line(capsys)


def test_fast_is_a_cache_and_an_interval(fake, tmp_path, capsys):
    out = ("--out", tmp_path / "lake.mp4", "--overwrite", "--frames", 5)
    run = ("generate", "--prompt", PROMPT, "--steps", 8, *out)
    assert ultragen(*run, "--fast", "--guidance", 3) == 0
    call = fake.native.calls[-1]
    assert (call["cache"].cache_interval, call["interval"]) == (2, (0.6, 1.0))
    again = ("generate", "--from", tmp_path / "lake.json", *out)
    assert ultragen(*again) == 0
    assert {**fake.native.calls[-1], "cache": None} == {**call, "cache": None}
    # What was typed goes before it, and it goes before what an earlier clip had.
    assert ultragen(*run, "--fast", "--guidance", 3, "--cache", "taylor-3") == 0
    assert fake.native.calls[-1]["cache"].cache_interval == 3
    assert ultragen(*again, "--fast") == 0
    assert fake.native.calls[-1]["cache"].cache_interval == 2
    capsys.readouterr()
    made = len(fake.native.calls)
    assert ultragen(*run, "--fast", "--guidance", 1) == 2
    assert "--fast is for guided clips" in one_line(capsys)
    # The embedded model is distilled: unless it is guided, it has nothing to leave out.
    assert ultragen("generate", "--prompt", PROMPT, "--fast", *out) == 2
    assert "guidance 1" in (said := one_line(capsys)) and "6 steps in place of 8" in said
    assert len(fake.native.calls) == made


def test_solver_and_shift_can_be_chosen(fake, tmp_path, capsys):
    run = ("compare", "--prompt", PROMPT, *SMALL, "--overwrite", "--out", tmp_path / "run")
    assert ultragen(*run, "--solver", "unipc", "--shift", 8) == 0
    for pipe in (fake.native, fake.base):
        assert pipe.calls[-1]["sampling"] == ("unipc", 8.0)
    metadata = tmp_path / "run" / "metadata.json"
    again = ("generate", "--from", metadata, "--frames", 5, "--out", tmp_path / "again.mp4")
    assert ultragen(*again) == 0
    assert fake.native.calls[-1]["sampling"] == ("unipc", 8.0)
    assert ultragen(*again, "--solver", "own", "--overwrite") == 0
    assert fake.native.calls[-1]["sampling"] == ("own", 8.0)
    capsys.readouterr()
    assert ultragen(*run, "--solver", "unipc") == 2
    assert "--solver unipc needs a fixed --shift" in one_line(capsys)


def test_guidance_runs_on_a_second_device(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel_guidance, "check_second", lambda device, first: None)
    guided = (*SMALL, "--guidance-scale", 3)
    run = ("generate", "--prompt", PROMPT, *guided, "--out", tmp_path / "lake.mp4")
    assert ultragen(*run) == 0
    both = json.loads((tmp_path / "lake.json").read_text())["seconds"]["estimated"]["denoise"]
    assert fake.native.guidance_device is None
    assert json.loads((tmp_path / "lake.json").read_text())["machine"]["guidance_device"] is None
    assert ultragen(*run, "--guidance-device", "cuda:1", "--overwrite") == 0
    metadata = json.loads((tmp_path / "lake.json").read_text())
    assert metadata["seconds"]["estimated"]["denoise"] < 0.6 * both
    assert metadata["machine"]["guidance_device"] == "cuda:1"
    assert fake.native.guidance_device == fake.base.guidance_device == "cuda:1"


@pytest.mark.parametrize("device, said", [("cpu", "no second GPU"), ("cuda:7", "no device")])
def test_guidance_on_a_device_that_saves_nothing(fake, tmp_path, capsys, device, said):
    """It is refused before anything is loaded."""
    run = ("generate", "--prompt", PROMPT, *SMALL, "--out", tmp_path / "lake.mp4")
    assert ultragen(*run, "--guidance-device", device) == 2
    assert said in one_line(capsys)
    assert fake.native.calls == []


def test_guidance_stays_where_the_models_take_turns(fake, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(parallel_guidance, "check_second", lambda device, first: None)
    fake.placement = "in turn"
    out = ("--guidance-device", "cuda:1", "--out", tmp_path / "run")
    assert ultragen("compare", "--prompt", PROMPT, *SMALL, *out) == 2
    assert "Leave out --guidance-device" in one_line(capsys)
    assert fake.native.calls == []


def test_earlier_results_stay_unless_told_otherwise(fake, tmp_path, capsys):
    run = ("compare", "--prompt", PROMPT, *SMALL, "--out", tmp_path)
    assert ultragen(*run) == 0
    before = (tmp_path / "metadata.json").read_text()
    capsys.readouterr()
    assert ultragen(*run, "--seed", 5) == 1
    assert "--overwrite" in one_line(capsys)
    assert (tmp_path / "metadata.json").read_text() == before
    assert ultragen(*run, "--seed", 5, "--overwrite") == 0
    assert Request.from_metadata(tmp_path / "metadata.json").seed == 5


def test_unknown_words_are_named(fake, tmp_path, capsys):
    words = "a calm zorgon lake"
    assert ultragen("generate", "--prompt", words, *SMALL, "--out", tmp_path / "a.mp4") == 0
    assert "does not know: zorgon" in capsys.readouterr().err


def test_sheets_go_on_where_they_stopped(fake, tmp_path, capsys):
    out, pieces = tmp_path / "docs", tmp_path / "pieces"
    run = ("sheets", "--out", out, "--pieces", pieces, "--count-1080p", 0, "--count-544p")
    assert ultragen(*run, 1) == 0
    assert ultragen(*run, 2) == 0
    assert len(fake.native.calls) == 2  # the first picture was there already
    assert [path.name for path in out.iterdir()] == ["contact_sheet_544p.jpg"]
    assert "contact_sheet_544p.jpg" in capsys.readouterr().out
    # A frame of another seed is another picture.
    assert ultragen(*run, 1, "--seed", 1) == 0
    assert len(fake.native.calls) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompt", " "), ["empty", "describe"]),
        (("--prompt", "x" * 10_000), ["10,000"]),
        (("--prompt", "a\x07b"), ["U+0007"]),
        (("--prompt", PROMPT, "--resolution", "8k"), ["8k", "544p", "4k"]),
        (("--prompt", PROMPT, "--num-frames", 18), ["--num-frames", "17", "21"]),
        (("--prompt", PROMPT, "--frames", "text"), ["--num-frames", "integer"]),
        (("--prompt", PROMPT, "--windows", 3), ["3", "2 or 4"]),
        (("--prompt", PROMPT, "--windows", 400), ["401", "up to 16"]),
        (("--prompt", PROMPT, "--num-inference-steps", 0), ["--num-inference-steps", "1 to 100"]),
        (("--prompt", PROMPT, "--steps", 10_000), ["--num-inference-steps", "100"]),
        (("--prompt", PROMPT, "--guidance-scale", "nan"), ["--guidance-scale", "100"]),
        (("--prompt", PROMPT, "--guidance", 1e9), ["--guidance-scale", "100"]),
        (("--prompt", PROMPT, "--seed", -1), ["seed"]),
        (("--prompt", PROMPT, "--seed", "text"), ["--seed", "integer"]),
        (("--prompt", PROMPT, "--out", "clip.avi"), [".mp4"]),
        (("--prompt", PROMPT, "--promp", "x"), ["--promp", "--help"]),
        ((), ["--prompt", "--help"]),
    ],
)
def test_bad_settings_are_one_line_that_names_the_way_out(arguments, words, capsys, tmp_path):
    """Before any model is loaded."""
    out = () if "--out" in arguments else ("--out", tmp_path / "clip.mp4")
    assert ultragen("generate", *arguments, *out) == 2
    line = one_line(capsys)
    assert all(word in line for word in words), line
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_upscaler(capsys, tmp_path):
    code = ultragen("compare", "--prompt", PROMPT, "--upscaler", "no.pth", "--out", tmp_path / "a")
    assert code == 2
    assert "no.pth" in one_line(capsys)
    assert not (tmp_path / "a").exists()


def test_a_model_that_is_not_there(capsys, tmp_path):
    run = ("generate", "--prompt", PROMPT, "--out", tmp_path / "a.mp4", "--model")
    assert ultragen(*run, tmp_path / "nowhere") == 2
    assert "nowhere" in one_line(capsys)
    assert ultragen(*run, tmp_path) == 1
    assert "model_index.json is missing" in one_line(capsys)


@pytest.mark.parametrize("command", ["generate", "compare", "evaluate", "scenes"])
def test_options_are_called_like_the_fields_and_have_short_names(capsys, command):
    assert ultragen(command, "--help") == 0
    said = capsys.readouterr().out
    assert "  --num-frames, --frames <int" in said
    if command != "scenes":
        assert "  --num-inference-steps, --steps <int>" in said
        assert "  --guidance-scale, --guidance <float>" in said


def test_short_names_do_the_same(fake, tmp_path):
    out = tmp_path / "lake.mp4"
    short = ("--frames", 5, "--steps", 2, "--guidance", 1.5)
    assert ultragen("generate", "--prompt", PROMPT, *short, "--out", out) == 0
    request = Request.from_metadata(out.with_suffix(".json"))
    assert (request.num_frames, request.num_inference_steps, request.guidance_scale) == (5, 2, 1.5)


# LoRAs


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_loras_are_used_and_told(command, fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loras").mkdir()
    for path in ("style.safetensors", "loras/look.safetensors"):
        (tmp_path / path).write_bytes(path.encode())
    out = tmp_path / "run" / "clip.mp4" if command == "generate" else tmp_path / "run"
    code = ultragen(
        command, "--prompt", PROMPT, *SMALL, "--out", out,
        "--lora", "style.safetensors:0.75", "--lora", "look",
    )  # fmt: skip
    assert code == 0
    used = [("style.safetensors", 0.75), ("loras/look.safetensors", 1.0)]
    pipes = (fake.native,) if command == "generate" else (fake.native, fake.base)
    assert [pipe.calls[0]["loras"] for pipe in pipes] == [used] * len(pipes)
    [path] = (tmp_path / "run").glob("*.json")
    metadata = json.loads(path.read_text())
    assert metadata["request"]["loras"] == {"style": 0.75, "look": 1.0}
    told = metadata["model"]["loras"][0]
    assert told == {
        "name": "style",
        "file": "style.safetensors",
        "sha256": sha256(b"style.safetensors").hexdigest(),
        "strength": 0.75,
    }


def test_the_machines_own_loras_are_used_where_none_is_named(fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "style.safetensors").touch()
    monkeypatch.setenv("ULTRAGEN_LORA", "style.safetensors:0.5")
    assert ultragen("generate", "--prompt", PROMPT, *SMALL, "--out", "clip.mp4") == 0
    assert fake.native.calls[0]["loras"] == [("style.safetensors", 0.5)]


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ("style.safetensors:nan", "from -10 to 10, not nan"),
        ("style.safetensors:1e9", "from -10 to 10, not 1000000000.0"),
        ("style.safetensors:much", "'much', not a number"),
        (":0.5", "names no LoRA"),
        ("", "names no LoRA"),
    ],
)
def test_a_bad_lora_is_one_line(lora, says, fake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert ultragen("generate", "--prompt", PROMPT, "--out", "a.mp4", "--lora", lora) == 2
    assert says in one_line(capsys)


def test_two_loras_of_one_name_are_refused(fake, tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "style.safetensors").touch()
    given = [word for x in "ab" for word in ("--lora", tmp_path / x / "style.safetensors")]
    assert ultragen("generate", "--prompt", PROMPT, "--out", tmp_path / "a.mp4", *given) == 2
    assert "Two LoRAs are called style" in one_line(capsys)


def test_a_result_is_replaced_as_a_whole(fake, tmp_path):
    """Also the clip that only the earlier one had."""
    arguments = ("compare", "--prompt", PROMPT, *SMALL, "--out", tmp_path)
    assert ultragen(*arguments, "--base-native") == 0
    assert (tmp_path / "base_native.mp4").exists()
    assert ultragen(*arguments, "--overwrite") == 0
    assert not (tmp_path / "base_native.mp4").exists()
    listed = json.loads((tmp_path / "metadata.json").read_text())["files"].values()
    assert {path.name for path in tmp_path.iterdir()} == {*listed, "poster.jpg", "metadata.json"}


@pytest.mark.parametrize("length", [251, 252])
def test_a_name_that_is_too_long(fake, tmp_path, capsys, length):
    """The settings' name is a letter longer than the clip's."""
    out = tmp_path / f"{'n' * length}.mp4"
    assert ultragen("generate", "--prompt", PROMPT, *SMALL, "--out", out) == 1
    assert "too long" in one_line(capsys)
    assert fake.native.calls == []


# Settings of an earlier clip


@pytest.fixture
def lake(fake, tmp_path):
    """A clip that the command made, with settings that are none of the defaults."""
    out = tmp_path / "lake.mp4"
    given = ("--seed", 3, "--windows", 4, "--guidance", 1.5, "--negative-prompt", "rain; a=b")
    given += ("--noise", "independent")
    assert ultragen("generate", "--prompt", PROMPT, *SMALL, *given, "--out", out) == 0
    return out


@pytest.mark.parametrize("suffix", [".mp4", ".json"])
def test_a_clip_or_its_metadata_makes_it_again(lake, tmp_path, suffix):
    again = tmp_path / "again.mp4"
    assert ultragen("generate", "--from", lake.with_suffix(suffix), "--out", again) == 0
    assert again.read_bytes() == lake.read_bytes()
    assert Request.from_metadata(again.with_suffix(".json")) == Request.from_metadata(
        lake.with_suffix(".json")
    )


def test_options_that_are_given_win_over_an_earlier_clips(lake, fake, tmp_path, capsys):
    # Also where they are what would be the default.
    changed = ("--seed", 0, "--noise", "spectral", "--upscaler", "lanczos")
    out = tmp_path / "run"
    assert ultragen("compare", "--from", lake, *changed, "--base-native", "--out", out) == 0
    request = Request.from_metadata(out / "metadata.json")
    assert (request.seed, request.noise, request.upscaler) == (0, "spectral", "lanczos")
    assert (request.prompt, request.windows, request.guidance_scale) == (PROMPT, 4, 1.5)
    assert (request.negative_prompt, request.base_native) == ("rain; a=b", "on")
    # Each of its clips carries the settings; other weights are named.
    for name in ("native", "upscaled", "side_by_side", "base_native"):
        assert read_recipe(out / f"{name}.mp4").request == request
    metadata = json.loads((out / "metadata.json").read_text())
    metadata["model"] |= {"fingerprint": "1" * 64, "name": "wan"}
    (tmp_path / "other.json").write_text(json.dumps(metadata))
    capsys.readouterr()
    code = ultragen("generate", "--from", tmp_path / "other.json", "--out", tmp_path / "o.mp4")
    assert code == 0
    assert "other weights (wan) than those that run here (embedded)" in capsys.readouterr().err


def test_a_size_that_is_given_in_pixels_wins_over_an_earlier_clips_shape(fake, tmp_path):
    tall = tmp_path / "tall.webm"
    given = ("--aspect", "9:16", "--fps", 24, "--seed", 3)
    assert ultragen("generate", "--prompt", PROMPT, *SMALL, *given, "--out", tall) == 0
    for number, (size, resolution, aspect) in enumerate((
        ((), "544p", "9:16"),
        (("--resolution", "720p"), "720p", "9:16"),
        (("--width", 544, "--height", 544), "544p", "1:1"),
    )):  # fmt: skip
        out = tmp_path / f"{number}.mp4"
        assert ultragen("generate", "--from", tall, *size, "--out", out) == 0
        request = Request.from_metadata(out.with_suffix(".json"))
        assert (request.resolution, request.aspect) == (resolution, aspect)
        assert (request.fps, request.seed) == (24, 3)


def test_an_earlier_clips_file_that_can_not_be_used_is_one_line(fake, tmp_path, capsys):
    out = tmp_path / "a.mp4"
    (tmp_path / "x.json").write_text('{"nodes": []}')
    assert ultragen("generate", "--from", tmp_path / "x.json", "--out", out) == 2
    assert "x.json is of another program" in one_line(capsys)
    assert ultragen("generate", "--from", tmp_path / "none.json", "--out", out) == 1
    assert "there is no file" in one_line(capsys)
    assert not out.exists()
