"Measures of heard voices: nothing for the mean voice, all for the truth, the same over processes"
import numpy as np
import pytest
import torch

from audiolab.training import TrainingConfig, check_best_metric
from audiolab.voice import (
    ALL_STYLE_MEASURES, ParametricStyles, StyleMeasures, draw_factors, fit_basis, of_several_clips,
    retrieval, style_table,
)

STYLES = ParametricStyles()


@pytest.fixture(scope="module")
def exam():
    "Bases, and twelve voices with their factors."
    rng = np.random.default_rng(0)
    learned, drawn = STYLES.encode(*draw_factors(100, rng)), draw_factors(12, rng)
    bases = {name: fit_basis(learned.part(name)) for name in ("ttl", "dp")}
    return bases, STYLES.encode(*drawn), drawn


def measures(exam, parametric=STYLES, ids=None):
    bases, truth, _ = exam
    ids = np.arange(12) if ids is None else ids
    return StyleMeasures(**bases, style_ids=ids, true_ttl=truth.ttl, true_dp=truth.dp,
                         parametric=parametric)


def noisy(exam, seed, heard=.7):
    rng, (factors, rates) = np.random.default_rng(seed), exam[2]
    said = STYLES.encode(heard*factors + .3*rng.standard_normal(factors.shape),
                         heard*rates + .3*rng.standard_normal(12))
    return said.ttl, said.dp


def test_the_truth_and_the_mean_voice(exam):
    found = measures(exam)
    found.add(exam[1].ttl, exam[1].dp, np.arange(12))
    values, mean = found.values(), found.mean_voice()
    assert set(values) == set(ALL_STYLE_MEASURES)
    assert set(mean) == {name for name in values if "/" not in name}
    for name, value in values.items():
        perfect = 0 if name.endswith("rate_error") else 1
        assert abs(value - perfect) < 1e-4, (name, value)
    for name, value in mean.items():
        usual = {"cosine": .93, "rate_error": .14, "retrieval_top1": 1/12, "mrr": .2586}
        near = .07 if name in ("cosine", "rate_error") else 1e-4
        assert abs(value - usual.get(name, 0)) < near, (name, value)


def test_figures_by_hand(exam):
    "R2, skill, centred cosine and factors, written once more and plainly"
    bases, truth, (factors, rates) = exam
    (ttl, dp), found = noisy(exam, 1), measures(exam)
    found.add(ttl, dp, np.arange(12))
    values = found.values()
    centre = bases["ttl"].decode(np.zeros(len(bases["ttl"])))
    right, said = truth.ttl - centre, ttl - centre
    assert np.isclose(values["r2_ttl"], 1 - ((said - right)**2).sum()/(right**2).sum(), atol=1e-4)
    cosines = [(a*b).sum()/np.sqrt((a**2).sum()*(b**2).sum()) for a, b in zip(said, right)]
    assert np.isclose(values["centred_cosine_ttl"], np.mean(cosines), atol=1e-4)
    read = STYLES.decode(type(truth)(ttl, dp, STYLES.space))
    assert np.isclose(values["rate_error"], .18*abs(read[1] - rates).mean(), atol=1e-3)
    by_factor = 1 - ((read[0] - factors)**2).sum(0)/(factors**2).sum(0)
    assert abs(values["factor_r2"] - by_factor.mean()) < .05  # beside the mean voice, not zero
    rate_r2 = 1 - ((read[1] - rates)**2).sum()/(rates**2).sum()
    assert abs(values["rate_r2"] - rate_r2) < .05


def test_several_clips_are_heard_better_than_one(exam):
    found = measures(exam)
    for seed in range(4): found.add(*noisy(exam, seed, heard=1), np.arange(12))
    values = found.values()
    assert of_several_clips(values)["r2"] > values["r2"] + .02


def test_in_batches_and_over_processes(exam):
    "Sums do not depend on how clips are divided; one process may have none"
    whole, parts = measures(exam), [measures(exam) for _ in range(3)]
    for seed in range(2):
        ttl, dp = noisy(exam, seed)
        whole.add(ttl, dp, np.arange(12))
        for part, some in zip(parts, (slice(0, 5), slice(5, 12))):
            tables = [torch.from_numpy(rows[some]) for rows in (ttl, dp)]
            part.add(*tables, torch.arange(12)[some])

    class Place:  # as if three processes called `sum` in turn
        def __init__(self): self.turn = 0
        def sum(self, values):
            kept = [[part.counts, *part.sums.values(), *part.guessed.values()] for part in parts]
            self.turn += 1
            return sum(np.asarray(one[self.turn - 1], np.float64) for one in kept)
    one, other = whole.values(), parts[2].values(Place())
    assert one.keys() == other.keys()
    for name in one: assert abs(one[name] - other[name]) < 1e-5, name
    assert measures(exam).values() == {} == measures(exam).mean_voice()


def test_retrieval_of_equals():
    first, reciprocal = retrieval(np.ones((5, 4)), np.arange(5) % 4)
    assert np.allclose(first, 1/4) and np.allclose(reciprocal, np.mean([1, 1/2, 1/3, 1/4]))
    first, reciprocal = retrieval(np.eye(4)[::-1], np.arange(4))
    assert not first.any() and np.allclose(reciprocal, np.mean([1/2, 1/3, 1/4]))


def test_other_teachers_have_no_factors(exam):
    found = measures(exam, parametric=None, ids=np.array(list("abcdefghijkl")))
    found.add(exam[1].ttl[:2], exam[1].dp[:2], ["k", "b"])
    assert not {"factor_r2", "rate_error"} & set(found.values())
    assert found.counts[[1, 10]].tolist() == [1, 1] and found.counts.sum() == 2
    with pytest.raises(ValueError, match="style z is not among the 12"):
        found.add(exam[1].ttl[:1], exam[1].dp[:1], ["z"])


def test_several_clips_of_a_voice_are_examined_once(exam):
    bases, truth, _ = exam
    found = StyleMeasures(**bases, style_ids=[7, 7, 3], true_ttl=truth.ttl[[0, 0, 1]],
                          true_dp=truth.dp[[0, 0, 1]])
    found.add(truth.ttl[[0, 1]], truth.dp[[0, 1]], [7, 3])
    assert found.ids.tolist() == [3, 7] and found.values()["retrieval_top1"] == 1


def test_names_are_known_and_the_mean_voice_is_always_there(exam):
    check_best_metric("voice", ALL_STYLE_MEASURES, TrainingConfig(best_metric="centred_cosine"))
    found = measures(exam)
    found.add(*noisy(exam, 0), np.arange(12))
    table = style_table({"encoder": found.values()}, found.mean_voice())
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["mean voice", "encoder"]
