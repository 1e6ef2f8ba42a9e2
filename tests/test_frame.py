"The frame around the modules: what CI demands, what is declared, what is shipped."
import ast, configparser, os, re, shutil, subprocess, sys, tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import audiolab
from audiolab._modidx import d as index

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("body, options, code", [
    ("pass", ["--no-skips"], 0),
    ("pytest.skip('needs espeak-ng')", [], 0),
    ("pytest.skip('needs espeak-ng')", ["--no-skips"], 1),
    ("pytest.skip('optional: needs a GPU')", ["--no-skips"], 0),
    ("assert 0", [], 1),
], ids=["passes", "skip", "skip-forbidden", "optional-forbidden", "fails"])
def test_a_skip_fails_where_none_is_allowed(tmp_path, body, options, code):
    shutil.copy(ROOT/"tests/conftest.py", tmp_path)
    (tmp_path/"test_it.py").write_text(f"import pytest\n\ndef test_it(): {body}\n")
    r = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull,
                        "--rootdir", tmp_path, *options, tmp_path],
                       env=os.environ | {"CI": "true"}, text=True, capture_output=True, timeout=120)
    assert r.returncode == code, r.stdout + r.stderr
    assert ("fails a run with --no-skips" in r.stdout) == (code == 1 and "skip" in body)


def test_a_module_that_skips_as_a_whole_fails_too(tmp_path):
    shutil.copy(ROOT/"tests/conftest.py", tmp_path)
    (tmp_path/"test_it.py").write_text("import pytest\n\npytest.importorskip('a_module_that_is_not_there')\n\ndef test_it(): pass\n")
    (tmp_path/"test_other.py").write_text("def test_other(): pass\n")
    r = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull,
                        "--rootdir", tmp_path, "--no-skips", tmp_path],
                       text=True, capture_output=True, timeout=120)
    assert r.returncode == 1 and "1 passed, 1 skipped" in r.stdout


def test_what_was_skipped_runs_again_and_nothing_else(tmp_path):
    shutil.copy(ROOT/"tests/conftest.py", tmp_path)
    (tmp_path/"test_it.py").write_text("from pathlib import Path\nimport pytest\n\n"
                                       "def test_it():\n    if not Path('program').exists(): pytest.skip('needs a program')\n\n"
                                       "def test_other(): assert not Path('program').exists()\n")
    (tmp_path/"test_more.py").write_text("from pathlib import Path\nimport pytest\n\n"
                                         "if not Path('program').exists(): pytest.skip('needs it', allow_module_level=True)\n\n"
                                         "def test_third(): pass\n")

    def run(*args):
        command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", tmp_path,
                   *args, tmp_path]
        return subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=120)
    assert "1 passed, 2 skipped" in run().stdout
    assert run("--again", "--no-skips").returncode == 1  # still skipped
    (tmp_path/"program").touch()
    again = run("--again", "--no-skips")
    assert again.returncode == 0 and "2 passed, 1 deselected" in again.stdout, again.stdout


def test_ci_runs_and_names_no_place():
    script = ROOT/".ci/run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    assert re.search(r"^torch==[\d.]+$", (ROOT/".ci/constraints.txt").read_text(), re.M)


def test_workflows_are_yaml_and_use_what_exists():
    flows = {p.name: yaml.safe_load(p.read_text(encoding="utf-8")) for p in (ROOT/".github/workflows").glob("*.yml")}
    assert set(flows) == {"ci.yml", "docs.yml"}
    steps = [s.get("run", "") for f in flows.values() for job in f["jobs"].values() for s in job["steps"]]
    assert ".ci/run" in steps and any("nbdev-docs" in s for s in steps)
    for path in re.findall(r"(tools/\w+\.py)", "\n".join(steps)): assert (ROOT/path).is_file()


def requirements():
    ini = configparser.ConfigParser(delimiters=["="])
    ini.read(ROOT/"settings.ini", encoding="utf-8")
    return {k: [o for o in v.split("\n") if o.strip()] for k, v in ini["DEFAULT"].items()}


def test_what_is_installed_is_what_settings_declare():
    "setup.py hands every line of settings.ini on, each group under its name (after a change there: pip install -e '.[dev]' again)"
    from packaging.requirements import Requirement
    def extra(key): return "" if key == "requirements" else f'extra == "{key.removesuffix("_requirements")}"'
    declared = {(r.name, r.specifier, extra(key)) for key, lines in requirements().items()
                for r in map(Requirement, lines)}
    found = {(r.name, r.specifier, str(r.marker or ""))
             for r in map(Requirement, metadata.requires("audiolab"))}
    assert declared == found
    assert {"torch>=2.11,<2.15", "torchaudio==2.11.0"} <= set(requirements()["requirements"])


def test_what_is_imported_is_declared():
    "Every package that audiolab imports at the top of a module is among its requirements"
    def normal(s): return re.sub(r"[-_.]+", "-", s).lower()
    declared = {normal(re.match(r"[\w.-]+", r)[0]) for r in requirements()["requirements"]}
    used = set()
    for p in (ROOT/"audiolab").rglob("*.py"):
        for node in ast.parse(p.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import): used |= {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level: used.add(node.module.split(".")[0])
    by = metadata.packages_distributions()
    missing = {m for m in used - set(sys.stdlib_module_names) - {"audiolab"}
               if not {normal(d) for d in by.get(m, [m])} & declared}
    assert not missing


def project(): return tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_version():
    assert "version" in project()["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", audiolab.__version__)
    assert "## [Unreleased]" in (ROOT/"CHANGELOG.md").read_text(encoding="utf-8")


def test_hosting_is_one_setting():
    "The table [project.urls] alone decides which addresses the exported package names; without it there are none"
    urls = project().get("urls", {})
    assert index["settings"]["git_url"] == urls.get("Repository", "").rstrip("/")
    assert (index["settings"]["doc_host"] == "") == ("Documentation" not in urls)
