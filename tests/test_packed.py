"Packed stores: what goes in comes out, nothing that is not whole is taken for whole, and no index is believed."
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolab.data import packed as packed
from audiolab.audio import read_audio, write_audio
from audiolab.data import DataError, Segments, WholeClips, scan_audio, split_clips
from audiolab.data import PackedClips, PackedStore, PackedWriter, pack
from audiolab.data.packed import _canonical, _digest

FIELDS = {"audio": ("int16", ()), "mel": ("float16", (4,))}


def values(number):
    rng = np.random.default_rng(number)
    return {"audio": rng.integers(-32768, 32768, 50 + number, dtype=np.int16), "mel": rng.normal(size=(number % 7, 4)).astype(np.float16)}


def build(folder, count=10, **options):
    with PackedWriter(folder, FIELDS, {"sample_rate": 16_000}, {"a": "1"}, **options) as writer:
        for number in range(writer.count, count): writer.add(f"item {number}", values(number), {"text": f"n° {number}", "input": "1"})
    return PackedStore(folder)


@pytest.fixture
def store(tmp_path): return build(tmp_path/"s")


def test_round_trip(store, tmp_path):
    assert len(store) == 10 and store.verify() == {} and store.fields == FIELDS
    for index in range(10):
        assert np.array_equal(store.rows(index, "audio"), values(index)["audio"]) and np.array_equal(store.rows(index, "mel"), values(index)["mel"])
        item = store.item(index, epoch=3)
        assert item["audio"].dtype == np.float32 and np.array_equal(item["audio"]*32768, values(index)["audio"])
        assert (item["id"], item["index"], item["length"], item["fields"]["text"]) == (f"item {index}", index, 50 + index, f"n° {index}")
        item["audio"][:] = 0; item["mel"][:] = 0  # a copy
    assert store.length(3) == 53 and store.name(3) == "item 3" and store.verify() == {}
    with pytest.raises(ValueError): store.rows(0, "audio")[0] = 1
    for bad in (-1, 10):
        for read in (store.item, store.name, store.length):
            with pytest.raises(IndexError): read(bad)
    assert sorted(path.name for path in (tmp_path/"s").iterdir()) == [".lock", "audio.bin", "audio.offsets", "index.json", "info.bin", "info.offsets", "mel.bin", "mel.offsets"]


@pytest.mark.parametrize("dtype", packed._DTYPES)
def test_every_dtype(tmp_path, dtype):
    x = np.arange(24).reshape(4, 3, 2).astype(dtype)
    with PackedWriter(tmp_path, {"x": (dtype, (3, 2))}) as writer:
        for part in (x, x[:0], x.astype(x.dtype.newbyteorder(">")), x[::2]): writer.add("n", {"x": part})
    store = PackedStore(tmp_path)
    assert [np.array_equal(store.item(i)["x"], want) for i, want in enumerate((x, x[:0], x, x[::2]))] == [True]*4
    assert store.item(0)["x"].dtype == np.dtype(dtype)


def test_gather(store):
    batch, lengths = store.gather("audio", [3, 0, 9], starts=[10, 0, 55], rows=48)
    for row, n, index, start in zip(batch, lengths, (3, 0, 9), (10, 0, 55)):
        want = values(index)["audio"][start:start + 48]
        assert n == len(want) and np.array_equal(row[:n], want) and not row[n:].any()
    out = np.full((2, 6, 4), 9, np.float16)
    batch, lengths = store.gather("mel", [6, 0], rows=6, out=out)
    assert batch is out and lengths.tolist() == [6, 0] and np.array_equal(out[0], values(6)["mel"]) and not out[1].any()
    assert store.gather("mel", np.arange(10))[0].shape == (10, 6, 4) and store.gather("mel", [])[0].shape == (0, 0, 4)
    assert store.gather("audio", [0], starts=[999], rows=3)[1].tolist() == [0] and store.gather("audio", [0], starts=[-5], rows=3)[1].tolist() == [3]
    for bad in ([10], [-1]):
        with pytest.raises(IndexError): store.gather("audio", bad)
    with pytest.raises(DataError, match="out has the shape"): store.gather("audio", [0], rows=3, out=np.zeros((1, 4), np.int16))


def test_what_does_not_fit_is_refused_whole(tmp_path):
    writer = PackedWriter(tmp_path, FIELDS)
    good = values(3)
    for bad in ({"audio": good["audio"]}, good | {"x": good["mel"]}, good | {"audio": good["audio"].astype(np.int32)}, good | {"mel": good["mel"][:, :3]},
                good | {"mel": np.full((1, 4), np.inf, np.float16)}, good | {"audio": np.int16(3)}, good | {"mel": None}, good | {"audio": good["audio"]/32768}):
        with pytest.raises(DataError, match="item 'bad'"): writer.add("bad", bad)
    for note in ({"x": {1}}, {"x": float("nan")}, {"x": "y"*(17 << 20)}):
        with pytest.raises(DataError): writer.add("bad", good, note)
    writer.add("good", good)
    store = writer.finish()
    assert len(store) == 1 and np.array_equal(store.rows(0, "mel"), good["mel"]) and store.verify() == {}
    for fields in ({}, {"info": ("int16", ())}, {"../x": ("int16", ())}, {"x": ("object", ())}, {"x": ("int16", (0,))}, {"x": ("int16", (2**31,))}, {"x": ("int16", (-1,))},
                   {"x": "int16"}, {"x": (np.int16, ())}, {"x": ("int16", (2**20, 2**20))}, {"X": ("int16", ())}):
        with pytest.raises(DataError): PackedWriter(tmp_path/"new", fields)
    with pytest.raises(DataError, match="nothing was added"): PackedWriter(tmp_path/"empty", FIELDS).finish()


# --- interrupted builds

def test_an_interrupted_build_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_SAVE_BYTES", 300)
    writer = PackedWriter(tmp_path, FIELDS, {"sample_rate": 16_000}, {"a": "1"})
    for number in range(5): writer.add(f"item {number}", values(number), {"text": f"n° {number}", "input": "1"})
    with pytest.raises(DataError, match="never finished"): PackedStore(tmp_path)
    with pytest.raises(DataError, match="another process"): PackedWriter(tmp_path, FIELDS)
    writer.close()
    store = build(tmp_path)
    assert 2 <= json.loads((tmp_path/"index.json").read_text())["count"] == 10 and store.verify() == {}
    assert [store.name(i) for i in range(10)] == [f"item {i}" for i in range(10)] and np.array_equal(store.rows(9, "audio"), values(9)["audio"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {path.name: path.read_bytes() for path in build(tmp_path.parent/"straight").folder.iterdir()}


@pytest.mark.parametrize("change", ["settings", "inputs", "fields", "torn note", "short file", "no resume"])
def test_other_builds_begin_anew(tmp_path, change):
    writer = PackedWriter(tmp_path, FIELDS, {"sample_rate": 16_000}, {"a": "1"})
    for number in range(4): writer.add(f"old {number}", values(50))
    writer.save(); writer.close()
    if change == "torn note": (tmp_path/"building.json").write_text('{"count": 4, "rows"')
    if change == "short file": os.truncate(tmp_path/"mel.bin.part", 3)
    fields = {"audio": ("int16", ())} if change == "fields" else FIELDS
    writer = PackedWriter(tmp_path, fields, {"sample_rate": 8000 if change == "settings" else 16_000}, {"a": "2" if change == "inputs" else "1"}, resume=change != "no resume")
    assert writer.count == 0 and writer.last_info() is None
    writer.add("new", {name: value for name, value in values(1).items() if name in fields})
    store = writer.finish()
    assert [store.name(i) for i in range(len(store))] == ["new"] and store.verify() == {}


KILLED = """
import sys, time, numpy as np
sys.path.insert(0, sys.argv[2])
from audiolab.data import packed as packed
from test_packed import FIELDS, values
packed._SAVE_BYTES = 2000
writer = packed.PackedWriter(sys.argv[1], FIELDS, {"sample_rate": 16_000}, {"a": "1"})
print(writer.count, flush=True)
for number in range(writer.count, 4000): writer.add(f"item {number}", values(number % 60), {"text": "x", "input": "1"}); time.sleep(0.0005)
"""


@pytest.mark.parametrize("kills", [1, pytest.param(40, marks=pytest.mark.slow)])
def test_kill_9_at_any_moment(tmp_path, kills):
    delays, counts = np.random.default_rng(kills).uniform(0.05, 0.3, kills), []
    for delay in delays:
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True)
        counts.append(int(child.stdout.readline())); time.sleep(delay)
        child.kill(); child.wait(); child.stdout.close()
        if not (tmp_path/"index.json").exists():
            with pytest.raises(DataError): PackedStore(tmp_path)
    with PackedWriter(tmp_path, FIELDS, {"sample_rate": 16_000}, {"a": "1"}) as writer:
        counts.append(writer.count)
        for number in range(writer.count, writer.count + 3): writer.add(f"item {number}", values(number % 60), {"text": "x", "input": "1"})
    store = PackedStore(tmp_path)
    assert counts == sorted(counts) and counts[-1] > 0 and store.verify() == {}
    for index in range(len(store)):
        assert store.name(index) == f"item {index}" and np.array_equal(store.rows(index, "audio"), values(index % 60)["audio"])


def test_replacing_a_store(tmp_path):
    build(tmp_path, 3)
    with pytest.raises(DataError, match="overwrite=True"): PackedWriter(tmp_path, FIELDS)
    with pytest.raises(RuntimeError, match="by chance"):
        with PackedWriter(tmp_path, FIELDS, overwrite=True) as writer:
            writer.add("new", values(1))
            raise RuntimeError("by chance")
    with pytest.raises(DataError, match="never finished"): PackedStore(tmp_path)  # never the old index over new files
    writer = PackedWriter(tmp_path, FIELDS)
    assert writer.count == 1 and [len(writer.finish()), PackedStore(tmp_path).name(0)] == [1, "new"]


# --- damage and hostile files

def test_other_settings_are_named(store):
    assert len(PackedStore(store.folder, {"sample_rate": 16_000}, {"a": "1"})) == 10
    with pytest.raises(DataError, match="n_mels is nothing instead of 80; sample_rate is 16000 instead of 24000"): PackedStore(store.folder, {"sample_rate": 24_000, "n_mels": 80})
    with pytest.raises(DataError, match="1 inputs instead of 2, and other ones: a, b, item 0"): PackedStore(store.folder, inputs={"a": "1", "b": "2"})


def test_every_flipped_bit_of_the_index_is_noticed(store):
    path = store.folder/"index.json"; sound = path.read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.choice(8*len(sound), 400, replace=False).tolist():
        raw = bytearray(sound); raw[bit//8] ^= 1 << bit % 8; path.write_bytes(raw)
        with pytest.raises(DataError): PackedStore(store.folder)
    for size in (0, 1, len(sound)//2, len(sound) - 1):
        path.write_bytes(sound[:size])
        with pytest.raises(DataError): PackedStore(store.folder)


@pytest.mark.parametrize("name", ["audio.bin", "audio.offsets", "mel.bin", "mel.offsets", "info.bin", "info.offsets"])
def test_damaged_files(store, name):
    path = store.folder/name; sound = path.read_bytes()
    for at in range(0, len(sound), max(1, len(sound)//40)):
        raw = bytearray(sound); raw[at] ^= 0x10; path.write_bytes(raw)
        try: damaged = PackedStore(store.folder)
        except DataError: assert name.endswith("offsets"); continue
        assert list(damaged.verify()) == [name]
    for size in (0, len(sound) - 1, len(sound) + 1):
        path.write_bytes((sound + b"x")[:size])
        with pytest.raises(DataError, match=name): PackedStore(store.folder)
    path.unlink(); path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="not a regular file"): PackedStore(store.folder)
    path.unlink(); os.mkfifo(path)
    with pytest.raises(DataError, match="not a regular file"): PackedStore(store.folder)
    path.unlink()
    with pytest.raises(DataError, match=name): PackedStore(store.folder)


def forge(store, **changes):
    "An index that fits its own digests"
    index = json.loads((store.folder/"index.json").read_text()); index.pop("digest")
    for key, value in changes.items():
        where, *rest = key.split("__"); tree = index
        for part in rest: tree, where = tree[where], part
        tree[where] = value
    (store.folder/"index.json").write_bytes(_canonical(index | {"digest": _digest(index)}))


FORGED = [{"count": 2**39}, {"count": 11}, {"count": 0}, {"count": -1}, {"count": 1.5}, {"count": True}, {"count": 2**70}, {"fields": {}}, {"fields": []}, {"fields__audio__rows": 2**47},
          {"fields__audio__rows": 2**80}, {"fields__audio__rows": -5}, {"fields__audio__rows": 1.0}, {"fields__audio__dtype": "object"}, {"fields__audio__dtype": "int64"},
          {"fields__audio__dtype": ["int16"]}, {"fields__audio__shape": [2**30, 2**30]}, {"fields__audio__shape": [2]}, {"fields__audio__shape": "x"}, {"fields__audio__shape": [-1]},
          {"fields__../../../etc/passwd": {"dtype": "uint8", "shape": [], "rows": 1}}, {"fields__/dev/zero": {"dtype": "uint8", "shape": [], "rows": 1}},
          {"fields__nul\0": {"dtype": "uint8", "shape": [], "rows": 1}}, {"fields__audio": None}, {"fields__audio": {}}, {"fields__info__dtype": "int8"}, {"fields__info__shape": [1]},
          {"format": "zip"}, {"version": 2}, {"settings": []}, {"settings": {"x": 1}}, {"fingerprint": "0"}, {"inputs": None}]


@pytest.mark.parametrize("changes", FORGED, ids=lambda changes: str(changes)[:60])
def test_forged_indexes(store, changes):
    forge(store, **changes)
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as error: PackedStore(store.folder)
        assert tracemalloc.get_traced_memory()[1] < 5e6 and len(str(error.value)) < 600
    finally: tracemalloc.stop()


def test_offsets_that_lie(store):
    path = store.folder/"audio.offsets"; sound = np.frombuffer(path.read_bytes(), "<i8")
    for at, value in ((0, 1), (0, -5), (3, 2**62), (3, -1), (4, int(sound[2])), (10, int(sound[10]) + 1), (10, 0)):
        lying = sound.copy(); lying[at] = value; path.write_bytes(lying.tobytes())
        with pytest.raises(DataError, match="overlap or are out of order"): PackedStore(store.folder)


def test_huge_and_hostile_json(store):
    path = store.folder/"index.json"
    for raw in (b"["*100_000, b"[]", b"null", b"{}", b'{"digest": 1}', b"\xff", b" "*(17 << 20), b'{"a":' * 50_000):
        path.write_bytes(raw)
        with pytest.raises(DataError): PackedStore(store.folder)
    for bad in (store.folder/"none", "/dev/zero", "a\0b", store.folder/"audio.bin"):
        with pytest.raises(DataError): PackedStore(bad)


def test_hostile_notes(tmp_path, store):
    raw = bytearray((store.folder/"info.bin").read_bytes()); raw[0] = 0x20; raw[5] = 0xff
    (store.folder/"info.bin").write_bytes(raw)
    damaged = PackedStore(store.folder)
    with pytest.raises(DataError, match="info.bin: damaged at item 0"): damaged.item(0)
    assert damaged.item(1)["id"] == "item 1"


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
                    max_leaves=5), st.sampled_from(["count", "fields", "settings", "inputs", "fingerprint", "fields__audio", "fields__audio__rows", "fields__mel__shape", "fields__info"]))
def test_no_value_breaks_the_reader(tmp_path_factory, value, key):
    folder = tmp_path_factory.getbasetemp()/"forged"
    if not folder.exists(): build(folder); shutil.copy(folder/"index.json", folder/"sound.json")
    shutil.copy(folder/"sound.json", folder/"index.json")
    class At: pass
    at = At(); at.folder = folder; forge(at, **{key: value})
    try: assert len(PackedStore(folder)) == 10
    except DataError: pass


# --- packing

@pytest.fixture
def music(tmp_path):
    for name, rate in (("a/1.wav", 16_000), ("a/2.flac", 16_000), ("b/1.wav", 22_050), ("c/1.wav", 16_000)):
        (tmp_path/"music"/name).parent.mkdir(parents=True, exist_ok=True)
        write_audio(tmp_path/"music"/name, np.random.default_rng(len(name)).uniform(-0.5, 0.5, rate).astype(np.float32), rate)
    return scan_audio(tmp_path/"music", workers=0, group="folder")[0]


def levels(item): return {"level": np.array([[np.abs(item["audio"]).max(), item["audio"].std()]], np.float32)}
LEVEL = {"level": ("float32", (2,))}


def test_pack_is_the_same_in_processes(music, tmp_path):
    stores = [pack(Segments(music, 16_000, 0.1, placement="grid"), tmp_path/f"s{workers}", levels, LEVEL, {"v": 1}, workers) for workers in (0, 2)]
    assert len(stores[0]) == 40 and stores[0].settings == {"sample_rate": 16_000, "v": 1} and stores[0].fingerprint == stores[1].fingerprint
    assert all((stores[0].folder/f"level.{kind}").read_bytes() == (stores[1].folder/f"level.{kind}").read_bytes() for kind in ("bin", "offsets"))
    assert stores[0].info(11)["fields"]["start"] == 1600 and stores[0].info(11)["fields"]["source"] == "a"
    index = (tmp_path/"s0/index.json").stat().st_mtime_ns
    assert len(pack(Segments(music, 16_000, 0.1, placement="grid"), tmp_path/"s0", levels, LEVEL, {"v": 1})) == 40
    assert (tmp_path/"s0/index.json").stat().st_mtime_ns == index  # opened, not made again


def test_packed_sound_replaces_files(music, tmp_path):
    clips = PackedClips(pack(music, tmp_path/"s", settings={"sample_rate": 16_000}))
    assert [clips.clip(i).source for i in range(4)] == ["a", "a", "b", "c"] and clips.clip(2).frames == 16_000
    assert np.array_equal(clips.read(0), read_audio(music.clip(0).path)[0])
    for index, epoch in ((0, 0), (1, 5), (3, 2)):
        one, two = (Segments(source, 16_000, 0.3, seed=4).item(index, epoch) for source in (music, clips))
        assert np.array_equal(one["audio"], two["audio"]) and one["start"] == two["start"] and one["id"] == two["id"]
    assert abs(WholeClips(clips, 16_000).item(2)["audio"] - WholeClips(music, 16_000).item(2)["audio"]).max() < 2e-5
    assert {name: len(part) for name, part in split_clips(clips, 0.2, seed=1).items()} == {name: len(part) for name, part in split_clips(music, 0.2, seed=1).items()}
    with pytest.raises(DataError, match="asked for"): clips.read(0, 16_000, 1)
    with pytest.raises(DataError, match="no int16 or float32 field 'mel'"): PackedClips(clips.store, "mel")
    with pytest.raises(DataError, match="at which rate"): pack(music, tmp_path/"t")
    small = pickle.dumps(clips)
    assert len(small) < 5000 and np.array_equal(pickle.loads(small).read(1), clips.read(1))


def test_changed_inputs_and_settings(music, tmp_path):
    data = WholeClips(music, 16_000)
    pack(data, tmp_path/"s", levels, LEVEL, {"v": 1})
    with pytest.raises(DataError, match="v is 1 instead of 2"): pack(data, tmp_path/"s", levels, LEVEL, {"v": 2})
    with pytest.raises(DataError, match="field level is"): pack(data, tmp_path/"s", levels, {"level": ("float32", (3,))}, {"v": 1})
    write_audio(music.clip(1).path, np.zeros(16_000, np.float32), 16_000)
    again = WholeClips(scan_audio(tmp_path/"music", workers=0, group="folder")[0], 16_000)
    with pytest.raises(DataError, match="a/2.flac"): pack(again, tmp_path/"s", levels, LEVEL, {"v": 1})
    store = pack(again, tmp_path/"s", levels, LEVEL, {"v": 1}, overwrite=True)
    assert store.item(1)["level"].tolist() == [[0, 0]] and store.verify() == {}


def test_unreadable_items(music, tmp_path, caplog):
    Path(music.clip(1).path).write_bytes(b"nothing")
    with pytest.raises(DataError, match="1 of 2 items cannot be read.*2.flac"): pack(WholeClips(music, 16_000), tmp_path/"s", levels, LEVEL)
    with pytest.raises(DataError): PackedStore(tmp_path/"s")
    store = pack(WholeClips(music, 16_000), tmp_path/"s", levels, LEVEL, max_unreadable=0.3)  # goes on after the first
    assert [store.name(i) for i in range(3)] == ["a/1.wav", "b/1.wav", "c/1.wav"] and "left out: " in caplog.text


def broken(item):
    if item["id"] == "b/1.wav": raise KeyError("pitch")
    return levels(item)

def fatal(item):
    if item["id"] == "b/1.wav": os.kill(os.getpid(), signal.SIGKILL)
    return levels(item)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_function_that_fails(music, tmp_path, workers):
    with pytest.raises(DataError, match="b/1.wav: KeyError: 'pitch'"): pack(WholeClips(music, 16_000), tmp_path/"s", broken, LEVEL, workers=workers)
    calls = []
    store = pack(WholeClips(music, 16_000), tmp_path/"s", lambda item: calls.append(item["id"]) or levels(item), LEVEL)
    assert len(store) == 4 and calls == ["b/1.wav", "c/1.wav"]  # what was made is kept


@pytest.mark.skipif(sys.platform != "linux", reason="optional: needs processes that are forked")
def test_a_worker_that_dies(music, tmp_path):
    with pytest.raises(DataError, match=r"b/1.wav: crashed the process that worked on it \(exit code -9\)"): pack(WholeClips(music, 16_000), tmp_path/"s", fatal, LEVEL, workers=2)
    with pytest.raises(DataError): PackedStore(tmp_path/"s")
    assert not multiprocessing.active_children()


ORPHAN = """
import os, sys, time
sys.path.insert(0, sys.argv[2])
from audiolab.data import WholeClips, scan_audio
from audiolab.data import pack
from test_packed import LEVEL, levels
def slow(item): os.write(1, b"%d\\n" % os.getpid()); time.sleep(0.3); return levels(item)
pack(WholeClips(scan_audio(sys.argv[1] + "/music", workers=0)[0], 16_000), sys.argv[1] + "/s", slow, LEVEL, workers=3)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="optional: needs processes that are forked")
def test_no_orphans(music, tmp_path):
    "Workers end with the process that started them, and so does its lock"
    main = subprocess.Popen([sys.executable, "-c", ORPHAN, str(tmp_path), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True)
    workers = {int(main.stdout.readline()) for _ in range(3)}
    main.kill(); main.wait(); main.stdout.close()
    until = time.monotonic() + 10
    while time.monotonic() < until and any(Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2] for pid in workers): time.sleep(0.05)
    assert time.monotonic() < until
    assert len(pack(WholeClips(music, 16_000), tmp_path/"s", levels, LEVEL, overwrite=True)) == 4


def test_gather_is_fast(tmp_path):
    "Crops of 3 s at 24 kHz; more than a decoder gives by a factor of a hundred"
    with PackedWriter(tmp_path, {"audio": ("int16", ())}) as writer:
        for number in range(40): writer.add(str(number), {"audio": np.full(120_000, number, np.int16)})
    store, out, rng, best = PackedStore(tmp_path), np.empty((32, 72_000), np.int16), np.random.default_rng(0), np.inf
    for _ in range(5):
        began = time.process_time()
        for _ in range(20): store.gather("audio", rng.integers(0, 40, 32), rng.integers(0, 48_000, 32), 72_000, out)
        best = min(best, time.process_time() - began)
    assert 640/best > 20_000
