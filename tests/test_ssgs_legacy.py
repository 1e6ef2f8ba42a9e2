"Models of SSGS 1.x read and written, and hostile files. SSGS 1.1.0 wrote tests/data/ssgs_legacy."
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from audiolab.files import CheckpointError, read_npz, write_checkpoint
from audiolab.ssgs import (
    GaussianHMM, export_npz, frames_to_recordings, gaussians_to_lpc, gaussians_to_lsf, is_legacy,
    lattice_synthesis, lpc_to_parcor, lsf_to_lpc, lsf_to_parcor, read_legacy, stabilise_filters,
    stabilise_lpc,
)
from audiolab.ssgs.legacy_export import _artifacts

LEGACY = Path(__file__).parent/"data"/"ssgs_legacy"
ALL = ("adapted.npz", "full.safetensors", "minimal.safetensors", "model.npz", "model_unpacked.npz",
       "model_with_artifacts.npz")


@pytest.mark.parametrize("name", ALL)
def test_every_original_file_opens(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a file without digests is no news here
        model = read_legacy(LEGACY/name)
    assert is_legacy(LEGACY/name)
    s = model.settings
    assert (s.sample_rate, s.frame_size, s.hop_size, s.smoothness_weight) == (16000, 1024, 256, 0.5)
    assert model.means.shape == (6, 13) and model.lpc_means.shape == (6, 12)
    # raises unless all is positive definite and normalised
    GaussianHMM(model.initial, model.transition, model.means, model.covariances)
    lsf = model.means[:, :12]
    assert (np.diff(lsf, axis=1) > 0).all() and lsf.min() > 0 and lsf.max() < np.pi
    np.testing.assert_allclose(lsf_to_lpc(lsf), stabilise_lpc(model.lpc_means), atol=1e-8)
    has_audio = name in ("full.safetensors", "model_with_artifacts.npz")
    assert [len(r) for r in model.recordings] == ([4864] if has_audio else [])
    if not has_audio: np.testing.assert_allclose(model.means[:, 12], np.log(.1))
    if not has_audio: np.testing.assert_allclose(model.covariances[:, 12, 12], .25)
    assert (model.adaptive is not None) == (name == "adapted.npz")


def test_what_the_file_says_is_what_is_read():
    raw, model = load_file(LEGACY/"full.safetensors"), read_legacy(LEGACY/"full.safetensors")
    np.testing.assert_array_equal(model.lpc_means, raw["state_means"].astype(float))
    np.testing.assert_array_equal(model.lpc_covariances, raw["state_covariances"].astype(float))
    np.testing.assert_allclose(model.transition, raw["transition_matrix"], atol=1e-6)
    for t, frame in enumerate(raw["training_frames"][:16]):
        np.testing.assert_array_equal(model.recordings[0][256*t:256*t + 1024], frame)
    packed, whole = read_legacy(LEGACY/"model.npz"), read_legacy(LEGACY/"model_unpacked.npz")
    np.testing.assert_array_equal(packed.covariances, whole.covariances)
    adapted = read_legacy(LEGACY/"adapted.npz").adaptive
    assert adapted["adaptive_total_frames"] == 76
    assert adapted["adaptive_second_moment"].shape == (6, 12, 12)
    assert adapted["adaptive_last_adaptation"].startswith("20")


def test_loudness_comes_from_the_frames():
    model = read_legacy(LEGACY/"full.safetensors")
    frames = load_file(LEGACY/"full.safetensors")["training_frames"][:16]
    window = np.hanning(1024)
    log_rms = .5*np.log(((frames*window)**2).sum(1)/(window@window))
    loudness = model.means[:, 12]
    assert log_rms.min() - .1 < loudness.min() and loudness.max() < log_rms.max() + .1
    assert np.ptp(loudness) > 1


def test_rebuilt_model_makes_finite_sound():
    model, rng = read_legacy(LEGACY/"minimal.safetensors"), np.random.default_rng(0)
    y = model.means[rng.integers(0, 6, 201)]
    sound = lattice_synthesis(rng.normal(size=200*256), lsf_to_parcor(y[:, :12]), y[:, 12])
    assert np.isfinite(sound).all() and abs(20*np.log10(sound.std()/.1)) < 3


# ---- conversion

def test_reflected_poles():
    a = np.random.default_rng(0).normal(size=(300, 12))*1.5
    ours = stabilise_filters(a)
    assert (np.abs(lpc_to_parcor(ours)) < 1).all()
    np.testing.assert_allclose(ours, stabilise_lpc(a), atol=1e-5)
    anywhere = np.random.default_rng(1).uniform(.2, 2.9, (50, 12))
    stable = lsf_to_lpc(np.sort(anywhere + np.linspace(0, .1, 12), axis=1))
    np.testing.assert_allclose(stabilise_filters(stable), stabilise_lpc(stable), atol=1e-9)


@pytest.mark.parametrize("order", (1, 2, 7, 12, 32))
@pytest.mark.parametrize("scale", (1e-3, 1., 300., 1e8))
def test_any_gaussian_becomes_stable(order, scale):
    rng = np.random.default_rng(order)
    means = rng.normal(size=(4, order))*scale
    root = rng.normal(size=(4, order, order))*scale
    lsf, covariance = gaussians_to_lsf(means, root@root.transpose(0, 2, 1))
    assert np.isfinite(covariance).all() and (np.linalg.eigvalsh(covariance) > 0).all()
    assert (np.diff(lsf, axis=1) > 0).all() and lsf.min() > 0 and lsf.max() < np.pi


def test_conversion_is_repeatable():
    a, b = read_legacy(LEGACY/"model.npz"), read_legacy(LEGACY/"model.npz")
    np.testing.assert_array_equal(a.covariances, b.covariances)


def test_covariances_survive_the_round_trip():
    rng = np.random.default_rng(2)
    lsf = np.sort(rng.uniform(.15, 3, (5, 12)), axis=1)*.5 + .5*np.linspace(.2, 2.9, 12)
    spread = np.broadcast_to(np.diag(np.linspace(.01, .03, 12)**2), (5, 12, 12))
    back = gaussians_to_lsf(*gaussians_to_lpc(lsf, spread))
    np.testing.assert_allclose(back[0], lsf, atol=1e-7)
    ratio = np.sqrt(np.diagonal(back[1], axis1=1, axis2=2)/np.diagonal(spread, axis1=1, axis2=2))
    assert .6 < ratio.min() and ratio.max() < 1.6 and abs(np.median(ratio) - 1) < .15


# ---- frames

def test_recordings_end_where_frames_do_not_overlap():
    a, b = (np.random.default_rng(seed).normal(size=n).astype(np.float32)
            for seed, n in enumerate((4096, 2048)))
    def cut(x): return np.lib.stride_tricks.sliding_window_view(x, 1024)[::256]
    one, two = frames_to_recordings(np.concatenate([cut(a), cut(b)]))
    np.testing.assert_array_equal(one, a)
    np.testing.assert_array_equal(two, b)
    assert [len(r) for r in frames_to_recordings(cut(a)[::2])] == [1024]*7
    np.testing.assert_array_equal(frames_to_recordings(a.reshape(4, 1024), 1024)[0], a)


def test_frames_without_copies_are_kept_whole(tmp_path):
    "Five frames in all are no sign of four copies, not even of a periodic sound."
    n = 1024 + 9*256
    for sound in (np.sin(2*np.pi*np.arange(n)/64), np.random.default_rng(0).normal(size=n)):
        model = read_legacy(export(tmp_path/"m.npz", recordings=[.1*sound.astype(np.float32)]))
        assert [len(r) for r in model.recordings] == [len(sound)]


# ---- export

def parameters():
    model = read_legacy(LEGACY/"full.safetensors")
    names = "initial", "transition", "means", "covariances"
    return {name: getattr(model, name) for name in names} | {"sample_rate": 16000}


def export(path, **more): return export_npz(path, **(parameters() | more))


def open_as_the_original(path):
    "What the loader of SSGS 1.x asks of a file."
    with np.load(path, allow_pickle=False) as data:
        notes = json.loads(data["metadata"].item())
        K, p = notes["n_states"], notes["lpc_order"]
        A = np.clip(data["transition_matrix"].astype(float), 1e-12, None)
        A /= A.sum(1, keepdims=True)
        assert A.shape == (K, K) and data["initial_probabilities"].shape == (K,)
        assert data["state_means"].shape == (K, p)
        if notes.get("pack_covariances", False):
            rows, columns = np.tril_indices(p)
            covariance = np.zeros((K, p, p))
            lower = data["state_covariances_packed"]
            covariance[:, rows, columns] = covariance[:, columns, rows] = lower
        else: covariance = data["state_covariances"]
        np.linalg.cholesky(covariance)
        for key in notes.get("frame_metadata_keys", []):
            assert data[f"frame_metadata__{key}"].shape == data["spectral_flux"].shape
        return notes, {name: data[name] for name in data.files}


@pytest.mark.parametrize("packed", (True, False))
@pytest.mark.parametrize("precision", ("float32", np.float64))
@pytest.mark.parametrize("audio", (True, False))
def test_export_round_trip(tmp_path, packed, precision, audio):
    given, recordings = parameters(), []
    if audio:
        kept = read_legacy(LEGACY/"full.safetensors").recordings
        recordings = [r*np.float32(.5) for r in kept]
    path = export_npz(tmp_path/"model.any", pack_covariances=packed, precision=precision,
                      recordings=recordings, use_compression=audio, **given)
    assert path == tmp_path/"model.npz" and is_legacy(path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]
    notes, arrays = open_as_the_original(path)
    assert notes["version"] == 1 and notes["includes_training_artifacts"] is audio
    assert notes["precision"] == np.dtype(precision).name
    again = read_legacy(path)
    np.testing.assert_allclose(again.means[:, :12], given["means"][:, :12], atol=1e-3)
    np.testing.assert_allclose(again.transition, given["transition"], atol=1e-6)
    np.testing.assert_allclose(again.initial, given["initial"], atol=1e-6)
    both = again.covariances, given["covariances"]
    ratio = np.sqrt(np.divide(*(np.diagonal(o, axis1=1, axis2=2) for o in both)))[:, :12]
    assert abs(np.median(ratio) - 1) < .3
    if audio:
        np.testing.assert_array_equal(again.recordings[0], recordings[0])
        np.testing.assert_allclose(again.means[:, 12], given["means"][:, 12] + np.log(.5), atol=.02)
        stored = np.load(LEGACY/"model_with_artifacts.npz")
        original = {name: a.shape[1:] for name, a in stored.items()}
        if not packed:
            original["state_covariances"] = (12, 12)
            del original["state_covariances_packed"]
        assert {name: a.shape[1:] for name, a in arrays.items()} == original


def test_half_precision_and_bad_arguments(tmp_path):
    half = np.load(export(tmp_path/"h.npz", precision=np.float16))
    assert json.loads(half["metadata"].item())["precision"] == "float16"
    assert read_legacy(tmp_path/"h.npz").means.shape == (6, 13)
    for more, text in (
        (dict(precision="int16"), "floating-point"),
        (dict(initial=np.ones(3)), "initial has shape"),
        (dict(means=np.ones(3)), "means must be"),
        (dict(transition=np.full((6, 6), np.nan)), "transition_matrix holds NaN"),
        (dict(recordings=[np.zeros((2, 100))]), "waveform"),
        (dict(recordings=[np.array([1., np.inf])]), "waveform"),
    ):
        with pytest.raises(ValueError, match=text): export(tmp_path/"bad.npz", **more)
    assert [p.name for p in tmp_path.iterdir()] == ["h.npz"]
    (tmp_path/"folder.npz").mkdir()
    with pytest.raises(CheckpointError, match="not written"): export(tmp_path/"folder.npz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.npz", "h.npz"]


def test_silence_is_dropped_and_splits_a_recording(tmp_path):
    rng = np.random.default_rng(0)
    sound = np.concatenate([rng.normal(size=4096), np.zeros(4096), rng.normal(size=4096)])
    sound = sound.astype(np.float32)*.1
    recordings = [sound, np.zeros(5000, np.float32), np.float32([.5])]
    model = read_legacy(export(tmp_path/"m.npz", recordings=recordings))
    assert len(model.recordings) == 3
    np.testing.assert_array_equal(model.recordings[0][:4096], sound[:4096])
    assert model.recordings[2][0] == .5 and len(model.recordings[2]) == 1024


def test_artifacts_are_those_of_the_original():
    stored = read_npz(LEGACY/"model_with_artifacts.npz")
    ours = _artifacts(stored["training_frames"], 12, 256, 16000)  # all 80, the resampled copies too
    flux = (ours["spectral_flux"], ours["frame_metadata__spectral_flux"],
            ours["perceptual_features"][:, 48])
    for values in flux: values[16::16] = 0  # each copy begins afresh
    about = ("energy", "rms", "spectral_centroid", "spectral_bandwidth", "dominant_frequency",
             "spectral_flux")
    names = [f"frame_metadata__{name}" for name in about]
    for name in ("perceptual_features", "spectral_flux", *names):
        np.testing.assert_allclose(ours[name], stored[name], rtol=2e-4, atol=2e-4, err_msg=name)
    crossings = ours["frame_metadata__zero_crossings"]
    np.testing.assert_array_equal(crossings, stored["frame_metadata__zero_crossings"])
    assert crossings.dtype == np.int32
    error = np.abs(ours["lpc_coefficients"] - stored["lpc_coefficients"]).max(1)
    assert np.median(error) < .1  # an autocorrelation in float32 there, a conditioned one here
    rms, original = (o["frame_metadata__residual_rms"] for o in (ours, stored))
    np.testing.assert_allclose(rms, original, rtol=.5, atol=1e-3)


# ---- files that lie

def rewrite(tmp_path, change, name="model_with_artifacts.npz"):
    arrays = dict(np.load(LEGACY/name))
    notes = json.loads(arrays.pop("metadata").item())
    change(arrays, notes)
    path = tmp_path/"changed.npz"
    np.savez_compressed(path, **arrays, metadata=np.array(json.dumps(notes)))
    return path


def put(name, value): return lambda arrays, notes: arrays.__setitem__(name, value)
def note(name, value): return lambda arrays, notes: notes.__setitem__(name, value)


@pytest.mark.parametrize("name", ("transition_matrix", "initial_probabilities", "state_means"))
def test_missing_tensor_is_named(tmp_path, name):
    less = rewrite(tmp_path, lambda arrays, notes: arrays.pop(name))
    with pytest.raises(ValueError, match=name): read_legacy(less)
    tensors = load_file(LEGACY/"full.safetensors")
    with safe_open(LEGACY/"full.safetensors", "np") as file: notes = file.metadata()
    del tensors[name]
    save_file(tensors, tmp_path/"less.safetensors", notes)
    with pytest.raises(ValueError, match=name): read_legacy(tmp_path/"less.safetensors")


@pytest.mark.parametrize("change,text", (
    (put("state_means", np.zeros((6, 11))), "state_means.*shape"),
    (put("state_means", np.full((6, 12), np.nan)), "state_means.*NaN"),
    (put("state_means", np.full((6, 12), 1e20)), "beyond"),
    (put("state_means", np.full((6, 12), "x")), "state_means.*not numbers"),
    (put("state_covariances_packed", np.zeros((6, 77))), "state_covariances_packed.*shape"),
    (put("state_covariances_packed", np.full((6, 78), -1.)), "negative"),
    (put("transition_matrix", np.ones((6, 5))), "transition_matrix.*shape"),
    (put("training_frames", np.zeros((3, 1000))), "training_frames.*shape"),
    (put("training_frames", np.full((3, 1024), np.inf)), "training_frames.*NaN"),
    (put("adaptive_transition_counts", np.zeros(3)), "adaptive_transition_counts.*shape"),
    (lambda arrays, notes: arrays.pop("state_covariances_packed"), "state_covariances"),
    (note("version", 2), "version '2'"), (note("n_states", 10**9), "n_states"),
    (note("n_states", None), "n_states"), (note("lpc_order", "many"), "lpc_order"),
    (note("lpc_order", 10**6), "lpc_order"), (note("hop_size", 0), "hop_size"),
    (note("hop_size", 2000), "hop_size 2000 is more"), (note("frame_size", 1e300), "frame_size"),
    (note("smoothness_weight", float("nan")), "smoothness_weight"),
    (note("sample_rate", -1), "sample_rate"), (note("sample_rate", [16000]), "sample_rate"),
    (note("n_states", 7), "shape"),
))
def test_wrong_contents_are_named(tmp_path, change, text):
    path = rewrite(tmp_path, change)
    with pytest.raises(CheckpointError, match=text) as caught: read_legacy(path)
    assert "changed.npz" in str(caught.value)


def test_odd_but_harmless_contents(tmp_path):
    def read_changed(change): return read_legacy(rewrite(tmp_path, change))
    assert read_changed(note("sample_rate", None)).settings.sample_rate == 16000
    unset = read_changed(lambda arrays, notes: notes.pop("smoothness_weight"))
    assert unset.settings.smoothness_weight == .5
    model = read_changed(put("transition_matrix", np.zeros((6, 6))))
    np.testing.assert_allclose(model.transition, 1/6)
    assert read_changed(put("training_frames", np.zeros((0, 1024)))).recordings == []
    narrow = read_changed(put("state_covariances_packed", np.zeros((6, 78))))
    assert narrow.covariances.shape == (6, 13, 13)


def test_what_is_not_a_model_at_all(tmp_path):
    texts = {"empty": b"", "text.npz": b"hello, world" * 100,
             "zip.npz": b"PK\x03\x04" + bytes(1000),
             "big.safetensors": (2**40).to_bytes(8, "little") + bytes(50)}
    for name, content in texts.items():
        (tmp_path/name).write_bytes(content)
        assert not is_legacy(tmp_path/name)
        with pytest.raises(CheckpointError, match=name): read_legacy(tmp_path/name)
    notes = {"format": "audiolab.ssgs", "version": "2"}
    ours = write_checkpoint(tmp_path/"ours.safetensors", {"means": np.zeros(3)}, notes)
    for path in (ours, tmp_path, tmp_path/"missing", "a\0b"): assert not is_legacy(path)
    for path in (ours, tmp_path, tmp_path/"missing"):
        with pytest.raises(CheckpointError): read_legacy(path)
    objects = np.array([{}], dtype=object)
    np.savez(tmp_path/"pickle.npz", transition_matrix=objects, state_means=np.zeros(3))
    with pytest.raises(CheckpointError, match="dtype"): read_legacy(tmp_path/"pickle.npz")
    np.savez(tmp_path/"other.npz", a=np.zeros(3))
    assert not is_legacy(tmp_path/"other.npz")
    with pytest.raises(CheckpointError, match="metadata"): read_legacy(tmp_path/"other.npz")
    zeros = np.zeros((70_000, 1024), np.float32)
    np.savez_compressed(tmp_path/"bomb.npz", training_frames=zeros)
    with pytest.raises(CheckpointError, match="when unpacked"): read_legacy(tmp_path/"bomb.npz")


HOSTILE = '"text"', "[1]", "{", "[" * 5000, '{"version": 1, "n_states": 6}', '{"version": NaN}'


@pytest.mark.parametrize("notes", HOSTILE)
def test_hostile_notes(tmp_path, notes):
    arrays = dict(np.load(LEGACY/"model.npz")) | {"metadata": np.array(notes)}
    np.savez(tmp_path/"notes.npz", **arrays)
    with pytest.raises(CheckpointError, match="notes.npz"): read_legacy(tmp_path/"notes.npz")


@pytest.mark.parametrize("name", ("minimal.safetensors", "model.npz"))
def test_no_flipped_byte_does_worse_than_an_error(tmp_path, name):
    good, rng = (LEGACY/name).read_bytes(), np.random.default_rng(0)
    for n in range(60):
        bad = bytearray(good)
        bad[rng.integers(len(bad)) if n % 2 else rng.integers(600)] ^= 1 << rng.integers(8)
        (tmp_path/name).write_bytes(bad if n % 3 else bad[:rng.integers(len(bad))])
        is_legacy(tmp_path/name)
        try: model = read_legacy(tmp_path/name)
        except CheckpointError as error: assert name in str(error)
        else: GaussianHMM(model.initial, model.transition, model.means, model.covariances)
