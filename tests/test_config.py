"Configuration files: every way to write one right or wrong."
import json
import time
from pathlib import Path

import pytest
from hypothesis import example, given, HealthCheck, settings, strategies as st

from audiolab.config import ConfigError, load_config, read_config_file
from config_jobs import Job, Layer, loader, Optim, Window


@pytest.fixture
def load(tmp_path): return loader(tmp_path)


@pytest.mark.parametrize("text, key, value", [
    ("optimizer:\n  learning_rate: 1e-3", "optimizer.learning_rate", 1e-3),
    ("optimizer: {learning_rate: 1E-3}", "optimizer.learning_rate", 1e-3),
    ("optimizer: {learning_rate: .5}", "optimizer.learning_rate", 0.5),
    ("lang: no", "lang", "no"), ("lang: NO", "lang", "NO"), ("lang: on", "lang", "on"),
    ("lang: y", "lang", "y"), ("lang: off", "lang", "off"),
    ("lang: 'true'", "lang", "true"), ('lang: "1"', "lang", "1"),
    ("lang: 12:30:45", "lang", "12:30:45"),
    ("since: 2026-01-31", "since", "2026-01-31"),
    ("since: 2001-12-14t21:59:43.10-05:00", "since", "2001-12-14t21:59:43.10-05:00"),
    ("batch_size: 010", "batch_size", 10), ("batch_size: +8", "batch_size", 8),
    ("code: 1_000", "code", "1_000"), ("code: 0x1F", "code", "0x1F"),
    ("code: 0o17", "code", "0o17"), ("code: '<<'", "code", "<<"), ("code: =", "code", "="),
    ("amp: true", "amp", True), ("amp: FALSE", "amp", False),
    ("resume: null", "resume", None), ("resume:", "resume", None),
    ("resume: a/b.safetensors", "resume", Path("a/b.safetensors")),
    ("window: flat", "window", Window.FLAT), ("mode: viterbi", "mode", "viterbi"),
    ("seed: random", "seed", "random"), ("seed: 3", "seed", 3),
    ("weights: {mel: 45, adv: 1.5}", "weights", {"mel": 45.0, "adv": 1.5}),
    ("layers:\n- width: 3\n- {width: 4, kernel: 5}", "layers", [Layer(3), Layer(4, 5)]),
    ("optimizer: {betas: [0.5, 1]}", "optimizer.betas", (0.5, 1.0)),
    ("teacher: {learning_rate: 0.5}", "teacher", Optim(learning_rate=0.5)),
    ("code: |\n  two\n  lines\n", "code", "two\nlines\n"),
    ('code: "\\u00e9\\t\\U0001F600"', "code", "é\t😀"),
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
    ("amp: yes", "2:6", "amp", "Write true"), ("amp: 1", "2:6", "amp", "true or false"),
    ("amp: off", "2:6", "amp", "Write false"),
    ("lang: 3", "2:7", "lang", "a text, found 3"),
    ("lang: true", "2:7", "lang", "a text, found true"),
    ("batch_sze: 3", "2:1", "batch_sze", "Did you mean 'batch_size'?"),
    ("batch-size: 3", "2:1", "batch-size", "Did you mean 'batch_size'?"),
    ("warmup: 3", "2:1", "warmup", "Did you mean 'optimizer.schedule.warmup'?"),
    ("xyzzy: 3", "2:1", "xyzzy", "Known here: folders, batch_size"),
    ("optimizer: {lr: 3}", "2:13", "optimizer.lr", "Did you mean 'learning_rate'?"),
    ("bs: 3", "2:1", "bs", "Did you mean 'batch_size'?"),
    ("wamrup: 3", "2:1", "wamrup", "Did you mean 'optimizer.schedule.warmup'?"),
    ("optimizer:\n  learning_rat: 3", "3:3", "optimizer.learning_rat",
     "Did you mean 'learning_rate'?"),
    ("optimizer:\n  schedule:\n    warmupp: 3", "4:5", "optimizer.schedule.warmupp",
     "Did you mean 'warmup'?"),
    ("teacher: {learning_rat: 3}", "2:11", "teacher.learning_rat", "Did you mean 'learning_rate'?"),
    ("layers:\n- {width: 3, kernl: 1}", "3:14", "layers[0].kernl", "Did you mean 'kernel'?"),
    ("layers:\n- {width: 3}\n- {kernel: 1}", "4:3", "layers[1].width", "required"),
    ("layers:\n- {width: 3}\n- {width: 0}", "4:11", "layers[1].width", "at least 1"),
    ("optimizer: fast", "2:12", "optimizer", "a mapping"),
    ("optimizer: {learning_rate: 1}", "2:28", "optimizer.learning_rate", "less than 1"),
    ("optimizer: {betas: [1]}", "2:20", "optimizer.betas", "more elements"),
    ("optimizer: {betas: [1, 2, 3]}", "2:20", "optimizer.betas", "at most 2"),
    ("weights: {mel: x}", "2:16", "weights.mel", "a number"),
    ("window: han", "2:9", "window", "Did you mean 'hann'?"),
    ("mode: vitrbi", "2:7", "mode", "Did you mean 'viterbi'?"),
    ("seed: 1.5", "2:7", "seed", "an integer or one of 'random'"),
    ("tags: [a, b, c, d]", "2:7", "tags", "at most 3"), ("tags: a", "2:7", "tags", "Write [a]"),
    ("batch_size: 3\nbatch_size: 4", "3:1", "", "twice; first on line 2"),
    ("optimizer: {learning_rate: .1, learning_rate: .2}", "2:32", "", "twice"),
    ("optimizer: {learning_rate: .nan}", "2:28", "", "finite"),
    ("optimizer: {learning_rate: -.Inf}", "2:28", "", "finite"),
    ("optimizer: {learning_rate: 1e999}", "2:28", "", "larger than a float"),
    ("batch_size: " + "9"*5000, "2:13", "", "too long"),
    ("lang: !!str no", "2:7", "", "tags"), ("lang: !x no", "2:7", "", "tags"),
    ("lang: !!python/name:os.system ''", "2:7", "", "tags"),
    ("lang: &a no", "2:7", "", "anchors"), ("lang: *a", "2:7", "", "aliases"),
    ("<<: {lang: no}", "2:1", "<<", "unknown key"),
    ("? [a]\n: 3", "2:3", "", "a key must be"), ("lang: [", "2:8", "", "not valid YAML"),
    ("lang: a: b", "2:8", "", "not valid YAML"),
    ("\tlang: a", "2:1", "", "not valid YAML"), ("---\nlang: b", "2:1", "", "second document"),
    ("lang: \"\\ud800\"", "2:7", "", "surrogate"),
    ('lang: "\\0"', "2:7", "", "NUL"), ("lang: \x07", "2:7", "", "not valid YAML"),
])
def test_mistakes_are_located(load, tmp_path, text, where, path, words):
    with pytest.raises(ConfigError) as e: load(text)
    problem = e.value.problems[0]
    assert (problem.where, problem.path) == (f"{tmp_path/'job.yaml'}:{where}",
                                             path) and words in problem.message, str(e.value)
    assert (len(e.value.problems) == 1
            and str(e.value).startswith(f"{tmp_path/'job.yaml'}:{where}: "))


def test_whole_file_mistakes(load, tmp_path):
    for text, words in [(b"- a", "1:1: expected a mapping"),
                        (b"just words", "1:1: expected a mapping"),
                        (b"a: \xff", "job.yaml:1: not UTF-8"),
                        (b"lang: no", "1:1: folders: is required"), (b"", "folders: is required"),
                        (b"a" * 300_000, "larger than 256 KiB")]:
        with pytest.raises(ConfigError, match=words): load(text)
    for path in (tmp_path/"none.yaml", tmp_path, "a\0b"):
        with pytest.raises(ConfigError, match="cannot be read"): load_config(Job, path)
    # byte order mark, CRLF
    assert load("lang: no", required="\ufefffolders: [a]\r\n").config.lang == "no"


def test_json(load, tmp_path):
    good = {"folders": ["a"], "batch_size": 4, "lang": "no", "code": "a\"\\\u00e9\U0001F600\n",
            "optimizer": {"learning_rate": 1e-3, "betas": [0.1, 0.2]}}
    for text in (json.dumps(good), json.dumps(good, indent="\t", ensure_ascii=False)):
        resolved = load(text, "json")
        assert (resolved.config.optimizer == Optim(1e-3, (0.1, 0.2))
                and resolved.config.code == good["code"])
    assert resolved.sources["optimizer.learning_rate"] == f"{tmp_path/'job.json'}:9"
    for text, where, words in [('{"folders": ["a"],\n "batch_size": 3.7}', "2:16", "an integer"),
                               ('{"folders": ["a"],\n "folders": []}', "2:2", "twice"),
                               ('{"folders": ["a"],}', "1:19", "not valid JSON"),
                               ('{"folders": NaN}', "1:13", "NaN"), ("[1]", "1:1", "a mapping"),
                               ('{"folders": ["a"], "lnag": 1}', "1:20", "Did you mean 'lang'?"),
                               ('{"lang": "\\ud800"}', "1:10", "surrogate"),
                               ('{"batch_size": ' + "9"*5000 + "}", "1:16", "too long"),
                               ("[" * 100_000, "", "not valid JSON|too deep"),
                               ("", "1:1", "not valid JSON")]:
        with pytest.raises(ConfigError, match=words) as e: load(text, "json")
        assert e.value.problems[0].where.startswith(f"{tmp_path/'job.json'}:{where}")


BOMBS = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{c}: &{c} [{','.join(['*' + p]*9)}]\n" for p, c in zip("abcdefgh", "bcdefghi")),
    "recursive": "a: &a [*a]", "deep flow": "["*200_000, "deep maps": "{a: "*60_000,
    "deep dashes": "- "*100_000, "deep block": "".join(" "*i + "a:\n" for i in range(600)),
    "many keys": "".join(f"k{i}: 1\n" for i in range(30_000)),
    "many items": "a: [" + "1, "*80_000 + "]", "questions": "? "*100_000,
    "directives": "%A b\n"*40_000, "long word": "a: " + "x"*200_000,
    "escapes": 'a: "' + "\\x41"*60_000 + '"', "tags": "!"*200_000, "comments": "# c\n"*60_000,
    "100 MB": "a: 1\n" * 20_000_000, "quotes": "'"*200_000, "pipes": "a: |\n" + " b\n"*60_000,
    "documents": "---\n"*60_000, "anchors": "&a "*80_000,
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
    for tag in ("!!python/object/apply:os.mkdir [owned]", "!!python/object/new:os.mkdir [owned]",
                "!!python/name:os.mkdir", "!!python/module:antigravity"):
        with pytest.raises(ConfigError, match="tags"): load(f"lang: {tag}")
    assert not (tmp_path/"owned").exists()


yaml_words = st.lists(st.sampled_from(["a", "lang", "folders", ": ", ":", "- ", "\n", "\n  ", " ",
                                       "[", "]", "{", "}", ",", "'", '"', "|", ">", "&a", "*a",
                                       "!!int ", "%YAML 1.1",
    "---", "...", "# c", "? ", "1e-3", ".nan", "~", "\t", "\\", "\0", "\x85", "\ufeff",
    "\U0001F600", "0x", "<<", "@", "`", "\"\\U00110000\"", "\"\\xg\""]), max_size=40).map("".join)


def _load_or_refuse(path, data):
    path.write_bytes(data)
    began = time.process_time()
    try: result = load_config(Job, path)
    except ConfigError as e: assert str(e) and e.problems
    else: assert isinstance(result.config, Job)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck),
          derandomize=True)
@given(data=st.one_of(st.binary(max_size=200), yaml_words.map(lambda s: s.encode()),
                      st.text(max_size=100).map(lambda s: s.encode(errors="replace")),
                      st.recursive(st.none() | st.booleans() | st.floats() | st.integers()
                                   | st.text(), lambda x: st.lists(x)
                                   | st.dictionaries(st.text(), x), max_leaves=20)
                      .map(lambda o: json.dumps(o).encode())))
@example(data=b'"\\U00110000"')
@example(data=b"%YAML 9999999999999999999999.1\n---\na: 1")
@example(data=b"? ?\n: :")
def test_fuzz_is_a_config_or_a_config_error(tmp_path, suffix, data):
    _load_or_refuse(tmp_path/f"fuzz.{suffix}", data)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck),
          derandomize=True)
@given(cut=st.integers(0, 300), flips=st.lists(st.tuples(st.integers(0, 299), st.integers(0, 255)),
                                               max_size=4))
def test_fuzz_of_a_good_file(tmp_path, cut, flips):
    data = bytearray(b"folders: [a, 'b c']\nlang: no\nlayers:\n- {width: 3}\noptimizer:\n  learning_rate: 1e-3\n  schedule: {warmup: 5}\nweights: {mel: 45}\n"*1)
    for at, value in flips: data[at % len(data)] = value
    _load_or_refuse(tmp_path/"fuzz.yaml", bytes(data[:cut]))


def test_reading_keeps_every_position(tmp_path):
    path = tmp_path/"p.yaml"
    path.write_text("# comment\na: 1\nb:\n  - x\n  - {c: [1, 2]}\n")
    tree = read_config_file(path)
    assert tree.content == {"a": 1, "b": ["x", {"c": [1, 2]}]}
    assert tree.values == {(): (2, 1), ("a",): (2, 4), ("b",): (4, 3), ("b", 0): (4, 5),
                           ("b", 1): (5, 5), ("b", 1, "c"): (5, 9),
                           ("b", 1, "c", 0): (5, 10), ("b", 1, "c", 1): (5, 13)}
    assert tree.keys == {("a",): (2, 1), ("b",): (3, 1), ("b", 1, "c"): (5, 6)}
