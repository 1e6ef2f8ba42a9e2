"One test, at least, for each way in which SSGS 1.1 cost too much, left things to chance or talked."
import ast
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ssgs_sounds import HOP, MUSIC, RATE, music, noise, same_parameters, small_model

import audiolab.ssgs
from audiolab.ssgs import SpectralStateGuidedSynthesis


@pytest.fixture(scope="module")
def sounds(tmp_path_factory): return {MUSIC: music(tmp_path_factory.mktemp("music"))}


@pytest.fixture
def small(sounds):
    "A model of one's own."
    return small_model(sounds)


# ---- 12: cost. T x K x K arrays, loops over frames, a search through all for each frame made

def cpu(act, times=3):
    best = np.inf
    for _ in range(times):
        start = time.process_time()
        act()
        best = min(best, time.process_time() - start)
    return best


def test_generation_does_not_search_through_all_frames(sounds):
    piece = np.concatenate(sounds[MUSIC])[:10*RATE]
    seconds = []
    for copies in (1, 8):
        audio = [piece*gain for gain in np.linspace(1, .3, copies, dtype=np.float32)]
        model = SpectralStateGuidedSynthesis(4).train(audio, n_em_iterations=1)
        model.generate(1., fidelity=.3, seed=0)
        seconds.append(cpu(lambda model=model: model.generate(10., fidelity=.3, seed=0)))
    # few states, hence many frames in each: a search would cost 8 times
    assert seconds[1] < 3*seconds[0]


def test_choosing_a_frame_looks_at_a_bounded_number(sounds, monkeypatch):
    music = np.concatenate(sounds[MUSIC])
    model = SpectralStateGuidedSynthesis(1).train(music, n_em_iterations=1)
    looked = []

    class Counted(np.ndarray):
        def __getitem__(self, at):
            if isinstance(at, np.ndarray): looked.append(len(at))
            return np.asarray(super().__getitem__(at))
    recordings = model.recordings
    monkeypatch.setattr(recordings, "z", recordings.z.view(Counted))
    model.generate(5., fidelity=.2, seed=0)
    assert len(recordings) > 2000 and len(looked) > 100 and max(looked) <= 1000


def python_calls(act):
    "How many Python functions are called."
    count = 0

    def note(frame, event, arg):
        nonlocal count
        count += event == "call"
    sys.setprofile(note)
    try: act()
    finally: sys.setprofile(None)
    return count


def test_analysis_and_training_have_no_python_loop_over_frames():
    def learn(seconds):
        model, audio = SpectralStateGuidedSynthesis(4), noise(seconds)

        def train():
            model.initialize_hmm_parameters()
            model.run_em_iteration()
        return python_calls(lambda: model.extract_features(audio)), python_calls(train)
    learn(1.)
    analysis, training = zip(learn(8.), learn(64.))
    assert analysis[1] < 1.2*analysis[0] + 20
    assert training[1] < training[0] + 1750  # 3500 frames more; k-means may take a few more rounds


MEMORY = """
import resource, sys
import numpy as np
from audiolab.ssgs import SpectralStateGuidedSynthesis
rng = np.random.default_rng(0)
def learn(seconds, n_states):
    model = SpectralStateGuidedSynthesis(n_states, 8)
    sounds = [rng.standard_normal(16000*10).astype(np.float32)*.1 for _ in range(seconds//10)]
    model.extract_features_from_files(sounds)
    model.initialize_hmm_parameters()
    model.run_em_iteration()
learn(10, 8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
learn(240, 64)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, file=sys.stderr)
"""


# ---- 13: chance, talk, pitch

FRESH = """
import hashlib, json, sys
import numpy as np
from audiolab.ssgs import SpectralStateGuidedSynthesis
np.random.seed(int(sys.argv[1]))
t = np.arange(32000)/16000
tone = .3*np.sin(2*np.pi*220*t)*np.exp(-3*t)
hiss = [.02*np.random.default_rng(i).standard_normal(len(t)) for i in range(3)]
audio = [(tone + o).astype(np.float32) for o in hiss]
model, out = SpectralStateGuidedSynthesis(8, mode=sys.argv[2]), {}
def digest(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(o).tobytes() for o in arrays)).hexdigest()
def parameters():
    return digest(model.hmm.initial, model.hmm.transition, model.hmm.means, model.hmm.covariances)
model.train(audio, n_em_iterations=3, preview_every=1)
out["training"] = parameters()
out["previews"] = digest(*(o["audio"] for o in model.preview_snapshots))
for kind in ("Karplus-Strong", "Wavelet", "noise", "harmonic", "residual"):
    for fidelity in (0., .5):
        made = model.generate(1., fidelity=fidelity, excitation_type=kind, seed=5)
        out[f"{kind} {fidelity}"] = digest(made)
out["other rate"] = digest(model.generate(1., 44100, seed=5))
model.adapt_to_audio(audio[0][:16000])
out["adaptation"] = parameters()
model.adapt_to_audio(audio[1][:16000], memory_limit=50)
out["memory of sound"] = digest(model.generate(1., fidelity=.9, seed=1))
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def child():
    "What another process says: its digests, and how much memory training took there (bytes)."
    command = [sys.executable, "-W", "ignore", "-c", MEMORY + FRESH, "1", "incremental"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout), int(done.stderr.split()[-1])*1024


def test_training_makes_no_array_of_frames_by_states_by_states(child):
    frames = 240*RATE//HOP
    # half of one such array in float32, for everything: sound, frames and training
    assert child[1] < .5*frames*64*64*4


def test_every_process_gives_the_same_bits(child, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["", "2", "incremental"])
    exec(compile(FRESH, "fresh", "exec"), {})
    here = json.loads(capsys.readouterr().out)
    assert child[0] == here and len(set(here.values())) == len(here)


def test_seeds_decide_everything_and_global_generators_nothing(sounds):
    audio = sounds[MUSIC][:3]
    np.random.seed(7)
    state = np.random.get_state()[1].copy()

    def train(seed):
        model = SpectralStateGuidedSynthesis(12, seed=seed)
        return model.train(audio, n_em_iterations=3, preview_every=1)
    one, same, other = train(1), train(1), train(2)
    same_parameters(one, same)
    assert not np.array_equal(one.hmm.means, other.hmm.means)
    for a, b in zip(one.preview_snapshots, same.preview_snapshots):
        np.testing.assert_array_equal(a["audio"], b["audio"])
    made = same.generate(1., seed=3)
    np.testing.assert_array_equal(one.generate(1., seed=3), made)
    np.testing.assert_array_equal(one.generate(1., rng=np.random.default_rng(3)), made)
    assert not np.array_equal(one.generate(1., seed=3), one.generate(1., seed=4))
    assert not np.array_equal(one.generate(1.), one.generate(1.))
    for model in (one, same): model.adapt_to_audio(noise(1.), memory_limit=100)
    same_parameters(one, same)
    made, again = (o.generate(1., fidelity=.5, seed=0) for o in (one, same))
    np.testing.assert_array_equal(made, again)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("fidelity", [0., .6])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_pitch_does_not_depend_on_the_sample_rate(rate, fidelity):
    t = np.arange(4*RATE)/RATE
    tone = sum(np.sin(2*np.pi*200*k*t)/k for k in range(1, 20))*.1 + noise(4., 1, .002)
    model = SpectralStateGuidedSynthesis(3).train(tone, n_em_iterations=3)
    made = model.generate(3., rate, fidelity=fidelity, excitation_type="harmonic", seed=0)
    spectrum = np.abs(np.fft.rfft(made*np.hanning(len(made))))
    frequency = np.fft.rfftfreq(len(made), 1/rate)
    band = (frequency > 120) & (frequency < 290)
    assert abs(frequency[band][spectrum[band].argmax()] - 200) < 4


def test_the_library_does_not_print(capsys, small, tmp_path, sounds):
    small.identify_graph_constraints()
    small.adapt_to_audio(noise(1.))
    loaded = SpectralStateGuidedSynthesis.load_checkpoint(small.save_checkpoint(tmp_path/"m"))
    loaded.generate(.5, fidelity=.5, seed=0)
    small.export_model(tmp_path/"m.npz")
    small.query_similar_frames(3)
    automatic = SpectralStateGuidedSynthesis(auto_n_states=True)
    automatic.train(noise(2.), n_em_iterations=2, preview_every=1)
    assert capsys.readouterr().out == ""


ROOM = Path(audiolab.ssgs.__file__).parent
SHELL = {"commands.py", "demos.py", "verification.py"}  # what the shell shows is printed
SOURCES = sorted(path for path in ROOM.glob("*.py") if path.name not in SHELL)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_no_print_in_the_source(path):
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    assert not [node.lineno for node in calls if getattr(node.func, "id", "") == "print"]
