"What tests of SSGS models share: corpora by kind, a little noise, and a comparison to the bit."
import numpy as np
import pytest

from audiolab.audio import MissingProgram, instrument_corpus, read_audio, speech_corpus
from audiolab.ssgs import SpectralStateGuidedSynthesis

RATE = 16000
KINDS = pytest.mark.parametrize("kind", ["instruments", "speech"])


def make_corpora(folder):
    "Files by kind; None for speech where nothing can speak."
    out = {"instruments": instrument_corpus(folder/"instruments", n_files=5, seed=3)}
    try: out["speech"] = speech_corpus(folder/"speech", n_files=4, seed=3)
    except MissingProgram: out["speech"] = None
    return out


def read_corpora(corpora):
    "Waveforms by kind."
    return {kind: files and [read_audio(f, mono=True)[0] for f in files]
            for kind, files in corpora.items()}


def train_on(sounds):
    "A model of sixteen states by kind."
    return {kind: audio and SpectralStateGuidedSynthesis(16).train(audio, n_em_iterations=5)
            for kind, audio in sounds.items()}


def of(kind, by_kind):
    "What there is of a kind; skips the test where there is none."
    if by_kind[kind] is None: pytest.skip("needs espeak-ng (Debian: apt-get install espeak-ng)")
    return by_kind[kind]


def same_parameters(a, b):
    "Assert that two models have the same parameters, to the bit."
    for name in ("initial", "transition", "means", "covariances"):
        np.testing.assert_array_equal(getattr(a.hmm, name), getattr(b.hmm, name))


def noise(seconds, seed=0, level=.1):
    "White noise [T]."
    draws = np.random.default_rng(seed).standard_normal(round(seconds*RATE))
    return (level*draws).astype(np.float32)


def level(x):
    "RMS in dB."
    return 20*np.log10(np.sqrt(np.mean(np.square(x))))
