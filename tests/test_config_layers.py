"Layers, saving and flags: each value knows where it came from."
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, HealthCheck, settings, strategies as st

from audiolab.config import (
    config_cli, ConfigError, describe_config, load_config, save_config, write_value,
)
from audiolab.config.strict_yaml import _build_tree, _yaml_events
from config_jobs import Job, Layer, loader, Optim, Schedule, Window


@pytest.fixture
def load(tmp_path): return loader(tmp_path)

plain_text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))
finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.recursive(st.none() | st.booleans() | finite | st.integers(-10**30, 10**30) | plain_text,
                    lambda x: st.lists(x, max_size=4)
                    | st.dictionaries(plain_text.map(lambda t: t[:8]), x, max_size=4),
                    max_leaves=10))
@example("no")
@example("---")
@example("key: value # no comment")
@example("\ufeff\x85\u2028\x7f")
def test_written_values_read_back(value):
    assert _build_tree(_yaml_events(f"key: {write_value(value)}")).content["key"] == value


paths = plain_text.map(Path)
optims = st.builds(Optim, st.floats(1e-9, 0.9), st.tuples(finite, finite),
                   st.builds(Schedule, st.integers(0, 10**9), st.floats(1e-300, 1)))
jobs = st.builds(Job, st.lists(paths), st.integers(1), plain_text, plain_text, plain_text,
                 st.sampled_from(Window), st.sampled_from(["em", "viterbi"]), st.none() | paths,
                 st.booleans(), st.integers(-10**20, 10**20) | st.just("random"),
                 st.dictionaries(plain_text, finite),
                 st.lists(st.builds(Layer, st.integers(1), st.integers())),
                 st.lists(plain_text, max_size=3), optims, st.none() | optims)


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck),
          derandomize=True)
@given(job=jobs)
def test_saved_configs_load_back_equal(tmp_path, suffix, job):
    path = save_config(job, tmp_path/f"saved.{suffix}")
    resolved = load_config(Job, path)
    assert resolved.config == job
    (tmp_path/"shown.yaml").write_text(describe_config(resolved), encoding="utf-8")
    assert load_config(Job, tmp_path/"shown.yaml").config == job
    assert sorted(o.name for o in tmp_path.iterdir() if o.name.endswith("tmp")) == []


def test_what_cannot_be_saved(tmp_path):
    for job, key in [(Job([], optimizer=Optim(float("nan"))), "optimizer.learning_rate"),
                     (Job([], weights={"a": float("inf")}), "weights.a"),
                     (Job([Path("\udc80")]), r"folders\[0\]"), (Job([], lang=object()), "lang"),
                     (Job([], tags=[b"x"]), r"tags\[0\]")]:
        with pytest.raises(ConfigError, match=key): save_config(job, tmp_path/"no.yaml")
    assert not list(tmp_path.iterdir())


def test_layers_and_sources(load, tmp_path):
    r = load("optimizer:\n  betas: [0, 0]\nbatch_size: 2",
             preset=Job([], 64, amp=True, optimizer=Optim(0.5)),
             overrides={"optimizer.schedule.decay": 0.5, "seed": np.int64(3)})
    assert r.config == Job([Path("a")], 2, amp=True, seed=3,
                           optimizer=Optim(0.5, (0.0, 0.0), Schedule(7, 0.5)))
    assert {k: v.replace(str(tmp_path), "") for k, v in r.sources.items() if v != "default"} == {
        "folders": "/job.yaml:1", "batch_size": "/job.yaml:4", "amp": "preset", "seed": "override",
        "optimizer.learning_rate": "preset", "optimizer.betas": "/job.yaml:3",
        "optimizer.schedule.decay": "override"}
    # the factory's value, not the class's
    assert (r.sources["optimizer.schedule.warmup"] == "default"
            and r.config.optimizer.schedule.warmup == 7)
    assert load("teacher: {learning_rate: .1}\n",
                overrides={"teacher": None}).config.teacher is None
    r = load("", overrides={"teacher": Optim(0.25)})
    assert r.config.teacher == Optim(0.25) and r.sources["teacher.learning_rate"] == "override"
    for bad in ({"optimizer": {"lr": 1}}, {"optimizer.lr": 1}, {"batch_size": 2.5},
                {"batch_size": True}, {"seed": b"x"}, {"lang": "\ud800"}):
        with pytest.raises(ConfigError): load("", overrides=bad)
    with pytest.raises(ConfigError, match="preset: optimizer.learning_rate"):
        load("", preset={"optimizer": {"learning_rate": 3}})


def cli(line, cls=Job, **kw):
    return config_cli(cls, line if isinstance(line, list) else line.split(), prog="audiolab job",
                      description="A job.", **kw)


def test_flags():
    assert cli("--folders a b").config == Job([Path("a"), Path("b")])
    for line in ("--folders a --batch_size 4", "--batch-size 4 --folders a",
                 "--batch-size=4 --folders a", "--batch_size=4 --folders a"):
        r = cli(line)
        assert (r.config.batch_size == 4 and r.sources["batch_size"] == "flag"
                and r.sources["lang"] == "default")
    r = cli("--folders a --optimizer.learning-rate 1e-3 --optimizer.schedule.warmup 3 --amp --mode viterbi --window FLAT --resume x --optimizer.betas 0 1")
    assert r.config == Job([Path("a")], amp=True, mode="viterbi", window=Window.FLAT,
                           resume=Path("x"), optimizer=Optim(1e-3, (0., 1.), Schedule(3)))
    r = cli("--folders a --no-amp --batch-size 16")  # as the defaults, but said
    assert r.sources["amp"] == r.sources["batch_size"] == "flag"
    assert cli("--folders a --lang no").config.lang == "no"
    assert (cli("--folders a --dry-run").dry_run, cli("--folders a --print-config").print_config,
            cli("--folders a").dry_run) == (True, True, False)


def test_flags_beat_the_file_wherever_they_stand(tmp_path):
    path = tmp_path/"job.yaml"
    path.write_text("folders: [from, file]\nbatch_size: 2\namp: true\noptimizer: {learning_rate: 0.25}\n")
    presets = {"big": Job([], 64, lang="am", optimizer=Optim(0.5, (0., 0.))),
               "small": {"batch_size": 1}, "made": lambda: Job([], tags=["made"])}
    words = [["--batch-size", "9"], [f"--config={path}"], ["--preset", "big"], ["--no-amp"]]
    for order in ([0, 1, 2, 3], [1, 0, 3, 2], [3, 2, 1, 0], [2, 3, 0, 1]):
        r = cli([w for i in order for w in words[i]], presets=presets)
        assert r.config == Job([Path("from"), Path("file")], 9, lang="am",
                               optimizer=Optim(0.25, (0., 0.)))
        assert [r.sources[k] for k in ("batch_size", "folders", "amp", "optimizer.betas",
                                       "code")] == ["flag", f"{path}:1", "flag", "preset",
                                                    "default"]
    # the default's value, given as a flag
    assert cli(["--config", str(path), "--batch-size", "16"]).config.batch_size == 16
    assert cli("--folders a --preset made", presets=presets).config.tags == ["made"]
    with pytest.raises(ConfigError, match="Did you mean 'small'"):
        cli("--folders a --preset smal", presets=presets)
    with pytest.raises(ConfigError, match="cannot be read"): cli("--config none.yaml")
    path.write_text("folders: [a]\nbatch_size: 0\n")
    with pytest.raises(ConfigError,
                       match=r"job.yaml:2:13: batch_size: expected at least 1, found 0"):
        cli(["--config", str(path)])
    # the required key may still come as a flag, so only the other mistake is told
    path.write_text("batch_sise: 3\n")
    with pytest.raises(ConfigError) as e: cli(["--config", str(path)])
    assert [p.path for p in e.value.problems] == ["batch_sise"]


@pytest.mark.parametrize("line, message", [
    ("--folders a --batch-size 0", "--batch-size: expected at least 1, found 0"),
    ("--folders a --batch_size -3", "--batch-size: expected at least 1, found -3"),
    ("--folders a --optimizer.learning-rate nan",
     "--optimizer.learning-rate: expected a finite number, found NaN"),
    ("--folders a --optimizer.schedule.decay inf",
     "--optimizer.schedule.decay: expected a finite number, found Infinity"),
    ("--folders a --tags a b c d", "--tags: expected at most 3 elements, found a list of 4"),
    ("--folders a --batch-size 0 --optimizer.learning-rate 2",
     "--batch-size: expected at least 1, found 0\n--optimizer.learning-rate: expected less than 1, found 2.0"),
])
def test_flags_are_checked_like_files(line, message):
    with pytest.raises(ConfigError) as e: cli(line)
    assert str(e.value) == message


@pytest.mark.parametrize("line, code, words", [
    ("--folders a --batch-sizee 3", 2, "--batch-size"),
    ("--folders a --batch-size many", 2, "--batch-size"),
    ("--folders a --batch-size 3.7", 2, "--batch-size"),
    ("--folders a --mode vitrbi", 2, "viterbi"), ("", 2, "--folders"), ("--folders a stray", 0, ""),
    ("--config", 2, "--config"),
    ("--help", 0, "segments a step"), ("--help", 0, "--dry-run"), ("--help", 0, "--config"),
    ("--config none.yaml --help", 0, "channels|step size"), ("-h", 0, "A job."),
])
def test_exit_codes(capsys, line, code, words):
    if line.endswith("stray"):
        assert cli(line).config.folders == [Path("a"), Path("stray")]
        return
    with pytest.raises(SystemExit) as e: cli(line)
    out = capsys.readouterr()
    assert (e.value.code == code and any(w in (out.err if code else out.out)
                                         for w in words.split("|")))


@dataclass(frozen=True, slots=True)
class Files:
    "Some files."
    files: list[Path]  # which
    config: str = "own"  # a field that is named like a common flag
    ratio: float = 0.5  # a number

    def __post_init__(self):
        if self.ratio > 1: raise ValueError("ratio must not exceed 1; use percent elsewhere")


@dataclass
class Derived:
    "With a field that is computed."
    width: int = 2  # given
    area: int = field(init=False, default=0)  # computed

    def __post_init__(self): self.area = self.width**2


def test_unusual_classes(tmp_path):
    r = cli("a b --ratio 0.25 --config mine", Files, positional=True)
    assert (r.config == Files([Path("a"), Path("b")], "mine", 0.25)
            and r.sources == {"files": "flag", "config": "flag", "ratio": "flag"})
    with pytest.raises(ConfigError, match="must not exceed 1"):
        load_config(Files, None, {"files": [], "ratio": 2})
    with pytest.raises(ConfigError, match="must not exceed 1"):
        cli("a --ratio 2", Files, positional=True)
    r = cli("--width 3", Derived)
    assert r.config.area == 9 and r.sources == {"width": "flag"}
    assert load_config(Derived, save_config(r.config, tmp_path/"d.yaml")).config == r.config
    with pytest.raises(ConfigError, match="unknown key"): load_config(Derived, None, {"area": 3})


def test_torch_is_not_imported():
    code = "import sys, audiolab.config as c; c.config_cli.__name__; import tyro; assert not {'torch', 'numpy', 'numba'} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
