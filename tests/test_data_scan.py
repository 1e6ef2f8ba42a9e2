"Scans: every file looked at once, and a decoder that crashes or hangs costs one file."
import multiprocessing
import os
import threading

import numpy as np
import pytest
import soundfile
from data_sounds import fill_folder, forks, sound

from audiolab.audio import AudioError, read_audio, write_audio
from audiolab.data import ScanConfig, map_in_processes, read_manifest, scan_audio, scan_command
from audiolab.data import scan as scan_module


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "Four files of three singers, as the working directory"
    monkeypatch.chdir(tmp_path)
    return fill_folder(tmp_path)


def spoil(folder):
    "Adds what is no sound, silence, a twin and a file with NaN"
    (folder/"a/bad.mp3").write_bytes(b"\xff\xfb" + bytes(500))
    (folder/"b/text.wav").write_text("hello")
    write_audio(folder/"c/silent.wav", np.zeros(500, np.float32), 16_000)
    (folder/"c/twin.wav").write_bytes((folder/"c/1.wav").read_bytes())
    nan = sound(0.2, 16_000)
    nan[0, 100] = np.nan
    soundfile.write(folder/"c/nan.wav", nan.T, 16_000, subtype="FLOAT")


def test_scan(folder):
    spoil(folder)
    results = [scan_audio(".", workers=workers, group="folder") for workers in (0, 2)]
    assert results[0][0].clips == results[1][0].clips and str(results[0][1]) == str(results[1][1])
    files, report = results[0]
    names = ["a/1.wav", "a/2.flac", "b/1.ogg", "c/1.wav", "c/silent.wav", "c/twin.wav"]
    assert [clip.id for clip in files.clips] == names
    assert set(report.unreadable) == {"a/bad.mp3", "b/text.wav", "c/nan.wav"}
    assert "NaN" in report.unreadable["c/nan.wav"]
    assert report.silent == ["c/silent.wav"] and report.duplicates == [("c/1.wav", "c/twin.wav")]
    clip, x = files.clips[1], read_audio("a/2.flac")[0]
    known = clip.sample_rate, clip.channels, clip.frames, clip.source
    assert known == (22_050, 2, x.shape[1], "a")
    assert clip.fields == {"format": "FLAC/PCM_16", "peak": pytest.approx(abs(x).max(), abs=1e-6),
                           "rms": pytest.approx(np.sqrt((x**2).mean()), abs=1e-6)}
    with pytest.raises(AudioError): scan_audio(folder/"none")
    (folder/"empty").mkdir()
    assert len(scan_audio(folder/"empty")[0]) == 0


def test_channels_that_cancel_out(tmp_path):
    x = sound(0.2, 16_000)[0]
    files = {"opposite": [x, -x], "nearly": [x, -.999*x], "same": [x, x], "one": [x],
             "zeros": [0*x]*2, "half": [x, -.5*x],
             "three": [x, -x, 0*x], "late": [x, -np.roll(x, 9)]}
    for name, channels in files.items():
        soundfile.write(tmp_path/f"{name}.wav", np.stack(channels).T, 16_000)
    scanned, report = scan_audio(tmp_path, workers=0)
    assert [os.path.basename(path) for path in report.cancelling] == [
        "nearly.wav", "opposite.wav", "three.wav"]
    assert "3 silent in mono" in str(report)
    said = str(report).split("silent in mono, its channels cancel out: ")
    assert len(said) == 4 and said[-1] == str(tmp_path/"three.wav")
    assert all("cancels" not in clip.fields for clip in scanned.clips)
    assert np.abs(read_audio(tmp_path/"opposite.wav", mono=True)[0]).max() < 1e-4


@forks
def test_a_crashing_or_hanging_decoder_costs_one_file(folder, monkeypatch):
    real = scan_module.examine_file

    def examine(path):
        if path.endswith("2.flac"): os._exit(77)
        if path.endswith(".ogg"): threading.Event().wait()  # for ever
        return real(path)

    monkeypatch.setattr(scan_module, "examine_file", examine)
    files, report = scan_audio(".", workers=2, timeout=1.0)
    assert [clip.id for clip in files.clips] == ["a/1.wav", "c/1.wav"]
    crash = "crashed the process that worked on it (exit code 77)"
    assert crash in report.unreadable["a/2.flac"]
    assert "not done within 1 s" in report.unreadable["b/1.ogg"]
    assert not multiprocessing.active_children()


def wait_or_square(number):
    if number == 0: threading.Event().wait()  # for ever
    return number**2


@forks
def test_few_results_wait_for_a_slow_one():
    "Of 1,000 tasks only some are begun while the first is not done"
    begun = []

    class Tasks(list):
        def __iter__(self): return (begun.append(number) or number for number in range(1000))
        def __len__(self): return 1000

    results = map_in_processes(wait_or_square, Tasks(), workers=2, timeout=1.5)
    assert next(results) == {"error": "not done within 1.5 s"} and len(begun) <= 32*2 + 2
    assert list(results) == [number**2 for number in range(1, 1000)]


def test_scan_command(folder, capsys):
    assert scan_command(ScanConfig((str(folder/"a"),), workers=0)) == 0
    assert len(read_manifest(folder/"a/manifest.jsonl")) == 2
    assert "2 files" in capsys.readouterr().out
    (folder/"b/bad.wav").write_text("no")
    (folder/"empty").mkdir()
    config = ScanConfig((str(folder/"b"),), manifest=str(folder/"all.jsonl"), workers=0)
    assert "all.jsonl" in config.plan() and scan_command(config) == 2
    assert len(read_manifest(folder/"all.jsonl")) == 1
    assert scan_command(ScanConfig((str(folder/"empty"),), workers=0)) == 2
    assert not (folder/"empty/manifest.jsonl").exists()
