"What an SSGS model makes: exactness at fidelity 1, stability, streams, paths and previews."
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from audiolab.audio import resample
from audiolab.measure import log_spectral_distance, pole_radius
from audiolab.ssgs import (
    SpectralStateGuidedSynthesis, analyse, lattice_synthesis, lsf_to_lpc,
    lsf_to_parcor, stationary_distribution,
)

from ssgs_models import KINDS, RATE, level, noise, of


@pytest.fixture(scope="module")
def corpora(ssgs_corpora): return ssgs_corpora


@pytest.fixture(scope="module")
def sounds(ssgs_sounds): return ssgs_sounds


@pytest.fixture(scope="module")
def trained(ssgs_trained): return ssgs_trained


@pytest.fixture(scope="module")
def model(ssgs_trained): return ssgs_trained["instruments"]


@pytest.fixture
def fresh(model, tmp_path):
    "A model of one's own, to be changed."
    return SpectralStateGuidedSynthesis.load_checkpoint(model.save_checkpoint(tmp_path/"own"))


# ---- exactness at fidelity 1

@KINDS
def test_replay_at_fidelity_one_is_the_recording(kind, trained, sounds):
    model, audio = of(kind, trained), of(kind, sounds)
    whole, seconds = np.concatenate(audio), sum(map(len, audio))/RATE
    for dtype, limit in ((np.float32, 1e-6), (np.float64, 1e-10)):
        for excitation in ("Karplus-Strong", "residual"):
            made = model.generate(2*seconds, fidelity=1., excitation_type=excitation, dtype=dtype,
                                  path="replay")
            # the lattice starts afresh at each, so that no end can disturb a beginning; each
            # begins where the one before it ends: an album does not drift
            assert np.abs(made - np.tile(whole, 2)).max() < limit


@pytest.mark.usefixtures("quick_measures")
@pytest.mark.parametrize("order,hop,frame,rate", [(2, 64, 256, 8000), (12, 256, 1024, 16000),
                                                  (24, 100, 700, 22050), (46, 512, 2048, 44100)])
def test_exact_at_other_settings_and_after_loading(order, hop, frame, rate, tmp_path):
    audio = [noise(.4, 1) + .3*np.sin(np.arange(round(.4*RATE))/9).astype(np.float32),
             noise(.3, 2, .01)]
    model = SpectralStateGuidedSynthesis(3, order, frame, hop).train(audio, rate, 2)
    loaded = SpectralStateGuidedSynthesis.load_checkpoint(model.save_checkpoint(tmp_path/"full"))
    for one in (model, loaded):
        learnt = np.concatenate([o.audio for o in one.recordings.frames])
        assert np.abs(learnt - np.concatenate(audio)).max() < 2**-23  # sound is learnt at 24 bits
        made = one.generate(len(learnt)/rate, rate, 1., dtype=float, path="replay")
        assert np.abs(made - learnt).max() < 1e-10
    np.testing.assert_array_equal(model.generate(.5, fidelity=.5, seed=1),
                                  loaded.generate(.5, fidelity=.5, seed=1))


@KINDS
def test_distance_to_the_source_falls_with_fidelity(kind, sounds):
    source = of(kind, sounds)[0]
    model = SpectralStateGuidedSynthesis(16).train(source, n_em_iterations=5)
    for excitation, seed in itertools.product(("Karplus-Strong", "noise", "harmonic"), range(2)):
        far = [log_spectral_distance(source, model.generate(len(source)/RATE, fidelity=f,
                                                            path="replay",
                                                            excitation_type=excitation, seed=seed),
                                     RATE) for f in (0, .25, .5, .75, 1)]
        assert (np.diff(far) < -.1).all() and far[-1] < .01, far


def test_fourth_order_resonator_is_recovered():
    poles = np.array([.9*np.exp(.3j*np.pi), .8*np.exp(.7j*np.pi)])
    a = np.poly(np.r_[poles, poles.conj()]).real
    for seed in range(3):
        sound = lfilter([1], a, .05*np.random.default_rng(seed).standard_normal(10*RATE))
        assert np.abs(SpectralStateGuidedSynthesis(1, 4).train(sound,
                                                               n_em_iterations=3).state_lpc[0]
                      - a[1:]).max() < .02


# ---- stability

@KINDS
def test_filter_keeps_the_level_of_its_excitation_on_shuffled_frames(kind, trained):
    model = of(kind, trained)
    rng = np.random.default_rng(0)
    parcor = lsf_to_parcor(rng.permutation(np.concatenate([o.lsf for o in model.frames])))
    excitation = rng.standard_normal((len(parcor) - 1)*256)
    assert abs(level(lattice_synthesis(excitation, parcor, np.zeros(len(parcor))))
               - level(excitation)) < 1


@pytest.mark.parametrize("hop", [1, 16, 256])
def test_filter_keeps_its_level_when_coefficients_jump_at_random(hop):
    rng = np.random.default_rng(hop)
    parcor = rng.uniform(-.999, .999, (200_000//hop, 18))
    excitation = rng.standard_normal((len(parcor) - 1)*hop)
    assert abs(level(lattice_synthesis(excitation, parcor, np.zeros(len(parcor)), hop))
               - level(excitation)) < 1


T = np.arange(2*RATE)
HOSTILE = {
    "silence": 0*T, "constant": .7 + 0*T, "sine": np.sin(.4*T), "quiet sine": 1e-5*np.sin(.4*T),
    "Nyquist": (-1.)**T, "clipped": np.clip(9*np.sin(.03*T), -1, 1), "clicks": (T % 997 == 0)*1.,
    "one click": (T == 20_000)*1., "denormal": 1e-310*np.sin(T), "loud": 1e4*np.sin(.2*T),
    "two tones": np.sin(.1*T) + np.sin(.1001*T), "sawtooth": (T % 100)/50 - 1,
    "half silent": np.where(T < RATE, 0, .5*np.sin(.3*T)),
    "noise": np.random.default_rng(0).standard_normal(2*RATE), "step": (T > RATE)*1.}


@pytest.mark.usefixtures("quick_measures")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_sound_gives_stable_filters_and_finite_sound(name):
    audio = np.asarray(HOSTILE[name], np.float32)
    model = SpectralStateGuidedSynthesis(6).train(audio, n_em_iterations=3)
    assert (pole_radius(model.lpc_coefficients) < 1).all()
    assert (pole_radius(model.state_lpc) < 1).all()
    assert (pole_radius(lsf_to_lpc(analyse(audio, RATE)[0])) < 1).all()
    peak = np.abs(audio).max() + 1e-4
    # every transition there is
    tour = [k for pair in itertools.permutations(range(6), 2) for k in pair]
    for sound in (model.generate(3., seed=0), model.generate(3., fidelity=.5, seed=0),
                  model.generate(states=tour, seed=0),
                  model.render_preview(8, state_sequence=tour)[0]*peak):
        assert np.isfinite(sound).all() and np.abs(sound).max() < 30*peak


# ---- streams

CUTS = st.lists(st.integers(1, 30_000), min_size=1, max_size=6)


@settings(max_examples=25)
@given(CUTS,
       st.sampled_from([dict(), dict(fidelity=.5), dict(fidelity=1.),
                        dict(fidelity=.3, path="replay"), dict(excitation_type="Wavelet"),
                        dict(excitation_type="residual", fidelity=.7), dict(states=[0, 3, 5])]),
       st.sampled_from([None, 8000, 22050, 48000]))
def test_pieces_of_any_length_make_the_whole(model, cuts, how, rate):
    whole = model.generate(sum(cuts)/(rate or RATE), rate or RATE, seed=4, dtype=float, **how)
    stream = model.stream(sample_rate=rate, seed=4, **how)
    np.testing.assert_array_equal(np.concatenate([stream.read(n) for n in cuts]), whole)


def test_stream_of_nothing_and_of_single_samples(model):
    stream = model.stream(seed=1)
    assert stream.read(0).shape == (0,)
    np.testing.assert_array_equal(np.concatenate([stream.read(1) for _ in range(300)]),
                                  model.stream(seed=1).read(300))


@pytest.mark.parametrize("rate", [8000, 11025, 44100])
def test_length_follows_the_rate(model, rate):
    for seconds in (.01, .5, 1.234):
        assert len(model.generate(seconds, rate, seed=0)) == round(seconds*rate)
    assert model.generate(.1, seed=0).dtype == np.float32
    assert abs(np.abs(model.generate(1., seed=0, peak=.5)).max() - .5) < 1e-6


# ---- paths

def test_given_states_are_followed_and_the_last_is_held(model):
    stream = model.stream(states=[4, 4, 2, 9], seed=0)
    stream.read(50*256)
    assert stream.states[:50] == [4, 4, 2] + 47*[9]
    assert len(model.generate(states=[1, 2, 3], seed=0)) == 3*256
    stream = model.stream(.9, states=[4]*20 + [2]*20, seed=0)
    stream.read(40*256)
    assert stream.states[:40] == [4]*20 + [2]*20
    members = model.recordings.states[stream.frames[:40]]
    # real frames come from the state that was asked for
    assert (members == stream.states[:40]).all()


def test_given_states_decide_the_loudness(model):
    loud, quiet = int(model.state_means[:, -1].argmax()), int(model.state_means[:, -1].argmin())
    assert level(model.generate(states=[loud]*60, seed=0)) > level(
        model.generate(states=[quiet]*60, seed=0)) + 10


@pytest.mark.parametrize("states", [[], [16], [-1], [1.5], ["a"], [[1, 2]]])
def test_impossible_states_are_refused(model, states):
    with pytest.raises((ValueError, TypeError)): model.generate(states=states)


def test_guide_is_followed_state_by_state(model, sounds, corpora):
    guide = np.concatenate([o[:RATE]*gain for o, gain in zip(sounds["instruments"],
                                                             (1, .1, 1, .05, 1))])
    path = model.decode(guide)
    assert len(path) == -(-len(guide)//256) + 1
    made = model.generate(path="viterbi", guide=guide, seed=0)
    assert len(made) == len(guide)  # not whole frames
    np.testing.assert_array_equal(made, model.generate(states=path, seed=0)[:len(guide)])
    # what was made is heard as what was asked for
    assert np.mean(model.decode(made) == path) > 3*np.bincount(path).max()/len(path)/4
    def levels(x):
        blocks = x[:len(x)//4096*4096].reshape(-1, 4096)
        return np.log(np.sqrt((blocks**2).mean(1)) + 1e-3)
    assert np.corrcoef(levels(made[:len(guide)]), levels(guide))[0, 1] > .4
    assert len(model.generate(2., path="viterbi", guide=corpora["instruments"][1],
                              seed=0)) == 2*RATE
    assert np.mean(model.decode(resample(guide, RATE, 48000), 48000) == path) > .8
    for wrong in (dict(path="viterbi"), dict(guide=guide)):
        with pytest.raises(ValueError, match="guide"): model.generate(1., **wrong)


def test_replay_walks_through_the_recordings_in_order(model):
    stream = model.stream(0., path="replay", seed=0)
    n = len(model.recordings)
    stream.read(n*256)
    assert stream.frames[:n + 3] == [*range(n), 0, 1, 2]
    assert [t for t in range(n) if stream.fresh[t]] == model.recordings.offsets[:-1].tolist()


def test_temperature_makes_bolder_choices(model):
    def surprise(temperature):
        A = model.chain(temperature)
        off = np.where(np.eye(16, dtype=bool), 0, A)
        off = off/off.sum(1, keepdims=True)
        return -(off*np.log(np.maximum(off, 1e-300))).sum(1).mean()
    assert surprise(.25) < surprise(1.) - .2 < surprise(1.) < surprise(4.) - .2
    for temperature in (.1, 1., 10.):
        A = model.chain(temperature)
        np.testing.assert_allclose(A.sum(1), 1, atol=1e-9)
        # how long states last is no matter of taste
        np.testing.assert_allclose(np.diag(A), np.diag(model.transition_matrix), atol=1e-9)
    assert not np.array_equal(model.generate(1., seed=0, temperature=5.),
                              model.generate(1., seed=0))
    for wrong in (0, -1): 
        with pytest.raises(ValueError, match="temperature"): model.generate(1., temperature=wrong)


def states_of(stream, frames):
    "What a stream is about to play."
    return [state for state, *_ in itertools.islice(stream.plan, frames)]


def test_smoothness_prefers_small_steps(fresh):
    def step(weight):
        fresh.smoothness_weight = weight
        z = fresh.states.mean[:, :-2]/fresh.states.spread[:-2]
        path = np.array(states_of(fresh.stream(seed=0), 3000))
        path = path[np.r_[True, np.diff(path) != 0]]
        return np.linalg.norm(np.diff(z[path], axis=0), axis=1).mean()
    assert step(4.) < step(.5) < step(0.)*1.05


@pytest.mark.parametrize("fidelity", [0., .3, .8])
def test_forbidden_states_never_appear(fresh, fidelity):
    starts = [k for k in range(16) if fresh.initial_probabilities[k] > .1]
    for k in sorted({*starts, *fresh.states.occupancy.argsort()[-3:].tolist()}):
        allowed = np.ones((16, 16), bool)
        allowed[:, k] = False
        fresh.allowed_transitions = allowed
        for seed in range(3):
            path = states_of(fresh.stream(fidelity, seed=seed), 600)
            assert k not in path, (k, path.index(k), path.count(k))


def test_forbidden_transitions_never_happen(fresh):
    path = states_of(fresh.stream(seed=0), 3000)
    steps = np.zeros((16, 16), int)
    np.add.at(steps, (path[:-1], path[1:]), 1)
    np.fill_diagonal(steps, 0)
    allowed = np.ones((16, 16), bool)
    allowed[np.unravel_index(steps.argsort(axis=None)[-5:], (16, 16))] = False  # the five commonest
    fresh.allowed_transitions = allowed
    for fidelity in (0., .8):
        path = states_of(fresh.stream(fidelity, seed=0), 3000)
        pairs = np.array([path[:-1], path[1:]])
        pairs = pairs[:, pairs[0] != pairs[1]]
        assert allowed[pairs[0], pairs[1]].all(), fidelity
    fresh.allowed_transitions = None
    assert len(set(fresh.generate(1., seed=0))) > 100


def test_graph_constraints_keep_rare_states_out(fresh, tmp_path):
    found = fresh.identify_graph_constraints()
    assert found["removed_states"].size == 0 and fresh.allowed_transitions is None
    assert found["n_components"] >= 1
    np.testing.assert_allclose(found["stationary_distribution"]@fresh.transition_matrix,
                               found["stationary_distribution"], atol=1e-6)
    rare = np.sort(found["stationary_distribution"])[4]
    found = fresh.identify_graph_constraints(rare)
    assert len(found["removed_states"]) == 4
    again = SpectralStateGuidedSynthesis.load_checkpoint(fresh.save_checkpoint(tmp_path/"m"))
    for one in (fresh, again):
        assert not set(states_of(one.stream(seed=0), 2000)) & set(found["removed_states"].tolist())
        kept = np.setdiff1d(np.arange(16), found["removed_states"])
        share = one.states.occupancy[kept]/one.states.occupancy[kept].sum()
        # the others keep their share of the time
        np.testing.assert_allclose(stationary_distribution(one.chain())[kept], share, atol=.02)


@pytest.mark.parametrize("allowed", [np.ones((3, 3)), np.ones(16), np.eye(16, dtype=bool)])
def test_impossible_constraints_are_refused(fresh, allowed):
    with pytest.raises(ValueError, match="allowed_transitions|never be left"):
        fresh.allowed_transitions = allowed


def test_number_of_states_is_chosen_among_the_candidates(sounds):
    model = SpectralStateGuidedSynthesis(auto_n_states=True).train(sounds["instruments"],
                                                                   n_em_iterations=1)
    tried = [row["n_states"] for row in model.selection]
    assert tried == [8, 16, 24, 32, 34, 42]
    assert model.n_states == min(model.selection,
                                 key=lambda row: row["bic"])["n_states"] == len(model.hmm.means)
    few = SpectralStateGuidedSynthesis(auto_n_states=True).train(noise(.3), n_em_iterations=1)
    # 20 frames of noise need no more
    assert {row["n_states"] for row in few.selection} == {8, 16} and few.n_states == 8


# ---- previews

@pytest.mark.usefixtures("quick_measures")
def test_last_six_previews_are_kept(sounds):
    heard = []
    model = SpectralStateGuidedSynthesis(8, tolerance=-np.inf).train(
        sounds["instruments"][:2], n_em_iterations=8, preview_every=1, preview_duration_frames=16,
        preview_callback=heard.append)
    assert [o["iteration"] for o in heard] == [*range(1, 9)]
    assert [o["iteration"] for o in model.preview_snapshots] == [*range(3, 9)]
    assert all(o["audio"].shape == (16*256,) and o["sample_rate"] == RATE and o["frames"] == 16
               for o in heard)
    assert any((a["audio"] != b["audio"]).any() for a, b in zip(heard, heard[1:]))
    model.iterative_refinement(3, preview_every=2)
    assert [o["iteration"] for o in model.preview_snapshots][-1] == 10
    model.clear_preview_snapshots()
    assert model.preview_snapshots == []


@pytest.mark.usefixtures("quick_measures")
def test_failing_callback_is_a_warning(sounds):
    def fail(snapshot): raise RuntimeError("speaker unplugged")
    model = SpectralStateGuidedSynthesis(4)
    with pytest.warns(RuntimeWarning, match="speaker unplugged"):
        model.train(sounds["instruments"][0], n_em_iterations=2, preview_every=1,
                    preview_callback=fail)
    assert model.iteration == 2 and len(model.preview_snapshots) == 2


def test_preview_of_given_states(model):
    audio, rate = model.render_preview(10, state_sequence=[1, 2])
    assert rate == RATE and audio.shape == (2560,) and np.abs(audio).max() <= .9001
    audio, rate = model.render_preview(10, 8000)
    assert rate == 8000 and audio.shape == (1280,)
    np.testing.assert_array_equal(audio, model.render_preview(10, 8000)[0])
