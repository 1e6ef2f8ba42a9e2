"Small things that stand in the way of `ssgs train`: endings, names, folders, words."
import numpy as np
import pytest
from ssgs_models import RATE, noise
from ssgs_runs import names, short_measures, train  # noqa: F401

from audiolab.apps import main
from audiolab.audio import find_audio_files, wanted_endings, write_audio
from audiolab.training import RunLock, RunLocked

HOW = dict(n_states=3, n_iterations=1, checkpoint_interval=0)


@pytest.fixture(autouse=True)
def quiet(caplog): caplog.set_level("INFO", "audiolab")


@pytest.fixture
def music(tmp_path):
    "A folder of sounds with five endings."
    (tmp_path/"music").mkdir()
    for i, ending in enumerate((".wav", ".flac", ".aiff", ".aiff", ".caf")):
        write_audio(tmp_path/"music"/f"{i}{ending}", noise(.5, i), RATE)
    return tmp_path/"music"


@pytest.mark.parametrize("given", [[".wav,.flac"], ["*.wav", "*.FLAC"], "wav,flac", ["wav flac"]])
def test_endings_as_people_write_them(music, given):
    "`--extensions .wav,.flac` and `*.wav` matched nothing."
    assert wanted_endings(given) == {".wav", ".flac"}
    assert [p.name for p in find_audio_files(music, given)] == ["0.wav", "1.flac"]


def test_what_is_left_out_is_counted(music, tmp_path, caplog, capsys):
    assert train(music, tmp_path/"out", "--extensions", "*.wav,.flac", **HOW) == 0
    assert "does not name them: 2 .aiff, 1 .caf" in caplog.text
    assert train(music, tmp_path/"out2", "--extensions", ".mp3", **HOW) == 2
    assert "there are 2 .aiff, 1 .caf, 1 .flac, 1 .wav" in " ".join(capsys.readouterr().err.split())
    caplog.clear()
    files = sorted(map(str, music.glob("*.aiff")))
    assert main(["ssgs", "train", "--folders", *files, "--checkpoint-dir", str(tmp_path/"3"),
                 "--n-states", "3", "--n-iterations", "1"]) == 0
    assert "left out" not in caplog.text


def test_places_as_a_shell_knows_them(music, monkeypatch):
    "In a file, or in quotes, no shell has seen them."
    monkeypatch.setenv("HOME", str(music.parent))
    assert len(find_audio_files("~/music")) == 5
    assert [p.name for p in find_audio_files(f"{music}/*.aiff")] == ["2.aiff", "3.aiff"]
    odd = music.parent/"[odd]"
    odd.mkdir()
    (music/"0.wav").rename(odd/"x.wav")
    assert find_audio_files(odd) == [odd/"x.wav"]  # what is there means itself


def test_a_folder_without_its_flag_is_told_where_it_belongs(music, capsys):
    assert main(["ssgs", "train", str(music)]) == 2
    assert f"write --folders {music}" in " ".join(capsys.readouterr().err.split())
    assert main(["ssgs", "verify", str(music/"0.wav")]) == 1  # takes files as they are


def test_a_run_that_cannot_begin_leaves_nothing_and_says_why_once(tmp_path, capsys, caplog):
    (tmp_path/"empty").mkdir()
    for where in ("empty", "nowhere"):
        caplog.clear()
        assert train(tmp_path/where, tmp_path/"models", **HOW) == 2
        assert names(tmp_path) == ["empty"]  # an empty models/ was left
        said = caplog.text + capsys.readouterr().err
        assert said.count(str(tmp_path/where)) == 1, said


def test_too_many_states_are_told_of(tmp_path, caplog):
    "4,096 states learnt for hours from 10,065 frames."
    write_audio(tmp_path/"a.wav", noise(1.), RATE)
    assert train(tmp_path, tmp_path/"few", **HOW | dict(n_states=20)) == 0
    assert "20 states share 64 frames, 3.2 each: --n-states 6 would" in caplog.text
    caplog.clear()
    assert train(tmp_path, tmp_path/"many", **HOW | dict(n_states=6)) == 0
    assert "share" not in caplog.text


def test_two_runs_in_one_folder(tmp_path):
    with RunLock(tmp_path/"run"):
        with pytest.raises(RunLocked, match=f"audiolab control {tmp_path}/run stop"):
            RunLock(tmp_path/"run").acquire()


def test_the_next_step_of_the_original_can_be_typed(tmp_path, monkeypatch):
    "It writes into outputs/, which nothing made."
    write_audio(tmp_path/"a.wav", noise(.5), RATE)
    monkeypatch.chdir(tmp_path)
    assert main(["ssgs", "train", "--folders", "a.wav", "--n-states", "2",
                 "--n-iterations", "1"]) == 0
    assert (tmp_path/"outputs").is_dir() and not np.any(list((tmp_path/"outputs").iterdir()))
