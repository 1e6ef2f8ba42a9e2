"One list of endings: what is sound for one command is sound for all, readable here or not"
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolab.audio import EXTENSIONS, find_audio_files
from audiolab.data import open_clips, scan_audio
from audiolab.snac import EncodeConfig, EvalConfig, list_sound_files

NAMES = ["g.m4a", "w.w64", "x.aiff", "y.wav", "z.au"]


@pytest.fixture
def folder(tmp_path):
    for name in ("w.w64", "x.aiff", "y.wav", "z.au"):
        soundfile.write(tmp_path/name, .1*np.ones(1600, np.float32), 16000)
    (tmp_path/"g.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(200))
    (tmp_path/"notes.txt").write_text("no sound")
    return tmp_path


def names(paths): return sorted(Path(path).name for path in paths)


def test_every_command_takes_the_same_files(folder):
    assert names(find_audio_files(folder)) == NAMES
    pairs = EncodeConfig(str(folder), str(folder/"out")).jobs()
    assert names(source for source, _ in pairs) == NAMES
    assert names(EvalConfig("model", (str(folder),)).files()) == NAMES
    files, left_out = list_sound_files(folder)  # of `snac train`
    assert names([*(clip.path for clip in files.clips), *left_out]) == NAMES
    found, report = scan_audio([folder])
    assert names([*(clip.path for clip in found.clips), *report.unreadable]) == NAMES
    assert len(open_clips(str(folder))) == 4


def test_files_that_cannot_be_read_are_named_and_not_passed_over(folder):
    for path in folder.iterdir():
        if path.name in ("y.wav", "x.aiff", "z.au", "w.w64"): path.unlink()
    assert len(EncodeConfig(str(folder), str(folder/"out")).jobs()) == 1
    assert EvalConfig("model", (str(folder),)).files() == [folder/"g.m4a"]


def test_endings_are_in_lower_case_and_once():
    assert len(set(EXTENSIONS)) == len(EXTENSIONS)
    assert all(ending == ending.lower() and ending[0] == "." for ending in EXTENSIONS)
