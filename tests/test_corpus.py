"audiolab.corpus: instruments in tune and in bounds, speech by either engine, corpora that repeat to the byte and are used again."
import importlib.util
import json
import shutil
import sys

import numpy as np
import pytest

from audiolab.audio import corpora
from audiolab.audio import speech as C
from audiolab.audio import find_audio_files, probe_audio, read_audio
from audiolab.audio import (
    KINDS, SENTENCES, MissingProgram, bell, demo_corpus, drum, espeak, flute,
    instrument_corpus, pad, phrase, plucked_string, speech_corpus,
)

PROGRAM, WHEEL = bool(shutil.which('espeak-ng')), bool(importlib.util.find_spec('espeakng_loader'))
needs_espeak = pytest.mark.skipif(not (PROGRAM or WHEEL), reason="needs the program espeak-ng or the wheel espeakng-loader")
needs_program = pytest.mark.skipif(not PROGRAM, reason="needs the program espeak-ng")
needs_wheel = pytest.mark.skipif(not WHEEL, reason="needs the wheel espeakng-loader")


def strongest(x, rate, low, high):
    s = abs(np.fft.rfft(x*np.hanning(len(x)), 2**19))
    hz = np.arange(len(s))*rate/2**19
    return hz[np.argmax(s*((hz > low) & (hz < high)))]


@pytest.mark.parametrize('rate', [8000, 16_000, 44_100])
@pytest.mark.parametrize('hz', [65.4, 110, 246.94, 587.33, 987.77])
def test_pitch(rate, hz):
    for note in (plucked_string(hz, 1.5, rate, decay=6), flute(hz, 1.5, rate), bell(hz, 1.5, rate)):
        assert abs(1200*np.log2(strongest(note, rate, hz*.95, hz*1.05)/hz)) < 6, "cents"


def test_string_decays_as_asked_and_softens():
    def level(y, t): return 20*np.log10(y[int(t*16_000):][:1600].std())
    for decay in (.5, 1, 3):
        y = plucked_string(220, 1.0, decay=decay, softness=0.)
        assert abs(level(y, .6)-level(y, .1)+60*.5/decay) < 6
    def bright(softness):
        x = plucked_string(220, .6, softness=softness)[4800:]
        s = abs(np.fft.rfft(x*np.hanning(len(x))))**2
        return s[len(s)//4:].sum()/s.sum()
    assert bright(.02) > 3*bright(.1) > 9*bright(.5)
    assert (plucked_string(220, .2, seed=1) != plucked_string(220, .2, seed=2)).any()
    with pytest.raises(ValueError, match='too high'): plucked_string(5000, 1)


@pytest.mark.parametrize('rate', [8000, 16_000, 48_000])
def test_every_instrument_is_finite_and_in_bounds(rate):
    notes = [f(hz, .5, rate) for f in (plucked_string, bell, flute) for hz in (55, 440, 1200)]+[
        drum(k, rate) for k in ('kick', 'snare', 'hat')]+[pad([220, 330, 440], .5, rate)]
    for x in notes:
        assert x.dtype == np.float64 and x.ndim == 1 and np.isfinite(x).all()
        assert .1 < abs(x).max() < 1.6
    with pytest.raises(ValueError, match='kick, snare, hat'): drum('gong')


def test_phrases_differ_and_repeat():
    with pytest.raises(ValueError, match='strings, bells'): phrase('kazoo')
    seen = set()
    for kind in KINDS:
        for seed in range(4):
            x = phrase(kind, seed=seed)
            assert .499 < abs(x).max() < .901 and 3.5 < len(x)/16_000 < 11.5
            assert np.sqrt((x**2).mean()) > .03
            np.testing.assert_array_equal(x, phrase(kind, seed=seed))
            seen.add(hash(x.tobytes()))
    assert len(seen) == 4*len(KINDS)


def test_no_aliases():
    "A note's harmonics stop below Nyquist: nothing sounds between them."
    x = pad([1000], 1.0, 16_000)[4000:-4000]
    s = abs(np.fft.rfft(x*np.hanning(len(x))))**2
    hz = np.arange(len(s))*16_000/len(x)
    between = abs((hz % 1000)-500) < 400
    assert s[between].sum() < 1e-5*s.sum()


def test_instrument_corpus_repeats_to_the_byte_and_is_reused(tmp_path):
    a, b = (instrument_corpus(tmp_path/n, n_files=6, seed=5) for n in 'ab')
    assert [p.read_bytes() for p in a] == [p.read_bytes() for p in b]
    assert find_audio_files(tmp_path/'a') == a
    assert {p.stem.split('_')[2] for p in a} == set(KINDS)
    assert all(probe_audio(p).subtype == 'PCM_16'
               and probe_audio(p).sample_rate == 16_000 for p in a)
    before = [p.stat().st_mtime_ns for p in a]
    assert instrument_corpus(tmp_path/'a', n_files=6, seed=5) == a
    assert [p.stat().st_mtime_ns for p in a] == before
    good = a[2].read_bytes()
    for damage in (lambda: a[2].unlink(), lambda: a[2].write_bytes(good[:-2000]),
                   lambda: a[2].write_bytes(good[:5000]+b'\1'+good[5001:])):
        damage()
        instrument_corpus(tmp_path/'a', n_files=6, seed=5)
        assert a[2].read_bytes() == good
    assert instrument_corpus(tmp_path/'c', n_files=2, seed=6)[0].read_bytes() != a[0].read_bytes()


def test_other_settings_replace_only_what_was_made(tmp_path):
    mine = tmp_path/'mine.wav'
    mine.write_bytes(b'keep me')
    instrument_corpus(tmp_path, n_files=4)
    two = instrument_corpus(tmp_path, n_files=2, sample_rate=8000, kinds='bells')
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(['corpus.json', 'mine.wav',
                                                                 *(p.name for p in two)])
    assert mine.read_bytes() == b'keep me'


@pytest.mark.parametrize('made', ['', '[]', '{', '{"settings": 1, "files": []}', '{"settings": {}, "files": {"../victim.wav": "x"}}', '{"settings": {}, "files": {"mine.wav": "x"}}',
                                  '{"settings": {}, "files": {"music_/../../victim.wav": "x"}}', '['*100_000])
def test_a_hostile_list_deletes_nothing(tmp_path, made):
    folder, victim = tmp_path/'in', tmp_path/'victim.wav'
    folder.mkdir()
    victim.touch()
    (folder/'mine.wav').touch()
    (folder/'corpus.json').write_text(made)
    instrument_corpus(folder, n_files=1)
    assert victim.exists() and (folder/'mine.wav').exists()


def test_demo_corpus(tmp_path, monkeypatch):
    paths, kind = demo_corpus(tmp_path/'i', kind='instruments', seconds=15)
    total = sum(probe_audio(p).duration for p in paths)
    assert kind == 'instruments' and 15 <= total < 27
    def missing(*a, **k): raise MissingProgram("speech needs espeak-ng")
    monkeypatch.setattr(corpora, 'espeak', missing)
    assert demo_corpus(tmp_path/'a', seconds=5)[1] == 'instruments'
    with pytest.raises(MissingProgram): demo_corpus(tmp_path/'b', kind='speech')
    for kw in (dict(kind='noise'), dict(seconds=0), dict(seconds=float('inf')), dict(seconds=float('nan')), dict(sample_rate=100), dict(sample_rate=10**6)):
        with pytest.raises(ValueError): demo_corpus(tmp_path/'c', **kw)
    for kw in (dict(n_files=0), dict(kinds='kazoo'), dict(kinds=[])):
        with pytest.raises(ValueError): instrument_corpus(tmp_path/'c', **kw)
    for kw in (dict(languages=['xx']), dict(languages=[]), dict(voices=['f9'])):
        with pytest.raises(ValueError, match='there are'): speech_corpus(tmp_path/'c', **kw)
    assert not (tmp_path/'c').exists()


# ---- speech

def test_without_espeak_both_remedies_are_named(monkeypatch):
    monkeypatch.setattr(C.shutil, 'which', lambda name: None)
    monkeypatch.setitem(sys.modules, 'espeakng_loader', None)
    with pytest.raises(MissingProgram, match=r'apt install espeak-ng.*pip install espeakng-loader'):
        espeak('hello')


def speaks(say):
    one, rate = say("Hello there.", 'en+f2', 160, 50)
    assert rate == 22_050 and one.dtype == np.float32 and .3 < len(one)/rate < 3
    assert .1 < abs(one).max() <= 1
    assert len(say("Hello there, my old and dear friend.", 'en+f2', 160, 50)[0]) > 1.5*len(
        one) > 1.8*len(say("Hello there.", 'en+f2', 300, 50)[0])
    for text in ("-v fr --help", "<voice name='x'>hi", "it's; $(touch x) `ls`", "ሰላም", "tschüß\n\nzwei"): assert len(say(text, 'en', 160, 50)[0]) > 2000, text
    low, high = (say("Aaaaaah", f'en+{v}', 160, 50)[0] for v in ('m3', 'f3'))
    assert len(low) != len(high) or (low != high).any()
    again = say("Hello there.", 'en+f2', 160, 50)[0]
    np.testing.assert_array_equal(again, one)
    with pytest.raises(RuntimeError, match='nolanguage'): say("hello", 'nolanguage', 160, 50)
    for language, lines in SENTENCES.items():
        for line in lines:
            said, _ = say(line, language, 160, 50)
            assert 1 < len(said)/rate < 9, line


@needs_program
def test_program():
    speaks(lambda *a: C._say_with_program(shutil.which('espeak-ng'), *a))


@needs_wheel
def test_wheel(): speaks(lambda *a: C._say_with_library(C.espeak_wheel(), *a))


@needs_espeak
def test_speech_corpus(tmp_path):
    paths = speech_corpus(tmp_path/'a', n_files=21, seed=1)
    names = [p.stem.split('_')[2:] for p in paths]
    assert {l for l, _ in names} == set(SENTENCES) and len({tuple(n) for n in names}) == 21, "each language in three voices"
    for p in paths:
        x, rate = read_audio(p, mono=True)
        assert rate == 16_000 and 2 < len(x)/rate < 14 and .49 < abs(x).max() < .91
        assert np.sqrt((x**2).mean()) > .02
    assert len({p.read_bytes() for p in paths}) == 21
    assert speech_corpus(tmp_path/'a', n_files=21, seed=1) == paths and json.loads((tmp_path/'a/corpus.json').read_text())['settings']['seed'] == 1
    two = speech_corpus(tmp_path/'b', n_files=21, seed=1, sample_rate=16_000)
    assert [p.read_bytes() for p in two] == [p.read_bytes() for p in paths]
    assert demo_corpus(tmp_path/'c', seconds=10)[1] == 'speech'
