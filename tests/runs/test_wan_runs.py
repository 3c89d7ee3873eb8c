"""The 1.3B model, tiny, through everything that runs a model: comparison, command line, page."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from commands import ultragen
from fakes import served
from gradio_client import Client
from gradio_client.exceptions import ValidationError
from PIL import Image
from wan_files import WanFiles, make_wan

import app
from ultragen.estimates import cost as costs
from ultragen.estimates.coefficients import WAN_CUDA, ZERO_GPU
from ultragen.estimates.cost import estimate, gpu_duration
from ultragen.estimates.estimator import Estimator
from ultragen.estimates.memory import WAN_PARAMETERS, Memory, values_per_token
from ultragen.hardware import GIB, Hardware, find_hardware
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import EMBEDDED, EMBEDDED_MODEL, RESOLUTIONS, WAN, WINDOWS, Resolution
from ultragen.runs import compare, fitted_colours, loading, native, request
from ultragen.runs.clip import job
from ultragen.runs.fitted_colours import FittedColours
from ultragen.runs.loading import Models, load_models, take_turns
from ultragen.runs.progress import Progress
from ultragen.runs.request import Request
from ultragen.runs.worker import Finished
from ultragen.runs.zerogpu import offers
from ultragen.sampling.latent_colours import FILE
from ultragen.video import probe_video
from ultragen.web.settings import describe_model, refresh, take_offer
from ultragen.web.suggestions import name_unknown_words

PROMPT = "a calm zorgon lake 🏔️"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> WanFiles:
    return make_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def wan(files) -> Models:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in files.environment.items():
            patch.setenv(name, value)
        return load_models()


@pytest.fixture
def small(wan, monkeypatch) -> Models:
    """The same at sizes that take no time; everything else is the preset's."""
    sizes = {"544p": Resolution("544p", 96, 160, 90)}
    monkeypatch.setattr(request, "RESOLUTIONS", sizes)
    preset = replace(wan.preset, base_height=64, base_width=96)
    return replace(wan, preset=preset)


# Loading


def test_loaded_by_name(wan, files):
    assert wan.preset is WAN
    assert (wan.choice.name, wan.device, wan.placement) == ("wan", "cpu", "whole")
    assert wan.memory is None
    assert wan.origins == ("wan", "ultragen_1080p.ckpt")
    assert wan.source == files.base
    assert wan.native.transformer.layer_kinds == ["full", "odd", "even"]
    assert wan.dtype == find_hardware().dtype


def test_the_fingerprint_is_of_both_files(wan, files, tmp_path):
    other = make_wan(tmp_path)
    weights = torch.load(other.ultragen, weights_only=True)
    weights["head.head.bias"] += 1
    torch.save(weights, other.ultragen)
    assert loading.fingerprint(files.base, files.ultragen) == wan.fingerprint
    assert loading.fingerprint(other.base, other.ultragen) != wan.fingerprint


def test_large_files_are_known_by_their_ends(tmp_path, monkeypatch):
    from ultragen.weights import fingerprint

    monkeypatch.setattr(fingerprint, "_LARGE", 10)
    monkeypatch.setattr(fingerprint, "_END", 4)
    found = set()
    for content in (b"abcd....efgh", b"abcd....efgX", b"Xbcd....efgh", b"abcd...efgh"):
        (tmp_path / "a.ckpt").write_bytes(content)
        found.add(fingerprint.fingerprint(tmp_path / "a.ckpt"))
    assert len(found) == 4


def test_a_saved_folder_is_run_with_the_same_settings(wan, tmp_path):
    wan.native.save_pretrained(tmp_path)
    loaded = load_models(tmp_path)
    assert loaded.preset is WAN
    assert loaded.base.transformer.config.num_layers == 3


@pytest.mark.parametrize(
    ("gigabytes", "dtype", "lent", "placement"),
    [
        (80, torch.bfloat16, False, "whole"),
        (44, torch.bfloat16, True, "whole"),
        (22, torch.bfloat16, False, "in turn"),
        (80, torch.float32, False, "whole"),  # a card before Ampere
        (31, torch.float32, False, "in turn"),
    ],
)
def test_a_gpu_holds_all_parts_or_one(gigabytes, dtype, lent, placement, monkeypatch, files):
    """The calls that move the parts; the GPU itself is not there. One that is lent for each run
    alone is not asked how fast it is."""
    probed: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "ultragen.estimates.estimator.probe",
        lambda *asked: probed.append(asked) or 2.5 * WAN_CUDA.probe,
    )
    for name, value in files.environment.items():
        monkeypatch.setenv(name, value)
    card = Hardware("cuda", "Card", gigabytes * GIB, dtype is torch.bfloat16, lent)
    weights = WAN_PARAMETERS.scaled(dtype.itemsize)
    moved: list[str] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(loading, "find_hardware", lambda: card)
    monkeypatch.setattr(loading, "weights_of", lambda pipe: weights)
    monkeypatch.setattr(UltraGenPipeline, "to", lambda self, device: moved.append(device))
    monkeypatch.setattr(
        UltraGenPipeline, "enable_model_cpu_offload", lambda self, device: moved.append("in turn")
    )
    loaded = load_models()
    assert loaded.placement == placement
    assert moved == (["cuda"] if placement == "whole" else ["in turn"] * 2)
    assert loaded.base.transformer is not loaded.native.transformer
    assert {loaded.native.transformer.dtype, loaded.native.vae.dtype} == {dtype}
    assert loaded.memory == Memory(card.memory, weights, dtype.itemsize, values_per_token(card))
    assert loaded.estimator.coefficients == WAN_CUDA.scaled(ZERO_GPU if lent else 2.5)
    assert probed == ([] if lent else [("cuda", str(dtype).removeprefix("torch."))])


def test_a_gpu_without_room_for_the_probe_is_taken_for_the_one_that_was_measured(monkeypatch):
    def full(*asked):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("ultragen.estimates.estimator.probe", full)
    estimator = Estimator(WAN_CUDA)
    loading._fit_to_machine(estimator, Hardware("cuda", "Card", 80 * GIB, True))
    assert estimator.coefficients == WAN_CUDA


def test_a_gpu_that_someone_else_fills_says_so(monkeypatch, files):
    for name, value in files.environment.items():
        monkeypatch.setenv(name, value)

    def full(self, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    monkeypatch.setattr(loading, "find_hardware", lambda: Hardware("cuda", "Card", 80 * GIB, True))
    monkeypatch.setattr(UltraGenPipeline, "to", full)
    with pytest.raises(RuntimeError, match=r"The memory of Card ran out while .*=embedded"):
        load_models()


def test_weights_that_turn_out_too_large_are_refused(monkeypatch, files):
    for name, value in files.environment.items():
        monkeypatch.setenv(name, value)
    card = Hardware("cuda", "Card", 4 * GIB, True)
    monkeypatch.setattr(loading, "find_hardware", lambda: card)
    monkeypatch.setattr(loading, "weights_of", lambda pipe: WAN_PARAMETERS.scaled(2))
    with pytest.raises(ValueError, match=r"needs 11\.6 GiB of GPU memory at least, and 4\.0 GiB"):
        load_models()


# Comparison


def test_compare(small, tmp_path):
    asked = Request(PROMPT, "544p", num_frames=5, num_inference_steps=2, base_native="on")
    result = compare.compare(asked, small, tmp_path)
    for path in (result.native, result.upscaled, result.base_native):
        info = probe_video(path)
        assert (info.height, info.width, info.num_frames, info.fps) == (90, 160, 5, 15)
    metadata = result.metadata
    assert metadata["model"]["name"] == "wan"
    assert metadata["model"]["weights"] == ["wan", "ultragen_1080p.ckpt"]
    assert metadata["sizes"]["tokens"] == [2, 6, 10]
    assert metadata["labels"]["upscaled"] == "Base 96×64 + ×4 network"
    assert metadata["request"]["guidance_scale"] == 5.0
    assert metadata["request"]["negative_prompt"] == WAN.negative_prompt
    again = compare.compare(Request.from_metadata(metadata), small, tmp_path)
    assert again.native.read_bytes() == result.native.read_bytes()


@pytest.mark.slow
def test_compare_at_true_sizes(wan, tmp_path):
    """The base clip is Wan's own 480 × 832, enlarged to the native clip's size."""
    asked = Request(PROMPT, "544p", num_frames=1, num_inference_steps=1, guidance_scale=1.0)
    result = compare.compare(asked, wan, tmp_path)
    assert result.metadata["sizes"]["base"] == [480, 832]
    assert result.metadata["labels"]["upscaled"] == "Base 832×480 + ×4 network"
    for path in (result.native, result.upscaled):
        assert (probe_video(path).height, probe_video(path).width) == (544, 960)


def test_the_upscaler_is_the_embedded_models(wan, monkeypatch):
    """Neither published model has one."""
    from ultragen.runs import upscale
    from ultragen.runs.upscale import Upscaler

    asked = []
    monkeypatch.setattr(
        upscale, "load_upscaler", lambda name, folder: asked.append(folder) or Upscaler()
    )
    replace(wan, _upscalers={}).upscaler("network")
    replace(wan, _upscalers={}, preset=EMBEDDED).upscaler("network")
    assert asked == [EMBEDDED_MODEL, wan.source]


def test_a_tokenizer_of_pieces_knows_every_word(wan):
    assert wan.unknown_words("a zorgon at Gniewkowo, 山 🏔️") == []
    assert wan.edition == 1  # no caption of the world taught it these words


@pytest.mark.parametrize("frames", [1, 5, 81, 117, 121])
def test_every_size_and_window_has_a_cost(wan, frames):
    seen = []
    for name, windows in product(RESOLUTIONS, WINDOWS):
        asked = Request("a lake", name, windows, frames, base_native="on").validate(WAN)
        work = job(asked, wan)
        assert work.full_share == pytest.approx(1 / 3)
        seconds = estimate(work, WAN_CUDA)
        assert all(value > 0 for value in seconds.values())
        if windows == "auto":
            seen.append(sum(seconds.values()))
    assert seen == sorted(seen)


def test_the_trained_windows_at_1080p_and_4k(wan):
    for name, windows in (("1080p", 4), ("4k", 8), ("544p", 2)):
        assert job(Request("a lake", name).validate(WAN), wan).windows == windows


def test_memory_is_checked_before_any_work(small, monkeypatch):
    short = replace(small, memory=Memory(15 * GIB, WAN_PARAMETERS.scaled(2)), placement="in turn")
    monkeypatch.setattr(request, "RESOLUTIONS", RESOLUTIONS)
    with pytest.raises(ValueError, match=r"4k with 29 frames needs about .* choose .*2k with 29"):
        compare.generate(Request("a lake", "4k", num_frames=29), short)


def test_memory_that_ends_after_all_names_what_fits(small, monkeypatch):
    short = replace(small, memory=Memory(22 * GIB, WAN_PARAMETERS.scaled(2)), placement="in turn")

    def full(latents):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(short.native, "decode_stream", full)
    asked = Request("a lake", "544p", num_frames=5, num_inference_steps=1)
    with pytest.raises(RuntimeError, match="a smaller resolution or fewer frames"):
        compare.generate(asked, short)
    asked = replace(asked, num_frames=9)
    with pytest.raises(RuntimeError, match="choose 544p with 5 frames"):
        compare.generate(asked, short)


# Costs


BASELINES = {  # seconds of a dense forward pass on an H100, 30 layers
    (480, 832, 81): 0.63,
    (720, 1280, 81): 2.45,
    (1088, 1920, 81): 11.0,
    (2176, 3840, 29): 22.9,
}


@pytest.mark.parametrize("size", BASELINES, ids=str)
def test_the_gpus_coefficients_explain_what_was_measured(size):
    height, width, frames = size
    tokens = (frames + 3) // 4 * (height // 16) * (width // 16)
    found = tokens * WAN_CUDA.base_token + tokens**2 * WAN_CUDA.base_pair
    assert found == pytest.approx(BASELINES[size], rel=0.05)


def released_job(**changes) -> costs.Job:
    return costs.Job(
        **{
            "height": 1088, "width": 1920, "base_height": 480, "base_width": 832,
            "num_frames": 81, "windows": 4, "steps": 30, "passes": 2, "upscaler": "network",
            "base_native": "off", "pixels_per_token": 16, "full_share": 0.2, **changes,
        }
    )  # fmt: skip


def test_full_layers_cost_what_they_attend_to():
    grid = (21, 68, 120)
    full, native = costs.full_pairs(grid), costs.native_pairs(grid, 4)
    assert costs.mean_pairs(released_job(full_share=0.0)) == native
    assert costs.mean_pairs(released_job()) == pytest.approx((24 * native + 6 * full) / 30)
    assert costs.mean_pairs(released_job(full_share=1.0)) == full


def test_a_pass_takes_longer_than_its_floor_and_less_than_the_dense_one():
    """2.96 s are the released layout's operations at the rates of an H100."""
    stages = estimate(released_job(steps=1, passes=1, base_native="on"), WAN_CUDA)
    denoise = stages["denoise"]
    assert 2.96 < denoise < 0.5 * stages["base_native_denoise"]


def on_h100(wan: Models) -> Models:
    """With the estimates of a GPU, and of a model with the true share of full layers."""
    kinds = ["full"] * 6 + ["even", "odd"] * 12
    transformer = type("Transformer", (), {"layer_kinds": kinds})()
    transformer.resolve_windows = wan.native.transformer.resolve_windows
    native = type("Pipeline", (), {"transformer": transformer, "edition": wan.edition})()
    return replace(wan, native=native, estimator=Estimator(WAN_CUDA))


def test_each_kind_of_visitor_is_offered_what_their_quota_starts(wan):
    found = offers(on_h100(wan))
    limits = dict(costs.ZEROGPU_TIERS)
    assert [offer.visitor for offer in found] == list(limits)
    pixels = []
    for offer in found:
        assert offer.seconds <= limits[offer.visitor]
        size = offer.request.size
        pixels.append(size.rows * size.width * offer.request.frames)
    assert pixels == sorted(pixels) and len(set(pixels)) == 3
    # What would be better does not fit.
    for offer in found:
        for resolution, frames, steps in WAN.ladder:
            better = Request("any", resolution, num_frames=frames, num_inference_steps=steps)
            if better.validate(WAN) == offer.request:
                break
            stages = estimate(job(better.validate(WAN), on_h100(wan)), WAN_CUDA)
            assert gpu_duration(stages) > limits[offer.visitor]


# Command line


def test_generate_from_the_command_line(files, small, tmp_path, monkeypatch, capsys):
    for name, value in files.environment.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "lake.mp4"
    run = ("generate", "--prompt", PROMPT, "--resolution", "544p", "--frames", 37, "--steps", 1)
    assert ultragen(*run, "--out", out) == 0, capsys.readouterr().err
    assert "does not know" not in capsys.readouterr().err
    assert (probe_video(out).num_frames, probe_video(out).fps) == (37, 15)
    metadata = json.loads(out.with_suffix(".json").read_text())
    assert metadata["request"]["num_frames"] == 37  # more than the embedded model's most


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("--model", "embedded", "--frames", 37), "--num-frames must be from 1 to 33"),
        (("--model", "wan", "--frames", 125), "--num-frames must be from 1 to 121"),
        (("--model", "wan", "--windows", 3), "2 or 4"),
    ],
)
def test_settings_are_checked_for_the_model_that_runs(settings, says, files, monkeypatch, capsys):
    for name, value in files.environment.items():
        monkeypatch.setenv(name, value)
    assert ultragen("generate", "--prompt", "a lake", *settings) == 2
    assert says in capsys.readouterr().err


def test_wan_without_a_gpu_is_one_line(monkeypatch, capsys, tmp_path):
    from ultragen.runs import choice

    for name in ("ULTRAGEN_WAN", "ULTRAGEN_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(choice, "find_hardware", lambda: Hardware("cpu"))
    out = tmp_path / "a.mp4"
    assert ultragen("generate", "--prompt", "a lake", "--model", "wan", "--out", out) == 2
    said = capsys.readouterr().err
    assert "about 13 days" in said and "ULTRAGEN_MODEL=embedded" in said
    assert said.count("\n") == 1


# Page


@pytest.fixture
def page(small, tmp_path, monkeypatch) -> app.Page:
    monkeypatch.setattr(request, "RESOLUTIONS", RESOLUTIONS)
    made = app.Page(small, tmp_path)
    made.build()
    return made


def settings(**changes) -> list:
    return list(Request("a lake", **changes).validate(WAN).to_dict().values())


def test_the_page_says_which_model_runs_and_why(page):
    text = describe_model(page.models)
    for part in ("<b>Wan model</b>", "on this machine's CPU", "ULTRAGEN_MODEL=wan", "=embedded"):
        assert part in text
    assert (page.ui.resolution.value, page.ui.num_frames.value) == ("1080p", 81)
    assert (page.ui.num_frames.maximum, page.ui.steps.value) == (121, 30)
    assert page.ui.negative.value == WAN.negative_prompt
    assert name_unknown_words(page.models, "a zorgon") == ""


def test_the_page_draws_the_windows_of_the_released_layout(page):
    updates = refresh(page.ui, page.models, *settings())
    drawing = updates[page.ui.drawing]
    assert "4 × 4 windows in even layers, 17 × 30" not in drawing  # columns come first
    assert "4 × 4 windows in even layers, 30 × 17 tokens each" in drawing
    assert "which 33 % of the layers keep" in drawing
    assert "About" in updates[page.ui.estimate]


def test_the_page_refuses_what_the_gpu_can_not_hold(small, tmp_path, monkeypatch):
    monkeypatch.setattr(request, "RESOLUTIONS", RESOLUTIONS)
    short = replace(small, memory=Memory(22 * GIB, WAN_PARAMETERS.scaled(2)), placement="in turn")
    page = app.Page(short, tmp_path)
    page.build()
    assert "come to the GPU in turn" in describe_model(page.models)
    assert (
        "4k with 81 frames needs"
        in refresh(page.ui, page.models, *settings(resolution="4k"))[page.ui.estimate]
    )
    with served(short, tmp_path) as address:
        client = Client(address, verbose=False)
        with pytest.raises(ValidationError, match=r"4k with 81 frames needs about .* choose"):
            client.predict(prompt="a lake", resolution="4k", api_name="/generate")


def test_a_run_asks_zero_gpu_for_half_a_card_and_the_seconds_it_takes(wan, tmp_path, monkeypatch):
    asked: dict = {}

    def lend(**options):
        return lambda function: asked.setdefault(function.__name__, options) and function

    monkeypatch.setattr(app.spaces, "GPU", lend)
    made = on_h100(wan)
    app.Page(made, tmp_path)
    assert {options["size"] for options in asked.values()} == {"large"}
    request = Request("a lake").validate(WAN)
    seconds = asked["gpu_part"]["duration"](request)
    assert 10 < asked["draft_part"]["duration"](request, 4) < seconds / 4
    assert seconds == gpu_duration(estimate(job(request, made), WAN_CUDA))
    assert 200 < seconds <= 1600  # 1080p, 81 frames, 30 steps: for PRO accounts


def test_visitors_of_zero_gpu_are_offered_settings(wan, tmp_path, monkeypatch):
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    made = on_h100(wan)
    monkeypatch.setattr(app, "describe_model", lambda models: "")
    page = app.Page(made, tmp_path)
    page.build()
    assert list(page.ui.offers) == list(dict(costs.ZEROGPU_TIERS))

    def shown() -> list[int]:
        """Seconds on the buttons, after what they stand for was looked at."""
        updates, seconds = refresh(page.ui, page.models, *settings()), []
        for visitor, button in page.ui.offers.items():
            assert updates[button]["visible"]
            seconds.append(int(updates[button]["value"].split("(")[1].split(" s)")[0]))
            assert tuple(take_offer(page.ui, page.models, visitor).values()) in WAN.ladder
            assert seconds[-1] <= dict(costs.ZEROGPU_TIERS)[visitor]
        return seconds

    before = shown()
    made.estimator.expect(3.0)  # as runs that take longer would teach it
    assert shown() != before
    made.estimator.expect(1000.0)
    updates = refresh(page.ui, page.models, *settings())
    assert not any(updates[button]["visible"] for button in page.ui.offers.values())
    with pytest.raises(gr.Error, match="Nothing fits that quota"):
        take_offer(page.ui, page.models, "free accounts")


@pytest.fixture
def previewed(small, tmp_path, monkeypatch) -> Models:
    """The same, with a map fitted to random weights taken for one that shows something."""
    monkeypatch.setattr(fitted_colours, "LEAST", float("-inf"))
    fitted = FittedColours(small.native, small.source, tmp_path / "kept")
    return replace(small, fitted=fitted)


SHORT = Request("a lake", "544p", num_frames=5, num_inference_steps=3)


def previews_of(run) -> list[bytes]:
    items = list(run)
    assert isinstance(items[-1], Finished)
    return [item.preview for item in items if isinstance(item, Progress) and item.preview]


def test_the_page_s_run_shows_previews_and_another_s_fits_nothing(previewed, tmp_path):
    assert previewed.colours is None
    page = app.Page(previewed, tmp_path)
    page.build()
    short = SHORT.validate(previewed.preset)
    assert previews_of(page.gpu_part(short)) == []  # as the API runs it
    compare.generate(short, previewed)
    native.generate_native(short, previewed)
    assert not (tmp_path / "kept").exists()
    shown = previews_of(page.following.gpu_part(short))
    assert len(shown) == short.num_inference_steps - 1
    picture = Image.open(io.BytesIO(shown[-1]))
    assert picture.size == (40, 24)  # 2 × 2 pixels for each 8 × 8
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_random_weights_show_no_preview_and_the_run_is_the_same(small, tmp_path):
    """The map explains nothing of a scene, so there is none."""
    models = replace(small, fitted=FittedColours(small.native, small.source, tmp_path / "kept"))
    reports: list[Progress] = []
    short = SHORT.validate(models.preset)
    clips = compare.generate(short, models, reports.append, previews=True)
    assert not any(report.preview for report in reports)
    assert (clips.native == compare.generate(short, small).native).all()


def test_a_model_that_is_loaded_can_fit_a_map_unless_it_has_one(wan, tmp_path):
    assert wan.colours is None and wan.fitted.pipe is wan.native
    embedded = load_models("embedded")
    assert embedded.fitted is None
    assert embedded.preview_colours() is embedded.colours is not None


def test_the_map_in_a_model_s_folder_wins(wan, tmp_path):
    wan.native.save_pretrained(tmp_path)
    np.save(tmp_path / FILE, np.ones((17, 12), np.float32))
    loaded = load_models(tmp_path)
    assert loaded.fitted is None
    assert (loaded.preview_colours().matrix == 1).all()


def test_an_autoencoder_that_takes_turns_comes_for_the_fit_and_goes_back(files, tmp_path):
    pipe = UltraGenPipeline.from_wan(files.base, files.ultragen, torch.float32)
    plain = fitted_colours.fit(pipe.vae)[0]
    take_turns(pipe, pipe.base_pipeline(), "cpu")  # which stands for the GPU
    came, went = [], []
    hook = pipe.vae._hf_hook
    before, free = hook.pre_forward, pipe.maybe_free_model_hooks
    hook.pre_forward = lambda module, *inputs: (came.append(module), before(module, *inputs))[1]
    pipe.maybe_free_model_hooks = lambda: (went.append(len(came)), free())
    colours = FittedColours(pipe, files.base, tmp_path)
    colours.find()
    scenes = len(fitted_colours.SCENES) + 1
    assert set(came) == {pipe.vae} and went == [len(came)] and len(came) >= scenes
    assert pipe.vae._hf_hook is not hook  # hooked anew, as after a run
    assert torch.equal(np_matrix(tmp_path), plain)


def np_matrix(folder: Path) -> torch.Tensor:
    [path] = folder.glob("*.npz")
    return torch.from_numpy(np.load(path)["matrix"])


def test_the_api_runs_it(small, tmp_path):
    with served(small, tmp_path) as address:
        client = Client(address, verbose=False, download_files=tmp_path / "downloads")
        *clips, metadata = client.predict(
            prompt=PROMPT, resolution="544p", num_frames=5, num_inference_steps=1,
            api_name="/generate",
        )  # fmt: skip
    assert [probe_video(Path(clip)).height for clip in clips] == [90, 90, 90]
    assert metadata["model"]["name"] == "wan"
