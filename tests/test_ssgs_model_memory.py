"SSGS models that adapt to new sound, and questions about their frames."
import numpy as np
import pytest

from audiolab.audio import AudioError, resample, write_audio
from audiolab.ssgs import (
    SpectralStateGuidedSynthesis,
)

from ssgs_models import RATE, noise, same_parameters


@pytest.fixture(scope="module")
def corpora(ssgs_corpora): return ssgs_corpora


@pytest.fixture(scope="module")
def sounds(ssgs_sounds): return ssgs_sounds


@pytest.fixture(scope="module")
def model(ssgs_trained): return ssgs_trained["instruments"]


@pytest.fixture
def fresh(model, tmp_path):
    "A model of one's own, to be changed."
    return SpectralStateGuidedSynthesis.load_checkpoint(model.save_checkpoint(tmp_path/"own"))


# ---- adaptation

@pytest.mark.parametrize(
    "wrong", [dict(adaptation_rate=-.1), dict(adaptation_rate=1.1), dict(adaptation_rate=np.nan),
              dict(stability_bias=2), dict(stability_bias=-1), dict(memory_blend=1.5),
              dict(memory_blend=-.5), dict(memory_limit=0), dict(n_adaptation_iterations=0)])
def test_wrong_rates_are_refused_and_nothing_changes(fresh, model, wrong):
    with pytest.raises(ValueError): fresh.adapt_to_audio(noise(1.), **wrong)
    same_parameters(fresh, model)
    np.testing.assert_array_equal(fresh.generate(.5, fidelity=.5, seed=0),
                                  model.generate(.5, fidelity=.5, seed=0))


def inside(piece, whole):
    "Whether a piece is a contiguous stretch of a waveform."
    if len(piece) > len(whole): return False
    starts = np.flatnonzero(np.abs(whole[:len(whole) - len(piece) + 1] - piece[0]) < 1e-6)
    return any(np.abs(whole[i:i + len(piece)] - piece).max() < 1e-6 for i in starts)


@pytest.mark.parametrize("limit", [40, 400, 6000])
@pytest.mark.parametrize("blend", [0., .7, 1.])
def test_memory_holds_contiguous_stretches_and_no_more_than_the_limit(fresh, sounds, limit, blend):
    new = noise(3., 5, .05)
    info = fresh.adapt_to_audio(new, memory_limit=limit, memory_blend=blend)
    assert info["memory_limit"] == limit and sum(map(len, fresh.frames)) <= limit
    assert len(fresh.files) == len(fresh.frames)
    pieces = [np.asarray(o.audio) for o in fresh.frames]
    is_new = [inside(piece, new) for piece in pieces]
    assert all(n or any(inside(piece, o) for o in sounds["instruments"]) for piece,
               n in zip(pieces, is_new))
    kept, wanted = sum(len(piece) for piece, n in zip(pieces, is_new)
                       if not n), min(sum(map(len, sounds["instruments"])), limit*blend*256)
    assert wanted - 256*12 <= kept <= wanted
    assert any(is_new) or blend == 1


def test_adaptation_reports_and_leans_towards_the_new(fresh, model, tmp_path):
    new = noise(4., 6, .2)
    copy = SpectralStateGuidedSynthesis.load_checkpoint(model.save_checkpoint(tmp_path/"copy"))
    before = copy.adapt_to_audio(new, adaptation_rate=0.)["log_likelihood"]
    info = fresh.adapt_to_audio(new, adaptation_rate=.5, n_adaptation_iterations=2)
    assert {"log_likelihood", "occupancy_entropy", "adaptation_rate", "memory_limit", "frames_used",
            "avg_energy", "avg_rms"} <= set(info)
    assert info["frames_used"] == 251 and abs(info["avg_rms"] - .2) < .02
    assert abs(info["avg_energy"]/1024 - .04) < .005
    np.testing.assert_allclose(fresh.transition_matrix.sum(1), 1, atol=1e-9)
    assert np.isfinite(fresh.generate(1., seed=0)).all()
    assert np.isfinite(fresh.generate(1., fidelity=.6, seed=0)).all()
    assert fresh.sample_rate == RATE
    assert fresh.adapt_to_audio(new, adaptation_rate=0.)["log_likelihood"] > before + len(new)/256


def test_rate_zero_changes_no_parameter(fresh, model):
    fresh.adapt_to_audio(noise(1.), adaptation_rate=0.)
    same_parameters(fresh, model)


def test_sounds_of_another_rate_files_and_lists_are_adapted_to(fresh, corpora, tmp_path):
    at_48 = write_audio(tmp_path/"a.wav", resample(noise(1., 7), RATE, 48000), 48000)
    for audio, rate in ((str(at_48), RATE), ([at_48, corpora["instruments"][0]], RATE),
                        (resample(noise(1., 7), RATE, 44100), 44100),
                        ([noise(1.), noise(1., 2)], RATE)):
        assert fresh.adapt_to_audio(audio, rate, adaptation_rate=.05)["frames_used"] >= 63
    with pytest.raises(AudioError): fresh.adapt_to_audio(tmp_path/"missing.wav")


# ---- retrieval

def test_questions_about_frames(fresh, model):
    n = len(model.recordings)
    for space in ("lpc", "lsf", "extended", "residual", "tracks"):
        found = model.query_similar_frames(100, k=7, feature_space=space)
        assert found.indices.shape == found.distances.shape == (7,) and 100 not in found.indices
        assert (np.diff(found.distances) >= 0).all() and found.feature_space == space
        assert all(len(v) == 7 for v in found.metadata.values()) and len(found.metadata) >= 9
    assert not model.query_similar_frames(3, include_metadata=False).metadata
    vector = model.lpc_coefficients[50]
    for ask in (model.query_frames_by_features, model.search_by_feature_vector):
        assert ask(vector, k=1).indices[0] == 50 and ask(vector, k=1).distances[0] < 1e-9
    assert len(model.query_frames_by_features({"energy": 1.}, feature_space="extended",
                                              k=3).indices) == 3
    assert model.build_feature_index("lpc") is model.build_feature_index("lpc")
    energy = model.get_frame_metadata("energy")
    assert energy.shape == (n,)
    assert (model.get_frame_metadata("energy", [3, 1]) == energy[[3, 1]]).all()
    assert all(len(v) == n for v in model.get_frame_metadata().values())
    assert model.top_frames("energy", k=3)[0] == energy.argmax()
    assert model.top_frames("energy", k=3, descending=False)[0] == energy.argmin()
    for wrong in (lambda: model.get_frame_metadata("taste"), lambda: model.top_frames("taste"),
                  lambda: model.build_feature_index("taste"),
                  lambda: model.query_frames_by_features([1.])):
        with pytest.raises(ValueError): wrong()
    with pytest.raises(IndexError): model.query_similar_frames(n)
    fresh.build_feature_index()
    fresh.attach_audio(noise(1.))
    # no stale answers
    assert fresh.build_feature_index().tree.n == 64
    assert len(fresh.get_frame_metadata("energy")) == 64
