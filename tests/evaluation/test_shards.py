"""Parts of an evaluation that processes share."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from commands import ultragen
from evaluations import ROWS, RUN, numbers

from ultragen.evaluation.evaluate import RESULTS
from ultragen.evaluation.shard import Shard
from ultragen.evaluation.store import Store


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
