"What all tests share: quiet and repeatable numerics, the browser, and no silent skips where CI=true."
import os

# Before numpy and torch are imported, here and in every process a test starts.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", MPLBACKEND="agg", TQDM_MININTERVAL="5")

import random, shutil, sys

import hypothesis
import numpy as np
import pytest

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=False)
hypothesis.settings.load_profile("repeatable")

# The files that take longest, longest first: workers that begin with them end at about the same time (`--no-loadscope-reorder`).
LONG = ["test_notebooks", "test_training", "test_ssgs_train", "test_readme", "test_docs", "test_faults", "test_tutorial_ui", "test_fuzz", "test_monitor_ui", "test_storage"]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))  # stable: the others keep their order


BROWSERS = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"


@pytest.fixture(autouse=True)
def same_random_numbers_in_every_run():
    "Global generators start each test from the same state, whichever tests ran before"
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules: sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def browser_path():
    "A Chromium to show pages in"
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None: pytest.skip("needs chromium (Debian: apt-get install chromium)")
    return path


# A skipped test proves nothing. Where CI=true everything a test may need is installed first, so a skip is a failure,
# unless its reason begins with "optional:" (hardware that not every machine has, packages that the project only knows of).
skipped = []


def note(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith("optional:"): skipped.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report): note(report)
def pytest_collectreport(report): note(report)


def in_ci(): return os.environ.get("CI", "").lower() in ("1", "true")


def pytest_sessionfinish(session, exitstatus):
    if in_ci() and skipped and exitstatus == 0: session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if in_ci() and skipped:
        terminalreporter.section("skipped, which fails a run with CI=true", red=True)
        for line in skipped: terminalreporter.line(line)
