"Fitting a model: calm on degenerate input, whatever the order, exact when interrupted."
from itertools import islice

import numpy as np
import pytest
import torch
from hmm_models import (
    D, close, make_world, parameters, random_hmm, same, same_statistics, sample,
)

from audiolab.ssgs import (
    GaussianHMM, Prior, e_step, fit, initialise, iterate, kmeans, log_likelihood, m_step,
    reseed_dead, select_n_states,
)


@pytest.fixture(scope="module")
def world(): return make_world()


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
    means = 4 * np.eye(4)[:, :3] - 1
    truth = GaussianHMM(np.full(4, .25), .85 * np.eye(4) + .05 / 4 * 3, means, [np.eye(3)] * 4)
    sequences = sample(truth, [600] * 8, rng)
    hmm, prior = initialise(sequences, 4)
    ours = fit(sequences, hmm, prior=prior, n_iterations=30).hmm
    order = np.linalg.norm(ours.means[:, None] - truth.means, axis=2).argmin(0)
    np.testing.assert_allclose(ours.means[order], truth.means, atol=.15)
    np.testing.assert_allclose(ours.transition[np.ix_(order, order)], truth.transition, atol=.04)


def test_kmeans_is_seeded_and_spreads(world):
    _, sequences = world
    y = np.concatenate(sequences)
    a, b = (kmeans(y, 6, np.random.default_rng(0)) for _ in range(2))
    assert np.array_equal(a, b)
    def cost(centres): return ((y[:, None] - centres) ** 2).sum(2).min(1).sum()
    random = [y[np.random.default_rng(seed).choice(len(y), 6)] for seed in range(5)]
    assert cost(a) < .8 * np.mean([cost(centres) for centres in random])


# Degenerate input

@pytest.mark.parametrize("make", [
    lambda rng: [np.zeros((300, D))],  # digital silence
    lambda rng: [np.repeat(rng.standard_normal((3, D)), 60, 0)],  # three distinct frames
    lambda rng: [np.zeros((200, D)), rng.standard_normal((200, D))],  # silence, then sound
    # a feature that never varies
    lambda rng: [np.column_stack([rng.standard_normal((200, D - 1)), np.ones(200)])],
    lambda rng: [rng.standard_normal((1, D)) for _ in range(20)],  # files of one frame
    lambda rng: [rng.standard_normal((9, D))],  # hardly more frames than states
    lambda rng: [1e6 * rng.standard_normal((200, D))],  # absurd units
    # one click
    lambda rng: [np.concatenate([rng.standard_normal((200, D)), 1e4 * np.ones((1, D))])],
], ids=["silence", "duplicates", "half-silent", "constant-feature", "one-frame-files", "few-frames",
        "huge", "outlier"])
@pytest.mark.parametrize("mode", ["batch", "incremental", "online"])
def test_degenerate_input_gives_a_sane_model(make, mode):
    sequences = make(np.random.default_rng(12))
    for dtype in (torch.float32, torch.float64):
        hmm, prior = initialise(sequences, 8)
        how = {"mode": mode, "n_groups": 3, "n_iterations": 6, "dtype": dtype}
        result = fit(sequences, hmm, prior=prior, **how)
        assert all(np.isfinite(p).all() for p in parameters(result.hmm))
        assert np.isfinite([r["log_posterior"] for r in result.history]).all()
        np.testing.assert_allclose(result.hmm.transition.sum(1), 1)


def test_errors_name_the_culprit(world):
    hmm, sequences = world
    bad = [y.copy() for y in sequences]
    bad[3][10, 2] = np.nan
    for call in (lambda: e_step(hmm, bad), lambda: fit(bad, hmm), lambda: initialise(bad, 3),
                 lambda: select_n_states(bad, (2,))):
        with pytest.raises(ValueError, match="sequence 3 holds NaN"): call()
    with pytest.raises(ValueError, match="sequence 1 must be"):
        e_step(hmm, [sequences[0], np.zeros((0, D))])
    with pytest.raises(ValueError, match="sequence 0 has 4 features, expected 5"):
        e_step(hmm, [np.zeros((9, 4))])
    with pytest.raises(ValueError, match="no sequences"): e_step(hmm, [])
    with pytest.raises(ValueError, match="5 frames cannot fill 8 states"):
        initialise([np.zeros((3, 2)), np.ones((2, 2))], 8)
    with pytest.raises(ValueError, match="dtype"): e_step(hmm, sequences, dtype=torch.float16)
    with pytest.raises(ValueError, match="mode"): fit(sequences, hmm, mode="fast")
    with pytest.raises(ValueError, match="n_iterations"): fit(sequences, hmm, n_iterations=0)
    single, silence = GaussianHMM([1], [[1]], [[0.]], [[[1.]]]), [np.zeros((9, 1))]
    with pytest.raises(ValueError, match="state 0.*use a Prior"):
        m_step(e_step(single, silence), single)


def test_impossible_models_are_refused():
    zeros, ones = np.zeros((2, 1)), np.ones((2, 1, 1))
    for match, wrong in (
        ("sum to 1", ([.5, .2], np.eye(2), zeros, ones)),
        ("transition has shape", ([.5, .5], np.eye(3), zeros, ones)),
        ("state 1 has NaN", ([.5, .5], np.eye(2), [[0.], [np.nan]], ones)),
    ):
        with pytest.raises(ValueError, match=match): GaussianHMM(*wrong)
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
    # the state survives being plain arrays on a disk
    np.savez(tmp_path / "state.npz", **first.state)
    state = dict(np.load(tmp_path / "state.npz"))
    model = GaussianHMM(*parameters(first.hmm))
    second = fit(sequences, model, n_iterations=4, state=state, **settings)
    assert same(whole.hmm, second.hmm) and same_statistics(whole.statistics, second.statistics)
    assert whole.history == first.history + second.history
    assert [r["iteration"] for r in whole.history] == list(range(1, 8))


def test_batch_resumes_from_the_model_alone(world):
    "A minimal checkpoint has model and iteration; in batch mode the parameters go on exactly."
    _, sequences = world
    hmm, prior = initialise(sequences, 6)
    how = {"prior": prior, "tolerance": -np.inf}
    whole = fit(sequences, hmm, n_iterations=6, **how)
    first = fit(sequences, hmm, n_iterations=4, **how)
    second = fit(sequences, first.hmm, n_iterations=2, start_iteration=4, **how)
    assert same(whole.hmm, second.hmm) and second.history[-1]["iteration"] == 6


def test_a_state_of_other_audio_is_refused(world):
    _, sequences = world
    hmm, prior = initialise(sequences, 4)
    state = fit(sequences, hmm, prior=prior, mode="incremental", n_groups=4, n_iterations=1).state
    with pytest.raises(ValueError, match="groups"):
        fit(sequences, hmm, prior=prior, mode="incremental", n_groups=2, state=state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["batch", "incremental"])
def test_order_of_files_does_not_matter(world, mode, dtype):
    _, sequences = world
    hmm, prior = initialise(sequences, 5, seed=2)
    again, _ = initialise(sequences[::-1], 5, seed=2)
    assert same(hmm, again)
    how = {"prior": prior, "mode": mode, "n_groups": 3, "n_iterations": 5, "dtype": dtype}
    expected = fit(sequences, hmm, **how).hmm
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(sequences))
        close(fit([sequences[i] for i in order], hmm, **how).hmm, expected, 1e-8)


def test_incremental_is_quicker_per_pass_and_ends_as_high():
    rng = np.random.default_rng(13)
    truth = random_hmm(rng, 12, 4, stay=20.)
    sequences = sample(truth, [400] * 12, rng)
    hmm, prior = initialise(sequences, 12)
    passes = {}
    for mode in ("batch", "incremental"):
        results = iterate(sequences, hmm, prior=prior, mode=mode, dtype=torch.float64)
        passes[mode] = [log_likelihood(r.hmm, sequences) for r in islice(results, 8)]
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
    how = {"prior": prior, "n_iterations": 4, "dtype": torch.float64}
    result = fit([y], hmm, mode="incremental", n_groups=5, **how)
    assert result.statistics.frames == 4000
    assert result.statistics.counts.sum() == pytest.approx(4000)
    assert result.statistics.transitions.sum() == pytest.approx(3999)
    assert len(result.state["group_frames"]) == 5
    batch = fit([y], hmm, **how)
    better, good, start = (log_likelihood(model, [y]) for model in (result.hmm, batch.hmm, hmm))
    assert better > good > start


def test_history_and_callback_and_stopping(world):
    _, sequences = world
    hmm, prior = initialise(sequences, 5)
    seen = []
    result = fit(sequences, hmm, prior=prior, n_iterations=200, tolerance=1e-3, dtype=torch.float64,
                 callback=lambda row, model: seen.append((row, model)))
    assert result.converged and 2 < len(result.history) < 200
    assert [row for row, _ in seen] == result.history and same(seen[-1][1], result.hmm)
    assert set(result.history[0]) == {"iteration", "log_likelihood", "log_posterior", "per_frame",
                                      "occupancy_entropy", "change", "reseeded"}
    changes = [row["change"] for row in result.history]
    assert changes[0] is None and changes[-1] < 1e-3 <= changes[-2]
    objective = [r["log_posterior"] for r in result.history]
    assert (np.diff(objective) > 0).all()
    assert result.history[0]["log_likelihood"] == pytest.approx(log_likelihood(hmm, sequences))
    assert 0 < result.history[-1]["occupancy_entropy"] <= np.log(5)
    close(m_step(result.statistics, hmm, prior), result.hmm, 1e-12)


def far_away(sequences, k=1):
    "A start in which state `k` explains nothing."
    hmm, prior = initialise(sequences, 5)
    means = hmm.means.copy()
    means[k] = 500.
    return GaussianHMM(hmm.initial, hmm.transition, means, hmm.covariances), prior


@pytest.mark.parametrize("mode", ["batch", "incremental", "online"])
def test_dead_states_come_back(world, mode):
    _, sequences = world
    hmm, prior = far_away(sequences)
    how = {"prior": prior, "mode": mode, "n_groups": 3, "n_iterations": 8, "tolerance": -np.inf}
    runs = [fit(sequences, hmm, **how) for _ in range(2)]
    at = [1] if mode != "online" else range(1, 9)  # a running average takes longer to notice
    assert any(row["reseeded"] == [1] and row["iteration"] in at for row in runs[0].history)
    assert same(runs[0].hmm, runs[1].hmm) and runs[0].history == runs[1].history
    assert runs[0].statistics.counts.min() >= 2 * D and abs(runs[0].hmm.means[1]).max() < 50


def test_reseeding_is_bounded():
    "A hopeless state gets three lives, then training rests; too little to share is left alone."
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
        rest = fit(sequences, first.hmm, n_iterations=4, state=first.state, **settings)
        assert same(whole.hmm, rest.hmm)


def test_bic_finds_the_number_of_states_and_ignores_copies():
    rng = np.random.default_rng(17)
    means = 6 * np.eye(4)[:, :2] + 3 * np.eye(4)[:, 2:]
    truth = GaussianHMM(np.full(4, .25), .9 * np.eye(4) + .025, means, [np.eye(2)] * 4)
    sequences = sample(truth, [500] * 4, rng)
    best, table = select_n_states(sequences, (1, 2, 3, 4, 5, 6, 8, 10 ** 6))
    assert best == 4 and [r["n_states"] for r in table] == [1, 2, 3, 4, 5, 6, 8]
    bic = -2 * table[3]["log_likelihood"] + (4 * 3 + 3 + 4 * 2 + 4 * 3) * np.log(2000)
    assert table[3]["bic"] == pytest.approx(bic)
    with pytest.raises(ValueError, match="none of the candidates"):
        select_n_states([np.zeros((5, 2))], (8, 16))
