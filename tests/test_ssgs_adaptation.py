"Adapting a model: it leans towards new sound and forgets nothing."
import numpy as np
import pytest
import torch
from hmm_models import close, random_hmm, same, same_statistics, sample

from audiolab.ssgs import (
    adapt, expected_statistics, fit, initialise, log_likelihood, m_step,
)


@pytest.fixture(scope="module")
def trained():
    rng = np.random.default_rng(18)
    truth = random_hmm(rng, 12, 6, stay=36.)
    sequences = sample(truth, [600] * 6, rng)
    hmm, prior = initialise(sequences, 12)
    return sequences, prior, fit(sequences, hmm, prior=prior, n_iterations=20)


@pytest.mark.parametrize("minimal", [False, True])
def test_twenty_adaptations_to_a_second_keep_the_stays(trained, minimal):
    "The original's mean self-transition fell from 0.76 to 0.51 here."
    sequences, prior, result = trained
    clip, model, statistics = sequences[2][:62], result.hmm, None if minimal else result.statistics
    before = np.diag(model.transition).mean()
    for _ in range(20): model, statistics, info = adapt(model, statistics, [clip], prior)
    assert abs(np.diag(model.transition).mean() - before) < .05
    unheard = info["unheard"]
    assert unheard and np.array_equal(model.means[unheard], result.hmm.means[unheard])
    assert np.array_equal(model.transition[unheard], result.hmm.transition[unheard])
    assert log_likelihood(model, [clip]) > log_likelihood(result.hmm, [clip])
    assert np.linalg.eigvalsh(model.covariances).min() > 1e-3


def test_adaptation_leans_in_proportion_to_the_rate(trained):
    sequences, prior, result = trained
    new = [y + 1. for y in sequences[:2]]
    gains = []
    for rate in (0., .1, .3, .9):
        model, statistics, info = adapt(result.hmm, result.statistics, new, prior, rate=rate)
        gains.append(log_likelihood(model, new))
        assert info["rate"] == pytest.approx(rate * .95) and info["frames"] == 1200
        assert statistics.frames == pytest.approx(statistics.counts.sum(), rel=1e-4)
    assert (np.diff(gains) > 0).all() and gains[0] == pytest.approx(log_likelihood(result.hmm, new))


def test_the_rate_goes_from_nothing_to_all(trained):
    sequences, prior, result = trained
    new = [y + 1. for y in sequences[:2]]
    held_back = {"rate": 1., "stability_bias": 1.}
    untouched, same_again, _ = adapt(result.hmm, result.statistics, new, prior, **held_back)
    assert same(untouched, result.hmm) and same_statistics(same_again, result.statistics)
    full, _, _ = adapt(result.hmm, result.statistics, new, prior, rate=1., stability_bias=0.,
                       dtype=torch.float64)
    close(full, fit(new, result.hmm, prior=prior, n_iterations=1, dtype=torch.float64).hmm, 1e-9)
    for wrong in (dict(rate=1.1), dict(rate=-.1), dict(stability_bias=2), dict(rate=float("nan")),
                  dict(n_iterations=0)):
        with pytest.raises(ValueError): adapt(result.hmm, result.statistics, new, prior, **wrong)


def test_expected_statistics_are_the_models_own(trained):
    _, _, result = trained
    again = m_step(expected_statistics(result.hmm, 500.), result.hmm)
    for name in ("transition", "means", "covariances"):
        ours, expected = getattr(again, name), getattr(result.hmm, name)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)
