"Lessons: what is said in which voice, wherever and whenever it is made; and files of others."
import json
import os
import signal
import time

import numpy as np
import pytest

from audiolab.data import DataError, keyed_rng
from audiolab.voice import (
    LessonPlan, Lessons, ParametricTeacher, SamplerConfig, SpeechFailed, StyleSampler, StyleSpace,
    lessons_digest, make_lessons, open_lessons, pack_lessons, read_lesson, split_texts,
    unpack_lessons, usual_texts,
)

FEW = {"train": 21, "val": 6, "test": 5}


def teacher(seconds=.25): return ParametricTeacher(seconds=seconds)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_lessons(tmp_path_factory.mktemp("whole"), teacher(), counts=FEW)


def test_four_shards_are_the_whole(whole, tmp_path):
    for n in (3, 1, 4, 2): make_lessons(tmp_path, teacher(), counts=FEW, shard=f"{n}/4")
    assert lessons_digest(tmp_path) == lessons_digest(whole)


def test_a_missing_shard_is_named(tmp_path):
    for n in (1, 3): make_lessons(tmp_path, teacher(), counts=FEW, shard=f"{n}/3")
    with pytest.raises(DataError, match="lacks part 2 of 3.*--shard 2/3"): Lessons(tmp_path)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "half", "1/99"])
def test_an_impossible_shard_is_refused_before_work(shard, tmp_path):
    with pytest.raises(DataError, match="shard"):
        make_lessons(tmp_path/"set", teacher(), counts=FEW, shard=shard)
    assert not (tmp_path/"set").exists()


class Stopping(ParametricTeacher):
    "Is interrupted after so many calls."
    def __init__(self, calls):
        super().__init__(seconds=.25)
        self.calls = calls

    def synthesize(self, *given, **named):
        if not self.calls: raise KeyboardInterrupt
        self.calls -= 1
        return super().synthesize(*given, **named)


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 4])
def test_an_interrupted_set_is_gone_on_with(calls, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt): make_lessons(tmp_path, Stopping(calls), counts=FEW)
    make_lessons(tmp_path, teacher(), counts=FEW)
    assert lessons_digest(tmp_path) == lessons_digest(whole)


def test_a_killed_set_is_gone_on_with(whole, tmp_path):
    class Slow(ParametricTeacher):
        def synthesize(self, *given, **named):
            time.sleep(.2)
            return super().synthesize(*given, **named)
    if not (child := os.fork()):
        make_lessons(tmp_path, Slow(seconds=.25), counts=FEW)
        os._exit(0)
    time.sleep(.5)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    make_lessons(tmp_path, teacher(), counts=FEW)
    assert lessons_digest(tmp_path) == lessons_digest(whole)


def test_a_whole_set_is_not_made_twice(whole):
    make_lessons(whole, Stopping(0), counts=FEW)


def test_another_teacher_or_seed_does_not_mix_into_a_set(whole):
    with pytest.raises(DataError, match=r"other settings \(seed\)"):
        make_lessons(whole, teacher(), counts=FEW, seed=1)
    with pytest.raises(DataError, match="space"):
        make_lessons(whole, ParametricTeacher(9, seconds=.25), counts=FEW)


class Hoarse(ParametricTeacher):
    "Cannot say what has the word queen in it."
    def synthesize(self, texts, styles, **named):
        if any("queen" in text for text in texts): raise SpeechFailed("queen: silence")
        return super().synthesize(texts, styles, **named)


def test_a_clip_that_fails_is_a_row_that_failed(tmp_path):
    texts = {"en": ["One.", "Two.", "Three.", "Four.", "The queen."]}
    lessons = Lessons(make_lessons(tmp_path, Hoarse(seconds=.25), counts=FEW, texts=texts))
    assert lessons.failed and len(lessons) + len(lessons.failed) == FEW["train"]
    assert set(lessons.failed.values()) == {"queen: silence"}
    assert not any("queen" in note["text"] for note in lessons.notes)
    again = Lessons(make_lessons(tmp_path/"well", teacher(), counts=FEW, texts=texts))
    well = {note["id"]: n for n, note in enumerate(again.notes)}  # others are as they would be
    for n in range(len(lessons)):
        assert np.array_equal(lessons.sound(n), again.sound(well[lessons.name(n)]))


MODES = "preset", "perturb", "interpolate", "dirichlet", "pca", "random", "mixed"


@pytest.mark.parametrize("mode", MODES)
def test_voices_are_on_the_sphere(mode):
    sampler = StyleSampler(teacher(), SamplerConfig(mode))
    for n in range(3):
        style, _ = sampler.draw(keyed_rng(0, n))
        for rows in (style.ttl, style.dp):
            assert abs(np.linalg.norm(rows, axis=-1) - 1).max() < 1e-5


def test_a_mixture_never_draws_what_is_no_voice():
    class Preset(ParametricTeacher): draw = property()  # has only presets, as Supertonic
    sampler = StyleSampler(Preset(seconds=.25))
    modes = {part for n in range(60) for part in sampler.draw(keyed_rng(0, n))[1].split("+")}
    assert modes == {"perturb", "interpolate", "dirichlet", "pca"}


def test_an_earlier_order_changes_nothing():
    plan = LessonPlan(StyleSampler(teacher()), {"en": usual_texts("en")})
    late = plan.lesson("train", 1000)
    for n in (3, 999, 4): plan.lesson("val", n)
    again = plan.lesson("train", 1000)
    assert late.notes == again.notes and np.array_equal(late.style.ttl, again.style.ttl)


def test_splits_share_neither_voices_nor_texts(whole):
    parts = [Lessons(whole, split).notes for split in FEW]
    for key in ("style_id", "text", "seed"):
        found = [{note[key] for note in part} for part in parts]
        assert len(set.union(*found)) == sum(map(len, found))
    parts = split_texts(usual_texts("en"))
    assert len(set(sum(parts.values(), []))) == 2000


def test_files_and_back_are_the_same(whole, tmp_path):
    tree = unpack_lessons(whole, tmp_path/"tree")
    arrays = np.load(tree/"train/sample_000003.npz")
    assert arrays["style_ttl"].shape == (1, 50, 256) and arrays["audio"].dtype == np.float32
    assert lessons_digest(pack_lessons(tree, tmp_path/"again")) == lessons_digest(whole)
    assert open_lessons(tree, "val").space == Lessons(whole).space


def seed_tree(folder, count=3, **other):
    "As an earlier generator wrote it: 44.1 kHz, normal numbers for a style, no word of a teacher."
    rng = np.random.default_rng(0)
    for split in FEW:
        (folder/split).mkdir(parents=True)
        for n in range(count):
            np.savez_compressed(
                folder/split/f"sample_{n:06d}.npz", **{
                    "audio": .1*rng.standard_normal(4410).astype(np.float32), "text": f"text {n}",
                    "lang": "en",
                    "style_ttl": rng.standard_normal((1, 50, 256)), "duration": .1,
                    "sample_rate": 44_100,
                    "style_dp": rng.standard_normal((1, 8, 16))} | other)
    (folder/"metadata.json").write_text(json.dumps({"num_samples": count}))
    return folder


def test_files_of_an_earlier_trainer_are_read_at_their_rate(tmp_path, caplog):
    lessons = open_lessons(seed_tree(tmp_path/"seed"))
    assert lessons.sample_rate == 44_100 and str(lessons.space) == "supertonic"
    assert abs(np.linalg.norm(lessons.part("ttl"), axis=-1) - 1).max() < 1e-5
    assert "put on the sphere" in caplog.text


def test_a_changed_file_is_read_again(tmp_path):
    tree = seed_tree(tmp_path/"seed")
    before = open_lessons(tree).audio(0)
    arrays = dict(np.load(tree/"train/sample_000000.npz")) | {"audio": np.ones(4410, np.float32)/2}
    np.savez_compressed(tree/"train/sample_000000.npz", **arrays)
    assert not np.array_equal(open_lessons(tree).audio(0), before)


def test_a_damaged_file_is_named_and_left_out(tmp_path, caplog):
    tree = seed_tree(tmp_path/"seed")
    (tree/"train/sample_000001.npz").write_bytes(b"PK\x03\x04 nonsense")
    lessons = open_lessons(tree)
    assert len(lessons) == 2 and list(lessons.failed) == ["sample_000001"]
    assert "sample_000001.npz" in caplog.text


class Bomb:
    def __reduce__(self): return os.system, ("touch never-made",)


@pytest.mark.parametrize("other, message", [
    ({"audio": np.array([Bomb()], object)}, "not a sound .npz"),
    ({"audio": np.zeros((2, 9))}, r"not \[T\]"), ({"audio": np.full(9, np.nan)}, "not finite"),
    ({"style_ttl": np.zeros((1, 50, 256))}, "all zeros"),
    ({"style_dp": np.ones((8, 15))}, "style_dp"), ({"sample_rate": 3}, "sample rate")])
def test_what_is_no_lesson_is_refused(other, message, tmp_path):
    tree = seed_tree(tmp_path/"seed", 1, **other)
    path = tree/"train/sample_000000.npz"
    with pytest.raises(DataError, match=message) as caught: read_lesson(path, StyleSpace("supertonic"))
    assert "sample_000000.npz" in str(caught.value)


def test_a_damaged_description_is_refused(whole, tmp_path):
    for text in ("[]", "{}", '{"format": "audiolab.lessons", "version": 1}', "x", '{"a":' * 5000):
        (tmp_path/"dataset.json").write_text(text)
        with pytest.raises(DataError, match="damaged"): Lessons(tmp_path)
