"""Files of prompts as people and programs write them, and what can't be used of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ultragen.batch.prompt_files import Prompts, read_prompts
from ultragen.presets import EMBEDDED

TWO = ["a calm lake", "dunes, at\nnoon"]


def read(
    path: Path, name: str = "{index:05d}-{sample}", num_seeds: int = 1, **defaults: Any
) -> Prompts:
    return read_prompts(path, defaults, EMBEDDED, num_seeds, name)


def written(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(content.encode(encoding))
    return path


def asked(found: Prompts) -> list[tuple[str, int]]:
    assert not found.faults
    return [(clip.request.prompt, clip.request.seed) for clip in found.clips]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_text_in_each_encoding(tmp_path: Path, encoding: str, end: str) -> None:
    text = end.join(["a lake – at dawn", "", "  ", "dunes\u2028at noon", ""])
    found = read(written(tmp_path / "prompts.txt", text, encoding))
    assert asked(found) == [("a lake – at dawn", 0), ("dunes at noon", 1)]
    assert [clip.line for clip in found.clips] == [1, 4]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", 'Prompt,seed,scene\r\n"a ""calm"", lake",7,x\r\n\r\n"dunes\r\nat noon",,\r\n'),
        (
            "p.jsonl",
            '{"prompt": "a \\"calm\\", lake", "seed": 7, "scene": "x"}\n\n'
            '{"prompt": "dunes\\nat noon", "seed": null}\n',
        ),
        (
            "p.json",
            '[{"prompt_en": "a \\"calm\\", lake",\n"seed": "7", "scene": "x"},\n'
            '{"prompt_en": "dunes\\nat noon"}, {"prompt_en": " "}]',
        ),
    ],
)
def test_tables_in_each_encoding(tmp_path: Path, encoding: str, name: str, content: str) -> None:
    found = read(written(tmp_path / name, content, encoding))
    assert asked(found) == [('a "calm", lake', 7), ("dunes at noon", 1)]
    assert [clip.columns for clip in found.clips] == [{"scene": "x"}, {}]
    assert [clip.line for clip in found.clips] == ([2, 4] if name == "p.csv" else [1, 3])
    assert found.carried == ["scene"]


def test_parquet_with_gaps_as_pandas_writes_them(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"prompt": TWO, "seed": [7.0, float("nan")], "num_frames": [5, None]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet")
    found = read(tmp_path / "p.parquet")
    assert asked(found) == [("a calm lake", 7), ("dunes, at noon", 1)]
    assert [clip.request.num_frames for clip in found.clips] == [5, EMBEDDED.num_frames]


def test_a_row_has_settings_of_its_own(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a lake", "resolution": "1080P", "guidance_scale": "1.5", "windows": 4},
        {"prompt": "a lake", "num_inference_steps": 6, "negative_prompt": "rain",
         "cache": "taylor-2", "shift": "5", "solver": "euler", "aspect": "9:16", "fps": "24"},
    ]  # fmt: skip
    path = written(tmp_path / "p.json", json.dumps(rows))
    first, second = (clip.request for clip in read(path, num_frames=5, noise="independent").clips)
    assert (first.resolution, first.guidance_scale, first.windows) == ("1080p", 1.5, 4)
    assert (second.resolution, second.num_inference_steps) == ("544p", 6)
    assert (first.cache, second.cache) == ("off", "taylor-2")
    assert (second.shift, second.solver, second.aspect, second.fps) == (5.0, "euler", "9:16", 24)
    assert second.negative_prompt == "rain"
    assert {r.num_frames for r in (first, second)} == {5}
    assert {r.noise for r in (first, second)} == {"independent"}
    assert first.loras is None  # the machine's own


def test_several_seeds(tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", "prompt,seed\na lake,\na lake,50\na lake,\n")
    found = read(path, num_seeds=2, name="{index}-{sample}-{seed}", seed=10)
    assert [clip.name for clip in found.clips] == [
        "0-0-10", "0-1-11", "1-0-50", "1-1-51", "2-0-14", "2-1-15",
    ]  # fmt: skip


def test_names_hold_what_file_names_can(tmp_path: Path) -> None:
    rows = [{"prompt": "a lake: at/dawn?", "group": "x"}, {"prompt": "ж" * 500, "group": "y"}]
    path = written(tmp_path / "p.json", json.dumps(rows))
    found = read(path, name="{group}-{prompt:.40}")
    assert [clip.name for clip in found.clips] == ["x-a lake- at-dawn-", "y-" + "ж" * 40]


def test_all_that_can_not_be_used_is_told_with_its_line(tmp_path: Path) -> None:
    lines = [
        '{"prompt": "a lake"}',
        '{"prompt": "a lake", "num_frames": 18}',
        '{"prompt": ',
        '{"prompt": "a lake", "resolution": "8k"}',
        "",
        '{"seed": 3}',
        '["a lake"]',
        '{"prompt": "a lake", "seed": "x"}',
        '{"prompt": "a lake", "guidance_scale": []}',
        '{"prompt": "a lake", "loras": "{"}',
        '{"prompt": "a\\u0007lake"}',
    ]
    found = read(written(tmp_path / "p.jsonl", "\n".join(lines)))
    told = {fault.line: fault.reason for fault in found.faults}
    says = {
        2: "17 or 21", 3: "Expecting value", 4: "544p", 6: "prompt", 7: "no object",
        8: "whole number", 9: "guidance_scale", 10: "", 11: "U+0007",
    }  # fmt: skip
    assert list(told) == list(says)
    for line, word in says.items():
        assert word in told[line]


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        ("prompt,seed\na calm, blue lake,3\n", "{index}", "1 values more .* quotes"),
        ("prompt\na lake\nA LAKE\n", "{prompt}", "as the one of line 2"),
        ("prompt\n" + "a" * 251 + "\n", "{prompt}", "251 bytes, at most 250"),
        ("prompt,id\na lake,\n", "{id}", r"no value for \{id\}"),
        ("prompt\n.a\n", "{prompt}", "can't be called '.a'"),
        ("prompt\na\n", "{prompt:d}", "Unknown format code 'd'"),
        ('prompt\n"a lake\n', "{index}", "unexpected end of data"),
    ],
)
def test_what_can_not_be_used_of_a_table(
    tmp_path: Path, content: str, name: str, says: str
) -> None:
    found = read(written(tmp_path / "p.csv", content), name=name)
    [fault] = found.faults
    assert fault.line in (2, 3)
    assert re.search(says, fault.reason), fault.reason


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.txt", b"\n \n", "has no prompts"),
        ("p.csv", b"", "no column prompt or prompt_en; it has no columns"),
        ("p.csv", b"text;seed\na;3\n", "it has text;seed"),
        ("p.json", b'{"prompt": "a"}', "must hold a list of objects"),
        ("p.txt", "ok\nFluß\n".encode("latin-1"), "not UTF-8 in line 2"),
        ("p.docx", b"", "no file of prompts: those end in .txt"),
    ],
)
def test_files_that_can_not_be_used(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["clip", "{index", "{index}/{seed}", "{}", "{0}", "{index.real}"])
def test_names_that_can_not_be_used(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="can't be used"):
        read(written(tmp_path / "p.txt", "a lake"), name=name)
