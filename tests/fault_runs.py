"What tests of faults share: a run in a process of its own, one thread, and the state at the end."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_tasks import Denoise, config, state_of

from audiolab.training import Trainer

ENV = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def child_of(script):
    "Runs a function of a test file in a process of its own; what it printed as JSON"
    def child(name, launcher=(), **words):
        given = (f"{key}={json.dumps(value)}" for key, value in words.items())
        run = subprocess.run([sys.executable, *launcher, script, name, *given], env=ENV,
                             capture_output=True, text=True, timeout=240)
        assert run.returncode == 0, run.stderr[-3000:] + run.stdout[-1000:]
        return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    return child


def be_child(functions):
    "In that process: the function that was asked for"
    torch.set_num_threads(1)
    name, *words = sys.argv[1:]
    given = (word.split("=", 1) for word in words)
    functions[name](**{key: json.loads(value) for key, value in given})


def final(folder): return state_of(Path(folder)/"checkpoints"/"checkpoint_final.safetensors")


def unbroken(folder, task=Denoise, **changes):
    Trainer(task(), config(**changes), folder).fit()
    return final(folder)
