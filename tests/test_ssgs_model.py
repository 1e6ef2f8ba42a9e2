"The SSGS model as its users see it: the interface, wrong input, training step by step."
import inspect

import numpy as np
import pytest
import torch

from audiolab.audio import AudioError, resample, write_audio
from audiolab.measure import occupancy_entropy
from audiolab.ssgs import (
    EXCITATIONS, SpectralStateGuidedSynthesis,
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


# ---- the interface

NO = inspect.Parameter.empty
PREVIEWS = dict(preview_every=0, preview_duration_frames=32, preview_callback=None)
SPACE = dict(k=5, feature_space="lpc", normalize=True, include_metadata=True)
# every method of SSGS 1.x and its defaults. Deliberately different: the order of prediction
# follows the sample rate, and checkpoints keep float64, so that resuming is exact.

# checkpoints keep float64, so that resuming is exact.
INTERFACE = {
    "__init__": dict(n_states=34, lpc_order=None, frame_size=1024, hop_size=256,
                     smoothness_weight=.5, auto_n_states=False, adaptive_memory_limit=6000),
    "extract_features": dict(audio_signal=NO, sample_rate=16000),
    "extract_features_from_files": dict(audio_files=NO, sample_rate=16000),
    "initialize_hmm_parameters": {}, "run_em_iteration": {},
    "iterative_refinement": dict(n_iterations=10) | PREVIEWS,
    "identify_graph_constraints": dict(min_state_probability=1e-4),
    "train": dict(audio_signal=NO, sample_rate=16000, n_em_iterations=10),
    "adapt_to_audio": dict(audio_signal=NO, sample_rate=16000, adaptation_rate=.25,
                           stability_bias=.05, memory_blend=.7, memory_limit=None,
                           n_adaptation_iterations=1),
    "generate": dict(sample_rate=None, fidelity=0., excitation_type="Karplus-Strong", rng=None,
                     seed=None),
    "synthesize_audio": dict(target_duration_seconds=NO),
    "render_preview": dict(n_frames=32, sample_rate=None, state_sequence=None),
    "clear_preview_snapshots": {},
    "build_feature_index": dict(feature_space="lpc", normalize=True),
    "query_similar_frames": dict(frame_idx=NO) | SPACE,
    "query_frames_by_features": dict(vector=NO) | SPACE,
    "search_by_feature_vector": dict(vector=NO) | SPACE,
    "get_frame_metadata": dict(key=None, indices=None),
    "top_frames": dict(metric=NO, k=10, descending=True),
    "export_model": dict(filepath=NO, use_compression=True, precision=np.float32,
                         pack_covariances=True, include_training_artifacts=False,
                         include_adaptive_statistics=True),
    "load_model": dict(filepath=NO),
    "save_checkpoint": dict(filepath=NO, precision=np.float64, include_training_artifacts=True,
                            include_adaptive_statistics=True),
    "load_checkpoint": dict(filepath=NO),
}
POSITIONAL = {"generate": ["duration_seconds", "sample_rate", "fidelity", "excitation_type", "rng",
                           "seed"], "iterative_refinement": ["n_iterations"],
              "train": ["audio_signal", "sample_rate", "n_em_iterations"],
              "query_similar_frames": ["frame_idx"], "top_frames": ["metric"],
              "__init__": list(INTERFACE["__init__"])}


@pytest.mark.parametrize("name", INTERFACE)
def test_interface(name):
    parameters = inspect.signature(getattr(SpectralStateGuidedSynthesis, name)).parameters
    for key, default in INTERFACE[name].items(): assert parameters[key].default == default, key
    places = [k for k, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD and k != "self"]
    assert places[:len(POSITIONAL.get(name, ()))] == POSITIONAL.get(name, [])
    required = {k for k, p in parameters.items() if p.default is NO
                and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} - {"self"}
    assert required <= set(INTERFACE[name])


def test_shapes(model, sounds):
    frames = sum(-(-len(o)//256) + 1 for o in sounds["instruments"])
    assert model.transition_matrix.shape == (16, 16) and model.initial_probabilities.shape == (16,)
    assert model.state_means.shape == (16, 19) and model.state_covariances.shape == (16, 19, 19)
    assert model.state_lpc.shape == (16, 18)
    assert model.lpc_coefficients.shape == (frames, 18)
    assert model.residual_signals.shape == (frames, 256)
    np.testing.assert_allclose(model.transition_matrix.sum(1), 1, atol=1e-12)
    assert repr(model) and repr(SpectralStateGuidedSynthesis())


def test_training_step_by_step_equals_train(model, sounds):
    steps = SpectralStateGuidedSynthesis(16)
    lpc, residual = steps.extract_features(sounds["instruments"], RATE)
    steps.initialize_hmm_parameters()
    first = steps.run_em_iteration()
    last = steps.iterative_refinement(4)
    same_parameters(steps, model)
    assert len(first) == 3 and last[0] > first[0] and 0 < last[1] <= np.log(16) and last[2] >= 0
    assert lpc.shape[1] == 18 and abs(np.sqrt((residual**2).mean()) - 1) < .5
    assert steps.history == model.history
    assert [row["iteration"] for row in steps.history] == list(range(1, 6))


def test_files_and_arrays_of_all_sorts_train_the_same(corpora, sounds, model):
    files, audio = corpora["instruments"], sounds["instruments"]
    for material in (files, [str(f) for f in files], tuple(files),
                     [torch.from_numpy(o) for o in audio], [o.astype(float) for o in audio],
                     (o for o in audio)):
        same_parameters(SpectralStateGuidedSynthesis(16).train(material, n_em_iterations=5), model)
    one = SpectralStateGuidedSynthesis(4).train(audio[0], n_em_iterations=2)
    first = audio[0]
    for material in (files[0], str(files[0]), [first], first.tolist(), torch.from_numpy(first)):
        again = SpectralStateGuidedSynthesis(4).train(material, n_em_iterations=2)
        same_parameters(again, one)
    by_files = SpectralStateGuidedSynthesis(4)
    assert len(by_files.extract_features_from_files(files, RATE)[0]) == len(model.lpc_coefficients)


# ---- wrong input

@pytest.mark.parametrize("audio,message", [(np.zeros(0), "at least one sample"), ([], "no audio"),
                                           (np.full(4000, np.nan), "NaN"),
                                           (np.r_[np.zeros(4000), np.inf], "NaN or infinite"),
                                           (np.zeros((2, 4000)), "mono"),
                                           ([np.zeros((2, 4000))], "mono"),
                                           (["nowhere/a.wav"], "a.wav"), ("nowhere/a.wav", "a.wav"),
                                           ([np.zeros(4000), np.zeros(0)], "audio 1"),
                                           (np.array(["a", "b"]), "could not convert|audio"),
                                           ({}, "no audio"), ], ids=range(11))
@pytest.mark.parametrize("act", ["train", "extract_features", "adapt_to_audio", "attach_audio",
                                 "decode"])
def test_wrong_audio_is_refused_by_name(fresh, audio, message, act):
    with pytest.raises((ValueError, AudioError), match=message): getattr(fresh, act)(audio)


def test_file_that_is_not_audio_is_named(tmp_path):
    (tmp_path/"text.wav").write_text("hello")
    with pytest.raises(AudioError, match="text.wav"):
        SpectralStateGuidedSynthesis(2).train([tmp_path/"text.wav"])


@pytest.mark.parametrize("wrong", [dict(n_states=0), dict(n_states=-1), dict(n_states=2.5),
                                   dict(lpc_order=1), dict(lpc_order=-4), dict(lpc_order=2.5),
                                   dict(frame_size=0), dict(hop_size=0), dict(hop_size=2048),
                                   dict(smoothness_weight=-1), dict(smoothness_weight=np.nan),
                                   dict(adaptive_memory_limit=0), dict(dtype="int8"),
                                   dict(mode="magic"), dict(n_states=np.nan), dict(lpc_order=0)])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))): SpectralStateGuidedSynthesis(**wrong)


def test_more_states_than_frames():
    with pytest.raises(ValueError, match="11 frames cannot fill 34 states"):
        SpectralStateGuidedSynthesis().train(noise(.16))


def test_untrained_model_says_so(tmp_path):
    empty = SpectralStateGuidedSynthesis()
    for act in (lambda: empty.generate(1.), lambda: empty.save_checkpoint(tmp_path/"m"),
                lambda: empty.export_model(tmp_path/"m"), lambda: empty.adapt_to_audio(noise(1.)),
                lambda: empty.decode(noise(1.)), lambda: empty.transition_matrix,
                lambda: empty.identify_graph_constraints(), lambda: empty.render_preview(),
                lambda: empty.initialize_hmm_parameters(), lambda: empty.run_em_iteration(),
                lambda: empty.top_frames("energy"), lambda: empty.build_feature_index(),
                lambda: empty.lpc_coefficients):
        with pytest.raises(ValueError, match="train|no training audio"): act()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "how,message", [(dict(fidelity=-.1), "fidelity"), (dict(fidelity=1.1), "fidelity"),
                    (dict(fidelity=np.nan), "fidelity"), (dict(path="astar"), "path"),
                    (dict(sample_rate=0), "sample_rate"),
                    (dict(sample_rate=-16000), "sample_rate"),
                    (dict(duration_seconds=0), "duration_seconds"),
                    (dict(duration_seconds=-1), "duration_seconds"),
                    (dict(duration_seconds=np.nan), "duration_seconds"),
                    (dict(duration_seconds=np.inf), "duration_seconds"),
                    (dict(duration_seconds=None), "duration_seconds"), ], ids=str)
def test_wrong_requests_are_refused(model, how, message):
    with pytest.raises(ValueError, match=message): model.generate(**dict(duration_seconds=.1) | how)


def test_unknown_excitation_lists_the_names(model):
    for wrong in ("trumpet", "", None):
        with pytest.raises(ValueError) as error: model.generate(.1, excitation_type=wrong)
        assert all(name in str(error.value) for name in EXCITATIONS)
    np.testing.assert_array_equal(model.generate(.1, excitation_type="karplus-strong", seed=0),
                                  model.generate(.1, seed=0))


def test_wrong_training_requests(fresh):
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="n_iterations"): fresh.iterative_refinement(wrong)
    for rate in (0, -1):
        with pytest.raises(ValueError, match="sample_rate"): fresh.train(noise(1.), rate)
    with pytest.raises(ValueError, match="resample"): fresh.attach_audio(noise(1.), 8000)


@pytest.mark.usefixtures("quick_measures")
@pytest.mark.parametrize("audio", [np.zeros(RATE), np.full(RATE, .5), np.array([.3]), np.zeros(1),
                                   noise(.05)], ids=["silence", "constant", "one sample",
                                                     "one zero", "50 ms"])
def test_what_little_there_is_can_be_learnt(audio, tmp_path):
    model = SpectralStateGuidedSynthesis(2).train(audio, n_em_iterations=3)
    made = model.generate(.5, fidelity=1., dtype=float)
    assert np.abs(made[:len(audio)] - audio[:len(made)]).max() < 1e-6
    loaded = SpectralStateGuidedSynthesis.load_checkpoint(model.save_checkpoint(tmp_path/"m"))
    for fidelity in (0., .5):
        assert np.isfinite(loaded.generate(.5, fidelity=fidelity, seed=0)).all()
    loaded.adapt_to_audio(audio)
    loaded.iterative_refinement(1)
    loaded.export_model(tmp_path/"m.npz")
    assert np.abs(model.generate(1., seed=0)).max() < 1e-3 if not audio.any() else True


def test_occupancy_of_a_long_walk_is_that_of_training(model):
    stream = model.stream(seed=0)
    stream.read(20_000*256)
    share = np.bincount(stream.states, minlength=16)/len(stream.states)
    assert np.abs(share - model.states.occupancy).sum() < .25
    assert abs(
        occupancy_entropy(stream.states, 16) - occupancy_entropy(model.recordings.states, 16)) < .15


@pytest.mark.parametrize("sound", [(noise(.2)*32767).astype(np.int16), torch.arange(4000),
                                   [0, 1, 2, 3]*1000], ids=["int16", "tensor", "list"])
def test_whole_numbers_are_refused_with_the_remedy(model, sound):
    for use in (SpectralStateGuidedSynthesis(4).train, model.decode, model.attach_audio):
        with pytest.raises(ValueError, match="32768"): use(sound)


def test_files_adapt_a_model_of_another_rate_at_its_own(tmp_path):
    rate = 44100
    sound = np.random.default_rng(0).standard_normal(rate).astype(np.float32)*.1
    model = SpectralStateGuidedSynthesis(4).train(sound, rate, n_em_iterations=1)
    file = write_audio(tmp_path/"noise.wav", sound, rate, subtype="FLOAT")
    model.adapt_to_audio(file, memory_blend=0.)
    # not through 16 kHz and back
    np.testing.assert_allclose(model.material.waveforms[-1],
                               sound[:len(model.material.waveforms[-1])], rtol=0, atol=2**-23)
    assert len(model.decode(sound[:8820], rate)) == len(
        model.decode(resample(sound[:8820], rate, 16000), 16000))


def test_the_shortest_sound_is_one_sample(model): assert len(model.generate(1e-9, peak=.5)) == 1


def test_training_anew_forgets_which_transitions_the_old_states_were_allowed():
    model = SpectralStateGuidedSynthesis(6).train(noise(2.), n_em_iterations=1)
    model.allowed_transitions = np.roll(np.eye(6, dtype=bool), 1, 1)
    model.n_states = 4
    model.train(noise(2., 1), n_em_iterations=1)
    assert model.allowed_transitions is None and len(model.generate(.2)) == 3200


def test_a_loaded_model_tells_as_many_frames_as_the_trained_one(model, tmp_path):
    path = model.save_checkpoint(tmp_path/"full")
    assert repr(SpectralStateGuidedSynthesis.load_checkpoint(path)) == repr(model)
