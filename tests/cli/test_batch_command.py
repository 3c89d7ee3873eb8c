"""`batch` in one process: clips, names, metadata, runs that go on, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import PROMPT, SMALL, one_line, ultragen

from ultragen.batch import clip_folder, maker, on_ray
from ultragen.batch.clip_folder import MOST_ATTEMPTS, Results
from ultragen.batch.maker import Maker, Settings
from ultragen.batch.prompt_files import Clip, read_prompts
from ultragen.dataset.sources import find_sources
from ultragen.presets import EMBEDDED
from ultragen.runs.request import Request

TABLE = "prompt,seed,scene\na calm lake,7,x\na calm lake at sunset,,y\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("p.csv").write_text(TABLE)
    return tmp_path


def names(out: str | Path) -> list[str]:
    return sorted(path.name for path in Path(out).iterdir())


def rows(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


CLIPS = ["00000.json", "00000.mp4", "00001.json", "00001.mp4", "metadata.jsonl"]


def test_a_table_becomes_a_folder(fake, folder, capsys):
    assert ultragen("batch", "p.csv", *SMALL, "--seed", 3) == 0
    assert names("clips") == CLIPS
    assert [call["seed"] for call in fake.native.calls] == [7, 4]
    metadata = json.loads(Path("clips/00000.json").read_text())
    assert metadata["batch"] == {
        "source": "p.csv",
        "line": 2,
        "index": 0,
        "columns": {"scene": "x"},
    }
    assert Request.from_metadata(metadata).num_inference_steps == 2
    first, second = rows("clips/metadata.jsonl")
    assert (first["file_name"], first["scene"], first["seed"]) == ("00000.mp4", "x", 7)
    assert (second["prompt"], second["seed"]) == ("a calm lake at sunset", 4)
    # The folder is one that `dataset` encodes.
    sources, left_out = find_sources(Path("clips"))
    assert [source.captions for source in sources] == [("a calm lake",), ("a calm lake at sunset",)]
    assert left_out == []
    printed = capsys.readouterr().out
    assert "no settings: scene" in printed
    assert "1/2 00000 made, " in printed and "clips an hour, 0 min left" in printed


def test_clips_are_those_of_generate(fake, folder):
    Path("p.txt").write_text(PROMPT)
    given = (*SMALL, "--seed", 3, "--guidance", 1.5, "--negative-prompt", "rain")
    assert ultragen("batch", "p.txt", *given) == 0
    assert ultragen("generate", "--prompt", PROMPT, *given, "--out", "one.mp4") == 0
    assert Path("one.mp4").read_bytes() == Path("clips/00000.mp4").read_bytes()
    assert Request.from_metadata(Path("one.json")) == Request.from_metadata(
        Path("clips/00000.json")
    )


def test_fast_is_for_clips_that_are_all_guided(fake, folder, capsys):
    rows = "prompt,cache,guidance_scale\na lake,,3\na lake,taylor-3,3\n"
    Path("guided.csv").write_text(rows)
    assert ultragen("batch", "guided.csv", *SMALL, "--steps", 8, "--fast") == 0
    assert [call["cache"].cache_interval for call in fake.native.calls] == [2, 3]
    assert {call["interval"] for call in fake.native.calls} == {(0.6, 1.0)}
    capsys.readouterr()
    Path("one.csv").write_text(f"{rows}a lake,,1\n")
    given = ("--steps", 8, "--fast", "--out", "more")
    assert ultragen("batch", "one.csv", *SMALL, *given) == 2
    assert "one.csv, line 4: --fast is for guided clips" in one_line(capsys)
    assert not Path("more").exists()


def test_several_seeds_and_names(fake, folder):
    given = ("--num-seeds", 2, "--name", "{scene}-{seed}")
    assert ultragen("batch", "p.csv", *SMALL, *given) == 0
    found = [name for name in names("clips") if name.endswith(".mp4")]
    assert found == ["x-7.mp4", "x-8.mp4", "y-2.mp4", "y-3.mp4"]
    assert ultragen("batch", "p.csv", *SMALL, "--num-seeds", 2, "--out", "more") == 0
    assert names("more")[1::2] == ["00000-0.mp4", "00000-1.mp4", "00001-0.mp4", "00001-1.mp4"]


def test_other_machines_make_clips_with_the_model_that_is_listed_for(fake, folder, monkeypatch):
    """They might choose another one, whose steps and sizes are others."""
    asked = []

    def make(clips, settings, *arguments):
        asked.append(settings)
        return ()

    monkeypatch.setattr(on_ray, "make_on_ray", make)
    assert ultragen("batch", "p.csv", *SMALL, "--ray", "auto") == 0
    assert [settings.model for settings in asked] == ["embedded"]


def test_loras_are_those_of_generate(fake, folder):
    for file in ("a.safetensors", "b.safetensors"):
        Path(file).touch()
    Path("p.jsonl").write_text(
        '{"prompt": "a"}\n{"prompt": "b", "loras": {"b": 2}}\n{"prompt": "c", "loras": {}}\n'
    )
    given = ("--lora", "a.safetensors:0.5", "--lora", "b.safetensors")
    assert ultragen("batch", "p.jsonl", *SMALL, *given) == 0
    used = [call["loras"] for call in fake.native.calls]
    assert used == [[("a.safetensors", 0.5), ("b.safetensors", 1.0)], [("b.safetensors", 2.0)], []]


def test_a_run_goes_on(fake, folder, capsys):
    run = ("batch", "p.csv", *SMALL)
    assert ultragen(*run) == 0
    Path("clips/00000.mp4").unlink()
    Path("clips/.unfinished-ab").mkdir()  # of a process that was killed
    before = Path("clips/00001.mp4").stat().st_mtime_ns
    capsys.readouterr()
    assert ultragen(*run) == 0
    assert names("clips") == CLIPS and len(fake.native.calls) == 3
    assert Path("clips/00001.mp4").stat().st_mtime_ns == before
    assert "2/2 00001 kept" in capsys.readouterr().out
    assert ultragen(*run, "--overwrite") == 0
    assert len(fake.native.calls) == 5


@pytest.mark.parametrize(("resolution", "kept"), [("544p", True), ("1080p", True), ("4k", False)])
def test_clips_of_a_version_without_compositions_are_kept_where_they_are_the_same(
    tmp_path, resolution, kept
):
    """They began at their own size, as smaller ones do today."""
    asked = Request(PROMPT, resolution, loras={}).validate(EMBEDDED)
    clip = Clip("00000", 0, 2, asked, {})
    settings = asked.to_dict()
    del settings["progressive"]
    metadata = {"request": settings, "fps": asked.fps, "model": {"name": "embedded"}}
    (tmp_path / "00000.json").write_text(json.dumps(metadata))
    (tmp_path / "00000.mp4").write_bytes(b"a clip")
    if kept:
        Results(tmp_path).open([clip], "embedded", overwrite=False)
        return
    with pytest.raises(OSError, match="was made with other settings than line 2"):
        Results(tmp_path).open([clip], "embedded", overwrite=False)
    metadata["request"] |= {"resolution": "8k", "progressive": "auto"}  # of a later version
    (tmp_path / "00000.json").write_text(json.dumps(metadata))
    with pytest.raises(OSError, match=r"no 00000\.json that tells what it is"):
        Results(tmp_path).open([clip], "embedded", overwrite=False)


def test_clips_of_other_settings_are_not_kept(fake, folder, capsys):
    assert ultragen("batch", "p.csv", *SMALL) == 0
    capsys.readouterr()
    assert ultragen("batch", "p.csv", "--frames", 9, "--steps", 2) == 1
    said = capsys.readouterr().err
    assert "00000.mp4 was made with other settings than line 2" in said
    assert "and 1 more" in said and "--overwrite" in said
    Path("clips/00000.json").write_text("{}")
    assert ultragen("batch", "p.csv", *SMALL) == 1
    assert "no 00000.json that tells what it is" in capsys.readouterr().err
    assert len(fake.native.calls) == 2


def test_nothing_is_made_before_all_is_right(fake, folder, capsys):
    Path("p.csv").write_text("prompt,num_frames\na lake,5\na lake,6\na lake,999\n")
    assert ultragen("batch", "p.csv") == 2
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith("p.csv, line 3: num_frames must be 4n + 1, not 6")
    assert second.startswith("p.csv, line 4: num_frames must be from 1 to 33")
    assert "2 of the lines above" in last
    assert fake.native.calls == [] and not Path("clips").exists()


def test_a_prompt_that_fails_ends_nothing(fake, folder, monkeypatch, capsys):
    native = maker.generate_native

    def fails(request, models):
        if request.seed == 7:
            raise RuntimeError("The clip is black.\nMore of it.")
        return native(request, models)

    monkeypatch.setattr(maker, "generate_native", fails)
    assert ultragen("batch", "p.csv", *SMALL) == 1
    [failed] = rows("clips/failed.jsonl")
    assert failed == {
        "name": "00000", "line": 2, "prompt": "a calm lake", "seed": 7,
        "reason": "The clip is black.",
    }  # fmt: skip
    assert [row["file_name"] for row in rows("clips/metadata.jsonl")] == ["00001.mp4"]
    assert "1 clips failed" in capsys.readouterr().err
    monkeypatch.setattr(maker, "generate_native", native)
    assert ultragen("batch", "p.csv", *SMALL) == 0
    assert names("clips") == CLIPS


def test_a_full_disk_stops_the_run_and_it_goes_on_later(fake, folder, monkeypatch, capsys):
    write = clip_folder.write_native

    def full(made, path, loading):
        if path.name == "00001.mp4":
            raise OSError(f"{path} was not written: the disk is full")
        return write(made, path, loading)

    monkeypatch.setattr(clip_folder, "write_native", full)
    assert ultragen("batch", "p.csv", *SMALL) == 1
    said = capsys.readouterr().err
    assert f"{folder}/clips/00001.mp4 was not written: the disk is full" in said
    assert "the same command goes on" in said
    assert names("clips")[-2:] == ["00000.json", "00000.mp4"]
    monkeypatch.setattr(clip_folder, "write_native", write)
    assert ultragen("batch", "p.csv", *SMALL) == 0
    assert names("clips") == CLIPS and len(fake.native.calls) == 3


def test_a_prompt_at_which_processes_die_fails_in_the_end(fake, folder):
    """Each of them notes what it begins, so that the next one can tell."""
    assert ultragen("batch", "p.csv", *SMALL) == 0
    out = Results(folder / "clips")
    for path in out.paths("00001"):
        path.unlink()
    clip = second_clip(folder)
    for _ in range(MOST_ATTEMPTS):
        out.begin(clip.name)
    outcome = Maker(Settings(out.folder, "p.csv")).make(clip)
    assert (outcome.state, outcome.reason) == ("failed", "the process that made it died 5 times")
    out.forget_attempts()
    assert Maker(Settings(out.folder, "p.csv")).make(clip).state == "made"
    assert names("clips") == [".attempts", *CLIPS]


def second_clip(folder: Path) -> Clip:
    """The second clip of the table."""
    defaults = {"num_frames": 5, "num_inference_steps": 2}
    return read_prompts(folder / "p.csv", defaults, EMBEDDED, 1, "{index:05d}").clips[1]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--workers", 2), "--workers is for --ray"),
        (("--name", "clip"), "needs fields"),
        (("--model", "nowhere"), "nowhere"),
        (("--num-seeds", 0), "--num-seeds"),
        (("--ray", "somewhere"), "no address"),
        (("--ray", "ray://127.0.0.1:1"), "no Ray cluster at ray://127.0.0.1:1"),
    ],
)
def test_bad_options_are_one_line(fake, folder, capsys, given, says):
    Path("p.txt").write_text("a lake")
    assert ultragen("batch", "p.txt", *given) in (1, 2)
    assert says in one_line(capsys)
    assert fake.native.calls == []
