"Packed stores: what goes in comes out, and nothing that is not whole is taken for whole."
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from packed_items import FIELDS, build, values

from audiolab.audio import write_audio
from audiolab.data import AudioFiles, Clip, DataError, PackedStore, PackedWriter, packed_write
from audiolab.data.packed_format import DTYPES


@pytest.fixture
def store(tmp_path): return build(tmp_path/"s")


def contents(folder): return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_round_trip(store, tmp_path):
    assert len(store) == 10 and store.verify() == {} and store.fields == FIELDS
    for index in range(10):
        assert np.array_equal(store.rows(index, "audio"), values(index)["audio"])
        assert np.array_equal(store.rows(index, "mel"), values(index)["mel"])
        item = store.item(index, epoch=3)
        assert item["audio"].dtype == np.float32
        assert np.array_equal(item["audio"]*32768, values(index)["audio"])
        assert (item["id"], item["index"], item["length"],
                item["fields"]["text"]) == (f"item {index}", index, 50 + index, f"n° {index}")
        item["audio"][:] = 0
        item["mel"][:] = 0  # a copy
    assert store.length(3) == 53 and store.name(3) == "item 3" and store.verify() == {}
    with pytest.raises(ValueError): store.rows(0, "audio")[0] = 1
    for bad in (-1, 10):
        for read in (store.item, store.name, store.length):
            with pytest.raises(IndexError): read(bad)
    files = [f"{name}.{kind}" for name in ("audio", "info", "mel") for kind in ("bin", "offsets")]
    assert set(contents(tmp_path/"s")) == {".lock", "index.json", *files}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(tmp_path, dtype):
    x = np.arange(24).reshape(4, 3, 2).astype(dtype)
    with PackedWriter(tmp_path, {"x": (dtype, (3, 2))}) as writer:
        for part in (x, x[:0], x.astype(x.dtype.newbyteorder(">")), x[::2]):
            writer.add("n", {"x": part})
    store = PackedStore(tmp_path)
    assert [np.array_equal(store.item(i)["x"], want) for i,
            want in enumerate((x, x[:0], x, x[::2]))] == [True]*4
    assert store.item(0)["x"].dtype == np.dtype(dtype)


def test_gather(store):
    batch, lengths = store.gather("audio", [3, 0, 9], starts=[10, 0, 55], rows=48)
    for row, n, index, start in zip(batch, lengths, (3, 0, 9), (10, 0, 55)):
        want = values(index)["audio"][start:start + 48]
        assert n == len(want) and np.array_equal(row[:n], want) and not row[n:].any()
    out = np.full((2, 6, 4), 9, np.float16)
    batch, lengths = store.gather("mel", [6, 0], rows=6, out=out)
    assert batch is out and lengths.tolist() == [6, 0]
    assert np.array_equal(out[0], values(6)["mel"]) and not out[1].any()
    assert store.gather("mel", np.arange(10))[0].shape == (10, 6, 4)
    assert store.gather("mel", [])[0].shape == (0, 0, 4)
    assert store.gather("audio", [0], starts=[999], rows=3)[1].tolist() == [0]
    assert store.gather("audio", [0], starts=[-5], rows=3)[1].tolist() == [3]
    for bad in ([10], [-1]):
        with pytest.raises(IndexError): store.gather("audio", bad)
    with pytest.raises(DataError, match="out has the shape"):
        store.gather("audio", [0], rows=3, out=np.zeros((1, 4), np.int16))


def test_what_does_not_fit_is_refused_whole(tmp_path):
    writer = PackedWriter(tmp_path, FIELDS)
    good = values(3)
    wrong = [{"x": good["mel"]}, {"audio": good["audio"].astype(np.int32)},
             {"mel": good["mel"][:, :3]},
             {"mel": np.full((1, 4), np.inf, np.float16)}, {"audio": np.int16(3)}, {"mel": None},
             {"audio": good["audio"]/32768}]
    for bad in ({"audio": good["audio"]}, *(good | one for one in wrong)):
        with pytest.raises(DataError, match="item 'bad'"): writer.add("bad", bad)
    for note in ({"x": {1}}, {"x": float("nan")}, {"x": "y"*(17 << 20)}):
        with pytest.raises(DataError): writer.add("bad", good, note)
    writer.add("good", good)
    store = writer.finish()
    assert len(store) == 1 and np.array_equal(store.rows(0, "mel"), good["mel"])
    assert store.verify() == {}
    abouts = [("object", ()), ("int16", (0,)), ("int16", (2**31,)), ("int16", (-1,)), "int16",
              (np.int16, ()), ("int16", (2**20, 2**20))]
    for fields in ({}, *({name: ("int16", ())} for name in ("info", "../x", "X")),
                   *({"x": about} for about in abouts)):
        with pytest.raises(DataError): PackedWriter(tmp_path/"new", fields)
    with pytest.raises(DataError, match="nothing was added"):
        PackedWriter(tmp_path/"empty", FIELDS).finish()


# --- interrupted builds

def test_an_interrupted_build_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(packed_write, "SAVE_BYTES", 300)
    writer = PackedWriter(tmp_path, FIELDS, {"sample_rate": 16_000}, {"a": "1"})
    for number in range(5):
        writer.add(f"item {number}", values(number), {"text": f"n° {number}", "input": "1"})
    with pytest.raises(DataError, match="never finished"): PackedStore(tmp_path)
    with pytest.raises(DataError, match="another process"): PackedWriter(tmp_path, FIELDS)
    writer.close()
    store = build(tmp_path)
    assert 2 <= json.loads((tmp_path/"index.json").read_text())["count"] == 10
    assert store.verify() == {}
    assert [store.name(i) for i in range(10)] == [f"item {i}" for i in range(10)]
    assert np.array_equal(store.rows(9, "audio"), values(9)["audio"])
    straight = build(tmp_path.parent/"straight").folder
    assert contents(tmp_path) == contents(straight)


@pytest.mark.parametrize("change",
                         ["settings", "inputs", "fields", "torn note", "short file", "no resume"])
def test_other_builds_begin_anew(tmp_path, change):
    writer = PackedWriter(tmp_path, FIELDS, {"sample_rate": 16_000}, {"a": "1"})
    for number in range(4): writer.add(f"old {number}", values(50))
    writer.save()
    writer.close()
    if change == "torn note": (tmp_path/"building.json").write_text('{"count": 4, "rows"')
    if change == "short file": os.truncate(tmp_path/"mel.bin.part", 3)
    fields = {"audio": ("int16", ())} if change == "fields" else FIELDS
    settings = {"sample_rate": 8000 if change == "settings" else 16_000}
    inputs = {"a": "2" if change == "inputs" else "1"}
    writer = PackedWriter(tmp_path, fields, settings, inputs, resume=change != "no resume")
    assert writer.count == 0 and writer.last_info() is None
    writer.add("new", {name: value for name, value in values(1).items() if name in fields})
    store = writer.finish()
    assert [store.name(i) for i in range(len(store))] == ["new"] and store.verify() == {}


KILLED = """
import sys, time, numpy as np
sys.path.insert(0, sys.argv[2])
from audiolab.data import packed_write
from packed_items import FIELDS, values
packed_write.SAVE_BYTES = 2000
writer = packed_write.PackedWriter(sys.argv[1], FIELDS, {"sample_rate": 16_000}, {"a": "1"})
print(writer.count, flush=True)
for number in range(writer.count, 4000):
    writer.add(f"item {number}", values(number % 60), {"text": "x", "input": "1"})
    time.sleep(0.0005)
"""


@pytest.mark.parametrize("kills", [1, pytest.param(40, marks=pytest.mark.slow)])
def test_kill_9_at_any_moment(tmp_path, kills):
    delays, counts = np.random.default_rng(kills).uniform(0.05, 0.3, kills), []
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    for number, delay in enumerate(delays, 1):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        counts.append(int(child.stdout.readline()))
        time.sleep(delay)
        deadline = time.monotonic() + 60  # the last one has saved something
        while number == kills and not (tmp_path/"building.json").exists():
            if time.monotonic() > deadline: break
            time.sleep(0.01)
        child.kill()
        child.wait()
        child.stdout.close()
        if not (tmp_path/"index.json").exists():
            with pytest.raises(DataError): PackedStore(tmp_path)
    with PackedWriter(tmp_path, FIELDS, {"sample_rate": 16_000}, {"a": "1"}) as writer:
        counts.append(writer.count)
        for number in range(writer.count, writer.count + 3):
            writer.add(f"item {number}", values(number % 60), {"text": "x", "input": "1"})
    store = PackedStore(tmp_path)
    assert counts == sorted(counts) and counts[-1] > 0 and store.verify() == {}
    for index in range(len(store)):
        assert store.name(index) == f"item {index}"
        assert np.array_equal(store.rows(index, "audio"), values(index % 60)["audio"])


def test_replacing_a_store(tmp_path):
    build(tmp_path, 3)
    with pytest.raises(DataError, match="overwrite=True"): PackedWriter(tmp_path, FIELDS)
    with pytest.raises(RuntimeError, match="by chance"):
        with PackedWriter(tmp_path, FIELDS, overwrite=True) as writer:
            writer.add("new", values(1))
            raise RuntimeError("by chance")
    with pytest.raises(DataError, match="never finished"):
        PackedStore(tmp_path)  # never the old index over new files
    writer = PackedWriter(tmp_path, FIELDS)
    assert writer.count == 1 and [len(writer.finish()), PackedStore(tmp_path).name(0)] == [1, "new"]


def cpu_seconds(function, *args):
    began = time.process_time()
    for _ in range(5): function(*args)
    return time.process_time() - began


def test_gathering_costs_less_than_decoding(tmp_path):
    "Crops of 3 s at 24 kHz, by their CPU time"
    sound = np.random.default_rng(0).normal(0, 3000, 120_000).astype(np.int16)
    with PackedWriter(tmp_path, {"audio": ("int16", ())}) as writer:
        for number in range(8): writer.add(str(number), {"audio": sound})
    write_audio(tmp_path/"a.flac", sound/np.float32(32768), 24_000)
    files = AudioFiles([Clip("a", str(tmp_path/"a.flac"), 24_000, 1, 120_000)]*8)
    store, out = PackedStore(tmp_path), np.empty((8, 72_000), np.int16)
    items, starts = range(8), range(0, 48_000, 6000)

    def decode():
        for item, start in zip(items, starts): files.read(item, start, 72_000)

    gathering = min(cpu_seconds(store.gather, "audio", items, starts, 72_000, out)
                    for _ in range(3))
    assert gathering < cpu_seconds(decode)/3
