"""Captions are found as people keep them, and whatever does not match is told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from ultragen.dataset.sources import LeftOut, Source, find_sources

ULTRAVIDEO = (
    "Brief Description", "Detailed Description", "Background", "Theme Description", "Style",
    "Shot Type", "Camera Movement", "Lighting", "Video Atmosphere", "Summarized Description",
)  # fmt: skip


def folder_of(folder: Path, *names: str) -> Path:
    """Empty files, and those below: what is in them is not looked at."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def captions(sources: list[Source]) -> dict[str, tuple[str, ...]]:
    return {source.name: source.captions for source in sources}


def reasons(left_out: list[LeftOut]) -> dict[str, str]:
    return {one.name: one.reason for one in left_out}


# Beside clips


def test_captions_lie_beside_clips(tmp_path: Path) -> None:
    folder_of(
        tmp_path, "a.mp4", "sub/b.MOV", "sub/c.png", "d.webm", "empty.mp4", "odd.mp4",
        ".hidden.mp4", ".cache/e.mp4", "._a.mp4", "notes.pdf",
    )  # fmt: skip
    (tmp_path / "a.txt").write_bytes("\ufeffein Fluß,\r\nzwei Zeilen \n".encode())
    (tmp_path / "sub/b.txt").write_text("b", encoding="utf-8")
    (tmp_path / "sub/c.TXT").write_text("c", encoding="utf-8")
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "odd.txt").write_bytes("Fluß".encode("latin-1"))
    (tmp_path / "lost.txt").write_text("a caption of nothing", encoding="utf-8")
    sources, left_out = find_sources(tmp_path)
    assert captions(sources) == {
        "a.mp4": ("ein Fluß,\nzwei Zeilen",), "sub/b.MOV": ("b",), "sub/c.png": ("c",),
    }  # fmt: skip
    assert sources[1].path == tmp_path / "sub/b.MOV"
    assert reasons(left_out) == {
        "d.webm": "no caption",
        "empty.mp4": "no caption",
        "odd.mp4": "caption is not UTF-8",
        "lost.txt": "caption without a clip",
    }


# In tables


def write_table(path: Path, rows: list[dict], mark: str = "") -> Path:
    if path.suffix == ".csv":
        quoted = [
            [f'"{str(v or "").replace(chr(34), chr(34) * 2)}"' for v in r.values()] for r in rows
        ]
        lines = [",".join(rows[0]), *(",".join(row) for row in quoted)]
        path.write_bytes((mark + "\r\n".join(lines) + "\r\n").encode())
    elif path.suffix == ".jsonl":
        path.write_text(mark + "\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(mark + json.dumps(rows), encoding="utf-8")
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize(
    ("path_column", "text_column"),
    [
        ("video", "prompt"),
        ("video_path", "caption"),
        ("file_name", "text"),
        ("media_path", "Caption"),
    ],
)
def test_captions_stand_in_a_table(
    tmp_path: Path, suffix: str, mark: str, path_column: str, text_column: str
) -> None:
    folder_of(tmp_path, "a.mp4", "sub/b.mp4", "c.mp4", "d.mp4", "e.mp4")
    elsewhere = folder_of(tmp_path / "elsewhere", "f.mp4") / "f.mp4"
    texts = {
        "a.mp4": 'commas, "quotes"\nand lines; Fluß \u2028',
        "sub\\b.mp4": "written on Windows",
        "./c.mp4": "c",
        str(elsewhere): "an absolute path",
        "c.mp4": "c again",
        "d.mp4": " ",
        "gone.mp4": "a clip that is gone",
        "": "no path",
    }
    rows = [{"id": 1, path_column: path, text_column: text} for path, text in texts.items()]
    write_table(tmp_path / f"metadata{suffix}", rows, mark)
    sources, left_out = find_sources(tmp_path)
    assert captions(sources) == {
        "a.mp4": ('commas, "quotes"\nand lines; Fluß',),
        "c.mp4": ("c",),
        "elsewhere/f.mp4": ("an absolute path",),
        "sub/b.mp4": ("written on Windows",),
    }
    assert [(one.name, one.reason) for one in left_out] == [
        ("c.mp4", "listed twice"),
        ("d.mp4", "no caption"),
        ("e.mp4", "not in the table"),
        ("gone.mp4", "file missing"),
        ("row 8", "row without a path"),
    ]


def test_paths_may_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", "a.mp4")
    folder_of(tmp_path, "other/b.mp4")
    write_table(folder / "metadata.csv", [{"video": "../other/b.mp4", "prompt": "b"}])
    [source], _ = find_sources(folder)
    assert source.path == tmp_path / "other/b.mp4" and source.name == source.path.as_posix()


def test_a_folder_may_be_named_relative_to_here(tmp_path: Path, monkeypatch) -> None:
    write_table(
        folder_of(tmp_path, "sub/a.mp4") / "metadata.csv", [{"video": "sub/a.mp4", "text": "a"}]
    )
    monkeypatch.chdir(tmp_path)
    [source], left_out = find_sources(Path("."))
    assert (source.name, source.path, left_out) == ("sub/a.mp4", Path("sub/a.mp4"), [])
    [source], left_out = find_sources(tmp_path / "sub" / "..")
    assert (source.name, left_out) == ("sub/a.mp4", [])


def test_ultravideos_table_is_read(tmp_path: Path) -> None:
    folder_of(tmp_path, "short/clip_1.mp4", "long/clip.2.mp4", "clip_3.mp4")
    rows = [
        {"clip_id": name, "fps": 30.0, **{column: f"{column} {n}" for column in ULTRAVIDEO}}
        for n, name in enumerate(("clip_1", "clip.2", "clip_3.mp4", "clip_4"), start=1)
    ]
    rows[2]["Style"] = ""
    write_table(tmp_path / "short.csv", rows)
    sources, left_out = find_sources(tmp_path)
    assert captions(sources) == {
        "clip_3.mp4": ("Summarized Description 3",),
        "long/clip.2.mp4": ("Summarized Description 2",),
        "short/clip_1.mp4": ("Summarized Description 1",),
    }
    assert reasons(left_out) == {"clip_4": "file missing"}
    sources, _ = find_sources(tmp_path, ("Style", "Brief Description"))
    assert captions(sources)["short/clip_1.mp4"] == ("Style 1", "Brief Description 1")
    assert captions(sources)["clip_3.mp4"] == ("Brief Description 3",)


def test_a_row_may_hold_several_captions(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.mp4", "b.mp4")
    rows = [{"video": "a.mp4", "text": ["one", " ", "two"]}, {"video": "b.mp4", "text": [None, 3]}]
    (tmp_path / "metadata.json").write_text(json.dumps(rows), encoding="utf-8")
    sources, left_out = find_sources(tmp_path)
    assert captions(sources) == {"a.mp4": ("one", "two")}
    assert reasons(left_out) == {"b.mp4": "no caption"}


def test_which_table_is_taken(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.mp4")
    for name in ("metadata", "train", "test"):
        write_table(tmp_path / f"{name}.jsonl", [{"video": "a.mp4", "text": name}])

    def text(**given) -> str:
        [source], _ = find_sources(tmp_path, **given)
        return source.captions[0]

    assert text() == "metadata"
    assert text(table=tmp_path / "test.jsonl") == "test"
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match=r"several tables: test\.jsonl, train\.jsonl"):
        find_sources(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    assert text() == "train"
    # What lies beside a clip counts more than a table of which nobody says what it is.
    (tmp_path / "a.txt").write_text("beside", encoding="utf-8")
    assert text() == "beside"
    write_table(tmp_path / "METADATA.csv", [{"video": "a.mp4", "text": "metadata again"}])
    assert text() == "metadata again"


# What ends a run


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("metadata.csv", b"path,prompt\na.mp4,a\n", "clips' paths .* it has path, prompt"),
        ("metadata.csv", b"video,words\na.mp4,a\n", "captions: choose from video, words"),
        ("metadata.csv", b"video,prompt\na.mp4,\n", "names no clip with a caption: no caption"),
        ("metadata.csv", b"video,prompt\n", "names no clip with a caption: it has no rows"),
        ("metadata.csv", b"video,prompt\nz.mp4,a\n", "names no clip with a caption: file missing"),
        ("metadata.csv", b'video,prompt\na.mp4,"a\n', "damaged near line 2"),
        ("metadata.csv", b"", "it has no columns"),
        ("metadata.csv", "video,prompt\na.mp4,Fluß\n".encode("latin-1"), "not UTF-8"),
        ("metadata.csv", "video,prompt\na.mp4,a\n".encode("utf-16")[:-1], "not UTF-16"),
        ("metadata.jsonl", b'{"video": "a.mp4"}\n{"video": \n', "damaged in line 2"),
        ("metadata.json", b'[{"video": ', "is damaged"),
        ("metadata.json", b'{"a.mp4": "a"}', "must hold a list of objects"),
        ("metadata.json", b'["a.mp4"]', "must hold a list of objects"),
        ("metadata.parquet", b"PAR1 and no more", "damaged or no Parquet file"),
    ],
)  # fmt: skip
def test_tables_that_can_not_be_used_are_refused(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    folder_of(tmp_path, "a.mp4")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        find_sources(tmp_path)


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    write_table(folder_of(tmp_path, "a.mp4") / "metadata.csv", [{"video": "a.mp4", "text": "a"}])
    with pytest.raises(ValueError, match="no column 'Style'; it has video, text"):
        find_sources(tmp_path, ["text", "Style"])


def test_folders_without_clips_or_captions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        find_sources(tmp_path / "none")
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    with pytest.raises(ValueError, match="no clips"):
        find_sources(tmp_path)
    folder_of(tmp_path, "b.mp4")
    with pytest.raises(ValueError, match=r"none of the 1 clips .* has a caption.*metadata\.csv"):
        find_sources(tmp_path)
    with pytest.raises(ValueError, match="no table to take the column 'Style' from"):
        find_sources(tmp_path, ["Style"])
    with pytest.raises(ValueError, match="can't be read: No such file"):
        find_sources(tmp_path, table=tmp_path / "train.csv")
    with pytest.raises(ValueError, match=r"not a table: those end in \.csv"):
        find_sources(tmp_path, table=tmp_path / "a.txt")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_caption_that_can_not_be_read_leaves_out_its_clip(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.mp4", "b.mp4", "b.txt")
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    (tmp_path / "b.txt").chmod(0)
    _, left_out = find_sources(tmp_path)
    assert reasons(left_out) == {"b.mp4": "caption can't be read"}
