"Packs of lessons: full, exactly resumed, no label lost, no answer in the prompt."
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiolab.tts import (
    STEADY, LessonRules, Peers, SpeechLessons, T3Config, TTSError, choose_prompt, lesson_loader,
    pack_of, paper_cache, split_lessons,
)

CONFIG = T3Config.small(300, 64, queries=32)
ALWAYS = LessonRules(prompt_dropout=0., own_prompt=1.)


def lengths_of_speech(clips, seed=0):
    rng = np.random.default_rng(seed)
    return (25*np.clip(rng.lognormal(np.log(4.8), .55, clips), 1, 15)).astype(int)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    "400 clips of twenty voices"
    lengths = lengths_of_speech(400)
    folder = tmp_path_factory.mktemp("paper")
    return paper_cache(folder, lengths, lengths*12//25, codes=64, rows=250)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    "Lessons of 1000 clips"
    lengths = lengths_of_speech(1000, 1)
    folder = tmp_path_factory.mktemp("many")
    cache = paper_cache(folder, lengths, lengths*12//25, codes=64, rows=250)
    return SpeechLessons(cache, CONFIG)


@pytest.fixture(scope="module")
def lessons(cache): return SpeechLessons(cache, CONFIG)


def rows_of(batch): return sum(pack_of(batch).layout.lengths)


def same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key]


# --- prompts

def test_a_prompt_is_of_another_clip_of_the_same_voice(cache):
    peers, voices = Peers(cache, np.arange(400), 1.), cache.places[:, 2]
    for index in range(400):
        prompt = choose_prompt(cache, peers, ALWAYS, 150, index, 0, 0)
        assert prompt.clip != index and voices[prompt.clip] == voices[index]
        assert 25 <= prompt.count <= 150
        assert prompt.start + prompt.count <= cache.speech_lengths[prompt.clip]


def test_a_copy_of_the_sound_is_no_other_clip(tmp_path):
    cache = paper_cache(tmp_path, [100, 100], [9, 9], ["a", "a"])
    cache.places = cache.places.copy()
    cache.places[1] = cache.places[0]  # two lines of one sound
    assert Peers(cache, np.arange(2), 1.).other(0, np.random.default_rng(0)) is None


@pytest.mark.parametrize("own, least, most", [(1., 1., 1.), (.5, .4, .6), (0., 0., 0.)])
def test_a_voice_of_one_clip_hears_half_of_itself_at_most(tmp_path, own, least, most):
    cache = paper_cache(tmp_path, [130, 40, 90], [9]*3, ["a", "b", "c"])
    peers, rules = Peers(cache, np.arange(3), 1.), replace(ALWAYS, own_prompt=own)
    drawn = [choose_prompt(cache, peers, rules, 150, 0, 0, epoch) for epoch in range(300)]
    given = [one for one in drawn if one]
    assert least <= len(given)/300 <= most and all(one.count <= 65 for one in given)
    assert not choose_prompt(cache, peers, rules, 150, 1, 0, 0)  # half of 1.6 s is no prompt


def test_dropout_and_keys(cache):
    peers, rules = Peers(cache, np.arange(400), 1.), LessonRules()
    drawn = [choose_prompt(cache, peers, rules, 150, index, 0, 0) for index in range(400)]
    assert .06 < np.mean([one is None for one in drawn]) < .14
    assert drawn[9] == choose_prompt(cache, peers, rules, 150, 9, 0, 0)
    for other in ((0, 1), (1, 0)):
        again = [choose_prompt(cache, peers, rules, 150, index, *other) for index in range(400)]
        assert sum(map(lambda a, b: a == b, drawn, again)) < 80  # mostly those without


def test_prompts_come_from_the_training_part_alone(cache):
    train, held = split_lessons(cache, .3)
    for index in range(0, len(train), 7):
        lessons = SpeechLessons(cache, CONFIG, ALWAYS, train)
        prompt = choose_prompt(cache, lessons.peers, ALWAYS, 150, int(train[index]), 0, 0)
        assert prompt.clip in train


@pytest.mark.parametrize("wrong", [dict(text_dropout=-.1), dict(emotion=2), dict(voice="choir"),
                                   dict(shortest_prompt=0), dict(longest_prompt=.5)])
def test_impossible_rules(wrong):
    with pytest.raises(TTSError): LessonRules(**wrong)


# --- what a lesson is

def test_an_item_holds_what_the_cache_has(cache, lessons):
    item = lessons.item(7, 3)
    assert np.array_equal(item["text"], cache.text(7))
    assert np.array_equal(item["speech"], cache.speech(7))
    assert np.allclose(item["speaker"], cache.voice_means()[cache.places[7, 2]])
    own = SpeechLessons(cache, CONFIG, LessonRules(voice="clip")).item(7, 3)
    assert np.allclose(own["speaker"], cache.speaker_embedding(7))


def test_no_label_is_lost(cache, lessons):
    "Every sound of every clip is asked for, and its end; every text but the hidden ones."
    loader = lesson_loader(lessons, 2048, full=None)
    taken, spoken, written = [], 0, 0
    for batch in loader.batches(0):
        pack = pack_of(batch)
        spoken += int((pack.speech_labels >= 0).sum())
        written += int((pack.text_labels >= 0).sum()) + int(
            (pack.text_lengths - 1)[pack.drop_text].sum())
        taken += batch["index"].tolist()
    assert sorted(taken) == list(range(400))
    assert spoken == (cache.speech_lengths + 1).sum() and written == (cache.text_lengths - 1).sum()


def test_steady_rules_hide_nothing(cache):
    lessons = SpeechLessons(cache, CONFIG, STEADY)
    pack = pack_of(lessons.batch(range(50)))
    assert not pack.drop_text.any() and (pack.prompt_lengths > 0).all()


def test_a_dropped_text_is_a_draw_of_its_own(lessons):
    hidden = np.array([[lessons.item(i, epoch)["drop_text"] for i in range(400)]
                       for epoch in (0, 1)])
    assert .1 < hidden.mean() < .2 and (hidden[0] != hidden[1]).any()


def test_a_cache_that_does_not_suit_the_model(cache, tmp_path):
    for change, why in ((dict(codes=32, start_speech=64), "numbered below 32"),
                        (dict(start_text=3), "begin with 3"),
                        (dict(speaker_size=192), "voices of 256")):
        with pytest.raises(TTSError, match=why): SpeechLessons(cache, replace(CONFIG, **change))
    few = T3Config.small(200, 64, start_text=199)
    with pytest.raises(TTSError, match="audiolab tts extend"): SpeechLessons(cache, few)


def test_clips_longer_than_the_model_are_left_out_whole_and_named(cache):
    lessons = SpeechLessons(cache, replace(CONFIG, max_speech=200, max_text=100))
    names = [name for some in lessons.left_out.values() for name in some]
    assert len(names) == len(set(names)) == 400 - len(lessons) > 0
    assert {why for why in lessons.left_out} <= {
        "text longer than 100 tokens", "speech longer than 200 codes"}
    assert cache.speech_lengths[lessons.clips].max() <= 200
    with pytest.raises(TTSError, match="no clip is short enough"):
        SpeechLessons(cache, replace(CONFIG, max_speech=5))


# --- packs

@pytest.mark.parametrize("tokens", [4096, 8192, 32768])
def test_97_of_100_rows_are_used(many, tokens):
    loader = lesson_loader(many, tokens)
    rows = np.array([rows_of(batch) for batch in loader.batches(0)])
    assert len(rows) == len(loader) and rows.max() <= tokens and rows.mean() >= .97*tokens


def test_packs_of_one_shape(lessons):
    batches = list(lesson_loader(lessons, 4096, fixed=True).batches(0))
    assert {rows_of(batch) for batch in batches} == {4096}


def test_any_place_of_any_epoch_again_whatever_the_workers(lessons):
    whole = list(lesson_loader(lessons, 4096).batches(2))
    for workers, start in ((0, 3), (2, 5)):
        loader = lesson_loader(lessons, 4096, num_workers=workers)
        try:
            again = list(loader.batches(2, start))
            assert len(again) == len(whole) - start
            for one, other in zip(again, whole[start:]): same(one, other)
        finally: loader.close()
    other = list(lesson_loader(lessons, 4096).batches(3))
    assert other[0]["index"].tolist() != whole[0]["index"].tolist()


def test_processes_have_equally_many_packs_and_no_clip_twice(lessons):
    shares = [list(lesson_loader(lessons, 2048, rank=rank, world=3).batches(0))
              for rank in range(3)]
    assert len({len(share) for share in shares}) == 1
    taken = [index for share in shares for batch in share for index in batch["index"].tolist()]
    assert len(taken) == len(set(taken)) >= 370
    assert max(rows_of(batch) for share in shares for batch in share) <= 2048


def test_old_languages_are_replayed_in_their_share(cache, tmp_path):
    other = paper_cache(tmp_path, lengths_of_speech(80, 3), [20]*80, codes=64, rows=250)
    old = SpeechLessons(other, CONFIG)
    new = SpeechLessons(cache, CONFIG)
    loader = lesson_loader({"new": new, "old": old}, 2048, weights={"new": 4, "old": 1})
    seen = np.concatenate([batch["index"].numpy() for batch in loader.batches(1)])
    assert .17 < np.mean(seen % 480 >= 400) < .23 and len(seen) > 380
    again = list(loader.batches(1, 4))
    for one, other in zip(again, list(loader.batches(1))[4:]): same(one, other)
    with pytest.raises(TTSError, match="same config"):
        lesson_loader({"new": new, "old": SpeechLessons(cache, replace(CONFIG, layers=2))}, 2048)


def test_a_clip_longer_than_a_pack_is_named(lessons):
    with pytest.raises(TTSError, match="packs of 256 rows: clip.*do not fit"):
        lesson_loader(lessons, 256)


# --- held out

@pytest.mark.parametrize("by", ["text", "speaker"])
def test_what_is_held_out_is_held_out_whole(tmp_path, by):
    voices = [f"v{number % 9}" for number in range(90)]
    cache = paper_cache(tmp_path, [50]*90, [9]*90, voices)
    train, held = split_lessons(cache, .3, by=by)
    assert sorted([*train, *held]) == list(range(90)) and len(held)
    def group(i): return cache.places[i, 2] if by == "speaker" else cache.text(i).tobytes()
    assert not {group(i) for i in train} & {group(i) for i in held}


def test_the_split_stays_when_clips_are_added(tmp_path):
    held = []
    for voices in (10, 20):
        cache = paper_cache(tmp_path/str(voices), [50]*40, [9]*40,
                            [f"v{n % voices}" for n in range(40)])
        clips = split_lessons(cache, .4, by="speaker")[1]
        held.append({cache.voices[cache.places[i, 2]] for i in clips})
    assert held[0] == {voice for voice in held[1] if int(voice[1:]) < 10} < held[1]
    with pytest.raises(TTSError, match="cannot be divided"):
        split_lessons(paper_cache(tmp_path/"one", [50]*5, [9]*5, ["a"]*5), .2, by="speaker")
