"""`train` and `assemble`: the stages, each with its own options."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from commands import PROMPT, SMALL, one_line, ultragen

from ultragen.cli import train
from ultragen.training.build import EMBEDDED_SIZE, TINY_SIZE, build_autoencoder
from ultragen.training.stage_options import StageOptions
from ultragen.training.stage_order import STAGES
from ultragen.training.vocabulary import build_tokenizer
from ultragen.video import probe_video
from ultragen.world.captions import vocabulary


@pytest.mark.slow
def test_a_tiny_training_becomes_a_model(tmp_path, capsys):
    """Every stage through the command line, then the clip that the result makes."""
    out, pipeline = tmp_path / "training", tmp_path / "model"
    for stage in ("autoencoder", "base", "ultragen", "upscaler"):
        run = ("train", stage, "--out", out, "--tiny", "--minutes", 5, "--max-steps", 2)
        assert ultragen(*run) == 0
    assert ultragen("assemble", out / "model", pipeline, "--tiny") == 0
    assert "Written" in capsys.readouterr().out
    assert ultragen("assemble", out / "model", pipeline, "--tiny") == 1
    assert "--overwrite" in capsys.readouterr().err
    assert ultragen("assemble", out / "model", pipeline, "--tiny", "--overwrite") == 0
    clip = tmp_path / "clip.mp4"
    run = ("generate", "--prompt", PROMPT, *SMALL, "--model", pipeline, "--out", clip)
    assert ultragen(*run) == 0
    assert probe_video(clip).num_frames == 5
    # And on from there, with the other stages' weights.
    more = ("--out", tmp_path / "more", "--tiny", "--max-steps", 1, "--start-from", pipeline)
    assert ultragen("train", "ultragen", *more) == 0
    assert (tmp_path / "more" / "model" / "transformer").is_dir()


@pytest.fixture
def trained(monkeypatch, tmp_path) -> list:
    """What `train` would have trained: stage, settings, options and where it starts."""
    calls: list = []

    def train(*arguments):
        calls.append(arguments)
        return tmp_path

    monkeypatch.setattr("ultragen.training.stage_order.train", train)
    return calls


@pytest.mark.parametrize(
    ("given", "learnt"),
    [((), 3), (("--teacher-guidance", 2), 2), (("--teacher-guidance-scale", 4), 4)],
)
def test_the_teachers_guidance(trained, tmp_path, given, learnt):
    assert ultragen("train", "distill", "--out", tmp_path, *given) == 0
    [(_, _, options, _)] = trained
    assert dict(options.distill)["guidance_scale"] == learnt


def test_the_edition_is_that_of_the_weights_unless_another_is_said(trained, tmp_path):
    build_tokenizer(vocabulary(2), 16).save_pretrained(tmp_path / "second" / "tokenizer")
    start = ("--start-from", tmp_path / "second")
    for more in ((), start, (*start, "--edition", 1)):
        assert ultragen("train", "ultragen", "--out", tmp_path / "out", *more) == 0
    assert [options.edition for _, _, options, _ in trained] == [1, 2, 1]


def test_the_stages_are_those_of_the_recipe(capsys):
    assert ultragen("train", "--help") == 0
    listed = capsys.readouterr().out.split("Commands:")[1]
    assert re.findall(r"^  ([\w-]+) ", listed, re.MULTILINE) == [*STAGES, "wan", "wan-distill"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_the_shared_options(trained, tmp_path, stage):
    shared = {
        "minutes": 3, "run-minutes": 2, "max-steps": 4, "seed": 5, "learning-rate": 0.1,
        "warmup-steps": 6, "sample-minutes": 7, "profile-step": 8, "decay": 0.9,
    }  # fmt: skip
    words = [word for name, value in shared.items() for word in (f"--{name}", value)]
    run = ("train", stage, "--out", tmp_path / "runs", "--start-from", tmp_path)
    assert ultragen(*run, *words) == 0
    assert ultragen(*run, "--tiny") == 0
    [(name, config, options, start), (_, _, tiny, _)] = trained
    assert (name, config.out, start) == (stage, tmp_path / "runs", tmp_path)
    for option, value in shared.items():
        assert getattr(config, option.replace("-", "_")) == value
    assert (options.size, tiny.size) == (EMBEDDED_SIZE, TINY_SIZE)


# fmt: off
OWN = {
    "autoencoder": {
        "--anchor", "--adversarial", "--detail", "--perceptual", "--ground-share",
        "--render-share", "--decoder-blocks",
    },
    "decoder": {
        "--adversarial", "--detail", "--perceptual", "--ground-share", "--render-share",
        "--decoder-blocks",
    },
    "base": {
        "--render-on", "--render-share", "--render-every", "--freeze-text", "--clauses", "--data",
    },
    "ultragen": {
        "--render-on", "--render-share", "--render-every", "--data", "--without", "--crossing",
        "--lora-rank",
    },
    "base-distill": {"--teacher-guidance-scale", "--steps"},
    "distill": {"--teacher-guidance-scale", "--steps"},
}
# fmt: on


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_only_options_that_mean_something_for_it(capsys, stage):
    assert ultragen("train", stage, "--help") == 0
    shown = set(re.findall(r"^  (--[\w-]+)", capsys.readouterr().out, re.MULTILINE))
    assert shown & set().union(*OWN.values()) == OWN.get(stage, set())


def test_options_of_the_stages_reach_them(trained, tmp_path):
    out = ("--out", tmp_path)
    plain = StageOptions()
    pulled = (
        "--adversarial", 1, "--detail", 0.3, "--perceptual", 0.7, "--ground-share", 0.65,
    )  # fmt: skip
    few_blocks = ("--decoder-blocks", 4, 3, 2)
    assert ultragen("train", "autoencoder", *out, "--anchor", 0.01, *pulled, *few_blocks) == 0
    assert ultragen("train", "base", *out, "--freeze-text", "--clauses", "--render-share", 0.3) == 0
    both = ("--render-on", "cuda:1", "--render-on", "cuda:2")
    assert ultragen("train", "ultragen", *out, *both, "--batch-scale", 0.5) == 0
    assert ultragen("train", "classifier", *out) == 0
    assert ultragen("train", "ultragen", *out, "--data", tmp_path) == 0
    rare = ("--without", "global", "--crossing", "shift", "--lora-rank", 0, "--render-every", 3)
    assert ultragen("train", "ultragen", *out, *rare) == 0
    assert ultragen("train", "distill", *out, "--steps", 4, "--teacher-guidance", 2) == 0
    vae, base, native, judge, given, other, few = (options for _, _, options, _ in trained)
    assert dict(few.distill) == {**dict(plain.distill), "steps": 4, "guidance_scale": 2}
    attention = (("branches", ("hierarchical",)), ("crossing", "shift"), ("lora_rank", 0))
    assert other == replace(plain, attention=attention, render_every=3)
    assert given == replace(plain, data=tmp_path)
    crops = {
        "batch_size": 48, "adversarial": 1.0, "detail": 0.3, "perceptual": 0.7,
        "ground_share": 0.65, "share": 0.35, "anchor": 0.01,
    }  # fmt: skip
    size = plain.size.with_decoder_blocks((4, 3, 2))
    assert vae == replace(plain, autoencoder=tuple(crops.items()), size=size)
    assert build_autoencoder(size).config.decoder_blocks == (4, 3, 2)
    assert base == replace(plain, freeze_text=True, clauses=True, render_share=0.3)
    assert native == replace(plain.with_batches(0.5), render_on=("cuda:1", "cuda:2"))
    assert judge == plain


@pytest.mark.parametrize("stage", STAGES)
def test_batches_of_every_stage_can_be_smaller(trained, tmp_path, stage):
    for more in ((), ("--batch-scale", 0.1), ("--batch-scale", 0.1, "--tiny")):
        assert ultragen("train", stage, "--out", tmp_path, *more) == 0
    plain, smaller, toy = (batches(options) for _, _, options, _ in trained)
    assert smaller == [max(1, round(number / 10)) for number in plain]
    assert set(toy) == {1}


def batches(options: StageOptions) -> list[int]:
    """Batch sizes of all kinds of examples of all stages."""
    clips = (
        *options.base_sizes, *options.ultragen_sizes, *options.base_distill_sizes,
        *options.distill_sizes,
    )  # fmt: skip
    others = (options.autoencoder, options.upscaler, options.classifier)
    return [*(clip.batch_size for clip in clips), *(dict(each)["batch_size"] for each in others)]


def test_training_without_its_packages(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    assert ultragen("train", "base", "--out", tmp_path) == 1
    assert "pip install -e '.[train]'" in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "everything", "--out", "x"), ["everything", "autoencoder"]),
        (("train",), ["stage", "autoencoder"]),
        (("train", "--out", "x", "base"), ["stage first", "--out", "autoencoder"]),
        (("train", "base", "--out"), ["--out", "argument"]),
        (("train", "base", "--out", "x", "--anchr", 1), ["--anchr", "--help"]),
        (("train", "base", "--out", "x", "--minutes", 0), ["minutes"]),
        (("train", "ultragen", "--out", "x"), ["train base"]),
        (("train", "base", "--out", "x", "--anchor", 0.1), ["--anchor", "autoencoder", "base"]),
        (("train", "ultragen", "--out", "x", "--freeze-text"), ["--freeze-text", "train base"]),
        (("train", "ultragen", "--out", "x", "--clauses"), ["--clauses", "train base"]),
        (
            ("train", "base", "--out", "x", "--teacher-guidance", 3),
            ["--teacher-guidance", "`train base-distill` and `train distill`"],
        ),
        (
            ("train", "distill", "--out", "x", "--teacher-guidance", 0.5),
            ["--teacher-guidance-scale"],
        ),
        (
            ("train", "decoder", "--out", "x", "--render-every", 5),
            ["--render-every", "train base", "train ultragen", "leave it out for decoder"],
        ),
        (
            ("train", "decoder", "--out", "x", "--decoder-blocks", 4, 0, 2),
            ["--decoder-blocks", "from 1", "4 0 2"],
        ),
        (("train", "distill", "--out", "x", "--render-on", "cuda:1"), ["--render-on", "ultragen"]),
        (
            ("train", "base", "--out", "x", "--render-on", "cuda:1", "--render-share", "0.3"),
            ["--render-share", "leave it out"],
        ),
        (
            ("train", "base", "--out", "x", "--data", "y", "--render-on", "cuda:1"),
            ["--render-on", "--data"],
        ),
        (
            ("train", "base", "--out", "x", "--render-every", 2, "--render-share", "0.3"),
            ["--render-every", "--render-share", "leave out one"],
        ),
        (
            ("train", "base", "--out", "x", "--render-every", 2, "--render-on", "cuda:1"),
            ["--render-every", "--render-on", "leave it out"],
        ),
        (
            ("train", "ultragen", "--out", "x", "--data", "y", "--render-every", 2),
            ["--render-every", "--data"],
        ),
        (("train", "ultragen", "--out", "x", "--without", "local"), ["--without", "global"]),
        (("train", "base", "--out", "x", "--crossing", "shift"), ["--crossing", "train ultragen"]),
        (("train", "distill", "--out", "x", "--data", "y"), ["--data", "train ultragen"]),
        (("assemble", "x", "y"), ["vae", "train autoencoder"]),
    ],
)
def test_bad_input(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ultragen(*arguments) == 2
    line = one_line(capsys)
    assert all(word in line for word in words), line
