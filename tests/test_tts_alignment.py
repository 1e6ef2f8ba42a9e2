"Speech beside its text: paths on maps that are known, and the times of words"
import numpy as np
import pytest

from audiolab.tts import (
    TTSError, alignment_figures, attention_surplus, best_path, word_places, word_times,
)


def made_up_map(durations, rest=.3, noise=.02, seed=0):
    "Tokens looked at for so many codes each, a rest on the first, and noise"
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(durations)), durations)
    places = np.arange(len(durations))
    attention = np.exp(-.5*((places-truth[:, None])/.5)**2)
    attention += noise*rng.random(attention.shape)
    attention[:, 0] += rest*attention.sum(1)/(1-rest)
    return attention/attention.sum(1, keepdims=True), truth


@pytest.mark.parametrize("seed", range(6))
def test_path_finds_what_is_there(seed):
    rng = np.random.default_rng(seed)
    attention, truth = made_up_map(rng.integers(1, 12, rng.integers(2, 40)), seed=seed)
    path = best_path(attention_surplus(attention))
    assert (np.diff(path) >= 0).all()
    assert np.mean(path == truth) > .9 and np.abs(path-truth).max() <= 2


def brute_force(gain, skip, cost):
    "All paths, one by one"
    from itertools import product
    s, t = gain.shape
    best, found = -np.inf, None
    for path in product(range(t), repeat=s):
        steps = np.diff(path)
        if (steps < 0).any() or (steps > skip+1).any() or path[0] > skip: continue
        value = sum(gain[i, at] for i, at in enumerate(path))
        value -= cost*(path[0]+(t-1-path[-1])+np.maximum(steps-1, 0).sum())
        if value > best: best, found = value, path
    return found


@pytest.mark.parametrize("seed", range(8))
def test_path_is_the_best_of_all(seed):
    gain = np.random.default_rng(seed).standard_normal((5, 4))
    assert best_path(gain, skip=2, skip_cost=.7).tolist() == list(brute_force(gain, 2, .7))


def test_path_of_odd_shapes():
    assert best_path(np.zeros((1, 1))).tolist() == [0]
    fast = best_path(np.random.default_rng(0).standard_normal((3, 40)))
    assert len(fast) == 3 and (np.diff(fast) >= 0).all()
    for shape in ((0, 4), (4, 0)):
        with pytest.raises(TTSError, match="no path"): best_path(np.zeros(shape))
    assert np.isfinite(attention_surplus(np.zeros((4, 3)))).all()


def test_times_of_words():
    ids = [15, 7, 8, 2, 2, 9, 0]
    places = word_places(ids, [15, 2, 0])
    assert places == [(1, 3), (5, 6)]
    path = np.array([0, 0, 1, 1, 2, 3, 3, 4, 5, 5, 5, 6])
    attention = np.eye(7)[path]
    first, second = word_times(path, attention, places, ["ab", "c"], rate=25.)
    assert (first.start, first.end, first.surety) == (2/25, 5/25, 1.)
    assert (second.start, second.end) == (8/25, 11/25)
    left_out = word_times(np.array([1, 1, 2, 6]), np.eye(7)[[1, 1, 2, 6]], places, ["ab", "c"], 25.)
    assert left_out[1].start == left_out[1].end == 3/25 and left_out[1].surety == 0
    with pytest.raises(TTSError, match="1 words"): word_times(path, attention, places, ["ab"], 25.)


def test_figures_tell_good_from_bad():
    good = alignment_figures(made_up_map([4]*12, rest=0)[0])
    lost = alignment_figures(np.random.default_rng(0).dirichlet(np.ones(12), 48))
    rest = alignment_figures(np.eye(12)[[5]*48])
    assert good.monotone > .95 and good.covered == 1 and good.longest <= 6
    assert good.sharpness > .9 > .6 > max(lost.sharpness, rest.sharpness)
