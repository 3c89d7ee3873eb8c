"""The script that trains and measures the paper's ablations: which commands, in what order."""

from __future__ import annotations

import json

import pytest
import table4 as script

from ultragen.cli.console import BAD_INPUT


def call(tmp_path, *arguments):
    start = tmp_path / "start"
    return script.main([str(tmp_path / "out"), "--start-from", str(start), *map(str, arguments)])


@pytest.fixture
def started(tmp_path):
    """What `train base` would have left."""
    (tmp_path / "out" / "base" / "model" / "base_transformer").mkdir(parents=True)
    (tmp_path / "out" / "base" / "model" / "base_transformer" / "trained").touch()


def write_table(tmp_path, resolution, seed, distances):
    """A table as `evaluate` writes it, with the distance of each row by ImageNet's network."""
    folder = tmp_path / "out" / "tables" / f"{resolution}-seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)

    def estimate(value):
        return {"value": value, "low": value - 1, "high": value + 1}

    rows = [
        {
            "key": key,
            "hd_fvd": {"world": estimate(500 - value), "imagenet": estimate(value)},
            "following": estimate(0.5), "seams": estimate(0.6), "horizons": None,
            "hd_mse": estimate(100), "seconds": None if key == "real" else 1.5,
        }
        for key, value in distances.items()
    ]  # fmt: skip
    (folder / "results.json").write_text(json.dumps({"rows": rows}))


DISTANCES = {
    "full": 50, "without-global": 80, "without-crossing": 56, "without-hierarchical": 70,
    "without-lora": 47, "swin": 90, "real": 4,
}  # fmt: skip


def test_all_rows_are_trained_alike_and_measured(tmp_path, ran, started):
    assert call(tmp_path, "--gpus", 0, 1, "--clips", 8, "--seeds", 1) == 0
    assert ran[0] == ("0", ran[0][1]) and ran[0][1][:2] == ["train", "base"]
    trained = [words for _, words in ran if words[:2] == ["train", "ultragen"]]
    assert len(trained) == len(script.ROWS) == 6
    told = {}
    for words in trained:
        out = words[words.index("--out") + 1]
        own = script.ROWS[out.rpartition("/")[2]]
        rest = words[2 + len(own) :]
        told[out] = [word for word in rest if word != out]
        assert words[2 : 2 + len(own)] == [str(word) for word in own]
    assert len(told) == 6
    assert all(rest == told[out] for rest in told.values()), "but for the attention they are alike"
    assert "--render-every" in told[out] and "--start-from" not in told[out]
    for row in script.ROWS:
        model = tmp_path / "out" / "training" / "seed-0" / row / "model"
        assert not (model / "transformer").exists(), "the base model is to be converted"
        assert (model / "base_transformer" / "trained").exists()
        assert (model / "vae").is_dir()
    kinds = [words[0] for _, words in ran]
    assert kinds.index("evaluate") > max(i for i, kind in enumerate(kinds) if kind == "assemble")
    assert {gpu for gpu, words in ran if words[:2] == ["train", "ultragen"]} <= {"0", "1"}
    measured = [words for _, words in ran if words[0] == "evaluate"]
    whole = [words for words in measured if "--shard" not in words]
    assert len(whole) == 2 and measured[-2:] == whole
    assert {words[words.index("--resolution") + 1] for words in whole} == {"1080p", "544p"}
    for words in measured:
        assert words[words.index("--models") + 1] == str(tmp_path / "out" / "models" / "seed-0")
        assert words[words.index("--steps") + 1] == "30"


def test_full_and_the_closest_rows_get_another_seed(tmp_path, ran, started, capsys):
    assert call(tmp_path) == 0
    assert "Seed 1: full and the 2 rows closest to it" in capsys.readouterr().out
    write_table(tmp_path, "1080p", 0, DISTANCES)
    write_table(tmp_path, "544p", 0, DISTANCES)
    ran.clear()
    assert call(tmp_path) == 0
    trained = [words for _, words in ran if words[:2] == ["train", "ultragen"]]
    assert all(words[words.index("--seed") + 1] == "1" for words in trained)
    names = {words[words.index("--out") + 1].rpartition("/")[2] for words in trained}
    assert names == {"full", "without-crossing", "without-lora"}
    models = {words[words.index("--models") + 1] for _, words in ran if words[0] == "evaluate"}
    assert models == {str(tmp_path / "out" / "models" / "seed-1")}
    ran.clear()
    assert call(tmp_path) == 0 and ran == []


def test_other_rows_may_be_named(tmp_path, ran, started):
    assert call(tmp_path, "--repeat", "swin", "--only", "train") == 0
    second = [words for _, words in ran if "seed-1" in " ".join(words)]
    trained = [words for words in second if words[0] == "train"]
    assert [words[words.index("--out") + 1].rpartition("/")[2] for words in trained] == [
        "full",
        "swin",
    ]


def test_all_seeds_stand_in_one_table_beside_the_paper(tmp_path, ran, started):
    write_table(tmp_path, "1080p", 0, DISTANCES)
    write_table(tmp_path, "1080p", 1, {"full": 52, "without-lora": 49, "real": 4})
    given = ("--resolutions", "1080p", "--base-minutes", 0)
    assert call(tmp_path, *given, "--only", "measure") == 0
    lines = (tmp_path / "out" / "table4.md").read_text().splitlines()
    assert lines[0] == "## 1080p"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:] if line]
    assert [(row[0], row[1]) for row in cells] == [
        ("Full", "0"), ("Full", "1"), ("Without global", "0"), ("Without crossing windows", "0"),
        ("Without hierarchical", "0"), ("Without low-rank updates", "0"),
        ("Without low-rank updates", "1"), ("Swin's shift in place of K + 1", "0"),
        ("Real clips", "0"),
    ]  # fmt: skip
    assert cells[1][3] == "52.0 [51.0, 53.0]"
    assert cells[0][-1] == "214.1, 0.2654" and cells[-1][-2:] == ["–", "–"]
    assert cells[0][6] == "–"


def test_all_rows_are_distilled_or_none(tmp_path, ran, started):
    """By the same teacher's guidance and minutes; the base model's student stays."""
    (tmp_path / "start" / "base_transformer" / "student").touch()
    assert call(tmp_path, "--seeds", 1, "--distill-minutes", 3) == 0
    measured = [words for _, words in ran if words[0] == "evaluate"]
    assert measured and not any("--steps" in words or "--guidance" in words for words in measured)
    distilled = [words for _, words in ran if words[:2] == ["train", "distill"]]
    assert len(distilled) == len(script.ROWS)
    model = tmp_path / "out" / "training" / "seed-0" / "swin" / "model"
    assert (model / "distilled" / "base_transformer" / "student").exists()
    assert (model / "base_transformer" / "trained").exists()


def test_rows_that_started_from_another_base_are_not_gone_on_with(tmp_path, ran, started, capsys):
    assert call(tmp_path, "--only", "train", "--seeds", 1) == 0
    ran.clear()
    assert call(tmp_path, "--only", "train", "--seeds", 1, "--base-minutes", 7) == BAD_INPUT
    assert "choose another OUT" in capsys.readouterr().err
    assert [words[:2] for _, words in ran] == [["train", "base"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--rows", "swin"), "--rows needs full"), (("--seeds", 0), "at least 1, not 0")],
)
def test_bad_rows_and_seeds(tmp_path, ran, capsys, arguments, words):
    assert call(tmp_path, *arguments) == BAD_INPUT
    assert words in capsys.readouterr().err and ran == []


def test_a_folder_without_a_model(tmp_path, ran, capsys):
    (tmp_path / "start" / "model_index.json").unlink()
    assert call(tmp_path) == BAD_INPUT
    assert "choose another --start-from" in capsys.readouterr().err


def test_a_dry_run_prints_and_changes_nothing(tmp_path, ran, capsys):
    assert call(tmp_path, "--dry-run", "--repeat", "swin") == 0
    assert ran == [] and not (tmp_path / "out").exists()
    printed = capsys.readouterr().out
    assert printed.count("train ultragen") == 8 and "--set table4" in printed
