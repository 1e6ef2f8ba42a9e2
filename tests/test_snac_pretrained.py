"Weights from strangers: what opens them, what is refused, and that what is saved opens elsewhere."
import json
import os
import pickle
import re
import resource
import zipfile

import numpy as np
import pytest
import torch

from audiolab.files import write_checkpoint
from audiolab.snac import (
    SNAC, SnacError, check_config, describe, from_pretrained, read_state, save_pretrained,
)

PLAIN = dict(sampling_rate=24000, encoder_dim=8, encoder_rates=[2, 4, 8, 8], decoder_dim=64,
             decoder_rates=[8, 8, 4, 2], attn_window_size=None, codebook_size=64, codebook_dim=8,
             vq_strides=[4, 2, 1])
WINDOWED = dict(sampling_rate=44100, encoder_dim=16, encoder_rates=[2, 3, 8, 8], decoder_dim=128,
                decoder_rates=[8, 8, 3, 2], attn_window_size=32, codebook_size=64,
                vq_strides=[8, 4, 2, 1])
TINY = dict(sampling_rate=8000, encoder_dim=4, encoder_rates=[2, 4], decoder_dim=16,
            decoder_rates=[4, 2], attn_window_size=None, codebook_size=16, vq_strides=[2, 1])
BOOKS = dict(codebook_size=4096, codebook_dim=8, noise=True, depthwise=True)
MUSIC = dict(encoder_dim=64, encoder_rates=[2, 3, 8, 8], decoder_dim=1536,
             decoder_rates=[8, 8, 3, 2], attn_window_size=32, vq_strides=[8, 4, 2, 1], **BOOKS)
PUBLISHED = {
    "24khz": dict(sampling_rate=24000, encoder_dim=48, encoder_rates=[2, 4, 8, 8], decoder_dim=1024,
                  decoder_rates=[8, 8, 4, 2], attn_window_size=None, vq_strides=[4, 2, 1], **BOOKS),
    "32khz": dict(sampling_rate=32000, **MUSIC), "44khz": dict(sampling_rate=44100, **MUSIC),
}


def codec(config, seed=0):
    torch.manual_seed(seed)
    return SNAC(**config).eval().requires_grad_(False)


def same(a, b):
    mine, yours = a.state_dict(), b.state_dict()
    if list(mine) != list(yours): return False
    return all(torch.equal(x, y) for x, y in zip(mine.values(), yours.values()))


def shapes_of(state): return {name: tensor.shape for name, tensor in state.items()}


@pytest.fixture(scope="module")
def tiny(): return codec(TINY)


@pytest.fixture
def folder(tiny, tmp_path): return save_pretrained(tiny, tmp_path/"codec")


@pytest.mark.parametrize("name, parameters, bits", [
    ("24khz", (6.69, .14, 13.01), 984), ("32khz", (16.01, .21, 38.33), 1875),
    ("44khz", (16.01, .21, 38.33), 2584)])
def test_published_layouts(name, parameters, bits):
    "Names, shapes and order of the published models, at full size without memory behind it"
    snac = pytest.importorskip("snac", reason="optional: needs the package snac")
    with torch.device("meta"):
        theirs, ours = snac.SNAC(**PUBLISHED[name]), SNAC(**check_config(PUBLISHED[name]))
    def shapes(m): return {k: (tuple(v.shape), v.dtype) for k, v in m.state_dict().items()}
    assert shapes(ours) == shapes(theirs) and len(shapes(ours)) == (269 if name == "24khz" else 286)
    about = describe(PUBLISHED[name])
    np.testing.assert_allclose([n/1e6 for n in about.parameters.values()], parameters, atol=.006)
    assert round(about.bit_rate) == bits
    assert sum(p.numel() for p in theirs.parameters()) == about.total
    assert about.hop_length == theirs.hop_length
    assert "token" in about._repr_markdown_()


@pytest.mark.parametrize("config", [PLAIN, WINDOWED], ids=["plain", "windowed"])
def test_opens_in_the_package(config, tmp_path, monkeypatch):
    snac = pytest.importorskip("snac", reason="optional: needs the package snac")
    mine = codec(config)
    theirs = snac.SNAC.from_pretrained(str(save_pretrained(mine, tmp_path/"codec")))
    audio = torch.randn(1, 1, mine.pad_multiple+100)*.1
    codes = mine.encode(audio)
    assert all(torch.equal(a, b) for a, b in zip(codes, theirs.encode(audio)))
    def silence(shape, **kw): return torch.zeros(shape, **kw)
    monkeypatch.setattr(torch, "randn", silence)  # noise off in the package
    with torch.no_grad(): difference = mine.decode(codes, noise=0)-theirs.decode(codes)
    assert difference.abs().max() <= 1e-6


def test_opens_what_the_package_saves(tmp_path):
    snac = pytest.importorskip("snac", reason="optional: needs the package snac")
    theirs = snac.SNAC(**PLAIN)
    torch.save(theirs.state_dict(), tmp_path/"pytorch_model.bin")
    (tmp_path/"config.json").write_text(json.dumps(PLAIN))
    assert same(from_pretrained(tmp_path), theirs)


def test_round_trip(tiny, tmp_path):
    state = torch.get_rng_state()
    for safetensors in (False, True):
        out = save_pretrained(tiny, tmp_path/str(safetensors), safetensors)
        again = from_pretrained(out)
        assert same(again, tiny) and not again.training and again.config == tiny.config
        names = ["config.json", *["model.safetensors"]*safetensors, "pytorch_model.bin"]
        assert sorted(p.name for p in out.iterdir()) == names
        assert list(json.loads((out/"config.json").read_text())) == list(tiny.config)
    for name in ("model.safetensors", "pytorch_model.bin"):
        assert same(from_pretrained(tmp_path/"True"/name), tiny)
    assert torch.equal(state, torch.get_rng_state())


def test_saving_again_leaves_nothing_old(tiny, tmp_path):
    save_pretrained(tiny, tmp_path, safetensors=True)
    other = codec(TINY, 1)
    assert same(from_pretrained(save_pretrained(other, tmp_path)), other)


def test_a_failed_save_leaves_the_old_one(folder, tiny, monkeypatch):
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SnacError, match="No space"): save_pretrained(codec(TINY, 1), folder)
    monkeypatch.undo()
    assert same(from_pretrained(folder), tiny) and len(list(folder.iterdir())) == 2


def test_names_of_old_and_of_folded_weights(tiny, tmp_path):
    def older(match): return f"weight_{'gv'[int(match[1])]}"
    old = {re.sub(r"parametrizations\.weight\.original([01])", older, k): v
           for k, v in tiny.state_dict().items()}
    assert any(k.endswith("weight_g") for k in old)
    torch.save(old, tmp_path/"pytorch_model.bin")
    (tmp_path/"config.json").write_text(json.dumps(TINY))
    assert same(from_pretrained(tmp_path), tiny)
    again = from_pretrained(save_pretrained(tiny.fold_weight_norm(), tmp_path/"folded"))
    codes = tiny.encode(torch.randn(1, 1, 64))
    found, wanted = (o.decode(codes, noise=0) for o in (again, tiny))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tiny, folder, dtype):
    torch.save({k: v.to(dtype) for k, v in tiny.state_dict().items()}, folder/"pytorch_model.bin")
    found = read_state(folder)[1]
    assert all(t.dtype == torch.float32 for t in found.values())
    name = "quantizer.quantizers.0.codebook.weight"
    assert torch.equal(found[name], tiny.state_dict()[name].to(dtype).float())


def checkpoint(path, model, **more):
    "As training writes it: published names, other tensors beside them, the settings of the run"
    tensors = model.state_dict() | {"training.optimizer.0": torch.ones(5)} | more
    settings = {"model": model.config, "training": {"learning_rate": 6e-4}}
    return write_checkpoint(path, tensors, {"config": json.dumps(settings)})


def test_checkpoints_and_runs(tmp_path):
    first, best, final = (codec(TINY, seed) for seed in range(3))
    run = tmp_path/"run"
    (run/"checkpoints").mkdir(parents=True)
    assert same(from_pretrained(checkpoint(run/"checkpoints/step_10.safetensors", first)), first)
    assert same(from_pretrained(run), first)
    checkpoint(run/"model_final.safetensors", final)
    assert same(from_pretrained(run), final)
    checkpoint(run/"best_model.safetensors", best)
    assert same(from_pretrained(run), best)
    save_pretrained(final, run)
    assert same(from_pretrained(run), final)  # what was exported there on purpose
    flat = tmp_path/"flat"
    checkpoint(flat/"step_7.safetensors", first)
    assert same(from_pretrained(flat), first)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = checkpoint(tmp_path/"a.safetensors", codec(TINY))
    raw = bytearray(path.read_bytes())
    for at in (len(raw)-60, len(raw)//2, 200):
        bad = bytearray(raw)
        bad[at] ^= 1
        path.write_bytes(bad)
        with pytest.raises(SnacError, match="digest|JSON|header"): from_pretrained(path)
    path.write_bytes(raw[:-30])
    with pytest.raises(SnacError, match="truncated"): from_pretrained(path)
    write_checkpoint(path, {"vocoder.a": np.ones(3, np.float32)})
    with pytest.raises(SnacError, match="holds no codec"): from_pretrained(path)
    write_checkpoint(path, codec(TINY).state_dict())
    with pytest.raises(SnacError, match="no config.json beside"): from_pretrained(path)


@pytest.mark.parametrize("full", [True, False], ids=["periodic", "final"])
def test_checkpoints_of_the_trainer_before(tiny, tmp_path, full):
    "A .pt file with the generator and either the settings of the whole run or of the model alone"
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    config = {"model": TINY, "training": {"learning_rate": 6e-4}} if full else TINY
    found = {"iteration": 10, "generator": tiny.state_dict(), "config": config}
    if full:
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, .99)
        found |= {"mpd": {"w": torch.ones(2)}, "optim_g": optimizer.state_dict(),
                  "scheduler_g": scheduler.state_dict()}
    torch.save(found, tmp_path/"snac_24khz_iter_10.pt")
    assert same(from_pretrained(tmp_path/"snac_24khz_iter_10.pt"), tiny)
    with pytest.raises(SnacError, match="name one of snac_24khz_iter_10.pt"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("change, why", [
    ({"encoder_dim": 10**12}, "encoder_dim is"), ({"encoder_dim": 8.0}, "encoder_dim is"),
    ({"encoder_dim": True}, "encoder_dim is"), ({"encoder_dim": "8"}, "encoder_dim is"),
    ({"encoder_rates": []}, "encoder_rates"), ({"encoder_rates": [2]*9}, "encoder_rates"),
    ({"encoder_rates": [2, 0]}, "encoder_rates"), ({"encoder_rates": 8}, "encoder_rates"),
    ({"encoder_rates": [64]*8, "decoder_rates": [64]*8}, "samples"),
    ({"decoder_rates": [2, 2]}, "mirror"), ({"decoder_dim": 18}, "multiple of 4"),
    ({"attn_window_size": 32}, "heads"), ({"attn_window_size": 10**9}, "attn_window_size"),
    ({"vq_strides": [1, 2]}, "vq_strides"), ({"vq_strides": [3, 2]}, "vq_strides"),
    ({"latent_dim": 99}, "latent_dim"), ({"noise": 1}, "noise"),
    ({"codebook_size": None}, "codebook_size"), ({"depth": 1, "x": 2}, "'depth', 'x'"),
    ({"encoder_dim": 4096, "encoder_rates": [2]*8, "decoder_rates": [2]*8, "decoder_dim": 256},
     "doubled"), ({"normed": False}, "normed"),
])
def test_hostile_settings(folder, change, why):
    (folder/"config.json").write_text(json.dumps(TINY | change))
    with pytest.raises(SnacError, match=why): from_pretrained(folder)


@pytest.mark.parametrize("text", [
    "", "{", "[]", "3", '"x"', "null", "[" * 200_000, '{"encoder_dim": ' + "9"*10_000 + "}",
    '{"encoder_dim": NaN}', "\x00\xff", " " * (1 << 21), '{"model": 3}'])
def test_settings_that_are_none(folder, text):
    (folder/"config.json").write_text(text, encoding="latin-1")
    with pytest.raises(SnacError, match="config.json"): from_pretrained(folder)


class Call:
    def __init__(self, function, *args): self.call = function, args
    def __reduce__(self): return self.call


def archive(path, data, pack=zipfile.ZIP_STORED, **more):
    with zipfile.ZipFile(path, "w", pack) as z:
        entries = {"data.pkl": data, "byteorder": b"little", "version": b"3\n", **more}
        for name, raw in entries.items(): z.writestr(f"archive/{name}", raw)


@pytest.mark.parametrize("trap", [
    Call(os.system, "touch was_here"), Call(eval, "open('was_here', 'w')"),
    Call(exec, "open('was_here', 'w')"), Call(bytearray, 1 << 36), Call(getattr, "a", "upper"),
    Call(np.zeros, 1 << 36),
], ids=["system", "eval", "exec", "bytearray", "getattr", "zeros"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_programs_are_not_run(folder, tiny, trap, protocol, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    state = tiny.state_dict() | {"trap": trap}
    torch.save(state, folder/"pytorch_model.bin", pickle_protocol=protocol)
    with pytest.raises(SnacError, match="refused"): from_pretrained(folder)
    (folder/"pytorch_model.bin").write_bytes(pickle.dumps(trap))
    with pytest.raises(SnacError, match="bare pickle"): from_pretrained(folder)
    assert not (tmp_path/"was_here").exists()


def test_bombs(folder, tiny):
    "Small files that would be large in memory"
    path = folder/"pytorch_model.bin"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    archive(path, bytes(100_000_000), zipfile.ZIP_DEFLATED)
    with pytest.raises(SnacError, match="packed"): from_pretrained(folder)
    archive(path, b"\x80\x02" + b")"*3 + b"\x85"*200_000 + b".")
    with pytest.raises(SnacError, match="tuples"): from_pretrained(folder)
    archive(path, b"\x80\x02r\xff\xff\xff\xff.")
    with pytest.raises(SnacError): from_pretrained(folder)
    torch.save({k: torch.zeros(1).expand(1 << 40) for k in tiny.state_dict()}, path)
    with pytest.raises(SnacError, match="differences"): from_pretrained(folder)
    # 16 GiB a level, as one number shown everywhere
    wide = TINY | {"codebook_size": 1 << 20, "codebook_dim": 4096}
    (folder/"config.json").write_text(json.dumps(wide))
    with torch.device("meta"): shapes = {k: v.shape for k, v in SNAC(**wide).state_dict().items()}
    torch.save({k: torch.zeros(1).expand(s) for k, s in shapes.items()}, path)
    with pytest.raises(SnacError, match="share their numbers"): from_pretrained(folder)
    folded = {k.replace("parametrizations.weight.original1", "weight"): torch.zeros(1).expand(s)
              for k, s in shapes.items() if not k.endswith("original0")}
    torch.save(folded, path)
    with pytest.raises(SnacError, match="fewer numbers"): from_pretrained(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB


@pytest.mark.parametrize("state, why", [
    ([1, 2], "list where"), ({}, "is missing"), ({"encoder.block.0.bias": 3}, "no tensor"),
    ({"encoder.block.0.bias": torch.ones(4, dtype=torch.int64)}, "no tensor"),
    ({"encoder.block.0.bias": torch.ones(5)}, r"is \[5\], not \[4\]"),
    ({"encoder.block.0.bias": torch.ones(4).to_sparse()}, "refused"),
    ({"head.weight": torch.ones(4)}, "head.weight is not of"),
    ({3: torch.ones(4)}, "3 is not of"),
    ({"encoder.block.0.bias": torch.ones(4, device="meta")}, "refused|no tensor"),
])
def test_another_model(folder, tiny, state, why):
    if isinstance(state, dict) and state: state = {**tiny.state_dict(), **state}
    torch.save(state, folder/"pytorch_model.bin")
    with pytest.raises(SnacError, match=why) as error: from_pretrained(folder)
    assert str(error.value).count(";") <= 8


def test_damage_is_an_error_or_harmless(folder, tiny):
    "Cut anywhere, or with bits of its structure flipped: an error of the room, or the same shapes"
    path, rng = folder/"pytorch_model.bin", np.random.default_rng(0)
    good, shapes, refused = path.read_bytes(), shapes_of(tiny.state_dict()), 0
    marks = [m.start() for m in re.finditer(b"PK..", good, re.S)]
    for n in range(60):
        raw = bytearray(good)
        if n % 3 == 0: del raw[rng.integers(len(raw)):]
        for _ in range(3):  # near the headers and in the pickle, which is the first entry
            if not raw: continue
            near = marks[rng.integers(len(marks))] if n % 2 else 0
            at = near+rng.integers(0, 60 if n % 2 else 12_000)
            raw[min(len(raw)-1, at)] ^= 1 << rng.integers(8)
        path.write_bytes(raw)
        try: assert shapes_of(from_pretrained(folder).state_dict()) == shapes
        except SnacError: refused += 1
    assert refused > 30


@pytest.mark.slow
def test_damage_campaign(folder, tiny):
    path, rng = folder/"pytorch_model.bin", np.random.default_rng(1)
    good, shapes = path.read_bytes(), shapes_of(tiny.state_dict())
    for _ in range(2000):
        raw = bytearray(good)
        for _ in range(rng.integers(1, 6)): raw[rng.integers(len(raw))] = rng.integers(256)
        path.write_bytes(raw)
        try: assert shapes_of(from_pretrained(folder).state_dict()) == shapes
        except SnacError: pass


def test_names_that_lead_nowhere(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nothing", "./no/thing", "~/no-thing", "a/b/c", "a/b.pt", "/no/such", "a" * 5000,
                 "a//b", "../x/y", ""):
        with pytest.raises(SnacError): from_pretrained(name)
    with pytest.raises(SnacError, match="is here"): from_pretrained("codec/24khz")
    (tmp_path/"empty").mkdir()
    with pytest.raises(SnacError, match="holds no codec"): from_pretrained("empty")
    (tmp_path/"empty/pytorch_model.bin").mkdir()
    with pytest.raises(SnacError, match="holds no codec"): from_pretrained("empty")
    os.mkfifo(tmp_path/"pipe.bin")
    with pytest.raises(SnacError, match="not a regular file"): from_pretrained("pipe.bin")


def test_the_hub(folder, tiny, monkeypatch):
    "What comes from the hub, what is not there, and what can be done without a network"
    hub = pytest.importorskip("huggingface_hub", reason="optional: needs huggingface_hub")
    asked = []

    def fetch(repo, name, revision=None):
        asked.append((repo, name, revision))
        if repo == "no/network": raise hub.errors.LocalEntryNotFoundError("offline")
        if repo == "no/repo": raise ConnectionError("gone")
        if repo == "no/codec" or repo == "safe/one" and name == "pytorch_model.bin":
            raise hub.errors.EntryNotFoundError("none")
        return str(folder/name)

    monkeypatch.setattr(hub, "hf_hub_download", fetch)
    assert same(from_pretrained("some/one", revision="v1"), tiny)
    assert asked == [("some/one", "config.json", "v1"), ("some/one", "pytorch_model.bin", "v1")]
    save_pretrained(tiny, folder, safetensors=True)
    assert same(from_pretrained("safe/one"), tiny)
    problems = {"no/network": "cannot be reached", "no/repo": "no/repo on the hub",
                "no/codec": "no codec"}
    for repo, why in problems.items():
        with pytest.raises(SnacError, match=why): from_pretrained(repo)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(SnacError, match=r"audiolab\[hf\]"): from_pretrained("some/one")
