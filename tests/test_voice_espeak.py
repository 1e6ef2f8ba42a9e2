"The teacher eSpeak NG: the same bytes whatever was said before, and by whomever"
import gc
import multiprocessing
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("espeakng_loader", reason="optional: needs the package espeakng-loader")

from audiolab.audio import SENTENCES, MissingProgram
from audiolab.voice import (
    EspeakTeacher, SpeechFailed, VoiceStyle, espeak_teacher, stack_styles, unit_rows,
)


@pytest.fixture(scope="module")
def teacher(): return EspeakTeacher()


def bytes_of(teacher, text, style, lang):
    said, = teacher.synthesize([text], stack_styles([style]), lang=lang)
    return said.audio.tobytes()


@pytest.fixture(scope="module")
def jobs(teacher):
    "Rolled r's and all, in voices of every kind"
    drawn, rng = random.Random(0), np.random.default_rng(0)
    languages = [drawn.choice(["am", "de", "es", "it", "en"]) for _ in range(12)]
    return [(drawn.choice(SENTENCES[lang]), teacher.draw(rng), lang) for lang in languages]


@pytest.fixture(scope="module")
def said(teacher, jobs): return [bytes_of(teacher, *job) for job in jobs]


def test_bytes_do_not_depend_on_what_was_said_before(teacher, jobs, said):
    for n in random.Random(1).sample(range(len(jobs)), len(jobs)):
        assert bytes_of(teacher, *jobs[n]) == said[n]
    text = SENTENCES["es"][0]
    styles = stack_styles([style for _, style, _ in jobs[:3]])
    for n, one in enumerate(teacher.synthesize([text]*3, styles, lang="es")):
        assert one.audio.tobytes() == bytes_of(teacher, text, styles[n], "es")


def test_threads_do_not_disturb_each_other(teacher, jobs, said):
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda job: bytes_of(teacher, *job), jobs)) == said


def speak_all(teacher, jobs, answers): answers.put([bytes_of(teacher, *job) for job in jobs])


HAS_FORK = "fork" in multiprocessing.get_all_start_methods()


@pytest.mark.skipif(not HAS_FORK, reason="optional: needs processes that are forked")
def test_forked_processes_share_a_teacher(teacher, jobs, said):
    context = multiprocessing.get_context("fork")
    answers = [context.Queue() for _ in range(2)]
    children = [context.Process(target=speak_all, args=(teacher, jobs, q)) for q in answers]
    for child in children: child.start()
    assert [q.get() for q in answers] == [said, said]
    for child in children: child.join()
    assert bytes_of(teacher, *jobs[0]) == said[0]  # its folder is still there


def test_another_teacher_says_the_same_and_leaves_nothing(jobs, said):
    other = EspeakTeacher()
    assert bytes_of(other, *jobs[0]) == said[0]
    folder = other._home
    assert (folder/"phondata").exists()
    del other
    gc.collect()
    assert not folder.exists()


def test_styles_are_read_back(teacher):
    drawn = teacher.styles.draw(20, np.random.default_rng(0))
    again = teacher.styles.encode(*teacher.styles.decode(drawn))
    for part in ("ttl", "dp"):
        np.testing.assert_allclose(again.part(part), drawn.part(part), atol=1e-6)
    assert teacher.draw(np.random.default_rng(0)).ttl.tobytes() == drawn[0].ttl.tobytes()


def test_any_style_is_spoken(teacher):
    "An encoder's guess may be off the space, and far out"
    rng = np.random.default_rng(0)
    ttl, dp = (unit_rows(rng.standard_normal((6, *teacher.space.shape(p)))) for p in ("ttl", "dp"))
    texts = SENTENCES["en"]
    for one in teacher.synthesize(texts, VoiceStyle(ttl, dp, teacher.space)):
        assert .3 < one.seconds < 20 and .01 < abs(one.audio).max() <= 1


def test_all_languages_are_spoken(teacher):
    voices = stack_styles([teacher.presets()["E1"]])
    lengths = {lang: teacher.synthesize(["Papa, 1, 2, 3."], voices, lang=lang)[0].seconds
               for lang in teacher.languages}
    assert set(SENTENCES) <= set(lengths) and min(lengths.values()) > .5


def test_what_cannot_be_said_is_refused(teacher, monkeypatch):
    voices = stack_styles([teacher.presets()["E1"]])
    with pytest.raises(ValueError, match="NUL"): teacher.synthesize(["one\0two"], voices)
    with pytest.raises(ValueError, match="does not speak 'tlh'"):
        teacher.synthesize(["a"], voices, lang="tlh")
    with pytest.raises(SpeechFailed, match=r"'\.\.\.'"): teacher.synthesize(["..."], voices)
    def nothing(): raise ImportError("no wheel")
    monkeypatch.setattr(espeak_teacher, "espeak_wheel", nothing)
    with pytest.raises(MissingProgram, match=r'pip install "audiolab\[speech\]"'): EspeakTeacher()
