"""One test, at least, for each way in which SSGS 1.1 failed in learning and keeping: filters that
blow up, copies for training material, seams between files, saving after adaptation, state that
leaks from one training into the next, resuming. Each fails on a program like that one."""
import warnings

import numpy as np
import pytest
from scipy.signal import lfilter
from ssgs_runs import short_measures  # noqa: F401
from ssgs_sounds import (
    HOP, MUSIC, PARAMETERS, RATE, beginnings, music, noise, same_parameters, small_model,
)

from audiolab.measure import pole_radius
from audiolab.ssgs import SpectralStateGuidedSynthesis, lsf_to_lpc


@pytest.fixture(scope="module")
def sounds(tmp_path_factory): return {MUSIC: music(tmp_path_factory.mktemp("music"))}


@pytest.fixture
def small(sounds):
    "A model of one's own."
    return small_model(sounds)


# ---- 4: without artifacts it was noise and nobody was told

def test_fidelity_without_audio_warns_once_and_means_zero(small, tmp_path):
    path = small.save_checkpoint(tmp_path/"minimal", include_training_artifacts=False)
    loaded = SpectralStateGuidedSynthesis.load_checkpoint(path)
    with pytest.warns(RuntimeWarning, match="no training audio") as caught:
        first = loaded.generate(1., fidelity=.7, seed=0)
    assert len(caught) == 1 and caught[0].filename == __file__  # the caller's line, not one of ours
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = loaded.generate(1., fidelity=.7, seed=0)
        np.testing.assert_array_equal(loaded.generate(1., seed=0), again)
    np.testing.assert_array_equal(first, again)


# ---- 5: unstable filters. 1.6 % of frames, 8 of 34 state means, 99 % NaN on a path through them

def resonant():
    "Nearly pure tones beside clicks, steps and silence, in float32: for a careless analysis."
    t = np.arange(RATE)
    pieces = [np.sin(.3*t) + .5*np.sin(2.9*t), np.zeros(RATE), (t % 800 == 0)*1.,
              np.clip(20*np.sin(.05*t), -1, 1), 1e-4*np.sin(.01*t), .5 + 0*t, np.sign(np.sin(.7*t)),
              noise(1.)]
    return np.concatenate(pieces).astype(np.float32)


def test_no_frame_state_or_midpoint_is_unstable_on_hostile_sound():
    model = SpectralStateGuidedSynthesis(34).train(resonant(), n_em_iterations=5)
    for lpc in (model.lpc_coefficients, model.state_lpc): assert (pole_radius(lpc) < 1).all()
    rng = np.random.default_rng(0)
    lsf = np.concatenate([o.lsf for o in model.frames])
    assert (pole_radius(lsf_to_lpc(.5*(rng.permutation(lsf) + lsf))) < 1).all()
    everywhere = [k for _ in range(3) for k in rng.permutation(34)]
    preview, _ = model.render_preview(102, state_sequence=everywhere)
    for sound in (preview, model.generate(states=everywhere, seed=0),
                  model.generate(10., fidelity=.5, seed=0), model.generate(10., seed=1)):
        assert np.isfinite(sound).all() and np.abs(sound).max() < 30


# ---- 6: five copies of every frame as "augmentation"

def test_frames_are_counted_once(sounds):
    audio = sounds[MUSIC][:3]
    model = SpectralStateGuidedSynthesis(12).train(audio, n_em_iterations=2)
    frames = sum(-(-len(o)//HOP) + 1 for o in audio)
    counted = (model.lpc_coefficients, model.residual_signals, model.recordings,
               model.get_frame_metadata("energy"))
    assert {len(o) for o in counted} == {frames}
    statistics = model.statistics
    assert statistics.frames == frames and abs(statistics.counts.sum() - frames) < 1e-3*frames


# ---- 7: boundaries. Transitions across files and dropped frames; a memory without order

def test_no_transition_is_counted_between_files():
    low, high = (lfilter([1], [1, -a], noise(2., seed, .05)) for seed, a in enumerate((.95, -.95)))

    def train(audio):
        model = SpectralStateGuidedSynthesis(2, dtype="float64")
        return model.train(audio, n_em_iterations=5)
    apart = train([low, high])
    one, other = (apart.decode(o)[5:-5] for o in (low, high))
    assert one.std() == other.std() == 0 and one[4] != other[4]
    counted, joined = apart.statistics, train(np.concatenate([low, high])).statistics.transitions
    assert abs(counted.transitions.sum() - (counted.frames - 2)) < 1e-6
    assert abs(counted.initial.sum() - 2) < 1e-9
    assert counted.transitions[0, 1] + counted.transitions[1, 0] < 1e-3
    assert joined[0, 1] + joined[1, 0] > .9


@pytest.mark.parametrize("mode", ["batch", "incremental"])
def test_order_of_files_does_not_matter(sounds, mode):
    audio = sounds[MUSIC][:5]

    def train(order):
        model = SpectralStateGuidedSynthesis(12, dtype="float64", mode=mode)
        return model.train([audio[i] for i in order], n_em_iterations=5).hmm
    one, other = train(range(5)), train((3, 0, 4, 2, 1))
    for name in PARAMETERS:
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=0, atol=1e-8)


def test_silence_is_kept_and_joins_nothing():
    loud = noise(1., 3)
    sound = np.concatenate([loud, np.zeros(RATE, np.float32), loud])
    model = SpectralStateGuidedSynthesis(8).train(sound, n_em_iterations=4)
    assert model.statistics.frames == -(-3*RATE//HOP) + 1
    quiet = int(model.state_means[:, -1].argmin())
    path = model.recordings.states
    assert (path[67:121] == quiet).all() and model.state_means[quiet, -1] < np.log(1e-3)
    assert np.mean(path[5:55] != quiet) > .7


def test_memory_keeps_time_order_so_that_training_goes_on_sensibly(small, sounds):
    before = np.diag(small.transition_matrix).mean()
    small.adapt_to_audio(sounds[MUSIC][3], adaptation_rate=.1, memory_limit=600)
    for frames in small.frames:
        piece = np.asarray(frames.audio)
        assert any(piece.tobytes() in np.ascontiguousarray(o).tobytes() for o in sounds[MUSIC][:4])
    small.iterative_refinement(4)
    # shuffled frames would bring it near 1/12
    assert abs(np.diag(small.transition_matrix).mean() - before) < .1


# ---- 8: saving after adaptation failed

@pytest.mark.parametrize("artifacts", [True, False])
@pytest.mark.parametrize("statistics", [True, False])
def test_save_after_adapting(small, tmp_path, artifacts, statistics):
    small.adapt_to_audio(noise(2.), memory_limit=300)
    path = small.save_checkpoint(tmp_path/"m", include_training_artifacts=artifacts,
                                 include_adaptive_statistics=statistics)
    loaded = SpectralStateGuidedSynthesis.load_checkpoint(path)
    same_parameters(loaded, small)
    np.testing.assert_array_equal(loaded.generate(1., seed=0), small.generate(1., seed=0))
    for one in (small, loaded): one.adapt_to_audio(noise(1., 2))
    if statistics: same_parameters(loaded, small)
    path = small.export_model(tmp_path/"m.npz", include_training_artifacts=artifacts)
    assert SpectralStateGuidedSynthesis.load_model(path).n_states == 12


def test_checkpoint_and_export_say_the_same_when_asked_the_same(small, tmp_path):
    "Their defaults for the audio differ, as the format of 1.x has it; the switch means the same."
    for artifacts in (True, False):
        asked = {"include_training_artifacts": artifacts}
        for path in (small.save_checkpoint(tmp_path/"m", **asked),
                     small.export_model(tmp_path/"m.npz", **asked)):
            assert SpectralStateGuidedSynthesis.load_model(path).has_audio == artifacts


# ---- 10: a second training on one object differed from the first, and so did one after loading

def test_training_again_and_anew_after_loading_are_like_the_first(small, sounds, tmp_path):
    audio = beginnings(sounds)
    first = SpectralStateGuidedSynthesis(12).train(audio, n_em_iterations=4)
    small.train(noise(2.), n_em_iterations=2)
    small.adapt_to_audio(noise(1.))
    small.train(audio, n_em_iterations=4)
    loaded = SpectralStateGuidedSynthesis.load_checkpoint(first.save_checkpoint(tmp_path/"m"))
    loaded.initialize_hmm_parameters()
    loaded.iterative_refinement(4)
    for model in (small, loaded):
        assert len(model.lpc_coefficients) == len(first.lpc_coefficients)
        assert model.statistics.frames == first.statistics.frames and model.history == first.history
        same_parameters(model, first)
        made, expected = (o.generate(1., fidelity=.5, seed=0) for o in (model, first))
        np.testing.assert_array_equal(made, expected)


def test_sample_rate_and_order_of_an_earlier_training_do_not_linger(sounds):
    used = SpectralStateGuidedSynthesis(4)
    used.train(noise(1.), 44100, 1)
    used.train(noise(1.), 16000, 1)
    same_parameters(used, SpectralStateGuidedSynthesis(4).train(noise(1.), 16000, 1))


# ---- 11: no resuming from a minimal checkpoint

def test_resume_from_a_minimal_checkpoint_goes_on_counting(sounds, tmp_path):
    audio = sounds[MUSIC][:3]
    whole = SpectralStateGuidedSynthesis(12, tolerance=0.).train(audio, n_em_iterations=6)
    half = SpectralStateGuidedSynthesis(12, tolerance=0.).train(audio, n_em_iterations=3)
    path = half.save_checkpoint(tmp_path/"half", include_training_artifacts=False)
    loaded = SpectralStateGuidedSynthesis.load_checkpoint(path)
    with pytest.raises(ValueError, match="attach_audio"): loaded.run_em_iteration()
    loaded.attach_audio(audio)
    loaded.iterative_refinement(3)
    same_parameters(loaded, whole)
    assert [row["iteration"] for row in loaded.history] == [1, 2, 3, 4, 5, 6]
    assert loaded.iteration == 6
