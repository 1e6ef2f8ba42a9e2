"Sounds and models for the tests of SSGS as a whole."
import numpy as np

from audiolab.audio import MissingProgram, instrument_corpus, read_audio, speech_corpus
from audiolab.ssgs import SpectralStateGuidedSynthesis

RATE, HOP, MUSIC = 16000, 256, "instruments"
PARAMETERS = "initial", "transition", "means", "covariances"


def speech(folder):
    "45 s in some files; None where nothing can speak."
    try: files = speech_corpus(folder, n_files=None, seconds=45, seed=1)
    except MissingProgram: return None
    return [read_audio(file, mono=True)[0] for file in files]


def music(folder):
    "45 s in some files."
    files = instrument_corpus(folder, n_files=None, seconds=45, seed=1)
    return [read_audio(file, mono=True)[0] for file in files]


def beginnings(sounds): return [o[:3*RATE] for o in sounds[MUSIC][:3]]


def small_model(sounds):
    "A model of the beginnings of three pieces of music."
    return SpectralStateGuidedSynthesis(12).train(beginnings(sounds), n_em_iterations=4)


def noise(seconds, seed=0, level=.1):
    normal = np.random.default_rng(seed).standard_normal(round(seconds*RATE))
    return (level*normal).astype(np.float32)


def same_parameters(a, b):
    for name in PARAMETERS:
        np.testing.assert_array_equal(getattr(a.hmm, name), getattr(b.hmm, name))
