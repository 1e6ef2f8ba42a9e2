"Sound in files for the tests of data: noise over a glide, and a folder of three singers."
import sys

import numpy as np
import pytest

from audiolab.audio import probe_audio, write_audio
from audiolab.data import Clip

forks = pytest.mark.skipif(sys.platform != "linux",
                           reason="optional: needs processes that are forked")

SINGERS = ("a/1.wav", 16_000, 1), ("a/2.flac", 22_050, 2), ("b/1.ogg", 16_000, 1), ("c/1.wav",
                                                                                    44_100, 1)


def sound(seconds, rate, channels=1, seed=0):
    "Noise over a glide, so that no two places are alike"
    rng, t = np.random.default_rng(seed), np.arange(round(seconds*rate))/rate
    noise = rng.normal(0, 0.05, (channels, len(t)))
    return (0.3*np.sin(2*np.pi*(300 + 200*t)*t) + noise).astype(np.float32)


def clip_of(path, **more):
    about = probe_audio(path)
    return Clip(str(path), str(path), about.sample_rate, about.channels, about.frames, **more)


def fill_folder(folder):
    "Four files of three singers"
    for name, rate, channels in SINGERS:
        (folder/name).parent.mkdir(exist_ok=True)
        write_audio(folder/name, sound(1.5, rate, channels, len(name)), rate)
    return folder
