"Speech, pauses, and edges of cues in them."
import numpy as np
import pytest

from audiolab.tts import Cue, FilmSound, film_levels, map_speech, refine_edges

RATE = 24_000


def film_of(spans, seconds, floor=.0005):
    "Noise that rises where somebody speaks."
    chance = np.random.default_rng(0)
    sound = chance.normal(0, floor, round(seconds*RATE))
    for begin, end in spans:
        first, last = round(begin*RATE), round(end*RATE)
        sound[first:last] += chance.normal(0, .08, last - first)
    return FilmSound(np.round(sound*32767).clip(-32768, 32767).astype(np.int16), RATE)


def spans_of(chance, count, gap=(.3, 1.5)):
    "Sentences one after the other."
    spans, at = [], .7
    for _ in range(count):
        spans.append((at, at + chance.uniform(1.2, 4)))
        at = spans[-1][1] + chance.uniform(*gap)
    return spans


def words_for(span): return "x"*round(14*(span[1] - span[0]))


@pytest.mark.parametrize("floor", [.0005, .01])
def test_edges_are_found_within_the_jitter(floor):
    chance = np.random.default_rng(1)
    spans = spans_of(chance, 60)
    film = film_of(spans, spans[-1][1] + 1, floor)
    jitter = chance.uniform(-.4, .4, (60, 2))
    cues = [Cue(max(0, a + i), b + j, words_for((a, b))) for (a, b), (i, j) in zip(spans, jitter)]
    cuts = refine_edges(cues, map_speech(film), padding=(0, 0))
    assert all(cut.speech for cut in cuts)
    errors = np.abs([np.subtract(cut.speech, span) for cut, span in zip(cuts, spans)])
    assert np.median(errors) < .02 and errors.max() < .1 and all(cut.sure for cut in cuts)
    assert all(a.end <= b.start for a, b in zip(cuts, cuts[1:]))


def test_a_pause_within_a_sentence_is_no_edge():
    spans = [(1, 3), (4, 5), (5.2, 6.5), (7.5, 9)]
    cues = [Cue(1.1, 3.2, words_for((1, 3))), Cue(4.3, 6.3, words_for((4, 6.5))),
            Cue(7.3, 9.3, words_for((7.5, 9)))]
    cuts = refine_edges(cues, map_speech(film_of(spans, 10)))
    assert abs(cuts[1].speech[0] - 4) < .03 and abs(cuts[1].speech[1] - 6.5) < .03


def test_edges_move_half_a_second_at_most_and_the_padding_beside():
    film = film_of([(1, 4)], 6)
    cut, = refine_edges([Cue(1.6, 3.2, "x"*30)], map_speech(film))
    assert cut.start == 1.6 and cut.end == 3.2 and not cut.sure
    cut, = refine_edges([Cue(1.6, 3.2, "x"*30)], map_speech(film), reach=1)
    assert abs(cut.speech[0] - 1) < .03 and abs(cut.speech[1] - 4) < .03


def test_without_a_pause_the_stated_edges_stay():
    cut, = refine_edges([Cue(3, 5, "x")], map_speech(film_of([(0, 10)], 10)))
    assert (cut.start, cut.end, cut.sure) == (3, 5, False)


def test_a_cue_that_nobody_speaks_takes_no_neighbour():
    spans = [(1, 3), (6.5, 8.5)]
    cues = [Cue(1.2, 3.1, words_for((1, 3))), Cue(3.4, 6.1, "words that nobody says here"),
            Cue(6.2, 8.3, words_for((6.5, 8.5)))]
    cuts = refine_edges(cues, map_speech(film_of(spans, 10)))
    assert cuts[1].speech is None and abs(cuts[2].speech[0] - 6.5) < .03
    assert (cuts[1].start, cuts[1].end) == (3.4, 6.1)


def test_padding_is_at_most_half_of_the_pause():
    spans = [(1, 2.5), (2.6, 4)]
    cues = [Cue(1, 2.5, words_for(spans[0])), Cue(2.6, 4, words_for(spans[1]))]
    first, second = refine_edges(cues, map_speech(film_of(spans, 5)), padding=(.5, .5))
    assert first.end <= second.start + 1e-6 and second.start > first.speech[1]


@pytest.mark.parametrize("seconds", [0, .004, .01, .3, 40])
def test_films_of_nothing(seconds):
    speech = map_speech(film_of([], seconds))
    assert film_levels(film_of([], seconds)).shape[0] == 2
    cut, = refine_edges([Cue(0, 1, "x")], speech)
    assert cut.end > cut.start and refine_edges([], speech) == []


def test_silence_and_full_scale():
    for value in (0, 32767):
        speech = map_speech(FilmSound(np.full(RATE*3, value, np.int16), RATE))
        assert np.isfinite(speech.levels).all() and np.isfinite(speech.floor).all()


def test_ten_thousand_cues():
    chance = np.random.default_rng(2)
    spans = np.cumsum(chance.uniform(.4, 3, (10_000, 2)).ravel()).reshape(-1, 2)
    from audiolab.tts import SpeechMap
    speech = SpeechMap(np.zeros((2, 1)), np.zeros((2, 1)), spans)
    cues = [Cue(a + i, max(b + j, a + i + .1), words_for((a, b)))
            for (a, b), (i, j) in zip(spans, chance.uniform(-.3, .3, spans.shape))]
    cuts = refine_edges(sorted(cues, key=lambda cue: cue.start), speech)
    assert len(cuts) == 10_000 and np.mean([cut.sure for cut in cuts]) > .95
