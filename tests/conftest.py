"What all tests share: quiet and repeatable numerics, the browser, and a count of what was skipped."
import os

# Before numpy and torch are imported, here and in every process a test starts.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ.update(MPLBACKEND="agg", TQDM_MININTERVAL="5")

import gc, random, shutil, signal, sys

import hypothesis
import numpy as np
import pytest

# A shell lets what it starts in the background ignore Ctrl-C, and so would all processes of tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None,
                                     print_blob=False)
hypothesis.settings.load_profile("repeatable")

# The files that take longest, longest first (`--no-loadscope-reorder`): workers that begin with
# them end together.
LONG = ["test_notebooks", "test_training_processes", "test_training_resume", "test_ssgs_train_stopped",
        "test_ssgs_train", "test_readme", "test_docs", "test_faults", "test_tutorial_ui",
        "test_fuzz", "test_monitor_ui", "test_storage", "test_storage_faults"]


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


@pytest.fixture(scope="session")
def ssgs_corpora(tmp_path_factory):
    "Files to train SSGS models on, by kind; None for speech where nothing can speak"
    from ssgs_models import make_corpora
    return make_corpora(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="session")
def ssgs_sounds(ssgs_corpora):
    "Their waveforms, by kind"
    from ssgs_models import read_corpora
    return read_corpora(ssgs_corpora)


@pytest.fixture(scope="session")
def ssgs_trained(ssgs_sounds):
    "A model of each kind, not to be changed"
    from ssgs_models import train_on
    return train_on(ssgs_sounds)


@pytest.fixture
def quick_measures():
    "The states of what a test trains are measured on a second; for tests of something else"
    from ssgs_runs import measured_on_a_second
    with measured_on_a_second(): yield


@pytest.fixture(scope="session")
def ceph(tmp_path_factory):
    "A Ceph gateway of its own for this test session, with the bucket `lab`"
    from ceph_server import MISSING, lab_gateway, missing_programs
    if missing_programs(): pytest.skip(MISSING)
    with lab_gateway(tmp_path_factory.mktemp("ceph")) as server: yield server


@pytest.fixture
def no_aws(monkeypatch, tmp_path):
    "Nothing of the machine's own AWS settings"
    for name in [name for name in os.environ if name.startswith("AWS_")]: monkeypatch.delenv(name)
    nothing = {"AWS_CONFIG_FILE": tmp_path/"no", "AWS_SHARED_CREDENTIALS_FILE": tmp_path/"no",
               "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in nothing.items(): monkeypatch.setenv(name, str(value))


@pytest.fixture
def s3(ceph, no_aws, monkeypatch, request):
    "Credentials in the environment, as boto3 finds them; an address of this test's own"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ceph.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ceph.secret_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL", ceph.endpoint)
    return f"s3://lab/{abs(hash(request.node.nodeid)):x}"


# A skipped test proves nothing. `--again` runs those that the last run skipped, when what they
# need has been installed.
# `--no-skips` makes a skip a failure, unless its reason begins with "optional:" (hardware that not
# every machine has, packages that the project only knows of). It is an option, not the variable
# CI that many machines set: there, too, the README's plain command passes.
AGAIN = "audiolab/again"
skipped = {}  # id of a test: why


def pytest_addoption(parser):
    parser.addoption("--again", action="store_true", help="only what was skipped in the last run")
    parser.addoption("--no-skips", action="store_true", help="a skip is a failure, if not optional")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    order = {stem: place for place, stem in enumerate(LONG)}
    # stable: the others keep their order
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    if not config.getoption("--again"): return
    wanted = set(config.cache.get(AGAIN, []))
    # or its whole file
    chosen = [item for item in items if wanted & {item.nodeid, item.nodeid.partition("::")[0]}]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def pytest_collection_finish(session):
    gc.collect()
    gc.freeze()  # what is imported now stays: nobody need look at it again, here or in a copy


def note(report):
    if not report.skipped or hasattr(report, "wasxfail"): return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    skipped[report.nodeid] = reason.removeprefix("Skipped: ")


def pytest_runtest_logreport(report): note(report)
def pytest_collectreport(report): note(report)


def not_run(): return [f"{test}: {why}" for test, why in skipped.items() if not why.startswith("optional:")]


def pytest_sessionfinish(session, exitstatus):
    # a process of xdist; the one that started it has all reports
    if hasattr(session.config, "workerinput"): return
    cache = getattr(session.config, "cache", None)
    if cache is not None and not session.config.getoption("--again"):
        cache.set(AGAIN, sorted(skipped))
    if session.config.getoption("--no-skips") and not_run() and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if terminalreporter.config.getoption("--no-skips") and not_run():
        terminalreporter.section("skipped, which fails a run with --no-skips", red=True)
        for line in not_run(): terminalreporter.line(line)
