"Packing: made once, in any number of processes, and made again only where something changed."
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_sounds import forks
from packed_items import LEVEL, levels

from audiolab.audio import read_audio, write_audio
from audiolab.data import (
    DataError, PackedClips, PackedStore, Segments, WholeClips, pack, scan_audio, split_clips,
)


@pytest.fixture
def music(tmp_path):
    rates = {"a/1.wav": 16_000, "a/2.flac": 16_000, "b/1.wav": 22_050, "c/1.wav": 16_000}
    for name, rate in rates.items():
        (tmp_path/"music"/name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(name)).uniform(-0.5, 0.5, rate).astype(np.float32)
        write_audio(tmp_path/"music"/name, noise, rate)
    return scan_audio(tmp_path/"music", workers=0, group="folder")[0]


def test_pack_is_the_same_in_processes(music, tmp_path):
    stores = [pack(Segments(music, 16_000, 0.1, placement="grid"), tmp_path/f"s{workers}", levels,
                   LEVEL, {"v": 1}, workers) for workers in (0, 2)]
    assert len(stores[0]) == 40 and stores[0].settings == {"sample_rate": 16_000, "v": 1}
    assert stores[0].fingerprint == stores[1].fingerprint
    for kind in ("bin", "offsets"):
        one, two = ((store.folder/f"level.{kind}").read_bytes() for store in stores)
        assert one == two
    assert stores[0].info(11)["fields"]["start"] == 1600
    assert stores[0].info(11)["fields"]["source"] == "a"
    index = (tmp_path/"s0/index.json").stat().st_mtime_ns
    assert len(pack(Segments(music, 16_000, 0.1, placement="grid"), tmp_path/"s0", levels, LEVEL,
                    {"v": 1})) == 40
    assert (tmp_path/"s0/index.json").stat().st_mtime_ns == index  # opened, not made again


def sizes(parts): return {name: len(part) for name, part in parts.items()}


def test_packed_sound_replaces_files(music, tmp_path):
    clips = PackedClips(pack(music, tmp_path/"s", settings={"sample_rate": 16_000}))
    assert [clips.clip(i).source for i in range(4)] == ["a", "a", "b", "c"]
    assert clips.clip(2).frames == 16_000
    assert np.array_equal(clips.read(0), read_audio(music.clip(0).path)[0])
    for index, epoch in ((0, 0), (1, 5), (3, 2)):
        one, two = (Segments(source, 16_000, 0.3, seed=4).item(index, epoch)
                    for source in (music, clips))
        assert np.array_equal(one["audio"], two["audio"]) and one["start"] == two["start"]
        assert one["id"] == two["id"]
    one, two = (WholeClips(source, 16_000).item(2)["audio"] for source in (clips, music))
    assert abs(one - two).max() < 2e-5
    assert sizes(split_clips(clips, 0.2, seed=1)) == sizes(split_clips(music, 0.2, seed=1))
    with pytest.raises(DataError, match="asked for"): clips.read(0, 16_000, 1)
    with pytest.raises(DataError, match="no int16 or float32 field 'mel'"):
        PackedClips(clips.store, "mel")
    with pytest.raises(DataError, match="at which rate"): pack(music, tmp_path/"t")
    small = pickle.dumps(clips)
    assert len(small) < 5000 and np.array_equal(pickle.loads(small).read(1), clips.read(1))


def test_changed_inputs_and_settings(music, tmp_path):
    data = WholeClips(music, 16_000)
    pack(data, tmp_path/"s", levels, LEVEL, {"v": 1})
    with pytest.raises(DataError, match="v is 1 instead of 2"):
        pack(data, tmp_path/"s", levels, LEVEL, {"v": 2})
    with pytest.raises(DataError, match="field level is"):
        pack(data, tmp_path/"s", levels, {"level": ("float32", (3,))}, {"v": 1})
    write_audio(music.clip(1).path, np.zeros(16_000, np.float32), 16_000)
    again = WholeClips(scan_audio(tmp_path/"music", workers=0, group="folder")[0], 16_000)
    with pytest.raises(DataError, match="a/2.flac"):
        pack(again, tmp_path/"s", levels, LEVEL, {"v": 1})
    store = pack(again, tmp_path/"s", levels, LEVEL, {"v": 1}, overwrite=True)
    assert store.item(1)["level"].tolist() == [[0, 0]] and store.verify() == {}


def test_unreadable_items(music, tmp_path, caplog):
    Path(music.clip(1).path).write_bytes(b"nothing")
    with pytest.raises(DataError, match="1 of 2 items cannot be read.*2.flac"):
        pack(WholeClips(music, 16_000), tmp_path/"s", levels, LEVEL)
    with pytest.raises(DataError): PackedStore(tmp_path/"s")
    # goes on after the first
    store = pack(WholeClips(music, 16_000), tmp_path/"s", levels, LEVEL, max_unreadable=0.3)
    assert [store.name(i) for i in range(3)] == ["a/1.wav", "b/1.wav", "c/1.wav"]
    assert "left out: " in caplog.text


def broken(item):
    if item["id"] == "b/1.wav": raise KeyError("pitch")
    return levels(item)

def fatal(item):
    if item["id"] == "b/1.wav": os.kill(os.getpid(), signal.SIGKILL)
    return levels(item)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_function_that_fails(music, tmp_path, workers):
    with pytest.raises(DataError, match="b/1.wav: KeyError: 'pitch'"):
        pack(WholeClips(music, 16_000), tmp_path/"s", broken, LEVEL, workers=workers)
    calls = []
    store = pack(WholeClips(music, 16_000), tmp_path/"s", lambda item: calls.append(item["id"])
                 or levels(item), LEVEL)
    assert len(store) == 4 and calls == ["b/1.wav", "c/1.wav"]  # what was made is kept


@forks
def test_a_worker_that_dies(music, tmp_path):
    with pytest.raises(DataError,
                       match=r"b/1.wav: crashed the process that worked on it \(exit code -9\)"):
        pack(WholeClips(music, 16_000), tmp_path/"s", fatal, LEVEL, workers=2)
    with pytest.raises(DataError): PackedStore(tmp_path/"s")
    assert not multiprocessing.active_children()


def is_alive(pid):
    try: return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError: return False


ORPHAN = """
import os, sys, time
sys.path.insert(0, sys.argv[2])
from audiolab.data import WholeClips, scan_audio
from audiolab.data import pack
from packed_items import LEVEL, levels
def slow(item):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(0.3)
    return levels(item)
music = WholeClips(scan_audio(sys.argv[1] + "/music", workers=0)[0], 16_000)
pack(music, sys.argv[1] + "/s", slow, LEVEL, workers=3)
"""


@forks
def test_no_orphans(music, tmp_path):
    "Workers end with the process that started them, and so does its lock"
    main = subprocess.Popen([sys.executable, "-c", ORPHAN, str(tmp_path),
                             str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True)
    workers = {int(main.stdout.readline()) for _ in range(3)}
    main.kill()
    main.wait()
    main.stdout.close()
    deadline = time.monotonic() + 60
    while any(map(is_alive, workers)) and time.monotonic() < deadline: time.sleep(0.05)
    assert not any(map(is_alive, workers))
    assert len(pack(WholeClips(music, 16_000), tmp_path/"s", levels, LEVEL, overwrite=True)) == 4
