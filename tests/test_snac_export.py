"Graphs that compute what the codec does, at any length and batch, and are refused else."
import json
import os

import pytest
import torch

from audiolab.snac import (
    SNAC, ExportConfig, SnacError, export, export_command, export_onnx, from_pretrained,
    save_pretrained, verify_onnx,
)

onnx = pytest.importorskip("onnx", reason="optional: needs onnx")
runtime = pytest.importorskip("onnxruntime", reason="optional: needs onnxruntime")
TINY = dict(sampling_rate=8000, encoder_dim=32, encoder_rates=[4], decoder_dim=64,
            decoder_rates=[4], attn_window_size=2, codebook_size=16, vq_strides=[4, 1])
PLAIN = dict(sampling_rate=24000, encoder_dim=8, encoder_rates=[2, 4, 8, 8], decoder_dim=64,
             decoder_rates=[8, 8, 4, 2], attn_window_size=None, codebook_size=64, codebook_dim=8,
             vq_strides=[4, 2, 1])
WINDOWED = dict(sampling_rate=44100, encoder_dim=16, encoder_rates=[2, 3, 8, 8], decoder_dim=128,
                decoder_rates=[8, 8, 3, 2], attn_window_size=32, codebook_size=64,
                vq_strides=[8, 4, 2, 1])
FULL = {
    "24khz": dict(sampling_rate=24000, encoder_dim=48, encoder_rates=[2, 4, 8, 8], decoder_dim=1024,
                  decoder_rates=[8, 8, 4, 2], attn_window_size=None, vq_strides=[4, 2, 1]),
    "44khz": dict(sampling_rate=44100, encoder_rates=[2, 3, 8, 8], decoder_rates=[8, 8, 3, 2],
                  attn_window_size=32, vq_strides=[8, 4, 2, 1]),
}


def open_graph(path):
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def names(values): return [value.name for value in values]


def codec(config, seed=0):
    torch.manual_seed(seed)
    return SNAC(**config).train()  # as it is when training ends


@pytest.fixture(scope="module")
def model(): return codec(TINY)


@pytest.fixture(scope="module")
def graphs(model, tmp_path_factory):
    "With attention and with inputs for the noise, exported once"
    before = {k: v.clone() for k, v in model.state_dict().items()}
    paths = export_onnx(model, tmp_path_factory.mktemp("onnx")/"new", noise=True)
    after = model.state_dict()  # tracing has not touched the model
    assert model.training and list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)
    return paths


def test_parity(model, graphs):
    found = verify_onnx(graphs, model, shapes=((1, 2), (2, 1), (5, 7), (1, 40)))
    assert found.audio_error < 1e-5 and found.code_shortfall < 1e-5 and found.codes_equal > .99
    assert found.shapes[2] == (5, 7*model.pad_multiple - model.pad_multiple//3)


def test_inputs_and_notes(model, graphs):
    encoder, decoder = (open_graph(graphs[name]) for name in ("encoder", "decoder"))
    assert names(encoder.get_inputs()) == ["audio"]
    assert names(encoder.get_outputs()) == ["codes_0", "codes_1"]
    assert names(decoder.get_inputs()) == ["codes_0", "codes_1", "noise_0"]
    assert names(decoder.get_outputs()) == ["audio"]
    assert {o.type for o in encoder.get_outputs()} == {"tensor(int64)"}
    assert all(isinstance(i.shape[0], str) for i in encoder.get_inputs())
    shapes = [o.shape for o in encoder.get_outputs()]
    assert shapes == [["batch", "blocks"], ["batch", "4*blocks"]]
    assert encoder.get_inputs()[0].shape == ["batch", 1, "samples"]
    for samples in (1, 15, 16, 17, 33, 16*40 - 1):  # padded inside, as the model does
        audio = torch.randn(2, 1, samples)*.1
        with torch.no_grad(): wanted = model.encode(audio)
        made = encoder.run(None, {"audio": audio.numpy()})
        assert [a.shape for a in made] == [tuple(b.shape) for b in wanted]
        assert all((a == b.numpy()).all() for a, b in zip(made, wanted))
    notes = decoder.get_modelmeta().custom_metadata_map
    assert int(notes["pad_multiple"]) == model.pad_multiple
    assert json.loads(notes["vq_strides"]) == [4, 1] and notes["noise_inputs"] == "1"
    assert SNAC(**json.loads(notes["config"])).config == model.config
    samples = 3*model.pad_multiple
    with torch.no_grad(): codes = model.encode(torch.randn(1, 1, samples)*.1)
    feed = {f"codes_{i}": c.numpy() for i, c in enumerate(codes)}
    noises = torch.zeros(1, 1, samples), torch.ones(1, 1, samples)
    silent, loud = (decoder.run(None, feed | {"noise_0": n.numpy()})[0] for n in noises)
    wanted = model.decode(codes, noise=0).detach()
    torch.testing.assert_close(torch.from_numpy(silent), wanted, atol=1e-5, rtol=0)
    assert abs(silent-loud).max() > 1e-4
    for path in graphs.values():
        onnx.checker.check_model(onnx.load(path))
        raw = path.read_bytes()
        assert os.fsencode(os.getcwd()) not in raw and b"generator.py" not in raw


def test_other_weights_are_refused(model, graphs):
    other, smaller = codec(TINY, 1), codec(TINY | {"codebook_size": 8})
    swapped = {"encoder": graphs["decoder"], "decoder": graphs["encoder"]}
    broken = {"encoder": b"no graph", "decoder": graphs["decoder"]}
    with pytest.raises(SnacError, match="do not compute"): verify_onnx(graphs, other)
    with pytest.raises(SnacError, match="do not compute"): verify_onnx(graphs, model, tolerance=0.)
    for given, made_of in ((graphs, smaller), (swapped, model)):
        with pytest.raises(SnacError, match="do not run|do not compute"):
            verify_onnx(given, made_of)
    with pytest.raises(SnacError, match="refuses"): verify_onnx(broken, model)


def test_what_fails_is_not_written(model, graphs, tmp_path, monkeypatch):
    raw = {name: path.read_bytes() for name, path in graphs.items()}
    monkeypatch.setattr(export, "_graphs", lambda *args: raw)
    other, out = codec(TINY, 1), tmp_path/"out"
    with pytest.raises(SnacError, match="do not compute"): export_onnx(other, out)
    assert not (tmp_path/"out").exists()
    assert export_onnx(model, out, noise=True)["encoder"].read_bytes() == raw["encoder"]
    noiseless = codec(TINY | {"noise": False})
    with pytest.raises(SnacError, match="noise off"): export_onnx(noiseless, out, noise=True)


def test_without_the_packages(model, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(SnacError, match=r"audiolab\[onnx\]"): export_onnx(model, tmp_path)


def test_command(model, graphs, tmp_path, monkeypatch):
    raw = {name: path.read_bytes() for name, path in graphs.items()}
    monkeypatch.setattr(export, "_graphs", lambda *args: raw)
    source = save_pretrained(model, tmp_path/"in")
    out, other = tmp_path/"out", str(tmp_path/"other")
    config = ExportConfig(str(source), str(out), onnx=True, noise=True, safetensors=True)
    assert "decoder.onnx" in config.plan() and export_command(config) == 0
    assert sorted(os.listdir(out)) == ["config.json", "decoder.onnx", "encoder.onnx",
                                       "model.safetensors", "pytorch_model.bin"]
    states = from_pretrained(out).state_dict().values(), model.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(*states))
    for config, why in ((ExportConfig(str(source), other, noise=True), "onnx"),
                        (ExportConfig(str(tmp_path/"none"), other), "no such file")):
        with pytest.raises(SnacError, match=why): export_command(config)
    assert not (tmp_path/"other").exists()


LAYOUTS = {"plain": PLAIN, "windowed": WINDOWED,
           "full": WINDOWED | {"depthwise": False, "noise": False}}


@pytest.mark.slow
@pytest.mark.parametrize("noise", [False, True], ids=["silent", "noise"])
@pytest.mark.parametrize("config", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(config, noise, tmp_path):
    if noise and not config.get("noise", True): config = config | {"noise": True}
    model = codec(config)
    found = verify_onnx(export_onnx(model, tmp_path, noise=noise), model, shapes=((1, 1), (2, 5)))
    assert found.audio_error < 1e-5 and found.codes_equal > .99


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_size(name, tmp_path):
    model = codec(FULL[name]).fold_weight_norm()
    paths = export_onnx(model, tmp_path, noise=True, verify=False)
    assert verify_onnx(paths, model, shapes=((1, 1), (2, 2))).audio_error < 1e-4


@pytest.mark.slow
def test_export_repeats_to_the_byte(model, graphs, tmp_path):
    again = export_onnx(model, tmp_path, noise=True)
    assert all(again[name].read_bytes() == path.read_bytes() for name, path in graphs.items())
