"The regressions that an encoder is compared with"
import numpy as np
import pytest

from audiolab.audio import log_mel
from audiolab.voice import (
    StyleError, StyleMeasures, StyleSpace, fit_ridge, fit_style_ridge, measure_ridge,
    mel_statistics, ridge_measures, ridge_weights,
)


def test_weights_are_those_of_least_squares_with_more_rows():
    "The penalty as data: sqrt(N*penalty) times the identity, with outputs of 0"
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 5)), rng.standard_normal((40, 3))
    for penalty, found in zip((.01, 2.), ridge_weights(x, y, np.array([.01, 2.]))):
        more = np.vstack([x, np.sqrt(40*penalty)*np.eye(5)])
        right = np.linalg.lstsq(more, np.vstack([y, np.zeros((5, 3))]), rcond=None)[0]
        assert np.allclose(found, right, atol=1e-10)


def test_more_inputs_than_clips():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 80)), rng.standard_normal((30, 2))
    assert np.isfinite(fit_ridge(x, y, np.arange(30))(x)).all()


def test_an_input_that_never_changes_does_no_harm():
    rng = np.random.default_rng(0)
    x = np.c_[rng.standard_normal((50, 2)), np.full(50, 7.)]
    found = fit_ridge(x, x[:, :1], np.arange(50))
    assert abs(found(x + [0, 0, 1e-3]) - x[:, :1]).max() < .2


def test_the_penalty_is_chosen_on_voices_left_out():
    "Remembering voices by inputs of their own pays for clips of the same voices alone"
    rng = np.random.default_rng(0)
    voices = np.repeat(np.arange(20), 4)
    own = rng.standard_normal((20, 60))[voices] + .01*rng.standard_normal((80, 60))
    target = rng.standard_normal((20, 1))[voices]  # nothing that other voices could tell
    by_voice, by_clip = fit_ridge(own, target, voices), fit_ridge(own, target, np.arange(80))
    assert by_voice.penalty >= 10 > .1 > by_clip.penalty


@pytest.mark.parametrize("unit", [True, False])
def test_styles_that_are_linear_are_heard(unit):
    rng = np.random.default_rng(0)
    drawn, ways = rng.standard_normal((60, 3)), rng.standard_normal((3, 4*9))
    rows = (4 + .3*drawn@ways).reshape(60, 4, 9)
    if unit: rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    x, ids = drawn@rng.standard_normal((3, 7)), np.arange(60)
    ridge = fit_style_ridge(x[:45], rows[:45], rows[:45, :2], ids[:45], unit)
    measures = StyleMeasures(*ridge.bases, ids[45:], rows[45:], rows[45:, :2])
    found = ridge_measures(ridge, x[45:], ids[45:], measures)
    assert found["r2"] > .98 and found["retrieval_top1"] > .8
    ttl, dp = ridge.predict(x[45:])
    assert ttl.dtype == dp.dtype == np.float32 and dp.shape == (15, 2, 9)
    if unit: assert np.allclose(np.linalg.norm(ttl, axis=-1), 1, atol=1e-6)


def test_too_few_voices():
    rows = np.ones((4, 2, 3))
    with pytest.raises(StyleError): fit_style_ridge(np.ones((4, 2)), rows, rows, [1, 1, 1, 1])
    with pytest.raises(ValueError, match="two voices"):
        fit_ridge(np.ones((4, 2)), np.ones((4, 1)), [1, 1, 1, 1])


def test_statistics_of_mels():
    sound = np.random.default_rng(0).standard_normal(24000).astype(np.float32)
    found, bands = mel_statistics(sound, 24000), log_mel(sound, 24000, f_max=8000.).numpy()
    assert found.shape == (160,) and np.allclose(found[:80], bands.mean(1), atol=1e-5)
    assert mel_statistics(sound, 8000).shape == (160,)


def test_on_any_lessons():
    "With anything that makes one list of numbers of a clip"
    class Heard:
        sample_rate = 8000
        def __init__(self, seed):
            rng = np.random.default_rng(seed)
            self.style_ids = np.repeat(np.arange(30), 2)
            self.levels = rng.uniform(.1, 1, (30, 2))[self.style_ids]
            self.space = StyleSpace("levels", ttl_shape=(1, 4), dp_shape=(1, 4), unit=False)

        def __len__(self): return 60
        def audio(self, index): return np.repeat(self.levels[index], 50)
        def part(self, name): return (self.levels@np.arange(8).reshape(2, 4)/8)[:, None]

    def listen(audio, rate): return np.array([audio[:50].mean(), audio[50:].mean()])
    found, mean = measure_ridge(Heard(0), Heard(1), listen)
    assert found["r2"] > .99 and found["together/retrieval_top1"] == 1 and mean["r2"] == 0
