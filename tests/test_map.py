"""`docs/map.md` names every file of the package, and none that is not there."""

from __future__ import annotations

import re

from paths import ROOT

PACKAGE = ROOT / "ultragen"
MAP = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
FOLDERS, QUESTIONS = MAP.split("## Ten questions\n")


def described() -> list[str]:
    """Files in the order of the map, as paths below `ultragen/`: those before the colon."""
    found = []
    for section in re.split(r"^## ", FOLDERS, flags=re.MULTILINE)[1:]:
        folder = section[1 : section.index("/`")].removeprefix("ultragen")
        for entry in re.findall(r"^- (.*?): ", section, re.MULTILINE | re.DOTALL):
            found += [f"{folder}/{name}".lstrip("/") for name in re.findall(r"`(.+?)`", entry)]
    return found


def test_every_file_has_a_line():
    files = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    files = {name for name in files if not name.endswith("__init__.py")}
    named = described()
    assert len(named) == len(set(named)), "a file is described twice"
    assert not files - set(named), "docs/map.md lacks these: add a line where they lie"
    assert not set(named) - files, "docs/map.md describes these, which are not there"


def test_every_file_that_is_named_is_there():
    for name in re.findall(r"`([\w/]+/\w+\.\w+)`", MAP):
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name


def test_every_answer_is_a_file():
    rows = re.findall(r"^\| \d+ \| (.+?) \| `(.+?)`", QUESTIONS, re.MULTILINE)
    assert len(rows) == len({question for question, _ in rows}) == 10
    assert all((PACKAGE / answer).is_file() for _, answer in rows)
