"When training of SSGS is over: not when the objective falls, and not again and again."
import json
import logging

import numpy as np
import pytest
from ssgs_models import RATE, noise
from ssgs_runs import (
    digests, load, names, same_parameters, short_measures, short_pieces, train,  # noqa: F401
)

from audiolab.audio import write_audio
from audiolab.ssgs import SpectralStateGuidedSynthesis, at_rest


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    folder, whole = (tmp_path_factory.mktemp(name) for name in ("music", "whole"))
    return short_pieces(folder, whole)


@pytest.fixture(scope="module")
def hiss(tmp_path_factory):
    "Sound of another kind: what was learnt from music is far off here."
    folder = tmp_path_factory.mktemp("hiss")
    for i in range(2): write_audio(folder/f"{i}.wav", noise(2., i, .2), RATE)
    return folder


def test_a_fall_is_no_rest():
    assert not at_rest({"changes": np.array([1e-6, -.4])}, "batch", 1e-5)
    assert at_rest({"changes": np.array([.4, -1e-6])}, "batch", 1e-5)
    assert not at_rest({"changes": np.array([.4, -1e-6])}, "online", 1e-5)  # it swings: two passes
    assert not at_rest({"changes": np.zeros(2)}, "batch", 0)
    assert not at_rest({"changes": np.full(2, np.nan)}, "batch", 1.)


def test_other_sound_is_learnt_from_to_the_end(music, hiss, tmp_path, caplog):
    "It ended after the first iteration: 'converged: gained -13 a frame'."
    how = dict(n_states=6, checkpoint_interval=0)
    assert train(music, tmp_path, n_iterations=4, **how) == 0
    assert train(hiss, tmp_path, n_iterations=10, resume="auto", **how) == 0
    model = load(tmp_path/"checkpoint_final.safetensors")
    assert model.iteration == 10 and model.history[4]["change"] is None
    assert "2 files are new" in caplog.text and "4 files that the model learnt from" in caplog.text
    assert model.history[9]["per_frame"] > model.history[4]["per_frame"]


@pytest.mark.parametrize("mode", ["batch", "online", "incremental"])
def test_tolerance_zero_never_ends_it(music, tmp_path, mode):
    assert train(music, tmp_path, n_states=4, n_iterations=12, tolerance=0, mode=mode) == 0
    assert load(tmp_path/"checkpoint_final.safetensors").iteration == 12
    assert "checkpoint_epoch_10.safetensors" in names(tmp_path)


@pytest.mark.parametrize("mode", ["batch", "online"])
def test_what_has_converged_stays_so(music, tmp_path, mode, caplog):
    "Each resume made one iteration more."
    how = dict(n_states=3, n_iterations=60, checkpoint_interval=1, mode=mode,
               tolerance=.02 if mode == "batch" else .8)
    assert train(music, tmp_path, **how) == 0
    first = load(tmp_path/"checkpoint_final.safetensors")
    assert first.iteration < 60
    for kept in ("checkpoint_final.safetensors", None):
        if kept: (tmp_path/kept).unlink()  # killed between the last save and the final one
        caplog.clear()
        assert train(None, tmp_path, resume="auto", **how) == 0
        assert "converged" in caplog.text
        same_parameters(tmp_path/"checkpoint_final.safetensors", first)
    last = tmp_path/f"checkpoint_epoch_{first.iteration}.safetensors"
    assert train(None, tmp_path/"b", resume=last, **how | dict(n_iterations=3, tolerance=0)) == 0
    assert load(tmp_path/"b"/"checkpoint_final.safetensors").iteration == first.iteration + 3


@pytest.mark.parametrize("tolerance", [0, 9.])
def test_a_finished_run_is_left_as_it_is(tmp_path, tolerance):
    "Each `--resume auto` set the results aside and wrote them again."
    (tmp_path/"a").mkdir()
    write_audio(tmp_path/"a"/"a.wav", noise(.5), RATE)
    how = dict(n_states=2, n_iterations=4, tolerance=tolerance, checkpoint_interval=2)
    out = tmp_path/"out"
    assert train(tmp_path/"a", out, **how) == 0
    before, when = digests(out), (out/"model_final.npz").stat().st_mtime_ns
    for _ in range(2): assert train(None, out, resume="auto", **how) == 0
    assert digests(out) == before and (out/"model_final.npz").stat().st_mtime_ns == when


def test_iterations_are_a_total_for_auto_and_more_for_a_path(music, tmp_path, capsys):
    how, out = dict(n_states=4, tolerance=0, checkpoint_interval=2), tmp_path/"out"
    for total in (4, 6, 6, 3):
        assert train(music, out, resume="auto", n_iterations=total, **how) == 0
        assert load(out/"checkpoint_final.safetensors").iteration == (6 if total == 3 else total)
    for where in (out, out/"checkpoint_epoch_6.safetensors"):  # a folder: its newest
        assert train(music, tmp_path/where.stem[-1], resume=where, n_iterations=2, **how) == 0
        assert load(tmp_path/where.stem[-1]/"checkpoint_final.safetensors").iteration == 8
    assert train(None, out, "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--resume PATH: this many more" in said


def test_a_folder_without_checkpoints_is_named(music, tmp_path, capsys):
    assert train(music, tmp_path/"out", resume=music) == 2
    assert "holds no sound checkpoint" in capsys.readouterr().err


def test_a_folder_is_resumed_after_its_moves_are_finished(music, tmp_path):
    "A start that was killed while it left a branch had not moved it all: the newest there is gone"
    how, out = dict(n_states=4, tolerance=0, checkpoint_interval=2), tmp_path/"out"
    assert train(music, out, n_iterations=4, **how) == 0
    (out/"previous-1").mkdir()
    left = ["checkpoint_epoch_4.safetensors", "checkpoint_final.safetensors"]
    (out/"previous-1"/"unfinished.json").write_text(json.dumps(left))
    assert train(None, out, resume=out, n_iterations=1, **how) == 0
    assert load(out/"checkpoint_final.safetensors").iteration == 3
    assert sorted(path.name for path in (out/"previous-1").iterdir()) == left


# ---- the sound it goes on with

def test_the_same_names_with_other_sound_are_told(music, tmp_path, caplog):
    folder = tmp_path/"music"
    folder.mkdir()
    for path in music.iterdir(): (folder/path.name).write_bytes(path.read_bytes())
    how = dict(n_states=4, tolerance=0, checkpoint_interval=0)
    assert train(folder, tmp_path/"out", "--no-artifacts", n_iterations=2, **how) == 0
    assert len(load(tmp_path/"out"/"checkpoint_final.safetensors").digests) == 4
    write_audio(min(folder.iterdir()), noise(3.), RATE)
    caplog.clear()
    assert train(None, tmp_path/"out", "--no-artifacts", resume="auto", n_iterations=4, **how) == 0
    assert "1 files hold other sound" in caplog.text and min(folder.iterdir()).name in caplog.text
    (folder/max(folder.iterdir()).name).unlink()
    caplog.clear()
    out = tmp_path/"out"
    assert train(folder, out, "--no-artifacts", resume="auto", n_iterations=6, **how) == 0
    assert "1 files that the model learnt from are left out" in caplog.text


@pytest.mark.parametrize("mode", ["batch", "incremental"])
def test_audio_given_back_is_recognised(mode):
    sounds = [noise(1., i) for i in range(3)]
    model = SpectralStateGuidedSynthesis(4, mode=mode).train(sounds, n_em_iterations=3)
    known = dict(model.fit_state)
    model.attach_audio(sounds[::-1])
    assert model.fit_state.keys() == known.keys()
    model.attach_audio(sounds[:2])
    assert "objective" not in model.fit_state and "lives" in model.fit_state
    model.iterative_refinement(2)


def test_rate_and_silence_are_told(music, tmp_path, caplog, capsys):
    how = dict(n_states=3, n_iterations=1, checkpoint_interval=0)
    for name in ("a", "b"): (tmp_path/name).mkdir()
    silence = np.zeros((2, 4000), np.float32)
    write_audio(tmp_path/"a"/"none.wav", silence, RATE)
    write_audio(tmp_path/"a"/"cancels.wav", np.stack([noise(.5), -noise(.5)]), RATE)
    assert train(tmp_path/"a", tmp_path/"out", **how) == 2
    assert "2 files are silent" in capsys.readouterr().err
    write_audio(tmp_path/"b"/"none.wav", silence, RATE)
    write_audio(tmp_path/"b"/"loud.wav", 27000*noise(1.), RATE, subtype="FLOAT")
    with caplog.at_level(logging.WARNING):
        assert train(tmp_path/"b", tmp_path/"out", **how) == 0
    assert "1 of 2 files are silent" in caplog.text and "Divide by 32768" in caplog.text
    caplog.clear()
    assert train(None, tmp_path/"out", resume="auto", sample_rate=22050, **how) == 0
    assert "sample_rate stays 16000" in caplog.text
