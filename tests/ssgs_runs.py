"What tests of SSGS runs share: short pieces, the command, and what a folder holds."
import hashlib
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from audiolab.apps import main
import audiolab.ssgs.state_sounds
from audiolab.audio import instrument_corpus, read_audio, write_audio
from audiolab.ssgs import SpectralStateGuidedSynthesis

load = SpectralStateGuidedSynthesis.load_checkpoint
SIX = dict(n_states=6, n_iterations=5, tolerance=0)


@contextmanager
def measured_on_a_second():
    "Colours and levels of states, which other tests listen to, without the minutes that they take"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("measure_colour", "measure_own_colours", "sampled_level", "measure_level"):
            measure = getattr(audiolab.ssgs.state_sounds, name)
            patch.setattr(audiolab.ssgs.state_sounds, name, partial(measure, seconds=1.))
        yield


@pytest.fixture(scope="module", autouse=True)
def short_measures():
    "For a file whose models are all its own"
    with measured_on_a_second(): yield


def short_pieces(folder, whole):
    "Fill a folder with four pieces, cut to 3 s."
    for path in instrument_corpus(whole, n_files=4, seed=2):
        write_audio(folder/path.name, read_audio(path, duration=3.)[0], 16000)
    return folder


def train(folder, out, *flags, **named):
    flags = [str(f) for f in flags] + [word for key, value in named.items()
                                       for word in (f"--{key.replace('_', '-')}", str(value))]
    return main(["ssgs", "train", *(["--folders", str(folder)] if folder else []),
                 "--checkpoint-dir", str(out), *flags])


def names(folder): return sorted(p.name for p in Path(folder).iterdir())


def digests(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in Path(folder).rglob("*") if p.suffix in (".safetensors", ".npz", ".wav")
            or "training_history" in p.name}


def same_parameters(a, b):
    a, b = (o if isinstance(o, SpectralStateGuidedSynthesis) else load(o) for o in (a, b))
    for name in ("initial", "transition", "means", "covariances"):
        np.testing.assert_array_equal(getattr(a.hmm, name), getattr(b.hmm, name))
    assert a.iteration == b.iteration and a.history == b.history
