"Drawing codes: every step by hand, against transformers' processors, and independent of the batch"
import numpy as np
import pytest
import torch

from audiolab.tts import (
    SamplingConfig, TTSError, code_probabilities, cut_min_p, cut_top_p, draw_codes, guided,
    penalise_repeats, sound_or_stop, utterance_dice,
)
from audiolab.tts.sampling import SamplingConfig as SameConfig

plain = SamplingConfig(temperature=1, min_p=0, top_p=1, repetition_penalty=1, cfg_weight=0)


def some_scores(rows=5, codes=97, seed=0):
    return 3*torch.randn(rows, codes, generator=torch.Generator().manual_seed(seed))


def as_history(said):
    "Ids [1, n] of what a row of `said` holds, as transformers wants them"
    return [row.nonzero()[:, 0][None] for row in said]


def test_guidance_by_hand():
    got = guided(torch.tensor([[1., 2.]]), torch.tensor([[0., 4.]]), .5)
    assert got.tolist() == [[1.5, 1.]]


def test_all_steps_by_hand():
    "ln 8, ln 4, ln 2, ln 1: the first said before, temperature 1/2 squares the odds"
    scores = torch.tensor([[8., 4, 2, 1]]).log()
    said = torch.tensor([[True, False, False, False]])
    config = SamplingConfig(temperature=.5, min_p=.1, top_p=1, repetition_penalty=1.5)
    got = code_probabilities(scores, said, config)[0]
    # 8^(2/1.5) = 16, 16, 4, 1: the last has 1/16 of the likeliest, less than min_p
    np.testing.assert_allclose(got, np.array([16, 16, 4, 0])/36, atol=1e-6)
    got = code_probabilities(scores, said, SamplingConfig(
        temperature=.5, min_p=.1, top_p=.85, repetition_penalty=1.5))[0]
    np.testing.assert_allclose(got, [.5, .5, 0, 0], atol=1e-6)


def test_order_matters():
    "The penalty comes before the temperature, min_p after it: the other orders give something else"
    scores, said = torch.tensor([[3., 2., -1.]]), torch.tensor([[True, False, True]])
    config = SamplingConfig(temperature=.5, min_p=.3, repetition_penalty=2.)
    got = code_probabilities(scores, said, config)
    assert got[0, 0] > 0  # 3/2/.5 = 3 against 4: e^-1 = .37, stays
    cold_first = penalise_repeats(cut_min_p(scores/.5, .3), said, 2.).softmax(-1)
    assert not torch.allclose(got, cold_first)


@pytest.mark.parametrize("penalty", [1., 1.2, 2.])
@pytest.mark.parametrize("min_p, top_p", [(0, 1), (.05, 1), (0, .8), (.05, .8)])
def test_transformers_says_the_same(penalty, min_p, top_p):
    logits = pytest.importorskip("transformers.generation.logits_process",
                                 reason="optional: transformers is the oracle of this test")
    scores = some_scores()
    said = torch.rand(scores.shape, generator=torch.Generator().manual_seed(1)) < .3
    config = SamplingConfig(temperature=.8, min_p=min_p, top_p=top_p, repetition_penalty=penalty)
    got = code_probabilities(scores, said, config)
    steps = [logits.RepetitionPenaltyLogitsProcessor(penalty), logits.TemperatureLogitsWarper(.8)]
    if min_p: steps.append(logits.MinPLogitsWarper(min_p))
    if top_p < 1: steps.append(logits.TopPLogitsWarper(top_p))
    for row, history, found in zip(scores, as_history(said), got):
        row = row[None].clone()
        for step in steps: row = step(history, row)
        torch.testing.assert_close(found, row.softmax(-1)[0], atol=1e-6, rtol=1e-5)


def test_transformers_guides_the_same():
    "Their scale is one more than ours: `uncond + s (cond - uncond)`"
    logits = pytest.importorskip("transformers.generation.logits_process",
                                 reason="optional: transformers is the oracle of this test")
    cond, uncond = some_scores(seed=2), some_scores(seed=3)
    both = torch.cat([cond, uncond])
    want = logits.ClassifierFreeGuidanceLogitsProcessor(1.5)(torch.zeros(5, 1).long(), both)
    torch.testing.assert_close(guided(cond, uncond, .5), want)


def test_ids_that_are_no_sound_are_never_drawn():
    class config: speech_vocab, codes, stop_speech = 20, 10, 12
    allowed = sound_or_stop(config)
    assert allowed.nonzero()[:, 0].tolist() == [*range(10), 12]
    scores = torch.full((1, 20), -5.)
    scores[0, [11, 13, 19]] = 50.
    said = torch.zeros(1, 20, dtype=torch.bool)
    got = code_probabilities(scores, said, SamplingConfig(min_p=.5), allowed)
    assert got[0, ~allowed].sum() == 0 and abs(float(got.sum())-1) < 1e-6
    assert (got[0, allowed] > 0).all()  # min_p measures by what may be said
    greedy = code_probabilities(scores, said, SamplingConfig(temperature=0), allowed)
    assert allowed[greedy.argmax()]


def test_cut_leaves_one():
    scores = some_scores(rows=3)
    for cut in (cut_top_p(scores, 1e-6), cut_min_p(scores, 1.)):
        assert (cut.isfinite().sum(-1) == 1).all()
        assert (cut.argmax(-1) == scores.argmax(-1)).all()


def test_half_precision_scores():
    "Probabilities are made in float32, whatever the model computes in"
    scores = some_scores().to(torch.bfloat16)
    said = torch.zeros(scores.shape, dtype=torch.bool)
    got = code_probabilities(scores, said, SamplingConfig())
    assert got.dtype == torch.float32 and torch.allclose(got.sum(-1), torch.ones(5), atol=1e-6)


def test_drawn_as_likely_as_said():
    "Chi-square of 20,000 draws, and nothing of probability 0, at the ends of the dice too"
    p = torch.tensor([0., .1, .4, 0., .5, 0.])
    drawn = draw_codes(p.expand(20000, 6), utterance_dice(5, [0], 20000)[0]).bincount(minlength=6)
    assert drawn[[0, 3, 5]].sum() == 0
    want = p[[1, 2, 4]]*20000
    assert float(((drawn[[1, 2, 4]]-want)**2/want).sum()) < 13.8  # p = .001, two degrees
    ends = torch.tensor([0., np.nextafter(1, 0)], dtype=torch.float64)
    assert draw_codes(p.expand(2, 6), ends).tolist() == [1, 4]


def test_the_die_is_the_utterances_own():
    alone = utterance_dice(3, [7], 40)[0]
    assert torch.equal(utterance_dice(3, [1, 7, 2], 100)[1, :40], alone)
    assert not torch.equal(utterance_dice(4, [7], 40)[0], alone)
    assert not torch.equal(utterance_dice(3, [8], 40)[0], alone)
    assert ((alone >= 0) & (alone < 1)).all()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    utterance_dice(0, [0], 3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("name, value", [
    ("temperature", -.1), ("min_p", 1.1), ("top_p", 0), ("repetition_penalty", 0),
    ("cfg_weight", -1), ("max_tokens", 0), ("codes_per_token", 0), ("temperature", float("nan"))])
def test_settings_out_of_range(name, value):
    with pytest.raises(TTSError, match=name): SamplingConfig(**{name: value})


def test_limit_follows_the_text():
    config = SamplingConfig(max_tokens=400, codes_per_token=10)
    assert [config.limit(n) for n in (2, 10, 1000)] == [45, 125, 400]
    assert SameConfig is SamplingConfig
