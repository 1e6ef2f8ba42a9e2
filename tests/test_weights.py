"Weights read straight into modules, and written in other precisions."
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from audiolab.files import (
    CheckpointError, LazyTensors, inspect_checkpoint, load_into, read_checkpoint, save_state,
    save_weights, write_checkpoint,
)

torch = pytest.importorskip("torch", reason="torch is not installed")
safetensors_torch = pytest.importorskip("safetensors.torch")
nn = torch.nn


class Tied(nn.Module):
    "Two layers with one weight, a buffer of each kind, and one that is not saved"
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("steps", torch.arange(4))
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("cache", torch.ones(3), persistent=False)


def on_meta(make):
    with torch.device("meta"): return make()


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return (list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name])
                                               for name in ours))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tied()


@pytest.fixture
def path(model, tmp_path): return save_weights(tmp_path/"model.safetensors", model)


# --- into modules

def test_into_a_module_and_into_a_shell(model, path):
    full, shell = Tied(), on_meta(Tied)
    place = full.embed.weight.data_ptr()
    for module in (full, shell):
        report = load_into(module, path)
        assert same(module, model) and report.verified and not report.missing + report.unexpected
        assert module.head.weight is module.embed.weight
        assert not module.scale.requires_grad and module.embed.weight.requires_grad
    assert full.embed.weight.data_ptr() == place  # read into its own memory
    assert load_into(on_meta(Tied), path).empty == ["cache"] and report.empty == ["cache"]


def test_a_shared_weight_that_the_file_names_once(model, path, tmp_path):
    tensors, _ = read_checkpoint(path)
    del tensors["head.weight"]
    once = write_checkpoint(tmp_path/"once", tensors)
    for module in (Tied(), on_meta(Tied)):
        load_into(module, once)
        assert same(module, model) and module.head.weight is module.embed.weight


def test_another_tools_file(model, tmp_path):
    place = tmp_path/"theirs.safetensors"
    tensors = {k: v for k, v in model.state_dict().items() if k != "head.weight"}
    safetensors_torch.save_file(tensors, place)
    module = Tied()
    assert not load_into(module, place).verified and same(module, model)


@pytest.mark.parametrize("there", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("here", ["float32", "bfloat16", "float16", "float64"])
def test_every_pair_of_precisions(there, here, tmp_path):
    "As torch converts them, also over the edges of the pieces that are read"
    torch.manual_seed(1)
    values = torch.randn(1001, 700).to(getattr(torch, there))
    place = write_checkpoint(tmp_path/"w", {"weight": values})
    module = nn.Linear(700, 1001, bias=False).to(getattr(torch, here))
    load_into(module, place)
    assert torch.equal(module.weight.detach(), values.to(module.weight.dtype))


def test_a_tensor_whose_memory_is_not_in_order(tmp_path):
    place = write_checkpoint(tmp_path/"w", {"weight": np.arange(12, dtype="f4").reshape(3, 4)})
    module = nn.Linear(4, 3, bias=False)
    module.weight = nn.Parameter(torch.zeros(4, 3).t())
    load_into(module, place)
    assert module.weight.tolist() == np.arange(12).reshape(3, 4).tolist()


def test_names_of_others(model, path, tmp_path):
    tensors, _ = read_checkpoint(path)
    theirs = {f"net.{k}": v for k, v in tensors.items()} | {"adam": np.ones(1)}
    other = write_checkpoint(tmp_path/"other", theirs)
    module = Tied()
    with pytest.raises(CheckpointError, match="adam is not of this module; net.steps is not"):
        load_into(module, other)
    report = load_into(module, other, rename=lambda name: name[4:] if name[:4] == "net." else None)
    assert same(module, model) and not report.unexpected
    with pytest.raises(CheckpointError, match="are both 'x'"):
        load_into(module, other, rename=lambda name: "x")


def test_one_error_lists_what_does_not_fit_and_nothing_is_touched(path):
    class Other(Tied):
        def __init__(self):
            super().__init__()
            self.embed, self.more = nn.Embedding(7, 6), nn.Linear(2, 2)
            self.steps, self.mask = torch.zeros(4), torch.zeros(3)
    module = Other()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(CheckpointError) as caught: load_into(module, path)
    for part in ("embed.weight is [7, 5] in the file, [7, 6] in the module", "(5 differences)",
                 "more.bias is missing", "steps is I64 in the file, torch.float32 in the module",
                 "mask is BOOL in the file"):
        assert part in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_not_strict(model, path):
    class More(Tied):
        def __init__(self):
            super().__init__()
            self.more = nn.Linear(2, 2, bias=False)
    for module in (More(), on_meta(More)):
        report = load_into(module, path, strict=False)
        assert report.missing == ["more.weight"]
        assert ("more.weight" in report.empty) == module.more.weight.is_meta
        assert torch.equal(module.embed.weight, model.embed.weight)
    def only_embed(name): return "weight" if name == "embed.weight" else None
    assert load_into(nn.Embedding(7, 5), path, rename=only_embed).missing == []


# --- damage

def test_every_flip_of_the_data_is_named(path):
    content, info = path.read_bytes(), inspect_checkpoint(path)
    for bit in range(info.start * 8, len(content) * 8):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught: load_into(Tied(), path)
        name = next(t.name for t in info.tensors if 0 <= bit // 8 - info.start - t.offset < t.bytes)
        assert caught.value.tensor == name, bit


def test_damaged_headers_and_files_that_end_early(path):
    content = path.read_bytes()
    for size in (0, 7, 100, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="truncated|too few|damaged"):
            load_into(Tied(), path)
    path.write_bytes(content[:8] + content[8:].replace(b'"note"', b'"mote"') + b"x")
    with pytest.raises(CheckpointError, match="follow the last tensor"): LazyTensors(path)
    with pytest.raises(CheckpointError, match="cannot be opened"):
        load_into(Tied(), path.parent/"missing")


def test_a_bool_that_is_none(tmp_path):
    place = tmp_path/"theirs"
    safetensors_torch.save_file({"mask": torch.tensor([True, False])}, place)
    place.write_bytes(place.read_bytes()[:-1] + b"\x02")
    module = nn.Module()
    module.register_buffer("mask", torch.zeros(2, dtype=torch.bool))
    with pytest.raises(CheckpointError, match="neither 0 nor 1"): load_into(module, place)


def test_no_file_stays_open(path):
    if not os.path.isdir("/proc/self/fd"): pytest.skip("counts the open files of Linux")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        load_into(Tied(), path)
        with pytest.raises(CheckpointError): load_into(nn.Linear(1, 1), path)
    path.write_bytes(path.read_bytes()[:-1])
    for _ in range(5):
        with pytest.raises(CheckpointError): LazyTensors(path)
    assert len(os.listdir("/proc/self/fd")) == before


# --- memory

PEAK = """
import json, sys
from pathlib import Path
import torch
from audiolab.files import load_into, read_checkpoint, save_weights
def network(): return torch.nn.Sequential(*[torch.nn.Linear(1000, 1000, bias=False) for _ in range(40)])
def memory(key): return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) / 1000
def most(load):
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS"); load()
    return memory("VmHWM") - before
full, path = network(), sys.argv[1]
with torch.device("meta"): shell, half, first = network(), network(), torch.nn.Linear(2, 2)
load_into(first, save_weights(path, torch.nn.Linear(2, 2)))  # so that everything is imported
save_weights(path, full); save_weights(path + ".half", full, dtype="bfloat16")
def usual(): full.load_state_dict({name: torch.from_numpy(value) for name, value in read_checkpoint(path)[0].items()})
print(json.dumps({"usual": most(usual), "module": most(lambda: load_into(full, path)),
                  "shell": most(lambda: load_into(shell, path)), "half": most(lambda: load_into(half, path + ".half"))}))
"""


def test_no_second_copy_in_memory(tmp_path):
    "160 MB of weights, measured by the kernel in a process of their own"
    if not os.access("/proc/self/clear_refs", os.W_OK): pytest.skip("needs /proc/self/clear_refs")
    # freed memory is not kept for later
    given_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run([sys.executable, "-c", PEAK, tmp_path/"w"], env=given_back,
                         capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    peak = json.loads(run.stdout)
    assert peak["module"] < 20 and peak["usual"] > 150  # MB
    assert peak["shell"] < 180 and peak["half"] < 180  # the weights themselves, and no more


# --- written in another precision

@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.bfloat16, torch.float32])
def test_a_chosen_precision(model, tmp_path, dtype):
    path = save_weights(tmp_path/"w", model, dtype=dtype, metadata={"epoch": "3"})
    name = str(dtype).removeprefix("torch.")
    assert inspect_checkpoint(path).metadata == {"epoch": "3", "audiolab.dtype": name}
    tensors = safetensors_torch.load_file(path)
    for key, value in model.state_dict().items():
        wanted = value.to(getattr(torch, name)) if value.is_floating_point() else value
        assert tensors[key].dtype == wanted.dtype and torch.equal(tensors[key], wanted)


def test_arrays_of_any_order_of_bytes(tmp_path):
    arrays = {"big": np.array([[1.5, 2.5], [3, 4]], ">f4").T, "scalar": np.float64(0.1),
              "text": np.arange(3, dtype=">i2")}
    tensors, _ = read_checkpoint(save_weights(tmp_path/"w", arrays, dtype="float16"))
    assert tensors["big"].tolist() == [[1.5, 3], [2.5, 4]] and tensors["scalar"].shape == ()
    assert tensors["text"].dtype == "i2" and tensors["text"].tolist() == [0, 1, 2]


def test_what_cannot_be_cast_is_refused_and_the_old_file_stays(tmp_path):
    path = save_weights(tmp_path/"w", {"w": np.ones(2, "f4")})
    before = path.read_bytes()
    for value, dtype, why in ((7e4, "float16", "'w': has numbers that are infinite as float16"),
                              (1.0, "int8", "cannot be saved as 'int8'"),
                              (1.0, "float64", "use one of"),
                              (1e300, "float32", "infinite as float32")):
        with pytest.raises(CheckpointError, match=why):
            save_weights(path, {"w": np.array([value])}, dtype=dtype)
    assert path.read_bytes() == before
    # were so before
    infinite = save_weights(path, {"w": np.array([np.inf, np.nan])}, dtype="float16")
    assert np.isinf(read_checkpoint(infinite)[0]["w"][0])


def test_a_training_state_is_never_cast(tmp_path):
    tensors, notes = read_checkpoint(save_state(tmp_path/"state", {"w": np.ones(2)}))
    with pytest.raises(CheckpointError, match="saved as it is"):
        save_weights(tmp_path/"x", tensors, dtype="bfloat16", metadata=notes)
    assert not (tmp_path/"x").exists()
