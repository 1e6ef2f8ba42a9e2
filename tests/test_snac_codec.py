"""The codec in use: exact batches, pieces and streams, the player, the commands"""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolab.audio import read_audio, write_audio
from audiolab.config import config_cli
from audiolab.snac import (
    Codec, Codes, compare_by_ear, decode_command, DecodeConfig, encode_command, EncodeConfig,
    load_codes, save_codes, save_pretrained, SNAC, SnacError, StreamDecoder,
)

SPEECH = dict(sampling_rate=24000, encoder_dim=8, encoder_rates=[2, 4, 8, 8], decoder_dim=64,
              decoder_rates=[8, 8, 4, 2], attn_window_size=None,
              codebook_size=64, codebook_dim=8, vq_strides=[4, 2, 1])
MUSIC = dict(sampling_rate=44100, encoder_dim=16, encoder_rates=[2, 3, 8, 8], decoder_dim=128,
             decoder_rates=[8, 8, 3, 2], attn_window_size=32,
             codebook_size=64, codebook_dim=8, vq_strides=[8, 4, 2, 1])
LAYOUTS = {"24 kHz": SPEECH, "44 kHz": MUSIC}


def model(config, seed=0):
    torch.manual_seed(seed)
    return SNAC(**config)


@pytest.fixture(scope="module", params=LAYOUTS)
def codec(request): return Codec(model(LAYOUTS[request.param]), piece_seconds=.6)


@pytest.fixture(scope="module")
def speech(): return Codec(model(SPEECH), piece_seconds=.6)


def sound(seconds, rate, seed=0):
    "A glide with noise, 0.3 at most"
    n, rng = int(seconds*rate), np.random.default_rng(seed)
    glide = .2*np.sin(np.cumsum(np.linspace(.02, .3, n)))
    return (glide+.03*rng.standard_normal(n)).astype(np.float32)


def some_codes(frames=16, length=None, size=4096, strides=(4, 2, 1), seed=0, **more):
    rng = np.random.default_rng(seed)
    return Codes([rng.integers(0, size, frames//s) for s in strides], length, codebook_size=size,
                 vq_strides=strides, **more)


# --- to codes

@pytest.mark.parametrize("bad, words", [(np.zeros(9, np.int16), "divide by 32768"),
                                        (np.zeros((2, 900)), "mean of the channels"),
                                        (np.zeros((2, 1, 900)), "encode_batch"), ([], "empty"),
    (np.zeros((1, 0)), "empty"), ([0., np.nan], "sample 1 is nan"),
                                        (torch.tensor([np.inf]), "sample 0 is inf"),
                                        ("sound", "samples are|no sound"), (None, "no sound"),
                                        (np.zeros(9, complex), "complex")])
def test_what_is_no_sound(speech, bad, words):
    with pytest.raises(SnacError, match=words): speech.encode(bad)


def test_rates(speech):
    with pytest.raises(SnacError, match="too short"):
        speech.encode(np.zeros(1, np.float32), 768_000)
    with pytest.raises(SnacError, match="sample rate"): speech.encode(np.zeros(100), 10)
    still = np.zeros(4410, np.float32)
    still.flags.writeable = False
    assert speech.encode(still, 44100).length == 2400
    assert speech.encode(np.float64(still)).length == 4410
    assert speech.encode(torch.zeros(1, 1, 700)).length == 700


def test_batches_are_exact(codec):
    "Each clip of a ragged batch gets the codes it has alone, and sounds as it does alone"
    pad = codec.model.pad_multiple
    clips = [sound(n/codec.sample_rate, codec.sample_rate, i)
             for i, n in enumerate([1, 2*pad, pad-1, 2*pad-1, pad+1, 700])]
    together = codec.encode_batch(clips)
    for clip, codes in zip(clips, together):
        alone = [level[0] for level in codec.model.encode(torch.as_tensor(clip)[None, None])]
        assert codes.length == len(clip) and all(map(torch.equal, codes.codes, alone))
    for codes, made in zip(together, codec.decode_batch(together, seed=3)):
        torch.testing.assert_close(made, codec.model.decode([c[None] for c in codes.codes],
                                                            codes.length, seed=3)[0, 0], atol=1e-5,
                                   rtol=0)


def test_long_sounds_are_encoded_exactly_in_bounded_pieces(codec, monkeypatch):
    x, inner, seen, latents = sound(2.4, codec.sample_rate), codec.model.encoder, [], []
    whole = [level[0] for level in codec.model.encode(torch.as_tensor(x)[None, None])]
    latent = inner(codec.model.preprocess(torch.as_tensor(x)[None, None]))
    hook = inner.register_forward_hook(lambda module, given, z: seen.append(given[0].shape[-1])
                                       or latents.append(z))
    codes = codec.encode(x)
    hook.remove()
    around = codec.model.encoder_context_frames
    assert len(seen) > 3 and max(seen) <= (codec.piece_frames+2*around)*codec.hop
    cut = torch.cat([z[..., around*(i > 0):][..., :codec.piece_frames]
                     for i, z in enumerate(latents)], -1)
    torch.testing.assert_close(cut, latent, atol=1e-5, rtol=0)
    assert [len(c) for c in codes.codes] == [len(c) for c in whole]
    assert torch.cat([a == b for a, b in zip(codes.codes, whole)]).float().mean() > .999


# --- back to sound

def test_decode(codec):
    codes = codec.encode(sound(.7, codec.sample_rate)[:30000])
    made = codec.decode(codes, seed=5)
    assert made.shape == (codes.length,) and made.dtype == torch.float32
    assert .01 < made.abs().max() <= 1
    assert torch.equal(made, codec.decode(codes, seed=5))
    assert not torch.equal(made, codec.decode(codes, seed=6))
    assert not torch.equal(codec.decode(codes), codec.decode(codes))
    torch.testing.assert_close(made, codec.model.decode([c[None] for c in codes.codes],
                                                        codes.length, seed=5)[0, 0], atol=1e-5,
                               rtol=0)
    levels = [c[None].numpy() for c in codes.codes]
    torch.testing.assert_close(codec.decode(levels, length=999, seed=5), made[:999], atol=1e-5,
                               rtol=0)
    assert codec.decode(levels, seed=5).shape == (codes.frames*codec.hop,)


@pytest.mark.parametrize("push", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_streams_are_exact(codec, push):
    "Pushed in any portions, the joined sound is that of the whole, none later than promised"
    x = sound(2., codec.sample_rate)
    codes = codec.encode(x)
    whole = codec.model.decode([c[None] for c in codes.codes], codes.length, seed=7)[0, 0]
    stream, parts, coarse = StreamDecoder(codec, chunk_seconds=.2*(push == 3),
                                          seed=7), [], codec.model.vq_strides[0]*codec.hop
    for i in range(0, len(codes), push):
        parts.append(stream.push(codes.cut(i, i+push)))
        out, pushed = sum(map(len, parts)), min((i+push)*coarse, codes.frames*codec.hop)
        assert out >= min(codes.length, pushed-stream.latency*codec.sample_rate) and out <= pushed
    # what is done is forgotten
    kept, given = sum(map(len, stream.waiting.levels)), sum(map(len, codes.codes))
    assert kept < 3*given/4 or codec.model.attn_window_size
    parts.append(stream.finish())
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)
    with pytest.raises(SnacError, match="after the end"): stream.push(codes.cut(0, 1))


def test_decode_stream(codec):
    codes = codec.encode(sound(2., codec.sample_rate)[:-1000])
    whole = codec.model.decode([c[None] for c in codes.codes], codes.length, seed=0)[0, 0]
    for source in (codes, (codes.cut(i, i+1) for i in range(len(codes)))):
        pieces = list(codec.decode_stream(source, chunk_seconds=.4))
        torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-5, rtol=0)
        assert len(pieces) > 2 and all(map(len, pieces))
    # the end of the sound hears the codes of its padding
    short = Codes(codes.codes, 5000, **codes.layout)
    torch.testing.assert_close(torch.cat([*codec.decode_stream(short, .1)]), whole[:5000],
                               atol=1e-5, rtol=0)
    assert list(codec.decode_stream([])) == []


def test_codes_of_a_language_model_need_not_fill_a_window():
    "A number of coarse codes that the encoder would never make"
    codec = Codec(model(MUSIC))
    for n in (1, 5, 13):
        codes = some_codes(8*n, size=64, strides=(8, 4, 2, 1), sample_rate=44100, hop=384)
        made = codec.decode(codec.unflatten(codes.flatten()), seed=1)
        assert made.shape == (codes.frames*384,) and torch.isfinite(made).all()
        stream = StreamDecoder(codec, seed=1)
        torch.testing.assert_close(torch.cat([*(stream.push(codes.cut(i, i+1)) for i in range(n)),
                                              stream.finish()]), made, atol=1e-5, rtol=0)
        torch.testing.assert_close(codec.decode_batch([codes,
                                                       some_codes(64, size=64, strides=(8, 4, 2, 1),
            sample_rate=44100, hop=384)], seed=1)[0], made, atol=1e-5, rtol=0)


def test_reconstruct_keeps_rate_and_length(speech):
    for n, rate in [(20001, 16000), (777, 24000), (44100, 44100), (1, 8000)]:
        x = sound(n/rate+1e-9, rate)[:n]
        made = speech.reconstruct(x[None], rate)
        assert made.shape == (n,) and torch.equal(made, speech.reconstruct(x, rate))


def test_codes_of_another_model_are_refused(speech):
    codes = speech.encode(sound(.2, 24000))
    assert Codec(model(SPEECH)).fingerprint == speech.fingerprint == codes.fingerprint
    tuned = model(SPEECH)
    with torch.no_grad(): next(tuned.decoder.parameters()).mul_(1.1)
    assert Codec(tuned).decode(codes).shape == (codes.length,)  # a decoder tuned for the same codes
    with pytest.raises(SnacError, match="another model"): Codec(model(SPEECH, 1)).decode(codes)
    with pytest.raises(SnacError, match="layout"): Codec(model(MUSIC)).decode(codes)
    # bare numbers are taken as they are
    assert Codec(model(SPEECH, 1)).decode(codes.codes).shape == (codes.frames*512,)


def test_the_model_is_not_changed():
    mine = model(SPEECH)
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    mine.train()
    Codec(mine).reconstruct(sound(.1, 24000))
    assert mine.training and all(torch.equal(v, before[k]) for k, v in mine.state_dict().items())
    assert all(p.requires_grad for p in mine.parameters())


# --- the player

def test_player_is_safe_and_small(speech):
    html = compare_by_ear(sound(.5, 24000), torch.zeros(1, 24000), 24000,
                          ('<img onerror="x">', "$a & b$")).data
    assert "<img onerror" not in html and "&lt;img onerror=&quot;x&quot;&gt;" in html
    assert "http" not in html
    x = sound(3., 16000)
    short, long = speech.compare(x, 16000, seconds=.5).data, speech.compare(x, 16000).data
    assert len(short) < 120_000 < len(long)


def test_player_in_a_browser(tmp_path, browser_path):
    sync = pytest.importorskip("playwright.sync_api").sync_playwright
    (tmp_path/"page.html").write_text("<!doctype html>"+compare_by_ear(sound(4, 8000),
        sound(4, 8000, 1), 8000).data, encoding="utf-8")
    with sync() as p:
        browser = p.chromium.launch(executable_path=browser_path,
                                    args=["--no-sandbox",
                                          "--autoplay-policy=no-user-gesture-required"])
        page, wrong = browser.new_page(), []
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.goto((tmp_path/"page.html").as_uri())
        def place(): return float(page.locator("output").inner_text().split()[0])
        assert not page.locator("audio").first.is_visible()
        page.get_by_role("button", name="Play").click()
        page.wait_for_function("document.querySelector('output').value.startsWith('0.3')")
        page.get_by_role("button", name="B: decoded").click()
        # it goes on
        assert page.get_by_role("button", name="B: decoded").get_attribute("aria-pressed") == "true"
        assert place() >= .3
        page.get_by_role("slider", name="Position in seconds").fill("3")
        page.wait_for_function("document.querySelector('output').value.startsWith('3.2')")
        page.get_by_role("button", name="Pause").click()
        here = place()
        page.wait_for_timeout(200)
        assert 3.2 <= here == place() and not wrong
        browser.close()


# --- the commands

@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return str(save_pretrained(model(SPEECH), tmp_path_factory.mktemp("model")/"small"))


def test_encode_and_decode_commands(tmp_path, saved, caplog):
    (tmp_path/"in/deep").mkdir(parents=True)
    stereo = np.stack([sound(.4, 22050), sound(.4, 22050, 1)])
    write_audio(tmp_path/"in/a.flac", sound(.3, 24000), 24000)
    write_audio(tmp_path/"in/deep/b.wav", stereo, 22050)
    (tmp_path/"in/bad.wav").write_bytes(b"RIFF")
    assert encode_command(EncodeConfig(str(tmp_path/"in"), str(tmp_path/"codes"), saved)) == 2
    assert "bad.wav" in caplog.text
    codes = load_codes(tmp_path/"codes/deep/b.snac")
    assert codes == Codec.load(saved).encode(read_audio(tmp_path/"in/deep/b.wav", sample_rate=24000,
                                                        mono=True)[0])
    assert not (tmp_path/"codes/bad.snac").exists()
    (tmp_path/"codes/worse.snac").write_bytes(b"")
    assert decode_command(DecodeConfig(str(tmp_path/"codes"), str(tmp_path/"out"), saved,
                                       seed=2)) == 2
    made, rate = read_audio(tmp_path/"out/deep/b.wav", mono=True)
    np.testing.assert_allclose(made, Codec.load(saved).decode(codes, seed=2).numpy(), atol=1e-4)
    assert rate == 24000 and len(made) == codes.length
    stamp = (tmp_path/"out/a.wav").stat().st_mtime_ns
    (tmp_path/"out/deep/b.wav").unlink()
    assert decode_command(DecodeConfig(str(tmp_path/"codes"), str(tmp_path/"out"), saved,
                                       skip_existing=True)) == 2
    assert (tmp_path/"out/a.wav").stat().st_mtime_ns == stamp
    assert (tmp_path/"out/deep/b.wav").exists()
    assert encode_command(EncodeConfig(str(tmp_path/"in/a.flac"), str(tmp_path/"one.snac"),
                                       saved)) == 0
    assert load_codes(tmp_path/"one.snac") == load_codes(tmp_path/"codes/a.snac")


def test_commands_refuse_to_harm(tmp_path, saved):
    write_audio(tmp_path/"a.wav", sound(.1, 24000), 24000)
    write_audio(tmp_path/"a.flac", sound(.1, 24000), 24000)
    (tmp_path/"none").mkdir()
    for config, words in [(EncodeConfig(str(tmp_path), str(tmp_path/"out")), "two files"),
                          (EncodeConfig(str(tmp_path/"a.wav"), str(tmp_path/"a.wav")),
                           "overwritten"),
                          (EncodeConfig(str(tmp_path/"none"), "x"), "no audio"),
                          (DecodeConfig(str(tmp_path/"none"), "x"), "no .snac"),
                          (EncodeConfig(str(tmp_path/"a.wav"), "x.bin"), "end in .snac")]:
        with pytest.raises(SnacError, match=words):
            (encode_command if isinstance(config, EncodeConfig) else decode_command)(config)
        assert words in config.plan()
    with pytest.raises(ValueError, match="nothing.wav"):
        encode_command(EncodeConfig(str(tmp_path/"nothing.wav"), str(tmp_path/"x.snac"), saved))
    with pytest.raises(SnacError):
        encode_command(EncodeConfig(str(tmp_path/"a.wav"), str(tmp_path/"x.snac"),
                                    str(tmp_path/"no/model")))
    save_codes(tmp_path/"b.snac", some_codes())
    with pytest.raises(SnacError, match="layout"):
        decode_command(DecodeConfig(str(tmp_path/"b.snac"), str(tmp_path/"b.wav"), saved))


def test_command_line():
    found = config_cli(DecodeConfig, ["in", "out", "--model", "m", "--noise", "0",
                                      "--skip_existing"], prog="audiolab snac decode",
                       positional=True).config
    assert found == DecodeConfig("in", "out", "m", noise=0., skip_existing=True)


HOUR = """import sys; sys.path.insert(0, sys.argv[1])
from test_snac_codec import *
torch.set_num_threads(1)
codec, x = Codec(model(SPEECH)), np.tile(sound(60, 24000), 60)
def peak():  # that of this process alone
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])*1024
before = peak()
made = codec.decode(codec.encode(x), seed=0)
assert made.shape == (len(x),)
print((peak()-before)/x.nbytes)"""


@pytest.mark.slow
def test_an_hour():
    "In pieces, in a process whose memory nobody has used: it grows by little more than the sound"
    done = subprocess.run([sys.executable, "-c", HOUR, str(Path(__file__).parent)],
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and float(done.stdout) < 5, done.stdout+done.stderr
