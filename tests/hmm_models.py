"Models and sequences for the tests of hidden Markov models, and ways to compare them."
import numpy as np

from audiolab.ssgs import GaussianHMM, sample_path

K, D = 7, 5
LENGTHS = (120, 1, 333, 64, 2, 900, 47)


def random_hmm(rng, n_states=K, n_features=D, stay=3.0):
    A = rng.random((n_states, n_states)) + stay * np.eye(n_states)
    half = rng.standard_normal((n_states, n_features, n_features))
    covariances = half @ half.transpose(0, 2, 1) / n_features + .3 * np.eye(n_features)
    initial = rng.random(n_states) + .1
    means = 1.5 * rng.standard_normal((n_states, n_features))
    return GaussianHMM(initial / initial.sum(), A / A.sum(1, keepdims=True), means, covariances)


def emit(hmm, path, rng):
    factors = np.linalg.cholesky(hmm.covariances)[path]
    noise = rng.standard_normal((len(path), hmm.n_features))
    return hmm.means[path] + np.einsum("tij,tj->ti", factors, noise)


def sample(hmm, lengths, rng):
    paths = (sample_path(hmm.transition, hmm.initial, n, rng) for n in lengths)
    return [emit(hmm, path, rng) for path in paths]


def make_world():
    "A start model, and sequences drawn from another one."
    rng = np.random.default_rng(1)
    return random_hmm(rng), sample(random_hmm(rng), LENGTHS, rng)


def parameters(h): return h.initial, h.transition, h.means, h.covariances


def close(a, b, tolerance):
    for x, y in zip(parameters(a), parameters(b)):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)


def same(a, b): return all(np.array_equal(x, y) for x, y in zip(parameters(a), parameters(b)))


def same_statistics(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a.to_dict().values(), b.to_dict().values()))
