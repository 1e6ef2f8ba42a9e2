"""One test, at least, for each way in which the sound of SSGS 1.1 failed: the drone, the buzz, the
flat loudness, the dead fidelity knob, forgetting, a pitch that depends on the rate. Each fails on a
program that behaves as that one did."""
from itertools import islice

import numpy as np
import pytest
from scipy.signal import lfilter
from ssgs_sounds import HOP, MUSIC, RATE, music, noise, speech

from audiolab.audio import resample
from audiolab.measure import (
    log_spectral_distance, long_term_spectral_distance, loudness_spread, modulation_index,
)
from audiolab.ssgs import EXCITATIONS, SpectralStateGuidedSynthesis

KINDS = "speech", MUSIC
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    "Waveforms of 45 s by kind; None for speech where nothing can speak."
    folder = tmp_path_factory.mktemp("corpora")
    return {"speech": speech(folder/"speech"), MUSIC: music(folder/MUSIC)}


@pytest.fixture(scope="module")
def models(sounds):
    def train(audio): return SpectralStateGuidedSynthesis(34).train(audio, n_em_iterations=20)
    return {kind: audio and train(audio) for kind, audio in sounds.items()}


@pytest.fixture(scope="module")
def model(models): return models[MUSIC]


def of(kind, by_kind):
    if by_kind[kind] is None: pytest.skip("needs espeak-ng (Debian: apt-get install espeak-ng)")
    return by_kind[kind]


def path_of(model, n, **how):
    return np.array([state for state, *_ in islice(model.stream(**how).plan, n)])


# ---- 1: a drone. 4 states in 10 s, 622 of 625 frames in one, the same path at every call

@each_kind
def test_paths_wander_through_many_states(kind, models):
    model = of(kind, models)
    paths, training = [path_of(model, 625, seed=seed) for seed in range(8)], model.recordings.states
    windows = [training[i:i + 625] for i in range(0, len(training) - 625, 100)]
    used = [len(set(path)) for path in paths]
    # ten seconds of speech go through nearly all sounds of a language, ten of music stay with one
    # or two pieces: in training as in what is made
    if kind == "speech": assert min(used) >= 20
    assert np.mean(used) >= np.mean([len(set(o)) for o in windows]) - 1 and min(used) >= 8
    assert max(np.bincount(path).max()/625 for path in paths) <= .5
    assert len({path.tobytes() for path in paths}) == 8
    # without a seed each call is another
    assert not np.array_equal(path_of(model, 625), path_of(model, 625))
    # and it can be heard in the sound
    assert len(set(model.decode(model.generate(10., seed=0)))) >= .6*np.mean(used)


@each_kind
def test_long_paths_spend_their_time_as_the_training_material_does(kind, models):
    model = of(kind, models)
    share = np.bincount(path_of(model, 60_000, seed=0), minlength=34)/60_000
    assert np.abs(share - model.states.occupancy).sum() < .25


# ---- 2: a buzz at the rate of the hops. Index 1.8 to 3.1 where training has 0.13; energy within a
# hop uneven by 1e5

FIDELITIES = 0., .5, 1.


def buzz(model, excitation, fidelity):
    made = model.generate(30., fidelity=fidelity, excitation_type=excitation, seed=0)
    return modulation_index(made, RATE, RATE/HOP)


@each_kind
@pytest.mark.parametrize("fidelity", FIDELITIES[:2])
@pytest.mark.parametrize("excitation", EXCITATIONS)
def test_no_buzz_at_the_hop_rate(kind, models, sounds, excitation, fidelity):
    training = modulation_index(np.concatenate(of(kind, sounds)), RATE, RATE/HOP)
    # .04 to .11 by seed, voice and machine
    assert buzz(of(kind, models), excitation, fidelity) < max(.15, training + .1)


@each_kind
def test_no_buzz_in_what_is_replayed(kind, models, sounds):
    training = modulation_index(np.concatenate(of(kind, sounds)), RATE, RATE/HOP)
    assert buzz(of(kind, models), "noise", 1.) < training + .06


@pytest.fixture(scope="module")
def steady():
    "A model of steady coloured noise: whatever varies within a hop is the program's own."
    coloured = lfilter([1], [1, -1.2, .6], noise(12., 1, .05))
    return SpectralStateGuidedSynthesis(8).train(coloured, n_em_iterations=5)


# at fidelity 1 all excitations are the recording
@pytest.mark.parametrize("fidelity,excitation", [*((f, name) for f in FIDELITIES[:2]
                                                   for name in EXCITATIONS), (1., "noise")])
def test_a_hop_ends_as_loud_as_it_begins(steady, fidelity, excitation):
    how = {"fidelity": fidelity, "excitation_type": excitation, "dtype": float}
    seconds = 30. if excitation == "Wavelet" else 15.  # which flickers
    sound = np.concatenate([steady.generate(seconds, seed=seed, **how) for seed in range(3)])
    power = (sound[:len(sound)//HOP*HOP].reshape(-1, 8, HOP//8)**2).mean((0, 2))
    assert np.abs(power/power.mean() - 1).max() < .05
    assert modulation_index(sound, RATE, RATE/HOP) < .05


# ---- 3: no gain in the model. Loudness spread 1.5 to 2.3 dB where training has 6.5

@each_kind
@pytest.mark.parametrize("excitation", ["Karplus-Strong", "noise"])
def test_loudness_varies_as_in_training(kind, models, sounds, excitation):
    model, training = of(kind, models), loudness_spread(np.concatenate(of(kind, sounds)), RATE)
    made = [model.generate(40., excitation_type=excitation, seed=seed) for seed in range(6)]
    assert abs(loudness_spread(np.concatenate(made), RATE) - training) < 1.5


@each_kind
@pytest.mark.parametrize("excitation", ["Karplus-Strong", "noise"])
def test_long_term_spectrum_is_that_of_training(kind, models, sounds, excitation):
    model, training = of(kind, models), np.concatenate(of(kind, sounds))
    made = [model.generate(10., excitation_type=excitation, seed=seed) for seed in range(8)]
    def far(sound): return long_term_spectral_distance(training, sound, RATE)
    # ten seconds of music, made or real, are one or two pieces and not the average of all
    if kind == "speech": assert np.mean([far(o) for o in made]) < 3
    assert far(np.concatenate(made)) < 3


def test_loudness_of_states_is_heard(model):
    made = model.generate(40., seed=0)
    level = np.log(np.sqrt((made[:len(made)//HOP*HOP].reshape(-1, HOP)**2).mean(1)) + 1e-6)[2:]
    asked = model.state_means[path_of(model, len(level) + 2, seed=0), -1]
    assert np.corrcoef(asked[2:], level)[0, 1] > .8


# ---- 4: an inert fidelity knob. 0.5 measured as 0, 1 reconstructed nothing

@each_kind
def test_each_fidelity_is_another_sound_and_one_is_the_recording(kind, models, sounds):
    model, source = of(kind, models), of(kind, sounds)[0]
    seconds = len(source)/RATE
    made = {f: model.generate(seconds, fidelity=f, path="replay", seed=0) for f in FIDELITIES}
    far = {f: log_spectral_distance(source, sound, RATE) for f, sound in made.items()}
    assert far[0] - 1 > far[.5] > far[1] + 1 and far[1] < .01
    for f in (0, 1): assert log_spectral_distance(made[f], made[.5], RATE) > 1
    alike = {f: np.corrcoef(sound, source)[0, 1] for f, sound in made.items()}
    assert alike[1] > .999999 and alike[.5] > .3 and abs(alike[0]) < .15
    replayed = model.generate(2., fidelity=1., path="replay")
    np.testing.assert_array_equal(model.generate(2., fidelity=1., seed=3), replayed)


@each_kind
@pytest.mark.parametrize("fidelity", FIDELITIES[:2])
def test_synthetic_and_real_excitation_are_equally_loud(kind, fidelity, models, sounds):
    "They differed by 24.7 dB."
    model, source = of(kind, models), np.concatenate(of(kind, sounds))[:25*RATE]

    def level(x): return 20*np.log10(np.sqrt(np.mean(np.square(x))))
    how = {"fidelity": fidelity, "path": "replay", "seed": 0}
    for excitation in EXCITATIONS:
        made = model.generate(25., excitation_type=excitation, **how)
        assert abs(level(made) - level(source)) < 4, excitation


def test_succession_follows_training_with_the_probability_of_fidelity(model):
    for fidelity in (.2, .5, .9):
        plan, last = model.stream(fidelity, seed=0).plan, model.recordings.last
        frames = np.array([frame for _, frame, _ in islice(plan, 4000)])
        follows = (np.diff(frames) == 1)[~last[frames[:-1]]].mean()
        assert fidelity - .03 < follows < fidelity + .15
        # nothing follows the last frame of a recording, so nothing jumps there
        assert not last[frames[1:]][np.diff(frames) != 1].any()


# ---- 9: adaptation forgets. 20 times 1 s of training audio: mean self-transition from 0.76 to 0.51

@pytest.mark.parametrize("kind,minimal", [("speech", True), (MUSIC, False), (MUSIC, True)])
def test_twenty_adaptations_to_what_is_known_change_little(kind, minimal, models, sounds, tmp_path):
    trained = of(kind, models)
    path = trained.save_checkpoint(tmp_path/"m", include_training_artifacts=not minimal)
    model = SpectralStateGuidedSynthesis.load_checkpoint(path)
    before, second = np.diag(trained.transition_matrix).mean(), of(kind, sounds)[0][RATE:2*RATE]
    for _ in range(20): model.adapt_to_audio(second, memory_limit=500)
    # a second is not the whole: its own stays count, but nothing is forgotten
    assert abs(np.diag(model.transition_matrix).mean() - before) < .05
    assert np.isfinite(model.generate(2., fidelity=.5, seed=0)).all()


# ---- 13: pitch

@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_another_sample_rate_is_the_same_sound(model, rate):
    both = (model.generate(3., o, seed=2, dtype=float) for o in (RATE, rate))
    at_16, made = (o.astype(np.float32) for o in both)
    assert len(made) == 3*rate

    def low(x): return resample(resample(x, RATE, 7000), 7000, RATE)[2000:40_000]  # both hold it
    again = resample(made, rate, RATE)[:len(at_16)]
    assert np.corrcoef(low(again), low(at_16[:len(again)]))[0, 1] > .99
