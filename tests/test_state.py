"State without pickle, folders of checkpoints and npz files: round trips, exact resuming, damage, crashes and hostile files."
import io
import json
import os
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiolab.files import checkpoint_folder as state
from audiolab.files import (
    CheckpointError, inspect_checkpoint, read_checkpoint, verify_checkpoint, write_checkpoint,
)
from audiolab.files import (
    CheckpointFolder, load_state, pack_state, read_npz, save_state, unpack_state,
)

strict = pytest.mark.filterwarnings("error")  # where digests that seem to be missing, which is a warning, must fail the test


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
    save_state(path, {"w": np.arange(3, dtype=np.int8), "n": (1.5, {2: None}), "t": torch.ones(2)}, {"k": "v"})
    return path, path.read_bytes()


def read_everything(path):
    for read in (read_checkpoint, lambda p: read_checkpoint(p, verify=False), inspect_checkpoint, load_state, read_npz):
        try: read(path)
        except CheckpointError: pass
    str(verify_checkpoint(path))


FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True,
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


json_values = st.recursive(st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.text(max_size=4) | st.floats(),
                           lambda inner: st.lists(inner,
                                                  max_size=4) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "U8",
                                                                                                 "float", "tuple",
                                                                                                         "dict", "array", "torch", "int",
                                                                                                         "Counter"]) | st.text(max_size=3),
                                                                                                         inner, max_size=4), max_leaves=12)


@FUZZ
@given(st.dictionaries(st.sampled_from(["__metadata__", "a", "b"]), json_values, max_size=3), st.binary(max_size=16))
@pytest.mark.filterwarnings("ignore:.*no digests")
def test_fuzz_headers(fuzz_file, tree, data):
    fuzz_file[0].write_bytes(container(json.dumps(tree).encode(), data))
    read_everything(fuzz_file[0])


@FUZZ
@given(json_values)
def test_fuzz_state_trees(tree):
    try: unpack_state({"a": np.ones(2)}, {"audiolab.state": json.dumps({"version": 1, "tree": tree})})
    except CheckpointError: pass


@FUZZ
@given(st.binary(max_size=200))
@pytest.mark.filterwarnings("ignore:.*no digests")
def test_fuzz_bytes(fuzz_file, content):
    fuzz_file[0].write_bytes(content)
    read_everything(fuzz_file[0])


# --- state

def same(a, b):
    "Equal in type and to the last bit, all the way down."
    if type(a) is not type(b): return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    if isinstance(a, np.ndarray): return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict): return list(a) == list(b) and all(type(k) is type(j) and same(a[k], b[j]) for k, j in zip(a, b))
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return struct.pack("<d", a) == struct.pack("<d", b) if isinstance(a, float) else a == b


leaves = (st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.just(float("inf"))
          | st.builds(lambda n: np.arange(n, dtype="int16"),
                      st.integers(0, 3)) | st.builds(lambda n: torch.full((n,), 0.1, dtype=torch.bfloat16), st.integers(0, 3)))
nests = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
                     | st.dictionaries(st.text(max_size=4) | st.integers(-2**62, 2**62), inner, max_size=3), max_leaves=15)


@FUZZ
@given(nests)
def test_any_nest_round_trips(fuzz_file, nest):
    assert same(load_state(save_state(fuzz_file[0], nest))[0], nest)


def test_random_generators_round_trip(tmp_path):
    torch.manual_seed(3); random.seed(4)
    states = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": np.random.RandomState(5).get_state(),
              **{kind.__name__: np.random.Generator(kind(6)).bit_generator.state for kind in (np.random.PCG64, np.random.PCG64DXSM,
                                                                                              np.random.Philox, np.random.SFC64,
                                                                                              np.random.MT19937)}}
    back, notes = load_state(save_state(tmp_path / "rng", states, {"epoch": "2"}))
    assert same(back, states) and notes == {"epoch": "2"}
    expected = torch.rand(3), random.random(), np.random.Generator(np.random.SFC64(6)).random()
    torch.set_rng_state(back["torch"]); random.setstate(back["python"])
    again = np.random.Generator(np.random.SFC64(0)); again.bit_generator.state = back["SFC64"]
    assert torch.equal(torch.rand(3), expected[0]) and (random.random(), again.random()) == expected[1:]


def make_run(name):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
    optimizer = {"AdamW": lambda p: torch.optim.AdamW(p, lr=0.01), "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
                 "amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
                 "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
                 "NAdam": torch.optim.NAdam, "RAdam": torch.optim.RAdam, "Rprop": torch.optim.Rprop,
                 "Adafactor": torch.optim.Adafactor}[name](model.parameters())
    schedulers = torch.optim.lr_scheduler
    schedule = schedulers.SequentialLR(optimizer,
                                       [schedulers.LinearLR(optimizer, 0.1, total_iters=5), schedulers.MultiStepLR(optimizer, [3, 7, 7]),
                                                   schedulers.CosineAnnealingLR(optimizer, 10)], [5, 14])
    return model, optimizer, schedule


def train(model, optimizer, schedule, steps):
    losses = []
    for _ in range(steps):
        loss = model(torch.randn(16, 4)).pow(2).mean() + random.random() * np.random.rand()
        optimizer.zero_grad(); loss.backward(); optimizer.step(); schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["AdamW", "fused AdamW", "amsgrad", "SGD", "NAdam", "RAdam", "Rprop", "Adafactor"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@strict
def test_training_resumes_exactly(tmp_path, name):
    random.seed(1); np.random.seed(2)
    run = make_run(name)
    train(*run, 9)
    whole = {"model": run[0].state_dict(), "optimizer": run[1].state_dict(), "schedule": run[2].state_dict(),
             "random": (random.getstate(), np.random.get_state(), torch.get_rng_state())}
    save_state(tmp_path / "state.safetensors", whole)
    expected = train(*run, 12)
    random.seed(7); np.random.seed(7)
    resumed = make_run(name)
    back, _ = load_state(tmp_path / "state.safetensors")
    for part, key in zip(resumed, ("model", "optimizer", "schedule")): part.load_state_dict(back[key])
    random.setstate(back["random"][0]); np.random.set_state(back["random"][1]); torch.set_rng_state(back["random"][2])
    assert train(*resumed, 12) == expected
    assert same(dict(resumed[0].state_dict()), dict(run[0].state_dict())) and resumed[2].get_last_lr() == run[2].get_last_lr()


class Bad:
    pass


@pytest.mark.parametrize("value", [Bad(), len, {1, 2}, b"x", 1j, np.float64(1), np.array([None]), range(3), np.dtype("f4")],
                         ids=lambda v: type(v).__name__)
def test_other_types_are_refused_with_their_place(tmp_path, value):
    with pytest.raises(CheckpointError, match="optimizer.*3"): save_state(tmp_path / "s", {"optimizer": [0, 1, 2, value]})
    assert not list(tmp_path.iterdir())


def test_state_keys_names_and_loops(tmp_path):
    for key in (1.5, None, (1,), True, 2**64):
        with pytest.raises(CheckpointError, match="key"): pack_state({"a": {key: 1}})
    loop = []; loop.append(loop)
    with pytest.raises(CheckpointError, match="itself"): pack_state(loop)
    clash = {"a.b": np.ones(1), "a": {"b": np.ones(2), "b\0": np.ones(3), "b_": np.ones(4)}, "__metadata__": np.ones(5),
             "a.b#2": np.ones(6)}
    assert same(load_state(save_state(tmp_path / "s", clash))[0], clash)
    special = {"o": OrderedDict(b=1, a=2), "c": Counter({3: 2})}
    back, _ = load_state(save_state(tmp_path / "s", special))
    assert back == special and list(map(type, back.values())) == [OrderedDict, Counter]


def test_state_of_another_file(tmp_path):
    other = write_checkpoint(tmp_path / "other.safetensors", {"w": np.ones(3)}, {"note": "no state here"})
    with pytest.raises(CheckpointError, match="no training state"): load_state(other)
    for tree in ({"object": 1}, {"array": "a", "x": 1}, {"array": "missing"}, {"dict": [[[], 1]]}, {"dict": [["a", 1], ["a", 2]]},
                 {"float": "zz"}, {"float": 3},
                 {"tuple": 3}, [{"array": "a"}, {"array": "a"}], {"Bad": []}, {"__reduce__": ["os.system", "x"]}):
        with pytest.raises(CheckpointError): unpack_state({"a": np.ones(1)}, {"audiolab.state": json.dumps({"version": 1, "tree": tree})})
    with pytest.raises(CheckpointError, match="version 2"): unpack_state({}, {"audiolab.state": '{"version":2,"tree":null}'})


# --- npz

class Payload:
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), "w")


def test_pickle_in_npz_never_runs(tmp_path):
    path, marker = tmp_path / "evil.npz", tmp_path / "ran"
    np.savez(path, good=np.ones(2), evil=np.array([Payload(marker)], dtype=object))
    with pytest.raises(CheckpointError, match="dtype object"): read_npz(path)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:  # a pickle without an .npy header, which numpy.load would run if allowed
        import pickle
        archive.writestr("evil.npy", pickle.dumps(Payload(marker)))
    path.write_bytes(content.getvalue())
    with pytest.raises(CheckpointError): read_npz(path)
    for read in (read_checkpoint, load_state, verify_checkpoint):
        try: read(path)
        except CheckpointError: pass
    assert not marker.exists()


def npy(header, data=b"", version=(1, 0)):
    text = (header if isinstance(header, str) else repr(header)).encode() + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text + data


def npy_header(descr="<f8", shape=(2,), order=False): return {"descr": descr, "fortran_order": order, "shape": shape}


def zip_of(entries, compression=zipfile.ZIP_DEFLATED):
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w", compression) as archive:
        warnings.simplefilter("ignore")  # zipfile mentions duplicate names
        for name, data in entries: archive.writestr(name, data)
    return content.getvalue()


GOOD = npy(npy_header(), bytes(16))
BAD_NPZ = {
    "empty": b"", "not a zip": b"PK" * 100, "not npy": zip_of([("a.txt", b"x")]), "no magic": zip_of([("a.npy", b"hello")]),
    "400 GB claimed": zip_of([("a.npy", npy(npy_header(shape=(50 * 10**9,))))]),
    "negative": zip_of([("a.npy", npy(npy_header(shape=(-2, -1)), bytes(16)))]),
    "overflow": zip_of([("a.npy", npy(npy_header(shape=(2**62, 0, 2**62))))]),
    "short": zip_of([("a.npy", GOOD[:-1])]), "long": zip_of([("a.npy", GOOD + b"x")]),
    "structured": zip_of([("a.npy", npy(npy_header([("a", "<f8")]), bytes(16)))]),
    "object": zip_of([("a.npy", npy(npy_header("|O"), bytes(16)))]), "no size": zip_of([("a.npy", npy(npy_header("<U0", (10**15,))))]),
    "void": zip_of([("a.npy", npy(npy_header("|V8"), bytes(16)))]),
    "same name twice": zip_of([("a.npy", GOOD), ("a.npy", GOOD)]), "long name": zip_of([("a" * 300 + ".npy", GOOD)]),
    "bzip2": zip_of([("a.npy", GOOD)], zipfile.ZIP_BZIP2),
    "code in header": zip_of([("a.npy", npy("__import__('os').system('true')"))]), "deep header": zip_of([("a.npy", npy("(" * 9000))]),
    "long header": zip_of([("a.npy", npy("1" * 60000))]),
    "long header 2": zip_of([("a.npy", npy(" " * 10**6, version=(2, 0)))]),
    "version 9": zip_of([("a.npy", b"\x93NUMPY\x09\x00" + bytes(50))]), "bad shape": zip_of([("a.npy", npy(npy_header(shape="ab")))]),
    "float shape": zip_of([("a.npy", npy(npy_header(shape=(2.0,)), bytes(16)))]),
    "bomb": zip_of([("a.npy", npy(npy_header(shape=(10**7,)), bytes(8 * 10**7)))]),
    "many": zip_of([(f"{i}.npy", GOOD) for i in range(300)]), "very many": zip_of([(f"{i}", b"") for i in range(5000)]), "encrypted": None,
    "lying size": None,
}
for _name, _old, _new in (("encrypted", b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"),
                          ("lying size", struct.pack("<I", len(GOOD)), struct.pack("<I", len(GOOD) + 8))):
    BAD_NPZ[_name] = zip_of([("a.npy", GOOD)]).replace(_old, _new)
    assert BAD_NPZ[_name] != zip_of([("a.npy", GOOD)])


@pytest.mark.parametrize("content", BAD_NPZ.values(), ids=BAD_NPZ.keys())
def test_bad_npz_is_refused(tmp_path, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    tracemalloc.start(); started = time.process_time()
    try:
        with pytest.raises(CheckpointError, match="bad.npz"): read_npz(path, max_bytes=10**7, max_arrays=200)
        assert tracemalloc.get_traced_memory()[1] < 20e6 and time.process_time() - started < 5
    finally: tracemalloc.stop()


def test_npz_flips_are_found_or_harmless(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {"x": np.arange(4.0), "s": np.array("text")}
    np.savez_compressed(path, **arrays)
    content, refused = path.read_bytes(), 0
    for bit in range(len(content) * 8):
        damaged = bytearray(content); damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try: found = read_npz(path)
        except CheckpointError: refused += 1; continue
        assert sorted(map(np.ndarray.tobytes, found.values())) == sorted(map(np.ndarray.tobytes,
                                                                             arrays.values()))  # CRC-32 covers content, not names and dates
    assert refused > 4 * len(content)


def test_npz_round_trip(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {"f": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "zero": np.array(3), "empty": np.zeros((0, 3), np.int8),
              "text": np.array(["a", "béc"]), "bytes": np.array(b"xy"),
              "big": np.arange(3, dtype=">u2"), "c": np.ones(2, np.complex128), "b": np.array([True]), "dir/name": np.ones(1),
              "no text": np.array([], dtype="U3")}
    for save in (np.savez, np.savez_compressed):
        save(path, **arrays)
        loaded = read_npz(path)
        assert list(loaded) == list(arrays)
        for k in arrays: assert same(loaded[k], arrays[k]) and np.array_equal(loaded[k], arrays[k]) and loaded[k].flags.writeable


# --- folders

def versions(folder): return sorted(p.stem for p in folder.glob("*.safetensors"))


def damage(path):
    with open(path, "r+b") as file: file.seek(-1, 2); byte = file.read(1); file.seek(-1, 2); file.write(bytes([byte[0] ^ 1]))


@strict
def test_retention(tmp_path):
    keeper = CheckpointFolder(tmp_path, keep_last=2, keep_every=5, keep_best=2, metric="loss")
    keeper.save("checkpoint_initial", {"w": np.zeros(1)})
    for epoch, loss in enumerate([9, 3, float("nan"), 1, 4, float("-inf"), 5, 3, 8], 1):
        keeper.save(f"checkpoint_epoch_{epoch}", {"w": np.full(3, epoch)}, {"epoch": str(epoch)}, metric_value=loss)
        assert keeper.latest.stem == f"checkpoint_epoch_{epoch}" and read_checkpoint(keeper.latest)[1]["epoch"] == str(epoch)
    assert versions(tmp_path) == [
        "checkpoint_epoch_2", "checkpoint_epoch_4", "checkpoint_epoch_5", "checkpoint_epoch_8", "checkpoint_epoch_9", "checkpoint_initial"]
    assert keeper.best.stem == "checkpoint_epoch_4"
    best = CheckpointFolder(tmp_path, keep_last=2, keep_best=1, metric="score",
                            mode="max")  # another metric: the file best.json names stays until a new best
    best.save("checkpoint_epoch_10", {"w": np.ones(1)}, metric_value=float("nan"))
    assert best.best.stem == "checkpoint_epoch_4" and "checkpoint_epoch_4" in versions(tmp_path)
    best.save("checkpoint_epoch_11", {"w": np.ones(1)}, metric_value=0.5)
    best.save("checkpoint_epoch_12", {"w": np.ones(1)}, metric_value=0.4)
    assert best.best.stem == "checkpoint_epoch_11" and versions(tmp_path) == ["checkpoint_epoch_11", "checkpoint_epoch_12",
                                                                              "checkpoint_initial"]


def test_keep_all_and_bad_policies(tmp_path):
    keeper = CheckpointFolder(tmp_path, keep_last=0)
    for step in range(12): keeper.save(f"step_{step}", {})
    assert len(versions(tmp_path)) == 12 and keeper.resolve().stem == "step_11" and keeper.best is None
    for policy in ({"keep_last": 1}, {"keep_last": -2}, {"keep_best": -1}, {"mode": "low"}):
        with pytest.raises(CheckpointError): CheckpointFolder(tmp_path, **policy)


@strict
def test_auto_walks_back_to_what_verifies(tmp_path):
    keeper = CheckpointFolder(tmp_path / "run", keep_last=0)
    assert keeper.resolve("auto") is None
    paths = [keeper.save(f"epoch_{n}", {"w": np.full(4, n)}) for n in (1, 2, 10, 9)]  # order of saving counts, not the number
    for n, path in enumerate(paths): os.utime(path, (1000 - n, 1000 - n))  # nor the time stamp
    assert keeper.resolve("auto") == paths[3]
    damage(paths[3]); paths[2].write_bytes(paths[2].read_bytes()[:200])
    with pytest.warns(UserWarning) as record: assert keeper.resolve("auto") == paths[1]
    assert ["epoch_10" in str(r.message) for r in record] == [True, False] and "epoch_9" in str(record[1].message)
    for path in paths[:2]: damage(path)
    with pytest.warns(UserWarning, match="skipped"): assert keeper.resolve("auto") is None
    assert keeper.resolve(paths[0]) == keeper.resolve("epoch_1") == keeper.resolve("epoch_1.safetensors") == paths[0]
    with pytest.raises(CheckpointError, match="epoch_2"): keeper.resolve("epoch_77")


def test_a_crash_before_the_pointer_moves_loses_nothing(tmp_path, monkeypatch):
    keeper = CheckpointFolder(tmp_path)
    for n in (1, 2): keeper.save(f"epoch_{n}", {"w": np.full(4, n)})
    def crash(*args): raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(state, "_write_pointer", crash)
        keeper.save("epoch_3", {"w": np.full(4, 3)})
    assert keeper.latest.stem == "epoch_2" and keeper.resolve("auto").stem == "epoch_3" and len(versions(tmp_path)) == 3


def test_a_failed_save_changes_nothing(tmp_path, monkeypatch):
    keeper = CheckpointFolder(tmp_path)
    for n in (1, 2): keeper.save(f"epoch_{n}", {"w": np.full(4, n)})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    def fail(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(CheckpointError, match="No space left"): keeper.save("epoch_3", {"w": np.zeros(4)})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_only_sound_file_is_never_deleted(tmp_path, monkeypatch):
    keeper = CheckpointFolder(tmp_path, keep_best=0)
    keeper.save("epoch_1", {"w": np.ones(4)})
    damage(keeper.save("epoch_2", {"w": np.ones(4)}))
    write = write_checkpoint
    def rotten(*args): damage(path := write(*args)); return path
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="nothing is deleted"):
        patch.setattr(state, "write_checkpoint", rotten)
        keeper.save("epoch_3", {"w": np.ones(4)})
    assert "epoch_1" in versions(tmp_path)
    with pytest.warns(UserWarning) as record: assert keeper.resolve().stem == "epoch_1"
    assert ["epoch_3" in str(record[0].message), "epoch_2" in str(record[1].message)] == [True, True]
    keeper.save("epoch_4", {"w": np.ones(4)})
    assert versions(tmp_path) == ["epoch_3", "epoch_4"]


@pytest.mark.parametrize("content",
                         ['{"file":"../outside.safetensors"}', '{"file":"/etc/passwd"}', '{"file":"link.safetensors"}',
                          '{"file":"missing.safetensors"}', '{"file":".safetensors"}',
                                     '{"file":3}', '[]', '', '{"file":"a\\u0000.safetensors"}', '{"file":"' + "x" * 20000 + '"}',
                                     "[" * 5000, '{"file":"folder.safetensors"}', '{"file":"a\\\\b.safetensors"}'])
def test_pointers_never_leave_the_folder(tmp_path, content):
    folder = tmp_path / "run"
    keeper = CheckpointFolder(folder)
    outside = write_checkpoint(tmp_path / "outside.safetensors", {})
    inside = keeper.save("epoch_1", {})
    (folder / "link.safetensors").symlink_to(outside); (folder / "folder.safetensors").mkdir()
    (folder / "latest.json").write_text(content)
    assert keeper.latest is None and keeper.resolve("latest") is None and keeper.resolve("auto") == inside
    keeper.save("epoch_2", {})
    assert keeper.latest.stem == "epoch_2" and outside.exists()


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", ".hidden", "", "a\0", "x" * 300, "a\nb", "-x", "..", "a\\b"])
def test_names_never_leave_the_folder(tmp_path, name):
    with pytest.raises(CheckpointError, match="cannot name"): CheckpointFolder(tmp_path / "run").save(name, {})
    assert not list(tmp_path.iterdir())


def test_nested_state_in_a_folder(tmp_path):
    keeper = CheckpointFolder(tmp_path)
    keeper.save("step_1", *pack_state({"step": 1, "w": (np.ones(2), 0.1)}))
    assert same(load_state(keeper.resolve())[0], {"step": 1, "w": (np.ones(2), 0.1)})


# --- start-up

def test_torch_is_not_imported(tmp_path):
    path = save_state(tmp_path / "a.safetensors", {"w": np.ones(3)})
    code = ("import sys; from audiolab.files import CheckpointFolder, load_state; "
            "load_state(sys.argv[1]), CheckpointFolder(sys.argv[2]).resolve(); assert 'torch' not in sys.modules")
    run = subprocess.run([sys.executable, "-c", code, path, tmp_path], env={**os.environ, "OMP_NUM_THREADS": "1"},
                         capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
