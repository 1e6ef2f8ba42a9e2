"`audiolab ssgs train` from end to end: flags, file names, unreadable files, resuming."
import json
from pathlib import Path

import numpy as np
import pytest

from audiolab.apps import main
from audiolab.audio import probe_audio, read_audio, write_audio
from audiolab.files import CheckpointError, CheckpointFolder, verify_checkpoint
from audiolab.ssgs import SpectralStateGuidedSynthesis, TrainConfig
from audiolab.training import read_history

from ssgs_runs import (
    SIX, digests, load, names, same_parameters, short_measures, short_pieces, train,  # noqa: F401
)


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    "A folder of four pieces, cut to 3 s."
    return short_pieces(tmp_path_factory.mktemp("music"), tmp_path_factory.mktemp("whole"))


@pytest.fixture(autouse=True)
def quiet(caplog): caplog.set_level("INFO", "audiolab")


@pytest.fixture(scope="module")
def run(music, tmp_path_factory):
    "A finished run of five iterations."
    out = tmp_path_factory.mktemp("run")
    assert train(music, out, checkpoint_interval=2, **SIX) == 0
    return out


# ---- flags and files

def test_files_of_a_run(run):
    assert set(names(run)) - {"latest.json", "config.yaml", "run.json", "history.jsonl"} == {
        "checkpoint_initial.safetensors", "checkpoint_epoch_2.safetensors",
        "checkpoint_epoch_4.safetensors", "checkpoint_final.safetensors", "model_final.npz",
        "test_generation.wav", "training_history.json"}
    models = {p.stem: load(p) for p in run.glob("*.safetensors")}
    assert [models[f"checkpoint_{o}"].iteration for o in ("initial", "epoch_2", "epoch_4",
                                                          "final")] == [0, 2, 4, 5]
    final = models["checkpoint_final"]
    assert final.n_states == 6 and final.sample_rate == 16000 and len(final.files) == 4
    assert final.has_audio
    assert all(verify_checkpoint(p).ok for p in run.glob("*.safetensors"))
    rows = [row["values"] for row in read_history(run) if row["kind"] == "log"]
    assert [row["per_frame"] for row in rows] == [row["per_frame"] for row in final.history]
    assert {"change", "occupancy_entropy"} < rows[1].keys()
    history = json.loads((run/"training_history.json").read_text())
    assert history == final.history and [row["iteration"] for row in history] == [1, 2, 3, 4, 5]
    info = probe_audio(run/"test_generation.wav")
    assert abs(info.duration - 3) < 1e-6 and info.sample_rate == 16000
    assert np.abs(read_audio(run/"test_generation.wav")[0]).max() > .1
    assert SpectralStateGuidedSynthesis.load_model(run/"model_final.npz").n_states == 6


def test_defaults_are_those_that_were_promised():
    config = TrainConfig()
    assert (config.folders, config.sample_rate, config.n_states, config.n_iterations,
            config.checkpoint_dir, config.checkpoint_interval, config.resume,
            config.recursive) == (("training_001", "training_002"), 16000, 34, 20, "models", 5,
                                  None, False)
    assert config.extensions == (".mp3", ".wav", ".flac", ".ogg")


def test_every_flag_reaches_the_model(music, tmp_path):
    flags = ["--recursive", "--extensions", ".wav", ".flac", "--auto-n-states", "--no-artifacts"]
    assert train(music, tmp_path, *flags, sample_rate=8000, n_iterations=1, checkpoint_interval=0,
                 lpc_order=8, frame_size=512, hop_size=128, smoothness_weight=2, mode="incremental",
                 tolerance=.01, dtype="float64", seed=9) == 0
    assert not list(tmp_path.glob("*epoch*"))
    model = load(tmp_path/"checkpoint_final.safetensors")
    kept = dict(sample_rate=8000, lpc_order=8, frame_size=512, hop_size=128, smoothness_weight=2.,
                mode="incremental", tolerance=.01, dtype="float64", seed=9)
    assert {name: getattr(model, name) for name in kept} == kept
    assert model.n_states in (8, 16, 24, 32, 34, 42) and not model.has_audio
    assert probe_audio(tmp_path/"test_generation.wav").sample_rate == 8000


def test_several_folders_extensions_and_depth(music, tmp_path):
    (tmp_path/"a"/"deep").mkdir(parents=True)
    (tmp_path/"b").mkdir()
    sound = read_audio(sorted(music.iterdir())[0], duration=1.)[0]
    for name in ("a/1.wav", "a/2.FLAC", "a/deep/3.ogg", "b/4.wav", "a/.hidden.wav"):
        write_audio(tmp_path/name, sound, 16000) if not name.endswith("FLAC") else write_audio(
            tmp_path/"a"/"2.flac", sound, 16000)
    (tmp_path/"a"/"notes.txt").write_text("no sound")
    (tmp_path/"a"/"2.flac").rename(tmp_path/"a"/"2.FLAC")
    def used(out):
        files = load(tmp_path/out/"checkpoint_final.safetensors").files
        return [str(Path(f).relative_to(tmp_path)) for f in files]
    both = [str(tmp_path/"a"), str(tmp_path/"b")]
    for out, flags, expected in (("m1", [], ["a/1.wav", "a/2.FLAC", "b/4.wav"]),
                                 ("m2", ["--recursive"], ["a/1.wav", "a/2.FLAC", "a/deep/3.ogg",
                                                          "b/4.wav"]),
                                 ("m3", ["--recursive", "--extensions", ".ogg"], ["a/deep/3.ogg"]),
                                 ("m4", ["--extensions", "wav", "ogg"], ["a/1.wav", "b/4.wav"])):
        assert main(["ssgs", "train", "--folders", *both, "--checkpoint-dir", str(tmp_path/out),
                     "--n-states", "2", "--n-iterations", "1", *flags]) == 0
        assert sorted(used(out)) == expected


def test_config_file_equals_flags(music, run, tmp_path):
    file = tmp_path/"train.yaml"
    file.write_text(f"folders: [{music}]\nn_states: 6\nn_iterations: 7\ntolerance: 0\n"
                    f"checkpoint_interval: 2\ncheckpoint_dir: {tmp_path/'out'}\n")
    # a flag beats the file
    assert main(["ssgs", "train", "--config", str(file), "--n-iterations", "5"]) == 0
    same_parameters(tmp_path/"out"/"checkpoint_final.safetensors",
                    run/"checkpoint_final.safetensors")
    np.testing.assert_array_equal(read_audio(tmp_path/"out"/"test_generation.wav")[0],
                                  read_audio(run/"test_generation.wav")[0])


def test_dry_run_says_what_would_happen_and_does_nothing(music, tmp_path, capsys):
    assert train(music, tmp_path/"out", "--dry-run", n_states=7) == 0
    said = capsys.readouterr().out
    assert not (tmp_path/"out").exists() and "n_states: 7" in said and "flag" in said
    assert "default" in said and "4 files" in said and "7 states" in said
    assert train(tmp_path/"missing", tmp_path/"out", "--dry-run") == 0
    assert "cannot run" in capsys.readouterr().out or "0 files" in said


def test_progress_is_reported(music, tmp_path, caplog):
    assert train(music, tmp_path, **SIX) == 0
    text = caplog.text
    assert "4 files, 12.0 s" in text and "6 states of order 18" in text and str(tmp_path) in text
    assert all(f"iteration {n}/5, per_frame" in text for n in range(1, 6)) and "Epoch" not in text


# ---- what cannot work

def test_unreadable_files_are_named_skipped_and_counted(music, tmp_path, caplog):
    folder = tmp_path/"mixed"
    folder.mkdir()
    for path in music.iterdir(): (folder/path.name).write_bytes(path.read_bytes())
    whole = next(iter(music.iterdir())).read_bytes()
    cut = whole[:len(whole)//2]
    for name, data in (("broken.wav", b"RIFF"), ("empty.wav", b""), ("cut.wav", cut)):
        (folder/name).write_bytes(data)
    assert train(folder, tmp_path/"out", **SIX) == 0
    assert "3 of 7 files" in caplog.text
    assert all(name in caplog.text for name in ("broken.wav", "empty.wav", "cut.wav"))
    model = load(tmp_path/"out"/"checkpoint_final.safetensors")
    assert len(model.files) == 4 and not any("broken" in f for f in model.files)
    assert train(folder, tmp_path/"strict", max_unreadable=.1) == 2
    assert not list((tmp_path/"strict").glob("*.safetensors"))


def fails(capsys, *args, code=2):
    assert main(["ssgs", "train", *map(str, args)]) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_clear_failure_when_nothing_can_be_read(tmp_path, capsys):
    (tmp_path/"bad").mkdir()
    for i in range(3): (tmp_path/"bad"/f"{i}.wav").write_bytes(b"RIFF")
    said = fails(capsys, "--folders", tmp_path/"bad", "--checkpoint-dir", tmp_path/"out")
    assert "none of the 3 files" in said and "0.wav" in said and not list(
        (tmp_path/"out").glob("*")) if (tmp_path/"out").exists() else True


def test_clear_failure_without_files(tmp_path, capsys, music):
    (tmp_path/"empty").mkdir()
    assert "--recursive" in fails(capsys, "--folders", tmp_path/"empty", "--checkpoint-dir",
                                  tmp_path/"out")
    assert "missing" in fails(capsys, "--folders", tmp_path/"missing", "--checkpoint-dir",
                              tmp_path/"out")
    assert "no audio files" in fails(capsys, "--folders", music, "--extensions", ".mp3",
                                     "--checkpoint-dir", tmp_path/"out")
    assert not (tmp_path/"out").exists() or not names(tmp_path/"out")


@pytest.mark.parametrize(
    "flags,text", [(["--n-states", "0"], "n"), (["--n-states", "many"], "n"),
                   (["--sample-rate", "5"], "rate"), (["--n-iterations", "-1"], "iterations"),
                   (["--mode", "magic"], "mode"), (["--n-state", "3"], "n-states"),
                   (["--max-unreadable", "2"], "unreadable"),
                   (["--n-states", "4000"], "4000 states"),
                   (["--frame-size", "128"], "frame_size")])
def test_wrong_flags_are_explained(music, tmp_path, capsys, flags, text):
    assert text in fails(capsys, "--folders", music, "--checkpoint-dir", tmp_path/"out", *flags)


def test_resume_from_nothing_and_from_nonsense(music, tmp_path, capsys):
    assert "nowhere" in fails(capsys, "--folders", music, "--resume", "nowhere.safetensors",
                              "--checkpoint-dir", tmp_path/"out")
    (tmp_path/"text.safetensors").write_text("no model")
    assert "text.safetensors" in fails(capsys, "--folders", music, "--resume",
                                       tmp_path/"text.safetensors", "--checkpoint-dir",
                                       tmp_path/"out")


# ---- resuming

def test_resume_goes_on_counting_and_overwrites_nothing(music, tmp_path):
    unbroken, out = tmp_path/"unbroken", tmp_path/"out"
    assert train(music, unbroken, checkpoint_interval=2, **SIX | dict(n_iterations=8)) == 0
    assert train(music, out, checkpoint_interval=2, **SIX) == 0
    before = digests(out)
    assert train(None, out, resume=out/"checkpoint_final.safetensors", n_iterations=3,
                 checkpoint_interval=2) == 0
    after = digests(out)
    assert set(before.values()) <= set(after.values())  # every byte of the first run is still there
    assert {k: after[k] for k in before if "initial" in k or "epoch" in k} == {
        k: v for k, v in before.items() if "initial" in k or "epoch" in k}
    assert {"checkpoint_epoch_6.safetensors", "checkpoint_epoch_8.safetensors",
            "checkpoint_final.previous-1.safetensors", "model_final.previous-1.npz"} <= set(after)
    same_parameters(out/"checkpoint_final.safetensors", unbroken/"checkpoint_final.safetensors")
    for n in (6, 8):
        same_parameters(out/f"checkpoint_epoch_{n}.safetensors",
                        unbroken/f"checkpoint_epoch_{n}.safetensors")
    np.testing.assert_array_equal(read_audio(out/"test_generation.wav")[0],
                                  read_audio(unbroken/"test_generation.wav")[0])
    assert train(music, out, checkpoint_interval=2, **SIX) == 0  # a new run into the same folder
    assert set(after.values()) <= set(digests(out).values())
    assert {f"previous-1/{name}" for name in after} <= set(digests(out))
    assert set(names(out)) == set(names(unbroken)) - {
        "checkpoint_epoch_6.safetensors", "checkpoint_epoch_8.safetensors"} | {"previous-1"}


@pytest.mark.parametrize("which", ["auto", "checkpoint_epoch_2", "file"])
def test_resume_from_minimal_checkpoints(music, run, tmp_path, which):
    assert train(music, tmp_path, "--no-artifacts", checkpoint_interval=1,
                 **SIX | dict(n_iterations=2)) == 0
    assert not load(tmp_path/"checkpoint_final.safetensors").has_audio
    resume = tmp_path/"checkpoint_epoch_2.safetensors" if which == "file" else which
    # the files are where they were
    # iterations in all, or so many more than the checkpoint that is named has
    many = 5 if which == "auto" else 3
    assert train(None, tmp_path, "--no-artifacts", resume=resume, n_iterations=many) == 0
    same_parameters(tmp_path/"checkpoint_final.safetensors", run/"checkpoint_final.safetensors")


def test_minimal_checkpoint_whose_files_have_gone_says_what_to_do(music, run, tmp_path, capsys):
    folder = tmp_path/"music"
    folder.mkdir()
    for path in music.iterdir(): (folder/path.name).write_bytes(path.read_bytes())
    assert train(folder, tmp_path/"out", "--no-artifacts", **SIX | dict(n_iterations=2)) == 0
    folder.rename(tmp_path/"moved")
    said = fails(capsys, "--resume", "auto", "--checkpoint-dir", tmp_path/"out")
    assert "--folders" in said and "music" in said
    assert train(tmp_path/"moved", tmp_path/"out", "--no-artifacts", resume="auto",
                 n_iterations=5) == 0
    same_parameters(tmp_path/"out"/"checkpoint_final.safetensors",
                    run/"checkpoint_final.safetensors")


def test_auto_begins_anew_in_an_empty_folder_and_passes_over_damage(music, run, tmp_path):
    assert train(music, tmp_path, resume="auto", checkpoint_interval=1,
                 **SIX | dict(n_iterations=3)) == 0
    newest = CheckpointFolder(tmp_path).resolve("auto")
    assert newest.name == "checkpoint_final.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data)//2] ^= 4
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match="checkpoint_final"):
        assert train(music, tmp_path, resume="auto", n_iterations=5) == 0
    same_parameters(tmp_path/"checkpoint_final.safetensors", run/"checkpoint_final.safetensors")
    # kept as it was, damage and all
    with pytest.raises(CheckpointError): load(tmp_path/"checkpoint_final.previous-1.safetensors")


def test_training_stops_where_nothing_is_gained_and_says_so(music, tmp_path, caplog):
    assert train(music, tmp_path, n_states=3, n_iterations=60, tolerance=.01,
                 checkpoint_interval=0) == 0
    assert "converged" in caplog.text
    assert load(tmp_path/"checkpoint_final.safetensors").iteration < 60
