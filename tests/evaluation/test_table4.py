"""`evaluate --set table4`: the paper's ablations, from a folder of models by row."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import one_line, ultragen
from evaluations import RUN
from PIL import Image

from ultragen.evaluation.rows import SETS, rows_of
from ultragen.evaluation.scores import ClipScores, markdown_table, score_row
from ultragen.presets import Resolution
from ultragen.runs import loading, request

ROWS = tuple(row.key for row in SETS["table4"])
ABLATIONS = ROWS[:-1]


@pytest.fixture
def folder(tmp_path):
    """A model for each row, that loads as what its index says."""

    def make(*names: str, **distilled_steps: int):
        for name in names:
            (tmp_path / "models" / name).mkdir(parents=True)
            index = {"_class_name": "UltraGenPipeline"}
            if steps := distilled_steps.get(name.replace("-", "_")):
                index["distilled_steps"] = steps
            (tmp_path / "models" / name / "model_index.json").write_text(json.dumps(index))
        return tmp_path / "models"

    return make


@pytest.fixture
def loaded(fake, monkeypatch) -> list[str]:
    """Names under which models were loaded; a model's clips say which one it is."""
    sizes = {**request.RESOLUTIONS, "tiny": Resolution("tiny", 128, 288, 120)}
    monkeypatch.setattr(request, "RESOLUTIONS", sizes)
    names: list[str] = []

    def load(name=None):
        names.append(name)
        return replace(fake, fingerprint=str(name))

    monkeypatch.setattr(loading, "load_models", load)
    monkeypatch.setattr("ultragen.runs.choice._choose_folder", lambda path: chosen(path, fake))
    return names


def chosen(path, fake):
    from ultragen.runs.choice import Choice

    return Choice(str(path), fake.preset, "", "")


def test_the_paper_s_rows():
    assert ROWS == (
        "full", "without-global", "without-crossing", "without-hierarchical", "without-lora",
        "swin", "real",
    )  # fmt: skip


def test_table4_writes_a_table_json_and_a_sheet(loaded, folder, tmp_path, capsys):
    models, out = folder(*ABLATIONS), tmp_path / "table4"
    run = (*RUN, out, "--set", "table4", "--models", models)
    assert ultragen(*run) == 0, capsys.readouterr().err
    assert sorted(loaded) == sorted(str(models / name) for name in ABLATIONS)
    lines = (out / "table.md").read_text().splitlines()
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert "seams ↓" in head and "prompt ↑" in head and head[-1] == "s a clip"
    titles = [line.split("|")[1].strip() for line in lines[2 : 2 + len(ROWS)]]
    assert titles == [row.title for row in SETS["table4"]]
    content = json.loads((out / "results.json").read_text())
    assert [row["key"] for row in content["rows"]] == list(ROWS)
    assert content["borders"] == [5] and "- Seams: rank of the borders on" in "\n".join(lines)
    assert all(0 <= row["seams"]["value"] <= 1 for row in content["rows"])
    assert content["models"] == {
        "evaluated": str(models / "full"),
        **{name: str(models / name) for name in ABLATIONS[1:]},
    }
    assert np.asarray(Image.open(out / "contact_sheet.jpg")).std() > 5


def test_rows_without_a_model_are_left_out(folder):
    models = folder("swin", "full")
    assert [row.key for row in rows_of("table4", models=models)] == ["full", "swin", "real"]


@pytest.mark.parametrize(
    ("names", "distilled", "arguments", "words"),
    [
        (("full",), {}, ("--set", "table4"), ["--models FOLDER"]),
        (("full",), {}, ("--models", "models"), ["--set table1", "leave --models out"]),
        (("swin",), {}, ("--set", "table4", "--models", "models"), ["swin", "must be full"]),
        ((), {}, ("--set", "table4", "--models", "models"), ["nothing", "must be full"]),
        (
            ("full", "without_global"),
            {},
            ("--set", "table4", "--models", "models"),
            ["without_global", "without-global"],
        ),
        (
            ("full", "swin"),
            {"full": 8},
            ("--set", "table4", "--models", "models"),
            ["full in 8", "swin is not", "Distil all"],
        ),
        (
            ("full",),
            {},
            ("--set", "table4", "--models", "models", "--teacher", "models"),
            ["leave --teacher out"],
        ),
    ],
)
def test_bad_folders(folder, tmp_path, monkeypatch, capsys, names, distilled, arguments, words):
    folder(*names, **distilled)
    monkeypatch.chdir(tmp_path)
    assert ultragen("evaluate", "--out", tmp_path / "out", *arguments) == 2
    line = one_line(capsys)
    assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


def test_a_frame_that_is_too_small_for_seams(loaded, folder, tmp_path, capsys, monkeypatch):
    small = Resolution("tiny", 128, 160, 120)
    monkeypatch.setattr(request, "RESOLUTIONS", {**request.RESOLUTIONS, "tiny": small})
    models = folder("full")
    run = (*RUN, tmp_path / "out", "--set", "table4", "--models", models)
    assert ultragen(*run) == 2
    assert "5 columns of tokens" in one_line(capsys)


def scored(seam, horizons):
    return ClipScores(1.0, 2.0, None, None, None, None, {}, seam=seam, horizons=horizons,
                      features={"net": torch.zeros(1)})  # fmt: skip


def test_horizons_are_averaged_over_the_clips_in_which_they_are_counted():
    row = score_row("full", "Full", [scored(0.2, 1), scored(0.4, None), scored(0.9, 2)], {})
    assert row.horizons.value == 1.5 and row.seams.value == pytest.approx(0.5)
    none = score_row("full", "Full", [scored(None, None)] * 2, {})
    assert none.horizons is None and none.seams is None
    assert "| horizons |" in markdown_table([none, row])
    assert "horizons" not in markdown_table([none]) and "seams" not in markdown_table([none])
