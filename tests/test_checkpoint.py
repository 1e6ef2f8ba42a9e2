"Checkpoints under damage, and what comes back from them."
import time
from collections import Counter

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from audiolab.files import (
    CheckpointError, inspect_checkpoint, read_checkpoint, verify_checkpoint, write_checkpoint,
)
from checkpoint_files import run_python

# where digests that seem to be missing, which is a warning, must fail the test
strict = pytest.mark.filterwarnings("error")


@pytest.fixture
def small(tmp_path):
    tensors = {"means": np.linspace(-1, 1, 6, dtype="float32").reshape(2, 3),
               "counts": np.arange(3), "on": np.array([True, False]),
               "é/../x": np.float64(0.5), "none": np.zeros((0, 4), np.float32)}
    return write_checkpoint(tmp_path / "small.safetensors", tensors,
                            {"note": "a \"quoted\"\n\tline", "tree": "[\\u000b]"})


def tensor_at(info, byte):
    return next((t.name for t in info.tensors
                 if info.start + t.offset <= byte < info.start + t.offset + t.bytes), None)


# --- damage

@strict
def test_every_bit_flip_is_found_and_named(small):
    content, info = small.read_bytes(), inspect_checkpoint(small)
    for bit in range(len(content) * 8):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        small.write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught: read_checkpoint(small)
        report = verify_checkpoint(small)
        assert str(small) in str(caught.value) and not report.ok, bit
        if name := tensor_at(info, bit // 8):
            assert caught.value.tensor == name and report.bad == [name] and not report.damage


@strict
def test_every_truncation_and_extension_is_found(small):
    content, info = small.read_bytes(), inspect_checkpoint(small)
    for length in range(len(content)):
        small.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="small.safetensors"): read_checkpoint(small)
        with pytest.raises(CheckpointError): read_checkpoint(small, verify=False)
        report = verify_checkpoint(small)
        assert not report.ok
        if length >= info.start:
            assert (tensor_at(info, length) in report.bad
                    and repr(tensor_at(info, length)) in report.damage)
    small.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError, match="1 bytes follow"): read_checkpoint(small)


@strict
def test_swapped_tensors_are_found(tmp_path):
    def make(name, scale):
        return write_checkpoint(tmp_path / name,
                                {"a": np.arange(4.0) * scale, "b": np.arange(4.0) + scale,
                                 "c": np.ones(1)})
    one, two = make("1.safetensors", 1), make("2.safetensors", 2)
    first, second, start = one.read_bytes(), two.read_bytes(), inspect_checkpoint(one).start
    # two inside one file
    one.write_bytes(first[:start] + first[start + 32:start + 64] + first[start:start + 32]
                    + first[start + 64:])
    assert verify_checkpoint(one).bad == ["a", "b"]
    with pytest.raises(CheckpointError, match="tensor 'a'"): read_checkpoint(one)
    # one from another file
    two.write_bytes(second[:start + 32] + first[start + 32:start + 64] + second[start + 64:])
    assert verify_checkpoint(two).bad == ["b"]
    renamed = first[:start].replace(b'"a":{', b'"@":{').replace(b'"b":{',
        b'"a":{').replace(b'"@":{', b'"b":{')
    one.write_bytes(renamed + first[start:])  # names
    assert set(verify_checkpoint(one).bad) == {"a", "b"} and verify_checkpoint(one).damage
    two.write_bytes(second[:start].replace(b"F64", b"I64") + second[start:])  # the type of all
    assert verify_checkpoint(two).bad == ["a", "b", "c"]
    with pytest.raises(CheckpointError, match="tensor 'a': the header does not match"):
        read_checkpoint(two)


@strict
def test_digests_cannot_be_stripped_by_halves(small):
    content = small.read_bytes()
    for key in (b"audiolab.digest", b"audiolab.header"):
        small.write_bytes(content.replace(key, key[:-1] + b"_"))
        with pytest.raises(CheckpointError): read_checkpoint(small)


def test_stock_reader_loads_wrong_where_ours_refuses(small):
    content, start = small.read_bytes(), inspect_checkpoint(small).start
    expected = safetensors.numpy.load(content)

    def stock(damaged):
        try: found = safetensors.numpy.load(bytes(damaged))
        except Exception: return "refused"
        if found.keys() != expected.keys(): return "wrong"
        same = all(found[k].dtype == expected[k].dtype
                   and found[k].tobytes() == expected[k].tobytes() for k in expected)
        return "same" if same else "wrong"

    outcomes = Counter()
    for bit in range(64, len(content) * 8):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        outcomes[("header" if bit // 8 < start else "data", stock(damaged))] += 1
    assert (outcomes["header", "wrong"] > 0
            and outcomes["data", "wrong"] == 8 * (len(content) - start))


    # all of these are refused by read_checkpoint: test_every_bit_flip_is_found_and_named
def test_file_without_digests_loads_with_one_warning(tmp_path):
    path = tmp_path / "foreign.safetensors"
    safetensors.numpy.save_file({"w": np.arange(5.0), "v": np.ones(2, np.int8)}, path,
                                {"format": "pt"})
    with pytest.warns(UserWarning, match="no digests") as record:
        tensors, notes = read_checkpoint(path)
    assert (len(record) == 1 and np.array_equal(tensors["w"], np.arange(5.0))
            and notes == {"format": "pt"})
    report = verify_checkpoint(path)
    assert (not inspect_checkpoint(path).has_digests and not report.ok
            and "no digests" in str(report))


def test_damaged_file_can_be_rescued_on_request(small):
    content = bytearray(small.read_bytes())
    content[-1] ^= 1
    small.write_bytes(content)
    tensors, notes = read_checkpoint(small, verify=False)
    assert len(tensors) == 5 and notes["tree"] == "[\\u000b]"


# --- round trips

ALL_DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
              torch.uint16, torch.uint32, torch.uint64,
              torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
              torch.float8_e4m3fn, torch.float8_e5m2,
              torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu]


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (2, 3, 4)], ids=str)
def test_torch_dtypes_round_trip(tmp_path, dtype, shape):
    size = torch.zeros(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (size,), dtype=torch.uint8,
                        generator=torch.Generator().manual_seed(size))
    tensor = raw.view(dtype).reshape(shape)
    path = write_checkpoint(tmp_path / "t.safetensors", {"t": tensor})
    loaded = read_checkpoint(path)[0]["t"]
    assert isinstance(loaded, torch.Tensor) == (dtype in ALL_DTYPES[14:] or dtype == torch.bfloat16)
    again = loaded if isinstance(loaded, torch.Tensor) else torch.from_numpy(loaded)
    assert (again.dtype == dtype and again.shape == tensor.shape
            and torch.equal(again.reshape(-1).view(torch.uint8), raw))
    if dtype != torch.float8_e8m0fnu:  # not in every safetensors release
        assert torch.equal(safetensors.torch.load_file(path)["t"].reshape(-1).view(torch.uint8),
                           raw)


def test_untidy_memory_round_trips(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    array = np.arange(24, dtype=">i4").reshape(4, 6)
    tensors = {"a": base.T, "b": base[::2, 1:], "shared": base, "same": base,
               "parameter": torch.nn.Parameter(base[0]),
               "expanded": base[0, :1].expand(7),
               "conjugate": torch.tensor([1 + 2j]).conj(), "fortran": np.asfortranarray(array),
               "reverse": array[::-1],
               "scalar": np.int16(4),
               "odd": np.frombuffer(b"\0" + np.arange(3.0).tobytes(), np.uint8)[1:].view("<f8"),
               "frozen": np.broadcast_to(np.float32(2), (3,))}
    path = write_checkpoint(tmp_path / "t.safetensors", tensors)
    loaded, _ = read_checkpoint(path)
    for name, value in tensors.items():
        is_tensor = isinstance(value, torch.Tensor)
        value = value.detach().resolve_conj().numpy() if is_tensor else np.asarray(value)
        assert loaded[name].shape == value.shape, name
        assert loaded[name].dtype.name == value.dtype.name, name
        assert np.array_equal(loaded[name], value), name
        assert loaded[name].flags.writeable and loaded[name].flags.aligned
    loaded["shared"][:] = 0  # no memory is shared after loading
    assert loaded["same"].sum() == base.sum()


def test_same_content_gives_same_bytes_and_order_does_not_matter(tmp_path):
    values = {"b": np.ones(3, np.float32), "a": np.arange(2),
              "c": torch.ones(2, dtype=torch.bfloat16)}
    one = write_checkpoint(tmp_path / "1", values, {"x": "1", "y": "2"}).read_bytes()
    two = write_checkpoint(tmp_path / "2", dict(reversed(values.items())),
                           {"y": "2", "x": "1"}).read_bytes()
    assert one == two and list(read_checkpoint(tmp_path / "1")[0]) == ["a", "b", "c"]


@strict
def test_stock_tools_may_rewrite_the_file(small):
    with safetensors.safe_open(small, "np") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}
    safetensors.numpy.save_file(tensors, small, metadata)
    assert verify_checkpoint(small).ok


def test_no_tensors_at_all(tmp_path):
    path = write_checkpoint(tmp_path / "empty.safetensors", {})
    assert (read_checkpoint(path) == ({}, {}) and verify_checkpoint(path).ok
            and safetensors.numpy.load_file(path) == {})


@pytest.mark.parametrize("value",
                         [[1.0], 3, "text", None, np.array(["a"]), np.array([{}]),
                          np.zeros(2, np.complex128), np.zeros(2, "M8[s]"),
                                   np.ma.masked_array([1.0, 2.0], [True, False]),
                                   np.zeros(2, [("a", "f4")]),
                                   torch.zeros(2, dtype=torch.complex128),
                                   torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta")],
                                   ids=lambda v: f"{type(v).__name__}-{getattr(v, 'dtype', '')}")
def test_what_cannot_be_stored_is_refused_by_name(tmp_path, value):
    with pytest.raises(CheckpointError, match="culprit"):
        write_checkpoint(tmp_path / "x", {"fine": np.ones(1), "culprit": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tensors, metadata",
                         [({1: np.ones(1)}, {}), ({"__metadata__": np.ones(1)}, {}),
                          ({"a\0": np.ones(1)}, {}),
                          ({"\ud800": np.ones(1)}, {}),
                                               ({}, {"a": 1}), ({}, {2: "a"}),
                                               ({}, {"a": "\x1b[31m"}),
                                               ({}, {"audiolab.digest": "{}"})])
def test_names_and_metadata_are_checked(tmp_path, tensors, metadata):
    with pytest.raises(CheckpointError): write_checkpoint(tmp_path / "x", tensors, metadata)


# --- start-up and size

def test_torch_is_not_imported(tmp_path):
    path = write_checkpoint(tmp_path / "a.safetensors", {"w": np.ones(3)})
    code = ("import sys; from audiolab.files import inspect_checkpoint, verify_checkpoint, read_checkpoint; "
            "inspect_checkpoint(sys.argv[1]), verify_checkpoint(sys.argv[1]), read_checkpoint(sys.argv[1]); "
            "assert 'torch' not in sys.modules")
    run = run_python(code, path)
    assert run.returncode == 0, run.stderr


def test_verifying_needs_little_memory_and_inspecting_reads_only_the_header(tmp_path):
    path = write_checkpoint(tmp_path / "a.safetensors",
                            {"w": np.zeros(4_000_000), "v": np.ones(10)})
    code = ("import sys, resource; from audiolab.files import verify_checkpoint\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "assert verify_checkpoint(sys.argv[1]).ok\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)")
    assert int(run_python(code, path).stdout) * 1024 < 8e6
    with open(path, "r+b") as file:
        file.seek(3_000_000)
        file.write(b"\xff")
    started = time.process_time()
    for _ in range(100): info = inspect_checkpoint(path)
    assert (time.process_time() - started < 1 and [t.name for t in info.tensors] == ["v", "w"]
            and not info.damage)
