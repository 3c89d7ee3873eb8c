"""Files are whole or not there, whatever fails and whoever else writes them."""

from __future__ import annotations

import json
import re
import tomllib
from multiprocessing import get_context
from pathlib import Path

import pytest
from paths import ROOT

from ultragen.files import (
    create_json,
    first_line,
    unique_directory,
    whole_file,
    write_json,
    write_text,
)

SIZE = 200_000


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "clip.part.mp4"
    with whole_file(path) as partial:
        assert partial.suffix == ".mp4" and partial.parent == path.parent
        partial.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("failure", [OSError, ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "settings.json"
    path.write_text("what was there")
    with pytest.raises(failure), whole_file(path) as partial:
        partial.write_text("half")
        raise failure
    assert path.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_names_may_be_as_long_as_they_can_be(tmp_path: Path) -> None:
    path = tmp_path / f"{'n' * 251}.txt"
    write_text(path, "×")
    assert path.read_bytes() == "×".encode()


def test_a_folder_that_takes_no_files_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match="taken"), whole_file(tmp_path / "taken" / "clip.mp4"):
        pytest.fail("the work has begun")


def write_often(write, path: Path, letter: str) -> None:
    for _ in range(20):
        write(path, {"text": letter * SIZE})


@pytest.mark.parametrize("write", [write_json, create_json])
def test_of_two_processes_one_file_stays_whole(tmp_path: Path, write) -> None:
    path = tmp_path / "settings.json"
    context = get_context("spawn")
    writers = [context.Process(target=write_often, args=(write, path, x)) for x in "ab"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(json.loads(path.read_text(encoding="utf-8"))["text"])
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= {"a" * SIZE, "b" * SIZE}
    assert len(seen) <= (1 if write is create_json else 2)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_there_is_not_created_again(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    create_json(path, {"first": "é"})
    create_json(path, {"second": 2})
    assert path.read_text(encoding="utf-8") == '{\n  "first": "é"\n}\n'


def test_directories_are_unique(tmp_path: Path) -> None:
    made = {unique_directory(tmp_path / "new", "A lake, <b>../at</b> dusk 🌄") for _ in range(20)}
    assert len(made) == 20
    for folder in made:
        assert folder.parent == tmp_path / "new"
        assert folder.name.startswith("A-lake-b-at-b-dusk-")


def test_a_name_that_is_cut_has_its_parts_one_hyphen_apart(tmp_path: Path) -> None:
    made = unique_directory(tmp_path, f"{'a' * 39} lake")  # pages know results by such names
    assert re.fullmatch("a{39}-[0-9a-f]{8}", made.name)


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="choose another output folder"):
        unique_directory(tmp_path / "file", "run")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one \n two"), "one "),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (OSError(" \n "), "OSError"),
    ],
)
def test_the_first_line_of_an_error(error: BaseException, line: str) -> None:
    assert first_line(error) == line


def test_what_messages_let_people_install_is_there() -> None:
    """The package is on no index: extras are installed from a clone."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = "".join(path.read_text() for path in (ROOT / "ultragen").rglob("*.py"))
    assert not re.findall(r"'ultragen\[\w+\]'", text)
    named = set(re.findall(r"pip install -e '\.\[(\w+)\]'", text))
    assert {"train", "spandrel"} <= named <= set(extras["optional-dependencies"])
