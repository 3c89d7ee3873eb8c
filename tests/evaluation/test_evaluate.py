"""Evaluation: rows, captions, resuming, and what the table, the JSON and the sheet hold."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from commands import ultragen
from fakes import fake_models
from PIL import Image
from torch import nn

from ultragen.cli import console
from ultragen.evaluation import instruments as measuring
from ultragen.evaluation.evaluate import RESULTS, evaluate
from ultragen.evaluation.instruments import Instruments, load_instruments, measure, see
from ultragen.evaluation.metrics import (
    FrameNetwork,
    TextFrameNetwork,
    fit_gaussian,
    frechet_distance,
    to_tensor,
)
from ultragen.evaluation.rows import SETS, Maker, Row, rows_of
from ultragen.evaluation.scores import (
    ClipScores,
    Estimate,
    average,
    bootstrap,
    distance,
    following,
    number,
    percent,
)
from ultragen.evaluation.shard import Shard
from ultragen.evaluation.store import Store
from ultragen.model.classifier import AttributeClassifier
from ultragen.presets import EMBEDDED, Resolution
from ultragen.runs import loading, request
from ultragen.runs.loading import Models
from ultragen.runs.request import Request
from ultragen.training.build import TINY_SIZE, build_classifier, build_pipeline
from ultragen.training.recipe import train
from ultragen.training.stage import TrainingConfig
from ultragen.training.stages.classifier_stage import (
    HELD_OUT_START,
    IGNORED,
    TOLD_BY_CROPS,
    ClassifierStage,
    labels,
    mirrored,
)
from ultragen.training.tiny import TINY
from ultragen.world.captions import caption
from ultragen.world.heldout import (
    EVALUATED,
    REFERENCE,
    HeldOutClip,
    held_out_clips,
    named_attributes,
)
from ultragen.world.renderer import render
from ultragen.world.scene import ALLOWED, HELD_OUT_SEEDS, make_scene, sample_scene

TABLE1 = SETS["table1"]
ROWS = tuple(row.key for row in TABLE1)


def save_classifier(folder: Path) -> Path:
    torch.manual_seed(0)
    build_classifier(TINY_SIZE).save_pretrained(folder)
    return folder


@pytest.fixture
def fake(monkeypatch, tmp_path) -> Models:
    """Models that draw at once, with a tiny classifier beside them, and a small resolution."""
    sizes = {**request.RESOLUTIONS, "tiny": Resolution("tiny", 128, 160, 120)}
    monkeypatch.setattr(request, "RESOLUTIONS", sizes)
    preset = replace(EMBEDDED, base_height=64, base_width=96)
    made = replace(fake_models(), source=tmp_path / "model", preset=preset)
    save_classifier(made.source / "classifier")
    monkeypatch.setattr(loading, "load_models", lambda name=None: made)
    monkeypatch.setattr("ultragen.world.heldout.render", quick_render)
    return made


def quick_render(scenes, height, width, num_frames, *, region, device):
    """Colours of the scene's seed, with a grain: the renderer has tests of its own."""
    generator = torch.Generator().manual_seed(scenes[0].seed * 10_000 + region[0])
    small = torch.rand(3, num_frames, region[2] // 8, region[3] // 8, generator=generator)
    return small.repeat_interleave(8, 2).repeat_interleave(8, 3)[None]


RUN = ("evaluate", "--clips", 2, "--frames", 5, "--steps", 1, "--resolution", "tiny", "--out")


# Captions and real clips


def test_held_out_clips_are_apart_and_never_trained_on():
    evaluated, reference = held_out_clips(5), held_out_clips(5, REFERENCE)
    seeds = [clip.seed for clip in (*evaluated, *reference)]
    assert len(set(seeds)) == 10 and all(seed in HELD_OUT_SEEDS for seed in seeds)
    assert HELD_OUT_START not in EVALUATED and HELD_OUT_START not in REFERENCE
    assert evaluated[0].caption == caption(evaluated[0].scene, evaluated[0].seed)
    assert [clip.caption for clip in held_out_clips(5)] == [clip.caption for clip in evaluated]


@pytest.mark.parametrize("number", [0, 100_001])
def test_a_number_of_clips_that_is_not_there(number):
    with pytest.raises(ValueError, match=f"from 1 to 100000, not {number}"):
        held_out_clips(number)


def test_real_clips_in_strips_are_the_rendered_ones(monkeypatch):
    monkeypatch.setattr("ultragen.world.heldout.STRIP", 20)
    scene = sample_scene(3)
    whole = render([scene], 48, 64, 2)[0].mul(255).round().byte().permute(1, 2, 3, 0).numpy()
    strips = HeldOutClip(scene).frames(48, 64, 2)
    assert strips.dtype == np.uint8 and strips.shape == (2, 48, 64, 3)
    assert np.abs(strips.astype(int) - whole).max() <= 1


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a lake under mountains at noon, clear sky", set()),
        ("at noon, a lake, clear sky, the sun on the left", {"celestial", "celestial_side"}),
        ("at noon, sun near the horizon to the left", {"celestial", "celestial_side", "altitude"}),
        ("at noon, a bright sun low", {"celestial", "altitude"}),
        ("sunshine, birds are flying", {"celestial", "birds"}),
        ("in the evening sun, in the middle of the day", set()),
        ("the camera moves to the left, warm", {"camera", "mood"}),
        ("pines, pine trees by a lake", {"trees"}),
    ],
)
def test_what_a_caption_names(text, names):
    scene = make_scene(
        1, time_of_day="noon", celestial="sun", celestial_side="left", celestial_altitude="low",
        birds="yes", trees="pines", camera="pan left", mood="warm", snow_caps="no",
    )  # fmt: skip
    found = named_attributes(scene.attributes, text)
    always = {"time_of_day", "terrain", "weather", "water"}
    names = {"celestial_altitude" if name == "altitude" else name for name in names}
    assert set(found) == always | names
    assert all(getattr(scene.attributes, name) == value for name, value in found.items())


def test_what_is_not_there_is_not_named():
    scene = make_scene(1, celestial="none", birds="no", trees="none", water="none")
    assert "celestial" not in named_attributes(scene.attributes, "sunshine, birds, pines")
    assert named_attributes(scene.attributes, "")["water"] == "none"


# The classifier's stage


def test_labels_leave_out_what_can_not_be_seen():
    scene = make_scene(1, celestial="none", camera="rise")
    numbers = dict(zip(ALLOWED, labels(scene), strict=True))
    assert numbers["celestial_side"] == numbers["celestial_altitude"] == IGNORED
    assert ALLOWED["camera"][numbers["camera"]] == "rise"
    crop = dict(zip(ALLOWED, labels(scene, TOLD_BY_CROPS), strict=True))
    assert {name for name, value in crop.items() if value != IGNORED} == set(TOLD_BY_CROPS)


def classifier_stage(**settings) -> ClassifierStage:
    torch.manual_seed(0)
    stage = ClassifierStage(
        build_classifier(TINY_SIZE), **{**dict(TINY.classifier), "chunk": 4, **settings}
    )
    stage.setup(torch.device("cpu"), 0, 1)
    return stage


def test_the_classifier_learns_a_small_pool():
    stage = classifier_stage(pool=8)
    while stage.pool.made < 8:
        stage.pool.put(stage.pool.make())
    video, numbers = (ring[:8] for ring in stage.pool.rings)
    optimizer = torch.optim.Adam(stage.model.parameters(), lr=5e-3)
    for _ in range(60):
        losses = stage.loss(stage.model, (video.float() / 255, numbers))
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses["accuracy"] > 0.9


def test_views_are_whole_frames_and_crops_parts_at_full_resolution():
    stage = classifier_stage()
    scenes = [sample_scene(0), sample_scene(1)]
    assert stage.views(scenes, (64, 96)).shape == (2, 3, 5, 32, 48)
    video, numbers = stage.crops(scenes, (32, 48), Corner())
    exact = render(scenes, 32, 48, 5).mul(255).round().byte()
    assert torch.equal(video, exact) and numbers.shape == (2, len(ALLOWED))


def test_labels_of_a_mirrored_clip():
    given = {"celestial": "sun", "celestial_side": "left", "camera": "pan right"}
    scene = make_scene(0, water="lake", **given)
    swapped = make_scene(
        0, water="lake", celestial="sun", celestial_side="right", camera="pan left"
    )
    numbers = torch.tensor([labels(scene), labels(scene, TOLD_BY_CROPS)])
    expected = torch.tensor([labels(swapped), labels(scene, TOLD_BY_CROPS)])
    assert torch.equal(mirrored(numbers), expected)
    assert torch.equal(mirrored(mirrored(numbers)), numbers)


def test_half_of_a_batch_is_mirrored():
    stage = classifier_stage(batch_size=64)
    video, numbers = stage.batch(0)
    rings = stage.pool.rings
    pool = [(x.float() / 255, y) for x, y in zip(rings[0], rings[1], strict=True)]
    flipped = 0
    for clip, label in zip(video, numbers, strict=True):
        as_is = any(torch.equal(clip, x) and torch.equal(label, y) for x, y in pool)
        mirror = any(
            torch.equal(clip, x.flip(-1)) and torch.equal(label, mirrored(y[None])[0])
            for x, y in pool
        )
        assert as_is or mirror
        flipped += mirror
    assert 16 < flipped < 48


class Corner:
    """In place of a random place."""

    def randint(self, low: int, high: int) -> int:
        return low


def test_accuracy_counts_what_can_be_seen(monkeypatch):
    stage = classifier_stage(held_out=6)
    numbers = stage.held_out[1]
    assert stage.held_out[0].shape == (6, 3, 5, 32, 48)
    monkeypatch.setattr(stage, "predictions", lambda: numbers.clamp(min=0))
    assert all(value in (1, None) for value in stage.accuracy().values())
    monkeypatch.setattr(stage, "predictions", lambda: numbers + 1)
    assert all(value in (0, None) for value in stage.accuracy().values())


def test_a_tiny_classifier_is_trained_and_reports_its_accuracy(tmp_path, capsys):
    config = TrainingConfig(out=tmp_path, minutes=60, max_steps=3, log_steps=1, warmup_steps=1)
    folder = train("classifier", config, TINY) / "classifier"
    assert AttributeClassifier.from_pretrained(folder).config.attributes["water"] == [
        *ALLOWED["water"]
    ]
    report = json.loads((folder / "accuracy.json").read_text())
    assert report["held_out_clips"] == 4 and list(report["accuracy"]) == list(ALLOWED)
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "held-out accuracy of 4 clips" in printed
    assert (tmp_path / "classifier/samples/000003.png").exists()


# Scores


def test_the_bootstrap_of_a_mean_is_the_normal_interval():
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap(lambda drawn: float(values[list(drawn)].mean()), 400, resamples=1000)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value == pytest.approx(half, rel=0.12)
    assert found.value - found.low == pytest.approx(half, rel=0.12)
    again = bootstrap(lambda drawn: float(values[list(drawn)].mean()), 400, resamples=1000)
    assert again == found


def test_the_interval_of_a_distance_is_moved_by_its_bias():
    """Sets with repetitions are farther from the reference than the clips themselves."""
    draw = torch.Generator().manual_seed(0)
    clips = [torch.randn(4, 16, generator=draw) for _ in range(12)]
    reference = fit_gaussian(torch.randn(4000, 16, generator=draw))
    found = distance(reference, clips)
    assert found.low < found.value < found.high


def test_clips_of_other_lengths_are_drawn_whole():
    draw = torch.Generator().manual_seed(0)
    clips = [torch.randn(n, 3, generator=draw) for n in (4, 7, 2)]
    reference = fit_gaussian(torch.randn(50, 3, generator=draw))
    naive = bootstrap(
        lambda drawn: frechet_distance(
            reference, fit_gaussian(torch.cat([clips[i] for i in drawn]))
        ),
        len(clips),
    )
    found = distance(reference, clips)
    assert asdict(found) == pytest.approx(asdict(naive), rel=1e-6)


def test_one_clip_has_no_width():
    assert average([3.0]) == Estimate(3, 3, 3)
    assert average([3.0, None]) is None and average([None]) is None
    with pytest.raises(ValueError, match="at least one clip"):
        bootstrap(lambda drawn: 0.0, 0)


def clip_that_shows(seen: dict[str, str] | None, **named: str) -> ClipScores:
    return ClipScores(1.0, 2.0, None, None, None, seen, named)


def test_following_counts_what_captions_name():
    clips = [
        clip_that_shows({"water": "sea", "birds": "no"}, water="sea"),
        clip_that_shows({"water": "sea", "birds": "no"}, water="lake", birds="yes"),
        clip_that_shows({"water": "sea", "birds": "no"}),
    ]
    assert following(clips).value == pytest.approx(1 / 3)
    assert following(clips, "water").value == pytest.approx(1 / 2)
    assert following(clips, "birds").value == 0
    assert following(clips, "mood") is None
    assert following([clip_that_shows(None, water="sea")]) is None


def test_cells():
    assert number(Estimate(1.234, 1, 2), 2) == "1.23 [1.00, 2.00]"
    assert percent(Estimate(0.9, 0.75, 1.04)) == "90.0 [75.0, 100.0]"
    assert number(None, 2) == percent(None) == "–"


# Measuring


def test_a_clip_is_measured_by_every_instrument(tmp_path, monkeypatch):
    case = held_out_clips(1)[0]
    folder = save_classifier(tmp_path / "classifier")
    text = TextFrameNetwork(
        "text", lambda x: x.mean((2, 3)), embed_text=lambda t: torch.tensor([[1.0, 1, 1]])
    )
    monkeypatch.setattr(measuring, "load_clip", lambda name, device: text)
    tools = load_instruments(tmp_path, clip="folder")
    assert tools.names() == {
        "hd_fvd": [tools.classifier_name], "hd_lpips": None, "clip_score": "text",
        "temporal": "text", "following": tools.classifier_name,
    }  # fmt: skip
    assert load_instruments(tmp_path).names()["temporal"] == tools.classifier_name
    frames = np.random.default_rng(0).integers(0, 256, (5, 70, 100, 3), dtype=np.uint8)
    found = measure(frames, case, tools, 1.5)
    assert found.seconds == 1.5 and found.hd_mse > 0 and found.hd_lpips is None
    assert found.clip_score == pytest.approx(1, abs=0.01)
    assert found.temporal == pytest.approx(1, abs=0.01)
    assert found.seen == see(frames, tools.classifier) and set(found.seen) == set(ALLOWED)
    assert found.named == case.named
    assert found.features[tools.classifier_name].shape[0] == 2 * 2
    assert folder.is_dir()


def test_nothing_is_computed_twice(tmp_path, monkeypatch):
    """One upload of a frame for all measures, one look of a network, and no frame unseen."""
    frames = np.random.default_rng(0).integers(0, 256, (17, 70, 100, 3), dtype=np.uint8)
    looks, uploads, reduced = [], [], []

    def embed(frame: torch.Tensor) -> torch.Tensor:
        looks.append(frame)
        return frame.mean((2, 3))

    both = TextFrameNetwork("text", embed, embed_text=lambda text: torch.ones(1, 3))
    save_classifier(tmp_path / "classifier")
    tools = replace(load_instruments(tmp_path), clip=both, frames=both)
    upload, reduce = torch.from_numpy, tools.classifier.reduce
    monkeypatch.setattr(torch, "from_numpy", lambda x: uploads.append(x) or upload(x))
    monkeypatch.setattr(tools.classifier, "reduce", lambda x: reduced.append(x) or reduce(x))
    found = measure(frames, held_out_clips(1)[0], tools)
    assert len(looks) == len(uploads) == 17 and len(reduced) == 5
    assert found.clip_score is not None and found.temporal is not None
    whole = torch.cat([reduce(to_tensor(frame)) for frame in frames])
    assert found.seen == tools.classifier.classify(whole)


def test_without_networks_nothing_is_made_up(tmp_path):
    found = measure(np.zeros((1, 8, 8, 3), np.uint8), held_out_clips(1)[0], Instruments())
    assert found.hd_mse == 0 and found.features == {}
    assert found.hd_lpips is found.clip_score is found.temporal is found.seen is None
    assert load_instruments(tmp_path).names()["hd_fvd"] == []


def test_a_classifier_that_is_named_must_be_there(tmp_path):
    with pytest.raises(ValueError, match="run `train classifier`"):
        load_instruments(tmp_path, classifier=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="run `train classifier`"):
        load_instruments(tmp_path, features=["classifier"])


def test_one_frame_has_no_temporal_consistency():
    network = FrameNetwork("colours", lambda x: x.mean((2, 3)))
    frame = np.full((1, 8, 8, 3), 9, np.uint8)
    assert measure(frame, held_out_clips(1)[0], Instruments(frames=network)).temporal is None


# Rows


def test_rows_are_made_as_they_say(fake):
    asked = Request("any", "tiny", num_frames=5, num_inference_steps=1, seed=7)
    maker = Maker(lambda folder: fake, asked)
    case = held_out_clips(1)[0]
    made = {row.key: next(maker.make(row, [(3, case)])) for row in TABLE1}
    assert all(frames.shape == (5, 120, 160, 3) for frames, _ in made.values())
    assert made["real"][1] is None and all(made[key][1] > 0 for key in ROWS if key != "real")
    assert {call["size"] for call in fake.native.calls} == {(128, 160)}
    # One small clip for both upscalers, and the base model at the full size.
    assert [call["size"] for call in fake.base.calls] == [(128, 160), (64, 96)]
    calls = [*fake.native.calls, *fake.base.calls]
    assert {(call["prompt"], call["seed"]) for call in calls} == {(case.caption, 10)}


def test_a_row_of_another_model(fake, tmp_path):
    other = fake_models()
    loaded = []

    def load(name: str | None) -> Models:
        loaded.append(name)
        return other if name else fake

    maker = Maker(load, Request("any", "tiny", num_frames=5, num_inference_steps=1))
    row = Row("without-global", "Without the global branch", "ultragen", model=str(tmp_path))
    for i, case in enumerate(held_out_clips(2)):
        [*maker.make(row, [(i, case)])]
    assert loaded == [None, str(tmp_path)]
    assert len(other.native.calls) == 2 and fake.native.calls == []


def test_rows_of_other_settings_share_no_small_clip(fake):
    maker = Maker(lambda name: fake, Request("any", "tiny", num_frames=5, num_inference_steps=1))
    case = held_out_clips(1)[0]
    plain = Row("few", "Few steps", "base", upscaler="lanczos")
    for row in (plain, replace(plain, num_inference_steps=3), replace(plain, guidance_scale=2.0)):
        [*maker.make(row, [(0, case)])]
    assert [(call["steps"], call["guidance"]) for call in fake.base.calls] == [
        (1, 3), (3, 3), (1, 2),
    ]  # fmt: skip


def test_an_unknown_table_names_the_known():
    with pytest.raises(ValueError, match="'table9' is unknown: choose from table1"):
        rows_of("table9")


# The command


def test_evaluate_writes_a_table_json_and_a_sheet(fake, tmp_path, capsys):
    out = tmp_path / "table1"
    assert ultragen(*RUN, out) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    text = (out / "table.md").read_text()
    assert text in printed and all(name in printed for name in RESULTS)
    lines = text.splitlines()
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert re.fullmatch(r"HD-FVD ↓ \(attribute classifier \w{8}\)", head[1])
    assert head[2:] == ["HD-MSE", "HD-LPIPS", "CLIP ↑", "temporal ↑", "prompt ↑", "s a clip"]
    assert [line.split("|")[1].strip() for line in lines[2:7]] == [row.title for row in TABLE1]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:7]]
    interval = re.compile(r"\d+\.\d+ \[-?\d+\.\d+, \d+\.\d+\]")
    for row in cells:
        assert all(interval.fullmatch(row[i]) for i in (1, 2, 5, 6)), row
        assert row[3] == row[4] == "–"
    assert cells[-1][-1] == "–" and all(re.fullmatch(r"\d+\.\d\d", row[-1]) for row in cells[:-1])
    assert "2 clips of 5 frames a row at tiny" in text
    assert "Not measured, for want of a network: HD-LPIPS, CLIP score" in text
    assert "| time of day | terrain |" in text

    content = json.loads((out / "results.json").read_text())
    assert [row["key"] for row in content["rows"]] == list(ROWS)
    assert content["request"]["num_frames"] == 5 and content["request"]["seed"] == 0
    assert content["models"] == {"evaluated": fake.fingerprint}
    assert content["networks"]["hd_fvd"][0] in head[1]
    assert [clip["scene"] for clip in content["clips"]] == [600_000, 600_001]
    assert content["reference_scenes"] == [700_000, 700_001]
    assert content["versions"]["torch"] == torch.__version__
    seconds = [row["seconds"] for row in content["rows"]]
    assert seconds.pop() is None and min(seconds) > 0
    first = content["rows"][0]["hd_mse"]
    assert first["low"] <= first["value"] <= first["high"]

    sheet = np.asarray(Image.open(out / "contact_sheet.jpg"))
    assert sheet.shape[1] > 2 * 480 and sheet.std() > 5


def numbers(folder: Path) -> list[dict]:
    """Of a table, without what differs from run to run."""
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_stopped_evaluation_goes_on(fake, tmp_path, monkeypatch, capsys):
    out = tmp_path / "table1"
    whole = tmp_path / "whole"
    assert ultragen(*RUN, whole) == 0
    calls = len(fake.native.calls)
    add, added = Store.add, []

    def stop(self, row, *rest):
        if len(added) == 3:
            raise KeyboardInterrupt
        added.append(row)
        add(self, row, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", stop)
        assert ultragen(*RUN, out) == console.STOPPED
    assert not (out / "table.md").exists()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("clips/*/*.json")}
    assert len(times) == 3
    assert ultragen(*RUN, out) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert len(fake.native.calls) == 2 * calls

    assert numbers(out) == numbers(whole)
    # Once more, and with more clips: only those that are new are made.
    assert ultragen(*RUN, out) == 0 and len(fake.native.calls) == 2 * calls
    more = [3 if word == 2 else word for word in RUN]
    assert ultragen(*more, out) == 0 and len(fake.native.calls) == 2 * calls + 1
    capsys.readouterr()


def test_other_settings_need_another_folder(fake, tmp_path, capsys):
    out = tmp_path / "table1"
    assert ultragen(*RUN, out) == 0
    (out / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert ultragen(*RUN, out, "--seed", 1) == 2
    message = capsys.readouterr().err
    assert "request" in message and "--overwrite" in message and message.count("\n") == 1
    assert ultragen(*RUN, out, "--seed", 1, "--overwrite") == 0
    assert json.loads((out / "results.json").read_text())["request"]["seed"] == 1
    assert (out / "notes.txt").exists()
    fake.fingerprint = "1" * 64
    assert ultragen(*RUN, out, "--seed", 1) == 2
    assert "models" in capsys.readouterr().err


def test_clips_of_another_world_or_batch_stand_in_another_table(
    fake, tmp_path, capsys, monkeypatch
):
    """An evaluation from before either was kept is of the first world, and made clip by clip."""
    out = tmp_path / "table1"
    assert ultragen(*RUN, out) == 0
    capsys.readouterr()
    assert ultragen(*RUN, out, "--batch", 2) == 2
    assert "add --batch 1" in capsys.readouterr().err
    monkeypatch.setattr("ultragen.world.heldout.VERSION", 99)
    assert ultragen(*RUN, out) == 2
    assert "world" in capsys.readouterr().err
    monkeypatch.setattr("ultragen.world.heldout.VERSION", 1)
    settings = json.loads((out / "settings.json").read_text())
    del settings["world"], settings["batch"]
    (out / "settings.json").write_text(json.dumps(settings))
    assert ultragen(*RUN, out) == 0


def test_a_damaged_clip_is_named(fake, tmp_path, capsys):
    out = tmp_path / "table1"
    assert ultragen(*RUN, out) == 0
    (out / "clips/ultragen/00001.safetensors").write_bytes(b"cut")
    capsys.readouterr()
    assert ultragen(*RUN, out) == 1
    assert "ultragen/00001.* are damaged: remove them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "table9"), ["table9", "table1"]),
        (("--clips", 0), ["--clips", "--help"]),
        (("--resolution", "8k"), ["8k", "544p"]),
        (("--num-frames", 18), ["--num-frames", "17"]),
        (("--features", "magic"), ["magic", "imagenet", "i3d=FILE"]),
        (("--features", "i3d=nowhere.pt"), ["nowhere.pt"]),
        (("--lpips", "alex"), ["alex=FILE"]),
        (("--clip", "./nowhere"), ["./nowhere"]),
        (("--classifier", "nowhere"), ["nowhere", "train classifier"]),
        (("--set", "distillation"), ["--teacher FOLDER"]),
        (("--shard", "5/4"), ["5/4", "from 1 to N"]),
        (("--shard", "a/b"), ["a/b", "2/4"]),
    ],
)
def test_bad_settings_are_one_line(fake, tmp_path, capsys, arguments, words):
    assert ultragen("evaluate", "--out", tmp_path / "out", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("ultragen: ") and printed.err.count("\n") == 1
    assert all(word in printed.err for word in words), printed.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_a_file(fake, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert ultragen(*RUN, tmp_path / "file") == 1
    assert "choose another --out" in capsys.readouterr().err


# Distillation


def test_a_student_is_compared_with_its_teacher(fake, tmp_path, monkeypatch, capsys):
    fake.preset = replace(fake.preset, num_inference_steps=4, guidance_scale=1.0)
    teacher = replace(fake_models(), fingerprint="1" * 64)
    monkeypatch.setattr(loading, "load_models", lambda name=None: teacher if name else fake)
    out = tmp_path / "distillation"
    words = (*RUN, out, "--set", "distillation", "--guidance", 1, "--teacher", "runs/teacher")
    assert ultragen(*words) == 0, capsys.readouterr().err
    made = [
        {(call["steps"], call["guidance"], call["size"]) for call in pipe.calls}
        for pipe in (teacher.native, fake.native)
    ]
    assert made == [{(30, 3, (128, 160))}, {(1, 1, (128, 160))}]
    content = json.loads((out / "results.json").read_text())
    assert [row["key"] for row in content["rows"]] == ["teacher", "student", "real"]
    assert content["models"] == {"evaluated": "0" * 64, "teacher": "1" * 64}
    assert content["own_settings"] == {
        "teacher": {"num_inference_steps": 30, "guidance_scale": 3.0}
    }
    text = (out / "table.md").read_text()
    assert "1 steps, guidance 1.0." in text
    assert "- Teacher: num_inference_steps 30, guidance_scale 3.0\n" in text
    capsys.readouterr()


def test_a_teacher_is_there_where_it_is_compared_with():
    with pytest.raises(ValueError, match="distillation needs the teacher: add --teacher FOLDER"):
        rows_of("distillation")
    with pytest.raises(ValueError, match="table1 has no row of a teacher: leave --teacher out"):
        rows_of("table1", teacher=True)


# Shards


def test_shards_have_every_clip_once():
    shards = [Shard(index, 3) for index in (1, 2, 3)]
    assert [[i for i in range(8) if i in shard] for shard in shards] == [
        [0, 3, 6], [1, 4, 7], [2, 5],
    ]  # fmt: skip
    assert all(i in Shard() for i in range(8))
    assert Shard.parse(" 2/16 ") == Shard(2, 16) and str(Shard(2, 16)) == "2/16"


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0"])
def test_a_shard_that_is_not_there(text):
    with pytest.raises(ValueError, match=f"no shard {text}: of I/N, I goes from 1 to N"):
        Shard.parse(text)


@pytest.mark.parametrize("text", ["", "a/b", "2", "1/2/3", "-1/4", "1.0/4", "²/4"])
def test_text_that_is_no_shard(text):
    with pytest.raises(ValueError, match="is not I/N, such as 2/4"):
        Shard.parse(text)


def test_shards_together_are_the_evaluation(fake, tmp_path, capsys):
    out, whole = tmp_path / "shared", tmp_path / "whole"
    three = [3 if word == 2 else word for word in RUN]
    assert ultragen(*three, whole) == 0
    fake.native.calls.clear()
    # A shard without clips of its own, as the fourth of three, has nothing to do.
    for index, clips in ((2, [1]), (1, [0, 1]), (4, [0, 1]), (3, [0, 1, 2])):
        assert ultragen(*three, out, "--shard", f"{index}/4") == 0
        for row in (*ROWS, "reference"):
            assert [int(path.stem) for path in sorted(out.glob(f"clips/{row}/*.json"))] == clips
        assert f"Shard {index}/4 is done in {out}" in capsys.readouterr().out
    assert not any((out / name).exists() for name in RESULTS)
    assert len(fake.native.calls) == 3
    assert ultragen(*three, out) == 0
    assert len(fake.native.calls) == 3 and numbers(out) == numbers(whole)
    capsys.readouterr()


def test_a_run_makes_what_a_shard_did_not(fake, tmp_path, capsys):
    out = tmp_path / "shared"
    assert ultragen(*RUN, out, "--shard", "1/2") == 0
    assert ultragen(*RUN, out) == 0
    assert len(fake.native.calls) == 2 and all((out / name).exists() for name in RESULTS)
    capsys.readouterr()


def test_a_shard_does_not_start_again(fake, tmp_path, capsys):
    assert ultragen(*RUN, tmp_path, "--shard", "1/2", "--overwrite") == 2
    assert "choose another --out" in capsys.readouterr().err


def stores(folder: Path, settings: list[dict]) -> list[Store | ValueError]:
    """What processes get that start at one moment in one folder."""
    start = Barrier(len(settings))

    def store(own: dict) -> Store | ValueError:
        start.wait()
        try:
            return Store(folder, own)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(len(settings)) as pool:
        return list(pool.map(store, settings))


def test_processes_that_start_together_share_a_folder(tmp_path):
    for i in range(20):
        folder = tmp_path / str(i)
        found = stores(folder, [{"seed": 1}] * 8)
        assert all(isinstance(store, Store) for store in found)
        assert [path.name for path in folder.iterdir()] == ["settings.json"]


def test_of_processes_with_other_settings_one_has_the_folder(tmp_path):
    for i in range(20):
        folder = tmp_path / str(i)
        found = stores(folder, [{"seed": seed} for seed in range(8)])
        (kept,) = (store for store in found if isinstance(store, Store))
        assert json.loads((folder / "settings.json").read_text()) == kept.settings
        assert sum("choose another --out" in str(error) for error in found) == 7


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError("not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert Store(tmp_path, {"seed": 1}).settings == {"seed": 1}
    with pytest.raises(ValueError, match="seed 1, not 2"):
        Store(tmp_path, {"seed": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


# A real pipeline, as small as it gets


class Doubled(nn.Module):
    """In place of the ×4 network."""

    name = "×4 network"

    def stream(self, frames, height, width):
        for frame in frames:
            rows = np.arange(height) * frame.shape[0] // height
            yield frame[rows][:, np.arange(width) * frame.shape[1] // width]


def test_every_row_with_tiny_models(tmp_path, monkeypatch):
    """Noise in, noise out: but through the pipelines, the renderer and the classifier."""
    sizes = {"tiny": Resolution("tiny", 128, 160, 120)}
    monkeypatch.setattr(request, "RESOLUTIONS", sizes)
    pipe = build_pipeline(TINY_SIZE, ["a", "lake"])
    pipe.set_progress_bar_config(disable=True)
    base = pipe.base_pipeline()
    base.set_progress_bar_config(disable=True)
    preset = replace(EMBEDDED, base_height=64, base_width=96)
    made = Models(pipe, base, preset, tmp_path, "0" * 64,
                  _upscalers={"network": Doubled(), "lanczos": Doubled()})  # fmt: skip
    save_classifier(tmp_path / "classifier")
    maker = Maker(lambda folder: made, Request("a", "tiny", num_frames=5, num_inference_steps=1))
    cases, tools = held_out_clips(2), load_instruments(tmp_path)
    # Real clips have no distance to themselves, and what is made of noise has one.
    rows = evaluate(TABLE1, cases, cases, maker, tools, tmp_path / "out")
    distances = {row.key: row.hd_fvd[tools.tubes[0].name].value for row in rows}
    assert distances.pop("real") == pytest.approx(0, abs=1e-4)
    assert min(distances.values()) > 0.01
    assert all(row.clips == 2 and row.hd_mse.value > 0 for row in rows)
    # Three clips made two at a time, of which the first two are the same.
    together = Maker(maker.load, maker.request, batch=2)
    more = held_out_clips(3)
    rows = evaluate(TABLE1, more, cases, together, tools, tmp_path / "together")
    assert all(row.clips == 3 for row in rows)
    stores = [Store(tmp_path / name, {}) for name in ("out", "together")]
    for key in ROWS:
        for i in range(2):
            one, other = (store.get(key, i).hd_mse for store in stores)
            assert one == pytest.approx(other, rel=1e-2, abs=1e-3)
    assert "made 2 at a time" in (tmp_path / "together" / "table.md").read_text()
    three = Maker(maker.load, maker.request, batch=3)
    with pytest.raises(ValueError, match="with batch 2, not 3"):
        evaluate(TABLE1, more, cases, three, tools, tmp_path / "together")
