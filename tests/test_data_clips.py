"Clips in files: exact to the sample in every format and process, whatever was read before."
import multiprocessing
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from data_sounds import clip_of, forks, sound

from audiolab.audio import AudioError, read_audio, write_audio
from audiolab.data import AudioFiles, DataError, Segments
from audiolab.data import clips as clips_module


def remove_first_frame(path):
    "An MP3 without the frame that holds the index, as from a stream"
    raw = path.read_bytes()
    has_index = b"Xing" in raw[:200] or b"Info" in raw[:200]
    path.write_bytes(raw[raw.index(b"\xff\xfb", 4):] if has_index else raw)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3", "opus", "bare.mp3"])
def test_ranges_are_exact_in_any_order(tmp_path, ending):
    rate, path = 48_000 if ending == "opus" else 44_100, tmp_path/f"a.{ending}"
    write_audio(path, sound(8, rate, 1 if "mp3" in ending else 2), rate)
    if ending == "bare.mp3": remove_first_frame(path)
    whole, _ = read_audio(path)
    length, limit = whole.shape[1], 1e-6 if ending in ("opus", "mp3", "bare.mp3") else 0
    files, rng = AudioFiles([clip_of(path)]), np.random.default_rng(0)
    assert abs(files.read(0) - whole).max() <= 1e-6
    for start in [0, length - 500, 0, *rng.integers(0, length - 6000, 40).tolist()]:
        n = 500 if start > length - 6000 else 6000
        part = files.read(0, start, n)
        assert abs(part - whole[:, start:start + n]).max() <= limit, start
        alone = AudioFiles([clip_of(path)]).read(0, start, n)
        assert np.array_equal(alone, part)  # whatever was read in between
    for start, n in ((-1, 5), (0, 0), (0, length + 1), (length, 1)):
        with pytest.raises(DataError, match="asked for"): files.read(0, start, n)


def read_many(files, seed, out):
    rng = np.random.default_rng(seed)
    for start in rng.integers(0, 40_000, 60).tolist():
        out.append((start, files.read(0, start, 1000)))


def all_equal(results, whole):
    return all(np.array_equal(x, whole[:, start:start + 1000]) for start, x in results)


@pytest.fixture
def glide(tmp_path):
    "(clips of one file, its sound)"
    write_audio(tmp_path/"a.flac", sound(3, 16_000), 16_000)
    return AudioFiles([clip_of(tmp_path/"a.flac")]), read_audio(tmp_path/"a.flac")[0]


def test_threads_do_not_share_a_handle(glide):
    files, whole = glide
    results = [[] for _ in range(4)]
    threads = [threading.Thread(target=read_many, args=(files, seed, out)) for seed,
               out in enumerate(results)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert sum(map(len, results)) == 240 and all_equal(sum(results, []), whole)


def child(files, seed, pipe):
    out = []
    read_many(files, seed, out)
    pipe.send(out)


@forks
def test_processes_do_not_share_a_handle(glide):
    files, whole = glide
    files.read(0, 7, 10)  # open before the fork
    context, pipes, results = multiprocessing.get_context("fork"), [], []
    for seed in (1, 2):
        here, there = context.Pipe()
        pipes.append(here)
        context.Process(target=child, args=(files, seed, there), daemon=True).start()
        there.close()
    read_many(files, 0, results)
    for pipe in pipes: results += pipe.recv()
    assert len(results) == 180 and all_equal(results, whole)


def test_open_files_are_few(tmp_path, monkeypatch):
    monkeypatch.setattr(clips_module, "_open_files", clips_module.OpenFiles(count=3))
    for number in range(8): write_audio(tmp_path/f"{number}.wav", sound(0.1, 16_000), 16_000)
    files = AudioFiles(clip_of(tmp_path/f"{number}.wav") for number in range(8))
    for number in (0, 1, 2, 3, 4, 5, 6, 7, 6): files.read(number)
    assert [Path(path).stem for path in clips_module._open_files.open] == ["5", "7", "6"]
    monkeypatch.setattr(clips_module.OpenFiles, "memory_of", staticmethod(lambda f: 2**28))
    files.read(0)
    assert [Path(path).stem for path in clips_module._open_files.open] == ["0"]


def test_a_file_that_changes_under_us(tmp_path):
    path = tmp_path/"a.wav"
    write_audio(path, sound(1, 16_000), 16_000)
    files = AudioFiles([clip_of(path)])
    files.read(0, 0, 10)
    write_audio(path, sound(1, 16_000, seed=5), 16_000)
    assert np.array_equal(files.read(0), read_audio(path)[0])  # opened again
    write_audio(path, sound(0.5, 16_000), 16_000)
    changed = ("changed since it was listed: 16000 Hz, 1 channels, 8000 samples instead of "
               "16000, 1, 16000")
    with pytest.raises(DataError, match=changed): files.read(0)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(AudioError, match="truncated"): files.read(0)
    path.unlink()
    with pytest.raises(AudioError, match="missing"): files.read(0)


def test_unreadable_inside(tmp_path):
    path = tmp_path/"a.flac"
    write_audio(path, sound(4, 16_000), 16_000)
    files, raw = AudioFiles([clip_of(path)]), bytearray(path.read_bytes())
    raw[len(raw)//2:len(raw)//2 + 4000] = bytes(4000)
    path.write_bytes(raw)
    assert len(files.read(0, 0, 1000)[0]) == 1000  # what is sound can be had
    with pytest.raises(AudioError): files.read(0)
    with pytest.raises(AudioError): Segments(files, 16_000, 4.0).item(0)
    assert len(files.read(0, 0, 1000)[0]) == 1000  # and still after an error


def cpu_seconds(function, *args):
    began = time.process_time()
    function(*args)
    return time.process_time() - began


@pytest.mark.slow
@pytest.mark.parametrize("ending, crops", [("wav", 40), ("flac", 200), ("mp3", 100)])
def test_a_second_out_of_twenty_minutes_costs_little(tmp_path, ending, crops):
    "So many seconds from anywhere cost less than the whole read once"
    write_audio(tmp_path/f"a.{ending}", np.tile(sound(60, 44_100), 20), 44_100)
    files = AudioFiles([clip_of(tmp_path/f"a.{ending}")])
    starts = np.random.default_rng(0).integers(0, files.clip(0).frames - 44_100, crops).tolist()

    def read_crops():
        for start in starts: files.read(0, start, 44_100)

    assert min(cpu_seconds(read_crops) for _ in range(3)) < cpu_seconds(files.read, 0)
