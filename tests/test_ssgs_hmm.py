"""The hidden Markov core of SSGS: exact against hmmlearn, independent of blocks, order and interruptions, calm on degenerate input."""
import warnings

import numpy as np
import pytest
import torch

from audiolab.ssgs import inference as core
from audiolab.ssgs import (
    adapt, expected_statistics, fit, initialise, iterate, kmeans, reseed_dead, select_n_states,
)
from audiolab.ssgs import (
    GaussianHMM, Prior, Statistics, log_emissions, log_prior, m_step, sample_path,
    stationary_distribution, viterbi,
)
from audiolab.ssgs import cut_plan, e_step, log_likelihood, posteriors

K, D = 7, 5
LENGTHS = (120, 1, 333, 64, 2, 900, 47)


def random_hmm(rng, n_states=K, n_features=D, stay=3.0):
    A = rng.random((n_states, n_states)) + stay * np.eye(n_states)
    half = rng.standard_normal((n_states, n_features, n_features))
    covariances = half @ half.transpose(0, 2, 1) / n_features + .3 * np.eye(n_features)
    initial = rng.random(n_states) + .1
    return GaussianHMM(initial / initial.sum(), A / A.sum(1, keepdims=True), 1.5 * rng.standard_normal((n_states, n_features)), covariances)


def emit(hmm, path, rng):
    return hmm.means[path] + np.einsum("tij,tj->ti", np.linalg.cholesky(hmm.covariances)[path], rng.standard_normal((len(path), hmm.n_features)))


def sample(hmm, lengths, rng):
    return [emit(hmm, sample_path(hmm.transition, hmm.initial, n, rng), rng) for n in lengths]


@pytest.fixture(scope="module")
def world():
    "A start model, and sequences drawn from another one."
    rng = np.random.default_rng(1)
    return random_hmm(rng), sample(random_hmm(rng), LENGTHS, rng)


def parameters(h): return h.initial, h.transition, h.means, h.covariances


def close(a, b, tolerance):
    for x, y in zip(parameters(a), parameters(b)): np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)


def same(a, b): return all(np.array_equal(x, y) for x, y in zip(parameters(a), parameters(b)))


def same_statistics(a, b): return all(np.array_equal(x, y) for x, y in zip(a.to_dict().values(), b.to_dict().values()))


def oracle(hmm, sequences, implementation="log"):
    "hmmlearn's model after one iteration, and the log-likelihood before it."
    hmmlearn = pytest.importorskip("hmmlearn.hmm", reason="hmmlearn is not installed: it is the oracle of this test")
    h = hmmlearn.GaussianHMM(hmm.n_states, "full", n_iter=1, implementation=implementation, init_params="", covars_prior=0, covars_weight=0)
    h.startprob_, h.transmat_, h.means_, h.covars_ = (x.copy() for x in parameters(hmm))
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
    for a, b in zip(parameters(ours), (expected.startprob_, expected.transmat_, expected.means_, expected.covars_)):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def test_one_step_at_the_size_of_the_benchmark():
    rng = np.random.default_rng(2)
    hmm = random_hmm(rng, 34, 12)
    sequences = sample(random_hmm(rng, 34, 12), [500] * 8, rng)
    expected, likelihood = oracle(hmm, sequences, "scaling")
    statistics = e_step(hmm, sequences, dtype=torch.float64)
    assert statistics.log_likelihood == pytest.approx(likelihood, rel=1e-12)
    ours = m_step(statistics, hmm)
    for a, b in zip(parameters(ours), (expected.startprob_, expected.transmat_, expected.means_, expected.covars_)):
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
    "A left-to-right model: zeros of the transition matrix are exact in float64 and survive EM, as in hmmlearn."
    rng = np.random.default_rng(4)
    hmm = random_hmm(rng, 4, 3)
    hmm = GaussianHMM([1, 0, 0, 0], [[.9, .1, 0, 0], [0, .9, .1, 0], [0, 0, .9, .1], [0, 0, 0, 1]], hmm.means, hmm.covariances)
    sequences = sample(hmm, (80, 60), rng)
    expected, likelihood = oracle(hmm, sequences)
    for use_numba in (True, False):
        statistics = e_step(hmm, sequences, dtype=torch.float64, use_numba=use_numba)
        assert statistics.log_likelihood == pytest.approx(likelihood, rel=1e-12)
        np.testing.assert_allclose(m_step(statistics, hmm).transition, expected.transmat_, atol=1e-10)
    assert np.isfinite(e_step(hmm, sequences).log_likelihood)


@pytest.mark.parametrize("block, group", [(1, 1), (7, 100), (64, 50_000), (4096, 300)])
def test_blocks_do_not_matter(world, monkeypatch, block, group):
    hmm, sequences = world
    expected = m_step(e_step(hmm, sequences, dtype=torch.float64), hmm)
    monkeypatch.setattr(core, "_BLOCK", block)
    monkeypatch.setattr(core, "_GROUP", group)
    statistics, rows = e_step(hmm, sequences, dtype=torch.float64, return_posteriors=True)
    close(m_step(statistics, hmm), expected, 1e-12)
    for y, gamma in zip(sequences, rows): np.testing.assert_allclose(gamma, posteriors(hmm, y), atol=1e-12)


def test_one_long_sequence_and_many_short():
    rng = np.random.default_rng(5)
    hmm = random_hmm(rng)
    y, = sample(hmm, [20_000], rng)
    whole = e_step(hmm, [y], dtype=torch.float64)
    assert whole.initial.sum() == pytest.approx(1) and whole.transitions.sum() == pytest.approx(len(y) - 1)
    expected, likelihood = oracle(hmm, [y], "scaling")
    assert whole.log_likelihood == pytest.approx(likelihood, rel=1e-12)
    np.testing.assert_allclose(m_step(whole, hmm).covariances, expected.covars_, atol=1e-10)
    single = e_step(hmm, list(y[:500, None]), dtype=torch.float64)  # 500 sequences of one frame
    assert single.transitions.sum() == 0 and single.initial.sum() == pytest.approx(500)
    np.testing.assert_allclose(single.initial, single.counts, atol=1e-9)


def test_nothing_crosses_a_file_boundary(world):
    hmm, sequences = world
    for use_numba in (True, False):
        parts = [e_step(hmm, [y], dtype=torch.float64, use_numba=use_numba) for y in sequences]
        total, together = sum(parts[1:], parts[0]), e_step(hmm, sequences, dtype=torch.float64, use_numba=use_numba)
        np.testing.assert_allclose(together.transitions, total.transitions, atol=1e-9)
        assert together.transitions.sum() == pytest.approx(sum(LENGTHS) - len(LENGTHS))
        assert together.log_likelihood == pytest.approx(total.log_likelihood, rel=1e-12)


@pytest.mark.parametrize("use_numba", [True, False])
def test_chunk_and_overlap(use_numba):
    "Pieces of 500 frames with 32 of overlap: posteriors off by a few parts in a billion; without overlap, badly off at the cut."
    rng = np.random.default_rng(6)
    hmm = random_hmm(rng, 34, 12, stay=30.)
    y, = sample(hmm, [3000], rng)
    exact = posteriors(hmm, y)
    cut, (gamma,) = e_step(hmm, [y], dtype=torch.float64, use_numba=use_numba, plan=cut_plan([3000], 500), return_posteriors=True)
    assert abs(gamma - exact).mean() < 1e-7
    assert abs(gamma - exact).max() < 1e-3
    assert cut.counts.sum() == pytest.approx(3000) and cut.transitions.sum() == pytest.approx(2999) and cut.initial.sum() == pytest.approx(1)
    assert cut.log_likelihood == pytest.approx(log_likelihood(hmm, [y]), rel=1e-6)
    _, (bare,) = e_step(hmm, [y], dtype=torch.float64, use_numba=use_numba, plan=cut_plan([3000], 500, 0), return_posteriors=True)
    assert abs(bare - exact).max() > 100 * abs(gamma - exact).max()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_torch_path_equals_numba_path(world, dtype, tolerance):
    hmm, sequences = world
    a, left = e_step(hmm, sequences, dtype=dtype, use_numba=False, plan=cut_plan(LENGTHS), return_posteriors=True)
    b, right = e_step(hmm, sequences, dtype=dtype, return_posteriors=True)
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
    "Features in wild units (offset 1000, scales 1e-3..1e3) lose no accuracy: they are standardised by the model."
    hmm, sequences = world
    scale, offset = np.logspace(-3, 3, D), 1000.
    wild = GaussianHMM(hmm.initial, hmm.transition, hmm.means * scale + offset * scale, hmm.covariances * np.outer(scale, scale))
    plain = e_step(hmm, sequences)
    there = e_step(wild, [(y + offset) * scale for y in sequences])
    np.testing.assert_allclose(there.counts, plain.counts, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(there.transitions, plain.transitions, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("use_numba", [True, False])
def test_very_narrow_states(use_numba):
    "A state 1e-5 wide (digital silence) among wide ones: float32 whitening agrees with float64."
    rng = np.random.default_rng(7)
    hmm = random_hmm(rng, 4, 6)
    covariances = hmm.covariances.copy(); covariances[1] = 1e-10 * np.eye(6)
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
    arrays = s.to_dict(); del arrays["second"]
    with pytest.raises(ValueError, match="second"): Statistics.from_dict(arrays)
    with pytest.raises(ValueError, match="counts has shape"): Statistics.from_dict(s.to_dict() | {"counts": np.zeros(K + 1)})


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
    gains = np.diff(objective[1:] if with_prior else objective)  # the first model need not obey the floor
    assert gains.min() > -1e-9 * abs(objective[-1]) and gains[0] > 1


def test_m_step_maximises_the_posterior(world):
    "No nearby model has more expected log-posterior than the one `m_step` returns."
    hmm, sequences = world
    s, prior, rng = e_step(hmm, sequences, dtype=torch.float64), Prior(np.full(D, .5)), np.random.default_rng(8)

    def expected(h):
        inverse, log_det = np.linalg.inv(h.covariances), np.linalg.slogdet(h.covariances)[1]
        cross = s.first[:, :, None] * h.means[:, None]
        scatter = s.second - cross - cross.transpose(0, 2, 1) + s.counts[:, None, None] * h.means[:, :, None] * h.means[:, None]
        gaussian = -.5 * (s.counts * log_det).sum() - .5 * (inverse * scatter).sum()
        return gaussian + (s.transitions * np.log(h.transition)).sum() + (s.initial * np.log(h.initial)).sum() + log_prior(h, prior)

    best = m_step(s, hmm, prior)
    for _ in range(50):
        A = best.transition * np.exp(.05 * rng.standard_normal((K, K)))
        pi = best.initial * np.exp(.05 * rng.standard_normal(K))
        twist = np.eye(D) + .02 * rng.standard_normal((K, D, D))
        other = GaussianHMM(pi / pi.sum(), A / A.sum(1, keepdims=True), best.means + .02 * rng.standard_normal((K, D)),
                            twist @ best.covariances @ twist.transpose(0, 2, 1))
        assert expected(other) < expected(best)


def test_viterbi_equals_hmmlearn(world):
    hmm, sequences = world
    h, _ = oracle(hmm, sequences)
    h.startprob_, h.transmat_, h.means_, h.covars_ = parameters(hmm)
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
    np.testing.assert_allclose(stationary_distribution(A) @ A, stationary_distribution(A), atol=1e-12)
    one, two = np.random.default_rng(1), np.random.default_rng(1)
    whole, head = sample_path(A, [1, 0, 0], 100, one), sample_path(A, [1, 0, 0], 40, two)
    assert np.array_equal(whole, np.concatenate([head, sample_path(A, head[-1], 60, two)]))
    assert set(sample_path(A, 1, 50, rng)[:1]) <= {1, 2}
    np.testing.assert_allclose(stationary_distribution([[0, 1], [1, 0]]), [.5, .5])  # a cycle


def test_recovers_one_state():
    "One state is a plain Gaussian: mean and covariance of the frames, in one step."
    rng = np.random.default_rng(10)
    y = rng.standard_normal((5000, 4)) @ rng.standard_normal((4, 4)) + 3
    hmm, _ = initialise([y], 1)
    result = fit([y], hmm, n_iterations=1, dtype=torch.float64)
    np.testing.assert_allclose(result.hmm.means[0], y.mean(0), atol=1e-10)
    np.testing.assert_allclose(result.hmm.covariances[0], np.cov(y.T, bias=True), atol=1e-10)


def test_recovers_a_known_model():
    rng = np.random.default_rng(11)
    truth = GaussianHMM(np.full(4, .25), .85 * np.eye(4) + .05 / 4 * 3, 4 * np.eye(4)[:, :3] - 1, [np.eye(3)] * 4)
    sequences = sample(truth, [600] * 8, rng)
    hmm, prior = initialise(sequences, 4)
    ours = fit(sequences, hmm, prior=prior, n_iterations=30).hmm
    order = np.linalg.norm(ours.means[:, None] - truth.means, axis=2).argmin(0)
    np.testing.assert_allclose(ours.means[order], truth.means, atol=.15)
    np.testing.assert_allclose(ours.transition[np.ix_(order, order)], truth.transition, atol=.04)


# Degenerate input

@pytest.mark.parametrize("make", [
    lambda rng: [np.zeros((300, D))],  # digital silence
    lambda rng: [np.repeat(rng.standard_normal((3, D)), 60, 0)],  # three distinct frames
    lambda rng: [np.zeros((200, D)), rng.standard_normal((200, D))],  # silence, then sound
    lambda rng: [np.column_stack([rng.standard_normal((200, D - 1)), np.ones(200)])],  # a feature that never varies
    lambda rng: [rng.standard_normal((1, D)) for _ in range(20)],  # files of one frame
    lambda rng: [rng.standard_normal((9, D))],  # hardly more frames than states
    lambda rng: [1e6 * rng.standard_normal((200, D))],  # absurd units
    lambda rng: [np.concatenate([rng.standard_normal((200, D)), 1e4 * np.ones((1, D))])],  # one click
], ids=["silence", "duplicates", "half-silent", "constant-feature", "one-frame-files", "few-frames", "huge", "outlier"])
@pytest.mark.parametrize("mode", ["batch", "incremental", "online"])
def test_degenerate_input_gives_a_sane_model(make, mode):
    sequences = make(np.random.default_rng(12))
    for dtype in (torch.float32, torch.float64):
        hmm, prior = initialise(sequences, 8)
        result = fit(sequences, hmm, prior=prior, mode=mode, n_groups=3, n_iterations=6, dtype=dtype)
        assert all(np.isfinite(p).all() for p in parameters(result.hmm))
        assert np.isfinite([r["log_posterior"] for r in result.history]).all()
        np.testing.assert_allclose(result.hmm.transition.sum(1), 1)


def test_errors_name_the_culprit(world):
    hmm, sequences = world
    bad = [y.copy() for y in sequences]; bad[3][10, 2] = np.nan
    for call in (lambda: e_step(hmm, bad), lambda: fit(bad, hmm), lambda: initialise(bad, 3), lambda: select_n_states(bad, (2,))):
        with pytest.raises(ValueError, match="sequence 3 holds NaN"): call()
    with pytest.raises(ValueError, match="sequence 1 must be"): e_step(hmm, [sequences[0], np.zeros((0, D))])
    with pytest.raises(ValueError, match="sequence 0 has 4 features, expected 5"): e_step(hmm, [np.zeros((9, 4))])
    with pytest.raises(ValueError, match="no sequences"): e_step(hmm, [])
    with pytest.raises(ValueError, match="5 frames cannot fill 8 states"): initialise([np.zeros((3, 2)), np.ones((2, 2))], 8)
    with pytest.raises(ValueError, match="dtype"): e_step(hmm, sequences, dtype=torch.float16)
    with pytest.raises(ValueError, match="mode"): fit(sequences, hmm, mode="fast")
    with pytest.raises(ValueError, match="n_iterations"): fit(sequences, hmm, n_iterations=0)
    with pytest.raises(ValueError, match="state 0.*use a Prior"): m_step(e_step(GaussianHMM([1], [[1]], [[0.]], [[[1.]]]), [np.zeros((9, 1))]), GaussianHMM([1], [[1]], [[0.]], [[[1.]]]))
    with pytest.raises(ValueError, match="sum to 1"): GaussianHMM([.5, .2], np.eye(2), np.zeros((2, 1)), np.ones((2, 1, 1)))
    with pytest.raises(ValueError, match="transition has shape"): GaussianHMM([.5, .5], np.eye(3), np.zeros((2, 1)), np.ones((2, 1, 1)))
    with pytest.raises(ValueError, match="state 1 has NaN"): GaussianHMM([.5, .5], np.eye(2), [[0.], [np.nan]], np.ones((2, 1, 1)))
    with pytest.raises(ValueError, match="positive variance"): Prior([1., 0.])


# Training

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["batch", "incremental", "online"])
def test_resume_is_exact_in_every_mode(world, tmp_path, mode, dtype):
    _, sequences = world
    hmm, prior = initialise(sequences, 6)
    settings = dict(prior=prior, mode=mode, n_groups=4, tolerance=-np.inf, dtype=dtype, seed=5)
    whole = fit(sequences, hmm, n_iterations=7, **settings)
    first = fit(sequences, hmm, n_iterations=3, **settings)
    np.savez(tmp_path / "state.npz", **first.state)  # the state survives being plain arrays on a disk
    state = dict(np.load(tmp_path / "state.npz"))
    second = fit(sequences, GaussianHMM(*parameters(first.hmm)), n_iterations=4, state=state, **settings)
    assert same(whole.hmm, second.hmm) and same_statistics(whole.statistics, second.statistics)
    assert whole.history == first.history + second.history
    assert [r["iteration"] for r in whole.history] == list(range(1, 8))


def test_batch_resumes_from_the_model_alone(world):
    "A minimal checkpoint has the model and the iteration; in batch mode the parameters go on exactly."
    _, sequences = world
    hmm, prior = initialise(sequences, 6)
    whole = fit(sequences, hmm, n_iterations=6, prior=prior, tolerance=-np.inf)
    first = fit(sequences, hmm, n_iterations=4, prior=prior, tolerance=-np.inf)
    second = fit(sequences, first.hmm, n_iterations=2, prior=prior, tolerance=-np.inf, start_iteration=4)
    assert same(whole.hmm, second.hmm) and second.history[-1]["iteration"] == 6


def test_a_state_of_other_audio_is_refused(world):
    _, sequences = world
    hmm, prior = initialise(sequences, 4)
    state = fit(sequences, hmm, prior=prior, mode="incremental", n_groups=4, n_iterations=1).state
    with pytest.raises(ValueError, match="groups"): fit(sequences, hmm, prior=prior, mode="incremental", n_groups=2, state=state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["batch", "incremental"])
def test_order_of_files_does_not_matter(world, mode, dtype):
    _, sequences = world
    hmm, prior = initialise(sequences, 5, seed=2)
    again, _ = initialise(sequences[::-1], 5, seed=2)
    assert same(hmm, again)
    expected = fit(sequences, hmm, prior=prior, mode=mode, n_groups=3, n_iterations=5, dtype=dtype).hmm
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(sequences))
        close(fit([sequences[i] for i in order], hmm, prior=prior, mode=mode, n_groups=3, n_iterations=5, dtype=dtype).hmm, expected, 1e-8)


def test_permuting_files_in_the_e_step_itself(world):
    hmm, sequences = world
    close(m_step(e_step(hmm, sequences[::-1], dtype=torch.float64), hmm), m_step(e_step(hmm, sequences, dtype=torch.float64), hmm), 1e-8)


def test_incremental_is_quicker_per_pass_and_ends_as_high():
    rng = np.random.default_rng(13)
    truth = random_hmm(rng, 12, 4, stay=20.)
    sequences = sample(truth, [400] * 12, rng)
    hmm, prior = initialise(sequences, 12)
    passes = {}
    for mode in ("batch", "incremental"):
        passes[mode] = [log_likelihood(r.hmm, sequences) for r, _ in zip(iterate(sequences, hmm, prior=prior, mode=mode, dtype=torch.float64), range(8))]
    assert passes["incremental"][3] > passes["batch"][3]
    online = fit(sequences, hmm, prior=prior, mode="online", n_iterations=3, tolerance=-np.inf)
    assert log_likelihood(online.hmm, sequences) > log_likelihood(hmm, sequences)


def test_online_follows_a_stream_buffer_by_buffer():
    "One call with all buffers, or a call for each: the same model."
    rng = np.random.default_rng(14)
    sequences = sample(random_hmm(rng, 5, 3), [200] * 5, rng)
    hmm, prior = initialise(sequences[:1], 5)
    whole = fit(sequences, hmm, prior=prior, mode="online", n_groups=5, n_iterations=1)
    state, model = None, hmm
    for y in sequences:
        part = fit([y], model, prior=prior, mode="online", n_groups=1, n_iterations=1, state=state)
        model, state = part.hmm, part.state
    assert same(whole.hmm, model)


def test_one_long_recording_in_incremental_mode():
    rng = np.random.default_rng(15)
    truth = random_hmm(rng, 5, 3)
    y, = sample(truth, [4000], rng)
    hmm, prior = initialise([y], 5)
    result = fit([y], hmm, prior=prior, mode="incremental", n_groups=5, n_iterations=4, dtype=torch.float64)
    assert result.statistics.frames == 4000 and result.statistics.counts.sum() == pytest.approx(4000)
    assert result.statistics.transitions.sum() == pytest.approx(3999)
    assert len(result.state["group_frames"]) == 5
    batch = fit([y], hmm, prior=prior, n_iterations=4, dtype=torch.float64)
    assert log_likelihood(result.hmm, [y]) > log_likelihood(batch.hmm, [y]) > log_likelihood(hmm, [y])


def test_history_and_callback_and_stopping(world):
    _, sequences = world
    hmm, prior = initialise(sequences, 5)
    seen = []
    result = fit(sequences, hmm, prior=prior, n_iterations=200, tolerance=1e-3, dtype=torch.float64, callback=lambda row, model: seen.append((row, model)))
    assert result.converged and 2 < len(result.history) < 200
    assert [row for row, _ in seen] == result.history and same(seen[-1][1], result.hmm)
    assert set(result.history[0]) == {"iteration", "log_likelihood", "log_posterior", "per_frame", "occupancy_entropy", "change", "reseeded"}
    assert result.history[0]["change"] is None and result.history[-1]["change"] < 1e-3 <= result.history[-2]["change"]
    objective = [r["log_posterior"] for r in result.history]
    assert (np.diff(objective) > 0).all()
    assert result.history[0]["log_likelihood"] == pytest.approx(log_likelihood(hmm, sequences))
    assert 0 < result.history[-1]["occupancy_entropy"] <= np.log(5)
    close(m_step(result.statistics, hmm, prior), result.hmm, 1e-12)


def far_away(sequences, k=1):
    "A start in which state `k` explains nothing."
    hmm, prior = initialise(sequences, 5)
    means = hmm.means.copy(); means[k] = 500.
    return GaussianHMM(hmm.initial, hmm.transition, means, hmm.covariances), prior


@pytest.mark.parametrize("mode", ["batch", "incremental", "online"])
def test_dead_states_come_back(world, mode):
    _, sequences = world
    hmm, prior = far_away(sequences)
    runs = [fit(sequences, hmm, prior=prior, mode=mode, n_groups=3, n_iterations=8, tolerance=-np.inf) for _ in range(2)]
    at = [1] if mode != "online" else range(1, 9)  # a running average takes longer to notice
    assert any(row["reseeded"] == [1] and row["iteration"] in at for row in runs[0].history)
    assert same(runs[0].hmm, runs[1].hmm) and runs[0].history == runs[1].history
    assert runs[0].statistics.counts.min() >= 2 * D and abs(runs[0].hmm.means[1]).max() < 50


def test_reseeding_is_bounded():
    "A hopeless state gets three lives, then training comes to rest; too little audio to share is left alone."
    rng = np.random.default_rng(16)
    y = rng.standard_normal((400, 2)).round(0) * 1e-3
    hmm, prior = initialise([y], 30)
    result = fit([y], hmm, prior=prior, n_iterations=300, tolerance=1e-6)
    assert result.converged
    assert max(np.bincount(sum((r["reseeded"] for r in result.history), [0]))) <= 4
    small, reborn = reseed_dead(hmm, np.full(30, 3.), np.full(30, 3))
    assert small is hmm and reborn == []


def test_resume_is_exact_across_a_reseeding(world):
    _, sequences = world
    hmm, prior = far_away(sequences)
    for mode in ("batch", "incremental"):
        settings = dict(prior=prior, mode=mode, n_groups=3, tolerance=-np.inf)
        whole = fit(sequences, hmm, n_iterations=5, **settings)
        first = fit(sequences, hmm, n_iterations=1, **settings)
        assert first.history[0]["reseeded"] == [1]
        assert same(whole.hmm, fit(sequences, first.hmm, n_iterations=4, state=first.state, **settings).hmm)


def test_bic_finds_the_number_of_states_and_ignores_copies():
    rng = np.random.default_rng(17)
    truth = GaussianHMM(np.full(4, .25), .9 * np.eye(4) + .025, 6 * np.eye(4)[:, :2] + 3 * np.eye(4)[:, 2:], [np.eye(2)] * 4)
    sequences = sample(truth, [500] * 4, rng)
    best, table = select_n_states(sequences, (1, 2, 3, 4, 5, 6, 8, 10 ** 6))
    assert best == 4 and [r["n_states"] for r in table] == [1, 2, 3, 4, 5, 6, 8]
    assert table[3]["bic"] == pytest.approx(-2 * table[3]["log_likelihood"] + (4 * 3 + 3 + 4 * 2 + 4 * 3) * np.log(2000))
    with pytest.raises(ValueError, match="none of the candidates"): select_n_states([np.zeros((5, 2))], (8, 16))


# Adaptation

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
    untouched, same_again, _ = adapt(result.hmm, result.statistics, new, prior, rate=1., stability_bias=1.)
    assert same(untouched, result.hmm) and same_statistics(same_again, result.statistics)
    full, _, _ = adapt(result.hmm, result.statistics, new, prior, rate=1., stability_bias=0., dtype=torch.float64)
    close(full, fit(new, result.hmm, prior=prior, n_iterations=1, dtype=torch.float64).hmm, 1e-9)
    for wrong in (dict(rate=1.1), dict(rate=-.1), dict(stability_bias=2), dict(rate=float("nan")), dict(n_iterations=0)):
        with pytest.raises(ValueError): adapt(result.hmm, result.statistics, new, prior, **wrong)


def test_expected_statistics_are_the_models_own(trained):
    _, _, result = trained
    close(GaussianHMM(result.hmm.initial, *parameters(m_step(expected_statistics(result.hmm, 500.), result.hmm))[1:]), result.hmm, 1e-9)


def test_kmeans_is_seeded_and_spreads(world):
    _, sequences = world
    y = np.concatenate(sequences)
    a, b = (kmeans(y, 6, np.random.default_rng(0)) for _ in range(2))
    assert np.array_equal(a, b)
    cost = ((y[:, None] - a) ** 2).sum(2).min(1).sum()
    random_cost = np.mean([((y[:, None] - y[np.random.default_rng(s).choice(len(y), 6)]) ** 2).sum(2).min(1).sum() for s in range(5)])
    assert cost < .8 * random_cost
