"""Several processes train a codec: the curve of one, streams without overlap, kills.

As a program: python test_snac_processes.py SETTINGS.json SEEN  trains, resuming what is there, and
writes down which clips each process saw.
"""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from child_processes import children_of
from engine_tasks import rows, state_of
from snac_runs import (
    codec_of, copy_run, fit, in_one_thread, last, make_corpus, merged, over, QUIET,
    same_curve, settings, streamed, two,
)

from audiolab.snac import as_config, SnacTask
from audiolab.training import RunFolder, Trainer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory): return make_corpus(tmp_path_factory.mktemp("corpus")/"sound")


@pytest.fixture(autouse=True)
def one_thread(): yield from in_one_thread()


class Noting(SnacTask):
    "Writes down which clips it saw"
    def __init__(self, config, seen):
        super().__init__(config)
        self.seen = seen
    def step(self, batch, loop):
        with open(f"{self.seen}.{loop.rank}", "a") as file:
            file.write(json.dumps([loop.step, loop.epoch, list(map(str, batch["id"]))])+"\n")
        return super().step(batch, loop)


def fit_noting(given, seen):
    config = as_config(given)
    return Trainer(Noting(config, str(seen)), config.training,
                   RunFolder(config.paths.checkpoint_dir, checkpoints="."))


@pytest.mark.parametrize("mode", ["gradient", pytest.param("ema", marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_does(mode, corpus, tmp_path):
    more = merged(QUIET, {"codebooks": {"mode": mode, "restart_after": 1.},
                          "training": {"steps": 3, "validate_every": "3 steps"},
                          "data": {"validation": .3, "validation_clips": 2,
                                   "validation_seconds": .2}})
    # this one first: the other two have what it imports
    fit(settings(tmp_path/"one", corpus, more))
    assert [over(pid, 120)
            for pid in two(lambda: fit(settings(tmp_path/"two", corpus, more)))] == [0, 0]
    same_curve(tmp_path/"one", tmp_path/"two")
    weights = [codec_of(last(tmp_path/name)) for name in ("one", "two")]
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, atol=2e-3, err_msg=name)
    copy_run(tmp_path/"two", tmp_path/"two then one", 2)
    fit(settings(tmp_path/"two then one", corpus, more), "auto")
    same_curve(tmp_path/"one", tmp_path/"two then one")


def check_seen(seen, rank_steps, items):
    found = {}
    for rank in (0, 1):
        for line in Path(f"{seen}.{rank}").read_text().splitlines():
            step, epoch, ids = json.loads(line)
            found[rank, step] = epoch, ids  # after a kill a step is repeated
    assert {step for _, step in found} == set(range(rank_steps))
    for epoch in {epoch for epoch, _ in found.values()}:
        ids = [name for number, names in found.values() if number == epoch for name in names]
        assert len(ids) == len(set(ids)) == items, epoch


def test_two_processes_on_a_stream_are_killed_and_go_on(tmp_path):
    "Each clip once an epoch over both, and the curve of an unbroken run"
    more, table = streamed(tmp_path)
    def whole(): return fit_noting(settings(tmp_path/"whole", table, more), tmp_path/"all").fit()
    assert [over(pid, 120) for pid in two(whole)] == [0, 0]
    check_seen(tmp_path/"all", 4, 16)
    def part():
        return fit_noting(settings(tmp_path/"run", table, more), tmp_path/"seen").fit("auto")
    pids, until = two(part), time.monotonic()+60
    while not (tmp_path/"run"/"snac_16khz_iter_2.safetensors").exists():
        assert time.monotonic() < until
        time.sleep(.01)
    for pid in pids: os.kill(pid, signal.SIGKILL)
    assert [over(pid, 10) for pid in pids] == [-signal.SIGKILL]*2
    assert [over(pid, 120) for pid in two(part)] == [0, 0]
    check_seen(tmp_path/"seen", 4, 16)
    assert rows(tmp_path/"run") == rows(tmp_path/"whole")
    assert state_of(last(tmp_path/"run")) == state_of(last(tmp_path/"whole"))


@pytest.mark.slow
def test_processes_of_the_command_line(corpus, tmp_path):
    for name, words in (("one", []), ("two", ["--processes", "2"])):
        (tmp_path/f"{name}.json").write_text(json.dumps(settings(tmp_path/name, corpus, QUIET)))
        command = [sys.executable, "-m", "audiolab", "snac", "train", "--config",
                   str(tmp_path/f"{name}.json"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    same_curve(tmp_path/"one", tmp_path/"two")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_torchrun_on_a_stream_is_killed_and_goes_on(tmp_path):
    more, table = streamed(tmp_path, 2)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                "2", __file__]
    def start(name):
        (tmp_path/f"{name}.json").write_text(json.dumps(settings(tmp_path/name, table, more)))
        return subprocess.Popen([*launcher, str(tmp_path/f"{name}.json"),
                                 str(tmp_path/f"{name}.seen")], stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, text=True)
    process = start("whole")
    assert process.wait(300) == 0, process.stderr.read()
    for stop_at in (2, 5):
        process, until = start("run"), time.monotonic()+120
        while not (tmp_path/"run"/f"snac_16khz_iter_{stop_at}.safetensors").exists():
            assert time.monotonic() < until
            time.sleep(.01)
        for pid in [*children_of(process.pid), process.pid]: os.kill(pid, signal.SIGKILL)
        process.communicate()
    process = start("run")
    assert process.wait(300) == 0, process.stderr.read()
    for name in ("run", "whole"): check_seen(tmp_path/f"{name}.seen", 8, 16)
    assert rows(tmp_path/"run") == rows(tmp_path/"whole")
    assert state_of(last(tmp_path/"run")) == state_of(last(tmp_path/"whole"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_networks_learn_the_same(corpus, tmp_path):
    import shutil
    if not shutil.which("g++"): pytest.skip("needs g++ (Debian: apt-get install g++)")
    for name in ("plain", "compiled"):
        fit(settings(tmp_path/name, corpus, QUIET,
                     {"training": {"compile": name == "compiled", "steps": 2}}))
    same_curve(tmp_path/"plain", tmp_path/"compiled", 1e-3)
    assert codec_of(last(tmp_path/"compiled")).keys() == codec_of(last(tmp_path/"plain")).keys()


if __name__ == "__main__":
    torch.set_num_threads(1)
    given, seen = sys.argv[1:]
    sys.exit(fit_noting(json.loads(Path(given).read_text()), seen).fit("auto").exit_code)
