"""What holds for every test: no network, and no browser test that is skipped unseen."""

from __future__ import annotations

import copy
import os
import sys

import pytest
import torch

# Set before anything of ours is imported: the suite has to pass without a model hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
if not torch.cuda.is_available():  # kernels run in Triton's interpreter, which it asks once
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def own_attention_backend():
    """Takes back what a test chose for a model of its own: diffusers 0.42.1 keeps it as the whole
    process's default."""
    yield
    attention = sys.modules.get("diffusers.models.attention_dispatch")
    if attention is not None:
        default = attention.AttentionBackendName(attention.DIFFUSERS_ATTN_BACKEND)
        attention._AttentionBackendRegistry.set_active_backend(default)


@pytest.fixture(autouse=True)
def own_precision():
    """Takes back what a training computed in: accelerate keeps it as the whole process's, and
    refuses another one."""
    yield
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is not None:
        accelerate.AcceleratorState._reset_state()


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Tiny files of the 1.3B model's layout, which no test may change."""
    from wan_files import make_wan

    return make_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="session")
def built():
    """A tiny pipeline with random weights, which no test may change."""
    from tiny import tiny_pipeline

    return tiny_pipeline()


@pytest.fixture
def pipe(built):
    return built


@pytest.fixture
def changeable(built):
    """A copy whose weights and configuration a test may change."""
    return copy.deepcopy(built)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-browser",
        action="store_true",
        help="fail when a browser test is skipped, or when none ran",
    )
    parser.addoption(
        "--trial-minutes",
        type=float,
        default=1.0,
        help="how long the trials may take together, on two cores; some take minutes anyway",
    )


def pytest_terminal_summary(terminalreporter) -> None:
    """The table of the trials, whichever processes ran them."""
    reports = [each for some in terminalreporter.stats.values() for each in some]
    found = [pair for each in reports for pair in getattr(each, "user_properties", ())]
    rows = [value for name, value in found if name == "trial"]
    if rows:
        from trials import table

        terminalreporter.section("trials")
        for line in table(rows):
            terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--require-browser"):
        config.pluginmanager.register(BrowserGuard())


class BrowserGuard:
    """Turns a skipped browser test into a failure, and a run without any too.

    Where tests run in several processes, those see the tests, and this one their reports.
    """

    def __init__(self) -> None:
        self.ran = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if item.get_closest_marker("browser") is not None and report.skipped:
            report.outcome = "failed"
            report.longrepr = f"a browser test was skipped: {report.longrepr}"
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "call" and "browser" in report.keywords

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        in_charge = not hasattr(session.config, "workerinput")
        if in_charge and self.ran == 0 and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter) -> None:
        if self.ran == 0:
            terminalreporter.write_line("No browser test ran, and --require-browser was given.")
