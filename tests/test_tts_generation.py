"Generation: with and without a memory, alone and in a batch, and every way of ending"
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiolab.tts import (
    STOP_REASONS, SamplingConfig, Speaking, StopRules, T3Config, TextFollower, TTSError,
    VoicePrompt, code_probabilities, find_loop, generate_codes, guided, init_t3, reference_logits,
    sound_or_stop, stream_codes,
)

GREEDY = SamplingConfig(temperature=0, repetition_penalty=1, max_tokens=24, loop_window=0)
FREE = SamplingConfig(temperature=1.3, min_p=0, max_tokens=30, seed=4)


def small_model(layout="single", seed=0):
    "Random weights, wide awake: its choices differ from code to code"
    config = T3Config.small(40, 30, width=32, layers=2, heads=2, queries=3, speaker_size=8,
                            max_text=64, max_speech=128, bos_layout=layout)
    model = init_t3(config, seed).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1: weight.mul_(8)
    return model


def some_texts(model, lengths=(3, 9, 1, 5, 14), seed=0):
    rng = np.random.default_rng(seed)
    start, stop = model.config.start_text, model.config.stop_text
    return [np.array([start, *rng.integers(3, 38, n), stop]) for n in lengths]


def some_voices(model, count=5, seed=1):
    "With prompts of several lengths, and one without"
    rng = np.random.default_rng(seed)
    prompts = [None if i == 2 else rng.integers(0, 30, 4+7*i) for i in range(count)]
    size = model.config.speaker_size
    return [VoicePrompt(rng.standard_normal(size).astype(np.float32), prompt, .2*i)
            for i, prompt in enumerate(prompts)]


@torch.no_grad()
def slow_codes(model, text, voice, config):
    "All rows again for each code, in the plain reference"
    one, ids = voice.utterance(text), []
    while len(ids) < config.limit(len(text)):
        one.speech = torch.tensor(ids, dtype=torch.int64)
        scores = reference_logits(model, one)[1][-1:]
        if config.cfg_weight:
            hidden = reference_logits(model, one, drop_text=True)[1][-1:]
            scores = guided(scores, hidden, config.cfg_weight)
        said = torch.zeros_like(scores, dtype=torch.bool)
        said[0, one.speech] = True
        allowed = sound_or_stop(model.config)
        code = int(code_probabilities(scores, said, config, allowed).argmax())
        if code == model.config.stop_speech: break
        ids.append(code)
    return ids


@pytest.mark.parametrize("layout", ["single", "double"])
@pytest.mark.parametrize("weight, penalty", [(0., 1.), (.5, 1.2), (2., 1.)])
def test_the_memory_changes_nothing(layout, weight, penalty):
    model = small_model(layout)
    config = replace(GREEDY, cfg_weight=weight, repetition_penalty=penalty)
    texts, voices = some_texts(model)[:3], some_voices(model)[:3]
    quick = generate_codes(model, texts, voices, config)
    for text, voice, codes in zip(texts, voices, quick):
        assert codes.ids.tolist() == slow_codes(model, text, voice, config)
    assert sum(map(len, quick)) > 20 and len({tuple(codes.ids) for codes in quick}) == 3


def test_the_layouts_differ():
    texts, voices = some_texts(small_model()), some_voices(small_model())
    said = [generate_codes(small_model(layout), texts, voices, GREEDY) for layout in
            ("single", "double")]
    assert any(a.ids.tolist() != b.ids.tolist() for a, b in zip(*said))


@pytest.mark.parametrize("layout", ["single", "double"])
@pytest.mark.parametrize("weight", [0., .5])
def test_batch_mates_do_not_matter(layout, weight):
    model, config = small_model(layout), replace(FREE, cfg_weight=weight)
    texts, voices = some_texts(model), some_voices(model)
    together = generate_codes(model, texts, voices, config)
    turned = generate_codes(model, texts[::-1], voices[::-1], config, keys=[4, 3, 2, 1, 0])[::-1]
    split = generate_codes(model, texts, voices, config, most_together=2)
    for i, codes in enumerate(together):
        alone = generate_codes(model, [texts[i]], voices[i], config, keys=[i])[0]
        for other in (alone, turned[i], split[i]):
            assert other.ids.tolist() == codes.ids.tolist()
            assert (other.stop_reason, other.cut) == (codes.stop_reason, codes.cut)
    assert len({len(codes) for codes in together}) > 1  # they did not all end together


@torch.no_grad()
def test_scores_of_a_batch_are_those_alone():
    "The scores themselves, not only what is drawn of them"
    model = small_model()
    texts, voices = some_texts(model), some_voices(model)
    batch = Speaking(model, texts, voices, GREEDY, range(5)).memory.scores(.5)
    for i, scores in enumerate(batch):
        alone = Speaking(model, [texts[i]], [voices[i]], GREEDY, [i]).memory.scores(.5)[0]
        torch.testing.assert_close(scores, alone, atol=2e-4, rtol=1e-4)


def test_seed_and_key_decide():
    model = small_model()
    text, voice = some_texts(model)[4], some_voices(model)[0]

    def say(**how):
        return generate_codes(model, [text], voice, replace(FREE, **how))[0].ids.tolist()

    torch.manual_seed(1)
    first = say()
    torch.manual_seed(2)
    assert say() == first != say(seed=5)
    keyed = generate_codes(model, [text]*2, voice, FREE, keys=[0, 1])
    assert keyed[0].ids.tolist() == first != keyed[1].ids.tolist()


def test_streamed_is_the_same():
    model = small_model()
    text, voice = some_texts(model)[3], some_voices(model)[3]
    whole = generate_codes(model, [text], voice, FREE, keys=[6])[0]
    stream, ids = stream_codes(model, text, voice, FREE, key=6), []
    while True:
        try: ids.append(next(stream))
        except StopIteration as end:
            found = end.value
            break
    assert ids == whole.ids.tolist() == found.ids.tolist()
    assert found.stop_reason == whole.stop_reason


def test_no_dropout_and_the_mode_stays():
    model = small_model().train()
    texts, voices = some_texts(model), some_voices(model)
    said = [generate_codes(model, texts, voices, GREEDY) for _ in range(2)]
    assert model.training
    assert [a.ids.tolist() for a in said[0]] == [b.ids.tolist() for b in said[1]]
    next(stream_codes(model, texts[0], voices[0], GREEDY))
    assert model.training


def test_no_ids_but_sounds():
    model = small_model()
    with torch.no_grad():
        model.speech_head.weight[model.config.start_speech] = 9*model.speech_head.weight.abs().max()
    for codes in generate_codes(model, some_texts(model), some_voices(model), FREE):
        assert ((codes.ids >= 0) & (codes.ids < model.config.codes)).all()


def never_stops(model):
    "STOP is as unlikely as can be: its scores are far below all others"
    return scores_of_stop(model, -1e9)


def scores_of_stop(model, value):
    stop = torch.tensor([model.config.stop_speech])
    return model.speech_head.register_forward_hook(
        lambda module, given, made: made.index_fill(-1, stop, value))


def test_ends_by_its_length():
    model = small_model()
    never_stops(model)
    config = replace(FREE, codes_per_token=2., max_tokens=40)
    texts = some_texts(model)
    said = generate_codes(model, texts, some_voices(model), config)
    for text, codes in zip(texts, said):
        assert (codes.stop_reason, codes.complete) == ("limit", False)
        assert len(codes) == min(40, 2*len(text)+25)
    assert "its text can take" in repr(said[0])


def test_ends_when_it_loops():
    "A head that is blind says the same code for ever"
    model = small_model()
    with torch.no_grad(): model.speech_head.weight.zero_()
    config = replace(GREEDY, max_tokens=500, loop_window=30)
    codes = generate_codes(model, some_texts(model)[:1], some_voices(model)[0], config)[0]
    assert (codes.stop_reason, codes.ids.tolist(), codes.cut) == ("loop", [0], 29)


@pytest.mark.parametrize("period", [1, 2, 7, 25])
def test_loops_of_any_period(period):
    rng = np.random.default_rng(period)
    before, circle = rng.integers(0, 500, 40).tolist(), rng.integers(500, 900, period).tolist()
    ids = before+circle*(75//period+1)
    assert find_loop(ids[:40+75], 75) == period and not find_loop(ids[:40+60], 75)
    why, keep = StopRules(SamplingConfig(), 50, 1000).verdict(ids[:40+75])
    assert (why, keep) == ("loop", 40+period)
    ids[-1] = 901
    assert not find_loop(ids, 75) and not find_loop(ids[:40+75], 0)


def test_speech_is_no_loop():
    rng = np.random.default_rng(0)
    ids = np.repeat(rng.integers(0, 50, 200), rng.integers(1, 12, 200)).tolist()
    assert not any(find_loop(ids[:n], 75) for n in range(len(ids)))


def follow(places, tokens, window=20, seed=0):
    rng, follower = np.random.default_rng(seed), TextFollower(tokens, window)
    for count, place in enumerate(places, 1):
        look = np.exp(-.5*((np.arange(tokens)-place)/.7)**2)+.15*rng.random(tokens)
        look[0] += 2
        follower.look(look)
        if follower.verdict(): return follower, count
    return follower, count


def test_follower_goes_along():
    truth = np.repeat(range(1, 30), np.random.default_rng(1).integers(1, 9, 29))
    follower, _ = follow(truth, 31)
    assert follower.verdict() == "" and not follower.early and follower.place >= 28


def test_follower_sees_what_goes_wrong():
    on = [*np.repeat(range(1, 12), 3)]
    stall, count = follow([*on, *[12]*60], 31)
    assert (stall.verdict(), stall.early) == ("stall", True) and count <= len(on)+24
    tail, _ = follow([*np.repeat(range(1, 30), 3), *[29]*60], 31)
    assert tail.verdict() == "tail"
    again, _ = follow([*np.repeat(range(1, 30), 2), *np.repeat(range(1, 30), 3)], 31, window=40)
    assert again.verdict() == "repeat"
    free, _ = follow([*on, *[12]*60], 31, window=0)
    assert free.verdict() == ""


def test_what_went_wrong_is_cut_off():
    rules = StopRules(SamplingConfig(stall_window=20, loop_window=0), 31, 1000, watched=True)
    rng, ids, why = np.random.default_rng(0), [], ""
    assert not rules.may_stop
    while not why:
        ids.append(len(ids))
        look = np.exp(-.5*((np.arange(31)-min(1+len(ids)//3, 12))/.7)**2)+.1*rng.random(31)
        rules.follower.look(look)
        why, keep = rules.verdict(ids)
    assert why == "stall" and 30 < keep < 50 and len(ids)-keep >= 10


@pytest.mark.parametrize("layout", ["single", "double"])
def test_looks_of_decoding_are_those_of_the_maps(layout):
    "What is seen while decoding is the map of the finished utterance, row by row"
    model, heads = small_model(layout), [(0, 1), (1, 0), (1, 1)]
    texts, voices = some_texts(model)[:2], some_voices(model)[:2]
    config = replace(GREEDY, max_tokens=9, stall_window=0)
    never_stops(model)
    speaking = Speaking(model, texts, voices, config, [0, 1], heads)
    seen = [[], []]
    while speaking.active:
        for row, look in zip(speaking.active, speaking.memory.text_looks([len(t) for t in texts])):
            seen[row].append(look)
        speaking.step()
    for text, voice, codes, looks in zip(texts, voices, speaking.found, seen):
        one = voice.utterance(text)
        one.speech = torch.as_tensor(codes.ids)
        maps = model.attention_maps(one, heads).mean(0)[:len(looks)]
        np.testing.assert_allclose(np.stack(looks), maps, atol=1e-4)


def test_stop_waits_for_the_text():
    "With heads known, STOP is not said while text is left"
    model = small_model()
    texts, voices = some_texts(model)[4:], some_voices(model)[4:]
    config = replace(FREE, stall_window=0, loop_window=0, max_tokens=12)
    with torch.no_grad(): model.speech_head.weight[:model.config.codes] *= .01
    hook = scores_of_stop(model, 50.)
    assert len(generate_codes(model, texts, voices, config)[0]) == 0
    speaking = Speaking(model, texts, voices, config, [0], [(0, 0)])
    while speaking.active:
        early = speaking.rules[0].follower.early
        speaking.step()
        if early: assert speaking.ids[0] and not (speaking.found[0] and speaking.found[0].complete)
    hook.remove()


def test_refusals():
    model = small_model()
    texts, voices = some_texts(model), some_voices(model)
    assert generate_codes(model, [], voices[0]) == []
    for wrong, message in (((texts, voices[:2]), "5 texts, but 2 voices"),
                           (([np.array([39, 44, 0])], voices[0]), "token 44"),
                           (([np.array([3, 0])], voices[0]), "begin"),
                           ((texts[:1], VoicePrompt(np.zeros(3))), "speaker")):
        with pytest.raises(TTSError, match=message): generate_codes(model, *wrong)
    with pytest.raises(TTSError, match="2 keys"): generate_codes(model, texts, voices, keys=[1, 2])
    assert set(STOP_REASONS) == {"stop", "limit", "loop", "stall", "tail", "repeat"}
