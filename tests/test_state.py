"State without pickle: round trips, exact resuming, hostile files."
import json
import os
import random
import struct
import subprocess
import sys
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, HealthCheck, settings, strategies as st

from audiolab.files import (
    CheckpointError, inspect_checkpoint, load_state, pack_state, read_checkpoint, read_npz,
    save_state, unpack_state, verify_checkpoint, write_checkpoint,
)
from state_files import same, strict


# --- hostile files, given to every reader

def container(header, data=b""): return struct.pack("<Q", len(header)) + header + data


def test_not_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing", "/dev/zero", "nul\0byte"):
        for read in (load_state, read_npz):
            with pytest.raises(CheckpointError): read(path)


@pytest.fixture(scope="module")
def fuzz_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "f.safetensors"
    save_state(path, {"w": np.arange(3, dtype=np.int8), "n": (1.5, {2: None}), "t": torch.ones(2)},
               {"k": "v"})
    return path, path.read_bytes()


def read_everything(path):
    for read in (read_checkpoint, lambda p: read_checkpoint(p, verify=False), inspect_checkpoint,
                 load_state, read_npz):
        try: read(path)
        except CheckpointError: pass
    str(verify_checkpoint(path))


FUZZ = settings(max_examples=200, deadline=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True,
                database=None)


@FUZZ
@given(st.data())
@pytest.mark.filterwarnings("ignore:.*no digests")
def test_fuzz_changed_files(fuzz_file, data):
    path, content = fuzz_file
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at, kind = data.draw(st.integers(0, len(damaged) - 1)), data.draw(st.integers(0, 2))
        if kind == 0: damaged[at] = data.draw(st.integers(0, 255))
        elif kind == 1: del damaged[at:at + data.draw(st.integers(1, 30))]
        else: damaged[at:at] = data.draw(st.binary(max_size=20))
        if not damaged: break
    path.write_bytes(damaged)
    read_everything(path)
    if damaged != content:
        with pytest.raises(CheckpointError): read_checkpoint(path)


tags = st.sampled_from(["dtype", "shape", "data_offsets", "U8", "float", "tuple", "dict", "array",
                        "torch", "int", "Counter"])
scalars = (st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.text(max_size=4)
           | st.floats())
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(tags | st.text(max_size=3), inner, max_size=4), max_leaves=12)


@FUZZ
@given(st.dictionaries(st.sampled_from(["__metadata__", "a", "b"]), json_values, max_size=3),
       st.binary(max_size=16))
@pytest.mark.filterwarnings("ignore:.*no digests")
def test_fuzz_headers(fuzz_file, tree, data):
    fuzz_file[0].write_bytes(container(json.dumps(tree).encode(), data))
    read_everything(fuzz_file[0])


@FUZZ
@given(json_values)
def test_fuzz_state_trees(tree):
    try:
        notes = {"audiolab.state": json.dumps({"version": 1, "tree": tree})}
        unpack_state({"a": np.ones(2)}, notes)
    except CheckpointError: pass


@FUZZ
@given(st.binary(max_size=200))
@pytest.mark.filterwarnings("ignore:.*no digests")
def test_fuzz_bytes(fuzz_file, content):
    fuzz_file[0].write_bytes(content)
    read_everything(fuzz_file[0])


# --- state

leaves = (st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
          | st.text(max_size=8) | st.just(float("inf"))
          | st.builds(lambda n: np.arange(n, dtype="int16"),
                      st.integers(0, 3))
                      | st.builds(lambda n: torch.full((n,), 0.1, dtype=torch.bfloat16),
                                  st.integers(0, 3)))
nests = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3)
                     | st.lists(inner, max_size=3).map(tuple)
                     | st.dictionaries(st.text(max_size=4) | st.integers(-2**62, 2**62), inner,
                                       max_size=3), max_leaves=15)


@FUZZ
@given(nests)
def test_any_nest_round_trips(fuzz_file, nest):
    assert same(load_state(save_state(fuzz_file[0], nest))[0], nest)


def test_random_generators_round_trip(tmp_path):
    torch.manual_seed(3)
    random.seed(4)
    kinds = (np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64,
             np.random.MT19937)
    states = {"torch": torch.get_rng_state(), "python": random.getstate(),
              "numpy": np.random.RandomState(5).get_state()}
    states |= {kind.__name__: np.random.Generator(kind(6)).bit_generator.state for kind in kinds}
    back, notes = load_state(save_state(tmp_path / "rng", states, {"epoch": "2"}))
    assert same(back, states) and notes == {"epoch": "2"}
    expected = torch.rand(3), random.random(), np.random.Generator(np.random.SFC64(6)).random()
    torch.set_rng_state(back["torch"])
    random.setstate(back["python"])
    again = np.random.Generator(np.random.SFC64(0))
    again.bit_generator.state = back["SFC64"]
    assert (torch.equal(torch.rand(3), expected[0])
            and (random.random(), again.random()) == expected[1:])


def make_run(name):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
    optimizer = {"AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
                 "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
                 "amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
                 "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
                 "NAdam": torch.optim.NAdam, "RAdam": torch.optim.RAdam, "Rprop": torch.optim.Rprop,
                 "Adafactor": torch.optim.Adafactor}[name](model.parameters())
    schedulers = torch.optim.lr_scheduler
    schedule = schedulers.SequentialLR(optimizer,
                                       [schedulers.LinearLR(optimizer, 0.1, total_iters=5),
                                        schedulers.MultiStepLR(optimizer, [3, 7, 7]),
                                                   schedulers.CosineAnnealingLR(optimizer, 10)],
                                                   [5, 14])
    return model, optimizer, schedule


def train(model, optimizer, schedule, steps):
    losses = []
    for _ in range(steps):
        loss = model(torch.randn(16, 4)).pow(2).mean() + random.random() * np.random.rand()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["AdamW", "fused AdamW", "amsgrad", "SGD", "NAdam", "RAdam",
                                  "Rprop", "Adafactor"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@strict
def test_training_resumes_exactly(tmp_path, name):
    random.seed(1)
    np.random.seed(2)
    run = make_run(name)
    train(*run, 9)
    whole = {"model": run[0].state_dict(), "optimizer": run[1].state_dict(),
             "schedule": run[2].state_dict(),
             "random": (random.getstate(), np.random.get_state(), torch.get_rng_state())}
    save_state(tmp_path / "state.safetensors", whole)
    expected = train(*run, 12)
    random.seed(7)
    np.random.seed(7)
    resumed = make_run(name)
    back, _ = load_state(tmp_path / "state.safetensors")
    for part, key in zip(resumed, ("model", "optimizer", "schedule")):
        part.load_state_dict(back[key])
    random.setstate(back["random"][0])
    np.random.set_state(back["random"][1])
    torch.set_rng_state(back["random"][2])
    assert train(*resumed, 12) == expected
    assert (same(dict(resumed[0].state_dict()), dict(run[0].state_dict()))
            and resumed[2].get_last_lr() == run[2].get_last_lr())


class Bad:
    pass


@pytest.mark.parametrize("value", [Bad(), len, {1, 2}, b"x", 1j, np.float64(1), np.array([None]),
                                   range(3), np.dtype("f4")],
                         ids=lambda v: type(v).__name__)
def test_other_types_are_refused_with_their_place(tmp_path, value):
    with pytest.raises(CheckpointError, match="optimizer.*3"):
        save_state(tmp_path / "s", {"optimizer": [0, 1, 2, value]})
    assert not list(tmp_path.iterdir())


def test_state_keys_names_and_loops(tmp_path):
    for key in (1.5, None, (1,), True, 2**64):
        with pytest.raises(CheckpointError, match="key"): pack_state({"a": {key: 1}})
    loop = []
    loop.append(loop)
    with pytest.raises(CheckpointError, match="itself"): pack_state(loop)
    clash = {"a.b": np.ones(1), "a": {"b": np.ones(2), "b\0": np.ones(3), "b_": np.ones(4)},
             "__metadata__": np.ones(5),
             "a.b#2": np.ones(6)}
    assert same(load_state(save_state(tmp_path / "s", clash))[0], clash)
    special = {"o": OrderedDict(b=1, a=2), "c": Counter({3: 2})}
    back, _ = load_state(save_state(tmp_path / "s", special))
    assert back == special and list(map(type, back.values())) == [OrderedDict, Counter]


def test_state_of_another_file(tmp_path):
    other = write_checkpoint(tmp_path / "other.safetensors", {"w": np.ones(3)},
                             {"note": "no state here"})
    with pytest.raises(CheckpointError, match="no training state"): load_state(other)
    for tree in ({"object": 1}, {"array": "a", "x": 1}, {"array": "missing"}, {"dict": [[[], 1]]},
                 {"dict": [["a", 1], ["a", 2]]},
                 {"float": "zz"}, {"float": 3},
                 {"tuple": 3}, [{"array": "a"}, {"array": "a"}], {"Bad": []},
                 {"__reduce__": ["os.system", "x"]}):
        with pytest.raises(CheckpointError):
            unpack_state({"a": np.ones(1)},
                         {"audiolab.state": json.dumps({"version": 1, "tree": tree})})
    with pytest.raises(CheckpointError, match="version 2"):
        unpack_state({}, {"audiolab.state": '{"version":2,"tree":null}'})


# --- start-up

def test_torch_is_not_imported(tmp_path):
    path = save_state(tmp_path / "a.safetensors", {"w": np.ones(3)})
    code = ("import sys; from audiolab.files import CheckpointFolder, load_state; "
            "load_state(sys.argv[1]), CheckpointFolder(sys.argv[2]).resolve(); assert 'torch' not in sys.modules")
    run = subprocess.run([sys.executable, "-c", code, path, tmp_path],
                         env={**os.environ, "OMP_NUM_THREADS": "1"},
                         capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
