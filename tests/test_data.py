"Clips, manifests, splits and crops: exact to the sample in every format, repeatable in every process, and safe with other people's files."
import json
import multiprocessing
import os
import pickle
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolab.data import clips as clips_module
from audiolab.audio import AudioError, probe_audio, read_audio, resample, write_audio
from audiolab.data import (
    AudioFiles, Clip, ClipSource, DataError, ScanConfig, Segments, WholeClips, keyed_rng,
    read_manifest, scan_audio, scan_command, split_clips, write_manifest,
)

forks = pytest.mark.skipif(sys.platform != "linux", reason="optional: needs processes that are forked")


def sound(seconds, rate, channels=1, seed=0):
    "Noise over a glide, so that no two places are alike"
    rng, t = np.random.default_rng(seed), np.arange(round(seconds*rate))/rate
    return (0.3*np.sin(2*np.pi*(300 + 200*t)*t) + rng.normal(0, 0.05, (channels, len(t)))).astype(np.float32)


def clip_of(path, **more):
    about = probe_audio(path)
    return Clip(str(path), str(path), about.sample_rate, about.channels, about.frames, **more)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "Four files of three singers, as the working directory"
    for name, rate, channels in (("a/1.wav", 16_000, 1), ("a/2.flac", 22_050, 2), ("b/1.ogg", 16_000, 1), ("c/1.wav", 44_100, 1)):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        write_audio(tmp_path/name, sound(1.5, rate, channels, len(name)), rate)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- keyed randomness

def test_keyed_rng_is_a_function_of_its_key():
    np.random.seed(1); before = np.random.get_state()[1].tolist()
    draws = {key: keyed_rng(*key).random() for key in [(0,), (0, 0), (0, 0, 0), (1, 2), (12,), (2, 1), (-1, 2), (2**70, 1)]}
    assert len(set(draws.values())) == len(draws)
    assert draws[2**70, 1] == keyed_rng(2**70, 1).random()
    assert np.random.get_state()[1].tolist() == before
    assert keyed_rng(3, 1, 4).bit_generator.random_raw(2).tolist() == [13015094477011307239, 2557958173002760023]  # on every machine, in every version


# --- reading ranges

@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3", "opus", "bare.mp3"])
def test_ranges_are_exact_in_any_order(tmp_path, ending):
    rate, path = 48_000 if ending == "opus" else 44_100, tmp_path/f"a.{ending}"
    write_audio(path, sound(8, rate, 1 if "mp3" in ending else 2), rate)
    if ending == "bare.mp3":  # without the frame that holds the index, as from a stream
        raw = path.read_bytes(); first = raw.index(b"\xff\xfb", 4) if b"Xing" in raw[:200] or b"Info" in raw[:200] else 0
        path.write_bytes(raw[first:])
    whole, _ = read_audio(path)
    files, rng = AudioFiles([clip_of(path)]), np.random.default_rng(0)
    assert abs(files.read(0) - whole).max() <= 1e-6
    for start in [0, whole.shape[1] - 500, 0, *rng.integers(0, whole.shape[1] - 6000, 40)]:
        n = 500 if start > whole.shape[1] - 6000 else 6000
        part = files.read(0, int(start), n)
        assert abs(part - whole[:, start:start + n]).max() <= (1e-6 if ending in ("opus", "mp3", "bare.mp3") else 0), start
        assert np.array_equal(AudioFiles([clip_of(path)]).read(0, int(start), n), part)  # whatever was read in between
    for start, n in ((-1, 5), (0, 0), (0, whole.shape[1] + 1), (whole.shape[1], 1)):
        with pytest.raises(DataError, match="asked for"): files.read(0, start, n)


def read_many(files, seed, out):
    rng = np.random.default_rng(seed)
    for start in rng.integers(0, 40_000, 60): out.append((int(start), files.read(0, int(start), 1000)))


def test_threads_do_not_share_a_handle(tmp_path):
    write_audio(tmp_path/"a.flac", sound(3, 16_000), 16_000)
    files, whole, results = AudioFiles([clip_of(tmp_path/"a.flac")]), read_audio(tmp_path/"a.flac")[0], [[] for _ in range(4)]
    threads = [threading.Thread(target=read_many, args=(files, seed, out)) for seed, out in enumerate(results)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert sum(map(len, results)) == 240
    assert all(np.array_equal(x, whole[:, start:start + 1000]) for out in results for start, x in out)


def child(files, seed, pipe):
    out = []; read_many(files, seed, out); pipe.send(out)


@forks
def test_processes_do_not_share_a_handle(tmp_path):
    write_audio(tmp_path/"a.flac", sound(3, 16_000), 16_000)
    files, whole = AudioFiles([clip_of(tmp_path/"a.flac")]), read_audio(tmp_path/"a.flac")[0]
    files.read(0, 7, 10)  # open before the fork
    context, pipes = multiprocessing.get_context("fork"), []
    for seed in (1, 2):
        here, there = context.Pipe(); pipes.append(here)
        context.Process(target=child, args=(files, seed, there), daemon=True).start(); there.close()
    results = []; read_many(files, 0, results)
    for pipe in pipes: results += pipe.recv()
    assert len(results) == 180 and all(np.array_equal(x, whole[:, start:start + 1000]) for start, x in results)


def test_open_files_are_few(tmp_path, monkeypatch):
    monkeypatch.setattr(clips_module, "_handles", clips_module._Handles(count=3))
    for number in range(8): write_audio(tmp_path/f"{number}.wav", sound(0.1, 16_000), 16_000)
    files = AudioFiles(clip_of(tmp_path/f"{number}.wav") for number in range(8))
    for number in (0, 1, 2, 3, 4, 5, 6, 7, 6): files.read(number)
    assert [Path(path).stem for path in clips_module._handles.open] == ["5", "7", "6"]
    monkeypatch.setattr(clips_module._Handles, "size", staticmethod(lambda f: 2**28))
    files.read(0)
    assert [Path(path).stem for path in clips_module._handles.open] == ["0"]


def test_a_file_that_changes_under_us(tmp_path):
    path = tmp_path/"a.wav"
    write_audio(path, sound(1, 16_000), 16_000)
    files = AudioFiles([clip_of(path)]); files.read(0, 0, 10)
    write_audio(path, sound(1, 16_000, seed=5), 16_000)
    assert np.array_equal(files.read(0), read_audio(path)[0])  # opened again
    write_audio(path, sound(0.5, 16_000), 16_000)
    with pytest.raises(DataError, match="changed since it was listed: 16000 Hz, 1 channels, 8000 samples instead of 16000, 1, 16000"): files.read(0)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(AudioError, match="truncated"): files.read(0)
    path.unlink()
    with pytest.raises(AudioError, match="missing"): files.read(0)


def test_unreadable_inside(tmp_path):
    path = tmp_path/"a.flac"
    write_audio(path, sound(4, 16_000), 16_000)
    files, raw = AudioFiles([clip_of(path)]), bytearray(path.read_bytes())
    raw[len(raw)//2:len(raw)//2 + 4000] = bytes(4000); path.write_bytes(raw)
    assert len(files.read(0, 0, 1000)[0]) == 1000  # what is sound can be had
    with pytest.raises(AudioError): files.read(0)
    with pytest.raises(AudioError): Segments(files, 16_000, 4.0).item(0)
    assert len(files.read(0, 0, 1000)[0]) == 1000  # and still after an error


# --- scanning

def test_scan(folder):
    (folder/"a/bad.mp3").write_bytes(b"\xff\xfb" + bytes(500)); (folder/"b/text.wav").write_text("hello")
    write_audio(folder/"c/silent.wav", np.zeros(500, np.float32), 16_000); (folder/"c/twin.wav").write_bytes((folder/"c/1.wav").read_bytes())
    nan = sound(0.2, 16_000); nan[0, 100] = np.nan
    import soundfile; soundfile.write(folder/"c/nan.wav", nan.T, 16_000, subtype="FLOAT")
    results = [scan_audio(".", workers=workers, group="folder") for workers in (0, 2)]
    assert results[0][0].clips == results[1][0].clips and str(results[0][1]) == str(results[1][1])
    files, report = results[0]
    assert [clip.id for clip in files.clips] == ["a/1.wav", "a/2.flac", "b/1.ogg", "c/1.wav", "c/silent.wav", "c/twin.wav"]
    assert set(report.unreadable) == {"a/bad.mp3", "b/text.wav", "c/nan.wav"} and "NaN" in report.unreadable["c/nan.wav"]
    assert report.silent == ["c/silent.wav"] and report.duplicates == [("c/1.wav", "c/twin.wav")]
    clip = files.clips[1]; x = read_audio("a/2.flac")[0]
    assert (clip.sample_rate, clip.channels, clip.frames, clip.source) == (22_050, 2, x.shape[1], "a")
    assert clip.fields == {"format": "FLAC/PCM_16", "peak": pytest.approx(abs(x).max(), abs=1e-6), "rms": pytest.approx(np.sqrt((x**2).mean()), abs=1e-6)}
    with pytest.raises(AudioError): scan_audio(folder/"none")
    (folder/"empty").mkdir(); assert len(scan_audio(folder/"empty")[0]) == 0


@forks
def test_a_crashing_or_hanging_decoder_costs_one_file(folder, monkeypatch):
    real = clips_module._examine
    def examine(path):
        if path.endswith("2.flac"): os._exit(77)
        if path.endswith(".ogg"): time.sleep(60)
        return real(path)
    monkeypatch.setattr(clips_module, "_examine", examine)
    began = time.monotonic()
    files, report = scan_audio(".", workers=2, timeout=1.0)
    assert [clip.id for clip in files.clips] == ["a/1.wav", "c/1.wav"] and time.monotonic() - began < 20
    assert "crashed the process that worked on it (exit code 77)" in report.unreadable["a/2.flac"] and "not done within 1 s" in report.unreadable["b/1.ogg"]
    assert not multiprocessing.active_children()


def test_scan_command(folder, capsys):
    assert scan_command(ScanConfig((str(folder/"a"),), workers=0)) == 0
    assert len(read_manifest(folder/"a/manifest.jsonl")) == 2 and "2 files" in capsys.readouterr().out
    (folder/"b/bad.wav").write_text("no"); (folder/"empty").mkdir()
    config = ScanConfig((str(folder/"b"),), manifest=str(folder/"all.jsonl"), workers=0)
    assert "all.jsonl" in config.plan() and scan_command(config) == 2 and len(read_manifest(folder/"all.jsonl")) == 1
    assert scan_command(ScanConfig((str(folder/"empty"),), workers=0)) == 2 and not (folder/"empty/manifest.jsonl").exists()


# --- manifests

def test_manifest_round_trip(folder, tmp_path):
    clips = [clip_of("a/1.wav", source="ä\n|", fields={"text": "naïve \"quote\"\t", "n": 1, "words": [["a", 0.5]]}, digest="00"), clip_of("c/1.wav")]
    clips.append(Clip("part", str(folder/"c/1.wav"), 44_100, 1, 500, "s", {}, offset=1000))
    write_manifest("m.jsonl", AudioFiles(clips))
    back = read_manifest(folder/"m.jsonl")
    assert [c.id for c in back.clips] == ["a/1.wav", "c/1.wav", "part"] and back.clip(0).fields == clips[0].fields and back.clip(0).source == "ä\n|"
    assert np.array_equal(back.read(2), read_audio("c/1.wav")[0][:, 1000:1500])
    assert back.verify() == {str(folder/"a/1.wav"): "changed since it was scanned", str(folder/"c/1.wav"): "has no digest; scan it"}
    outside = write_manifest(folder/"sub/m.jsonl", AudioFiles(clips[:1]))
    with pytest.raises(DataError, match="allow_outside"): read_manifest(outside)
    assert np.array_equal(read_manifest(outside, allow_outside=True).read(0), read_audio("a/1.wav")[0])
    for bad in ({"path": "x"}, {"text": {1, 2}}, {"x": float("nan")}):
        with pytest.raises(DataError, match="clip"): write_manifest("m.jsonl", AudioFiles([clip_of("a/1.wav", fields=bad)]))
    assert len(read_manifest("m.jsonl")) == 3  # the old one is untouched
    assert not list(folder.glob(".m*"))


def test_lj_speech(tmp_path):
    (tmp_path/"wavs").mkdir()
    for name in ("LJ001-0001", "LJ001-0002"): write_audio(tmp_path/f"wavs/{name}.wav", sound(0.5, 22_050), 22_050)
    write_audio(tmp_path/"other.flac", sound(0.5, 16_000), 16_000)
    (tmp_path/"metadata.csv").write_text('LJ001-0001|Printing, in "1456"|Printing, in fourteen\nLJ001-0002|"a|\r\nother.flac|x\nwavs/LJ001-0002.wav\n', encoding="utf-8-sig")
    files = read_manifest(tmp_path/"metadata.csv")
    assert [c.id for c in files.clips] == ["LJ001-0001", "LJ001-0002", "other.flac", "wavs/LJ001-0002.wav"]
    assert files.clip(0).fields == {"text": 'Printing, in "1456"', "normalized": "Printing, in fourteen"}
    assert files.clip(1).fields == {"text": '"a', "normalized": ""} and files.clip(1).frames == 11_025 and files.clip(2).sample_rate == 16_000
    assert files.clip(1).source == files.clip(3).source  # one file, one side of a split
    for line, cause in (("LJ9|x", "missing"), ("../other|x", "leads out"), ("|x", "path"), ("LJ001-0001|x", "occurs twice")):
        (tmp_path/"m.csv").write_text(f"LJ001-0001|a\n{line}\n")
        with pytest.raises(DataError, match=rf"m\.csv:2: .*{cause}"): read_manifest(tmp_path/"m.csv")


HOSTILE = ["../x.wav", "a/../../x.wav", "/etc/passwd", "\\\\server\\x.wav", "C:x.wav", "C:/x.wav", "..\\x.wav", "a\0.wav", "a\n.wav", "NUL", "com1.wav",
           "a/aux.txt", "x"*300, "y/"*3000, "", "out/secret.wav", "secret.wav", "//x", "con .wav"]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:20]))
def test_hostile_paths(tmp_path, name):
    inner, outer = tmp_path/"inner", tmp_path/"outer"
    inner.mkdir(); outer.mkdir()
    write_audio(outer/"secret.wav", sound(0.1, 16_000), 16_000); write_audio(tmp_path/"x.wav", sound(0.1, 16_000), 16_000)
    (inner/"out").symlink_to(outer); (inner/"secret.wav").symlink_to(outer/"secret.wav")
    rows = [{"path": name}, {"path": name, "sample_rate": 16_000, "channels": 1, "frames": 10}]
    for row in rows:
        (inner/"m.jsonl").write_text("\n" + json.dumps(row) + "\n")
        with pytest.raises(DataError, match=r"m\.jsonl:2: "): read_manifest(inner/"m.jsonl")


BAD_ROWS = ['{"path": 1}', "[]", "{}", "nonsense", '{"path": "a/1.wav", "frames": 1e999}', '{"path": "a/1.wav", "x": NaN}', '{"path": "a/1.wav", "start": -1}',
            '{"path": "a/1.wav", "start": 99}', '{"path": "a/1.wav", "duration": 99}', '{"path": "a/1.wav", "sample_rate": true}', "["*100_000,
            '{"path": "a/1.wav", "id": []}', '{"path": "a/1.wav", "sample_rate": 1, "channels": 1, "frames": 1}', '{"path": "missing.wav"}', '{"path": "a"}',
            '{"path": "a/1.wav", "sample_rate": 16000, "channels": 0, "frames": 1}', '{"path": "a/1.wav", "frames": 0}', '{"path": "a/1.wav", "duration": 0}',
            '{"path": "a/1.wav", "sample_rate": 16000, "channels": 1, "frames": 99999999999999999999}', '{"path": "/dev/zero"}', '"' + "x"*2_000_000 + '"']


@pytest.mark.parametrize("row", BAD_ROWS, ids=lambda row: row[:60])
def test_bad_rows(folder, row):
    (folder/"m.jsonl").write_text('{"path": "a/1.wav", "id": "good"}\n' + row + "\n")
    with pytest.raises(DataError, match=r"m\.jsonl:2: ") as error: read_manifest("m.jsonl")
    assert len(str(error.value)) < 1000


def test_rows_in_seconds(folder):
    rows = [{"audio": "a/1.wav", "start": 0.25, "duration": 0.5, "speaker": "anna", "id": 7, "text": "hm"}, {"audio_filepath": "a/1.wav", "duration": 1.5004, "id": "w"}]
    (folder/"m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = read_manifest("m.jsonl")
    assert files.clip(0) == Clip("7", "a/1.wav", 16_000, 1, 8000, "anna", {"text": "hm"}, 4000) and files.clip(1).frames == 24_000
    assert np.array_equal(files.read(0), read_audio("a/1.wav", start=0.25, duration=0.5)[0])


def test_bad_manifest_files(tmp_path):
    path = tmp_path/"m.jsonl"
    path.write_text('{"path": "x"}\n'*100)
    with pytest.raises(DataError, match="max_bytes"): read_manifest(path, max_bytes=100)
    path.write_text("\n"*100)
    with pytest.raises(DataError, match=":11: more than max_lines=10"): read_manifest(path, max_lines=10)
    with pytest.raises(DataError, match="lists no clips"): read_manifest(path)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="UTF-8"): read_manifest(path)
    os.mkfifo(tmp_path/"pipe.jsonl")
    for bad in (tmp_path, tmp_path/"pipe.jsonl", tmp_path/"none.jsonl", "/dev/zero", "a\0.jsonl"):
        with pytest.raises(DataError): read_manifest(bad)


@settings(max_examples=150, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3), max_leaves=4), st.sampled_from(
    ["path", "id", "sample_rate", "channels", "frames", "offset", "start", "duration", "digest", "source", "speaker", "text"]))
def test_no_value_breaks_the_reader(tmp_path_factory, value, key):
    here = tmp_path_factory.getbasetemp()/"fuzz"; here.mkdir(exist_ok=True)
    if not (here/"a.wav").exists(): write_audio(here/"a.wav", sound(0.1, 16_000), 16_000)
    (here/"m.jsonl").write_text(json.dumps({"path": "a.wav"} | {key: value}))
    try: files = read_manifest(here/"m.jsonl")
    except DataError: return
    assert 0 < files.clip(0).frames and Path(files.clip(0).path).name == "a.wav"


# --- splits

class Names(ClipSource):
    "Clips without sound"
    def __init__(self, sources): self.sources = sources
    def __len__(self): return len(self.sources)
    def clip(self, index): return Clip(f"{index}", None, 16_000, 1, 16_000, self.sources[index])
    def read(self, index, start=0, frames=None): return np.zeros((1, self._range(index, start, frames)[1]), np.float32)


def sides(parts): return {part.clip(i).source: name for name, part in parts.items() for i in range(len(part))}


@pytest.mark.parametrize("seed", range(5))
def test_splits_do_not_leak_and_stay(seed):
    names = [f"speaker {i % 200}" for i in range(1000)]
    parts = split_clips(Names(names), validation=0.2, test=0.1, seed=seed)
    assert sum(map(len, parts.values())) == 1000 and len(sides(parts)) == 200
    for a in parts:
        for b in parts:
            if a != b: assert not {parts[a].clip(i).source for i in range(len(parts[a]))} & {parts[b].clip(i).source for i in range(len(parts[b]))}
    assert abs(len(parts["validation"])/1000 - 0.2) < 0.1 and abs(len(parts["test"])/1000 - 0.1) < 0.1
    more = sides(split_clips(Names(["new"]*3 + names[::-1] + [f"later {i}" for i in range(300)]), validation=0.2, test=0.1, seed=seed))
    assert all(more[name] == side for name, side in sides(parts).items())


def test_small_splits():
    assert set(split_clips(Names(["a", "b"]), validation=0)) == {"train"}
    for seed in range(20):
        parts = split_clips(Names(["a", "b", "c"]), validation=0.01, test=0.01, seed=seed)
        assert [len(parts[name]) for name in ("train", "validation", "test")] == [1, 1, 1]
        assert {name: len(part) for name, part in split_clips(Names(["", ""]), seed=seed).items()} == {"train": 1, "validation": 1}
    with pytest.raises(DataError, match="1 sources cannot be split into 2 parts"): split_clips(Names(["a", "a"]))
    with pytest.raises(DataError, match="train part would be empty"): split_clips(Names(["a", "b"]), validation=0.999999)
    for bad in ((1.0, 0), (0.5, 0.5), (-0.1, 0), (float("nan"), 0)):
        with pytest.raises(DataError, match="shares"): split_clips(Names(["a", "b"]), *bad)


# --- crops

@pytest.mark.parametrize("rate,target", [(44_100, 24_000), (48_000, 44_100), (16_000, 24_000), (22_050, 16_000), (8000, 44_100), (96_000, 16_000), (16_000, 16_000)])
def test_a_crop_equals_the_crop_of_the_whole(tmp_path, rate, target):
    write_audio(tmp_path/"a.wav", sound(2.3, rate, 2), rate, subtype="FLOAT")
    files = AudioFiles([clip_of(tmp_path/"a.wav")])
    whole, mono = read_audio(tmp_path/"a.wav", sample_rate=target)[0], read_audio(tmp_path/"a.wav", sample_rate=target, mono=True)[0]
    for epoch in range(8):
        item = Segments(files, target, 0.4, seed=1, mono=False).item(0, epoch)
        assert item["audio"].dtype == np.float32 and item["audio"].shape == (2, round(0.4*target)) and item["length"] == round(0.4*target)
        assert abs(item["audio"] - whole[:, item["start"]:item["start"] + item["length"]]).max() < 1e-4
    pieces = Segments(files, target, 0.4, placement="grid")
    joined = np.concatenate([pieces.item(i)["audio"][:pieces.item(i)["length"]] for i in range(len(pieces))])
    assert len(pieces) == 6 and len(mono) - len(joined) in (0, 1) and abs(joined - mono[:len(joined)]).max() < 1e-4
    item = Segments(files, target, 0.4, placement="center").item(0)
    assert abs(item["start"] + item["length"]/2 - len(mono)/2) < 2


@pytest.mark.parametrize("frames", [1, 2, 100, 239, 240, 241, 12_345])
def test_the_last_sample(tmp_path, frames):
    for rate, target in ((48_000, 44_100), (44_100, 8000), (8000, 48_000)):
        write_audio(tmp_path/"a.wav", sound(1, rate)[:, :frames], rate, subtype="FLOAT")
        files, whole = AudioFiles([clip_of(tmp_path/"a.wav")]), resample(read_audio(tmp_path/"a.wav", mono=True)[0], rate, target)
        item = WholeClips(files, target).item(0)
        assert len(whole) - item["length"] in (0, 1) or (len(whole) == 0 and not item["length"])
        assert abs(item["audio"] - whole[:item["length"]]).max(initial=0) < 1e-4 and WholeClips(files, target).length(0) >= item["length"]
        seconds = frames/rate*0.6
        if round(seconds*target) > 2:
            last = Segments(files, target, seconds, placement="grid"); item = last.item(len(last) - 1)
            assert item["length"] == last.length(len(last) - 1) and not item["audio"][item["length"]:].any()


def test_short_clips_and_lengths(folder):
    files, _ = scan_audio(".", workers=0)
    for placement in ("random", "center", "grid"):
        data = Segments(files, 16_000, 2.0, placement=placement)
        for index in range(len(data)):
            item = data.item(index)
            assert item["audio"].shape == (32_000,) and item["length"] == data.length(index) == 24_000 and not item["audio"][24_000:].any()
            assert item["audio"][:24_000].std() > 0.1 and item["index"] == index and item["id"] == files.clip(index).id
    whole = WholeClips(files, 8000, max_seconds=1)
    assert [whole.length(i) for i in range(4)] == [8000]*4 and whole.item(1)["audio"].shape == (8000,)
    assert WholeClips(files, 8000, transform=lambda x, rng: x[:rng.integers(10, 20)]).item(1)["length"] < 20


def test_every_piece_has_its_place(folder):
    files, _ = scan_audio(".", workers=0)
    many = Segments(files, 16_000, 0.4, per_clip=None)
    assert len(many) == 12 and [many.item(i)["id"] for i in (0, 2, 3, 11)] == ["a/1.wav", "a/1.wav", "a/2.flac", "c/1.wav"]
    assert len(Segments(files, 16_000, 0.4, per_clip=5)) == 20
    starts = {many.item(i, epoch)["start"] for i in range(3) for epoch in range(20)}
    assert len(starts) == 60 and 0 <= min(starts) < 2500 and 15_000 < max(starts) <= 24_000 - 6400
    assert many.name(4) == "a/2.flac (piece 1)" and Segments(files, 16_000, 0.4).name(3) == "c/1.wav"
    for index in (-1, 12):
        with pytest.raises(IndexError): many.item(index)


def test_items_depend_on_nothing_else(folder):
    files, _ = scan_audio(".", workers=0)
    def noise(x, rng): return x + rng.normal(0, 0.1, x.shape).astype(np.float32)
    first = Segments(files, 16_000, 0.3, seed=9, transform=noise)
    wanted = {(i, e): first.item(i, e) for i in range(4) for e in range(3)}
    np.random.seed(5)
    again = Segments(files, 16_000, 0.3, seed=9, transform=noise)
    for (i, e), item in reversed(wanted.items()):
        other = again.item(i, e)
        assert np.array_equal(item.pop("audio"), other.pop("audio")) and item == other
    plain = pickle.loads(pickle.dumps(Segments(files, 16_000, 0.3, seed=9)))
    assert plain.item(2, 1)["start"] == wanted[2, 1]["start"]  # the transform's draws do not move the crop
    assert plain.item(2, 1)["start"] != Segments(files, 16_000, 0.3, seed=8).item(2, 1)["start"]


def test_silence_is_drawn_again(tmp_path):
    x = np.zeros(160_000, np.float32); x[100_000:140_000] = sound(2.5, 16_000)[0]
    write_audio(tmp_path/"a.wav", x, 16_000)
    files = AudioFiles([clip_of(tmp_path/"a.wav")])
    level = lambda data, epoch: 10*np.log10(np.square(data.item(0, epoch)["audio"]).mean() + 1e-20)
    assert sum(level(Segments(files, 16_000, 0.5), e) < -40 for e in range(40)) > 15
    loud = Segments(files, 16_000, 0.5, min_rms_db=-40, redraws=50)
    assert all(level(loud, e) >= -40 for e in range(40)) and len({loud.item(0, e)["start"] for e in range(40)}) > 35
    never = Segments(files, 16_000, 0.5, min_rms_db=20, redraws=3)  # the loudest of four stands
    assert all(level(never, e) >= level(Segments(files, 16_000, 0.5), e) for e in range(10))


def test_wrong_settings(folder):
    files, _ = scan_audio(".", workers=0)
    for bad in (dict(seconds=0), dict(seconds=float("nan")), dict(seconds=-1), dict(seconds=1e9), dict(seconds=1, placement="left"), dict(seconds=1, per_clip=0),
                dict(seconds=1, redraws=-1)):
        with pytest.raises(DataError): Segments(files, 16_000, **bad)
    with pytest.raises(AudioError): Segments(files, 10, 1)
    with pytest.raises(DataError, match="no clips"): WholeClips(AudioFiles([]), 16_000)
    with pytest.raises(DataError, match="has no path"): AudioFiles([Clip("x", None, 16_000, 1, 1)])
    for wrong in (lambda x, rng: x.astype(np.float64), lambda x, rng: x*np.float32("nan"), lambda x, rng: None, lambda x, rng: x[None], lambda x, rng: x[1:]):
        with pytest.raises(DataError, match="1.wav: the transform"): Segments(files, 16_000, 0.5, transform=wrong).item(0)


@pytest.mark.slow
def test_speed(tmp_path):
    "CPU ms for a second out of twenty minutes"
    x = np.tile(sound(60, 44_100), 20)
    for ending, limit in (("wav", 0.8), ("flac", 2.0), ("mp3", 8.0)):  # twice what a quiet machine must keep
        write_audio(tmp_path/f"a.{ending}", x, 44_100)
        files, best = AudioFiles([clip_of(tmp_path/f"a.{ending}")]), np.inf
        for _ in range(5):
            began = time.process_time()
            for start in np.random.default_rng(0).integers(0, files.clip(0).frames - 44_100, 40): files.read(0, int(start), 44_100)
            best = min(best, (time.process_time() - began)/40*1000)
        assert best < limit, (ending, best)
