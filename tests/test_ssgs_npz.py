"""`model_final.npz` was another model, 6 dB off in colour, without pauses. It holds the same one
now: what the original program has no place for lies beside what it reads."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ssgs_models import same_parameters

from audiolab.files import CheckpointError
from audiolab.measure import long_term_spectral_distance, loudness_spread
from audiolab.ssgs import (
    EXCITATIONS, SpectralStateGuidedSynthesis, legacy_models, read_legacy,
)

RATE = 16000


@pytest.fixture(scope="module")
def kept(ssgs_trained, tmp_path_factory):
    "One model loaded from a checkpoint and from exports, with audio and without."
    folder, model = tmp_path_factory.mktemp("npz"), ssgs_trained["instruments"]
    files = {"full": model.save_checkpoint(folder/"full"),
             "npz": model.export_model(folder/"brief"),
             "double": model.export_model(folder/"double", precision=float),
             "frames": model.export_model(folder/"frames", precision=float,
                                          include_training_artifacts=True)}
    load = SpectralStateGuidedSynthesis.load_checkpoint
    return {name: load(path) for name, path in files.items()} | {"files": files}


def distance(a, b): return long_term_spectral_distance(a, b, RATE)


@pytest.mark.parametrize("excitation", [name for name in EXCITATIONS if name != "residual"])
def test_an_export_sounds_like_the_checkpoint(kept, excitation):
    how = dict(duration_seconds=20, excitation_type=excitation, seed=1)
    full, npz = kept["full"].generate(**how), kept["npz"].generate(**how)
    assert distance(full, npz) < 1
    assert abs(loudness_spread(full, RATE) - loudness_spread(npz, RATE)) < 1.5
    np.testing.assert_array_equal(kept["double"].generate(2., excitation_type=excitation, seed=1),
                                  full[:2*RATE])


@pytest.mark.parametrize("excitation,fidelity", [("residual", 0.), ("residual", .5),
                                                 ("Karplus-Strong", .5), ("noise", 1.)])
def test_an_export_with_audio_sounds_like_the_checkpoint(kept, excitation, fidelity):
    how = dict(duration_seconds=2, fidelity=fidelity, excitation_type=excitation, seed=1)
    np.testing.assert_array_equal(kept["full"].generate(**how), kept["frames"].generate(**how))


def test_an_export_is_the_model(kept, ssgs_trained, tmp_path):
    model, double = ssgs_trained["instruments"], kept["double"]
    same_parameters(double, model)
    assert double.iteration == model.iteration
    assert double.settings == replace(model.settings, lpc_order=18)
    assert not (double.files or double.history)  # lists that may be too long for notes
    some = model.transition_matrix > 1e-4
    model.allowed_transitions = some
    path = model.export_model(tmp_path/"some", precision=np.float16)
    model.allowed_transitions = None
    loaded = SpectralStateGuidedSynthesis.load_model(path)
    np.testing.assert_array_equal(loaded.allowed_transitions, some)
    np.testing.assert_allclose(loaded.state_means, model.state_means, rtol=1e-5)  # not halved


def test_an_export_goes_on_training_where_its_model_was(kept, ssgs_sounds):
    one = kept["double"]
    one.attach_audio(ssgs_sounds["instruments"])
    one.iterative_refinement(1)
    assert one.history[-1]["iteration"] == 6 and one.history[-1]["per_frame"] > -20


def test_the_original_finds_what_it_reads(kept):
    "It asks by name: what it does not know does not disturb it."
    with np.load(kept["files"]["npz"], allow_pickle=False) as data:
        notes, names = json.loads(data["metadata"].item()), set(data.files)
        assert (notes["version"], notes["lpc_order"], notes["n_states"]) == (1, 18, 16)
        assert data["state_means"].shape == (16, 18)
    theirs = {name for name in names if not name.startswith("audiolab.")}
    assert theirs >= {"transition_matrix", "initial_probabilities", "state_covariances_packed"}
    assert not any(name.startswith(("frame_metadata", "training")) for name in names)
    legacy = read_legacy(kept["files"]["npz"])  # what our own older readers make of it
    np.testing.assert_allclose(legacy.means[:, :-1], kept["full"].state_means[:, :-1], atol=1e-3)


def changed(path, folder, change):
    "A file whose arrays and notes were changed."
    arrays = dict(np.load(path))
    notes = json.loads(arrays.pop("metadata").item())
    change(arrays, notes)
    np.savez(folder/"changed.npz", **arrays, metadata=np.array(json.dumps(notes)))
    return folder/"changed.npz"


def put(name, value): return lambda arrays, notes: arrays.__setitem__(f"audiolab.{name}", value)
def note(name, value): return lambda arrays, notes: notes["audiolab"].__setitem__(name, value)


@pytest.mark.parametrize("change,text", [
    (put("state_means", np.zeros((16, 3))), "state_means"),
    (put("tracks.mean", np.full((16, 21), np.nan)), "tracks.mean"),
    (put("tracks.colour", np.full(4, "x")), "impossible"),
    (put("colour.karplus-strong", np.zeros((2, 2))), "karplus-strong"),
    (put("allowed_transitions", np.zeros((16, 16), bool)), "never be left"),
    (lambda arrays, notes: arrays.pop("audiolab.tracks.occupancy"), "lacks 'tracks.occupancy'"),
    (lambda arrays, notes: notes.pop("audiolab"), "notes for audiolab"),
    (lambda arrays, notes: notes.update(audiolab=[1]), "notes for audiolab"),
    (lambda arrays, notes: notes.update(hop_size=128), "hop_size is 128 for the"),
    (note("version", "3"), "update audiolab"), (note("config", "{}"), "n_states"),
    (note("config", "["*50_000), "impossible"), (note("sample_rate", "-1"), "sample rate -1"),
    (note("iteration", "many"), "impossible"), (note("audio", '[{"samples": 1}]'), "changed.npz"),
])
def test_what_is_wrong_is_named(kept, tmp_path, change, text):
    path = changed(kept["files"]["npz"], tmp_path, change)
    with pytest.raises(CheckpointError, match=text) as caught:
        SpectralStateGuidedSynthesis.load_checkpoint(path)
    assert "changed.npz" in str(caught.value)


def test_many_recordings_come_back_from_frames(kept, tmp_path, monkeypatch):
    "A file may hold a thousand arrays; a packed recording is one."
    model = kept["full"]
    monkeypatch.setattr("audiolab.ssgs.model.MOST_PACKED", len(model.files) - 1)
    path = model.export_model(tmp_path/"many", include_training_artifacts=True)
    with np.load(path) as data:
        assert not any(name.startswith("audiolab.audio.") for name in data.files)
    loaded = SpectralStateGuidedSynthesis.load_model(path)
    assert loaded.has_audio and not loaded.digests
    np.testing.assert_allclose(loaded.states.mean, model.states.mean, rtol=1e-5)


def test_a_file_is_read_once(kept, tmp_path, monkeypatch):
    "A model of the original was read whole, and then again; one with many recordings as well."
    legacy, reads = Path(__file__).parent/"data"/"ssgs_legacy", []
    monkeypatch.setattr("audiolab.ssgs.model.MOST_PACKED", 0)
    many = kept["full"].export_model(tmp_path/"many", include_training_artifacts=True)
    for name in ("read_npz", "read_checkpoint"):
        read = getattr(legacy_models, name)
        def counted(path, *args, read=read, **settings):
            reads.append(path)
            return read(path, *args, **settings)
        monkeypatch.setattr(legacy_models, name, counted)
    paths = [legacy/"model_with_artifacts.npz", legacy/"minimal.safetensors", many]
    for path in paths: SpectralStateGuidedSynthesis.load_checkpoint(path)
    assert reads == paths


def test_nothing_is_unpickled(kept, tmp_path):
    path = changed(kept["files"]["npz"], tmp_path, put("x", np.array([{}], object)))
    with pytest.raises(CheckpointError, match="dtype"):
        SpectralStateGuidedSynthesis.load_checkpoint(path)


def test_a_file_without_our_part_says_what_is_assumed(caplog):
    path = Path(__file__).parent/"data"/"ssgs_legacy"/"minimal.safetensors"
    with caplog.at_level("INFO", "audiolab"): SpectralStateGuidedSynthesis.load_checkpoint(path)
    assert "assumed" in caplog.text
