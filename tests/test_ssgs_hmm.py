"The hidden Markov core of SSGS: exact against hmmlearn, whatever the blocks, devices and units."
import warnings

import numpy as np
import pytest
import torch
from hmm_models import (
    K, D, LENGTHS, close, make_world, parameters, random_hmm, same_statistics, sample,
)

from audiolab.ssgs import (
    GaussianHMM, Prior, Statistics, cut_plan, e_step, log_emissions, log_likelihood, log_prior,
    m_step, posteriors, sample_path, stationary_distribution, viterbi,
)
from audiolab.ssgs import inference as core


@pytest.fixture(scope="module")
def world(): return make_world()


def give(learner, hmm):
    "Set the parameters of hmmlearn's model."
    learner.startprob_, learner.transmat_ = hmm.initial.copy(), hmm.transition.copy()
    learner.means_, learner.covars_ = hmm.means.copy(), hmm.covariances.copy()


def learnt(learner): return learner.startprob_, learner.transmat_, learner.means_, learner.covars_


def oracle(hmm, sequences, implementation="log"):
    "hmmlearn's model after one iteration, and the log-likelihood before it."
    missing = "hmmlearn is not installed: it is the oracle of this test"
    hmmlearn = pytest.importorskip("hmmlearn.hmm", reason=missing)
    h = hmmlearn.GaussianHMM(hmm.n_states, "full", n_iter=1, implementation=implementation,
                             init_params="", covars_prior=0, covars_weight=0)
    give(h, hmm)
    y, lengths = np.concatenate(sequences), [len(s) for s in sequences]
    likelihood = h.score(y, lengths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        h.fit(y, lengths)
    return h, likelihood


@pytest.mark.parametrize("use_numba", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_one_step_equals_hmmlearn(world, dtype, tolerance, use_numba):
    hmm, sequences = world
    expected, likelihood = oracle(hmm, sequences)
    plan = cut_plan(LENGTHS)  # whole sequences, also on the torch path
    statistics = e_step(hmm, sequences, dtype=dtype, use_numba=use_numba, plan=plan)
    ours = m_step(statistics, hmm)
    assert statistics.log_likelihood == pytest.approx(likelihood, rel=tolerance)
    for a, b in zip(parameters(ours), learnt(expected)):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def test_one_step_at_the_size_of_the_benchmark():
    rng = np.random.default_rng(2)
    hmm = random_hmm(rng, 34, 12)
    sequences = sample(random_hmm(rng, 34, 12), [500] * 8, rng)
    expected, likelihood = oracle(hmm, sequences, "scaling")
    statistics = e_step(hmm, sequences, dtype=torch.float64)
    assert statistics.log_likelihood == pytest.approx(likelihood, rel=1e-12)
    ours = m_step(statistics, hmm)
    for a, b in zip(parameters(ours), learnt(expected)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


def test_brute_force_over_all_paths():
    "Likelihood and posteriors of four frames by adding up all paths one by one."
    rng = np.random.default_rng(3)
    hmm = random_hmm(rng, 3, 2)
    y = rng.standard_normal((4, 2))
    density = np.exp(log_emissions(hmm, y))
    total, marginal = 0., np.zeros((4, 3))
    for path in np.ndindex(3, 3, 3, 3):
        p = hmm.initial[path[0]] * density[0, path[0]]
        for t in range(1, 4): p *= hmm.transition[path[t - 1], path[t]] * density[t, path[t]]
        total += p
        for t in range(4): marginal[t, path[t]] += p
    assert log_likelihood(hmm, [y]) == pytest.approx(np.log(total), rel=1e-12)
    np.testing.assert_allclose(posteriors(hmm, y), marginal / total, atol=1e-12)


def test_forbidden_transitions_stay_forbidden():
    "Left to right: zeros of the transitions are exact in float64 and survive EM, as in hmmlearn."
    rng = np.random.default_rng(4)
    hmm = random_hmm(rng, 4, 3)
    onwards = [[.9, .1, 0, 0], [0, .9, .1, 0], [0, 0, .9, .1], [0, 0, 0, 1]]
    hmm = GaussianHMM([1, 0, 0, 0], onwards, hmm.means, hmm.covariances)
    sequences = sample(hmm, (80, 60), rng)
    expected, likelihood = oracle(hmm, sequences)
    for use_numba in (True, False):
        statistics = e_step(hmm, sequences, dtype=torch.float64, use_numba=use_numba)
        assert statistics.log_likelihood == pytest.approx(likelihood, rel=1e-12)
        ours = m_step(statistics, hmm).transition
        np.testing.assert_allclose(ours, expected.transmat_, atol=1e-10)
    assert np.isfinite(e_step(hmm, sequences).log_likelihood)


@pytest.mark.parametrize("block, group", [(1, 1), (7, 100), (64, 50_000), (4096, 300)])
def test_blocks_do_not_matter(world, monkeypatch, block, group):
    hmm, sequences = world
    expected = m_step(e_step(hmm, sequences, dtype=torch.float64), hmm)
    monkeypatch.setattr(core, "_BLOCK", block)
    monkeypatch.setattr(core, "_GROUP", group)
    statistics, rows = e_step(hmm, sequences, dtype=torch.float64, return_posteriors=True)
    close(m_step(statistics, hmm), expected, 1e-12)
    for y, gamma in zip(sequences, rows):
        np.testing.assert_allclose(gamma, posteriors(hmm, y), atol=1e-12)


def test_one_long_sequence_and_many_short():
    rng = np.random.default_rng(5)
    hmm = random_hmm(rng)
    y, = sample(hmm, [20_000], rng)
    whole = e_step(hmm, [y], dtype=torch.float64)
    assert whole.initial.sum() == pytest.approx(1)
    assert whole.transitions.sum() == pytest.approx(len(y) - 1)
    expected, likelihood = oracle(hmm, [y], "scaling")
    assert whole.log_likelihood == pytest.approx(likelihood, rel=1e-12)
    np.testing.assert_allclose(m_step(whole, hmm).covariances, expected.covars_, atol=1e-10)
    single = e_step(hmm, list(y[:500, None]), dtype=torch.float64)  # 500 sequences of one frame
    assert single.transitions.sum() == 0 and single.initial.sum() == pytest.approx(500)
    np.testing.assert_allclose(single.initial, single.counts, atol=1e-9)


def test_nothing_crosses_a_file_boundary(world):
    hmm, sequences = world
    for use_numba in (True, False):
        how = {"dtype": torch.float64, "use_numba": use_numba}
        parts = [e_step(hmm, [y], **how) for y in sequences]
        total, together = sum(parts[1:], parts[0]), e_step(hmm, sequences, **how)
        np.testing.assert_allclose(together.transitions, total.transitions, atol=1e-9)
        assert together.transitions.sum() == pytest.approx(sum(LENGTHS) - len(LENGTHS))
        assert together.log_likelihood == pytest.approx(total.log_likelihood, rel=1e-12)


@pytest.mark.parametrize("use_numba", [True, False])
def test_chunk_and_overlap(use_numba):
    "Overlap of 32: posteriors off by some parts in a billion; without it, badly at the cut."
    rng = np.random.default_rng(6)
    hmm = random_hmm(rng, 34, 12, stay=30.)
    y, = sample(hmm, [3000], rng)
    exact = posteriors(hmm, y)
    how = {"dtype": torch.float64, "use_numba": use_numba, "return_posteriors": True}
    cut, (gamma,) = e_step(hmm, [y], plan=cut_plan([3000], 500), **how)
    assert abs(gamma - exact).mean() < 1e-7
    assert abs(gamma - exact).max() < 1e-3
    totals = cut.counts.sum(), cut.transitions.sum(), cut.initial.sum()
    assert totals == pytest.approx((3000, 2999, 1))
    assert cut.log_likelihood == pytest.approx(log_likelihood(hmm, [y]), rel=1e-6)
    _, (bare,) = e_step(hmm, [y], plan=cut_plan([3000], 500, 0), **how)
    assert abs(bare - exact).max() > 100 * abs(gamma - exact).max()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_torch_path_equals_numba_path(world, dtype, tolerance):
    hmm, sequences = world
    how, plan = {"dtype": dtype, "return_posteriors": True}, cut_plan(LENGTHS)
    a, left = e_step(hmm, sequences, use_numba=False, plan=plan, **how)
    b, right = e_step(hmm, sequences, **how)
    close(m_step(a, hmm), m_step(b, hmm), tolerance)
    for x, y in zip(left, right): np.testing.assert_allclose(x, y, atol=tolerance)


@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
def test_every_device_at_hand_gives_the_same(world, device):
    "The torch path with its default pieces, on the CPU and on a GPU where there is one."
    hmm, sequences = world
    ours = m_step(e_step(hmm, sequences, dtype=torch.float64, device=device, use_numba=False), hmm)
    close(ours, m_step(e_step(hmm, sequences, dtype=torch.float64), hmm), 1e-5)


def test_same_bits_every_time(world):
    hmm, sequences = world
    for dtype in (torch.float32, torch.float64):
        first = e_step(hmm, sequences, dtype=dtype)
        for _ in range(3): assert same_statistics(first, e_step(hmm, sequences, dtype=dtype))


def test_units_do_not_matter_in_float32(world):
    "Features in wild units (offset 1000, scales 1e-3..1e3) lose no accuracy: they are rescaled."
    hmm, sequences = world
    scale, offset = np.logspace(-3, 3, D), 1000.
    means, covariances = (hmm.means + offset) * scale, hmm.covariances * np.outer(scale, scale)
    wild = GaussianHMM(hmm.initial, hmm.transition, means, covariances)
    plain = e_step(hmm, sequences)
    there = e_step(wild, [(y + offset) * scale for y in sequences])
    np.testing.assert_allclose(there.counts, plain.counts, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(there.transitions, plain.transitions, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("use_numba", [True, False])
def test_very_narrow_states(use_numba):
    "A state 1e-5 wide (digital silence) among wide ones: float32 whitening agrees with float64."
    rng = np.random.default_rng(7)
    hmm = random_hmm(rng, 4, 6)
    covariances = hmm.covariances.copy()
    covariances[1] = 1e-10 * np.eye(6)
    hmm = GaussianHMM(hmm.initial, hmm.transition, hmm.means, covariances)
    y, = sample(hmm, [600], rng)
    assert 1 in core._emission(hmm, np.float32, 4).narrow
    exact = posteriors(hmm, y)
    np.testing.assert_allclose(exact[:, 1] > .5, log_emissions(hmm, y)[:, 1] > 0)
    # float32 frames cannot hold 1e-5 around a mean near 1 to better than a hundredth of the width
    statistics, (gamma,) = e_step(hmm, [y], use_numba=use_numba, return_posteriors=True)
    np.testing.assert_allclose(gamma, exact, atol=1e-3)
    np.testing.assert_allclose(statistics.counts, exact.sum(0), atol=1e-2)


def test_statistics_add_scale_and_travel(world):
    hmm, sequences = world
    s = e_step(hmm, sequences, dtype=torch.float64)
    back = Statistics.from_dict(s.to_dict())
    assert same_statistics(s, back) and back.frames == sum(LENGTHS)
    close(m_step(.25 * s + .75 * s, hmm), m_step(s, hmm), 1e-12)
    size = sum(v.astype(np.float32).nbytes for v in Statistics.zeros(34, 12).to_dict().values())
    assert size < 18_000  # what a minimal checkpoint carries
    arrays = s.to_dict()
    del arrays["second"]
    with pytest.raises(ValueError, match="second"): Statistics.from_dict(arrays)
    longer = s.to_dict() | {"counts": np.zeros(K + 1)}
    with pytest.raises(ValueError, match="counts has shape"): Statistics.from_dict(longer)


@pytest.mark.parametrize("with_prior", [False, True])
def test_objective_is_monotone(world, with_prior):
    hmm, sequences = world
    prior = Prior(np.full(D, .5), floor=.6) if with_prior else None  # a floor high enough to act
    objective = []
    for _ in range(25):
        statistics = e_step(hmm, sequences, dtype=torch.float64)
        objective.append(statistics.log_likelihood + (log_prior(hmm, prior) if with_prior else 0.))
        hmm = m_step(statistics, hmm, prior)
        if with_prior: assert np.linalg.eigvalsh(hmm.covariances).min() >= .6 * .5 * (1 - 1e-9)
    # the first model need not obey the floor
    gains = np.diff(objective[1:] if with_prior else objective)
    assert gains.min() > -1e-9 * abs(objective[-1]) and gains[0] > 1


def test_m_step_maximises_the_posterior(world):
    "No nearby model has more expected log-posterior than the one `m_step` returns."
    hmm, sequences = world
    s, prior = e_step(hmm, sequences, dtype=torch.float64), Prior(np.full(D, .5))
    rng = np.random.default_rng(8)

    def expected(h):
        inverse, log_det = np.linalg.inv(h.covariances), np.linalg.slogdet(h.covariances)[1]
        cross = s.first[:, :, None] * h.means[:, None]
        squares = s.counts[:, None, None] * h.means[:, :, None] * h.means[:, None]
        scatter = s.second - cross - cross.transpose(0, 2, 1) + squares
        gaussian = -.5 * (s.counts * log_det).sum() - .5 * (inverse * scatter).sum()
        chain = (s.transitions * np.log(h.transition)).sum() + (s.initial * np.log(h.initial)).sum()
        return gaussian + chain + log_prior(h, prior)

    best = m_step(s, hmm, prior)
    for _ in range(50):
        A = best.transition * np.exp(.05 * rng.standard_normal((K, K)))
        pi = best.initial * np.exp(.05 * rng.standard_normal(K))
        twist = np.eye(D) + .02 * rng.standard_normal((K, D, D))
        means = best.means + .02 * rng.standard_normal((K, D))
        covariances = twist @ best.covariances @ twist.transpose(0, 2, 1)
        other = GaussianHMM(pi / pi.sum(), A / A.sum(1, keepdims=True), means, covariances)
        assert expected(other) < expected(best)


def test_viterbi_equals_hmmlearn(world):
    hmm, sequences = world
    h, _ = oracle(hmm, sequences)
    give(h, hmm)
    for y in sequences:
        score, expected = h.decode(y)
        path, ours = viterbi(hmm, y)
        assert np.array_equal(path, expected) and ours == pytest.approx(score, rel=1e-10)


def test_long_stays_are_geometric_and_streams_go_on():
    rng = np.random.default_rng(9)
    A = np.array([[.9, .1, 0], [0, .8, .2], [.5, 0, .5]])
    path = sample_path(A, [0, 1, 0], 60_000, rng)
    assert path[0] == 1
    edges = np.flatnonzero(np.diff(path)) + 1
    for state, stay in enumerate((.9, .8, .5)):
        runs = np.diff(edges)[path[edges[:-1]] == state]
        assert runs.mean() == pytest.approx(1 / (1 - stay), rel=.06)
        assert (runs == 1).mean() == pytest.approx(1 - stay, abs=.03)
    assert not ((path[:-1] == 0) & (path[1:] == 2)).any()  # a forbidden step never happens
    np.testing.assert_allclose(np.bincount(path) / len(path), stationary_distribution(A), atol=.02)
    share = stationary_distribution(A)
    np.testing.assert_allclose(share @ A, share, atol=1e-12)
    one, two = np.random.default_rng(1), np.random.default_rng(1)
    whole, head = sample_path(A, [1, 0, 0], 100, one), sample_path(A, [1, 0, 0], 40, two)
    assert np.array_equal(whole, np.concatenate([head, sample_path(A, head[-1], 60, two)]))
    assert set(sample_path(A, 1, 50, rng)[:1]) <= {1, 2}
    np.testing.assert_allclose(stationary_distribution([[0, 1], [1, 0]]), [.5, .5])  # a cycle


def test_permuting_files(world):
    hmm, sequences = world
    one, other = (e_step(hmm, o, dtype=torch.float64) for o in (sequences, sequences[::-1]))
    close(m_step(other, hmm), m_step(one, hmm), 1e-8)
