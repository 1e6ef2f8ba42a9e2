"What tests of faults share: a run in a process of its own, one thread, and the state at the end."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from child_processes import Fork
from engine_tasks import Denoise, config, state_of

from audiolab.training import Trainer

ENV = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def child_of(functions):
    "Runs a function of a test file in a process of its own; what it printed as JSON"
    def start(name, launcher, words):
        if not launcher: return Fork(one_of, functions, name, words)
        given = (f"{key}={json.dumps(value)}" for key, value in words.items())
        command = [sys.executable, *launcher, functions["__file__"], name, *given]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=ENV, stdout=pipe, stderr=pipe, text=True)

    def child(name, launcher=(), **words):
        run = start(name, launcher, words)
        out, err = run.communicate(timeout=240)
        assert run.returncode == 0, err[-3000:] + out[-1000:]
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return child


def one_of(functions, name, words):
    torch.set_num_threads(1)
    functions[name](**words)


def be_child(functions):
    "In that process: the function that was asked for"
    name, *words = sys.argv[1:]
    given = (word.split("=", 1) for word in words)
    one_of(functions, name, {key: json.loads(value) for key, value in given})


def final(folder): return state_of(Path(folder)/"checkpoints"/"checkpoint_final.safetensors")


def unbroken(folder, task=Denoise, **changes):
    Trainer(task(), config(**changes), folder).fit()
    return final(folder)
