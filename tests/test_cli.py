"The `audiolab` program: verbs, exit codes, one-line errors, and that it starts at once."
import io
import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
from annotated_types import Ge

import audiolab
from audiolab.apps import COMMANDS, GROUPS, Command
from audiolab.apps import program as cli
from audiolab.config import ConfigError
from program_runs import python, run

calls = []


@dataclass
class Deep:
    "Inner."
    rate: Annotated[float, Ge(0)] = 0.5  # a rate


@dataclass
class Config:
    "For the tests."
    size: Annotated[int, Ge(1)] = 3  # how many
    what: str = "nothing"  # what to do
    deep: Deep = field(default_factory=Deep)  # inner

    def plan(self): return f"do {self.what}\n{self.size} times"

    presets = {"ten": {"size": 10}}


class OwnError(ConfigError):
    "Counts as one of the library's, by its base."


def act(config):
    calls.append(config)
    match config.what:
        case "nothing": return None
        case "number": return config.size
        case "path": return Path("a")
        case "truth": return True
        case "exit": raise SystemExit(config.size)
        case "exit text": raise SystemExit("bye")
        case "interrupt": raise KeyboardInterrupt
        case "missing": open("no/such/file")
        case "refused": raise PermissionError(13, "Permission denied", "locked\x1b[31m\nfile")
        case "disk": raise OSError(28, "No space left on device")
        case "own": raise ConfigError([cli_problem("a", "b"), cli_problem("c", "d")])
        case "bug": raise KeyError("bug")
        case "value": raise ValueError("a bug as well")
        case "module": import no_such_module_here  # noqa: F401
        case "pipe": raise BrokenPipeError


def cli_problem(path, message):
    from audiolab.config import Problem
    return Problem("", path, message)


@pytest.fixture(autouse=True)
def table(monkeypatch):
    calls.clear()
    monkeypatch.setitem(sys.modules, "audiolab_cli_test", sys.modules[__name__])
    act_in_tests = Command("audiolab_cli_test:Config:act", "act in tests")
    for verb in (("act",), ("room", "act")): monkeypatch.setitem(COMMANDS, verb, act_in_tests)
    gone = Command("no_such_module_here:Config:act", "is not installed")
    monkeypatch.setitem(COMMANDS, ("gone",), gone)
    monkeypatch.setitem(GROUPS, ("room",), "a room")
    monkeypatch.delenv("AUDIOLAB_TRACEBACK", raising=False)


NOT_INSTALLED = ("audiolab: error: the module 'no_such_module_here' is not installed; "
                 "install audiolab with all that it requires\n")


@pytest.mark.parametrize("what, code, err", [
    ("nothing", 0, ""),
    ("number", 3, ""),
    ("path", 0, ""),
    ("truth", 0, ""),
    ("exit", 3, ""),
    ("exit text", 1, "bye\n"),
    ("interrupt", 130, "audiolab: interrupted\n"),
    ("missing", 2, "audiolab: error: no/such/file: No such file or directory\n"),
    ("refused", 2, "audiolab: error: locked\\x1b[31m\n  file: Permission denied\n"),
    ("disk", 2, "audiolab: error: No space left on device\n"),
    ("own", 2, "audiolab: error: a: b\n  c: d\n"),
    ("module", 2, NOT_INSTALLED),
])
def test_exit_codes_and_one_line_errors(capsys, what, code, err):
    assert run(capsys, "act", "--what", what) == (code, "", err)


def test_bugs_keep_their_traceback(capsys):
    with pytest.raises(KeyError): cli.main(["act", "--what", "bug"])
    with pytest.raises(ValueError): cli.main(["act", "--what", "value"])


def test_traceback_on_request(capsys, monkeypatch):
    missing = ["act", "--what", "missing"]
    for args in (["--traceback", *missing], [*missing, "--traceback"]):
        code, _, err = run(capsys, *args)
        assert code == 2 and "Traceback" in err
        assert err.endswith("audiolab: error: no/such/file: No such file or directory\n")
    monkeypatch.setenv("AUDIOLAB_TRACEBACK", "1")
    assert "Traceback" in run(capsys, "act", "--what", "missing")[2]
    monkeypatch.setenv("AUDIOLAB_TRACEBACK", "0")
    assert "Traceback" not in run(capsys, "act", "--what", "missing")[2]


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_lists_all_verbs(capsys, args):
    code, out, err = run(capsys, *args)
    assert code == 0 and not err
    assert all(f"  {' '.join(verb)} " in out and c.help in out for verb, c in COMMANDS.items())
    assert audiolab.__doc__ in out and "audiolab demo" in out
    assert max(map(len, out.splitlines())) <= 110


def test_help_of_groups_and_verbs(capsys):
    for args in (["ssgs"], ["ssgs", "--help"]):
        code, out, _ = run(capsys, *args)
        assert code == 0 and "ssgs train" in out
        assert "inspect" not in out.split("Every command")[0].replace("--", "")
    code, out, _ = run(capsys, "act", "--help")
    flags = "--deep.rate", "--config", "--dry-run", "--print-config", "--preset"
    assert code == 0 and all(w in out for w in (*flags, "how many", "a rate", "ten", "Act in tests."))
    assert not calls


@pytest.mark.parametrize("line, hint", [
    ("ssgs trian", "ssgs train"), ("trian", "ssgs train"), ("inspekt f", "inspect"),
    ("sgs train", "ssgs"), ("room act2", "room act"), ("demp", "demo"),
])
def test_unknown_verbs_suggest(capsys, line, hint):
    code, out, err = run(capsys, *line.split())
    assert code == 2 and not out
    assert f"Did you mean 'audiolab {hint}'?" in err and err.count("\n") == 1


def test_other_usage_errors(capsys):
    unknown = "audiolab: error: unknown command 'xyzzy'. 'audiolab --help' lists all.\n"
    assert run(capsys, "xyzzy")[::2] == (2, unknown)
    assert run(capsys, "--folders", "a")[0] == 2
    assert run(capsys, "gone")[::2] == (2, NOT_INSTALLED)
    code, _, err = run(capsys, "act", "--sise", "4")
    assert code == 2 and "--size" in err
    assert run(capsys, "act", "--size", "many")[0] == 2
    too_small = "audiolab: error: --size: expected at least 1, found 0\n"
    assert run(capsys, "act", "--size", "0")[::2] == (2, too_small)
    assert run(capsys, "--version")[:2] == (0, f"audiolab {audiolab.__version__}\n")
    assert not calls


def test_config_file_preset_and_dry_run(capsys, tmp_path):
    path = tmp_path/"c.yaml"
    path.write_text("what: number\ndeep:\n  rate: 1e-3\n")
    words = "--size", "7", "--config", str(path), "--preset", "ten"
    assert run(capsys, "room", "act", *words)[0] == 7
    assert calls == [Config(7, "number", Deep(1e-3))]
    code, out, _ = run(capsys, "act", "--size", "7", "--config", str(path), "--dry-run")
    assert code == 0 and len(calls) == 1
    sources = ["flag", f"{path}:1", "deep:", f"{path}:3"]
    plan = ["Plan", "do number", "7 times"]
    assert [o.split("#")[-1].strip() for o in out.splitlines()] == [*sources, "", *plan]
    (tmp_path/"again.yaml").write_text(out)  # what is shown is a configuration
    assert run(capsys, "act", "--config", str(tmp_path/"again.yaml"))[0] == 7
    assert calls[0] == calls[1]
    code, out, _ = run(capsys, "act", "--print-config", "--preset", "ten")
    assert code == 0 and len(calls) == 2
    assert "size: 10" in out and "# preset" in out and "Plan" not in out
    path.write_text("what: number\nsise: 3\n")
    unknown = f"audiolab: error: {path}:2:1: sise: unknown key. Did you mean 'size'?\n"
    assert run(capsys, "act", "--config", str(path))[::2] == (2, unknown)


def test_broken_pipe(capsys):
    assert run(capsys, "act", "--what", "pipe")[0] == 141
    program = """if True:
        import sys
        from audiolab.apps import commands, main
        commands.EXAMPLES = '  audiolab x\\n'*200_000
        sys.exit(main(['--help']))"""
    pipe = 'set -o pipefail; "$0" -c "$1" | head -1'
    done = subprocess.run(["bash", "-c", pipe, sys.executable, program], capture_output=True,
                          text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert done.returncode == 141 and done.stdout.startswith("usage: audiolab") and not done.stderr


HEAVY = {"torch", "tyro", "pydantic", "numpy", "numba", "scipy", "soundfile", "ruamel",
         "matplotlib", "IPython", "argparse", "yaml"}


@pytest.mark.parametrize("args", [
    ["--help"], ["ssgs", "--help"], ["ssgs"], ["--version"], ["ssgs", "trian"]])
def test_it_starts_at_once(args):
    program = f"""if True:
        import json, sys
        before = set(sys.modules)
        from audiolab.apps import main
        main({args!r})
        print(json.dumps(sorted(set(sys.modules) - before)), file=sys.stderr)"""
    loaded = json.loads(python(program, check=True).stderr.splitlines()[-1])
    assert not HEAVY & set(loaded)
    assert len(loaded) < 100  # PyTorch alone has over a thousand
    ours = {name for name in loaded if name.startswith("audiolab.")}
    assert ours == {"audiolab.apps", "audiolab.apps.commands", "audiolab.apps.program"}


def test_the_program_is_installed():
    from importlib.metadata import entry_points
    found = entry_points(group="console_scripts", name="audiolab")
    assert [entry.value for entry in found] == ["audiolab.apps.program:main"]


def test_what_the_hub_says_is_not_said_twice(capsys):
    "Its library prints by itself; the program's own log does not print it again"
    import logging
    import huggingface_hub.utils.logging as hub
    run(capsys, "act")
    theirs = hub.get_logger("huggingface_hub.http")
    assert any(theirs.parent.handlers) and not theirs.parent.propagate
    assert not logging.getLogger("datasets").propagate


def test_stdout_may_be_anything(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert cli.main(["--version"]) == 0 and sys.stdout.getvalue().startswith("audiolab ")
    assert cli.main(["act", "--what", "pipe"]) == 141


def test_of_several_processes_one_speaks(monkeypatch):
    "What they would all say, such as what to type next, is said once; errors by each"
    log = logging.getLogger("audiolab")
    for rank, said in ((None, True), ("0", True), ("1", False), ("12", False)):
        if rank is None: monkeypatch.delenv("RANK", raising=False)
        else: monkeypatch.setenv("RANK", rank)
        cli._show_log()
        assert log.isEnabledFor(logging.INFO) == said and log.isEnabledFor(logging.ERROR)
    monkeypatch.delenv("RANK")
    cli._show_log()


@pytest.mark.parametrize("rank, told", [("0", ["b.wav: damaged", "seed was 0"]),
                                        ("1", ["b.wav: damaged"])])
def test_of_several_processes_each_names_what_it_could_not_read(rank, told, monkeypatch, caplog):
    "Only it knows of them; what all would say of a resume is said once"
    from audiolab.data import Account, Loader
    monkeypatch.setenv("RANK", rank)
    cli._show_log()
    Account(1.).add(8, [("b.wav", "b.wav: damaged")])
    sounds, place = [{}]*8, {"rank": int(rank), "world": 2}
    Loader(sounds, 4, seed=1, **place).load_state_dict(
        Loader(sounds, 4, seed=0, **place).state_dict())
    monkeypatch.delenv("RANK")
    cli._show_log()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(told) and all(part in line for part, line in zip(told, said)), said


def test_a_warning_is_told_without_the_source_that_gave_it(tmp_path):
    "A damaged checkpoint, as a resumed run finds it"
    (tmp_path/"checkpoints").mkdir()
    (tmp_path/"checkpoints"/"checkpoint_step_1.safetensors").write_bytes(b"damaged")
    code = ("import sys\nfrom audiolab.apps import program\nfrom audiolab.training import "
            "RunCheckpoints\nprogram._show_log()\n"
            f"RunCheckpoints({str(tmp_path/'checkpoints')!r}).resolve('auto')")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    assert said.startswith("skipped ") and "checkpoint_step_1" in said, said
    assert "UserWarning" not in said and "super()" not in said and len(said.splitlines()) == 1
