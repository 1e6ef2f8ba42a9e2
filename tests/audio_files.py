"What tests of audio files share: music to write, and what a refusal says."
import numpy as np
import pytest

from audiolab.audio import AudioError, read_audio

ENDINGS = ['wav', 'flac', 'mp3', 'ogg', 'opus']


def music(rate, seconds, channels=2, seed=0):
    "Bursts of a chord with noise between silences: makes variable bit rates vary."
    t = np.arange(int(rate*seconds))/rate
    x = sum(np.sin(2*np.pi*f*t) for f in (220, 277, 331))*(t % 1.3 < .7)
    x = x[None]+.3*np.random.default_rng(seed).standard_normal((channels, len(t)))*(t % 2 < .4)
    return (.2*x).clip(-.95, .95).astype(np.float32)


def rate_of(ending): return 48_000 if ending == 'opus' else 44_100


def fails(path, *words, **kw):
    with pytest.raises(AudioError) as e: read_audio(path, **kw)
    assert str(path) in str(e.value) and e.value.path == path, "the file is named"
    for w in words: assert w in e.value.cause, e.value.cause
    return e.value
