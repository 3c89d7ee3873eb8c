"""FP8's benchmark as a toy: what it measures, and that a failure becomes a row."""

from __future__ import annotations

from argparse import Namespace

import fp8_linears
import pytest


def rows(only: str) -> list[dict]:
    return list(fp8_linears.measure(Namespace(tiny=True, only=only, repeats=1, layout=None), "cpu"))


def test_layers():
    pytest.importorskip("torchao")
    found = rows("layers")
    assert not [row for row in found if "failed" in row]
    layers = [row for row in found if "layer" in row]
    assert len({row["layer"] for row in layers}) == 3
    errors = {row["way"]: row["error"] for row in layers if "error" in row}
    assert errors["bf16"] < 0.005 < errors["fp8"] < 0.05
    assert errors["torchao"] == pytest.approx(errors["fp8"], rel=0.05)
    pieces = {row["error"] for row in found if "pieces" in row["way"]}
    assert len(pieces) == 1 and pieces.pop() < 0.07


def test_passes_go_on_without_what_fails(monkeypatch):
    def fail(model):
        raise RuntimeError("no torchao here\nand more")

    monkeypatch.setattr(fp8_linears, "LAYOUTS", ("released",))
    monkeypatch.setattr(fp8_linears, "by_torchao", fail)
    found = rows("passes")
    assert [row["way"] for row in found if "failed" in row] == ["torchao"]
    blocks = {row["block"] for row in found if "block" in row}
    assert blocks == {"full", "even", "odd"}
    errors = [row["error"] for row in found if row["way"] == "fp8"]
    assert len(errors) == 4 and all(1e-3 < error < 0.03 for error in errors)
    assert "peak" in found[-1] and found[-1]["way"] == "fp8"
