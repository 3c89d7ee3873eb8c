"""Every script can be imported: what it needs of the package is there."""

from __future__ import annotations

from importlib import import_module

import pytest
from paths import ROOT

SCRIPTS = sorted(
    path.stem for folder in ("benchmarks", "scripts") for path in (ROOT / folder).glob("*.py")
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_finds_what_it_imports(name):
    import_module(name)
