"Configurations: every way to write one right or wrong, from files, presets and flags."
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from annotated_types import Ge, Gt, Le, Len, Lt
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from audiolab.config import ConfigError, config_cli, describe_config, load_config, save_config
from audiolab.config import read_config_file, write_value
from audiolab.config.strict_yaml import _build_tree, _yaml_events


class Window(Enum):
    HANN = "hann"
    FLAT = "flat"


@dataclass
class Schedule:
    "How the learning rate moves."
    warmup: Annotated[int, Ge(0)] = 100  # steps to full rate
    decay: Annotated[float, Gt(0), Le(1)] = 0.999  # factor a step


@dataclass
class Optim:
    "Optimiser."
    learning_rate: Annotated[float, Gt(0), Lt(1)] = 2e-4  # step size
    betas: tuple[float, float] = (0.8, 0.99)  # memory
    schedule: Schedule = field(default_factory=lambda: Schedule(warmup=7))  # of the rate


@dataclass
class Layer:
    "One layer."
    width: Annotated[int, Ge(1)]  # channels
    kernel: int = 3  # taps


@dataclass
class Job:
    "A run."
    folders: list[Path]  # where the audio is
    batch_size: Annotated[int, Ge(1)] = 16  # segments a step
    lang: str = "en"  # language
    code: str = ""  # free text
    since: str = ""  # a date
    window: Window = Window.HANN  # analysis window
    mode: Literal["em", "viterbi"] = "em"  # training mode
    resume: Path|None = None  # checkpoint
    amp: bool = False  # half precision
    seed: int|Literal["random"] = 0  # of everything
    weights: dict[str, float] = field(default_factory=dict)  # of losses
    layers: list[Layer] = field(default_factory=list)  # of the network
    tags: Annotated[list[str], Len(0, 3)] = field(default_factory=list)  # for you
    optimizer: Optim = field(default_factory=Optim)  # optimiser
    teacher: Optim|None = None  # second optimiser


@pytest.fixture
def load(tmp_path):
    def load(text, suffix="yaml", cls=Job, required="folders: [a]\n", **kw):
        path = tmp_path/f"job.{suffix}"
        path.write_bytes(text if isinstance(text, bytes) else (required + text if suffix == "yaml" else text).encode())
        return load_config(cls, path, **kw)
    return load


@pytest.mark.parametrize("text, key, value", [
    ("optimizer:\n  learning_rate: 1e-3", "optimizer.learning_rate", 1e-3),
    ("optimizer: {learning_rate: 1E-3}", "optimizer.learning_rate", 1e-3),
    ("optimizer: {learning_rate: .5}", "optimizer.learning_rate", 0.5),
    ("lang: no", "lang", "no"), ("lang: NO", "lang", "NO"), ("lang: on", "lang", "on"), ("lang: y", "lang", "y"), ("lang: off", "lang", "off"),
    ("lang: 'true'", "lang", "true"), ('lang: "1"', "lang", "1"), ("lang: 12:30:45", "lang", "12:30:45"),
    ("since: 2026-01-31", "since", "2026-01-31"), ("since: 2001-12-14t21:59:43.10-05:00", "since", "2001-12-14t21:59:43.10-05:00"),
    ("batch_size: 010", "batch_size", 10), ("batch_size: +8", "batch_size", 8),
    ("code: 1_000", "code", "1_000"), ("code: 0x1F", "code", "0x1F"), ("code: 0o17", "code", "0o17"), ("code: '<<'", "code", "<<"), ("code: =", "code", "="),
    ("amp: true", "amp", True), ("amp: FALSE", "amp", False),
    ("resume: null", "resume", None), ("resume:", "resume", None), ("resume: a/b.safetensors", "resume", Path("a/b.safetensors")),
    ("window: flat", "window", Window.FLAT), ("mode: viterbi", "mode", "viterbi"), ("seed: random", "seed", "random"), ("seed: 3", "seed", 3),
    ("weights: {mel: 45, adv: 1.5}", "weights", {"mel": 45.0, "adv": 1.5}),
    ("layers:\n- width: 3\n- {width: 4, kernel: 5}", "layers", [Layer(3), Layer(4, 5)]),
    ("optimizer: {betas: [0.5, 1]}", "optimizer.betas", (0.5, 1.0)),
    ("teacher: {learning_rate: 0.5}", "teacher", Optim(learning_rate=0.5)),
    ("code: |\n  two\n  lines\n", "code", "two\nlines\n"), ('code: "\\u00e9\\t\\U0001F600"', "code", "é\t😀"),
])
def test_values_that_yaml_readers_get_wrong(load, text, key, value):
    config = load(text).config
    for name in key.split("."): config = getattr(config, name)
    assert config == value and type(config) is type(value)


@pytest.mark.parametrize("text, where, path, words", [
    ("batch_size: many", "2:13", "batch_size", "an integer, found 'many'"),
    ("batch_size: 3.7", "2:13", "batch_size", "an integer, found 3.7"),
    ("batch_size: 3.0", "2:13", "batch_size", "an integer, found 3.0"),
    ("batch_size: true", "2:13", "batch_size", "an integer, found true"),
    ("batch_size: '3'", "2:13", "batch_size", "Write 3, without quotes"),
    ("batch_size: 1_000", "2:13", "batch_size", "Write 1000,"),
    ("batch_size: 0", "2:13", "batch_size", "at least 1, found 0"),
    ("batch_size:", "2:12", "batch_size", "an integer, found null"),
    ("batch_size: [1]", "2:13", "batch_size", "an integer, found a list"),
    ("amp: yes", "2:6", "amp", "Write true"), ("amp: 1", "2:6", "amp", "true or false"), ("amp: off", "2:6", "amp", "Write false"),
    ("lang: 3", "2:7", "lang", "a text, found 3"), ("lang: true", "2:7", "lang", "a text, found true"),
    ("batch_sze: 3", "2:1", "batch_sze", "Did you mean 'batch_size'?"),
    ("batch-size: 3", "2:1", "batch-size", "Did you mean 'batch_size'?"),
    ("warmup: 3", "2:1", "warmup", "Did you mean 'optimizer.schedule.warmup'?"),
    ("xyzzy: 3", "2:1", "xyzzy", "Known here: folders, batch_size"),
    ("optimizer:\n  learning_rat: 3", "3:3", "optimizer.learning_rat", "Did you mean 'learning_rate'?"),
    ("optimizer:\n  schedule:\n    warmupp: 3", "4:5", "optimizer.schedule.warmupp", "Did you mean 'warmup'?"),
    ("teacher: {learning_rat: 3}", "2:11", "teacher.learning_rat", "Did you mean 'learning_rate'?"),
    ("layers:\n- {width: 3, kernl: 1}", "3:14", "layers[0].kernl", "Did you mean 'kernel'?"),
    ("layers:\n- {width: 3}\n- {kernel: 1}", "4:3", "layers[1].width", "required"),
    ("layers:\n- {width: 3}\n- {width: 0}", "4:11", "layers[1].width", "at least 1"),
    ("optimizer: fast", "2:12", "optimizer", "a mapping"), ("optimizer: {learning_rate: 1}", "2:28", "optimizer.learning_rate", "less than 1"),
    ("optimizer: {betas: [1]}", "2:20", "optimizer.betas", "more elements"), ("optimizer: {betas: [1, 2, 3]}", "2:20", "optimizer.betas", "at most 2"),
    ("weights: {mel: x}", "2:16", "weights.mel", "a number"), ("window: han", "2:9", "window", "Did you mean 'hann'?"),
    ("mode: vitrbi", "2:7", "mode", "Did you mean 'viterbi'?"), ("seed: 1.5", "2:7", "seed", "an integer or one of 'random'"),
    ("tags: [a, b, c, d]", "2:7", "tags", "at most 3"), ("tags: a", "2:7", "tags", "Write [a]"),
    ("batch_size: 3\nbatch_size: 4", "3:1", "", "twice; first on line 2"),
    ("optimizer: {learning_rate: .1, learning_rate: .2}", "2:32", "", "twice"),
    ("optimizer: {learning_rate: .nan}", "2:28", "", "finite"), ("optimizer: {learning_rate: -.Inf}", "2:28", "", "finite"),
    ("optimizer: {learning_rate: 1e999}", "2:28", "", "larger than a float"), ("batch_size: " + "9"*5000, "2:13", "", "too long"),
    ("lang: !!str no", "2:7", "", "tags"), ("lang: !x no", "2:7", "", "tags"), ("lang: !!python/name:os.system ''", "2:7", "", "tags"),
    ("lang: &a no", "2:7", "", "anchors"), ("lang: *a", "2:7", "", "aliases"), ("<<: {lang: no}", "2:1", "<<", "unknown key"),
    ("? [a]\n: 3", "2:3", "", "a key must be"), ("lang: [", "2:8", "", "not valid YAML"), ("lang: a: b", "2:8", "", "not valid YAML"),
    ("\tlang: a", "2:1", "", "not valid YAML"), ("---\nlang: b", "2:1", "", "second document"), ("lang: \"\\ud800\"", "2:7", "", "surrogate"),
    ('lang: "\\0"', "2:7", "", "NUL"), ("lang: \x07", "2:7", "", "not valid YAML"),
])
def test_mistakes_are_located(load, tmp_path, text, where, path, words):
    with pytest.raises(ConfigError) as e: load(text)
    problem = e.value.problems[0]
    assert (problem.where, problem.path) == (f"{tmp_path/'job.yaml'}:{where}", path) and words in problem.message, str(e.value)
    assert len(e.value.problems) == 1 and str(e.value).startswith(f"{tmp_path/'job.yaml'}:{where}: ")


def test_whole_file_mistakes(load, tmp_path):
    for text, words in [(b"- a", "1:1: expected a mapping"), (b"just words", "1:1: expected a mapping"), (b"a: \xff", "job.yaml:1: not UTF-8"),
                        (b"lang: no", "1:1: folders: is required"), (b"", "folders: is required"), (b"a" * 300_000, "larger than 256 KiB")]:
        with pytest.raises(ConfigError, match=words): load(text)
    for path in (tmp_path/"none.yaml", tmp_path, "a\0b"):
        with pytest.raises(ConfigError, match="cannot be read"): load_config(Job, path)
    assert load("lang: no", required="\ufefffolders: [a]\r\n").config.lang == "no"  # byte order mark, CRLF


def test_json(load, tmp_path):
    good = {"folders": ["a"], "batch_size": 4, "lang": "no", "code": "a\"\\\u00e9\U0001F600\n", "optimizer": {"learning_rate": 1e-3, "betas": [0.1, 0.2]}}
    for text in (json.dumps(good), json.dumps(good, indent="\t", ensure_ascii=False)):
        resolved = load(text, "json")
        assert resolved.config.optimizer == Optim(1e-3, (0.1, 0.2)) and resolved.config.code == good["code"]
    assert resolved.sources["optimizer.learning_rate"] == f"{tmp_path/'job.json'}:9"
    for text, where, words in [('{"folders": ["a"],\n "batch_size": 3.7}', "2:16", "an integer"), ('{"folders": ["a"],\n "folders": []}', "2:2", "twice"),
                               ('{"folders": ["a"],}', "1:19", "not valid JSON"), ('{"folders": NaN}', "1:13", "NaN"), ("[1]", "1:1", "a mapping"),
                               ('{"folders": ["a"], "lnag": 1}', "1:20", "Did you mean 'lang'?"), ('{"lang": "\\ud800"}', "1:10", "surrogate"),
                               ('{"batch_size": ' + "9"*5000 + "}", "1:16", "too long"), ("[" * 100_000, "", "not valid JSON|too deep"), ("", "1:1", "not valid JSON")]:
        with pytest.raises(ConfigError, match=words) as e: load(text, "json")
        assert e.value.problems[0].where.startswith(f"{tmp_path/'job.json'}:{where}")


BOMBS = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{c}: &{c} [{','.join(['*' + p]*9)}]\n" for p, c in zip("abcdefgh", "bcdefghi")),
    "recursive": "a: &a [*a]", "deep flow": "["*200_000, "deep maps": "{a: "*60_000, "deep dashes": "- "*100_000, "deep block": "".join(" "*i + "a:\n" for i in range(600)),
    "many keys": "".join(f"k{i}: 1\n" for i in range(30_000)), "many items": "a: [" + "1, "*80_000 + "]", "questions": "? "*100_000,
    "directives": "%A b\n"*40_000, "long word": "a: " + "x"*200_000, "escapes": 'a: "' + "\\x41"*60_000 + '"', "tags": "!"*200_000, "comments": "# c\n"*60_000,
    "100 MB": "a: 1\n" * 20_000_000, "quotes": "'"*200_000, "pipes": "a: |\n" + " b\n"*60_000, "documents": "---\n"*60_000, "anchors": "&a "*80_000,
    "open braces and text": "[{a, "*50_000, "merge": "a: &a {b: 1}\nc:\n  <<: *a\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_answered_at_once(tmp_path, name):
    path = tmp_path/"bomb.yaml"
    path.write_text(BOMBS[name])
    began = time.process_time()
    with pytest.raises(ConfigError): load_config(Job, path)
    assert time.process_time() - began < 1


def test_no_tag_runs_code(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for tag in ("!!python/object/apply:os.mkdir [owned]", "!!python/object/new:os.mkdir [owned]", "!!python/name:os.mkdir", "!!python/module:antigravity"):
        with pytest.raises(ConfigError, match="tags"): load(f"lang: {tag}")
    assert not (tmp_path/"owned").exists()


yaml_words = st.lists(st.sampled_from(["a", "lang", "folders", ": ", ":", "- ", "\n", "\n  ", " ", "[", "]", "{", "}", ",", "'", '"', "|", ">", "&a", "*a", "!!int ", "%YAML 1.1",
    "---", "...", "# c", "? ", "1e-3", ".nan", "~", "\t", "\\", "\0", "\x85", "\ufeff", "\U0001F600", "0x", "<<", "@", "`", "\"\\U00110000\"", "\"\\xg\""]), max_size=40).map("".join)


def _load_or_refuse(path, data):
    path.write_bytes(data)
    began = time.process_time()
    try: result = load_config(Job, path)
    except ConfigError as e: assert str(e) and e.problems
    else: assert isinstance(result.config, Job)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.one_of(st.binary(max_size=200), yaml_words.map(lambda s: s.encode()), st.text(max_size=100).map(lambda s: s.encode(errors="replace")),
                      st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=20)
                      .map(lambda o: json.dumps(o).encode())))
@example(data=b'"\\U00110000"')
@example(data=b"%YAML 9999999999999999999999.1\n---\na: 1")
@example(data=b"? ?\n: :")
def test_fuzz_is_a_config_or_a_config_error(tmp_path, suffix, data):
    _load_or_refuse(tmp_path/f"fuzz.{suffix}", data)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(cut=st.integers(0, 300), flips=st.lists(st.tuples(st.integers(0, 299), st.integers(0, 255)), max_size=4))
def test_fuzz_of_a_good_file(tmp_path, cut, flips):
    data = bytearray(b"folders: [a, 'b c']\nlang: no\nlayers:\n- {width: 3}\noptimizer:\n  learning_rate: 1e-3\n  schedule: {warmup: 5}\nweights: {mel: 45}\n"*1)
    for at, value in flips: data[at % len(data)] = value
    _load_or_refuse(tmp_path/"fuzz.yaml", bytes(data[:cut]))


plain_text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))
finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.recursive(st.none() | st.booleans() | finite | st.integers(-10**30, 10**30) | plain_text,
                    lambda x: st.lists(x, max_size=4) | st.dictionaries(plain_text.map(lambda t: t[:8]), x, max_size=4), max_leaves=10))
@example("no")
@example("---")
@example("key: value # no comment")
@example("\ufeff\x85\u2028\x7f")
def test_written_values_read_back(value):
    assert _build_tree(_yaml_events(f"key: {write_value(value)}")).content["key"] == value


paths = plain_text.map(Path)
optims = st.builds(Optim, st.floats(1e-9, 0.9), st.tuples(finite, finite), st.builds(Schedule, st.integers(0, 10**9), st.floats(1e-300, 1)))
jobs = st.builds(Job, st.lists(paths), st.integers(1), plain_text, plain_text, plain_text, st.sampled_from(Window), st.sampled_from(["em", "viterbi"]), st.none() | paths,
                 st.booleans(), st.integers(-10**20, 10**20) | st.just("random"), st.dictionaries(plain_text, finite), st.lists(st.builds(Layer, st.integers(1), st.integers())),
                 st.lists(plain_text, max_size=3), optims, st.none() | optims)


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(job=jobs)
def test_saved_configs_load_back_equal(tmp_path, suffix, job):
    path = save_config(job, tmp_path/f"saved.{suffix}")
    resolved = load_config(Job, path)
    assert resolved.config == job
    (tmp_path/"shown.yaml").write_text(describe_config(resolved), encoding="utf-8")
    assert load_config(Job, tmp_path/"shown.yaml").config == job
    assert sorted(o.name for o in tmp_path.iterdir() if o.name.endswith("tmp")) == []


def test_what_cannot_be_saved(tmp_path):
    for job, key in [(Job([], optimizer=Optim(float("nan"))), "optimizer.learning_rate"), (Job([], weights={"a": float("inf")}), "weights.a"),
                     (Job([Path("\udc80")]), r"folders\[0\]"), (Job([], lang=object()), "lang"), (Job([], tags=[b"x"]), r"tags\[0\]")]:
        with pytest.raises(ConfigError, match=key): save_config(job, tmp_path/"no.yaml")
    assert not list(tmp_path.iterdir())


def test_layers_and_sources(load, tmp_path):
    r = load("optimizer:\n  betas: [0, 0]\nbatch_size: 2", preset=Job([], 64, amp=True, optimizer=Optim(0.5)), overrides={"optimizer.schedule.decay": 0.5, "seed": np.int64(3)})
    assert r.config == Job([Path("a")], 2, amp=True, seed=3, optimizer=Optim(0.5, (0.0, 0.0), Schedule(7, 0.5)))
    assert {k: v.replace(str(tmp_path), "") for k, v in r.sources.items() if v != "default"} == {
        "folders": "/job.yaml:1", "batch_size": "/job.yaml:4", "amp": "preset", "seed": "override",
        "optimizer.learning_rate": "preset", "optimizer.betas": "/job.yaml:3", "optimizer.schedule.decay": "override"}
    assert r.sources["optimizer.schedule.warmup"] == "default" and r.config.optimizer.schedule.warmup == 7  # the factory's value, not the class's
    assert load("teacher: {learning_rate: .1}\n", overrides={"teacher": None}).config.teacher is None
    r = load("", overrides={"teacher": Optim(0.25)})
    assert r.config.teacher == Optim(0.25) and r.sources["teacher.learning_rate"] == "override"
    for bad in ({"optimizer": {"lr": 1}}, {"optimizer.lr": 1}, {"batch_size": 2.5}, {"batch_size": True}, {"seed": b"x"}, {"lang": "\ud800"}):
        with pytest.raises(ConfigError): load("", overrides=bad)
    with pytest.raises(ConfigError, match="preset: optimizer.learning_rate"): load("", preset={"optimizer": {"learning_rate": 3}})


def cli(line, cls=Job, **kw): return config_cli(cls, line if isinstance(line, list) else line.split(), prog="audiolab job", description="A job.", **kw)


def test_flags():
    assert cli("--folders a b").config == Job([Path("a"), Path("b")])
    for line in ("--folders a --batch_size 4", "--batch-size 4 --folders a", "--batch-size=4 --folders a", "--batch_size=4 --folders a"):
        r = cli(line)
        assert r.config.batch_size == 4 and r.sources["batch_size"] == "flag" and r.sources["lang"] == "default"
    r = cli("--folders a --optimizer.learning-rate 1e-3 --optimizer.schedule.warmup 3 --amp --mode viterbi --window FLAT --resume x --optimizer.betas 0 1")
    assert r.config == Job([Path("a")], amp=True, mode="viterbi", window=Window.FLAT, resume=Path("x"), optimizer=Optim(1e-3, (0., 1.), Schedule(3)))
    r = cli("--folders a --no-amp --batch-size 16")  # as the defaults, but said
    assert r.sources["amp"] == r.sources["batch_size"] == "flag"
    assert cli("--folders a --lang no").config.lang == "no"
    assert (cli("--folders a --dry-run").dry_run, cli("--folders a --print-config").print_config, cli("--folders a").dry_run) == (True, True, False)


def test_flags_beat_the_file_wherever_they_stand(tmp_path):
    path = tmp_path/"job.yaml"
    path.write_text("folders: [from, file]\nbatch_size: 2\namp: true\noptimizer: {learning_rate: 0.25}\n")
    presets = {"big": Job([], 64, lang="am", optimizer=Optim(0.5, (0., 0.))), "small": {"batch_size": 1}, "made": lambda: Job([], tags=["made"])}
    words = [["--batch-size", "9"], [f"--config={path}"], ["--preset", "big"], ["--no-amp"]]
    for order in ([0, 1, 2, 3], [1, 0, 3, 2], [3, 2, 1, 0], [2, 3, 0, 1]):
        r = cli([w for i in order for w in words[i]], presets=presets)
        assert r.config == Job([Path("from"), Path("file")], 9, lang="am", optimizer=Optim(0.25, (0., 0.)))
        assert [r.sources[k] for k in ("batch_size", "folders", "amp", "optimizer.betas", "code")] == ["flag", f"{path}:1", "flag", "preset", "default"]
    assert cli(["--config", str(path), "--batch-size", "16"]).config.batch_size == 16  # the default's value, given as a flag
    assert cli("--folders a --preset made", presets=presets).config.tags == ["made"]
    with pytest.raises(ConfigError, match="Did you mean 'small'"): cli("--folders a --preset smal", presets=presets)
    with pytest.raises(ConfigError, match="cannot be read"): cli("--config none.yaml")
    path.write_text("folders: [a]\nbatch_size: 0\n")
    with pytest.raises(ConfigError, match=r"job.yaml:2:13: batch_size: expected at least 1, found 0"): cli(["--config", str(path)])
    path.write_text("batch_sise: 3\n")  # the required key may still come as a flag, so only the other mistake is told
    with pytest.raises(ConfigError) as e: cli(["--config", str(path)])
    assert [p.path for p in e.value.problems] == ["batch_sise"]


@pytest.mark.parametrize("line, message", [
    ("--folders a --batch-size 0", "--batch-size: expected at least 1, found 0"),
    ("--folders a --batch_size -3", "--batch-size: expected at least 1, found -3"),
    ("--folders a --optimizer.learning-rate nan", "--optimizer.learning-rate: expected a finite number, found NaN"),
    ("--folders a --optimizer.schedule.decay inf", "--optimizer.schedule.decay: expected a finite number, found Infinity"),
    ("--folders a --tags a b c d", "--tags: expected at most 3 elements, found a list of 4"),
    ("--folders a --batch-size 0 --optimizer.learning-rate 2", "--batch-size: expected at least 1, found 0\n--optimizer.learning-rate: expected less than 1, found 2.0"),
])
def test_flags_are_checked_like_files(line, message):
    with pytest.raises(ConfigError) as e: cli(line)
    assert str(e.value) == message


@pytest.mark.parametrize("line, code, words", [
    ("--folders a --batch-sizee 3", 2, "--batch-size"), ("--folders a --batch-size many", 2, "--batch-size"), ("--folders a --batch-size 3.7", 2, "--batch-size"),
    ("--folders a --mode vitrbi", 2, "viterbi"), ("", 2, "--folders"), ("--folders a stray", 0, ""), ("--config", 2, "--config"),
    ("--help", 0, "segments a step"), ("--help", 0, "--dry-run"), ("--help", 0, "--config"), ("--config none.yaml --help", 0, "channels|step size"), ("-h", 0, "A job."),
])
def test_exit_codes(capsys, line, code, words):
    if line.endswith("stray"): assert cli(line).config.folders == [Path("a"), Path("stray")]; return
    with pytest.raises(SystemExit) as e: cli(line)
    out = capsys.readouterr()
    assert e.value.code == code and any(w in (out.err if code else out.out) for w in words.split("|"))


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
    assert r.config == Files([Path("a"), Path("b")], "mine", 0.25) and r.sources == {"files": "flag", "config": "flag", "ratio": "flag"}
    with pytest.raises(ConfigError, match="must not exceed 1"): load_config(Files, None, {"files": [], "ratio": 2})
    with pytest.raises(ConfigError, match="must not exceed 1"): cli("a --ratio 2", Files, positional=True)
    r = cli("--width 3", Derived)
    assert r.config.area == 9 and r.sources == {"width": "flag"}
    assert load_config(Derived, save_config(r.config, tmp_path/"d.yaml")).config == r.config
    with pytest.raises(ConfigError, match="unknown key"): load_config(Derived, None, {"area": 3})


def test_torch_is_not_imported():
    code = "import sys, audiolab.config as c; c.config_cli.__name__; import tyro; assert not {'torch', 'numpy', 'numba'} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


def test_reading_keeps_every_position(tmp_path):
    path = tmp_path/"p.yaml"
    path.write_text("# comment\na: 1\nb:\n  - x\n  - {c: [1, 2]}\n")
    tree = read_config_file(path)
    assert tree.content == {"a": 1, "b": ["x", {"c": [1, 2]}]}
    assert tree.values == {(): (2, 1), ("a",): (2, 4), ("b",): (4, 3), ("b", 0): (4, 5), ("b", 1): (5, 5), ("b", 1, "c"): (5, 9),
                           ("b", 1, "c", 0): (5, 10), ("b", 1, "c", 1): (5, 13)}
    assert tree.keys == {("a",): (2, 1), ("b",): (3, 1), ("b", 1, "c"): (5, 6)}
