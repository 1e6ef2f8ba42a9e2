"Kokoro's graph and voices of one's own: a graph that hums drives the whole teacher, without its weights."
import json

import numpy as np
import pytest

from audiolab.voice import (
    KokoroTeacher, Lessons, SamplerConfig, SpeechFailed, StyleError, load_voice, make_lessons,
    read_table, save_voice, stack_styles,
)

onnx = pytest.importorskip("onnx", reason="optional: needs onnx")
pytest.importorskip("onnxruntime", reason="optional: needs onnxruntime")
pytest.importorskip("espeakng_loader", reason="optional: needs espeakng-loader")
SOUNDS = "abdefhijklmnoprstuvwzæðŋɐɑɔəɚɛɜɡɪɹʃʊʌʒʤʧθˈˌːᵻ .,!?"


def humming():
    "As long as its tokens, as loud as its timbre, as slow as its prosody says on average."
    from onnx import TensorProto, helper

    def constant(name, *values):
        kind = TensorProto.FLOAT if isinstance(values[0], float) else TensorProto.INT64
        return helper.make_tensor(name, kind, [len(values)], values)
    def node(kind, given, made, **how): return helper.make_node(kind, given, [made], **how)
    nodes = [
        node("Cast", ["tokens"], "numbers", to=TensorProto.FLOAT),
        node("Transpose", ["numbers"], "column", perm=[1, 0]),
        node("Expand", ["column", "frame"], "frames"),
        node("Reshape", ["frames", "flat"], "long"),
        node("Slice", ["style", "start", "half", "axis"], "timbre"),
        node("ReduceMean", ["timbre"], "gain", keepdims=0),
        node("Div", ["long", "many"], "scaled"), node("Mul", ["scaled", "gain"], "loud"),
        node("Div", ["loud", "speed"], "audio")]
    values = [constant("frame", 1, 400), constant("flat", -1), constant("start", 0),
              constant("half", 128), constant("axis", 1), constant("many", 200.)]
    ports = [("tokens", TensorProto.INT64, [1, "n"]), ("style", TensorProto.FLOAT, [1, 256]),
             ("speed", TensorProto.FLOAT, [1])]
    inputs = [helper.make_tensor_value_info(*port) for port in ports]
    audio = helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["T"])
    graph = helper.make_graph(nodes, "hum", inputs, [audio], values)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("kokoro"), np.random.default_rng(0)
    (folder/"model.onnx").write_bytes(humming())
    rows = 1 + .2*rng.standard_normal((3, 510, 1, 256)).astype(np.float32)
    np.savez(folder/"voices.npz", **dict(zip(("anna", "bea", "carl"), rows)))
    table = {"vocab": {sound: n + 1 for n, sound in enumerate(SOUNDS)}}
    (folder/"vocab.json").write_text(json.dumps(table))
    return folder


@pytest.fixture(scope="module")
def teacher(files):
    return KokoroTeacher(files/"model.onnx", files/"voices.npz", files/"vocab.json")


def say(teacher, styles, texts, **how): return teacher.synthesize(texts, styles, **how)


def test_a_model_of_ones_own_needs_no_package(teacher):
    voices = stack_styles(teacher.presets().values())
    texts = ["Good morning.", "Good morning, my dear friend.", "Good morning."]
    one, two, again = say(teacher, voices, texts)
    assert one.seconds < two.seconds and len(one.audio) == len(again.audio)
    assert not np.array_equal(one.audio, again.audio)  # anna and carl
    alone, = say(teacher, voices[:1], ["Good morning."])
    assert np.array_equal(alone.audio, one.audio)
    assert teacher.anchors().ttl.shape == (3*180, 1, 128) and len(teacher.fingerprint()) == 64


def test_what_cannot_be_said_fails_alone(teacher):
    voices = stack_styles(teacher.presets().values())[:1]
    with pytest.raises(SpeechFailed, match="sounds at once"):
        say(teacher, voices, ["a long word "*200])
    with pytest.raises(SpeechFailed, match="nothing in"): say(teacher, voices, ["—"])
    with pytest.raises(ValueError, match="does not speak 'de'"):
        say(teacher, voices, ["Hallo."], lang="de")


def test_lessons_in_voices_beyond_the_presets(teacher, tmp_path):
    counts = {"train": 6, "val": 2, "test": 2}
    make_lessons(tmp_path, teacher, counts=counts, sampler=SamplerConfig("pca", pca_sigma=1.))
    lessons = Lessons(tmp_path)
    assert lessons.space == teacher.space and lessons.part("ttl").shape == (6, 1, 128)
    assert "Apache-2.0" in lessons.about["licence"]


def test_a_voice_file_and_back(teacher, tmp_path):
    voice = teacher.presets()["bea"]
    again = load_voice(save_voice(voice, tmp_path/"bea.npz"), teacher.space)
    assert np.array_equal(again.ttl, voice.ttl) and np.array_equal(again.dp, voice.dp)
    with np.load(tmp_path/"bea.npz", allow_pickle=False) as found:
        assert [found[name].shape for name in found] == [(510, 1, 256)]


NO_TABLES = "", "[]", "{}", '{"vocab": []}', '{"vocab": {"a": "b"}}', '{"vocab": {}}'


@pytest.mark.parametrize("text", NO_TABLES)
def test_a_table_that_is_none(text, tmp_path):
    (tmp_path/"vocab.json").write_text(text)
    with pytest.raises(StyleError, match="table of sounds"): read_table(tmp_path/"vocab.json")
