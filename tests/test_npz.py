"Old npz files: round trips, bombs, lies and damage."
import io
import struct
import time
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest

from audiolab.files import CheckpointError, load_state, read_checkpoint, read_npz, verify_checkpoint
from state_files import same


class Payload:
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), "w")


def test_pickle_in_npz_never_runs(tmp_path):
    path, marker = tmp_path / "evil.npz", tmp_path / "ran"
    np.savez(path, good=np.ones(2), evil=np.array([Payload(marker)], dtype=object))
    with pytest.raises(CheckpointError, match="dtype object"): read_npz(path)
    content = io.BytesIO()
    # a pickle without an .npy header, which numpy.load would run if allowed
    with zipfile.ZipFile(content, "w") as archive:
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
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I",
                                                       len(text)) + text + data


def npy_header(descr="<f8", shape=(2,), order=False):
    return {"descr": descr, "fortran_order": order, "shape": shape}


def zip_of(entries, compression=zipfile.ZIP_DEFLATED):
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w", compression) as archive:
        warnings.simplefilter("ignore")  # zipfile mentions duplicate names
        for name, data in entries: archive.writestr(name, data)
    return content.getvalue()


GOOD = npy(npy_header(), bytes(16))
BAD_NPZ = {
    "empty": b"", "not a zip": b"PK" * 100, "not npy": zip_of([("a.txt", b"x")]),
    "no magic": zip_of([("a.npy", b"hello")]),
    "400 GB claimed": zip_of([("a.npy", npy(npy_header(shape=(50 * 10**9,))))]),
    "negative": zip_of([("a.npy", npy(npy_header(shape=(-2, -1)), bytes(16)))]),
    "overflow": zip_of([("a.npy", npy(npy_header(shape=(2**62, 0, 2**62))))]),
    "short": zip_of([("a.npy", GOOD[:-1])]), "long": zip_of([("a.npy", GOOD + b"x")]),
    "structured": zip_of([("a.npy", npy(npy_header([("a", "<f8")]), bytes(16)))]),
    "object": zip_of([("a.npy", npy(npy_header("|O"), bytes(16)))]),
    "no size": zip_of([("a.npy", npy(npy_header("<U0", (10**15,))))]),
    "void": zip_of([("a.npy", npy(npy_header("|V8"), bytes(16)))]),
    "same name twice": zip_of([("a.npy", GOOD), ("a.npy", GOOD)]),
    "long name": zip_of([("a" * 300 + ".npy", GOOD)]),
    "bzip2": zip_of([("a.npy", GOOD)], zipfile.ZIP_BZIP2),
    "code in header": zip_of([("a.npy", npy("__import__('os').system('true')"))]),
    "deep header": zip_of([("a.npy", npy("(" * 9000))]),
    "long header": zip_of([("a.npy", npy("1" * 60000))]),
    "long header 2": zip_of([("a.npy", npy(" " * 10**6, version=(2, 0)))]),
    "version 9": zip_of([("a.npy", b"\x93NUMPY\x09\x00" + bytes(50))]),
    "bad shape": zip_of([("a.npy", npy(npy_header(shape="ab")))]),
    "float shape": zip_of([("a.npy", npy(npy_header(shape=(2.0,)), bytes(16)))]),
    "bomb": zip_of([("a.npy", npy(npy_header(shape=(10**7,)), bytes(8 * 10**7)))]),
    "many": zip_of([(f"{i}.npy", GOOD) for i in range(300)]),
    "very many": zip_of([(f"{i}", b"") for i in range(5000)]), "encrypted": None,
    "lying size": None,
}
for _name, _old, _new in (("encrypted", b"PK\x01\x02\x14\x03\x14\x00\x00\x00",
                           b"PK\x01\x02\x14\x03\x14\x00\x01\x00"),
                          ("lying size", struct.pack("<I", len(GOOD)),
                           struct.pack("<I", len(GOOD) + 8))):
    BAD_NPZ[_name] = zip_of([("a.npy", GOOD)]).replace(_old, _new)
    assert BAD_NPZ[_name] != zip_of([("a.npy", GOOD)])


@pytest.mark.parametrize("content", BAD_NPZ.values(), ids=BAD_NPZ.keys())
def test_bad_npz_is_refused(tmp_path, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(CheckpointError, match="bad.npz"):
            read_npz(path, max_bytes=10**7, max_arrays=200)
        assert tracemalloc.get_traced_memory()[1] < 20e6 and time.process_time() - started < 5
    finally: tracemalloc.stop()


def test_npz_flips_are_found_or_harmless(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {"x": np.arange(4.0), "s": np.array("text")}
    np.savez_compressed(path, **arrays)
    content, refused = path.read_bytes(), 0
    for bit in range(len(content) * 8):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try: found = read_npz(path)
        except CheckpointError:
            refused += 1
            continue
        # CRC-32 covers content, not names and dates
        ours, theirs = (sorted(map(np.ndarray.tobytes, o.values())) for o in (found, arrays))
        assert ours == theirs
    assert refused > 4 * len(content)


def test_npz_round_trip(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {"f": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "zero": np.array(3),
              "empty": np.zeros((0, 3), np.int8),
              "text": np.array(["a", "béc"]), "bytes": np.array(b"xy"),
              "big": np.arange(3, dtype=">u2"), "c": np.ones(2, np.complex128),
              "b": np.array([True]), "dir/name": np.ones(1),
              "no text": np.array([], dtype="U3")}
    for save in (np.savez, np.savez_compressed):
        save(path, **arrays)
        loaded = read_npz(path)
        assert list(loaded) == list(arrays)
        for k in arrays:
            assert (same(loaded[k], arrays[k]) and np.array_equal(loaded[k], arrays[k])
                    and loaded[k].flags.writeable)
