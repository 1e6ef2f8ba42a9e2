"Supertonic's own package, driven end to end with an engine that hums"
import shutil
import sys

import numpy as np
import pytest

from audiolab.voice import (
    SUPERTONIC_NOTICE, SpeechFailed, StyleError, SupertonicTeacher, load_style, make_lessons,
    open_lessons, perturb, save_style, stack_styles, write_stub_engine,
)

pytest.importorskip("supertonic", reason="optional: needs the package supertonic")
onnx = pytest.importorskip("onnx", reason="optional: needs the package onnx")

TEXT = "A sentence of some length, for the engine to hum."


@pytest.fixture(scope="module")
def stub(tmp_path_factory): return write_stub_engine(tmp_path_factory.mktemp("stub"))


@pytest.fixture(scope="module")
def teacher(stub): return SupertonicTeacher(stub)


@pytest.fixture(scope="module")
def voices(teacher): return stack_styles(teacher.presets().values())


def test_it_says_what_the_package_says(teacher, voices):
    for n, name in enumerate(teacher.presets()):
        np.random.seed(3)
        theirs = teacher.tts.get_voice_style(name)
        wav, seconds = teacher.tts.synthesize(TEXT, theirs, 5, 1.05, lang="en")
        said, = teacher.synthesize([TEXT], voices[n:n + 1], seeds=[3])
        assert said.audio.tobytes() == wav[0, :int(seconds[0]*44100)].tobytes()
        assert wav.shape[1] > len(said.audio) and said.seconds == len(said.audio)/44100


def test_bytes_follow_from_text_style_and_seed_alone(teacher, voices):
    texts, seeds = [TEXT, "Short."], [1, 2**64 + 1]
    np.random.seed(5)
    before = np.random.get_state()
    both = teacher.synthesize(texts, voices, seeds=seeds)
    after = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(before, after))
    for n, said in enumerate(both):
        np.random.seed(n)
        alone, = teacher.synthesize(texts[n:n + 1], voices[n:n + 1], seeds=seeds[n:n + 1])
        assert alone.audio.tobytes() == said.audio.tobytes()
        other, = teacher.synthesize(texts[n:n + 1], voices[n:n + 1], seeds=[seeds[n] + 1])
        assert len(other.audio) == len(said.audio) and (other.audio != said.audio).any()


def test_long_texts_are_cut_and_no_word_is(teacher, voices):
    "The end of each piece is its own: the package's sound of two pieces is longer than it says"
    said, = teacher.synthesize([f"{TEXT} "*8], voices[:1])
    pieces = [" ".join([TEXT]*count) for count in (6, 2)]
    lengths = [len(s.audio) for s in teacher.synthesize(pieces, stack_styles([voices[0]]*2))]
    assert len(said.audio) == sum(lengths) + int(.3*44100)


def test_a_saved_voice_is_the_same_in_the_package(teacher, voices, tmp_path):
    from supertonic.loader import load_voice_style_from_json_file
    made = perturb(voices[0], .3, np.random.default_rng(0))
    path = save_style(made, tmp_path/"mine.json")
    theirs, ours = load_voice_style_from_json_file(path), load_style(path, teacher.space)
    for part in ("ttl", "dp"):
        read = getattr(theirs, part)
        assert read.dtype == np.float32
        assert read[0].tobytes() == made.part(part).tobytes() == ours.part(part).tobytes()
    np.random.seed(0)
    wav, seconds = teacher.tts.synthesize(TEXT, theirs, 5, lang="en")
    said, = teacher.synthesize([TEXT], stack_styles([ours]))
    assert said.audio.tobytes() == wav[0, :int(seconds[0]*44100)].tobytes()


def test_models_and_revisions_do_not_mix(stub, teacher, voices, tmp_path):
    older = SupertonicTeacher(stub, "supertonic-2")
    with pytest.raises(StyleError, match="nothing to do with"): older.synthesize([TEXT], voices[:1])
    path = save_style(voices[0], tmp_path/"mine.json")
    with pytest.raises(StyleError, match="means nothing to supertonic-2"):
        load_style(path, older.space)
    note = tmp_path/"model/.cache/huggingface/download/onnx/tts.json.metadata"
    shutil.copytree(stub, tmp_path/"model")
    note.parent.mkdir(parents=True)
    note.write_text(f"{older.space.revision}\netag\n1\n")
    with pytest.raises(ValueError, match="holds the model supertonic-2, not supertonic-3"):
        SupertonicTeacher(tmp_path/"model")
    note.write_text(f"{'a'*40}\netag\n1\n")
    later = SupertonicTeacher(tmp_path/"model")
    assert later.space.revision == "a"*40
    with pytest.raises(StyleError, match="nothing to do with"): later.synthesize([TEXT], voices[:1])


def test_a_download_deletes_nothing(stub, tmp_path, monkeypatch):
    "The package empties the folder that it loads a model into"
    import huggingface_hub
    (tmp_path/"mine").mkdir()
    (tmp_path/"mine/thesis.txt").write_text("years")
    for allowed, error in ((False, FileNotFoundError), (True, ValueError)):
        with pytest.raises(error, match="mine"):
            SupertonicTeacher(tmp_path/"mine", auto_download=allowed)
    assert (tmp_path/"mine/thesis.txt").read_text() == "years"
    asked = {}
    def fetch(local_dir, **rest):
        asked.update(rest)
        shutil.copytree(stub, local_dir)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    got = SupertonicTeacher(tmp_path/"new", auto_download=True)
    assert asked == {"repo_id": "Supertone/supertonic-3", "revision": got.space.revision}


def spoiled(stub, folder, part, name, value):
    "A teacher, one of whose graphs has another constant"
    shutil.copytree(stub, folder)
    graph = onnx.load(path := folder/f"onnx/{part}.onnx")
    for array in graph.graph.initializer:
        if array.name == name:
            old = onnx.numpy_helper.to_array(array)
            array.CopyFrom(onnx.numpy_helper.from_array(np.full_like(old, value), name))
    onnx.save(graph, path)
    return SupertonicTeacher(folder)


@pytest.mark.parametrize("part, name, value, why", [
    ("vocoder", "waves", 0, "silence"), ("vocoder", "waves", np.nan, "not finite"),
    ("duration_predictor", "each", -1, "negative dimensions"),
    ("duration_predictor", "each", 0, "size 0")])
def test_what_is_no_speech_is_told_by_its_text(part, name, value, why, stub, voices, tmp_path):
    with pytest.raises(SpeechFailed, match=f"'{TEXT}': .*{why}"):
        spoiled(stub, tmp_path/"model", part, name, value).synthesize([TEXT], voices[:1])


def test_lessons_are_made_without_those_that_failed(teacher, tmp_path):
    texts = {"en": [f"Sentence {n}." for n in range(9)] + ["ሰላም.", "ላም.", "ሰም."]}
    counts = {"train": 12, "val": 4, "test": 4}
    folder = make_lessons(tmp_path/"set", teacher, counts=counts, texts=texts, clips_per_style=2)
    lessons = open_lessons(folder)
    assert 0 < len(lessons) < 12 and lessons.space == teacher.space
    assert lessons.about["licence"] == SUPERTONIC_NOTICE
    assert all(lessons.info(n)["text"].isascii() for n in range(len(lessons)))


def test_what_cannot_be_asked_is_refused(teacher, voices):
    with pytest.raises(SpeechFailed, match="has not learnt ላ ም ሰ"):
        teacher.synthesize(["ሰላም."], voices[:1])
    wrongs = {"steps": 0}, {"speed": 2.5}, {"speed": np.nan}, {"lang": "am"}, {"seeds": [1, 2]}
    for wrong in wrongs:
        with pytest.raises(ValueError): teacher.synthesize([TEXT], voices[:1], **wrong)
    with pytest.raises(ValueError, match="there are supertonic, supertonic-2, supertonic-3"):
        SupertonicTeacher("anywhere", "supertonic-4")


def test_a_fingerprint_is_of_every_byte(stub, teacher, tmp_path):
    shutil.copytree(stub, tmp_path/"model")
    copy = SupertonicTeacher(tmp_path/"model")
    assert copy.fingerprint() == teacher.fingerprint()
    (tmp_path/"model/onnx/tts.json").write_bytes((stub/"onnx/tts.json").read_bytes() + b" ")
    assert copy.fingerprint() != teacher.fingerprint()


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "supertonic.config", None)
    with pytest.raises(ImportError, match=r'pip install "audiolab\[supertonic\]"'):
        SupertonicTeacher("anywhere")
