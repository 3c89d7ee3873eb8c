"""What fills docs/hardware.md: the parts as toys, the search, the tables."""

from __future__ import annotations

import json
import re
from pathlib import Path

import hardware
import hardware_frames
import hardware_plan
import hardware_tables
import pytest
import torch
from hardware_results import Results, read_results
from wan_files import make_wan

from ultragen.estimates.memory import GROWING_VALUES_PER_TOKEN, WAN_PARAMETERS
from ultragen.hardware import GIB
from ultragen.weights.random import BLOCK, SIZES, Noise, builders

ONCE = ("tokens", "memory", "frames")


def run(*arguments: object) -> int:
    return hardware.main([str(argument) for argument in arguments])


@pytest.fixture
def doc(tmp_path) -> Path:
    """The document without its tables."""
    path, text = tmp_path / "hardware.md", hardware_tables.DOC.read_text(encoding="utf-8")
    marks = r"(<!-- (\w+) -->).*?(<!-- end of \2 -->)"
    path.write_text(re.sub(marks, r"\1\n\3", text, flags=re.DOTALL), encoding="utf-8")
    return path


def test_parts_without_files(tmp_path, doc, capsys):
    file = tmp_path / "found.json"
    assert run("--tiny", "--json", file, "--only", *ONCE) == 0
    found = read_results([file])["parts"]
    assert set(found) == set(ONCE)
    assert list(found["memory"]["entries"]) == [
        f"{size}, {placement}"
        for placement in ("whole", "in turn")
        for size in ("64×96×5", "64×128×5")
    ]
    for entry in found["frames"]["entries"].values():
        assert (entry["frames"], entry["ended_by"]) == (5, "nothing")
    capsys.readouterr()

    before = file.read_text()
    assert run("--tiny", "--json", file, "--only", *ONCE) == 0
    assert file.read_text() == before, "what is there is not measured again"
    assert run("--tiny", "--json", file, "--only", "tokens", "--again") == 0
    assert "tokens, 64×96×5: {" in capsys.readouterr().out

    assert run("--render", file, "--markdown", doc) == 0
    text = doc.read_text()
    assert "| 64×96, 5 frames | in turn |" in text
    assert text.count("Not measured yet.") == 2
    assert run("--render", file, "--markdown", doc) == 0
    assert doc.read_text() == text

    content = json.loads(file.read_text())
    content["parts"] = {"tokens": content["parts"]["tokens"]}
    file.write_text(json.dumps(content))
    assert run("--render", file, "--markdown", doc) == 0
    assert doc.read_text() == text, "a file of one part leaves the others' tables alone"


@pytest.mark.slow
def test_parts_that_read_files(tmp_path, doc):
    files, found = make_wan(tmp_path / "wan"), tmp_path / "found.json"
    options = ("--wan", files.base, "--ultragen", files.ultragen)
    assert run("--tiny", "--json", found, "--only", *hardware.NEED_FILES, *options) == 0
    parts = read_results([found])["parts"]
    [run_entry] = parts["runs"]["entries"].values()
    assert set(run_entry["seconds"]) == {"text", "denoise", "decode", "encode"}
    assert run_entry["whole"] > run_entry["loading"] > 0
    assert run_entry["file_bytes"] > 0
    assert set(parts["coefficients"]["entries"]) == {"wan", "embedded"}
    assert run("--render", found, "--markdown", doc) == 0
    text = doc.read_text()
    assert "1 step timed, times 30" in text
    assert "WAN_CUDA = Coefficients(" in text


def test_missing_files_are_asked_for():
    with pytest.raises(ValueError, match="runs, dense, coefficients need files: give --wan"):
        run("--tiny")


def test_a_part_that_fails_is_said(tmp_path, monkeypatch, capsys):
    def broken(*arguments: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(hardware, "measure_tokens", broken)
    file = tmp_path / "found.json"
    assert run("--tiny", "--json", file, "--only", "tokens", "frames") == 1
    assert "Left out: tokens: too little memory" in capsys.readouterr().err
    assert set(read_results([file])["parts"]) == {"frames"}


def test_measurements_of_another_machine_are_not_mixed(tmp_path):
    file = tmp_path / "found.json"
    Results(file, "cpu").add("tokens", "a", {})
    content = json.loads(file.read_text())
    content["parts"]["tokens"]["machine"]["card"] = "another card"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"'tokens' from another card .* choose another --json"):
        run("--tiny", "--json", file, "--only", "tokens")
    Results(file, "cpu").check("memory")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"parts": {"tokens": {}}}'])
def test_other_files_are_refused(content, tmp_path):
    file = tmp_path / "other.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"other\.json is not the JSON of"):
        read_results([file])


@pytest.mark.parametrize("most", [0, 1, 7, 30])
@pytest.mark.parametrize("guess", [-5, 0, 4, 99])
def test_the_search_finds_the_largest(most, guess):
    for limit in range(-1, most + 1):
        asked: list[int] = []

        def fit(n: int, limit: int = limit, asked: list[int] = asked) -> bool:
            asked.append(n)
            return n <= limit

        assert hardware_frames.largest(fit, guess, most) == limit
        assert len(asked) == len(set(asked))
        assert all(0 <= n <= most for n in asked)


def test_a_good_guess_needs_two_trials():
    asked: list[int] = []
    hardware_frames.largest(lambda n: asked.append(n) or n <= 7, 7, 30)
    assert asked == [7, 8]


def test_what_fails_first_ends_the_clip(monkeypatch):
    """A card that takes 9 frames of the transformer and 5 of the decoding."""
    trials = hardware_frames.Trials(None, None, WAN_PARAMETERS.scaled(2), 5e4, "cpu")
    held: list[int] = []

    def attempt(call, clip, n, card, beside):
        held.append(beside)
        return n <= (2 if call == trials.forward else 1)

    monkeypatch.setattr(trials, "attempt", attempt)
    entry = trials.longest(22 * GIB, hardware_plan.sized("4k", 121))
    assert entry == {"frames": 5, "placement": "in turn", "ended_by": "decoding"}
    sizes = trials.sizes
    assert set(held) == {sizes.transformer, sizes.vae}


def measured(**parts: dict) -> dict:
    machine = {"card": "Card", "memory_bytes": 80 * GIB, "versions": {"torch": "2.11.0"}}
    return {
        name: {"machine": machine, "date": "2026-11-25", "entries": entries}
        for name, entries in parts.items()
    }


def test_the_rule_is_fitted_to_the_larger_clips():
    def entry(tokens: int, size: int | None) -> dict:
        return {"tokens": tokens, "peak_bytes": size}

    entries = {"a": entry(10, 1000), "b": entry(50, 2000), "c": entry(100, 3900)}
    assert hardware_tables.fitted_values(entries) == 20
    assert hardware_tables.fitted_values({"a": entry(10, None)}) is None
    assert hardware_tables.fitted_values({}) is None


def test_the_tables_show_rule_beside_measurement():
    clip = {"resolution": "1080p", "height": 1088, "width": 1920, "frames": 81}
    tokens = {**clip, "tokens": 171_360, "peak_bytes": 8 * GIB, "reserved_bytes": 9 * GIB}
    lines = hardware_tables.tokens_table(measured(tokens={"a": tokens}))
    rule = 2 * GROWING_VALUES_PER_TOKEN * 171_360 / GIB
    assert lines[2] == f"| 1088×1920, 81 frames | 171,360 | 8.0 | 50.1 | {rule:.1f} |"

    card = {"card": "24 GB", "card_bytes": 22 * GIB, "most": 121, "placement": "in turn"}
    longest = {**clip, **card, "frames": 113, "ended_by": "transformer"}
    lines = hardware_tables.frames_table(measured(frames={"a": longest}))
    assert lines[2].startswith("| 1080p | 113 (in turn, transformer); rule ")


def test_the_dense_model_is_counted_by_its_steps():
    clip = {"resolution": "1080p", "height": 1088, "width": 1920, "frames": 81}
    ours = {
        **clip,
        "steps": 15,
        "placement": "whole",
        "loading": 20.0,
        "seconds": {"text": 1.5, "denoise": 100.0, "decode": 20.0, "encode": 5.0},
    }
    dense = {
        **clip,
        "loading": 10.0,
        "step_seconds": 20.0,
        "steps_timed": 2,
        "text_seconds": 1.0,
        "decode_seconds": 39.0,
        "tiled": True,
    }
    _, _, first, second = hardware_tables.runs_table(measured(runs={"a": ours}, dense={"a": dense}))
    assert "| UltraGen, 15 steps, times 2, whole | 20.0 | 1.5 | 200 | 20.0 | 5.0 | 222 |" in first
    times = "1.0 | 600 (30 × 20.0) | 39.0 (tiles) | – | 640 | 2.89×"
    assert f"| diffusers' Wan, 2 steps timed, times 30 | 10.0 | {times} |" in second


def test_a_document_without_marks_is_refused():
    with pytest.raises(ValueError, match="must hold <!-- memory -->"):
        hardware_tables.between_marks("text", "memory", "body")


# Random weights


def test_noise_goes_on_where_it_ended_and_starts_again():
    first, noise = Noise(1), Noise(1)
    long = torch.empty(BLOCK + 7, dtype=torch.bfloat16)
    first.fill(long, 1.0)
    assert torch.equal(long[:7], long[BLOCK:])
    short = torch.empty(7, dtype=torch.bfloat16)
    noise.fill(short, 2.0)
    assert torch.equal(short, 2 * long[:7])
    noise.fill(short, 1.0)
    assert torch.equal(short, long[7:14])


def test_what_is_computed_is_not_random():
    """Rotary positions are no weights."""
    build = builders(SIZES["tiny"])["transformer"]
    model, expected = Noise(0).weigh(build), dict(build().named_buffers())
    found = dict(model.named_buffers())
    assert found.keys() == expected.keys() and found
    assert all(torch.equal(found[name], expected[name]) for name in found)
