"""`measure`: what a unit of work costs."""

from __future__ import annotations

import json

from commands import ultragen


def test_measure_prints_coefficients(fake, monkeypatch, capsys):
    from ultragen.estimates.coefficients import CPU
    from ultragen.runs import calibrate

    monkeypatch.setattr(calibrate, "measure", lambda models, report: CPU)
    assert ultragen("measure") == 0
    assert json.loads(capsys.readouterr().out)["token"] == CPU.token
