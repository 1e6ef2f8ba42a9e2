"A search for a voice: convergence, one result for one seed, in pieces, in budget, past failures."
import json

import numpy as np
import pytest

from audiolab.voice import (
    ParametricTeacher, Search, SearchBudget, SpeechFailed, StyleError, StyleSpace, VoiceStyle,
    draw_factors, fit_basis, load_voice, parse_budget, refine, region_width, tame)

SIZE = 24
LIMITS = np.full(SIZE, 3.)


def course(height, trials, seed=0, size=SIZE):
    "The lowest height after each trial, as a share of the first."
    search = Search(-LIMITS[:size], LIMITS[:size], seed=seed)
    points, values = np.zeros((0, size)), np.zeros(0)
    while len(values) < trials:
        proposed = search.propose(points, values)
        assert (abs(proposed) <= 3).all() and proposed.shape == (8, size)
        points = np.vstack([points, proposed])
        values = np.append(values, [height(point) for point in proposed])
    return np.fmin.accumulate(values)/values[0]


def test_search_finds_the_bottom_of_a_sphere_and_of_a_turned_ellipsoid():
    # CMA-ES (cma 4.5.0, same step and limits): .44 and .51 after 64 trials, .25 and .35 after 120
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal(SIZE).clip(-2, 2)
    turned = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))[0]
    steepness = 10**np.linspace(0, 1, SIZE)
    assert course(lambda x: ((x - hidden)**2).mean(), 64)[-1] < .05
    assert course(lambda x: steepness@(turned@(x - hidden))**2, 96)[-1] < .08


def test_search_stays_within_its_limits_where_the_bottom_lies_beyond():
    lowest = course(lambda x: ((x - 4)**2).sum(), 56, size=4)
    assert lowest[-1] == pytest.approx(1/16, rel=.2)  # the corner


def test_failures_and_outliers_do_not_flatten_the_map():
    values = tame(np.array([3., 2, 3, np.nan, 1e9, 1]), first=5)
    assert values.tolist() == [3, 2, 3, 5, 5, 1]
    assert not tame(np.full(3, np.nan), first=3).any()
    assert region_width(np.full((3, 2), np.nan), 1., 4.) == 2  # failures do not make it smaller


def test_budgets():
    assert parse_budget("2 hours, 10 trials") == SearchBudget(10, 7200)
    assert SearchBudget(seconds=10).left(4, 12.) == 0
    for text in ("", "5", "many trials", "-3 trials", "nan seconds", "1.5.2 minutes"):
        with pytest.raises(ValueError): parse_budget(text)


SPACE = StyleSpace("flat", "1", (1, 4), (1, 3), unit=False)
BASES = {part: fit_basis(np.random.default_rng(1).standard_normal((50, 1, size)), 3, unit=False)
         for part, size in (("ttl", 4), ("dp", 3))}
START = VoiceStyle(np.zeros((1, 4)), np.zeros((1, 3)), SPACE, {"consent": "mine", "name": "start"})


class FlatTeacher:
    "Says its style as samples, and nothing in voices whose first number is above a limit."
    space, sample_rate, languages = SPACE, 8000, ("en",)

    def __init__(self, limit=np.inf): self.limit, self.calls = limit, 0
    def presets(self): return {"start": START}
    def fingerprint(self): return "flat"

    def synthesize(self, texts, styles, *, lang="en", steps=5, speed=1., seeds=None):
        from audiolab.voice import Speech
        self.calls += 1
        if (styles.ttl[:, 0, 0] > self.limit).any(): raise SpeechFailed("too much")
        pairs = zip(styles.ttl, styles.dp)
        return [Speech(np.concatenate([ttl[0], dp[0]]), 1.) for ttl, dp in pairs]


def to_one(clips): return float(np.mean([((audio - 1)**2).mean() for audio, _ in clips]))


def search(trials, folder=None, teacher=None, distance=to_one, **more):
    teacher = teacher or FlatTeacher()
    return refine(START, teacher, distance, BASES, f"{trials} trials", folder=folder, **more)


def test_same_seed_same_search():
    one, other = search(24), search(24)
    assert np.array_equal(one.points, other.points)
    assert np.array_equal(one.distances, other.distances)
    assert not np.array_equal(one.points, search(24, seed=1).points)
    assert np.array_equal(search(40).points[:24], one.points)
    assert one.after < .3*one.before and one.style.notes["consent"] == "mine"
    assert not one.points[0].any() and one.before == to_one([(np.zeros(7), 8000)])


def test_a_round_is_one_call():
    teacher = FlatTeacher()
    search(24, teacher=teacher, texts=("a", "b"))
    assert teacher.calls == 3


@pytest.mark.parametrize("stop", (1, 8, 13))
def test_resumed_is_unbroken(tmp_path, stop):
    whole = search(24)
    search(stop, tmp_path)
    log = tmp_path/"trials.jsonl"
    log.write_bytes(log.read_bytes() + b'{"point": [0.25, ')  # a power failure
    again = search(24, tmp_path)
    assert np.array_equal(whole.points, again.points)
    assert np.array_equal(whole.distances, again.distances)
    assert np.array_equal(load_voice(tmp_path/"refined.json", SPACE).ttl, whole.style.ttl)
    teacher = FlatTeacher()
    assert search(24, tmp_path, teacher).after == whole.after and not teacher.calls


def test_an_interrupted_round_is_made_again(tmp_path):
    def interrupt(clips):
        if len(heard) == 12: raise KeyboardInterrupt
        heard.append(clips)
        return to_one(clips)
    interrupt.name, heard = "to_one", []
    with pytest.raises(KeyboardInterrupt): search(24, tmp_path, distance=interrupt)
    assert len((tmp_path/"trials.jsonl").read_text().splitlines()) == 1 + 8
    heard += [None]*99
    assert np.array_equal(search(24, tmp_path, distance=interrupt).points, search(24).points)


def test_trials_of_another_search_are_refused(tmp_path):
    search(8, tmp_path)
    with pytest.raises(StyleError, match="seed differ"): search(9, tmp_path, seed=1)
    with pytest.raises(StyleError, match="texts differ"): search(9, tmp_path, texts=("else",))
    (tmp_path/"trials.jsonl").write_text("[1, 2]\n")
    with pytest.raises(StyleError, match="no trials"): search(9, tmp_path)
    (tmp_path/"trials.jsonl").write_text("\x00\n")
    with pytest.raises(StyleError, match="no trials"): search(9, tmp_path)


def test_seconds_decide_how_many_trials_and_nothing_else(tmp_path):
    ticks = iter(range(10_000))
    timed = refine(START, FlatTeacher(), to_one, BASES, SearchBudget(seconds=12.5),
                   clock=lambda: float(next(ticks)))  # each advance takes a second
    assert 12 <= timed.seconds < 13.5
    assert np.array_equal(timed.points, search(len(timed.points)).points)


@pytest.mark.parametrize("bad", (np.nan, np.inf, ValueError("no sound"), ZeroDivisionError()))
def test_a_trial_that_fails_does_not_end_the_search(tmp_path, bad):
    def distance(clips):
        if clips[0][0][0] < -.3:
            if isinstance(bad, Exception): raise bad
            return bad
        return to_one(clips)
    found = search(32, tmp_path, FlatTeacher(limit=.9), distance)
    failed = np.isnan(found.distances)
    assert 0 < failed.sum() < 32 and found.after < .6*found.before
    rows = [json.loads(line) for line in (tmp_path/"trials.jsonl").read_text().splitlines()[1:]]
    assert [row["distance"] is None for row in rows] == failed.tolist()


def test_where_nothing_can_be_heard_it_says_why():
    with pytest.raises(StyleError, match="16 voices could be .*too much"):
        search(50, teacher=FlatTeacher(limit=-9))


def test_wrong_starts_and_bases():
    other = VoiceStyle(START.ttl, START.dp, StyleSpace("flat", "2", (1, 4), (1, 3), unit=False))
    with pytest.raises(StyleError, match="nothing to do with"):
        refine(other, FlatTeacher(), to_one, BASES, "8 trials")
    with pytest.raises(StyleError, match="no bases"):
        refine(START, FlatTeacher(), to_one, {}, "8 trials")
    with pytest.raises(StyleError, match="no bases"):
        refine(START, FlatTeacher(), to_one, {"dp": BASES["ttl"]}, "8 trials")
    with pytest.raises(ValueError, match="give texts"): search(8, lang="xx")


def test_a_part_without_basis_stays(tmp_path):
    found = refine(START, FlatTeacher(), to_one, {"ttl": BASES["ttl"]}, "16 trials")
    assert np.array_equal(found.style.dp, START.dp) and found.style.ttl.any()


def test_rows_stay_on_the_sphere():
    teacher = ParametricTeacher(seconds=.3)
    people = teacher.styles.encode(*draw_factors(40, np.random.default_rng(0)))
    bases = {"ttl": fit_basis(people.ttl, 4)}
    found = refine(people[0], teacher, lambda clips: float(np.std(clips[0][0])), bases, "9 trials")
    assert np.allclose(np.linalg.norm(found.style.ttl, axis=-1), 1, atol=1e-5)
