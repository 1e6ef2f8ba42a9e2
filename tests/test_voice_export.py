"Graphs that compute what the encoder does, and files that are none."
import json

import numpy as np
import pytest
import torch
from voice_encoders import kokoro_encoder, parametric_encoder, speech

from audiolab.files import CheckpointError
from audiolab.training import GraphError
from audiolab.voice import (
    TRUNKS, EncoderGraph, ExportConfig, OnnxEncoder, check_graph, encoder_digest,
    encoder_graph, export, export_command, export_encoder, load_encoder, read_graph, save_encoder,
)

onnx = pytest.importorskip("onnx", reason="optional: needs onnx")
pytest.importorskip("onnxscript", reason="optional: needs onnxscript")
pytest.importorskip("onnxruntime", reason="optional: needs onnxruntime")


@pytest.fixture(scope="module")
def encoder(): return parametric_encoder()


@pytest.fixture(scope="module")
def graph(encoder): return encoder_graph(encoder)


@pytest.fixture
def exported(encoder, graph, tmp_path):
    "The file; traced only once for all tests"
    return export_encoder(encoder, tmp_path/"voice.onnx", graph=graph)


def test_one_file_says_all(encoder, exported, tmp_path):
    assert sorted(file.name for file in tmp_path.iterdir()) == ["voice.onnx", "voice.onnx.json"]
    proto = onnx.load(exported, load_external_data=False)
    onnx.checker.check_model(proto)
    sizes = {port.name: [d.dim_param or d.dim_value for d in port.type.tensor_type.shape.dim]
             for port in (*proto.graph.input, *proto.graph.output)}
    assert sizes == {"mel_spectrogram": ["batch", 128, "frames"],
                     "style_ttl": ["batch", 1, 50, 256], "style_dp": ["batch", 1, 8, 16]}
    notes = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(notes["voice_encoder"])["spec"]["features"]["f_max"] == 8000
    assert notes["encoder_sha256"] == encoder_digest(encoder)
    raw = exported.read_bytes()
    assert b".py" not in raw and len(raw) > 4*sum(p.numel() for p in encoder.parameters())
    facts = json.loads((tmp_path/"voice.onnx.json").read_text())
    assert facts["statistics"]["bytes"] == len(raw) and facts["outputs"]["style_dp"][2:] == [8, 16]
    assert facts["statistics"]["largest_difference"] <= 1e-5


def test_any_batch_and_length(encoder, graph):
    shapes = (1, 1), (1, 2), (1, 5), (2, 1), (7, 33), (2, 64), (1, 1000), (1, 5625)
    assert check_graph(graph, encoder, shapes=shapes).difference <= 1e-5


def test_alike_from_checkpoint_and_graph(encoder, exported, tmp_path):
    loaded = load_encoder(save_encoder(encoder, tmp_path/"encoder.safetensors"))
    opened, audio = OnnxEncoder(exported), speech()
    assert opened.digest == encoder_digest(loaded) and opened.space == loaded.space
    for part, rate in ((audio, 24_000), (audio[:30_000], 44_100), (audio[30_000:30_300], 24_000)):
        one, other = loaded.style(part, rate), opened.style(part, rate)
        assert abs(one.ttl - other.ttl).max() < 1e-5 and abs(one.dp - other.dp).max() < 1e-5
    for bad in (np.zeros(9000), np.array([1., np.nan]), np.zeros((2, 9))):
        with pytest.raises(ValueError, match="recording"): opened.style(bad, 24_000)


def test_what_differs_is_not_written(encoder, graph, tmp_path):
    with pytest.raises(GraphError, match="does not compute"):
        export_encoder(parametric_encoder(hidden_dim=24), tmp_path/"voice.onnx", graph=graph)
    with pytest.raises(GraphError, match="voice.onnx"):
        export_encoder(encoder, tmp_path/"voice.pt", graph=graph)
    assert not list(tmp_path.iterdir())
    with pytest.raises(GraphError, match="run at every length"):
        check_graph(graph, parametric_encoder(hidden_dim=16), shapes=((1, 0),))


def test_without_the_packages(encoder, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(GraphError, match=r"audiolab\[onnx\]"): encoder_graph(encoder)


def changed(graph, change):
    proto = onnx.load_model_from_string(graph)
    change(proto)
    return proto.SerializeToString()


def external(proto):
    tensor = proto.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def external_in_constant(proto):
    tensor = onnx.TensorProto(dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    proto.graph.node.append(onnx.helper.make_node("Constant", [], ["x"], value=tensor))


def no_text(proto):
    raw = proto.SerializeToString().replace(b'"dp_shape"', b'"dp_\xa0hape"')
    proto.ParseFromString(raw)


def looping(proto):
    body = onnx.helper.make_graph([], "body", [], [])
    proto.graph.node.append(onnx.helper.make_node("Loop", ["", ""], [], body=body))


def foreign(proto): proto.graph.node[0].domain = "com.example"
def renamed(proto): proto.graph.input[0].name = "audio"
def untold(proto): del proto.metadata_props[:]


def told(proto, change):
    for entry in proto.metadata_props:
        if entry.key == "voice_encoder": entry.value = change(entry.value)


def other_space(proto): told(proto, lambda text: text.replace("[8, 16]", "[8, 32]"))
def impossible(proto): told(proto, lambda text: text.replace('"n_mels": 80', '"n_mels": 0'))
def nested(proto): told(proto, lambda text: "["*100_000)


HOSTILE = {external: "other files", external_in_constant: "other files", looping: "loops",
           foreign: "com.example", no_text: "no text|no ONNX", renamed: "bad.onnx",
           untold: "no encoder", other_space: "style_dp", impossible: "bad.onnx",
           nested: "bad.onnx"}


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__name__)
def test_hostile_graphs(graph, tmp_path, change):
    (path := tmp_path/"bad.onnx").write_bytes(changed(graph, change))
    with pytest.raises(CheckpointError, match=HOSTILE[change]) as found: OnnxEncoder(path)
    assert "bad.onnx" in str(found.value)


def test_what_is_no_graph(tmp_path):
    with pytest.raises((CheckpointError, OSError)): read_graph(tmp_path)
    with pytest.raises((CheckpointError, OSError)): read_graph(tmp_path/"none.onnx")
    for raw in (b"", b"Dear Anna", b"\x00"*1000, b"\x08\x08"):
        (path := tmp_path/"bad.onnx").write_bytes(raw)
        with pytest.raises(CheckpointError, match="no ONNX file"): OnnxEncoder(path)


def damage(graph, rng):
    "Some bytes changed, or an end cut off"
    raw = bytearray(graph)
    if rng.random() < .3: return bytes(raw[:rng.integers(len(raw))])
    where = rng.integers(0, len(raw), rng.integers(1, 9))
    if rng.random() < .5: where = len(raw) - 1 - where % 3000  # where notes and ports stand
    for place in where: raw[place] = rng.integers(256)
    return bytes(raw)


def fuzz(graph, tmp_path, cases):
    rng, path, opened = np.random.default_rng(0), tmp_path/"fuzz.onnx", 0
    for _ in range(cases):
        path.write_bytes(damage(graph, rng))
        try: OnnxEncoder(path)
        except CheckpointError as error: assert "fuzz.onnx" in str(error)
        else: opened += 1
    return opened


def test_damaged_graphs(graph, tmp_path): assert fuzz(graph, tmp_path, 30) < 30


@pytest.mark.slow
def test_many_damaged_graphs(graph, tmp_path): assert fuzz(graph, tmp_path, 1500) < 1500


def test_command(encoder, graph, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "encoder_graph", lambda *args: graph)
    source = save_encoder(encoder, tmp_path/"encoder.safetensors")
    assert export_command(ExportConfig(str(source), str(tmp_path/"a.onnx"))) == 0
    assert (tmp_path/"a.onnx").read_bytes() == graph
    from audiolab.config import config_cli
    lines = (["model", "v.onnx"], ["--checkpoint", "model", "--output", "v.onnx"],
             ["model", "--output=v.onnx", "--no-validate", "--opset", "20"])
    found = [config_cli(ExportConfig, line, positional=True).config for line in lines]
    assert [(config.model, config.file) for config in found] == [("model", "v.onnx")]*3
    assert (found[0].validate, found[2].validate, found[2].opset) == (True, False, 20)
    gone, file = str(tmp_path/"gone"), str(tmp_path/"v.onnx")
    with pytest.raises((CheckpointError, OSError)): export_command(ExportConfig(gone, file))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["basis", "tokens", "flat"])
@pytest.mark.parametrize("trunk", list(TRUNKS))
def test_every_architecture(trunk, head):
    encoder = parametric_encoder(trunk=trunk, head=head, hidden_dim=32)
    graph = encoder_graph(encoder)
    assert check_graph(graph, encoder, shapes=((1, 100), (2, 33), (3, 501))).difference <= 1e-5


@pytest.mark.slow
def test_a_space_without_unit_rows():
    encoder = kokoro_encoder()
    graph = encoder_graph(encoder)
    assert check_graph(graph, encoder).difference <= 1e-5
    with torch.no_grad(): ttl, dp = EncoderGraph(encoder)(torch.zeros(2, 128, 9))
    assert ttl.shape == dp.shape == (2, 1, 1, 128)
