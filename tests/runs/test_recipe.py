"""What makes a clip again, read from metadata and clips: ours, others', broken, old and new."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import fake_models
from patterns import waves

from ultragen.runs.compare import compare
from ultragen.runs.recipe import LARGEST, carried, read_recipe
from ultragen.runs.request import Request
from ultragen.video import encode_video

REQUEST = Request("a calm lake; a=b # \\ 'ein See' 🏔️", num_frames=1, num_inference_steps=1, seed=7)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return compare(REQUEST, fake_models(), tmp_path_factory.mktemp("runs"))


def test_every_clip_carries_what_its_metadata_tells(result):
    told = read_recipe(result.metadata_path)
    assert told.request == Request.from_metadata(result.metadata)
    assert told.fingerprint == "0" * 64
    assert told.differs(fake_models()) == ""
    for clip in (result.native, result.upscaled, result.side_by_side):
        assert read_recipe(clip) == told


def test_a_clip_carries_neither_times_nor_folders(result):
    metadata = json.loads(json.dumps(result.metadata))
    metadata["request"]["upscaler"] = "/home/someone/x4.pth"
    text = carried(metadata)
    assert set(json.loads(text)) == {"made_by", "request", "model"}
    assert json.loads(text)["request"]["upscaler"] == "x4.pth"
    assert metadata["request"]["upscaler"] == "/home/someone/x4.pth"


def test_old_metadata_without_a_noise_means_independent_noise(result, tmp_path):
    metadata = json.loads(json.dumps(result.metadata))
    del metadata["request"]["noise"]
    (tmp_path / "old.json").write_text(json.dumps(metadata))
    assert read_recipe(tmp_path / "old.json").request.noise == "independent"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", "{", "is broken: it is no JSON at line 1"),
        ("a.json", "[" * 100_000, "is broken"),
        ("a.json", "\xff\x00", "is broken"),
        ("a.json", "[]", "is of another program: it holds a list"),
        ("a.json", '{"nodes": [], "links": []}', "another program: it holds 'nodes', 'links'"),
        ("a.json", '{"request": 3}', "another program"),
        ("a.json", '{"request": {"prompt": "x"}}', "base_native are missing"),
        ("a.json", "x" * (LARGEST + 1), "far more than metadata"),
        ("a.png", "", "is no .json, .mp4 or .webm file"),
    ],
)
def test_files_that_are_no_metadata_are_refused_with_the_way_out(tmp_path, name, text, says):
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=says) as told:
        read_recipe(tmp_path / name)
    assert "Choose the metadata.json" in str(told.value) or "'request' must hold" in str(told.value)


def test_settings_that_are_not_known_here_are_named(result, tmp_path):
    metadata = json.loads(json.dumps(result.metadata))
    metadata["made_by"] = "UltraGen 99"
    metadata["request"]["warp"] = 9
    (tmp_path / "new.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"UltraGen 99\): 'request' holds 'warp'.* Update"):
        read_recipe(tmp_path / "new.json")


def test_clips_of_other_programs_are_refused_with_the_way_out(tmp_path):
    plain = encode_video(waves(), tmp_path / "plain.mp4", 12)
    other = encode_video(waves(), tmp_path / "other.mp4", 12, "made with love")
    for clip in (plain, other):
        with pytest.raises(ValueError, match=r"carries no settings of UltraGen.* Choose"):
            read_recipe(clip)
    comfy = encode_video(waves(), tmp_path / "comfy.mp4", 12, '{"prompt": {"3": {}}}')
    with pytest.raises(ValueError, match="another program: it holds 'prompt'"):
        read_recipe(comfy)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(plain.read_bytes()[:20])
    playlist = tmp_path / "list.mp4"  # some formats name files, which ffmpeg would open
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\n{plain}\n#EXT-X-ENDLIST\n")
    for broken in (cut, playlist):
        with pytest.raises(OSError, match="is not a video that can be read"):
            read_recipe(broken)
    with pytest.raises(OSError, match="there is no file"):
        read_recipe(Path("none.mp4"))
