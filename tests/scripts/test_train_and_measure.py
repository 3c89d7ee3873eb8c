"""The script that trains, distils and measures: which commands, where, in what order."""

from __future__ import annotations

import train_and_measure as script


def call(tmp_path, *arguments):
    start = tmp_path / "start"
    return script.main([str(tmp_path / "out"), "--start-from", str(start), *map(str, arguments)])


def test_a_model_is_trained_distilled_put_together_and_measured(tmp_path, ran):
    assert call(tmp_path, "--gpus", 0, 1, "--clips", 8, "--clips-4k", 2) == 0
    names = [(gpu, words[0], words[1]) for gpu, words in ran]
    assert names[:4] == [
        ("0", "train", "ultragen"),
        ("0", "train", "distill"),
        ("", "assemble", str(tmp_path / "out" / "model")),
        ("", "assemble", str(tmp_path / "out" / "model")),
    ]
    assert [("--undistilled" in words) for _, words in ran[2:4]] == [False, True]
    student = tmp_path / "out" / "model" / "distilled" / "base_transformer"
    assert student.is_dir(), "the base model that it started from is a student already"
    shards = [(gpu, words) for gpu, words in ran[4:] if "--shard" in words]
    whole = [words for _, words in ran[4:] if "--shard" not in words]
    assert len(shards) == 2 * sum(table.processes for table in script.TABLES)
    assert len(whole) == len(script.TABLES)
    clips = [words for _, words in ran[4 : 4 + len(shards)]]
    assert all("--shard" in words for words in clips), "scores come last"
    assert {gpu for gpu, _ in shards} == {"0", "1"}
    for words in (words for _, words in shards):
        assert words[words.index("--clips") + 1] == ("2" if "4k" in words else "8")
        assert ("--teacher" in words) == ("distillation" in words)


def test_the_base_model_is_trained_beside_it_where_there_are_two_gpus(tmp_path, ran):
    given = ("--only", "train", "--base-minutes", 5)
    assert call(tmp_path, "--gpus", 0, 1, *given) == 0
    assert sorted(words[1] for gpu, words in ran if gpu == "1") == ["base", "base-distill"]
    ran.clear()
    assert call(tmp_path, "--gpus", 0, *given, "--seed", 1) == 0
    assert [words[1] for gpu, words in ran if gpu] == [
        "base",
        "base-distill",
        "ultragen",
        "distill",
    ]


def test_what_is_done_is_not_done_again(tmp_path, ran):
    assert call(tmp_path) == 0
    ran.clear()
    assert call(tmp_path) == 0
    assert ran == []
    assert call(tmp_path, "--only", "train", "--distill-minutes", 9) == 0
    assert ran[0][1][:2] == ["train", "distill"]
    assert [words[0] for _, words in ran] == ["train", "assemble", "assemble"]


def test_a_step_that_fails_names_its_log_and_is_made_again(tmp_path, ran, capsys):
    given = ("--only", "measure", "--tables", "table1-4k")
    assert call(tmp_path, *given) == 0
    ran.fails, failed = ran[-1][1], len(ran)
    (tmp_path / "out" / "done" / "table1-4k").unlink()
    assert call(tmp_path, *given) == 1
    assert "table1-4k failed: last line" in capsys.readouterr().err
    assert len(ran) == failed + 1, "the clips were there"
    ran.fails = None
    assert call(tmp_path, *given) == 0
    assert len(ran) == failed + 2


def test_a_folder_without_a_model_is_refused(tmp_path, ran, capsys):
    (tmp_path / "start" / "model_index.json").unlink()
    assert call(tmp_path) == 2
    assert "choose another --start-from" in capsys.readouterr().err
    assert ran == []


def test_a_dry_run_changes_nothing(tmp_path, ran, capsys):
    assert call(tmp_path, "--dry-run") == 0
    assert ran == [] and not (tmp_path / "out").exists()
    assert "python -m ultragen train ultragen" in capsys.readouterr().out
