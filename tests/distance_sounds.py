"What tests of distances share: syllables that models of listeners take for speech, and noise."
import importlib.util
import math

import numpy as np
import pytest
from scipy.signal import lfilter

RATE = 16000


def needs(name): return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"optional: needs the package {name}")


def voice(seconds=3.0, rate=RATE, seed=0):
    "Pulses through two moving resonances, in syllables: enough for models of listeners to take it for speech"
    random, parts = np.random.default_rng(seed), []
    while sum(map(len, parts)) < seconds*rate:
        n = int(random.uniform(.15, .35)*rate)
        sound = np.diff(np.floor(np.cumsum(np.linspace(random.uniform(100, 160), 100, n)/rate)),
                        prepend=0.) + .003*random.standard_normal(n)
        for hz in (random.uniform(300, 800), random.uniform(900, 2300), 2800):
            r = math.exp(-math.pi*90/rate)
            sound = lfilter([1 - r], [1, -2*r*math.cos(2*math.pi*hz/rate), r*r], sound)
        parts += [.3*np.hanning(n)*sound/np.abs(sound).max(), np.zeros(int(.03*rate))]
    return np.concatenate(parts)[:int(seconds*rate)] + 1e-4*random.standard_normal(
        int(seconds*rate))


def noise(n, seed=1): return np.random.default_rng(seed).standard_normal(n)
