"""The benchmark: counts against formulas, parts that sum to the whole, files, errors."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from commands import ultragen
from diffusers.models.attention_dispatch import _AttentionBackendRegistry, dispatch_attention_fn

from ultragen.benchmark import bench, machine, parts
from ultragen.benchmark.bench import Bench, Budget
from ultragen.benchmark.cases import (
    AUTO,
    CASES,
    DENSE_VARIANT,
    PAPER,
    T3_VIDEO,
    VARIANTS,
    arguments,
    build,
    choose_cases,
    released,
    widths,
)
from ultragen.benchmark.forward import operations_of
from ultragen.benchmark.machine import Machine, Trial
from ultragen.benchmark.records import CaseResult, Measurement, Part, Report, compare_reports
from ultragen.benchmark.suite import run_benchmark
from ultragen.benchmark.tables import growth_table, markdown, tables
from ultragen.estimates.cost import full_pairs, window_pairs
from ultragen.presets import WAN

TINY = CASES["tiny"]
GRID = (3, 16, 24)
HALF, QUARTER = (3, 8, 12), (3, 4, 6)
DIM, FFN, TEXT, RANK, LAYERS = 48, 96, 8, 8, 4
QUICK = ("--case", "tiny", "--repeats", 1, "--skip", "parts", "--skip", "auto")


def tokens(grid: tuple[int, int, int]) -> int:
    return grid[0] * grid[1] * grid[2]


@pytest.fixture(scope="module", autouse=True)
def _no_gpu():
    """The same on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(scope="module", autouse=True)
def _only_new_objects_are_collected():
    """Memory is freed for every variant, and looking at all that is imported is slow."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def report() -> Report:
    return run_benchmark(["tiny", "run-tiny", "1088x1920x81"], Budget(repeats=2), "a command")


# Operations


def test_operations_of_the_paper_layout_are_those_of_the_equations():
    """Two even and two odd layers with K = 4 and K + 1 = 5 (eq. 6-11)."""
    n, small = tokens(GRID), tokens(HALF) + tokens(QUARTER)
    expected = {
        # The low-rank updates go into the weights of both compressed branches.
        "projections": LAYERS * 2 * DIM * (DIM * (4 * n + 3 * small) + 6 * (DIM + 1) * RANK),
        "local attention": 2 * 4 * DIM * (window_pairs(GRID, 4) + window_pairs(GRID, 5)),
        "hierarchical attention": 2 * 4 * DIM * (window_pairs(HALF, 2) + window_pairs(HALF, 3)),
        "global attention": LAYERS * 4 * DIM * full_pairs(QUARTER),
        "compression": LAYERS * 2 * DIM * (4 * tokens(HALF) + 16 * tokens(QUARTER)),
        "decompression": LAYERS * 2 * 2 * 27 * DIM * n,
        "cross attention": LAYERS * 4 * DIM * n * TEXT,
        "cross-attention projections": LAYERS * 2 * DIM**2 * 2 * (n + TEXT),
        "feed-forward": LAYERS * 2 * 2 * DIM * FFN * n,
    }
    counted = operations_of(TINY, PAPER)
    assert {part: counted[part] for part in expected} == expected
    assert not any(counted[p] for p in ("rotary positions", "window order", "resizing"))


def test_full_layers_cost_the_square_of_the_tokens():
    dense = operations_of(TINY, DENSE_VARIANT)
    assert dense["full attention"] == LAYERS * 4 * DIM * full_pairs(GRID)
    layout = operations_of(TINY, released((0, 3)))
    assert layout["full attention"] == 2 * 4 * DIM * full_pairs(GRID)
    assert layout["feed-forward"] == dense["feed-forward"]
    assert layout["local attention"] == operations_of(TINY, PAPER)["local attention"] - 4 * DIM * (
        window_pairs(GRID, 4) + window_pairs(GRID, 5)
    ) - 4 * DIM * (window_pairs(GRID, 5) - window_pairs((3, 15, 25), 5))


def test_t3_layers_cost_their_windows():
    """On the size they were trained for, and the paper's floor of a pass there."""
    case = CASES["2176x3840x81"]
    t3, dense = (operations_of(case, variant) for variant in (T3_VIDEO, DENSE_VARIANT))
    tokens = {  # of a window: 21 × 1 × 1 windows of a frame, and so on, twice for all but the first
        21: 32_640, 510: 1_344, 320: 2_142, 408: 1_680, 336: 2_040
    }  # fmt: skip
    pairs = sum((1 if n == 21 else 2) * n * size**2 for n, size in tokens.items())
    assert t3["T3 attention"] == 6 * 4 * 1536 * pairs
    assert 70 < dense["full attention"] / t3["T3 attention"] < 75
    assert t3["projections"] == dense["projections"]
    attention = t3.pop("T3 attention") + t3.pop("cross attention")
    assert attention / 600e12 + sum(t3.values()) / 700e12 == pytest.approx(4.5, abs=0.2)


@pytest.mark.parametrize("variant", VARIANTS["tiny"], ids=lambda v: v.name)
def test_a_layer_of_each_kind_stands_for_all(variant):
    """Against the library's own count of the whole model."""
    model = build("tiny", variant, "meta", torch.float32)
    with torch.no_grad(), parts.FlopCounterMode(display=False) as counter:
        model(**arguments(TINY, variant, "meta", torch.float32))
    assert sum(operations_of(TINY, variant).values()) == counter.get_total_flops()


def test_true_shapes():
    """Tokens and operations of the sizes that are published; nothing is computed for them."""
    grids = {"1088x1920x81": 171_360, "2176x3840x29": 261_120, "2176x3840x81": 685_440}
    assert {name: CASES[name].tokens for name in grids} == grids
    count = operations_of(CASES["1088x1920x81"], DENSE_VARIANT)
    assert count["full attention"] == 30 * 4 * 1536 * 171_360**2
    assert CASES["run-1088x1920x81"].frames == WAN.num_frames
    assert widths("embedded")["num_layers"] == 10


# Parts


def test_the_functions_that_are_watched_exist():
    """A renamed function would count as part of whatever calls it."""
    for name in parts.FUNCTIONS:
        if "<locals>" in name:
            continue
        names = name.split(".")
        depth = 2 if names[-2][0].isupper() else 1
        found = import_module(".".join(names[:-depth]))
        for attribute in names[-depth:]:
            found = getattr(found, attribute)
        assert f"{found.__module__}.{found.__qualname__}" == name


def test_parts_sum_to_the_pass_they_were_taken_from():
    """A clock that counts its readings: every moment has exactly one part."""

    class Ticks:
        count = 0

        def mark(self) -> int:
            self.count += 1
            return self.count

        def between(self, first: int, second: int) -> int:
            return second - first

        def finish(self) -> None:
            pass

    clock = Ticks()
    model = build("tiny", PAPER, "cpu", torch.float32)
    with torch.no_grad(), parts.PartMeter(model, clock) as meter:
        model(**arguments(TINY, PAPER, "cpu", torch.float32))
    found = meter.totals()
    assert sum(found.values()) == clock.count - 1
    assert list(found) == [part for part in parts.PARTS if part in found]
    others = {"full attention", "T3 attention", "low-rank updates"}
    assert set(parts.PARTS) - set(found) == others


def test_the_model_is_left_as_it_was():
    model = build("tiny", PAPER, "cpu", torch.float32)
    given = arguments(TINY, PAPER, "cpu", torch.float32)
    with torch.no_grad():
        (before,) = model(**given)
        with parts.PartMeter(model, parts.CpuClock()):
            (inside,) = model(**given)
        (after,) = model(**given)
    assert torch.equal(before, inside) and torch.equal(before, after)
    hooks = [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert hooks == []


# Whole runs


@pytest.mark.slow
def test_every_variant_is_measured(report):
    tiny, run = report.cases
    assert [m.variant for m in tiny.measurements] == [variant.name for variant in VARIANTS["tiny"]]
    for m in tiny.measurements:
        assert 0 < m.seconds < 30 and m.repeats == 2 and m.peak_bytes is None
        assert m.floor == pytest.approx(sum(part.floor for part in m.parts.values()))
        assert m.operations == sum(part.operations for part in m.parts.values())
        whole = m.remainder + sum(part.seconds for part in m.parts.values())
        assert whole == pytest.approx(m.seconds)
    assert tiny.speed_up(tiny.measurements[-1]) == 1
    assert [m.variant for m in run.measurements][-1] == "whole"
    assert run.measurements[-1].seconds == sum(m.seconds for m in run.measurements[1:3])
    assert report.left_out == ["1088x1920x81: needs a CUDA GPU, and this machine has none"]
    assert report.machine.attention[0].rate > 0 and report.machine.matrix_rate > 0


def test_a_report_survives_its_file(report, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(report.to_json())
    assert Report.load(path) == report


def test_markdown_has_every_table(report):
    text = markdown(report)
    for table in tables(report):
        assert f"## {table.title}" in text
        assert all(len(row) == len(table.headers) for row in table.rows)
    for word in (report.machine.card, "torch", "a command", "remainder", "needs a CUDA GPU"):
        assert word in text


@pytest.mark.slow
def test_decoding_three_ways():
    found = run_benchmark(["vae-tiny"], Budget(repeats=1), "").cases[0]
    assert [m.variant for m in found.measurements] == ["ours", "tiled", "plain"]
    assert found.speed_up(found.measurements[0]) is not None
    assert len({m.operations for m in found.measurements}) == 1 and found.measurements[0].floor > 0


def test_a_training_step_of_every_layout():
    """Four times a forward pass's operations, beside dense with the same checkpointing; ours also
    with what it keeps in the host's memory."""
    step, forward = run_benchmark(["train-tiny", "tiny"], Budget(repeats=1), "").cases[::-1]
    passes = {m.variant: m.operations for m in forward.measurements}
    ours = [name for name in passes if name != "dense"]
    expected = [name + suffix for name in ours for suffix in ("", ", host")]
    assert [m.variant for m in step.measurements] == [*expected, "dense"]
    assert step.speed_up(step.measurements[0]) is not None
    assert all(0 < m.floor < m.seconds for m in step.measurements)
    for one in step.measurements:
        assert one.operations == 4 * passes[one.variant.removesuffix(", host")]


def test_attention_back_ends_are_tried(monkeypatch):
    """What fails, and what gives something else, is not used."""

    def attention(query, key, value):
        out = dispatch_attention_fn(query, key, value)
        active = _AttentionBackendRegistry.get_active_backend()[0].value
        if active == "_native_math":
            raise ImportError("no kernel image\nfor this card")
        return 2 * out if active == "_native_flash" else out

    probe = replace(machine.PROBES["cpu"], tokens=64, seconds=0.0)
    monkeypatch.setattr(machine, "BACKENDS", ("native", "_native_flash", "_native_math"))
    monkeypatch.setattr(machine, "dispatch_attention_fn", attention)
    first, wrong, failed = machine.try_backends("cpu", torch.float32, probe)
    assert first.backend == "native" and first.rate > 0
    assert (wrong.rate, wrong.reason) == (0.0, "differs from native by 1")
    assert (failed.rate, failed.reason) == (0.0, "no kernel image")
    monkeypatch.setattr(machine, "BACKENDS", ("_native_math",))
    with pytest.raises(RuntimeError, match="no kernel image"):
        machine.try_backends("cpu", torch.float32, probe)


# What is left out


def fast_machine() -> Machine:
    return Machine(
        "cpu", "a card", "today", {"torch": "2"}, "float32", 1e9, (Trial("native", 1e9),)
    )


def test_what_does_not_fit_the_budget_is_named():
    said: list[str] = []
    made = Bench(Report("", fast_machine()), Budget(seconds=5), lambda r: None, said.append)
    made.attempt(TINY, "dense", lambda: made.require(1000))
    made.attempt(TINY, "paper", lambda: made.require(1))
    (line,) = made.report.left_out
    assert line == "tiny, dense: it takes at least 1000 s, and 5 s are left"
    assert said == ["tiny, dense", f"Left out: {line}", "tiny, paper"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "tiny, auto: too little memory"),
        (MemoryError(), "tiny, auto: too little memory"),
        (RuntimeError("no kernel\nhere"), "tiny, auto: no kernel"),
    ],
)
def test_a_failure_is_a_line(error, says):
    def fail() -> None:
        raise error

    made = Bench(Report("", fast_machine()), Budget(), lambda r: None, print)
    made.attempt(TINY, "auto", fail)
    assert made.report.left_out == [says]


@pytest.mark.slow
def test_after_a_failure_the_next_variant_runs(monkeypatch):
    def build_or_fail(family, variant, device, dtype):
        if variant is AUTO:
            raise MemoryError
        return build(family, variant, device, dtype)

    monkeypatch.setattr("ultragen.benchmark.forward.build", build_or_fail)
    operations_of.cache_clear()
    saved: list[int] = []
    found = run_benchmark(
        ["tiny"],
        Budget(repeats=1, skip=frozenset({"parts", "dense"})),
        "",
        lambda r: saved.append(sum(len(c.measurements) for c in r.cases)),
    )
    assert [m.variant for m in found.cases[0].measurements] == ["paper", "t3", "released"]
    assert found.left_out == ["tiny, auto: too little memory", "tiny, dense: skipped"]
    assert found.cases[0].measurements[0].parts == {}
    assert saved[0] == 1 and saved[-1] == 3


def test_a_slow_call_runs_once(monkeypatch):
    calls: list[int] = []
    made = Bench(Report("", fast_machine()), Budget(repeats=3), lambda r: None, print)
    assert made.seconds(lambda: calls.append(1))[1] == 3 and len(calls) == 4
    monkeypatch.setattr(bench, "SLOW", -1.0)
    assert made.seconds(lambda: calls.append(1))[1] == 1 and len(calls) == 5


def test_the_choice_of_cases():
    assert [c.name for c in choose_cases([], "cpu")] == ["embedded-544p", "embedded-1080p", "tiny"]
    assert {c.family for c in choose_cases([], "cuda")} == {"wan", "embedded"}
    assert [c.name for c in choose_cases(["tiny", "vae-tiny", "tiny"], "cpu")] == [
        "tiny",
        "vae-tiny",
    ]


# Against an earlier benchmark


def made_report(paper: float, dense: float = 10.0, case: str = "tiny") -> Report:
    measurements = (
        Measurement("paper", paper, 3, 2**30, 10, 1.0, {"projections": Part(0.5, 10, 1.0)}),
        Measurement("dense", dense, 3, 2**31, 20, 4.0),
    )
    result = CaseResult(case, "forward", "tiny", 1000, "dense", measurements)
    return Report("", fast_machine(), [result])


def test_ratios_are_compared_not_seconds():
    """Twice as slow a machine changes nothing; the floor is slower there as well."""
    changes = compare_reports(made_report(2.0), made_report(4.0, 20.0))
    found = {(c.variant, c.ratio): c for c in changes}
    assert found["paper", "baseline"].factor == pytest.approx(1)
    assert found["paper", "floor"].factor == pytest.approx(2)
    assert found["paper", "floor"].is_worse(0.5) and not found["paper", "floor"].is_worse(1.5)
    assert ("dense", "baseline") not in found


def test_reports_need_a_case_in_common():
    with pytest.raises(ValueError, match=r"\(other\) shares no case with this one \(tiny\)"):
        compare_reports(made_report(1.0, case="other"), made_report(1.0))


def test_growth_is_shown_for_two_sizes_of_a_family():
    one = made_report(2.0)
    larger = replace(made_report(8.0).cases[0], name="larger", tokens=2000)
    table = growth_table(replace(one, cases=[larger, *one.cases]))
    assert table.headers == ("", "tiny", "larger")
    assert table.rows[0] == ("paper", "2000.00 (1.00×)", "4000.00 (2.00×)")
    assert not growth_table(one).rows


# The command


@pytest.mark.slow
def test_the_command_writes_and_compares(tmp_path, capsys):
    first, second, text = (tmp_path / name for name in ("a.json", "b.json", "b.md"))
    assert ultragen("benchmark", *QUICK, "--json", first) == 0
    assert "speed-up over dense" in capsys.readouterr().out
    earlier = json.loads(first.read_text())
    for m in earlier["cases"][0]["measurements"]:
        m["floor"] *= 100  # as if it had been a hundred times as close to the floor
    first.write_text(json.dumps(earlier))
    code = ultragen(
        "benchmark", *QUICK, "--json", second, "--markdown", text,
        "--against", first, "--tolerance", 3,
    )  # fmt: skip
    assert code == 1
    assert "4 of 7 ratios got worse by more than 300%" in capsys.readouterr().err
    assert Report.load(second).cases[0].name == "tiny"
    assert "Against the earlier benchmark" in text.read_text() and "worse" in text.read_text()
    assert ultragen("benchmark", *QUICK, "--json", second) == 1
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--case", "huge"), 2, "There is no case huge: choose from forward, embedded"),
        (("--skip", "lunch"), 2, "There is no lunch to skip: choose from parts"),
        (("--case", "vae-1088x1920x81"), 1, "Nothing was measured: vae-1088x1920x81: needs a CUDA"),
        (("--json", "nowhere/a.json"), 1, "--json nowhere/a.json is no file in a folder"),
        (("--against", "missing.json"), 1, "missing.json"),
        (("--against", "bad.json"), 2, "bad.json is not the JSON of a benchmark"),
        (("--repeats", "0"), 2, "repeats"),
    ],
)
def test_errors_are_one_line(words, code, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text('{"command": 1}')
    assert ultragen("benchmark", *words) == code
    assert says in capsys.readouterr().err
