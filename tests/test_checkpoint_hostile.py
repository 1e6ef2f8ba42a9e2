"Headers that somebody made to do harm."
import json
import os
import struct
import time
import tracemalloc

import pytest

from audiolab.files import CheckpointError, inspect_checkpoint, read_checkpoint, verify_checkpoint


def container(header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def entry(dtype="U8", shape=(4,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HOSTILE = {
    "nothing": b"", "seven bytes": b"\0" * 7, "no header": b"\0" * 8,
    "header beyond the end": struct.pack("<Q", 10**6) + b"{}",
    "length overflow": b"\xff" * 8 + b"{}",
    "not JSON": container(b"hello"), "list": container([]),
    "invalid UTF-8": container(b'{"\xff":1}'),
    "UTF-16": container('{"a":1}'.encode("utf-16")),
    "duplicate tensor": container(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                                  b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "duplicate field": container(b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "overlap": container({"a": entry(), "b": entry(offsets=(2, 6))}, bytes(6)),
    "same place": container({"a": entry(), "b": entry()}, bytes(4)),
    "hole": container({"a": entry(), "b": entry(offsets=(5, 9))}, bytes(9)),
    "late start": container({"a": entry(offsets=(1, 5))}, bytes(5)),
    "trailing bytes": container({"a": entry()}, bytes(5)),
    "missing bytes": container({"a": entry()}, bytes(3)),
    "negative shape": container({"a": entry(shape=(-4,))}, bytes(4)),
    "two negatives": container({"a": entry(shape=(-2, -2))}, bytes(4)),
    "overflowing shape": container({"a": entry(shape=(2**32, 2**32, 0))}),
    "huge dimension": container({"a": entry(shape=(0, 2**63))}),
    "many dimensions": container({"a": entry(shape=(1,) * 100, offsets=(0, 1))}, b"x"),
    "wrong size": container({"a": entry("F32")}, bytes(4)),
    "reversed offsets": container({"a": entry(offsets=(4, 0))}, bytes(4)),
    "negative offsets": container({"a": entry(offsets=(-4, 0))}),
    "fraction": container({"a": entry(shape=(4.0,))}, bytes(4)),
    "boolean": container({"a": entry(shape=(True,), offsets=(0, 1))}, b"x"),
    "text offsets": container({"a": entry(offsets="04")}, bytes(4)),
    "three offsets": container({"a": entry(offsets=(0, 4, 4))}, bytes(4)),
    "NaN": container(b'{"a":NaN}'), "no dtype": container({"a": {"shape": [4],
        "data_offsets": [0, 4]}}, bytes(4)),
    "extra field": container({"a": {**entry(), "x": 1}}, bytes(4)),
    "unknown dtype": container({"a": entry("Q8")}, bytes(4)),
    "dtype list": container({"a": entry(["U8"])}, bytes(4)),
    "null entry": container({"a": None}),
    "metadata number": container({"__metadata__": {"a": 1}}),
    "metadata list": container({"__metadata__": []}),
    "surrogate": container(b'{"\\ud800":{}}'),
    "bool of two": container({"a": entry("BOOL")}, b"\0\1\2\0"),
    "deep": container(b'{"a":' + b"[" * 200_000),
    "deep objects": container(b'{"a":' * 100_000),
    "digit bomb": container(b'{"a":' + b"9" * 100_000 + b"}"),
    "digests of no digests": container({"__metadata__": {"audiolab.digest": "{}"}}),
    "digest list": container({"__metadata__": {"audiolab.digest": "[]", "audiolab.header": "0"}}),
    "deep digest": container({"__metadata__": {"audiolab.digest": "[" * 100_000,
                                               "audiolab.header": "0"}}),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.filterwarnings("ignore:.*no digests")
def test_hostile_files_are_refused(tmp_path, content):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="hostile.safetensors"): read_checkpoint(path)
    report = verify_checkpoint(path)
    assert not report.ok and str(report)


BIG = {
    "quotes": lambda: b'{"a":' + b'"' * 99_999_000,
    "escaped quotes": lambda: b'{"a":"' + b'\\"' * 49_999_000,
    "empty lists": lambda: b'{"a":[' + b"[]," * 33_000_000,
    "digits": lambda: b'{"a":[' + b"1," * 49_000_000,
    "over 100 MB": lambda: b'{"a":"' + b"x" * 100_000_000 + b'"}',
    "a million tensors": lambda: b"{%s}" % b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(10**6)),
}


@pytest.mark.parametrize("name", BIG)
def test_big_headers_are_refused_in_bounded_time_and_memory(tmp_path, name):
    path = tmp_path / "big.safetensors"
    path.write_bytes(container(BIG[name]()))
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(CheckpointError): read_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 400e6, name
        assert time.process_time() - started < 20, name  # s of the processor, whoever else is busy
    finally:
        tracemalloc.stop()
        path.unlink()


def test_not_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing", "/dev/zero", "nul\0byte"):
        for read in (read_checkpoint, inspect_checkpoint, verify_checkpoint):
            with pytest.raises(CheckpointError): read(path)


def test_strange_names_are_keys_never_paths_and_print_safely(tmp_path):
    path = tmp_path / "x.safetensors"
    names = ["../../etc/passwd", "/abs", "a|b<script>`", "\x1b[2J", "x" * 5000]
    path.write_bytes(container({name: entry(shape=(0,), offsets=(0, 0)) for name in names}))
    info = inspect_checkpoint(path)
    shown, markdown = str(info), info._repr_markdown_()
    assert {t.name for t in info.tensors} == set(names) and len(shown) < 2000
    assert "\x1b" not in shown + markdown and "<script>" not in markdown
    with pytest.warns(UserWarning, match="no digests"): read_checkpoint(path)
    assert os.listdir(tmp_path) == ["x.safetensors"]
