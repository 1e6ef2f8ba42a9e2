"Measuring codecs: arithmetic of bits, a perfect codec, recordings in pieces, page and command"
import json
import logging
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from torch import nn

from audiolab.audio import AudioError, read_audio, write_audio
from audiolab.config import config_cli
from audiolab.files import CheckpointError, write_checkpoint
from audiolab.measure import listeners
from audiolab.snac import (
    MEASURES, SNAC, EvalConfig, SnacError, code_recording, code_statistics, eval_command,
    evaluate_codec, evaluation_table, mean_interval, measure_recording, paired_differences,
    plot_spectrograms, save_pretrained, write_evaluation,
)
from audiolab.watch import Page

QUICK = ["mel distance", "SI-SDR (dB)"]


class Perfect(nn.Module):
    "A codec that keeps the sound behind its back; its codes are as given"
    sampling_rate, hop_length, pad_multiple = 24000, 512, 2048
    vq_strides, codebook_size = [4, 2, 1], 8
    context_frames = encoder_context_frames = 12
    bit_rate = 24000/512*(1/4+1/2+1)*3

    def __init__(self, change=lambda x: x):
        super().__init__()
        self.change = change
    def encode(self, audio):
        self.kept = nn.functional.pad(audio, (0, -audio.shape[-1] % 2048))
        frames = self.kept.shape[-1]//512
        return [torch.arange(frames//s)[None] % n for s, n in zip(self.vq_strides, (1, 2, 8))]
    def decode(self, codes, seed=None, noise=1., first_frame=0): return self.change(self.kept)


def tiny(**changes):
    torch.manual_seed(0)
    layout = dict(sampling_rate=24000, encoder_dim=8, encoder_rates=[2, 4, 8, 8], decoder_dim=64,
                  decoder_rates=[8, 8, 4, 2], attn_window_size=None, codebook_size=64,
                  vq_strides=[4, 2, 1])
    return SNAC(**layout | changes).eval()


def vowel(seconds=1., rate=24000, pitch=120., seed=0):
    "Pulses through two resonances, in syllables"
    n, rng = int(seconds*rate), np.random.default_rng(seed)
    t = np.arange(n)/rate
    phase = np.cumsum(pitch*(1+.2*np.sin(2*np.pi*1.5*t)))/rate
    x = sum(np.cos(2*np.pi*k*phase)/(1+abs(k*pitch-700)/300) for k in range(1, 30))
    syllables = np.clip(1.5*np.sin(2*np.pi*2*t), 0, 1)
    return (.08*x*syllables+.003*rng.standard_normal(n)).astype(np.float32)


def hiss(like): return torch.randn(like.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def codec(): return tiny()


# --- bits

MUSIC = 384, (8, 4, 2, 1)


@pytest.mark.parametrize("rate, hop, strides, bits", [
    (24000, 512, (4, 2, 1), 984), (32000, *MUSIC, 1875), (44100, *MUSIC, 2584)])
def test_bit_rates_of_the_published_layouts(rate, hop, strides, bits):
    rates = {512: [2, 4, 8, 8], 384: [2, 3, 8, 8]}[hop]
    sizes = 8, rates, None, 64, rates[::-1], None, 4096, 8, list(strides)
    with torch.device("meta"): model = SNAC(rate, *sizes)
    assert model.hop_length == hop and round(model.bit_rate) == bits
    assert model.token_rates == [rate/hop/stride for stride in strides]


def test_code_statistics_by_hand():
    o = code_statistics([8, 4, 2, 1, 1, 0, 0, 0])
    assert (o["codes"], o["used"], o["usage"], o["most (bits)"]) == (16, 5, 5/8, 3)
    assert o["entropy (bits)"] == pytest.approx(1.875)
    assert o["perplexity"] == pytest.approx(2**1.875)
    assert code_statistics(np.full(4096, 3))["entropy (bits)"] == pytest.approx(12)
    one, none = code_statistics([5, 0]), code_statistics([0, 0, 0])
    assert (one["entropy (bits)"], one["perplexity"]) == (0, 1)
    assert [none[name] for name in ("codes", "used", "perplexity", "most (bits)")] == [0, 0, 1, 0]


@pytest.mark.parametrize("counts", [[], [-1, 2], [[1, 2]], [.5, .5]])
def test_counts_that_are_none(counts):
    with pytest.raises(SnacError, match="counts"): code_statistics(counts)


def test_bit_rate_and_levels_of_known_codes():
    o = evaluate_codec(Perfect(), {"a": vowel(2048*8/24000)}, measures=QUICK)
    assert [level["codes"] for level in o.levels] == [8, 16, 32]
    # one code, two in turn, eight in turn
    assert [level["entropy (bits)"] for level in o.levels] == [0, 1, 3]
    seconds = 2048*8/24000
    nominal = pytest.approx(o.bit_rate["nominal"])  # a recording without padding
    assert o.bit_rate["measured"] == pytest.approx(56*3/seconds) == nominal
    assert o.bit_rate["entropy-coded"] == pytest.approx((16*1+32*3)/seconds)


# --- measures

def test_a_perfect_codec_has_perfect_scores():
    names = [name for name in MEASURES if name.split()[0] not in ("PESQ", "ViSQOL")]
    sounds = {str(i): vowel(1.1, seed=i) for i in range(3)}
    o = evaluate_codec(Perfect(), sounds, measures=names)
    mean = {name: found["mean"] for name, found in o.summary.items()}
    assert mean["mel distance"] == mean["STFT distance"] == mean["log-spectral distance (dB)"] == 0
    assert mean["SI-SDR (dB)"] > 90 and not o.left_out
    assert mean["STOI"] == pytest.approx(1, abs=1e-6)
    assert o.summary["STOI"]["low"] == pytest.approx(1, abs=1e-6)
    assert all(row["problems"] == {} for row in o.rows)


def test_measures_know_better_from_worse_and_name_the_ends():
    class Hiss(Perfect):  # louder hiss for lower files
        def decode(self, codes, **kw):
            return self.kept+.2*(1-self.kept.abs().max())*hiss(self.kept)
    sounds = {"soft": .2*vowel(1.), "mid": .8*vowel(1.), "loud": 1.6*vowel(1.)}
    measures = [*QUICK, "STFT distance", "log-spectral distance (dB)"]
    o = evaluate_codec(Hiss(), sounds, measures=measures)
    for name, found in o.summary.items():
        assert (found["best"], found["worst"]) == ("loud", "soft"), name
    assert [o.rows[i]["name"] for i in o.ranking] == ["loud", "mid", "soft"]


def test_silence_and_short_sounds_are_named_not_counted():
    sounds = {"voice": vowel(1.), "silence": np.zeros(24000, np.float32), "click": vowel(.1)}
    o = evaluate_codec(Perfect(), sounds, measures=[*QUICK, "STOI"])
    silence, click = o.rows[1], o.rows[2]
    values = silence["values"]
    assert values["SI-SDR (dB)"] is values["STOI"] is click["values"]["STOI"] is None
    assert "silent" in silence["problems"]["STOI"] and "0.4 s" in click["problems"]["STOI"]
    assert o.summary["STOI"]["files"] == 1 and o.summary["STOI"]["low"] is None
    assert o.summary["mel distance"]["files"] == 3
    assert len(o.ranking) == 3


def test_a_package_that_is_missing_leaves_its_measure_out(monkeypatch, tmp_path):
    real = listeners.import_package
    def package(name, extra):
        if name != "pesq": return real(name, extra)
        raise ImportError(f"this measure needs the package {name}: pip install 'audiolab[{extra}]'")
    monkeypatch.setattr(listeners, "import_package", package)
    o = evaluate_codec(Perfect(), {"a": vowel(1.), "b": vowel(.5)}, measures=["PESQ", *QUICK])
    assert list(o.left_out) == ["PESQ"] and o.measures == QUICK
    page = write_evaluation(tmp_path, o)
    for file in (page, page.with_suffix(".md")):
        assert "audiolab[metrics]" in file.read_text().replace("&#x27;", "'")
    x = vowel(1.)
    with pytest.raises(ImportError, match="metrics"): measure_recording(x, x, 24000, ["PESQ"])


def test_pesq_of_a_long_recording_is_that_of_its_pieces(monkeypatch):
    lengths = []
    class Package:
        NoUtterancesError = BufferTooShortError = type("E", (Exception,), {})
        def pesq(self, rate, x, y, band):
            lengths.append(len(x)/rate)
            return 1.+len(lengths)
    monkeypatch.setattr(listeners, "import_package", lambda name, extra: Package())
    x = np.random.default_rng(0).standard_normal(24000*45)*.1
    values, problems = measure_recording(x, x, 24000, ["PESQ"])
    assert lengths == [15, 15, 15] and values == {"PESQ": 3.} and not problems
    x[:24000*15] = 0  # a silent piece is left out
    assert measure_recording(x, x, 24000, ["PESQ"])[0] == {"PESQ": 5.5}
    assert "silent" in measure_recording(0*x, x, 24000, ["PESQ"])[1]["PESQ"]
    assert "16000 Hz" in measure_recording(x, x, 8000, ["PESQ"])[1]["PESQ"]


def test_unknown_measures_and_no_sounds(codec):
    with pytest.raises(SnacError, match="loudness.*mel distance"):
        evaluate_codec(codec, {"a": vowel()}, measures=["loudness"])
    with pytest.raises(SnacError, match="no sound"): evaluate_codec(codec, [])
    for bad in (np.zeros((2, 100)), np.zeros(0), np.full(100, np.nan)):
        with pytest.raises(SnacError, match="finite samples"): evaluate_codec(codec, {"a": bad})
    damaged = Perfect(lambda x: x*math.nan)
    with pytest.raises(SnacError, match="damaged"): evaluate_codec(damaged, {"a": vowel()})


# --- in pieces

ATTENTIVE = dict(sampling_rate=44100, encoder_dim=16, encoder_rates=[2, 3, 8, 8], decoder_dim=128,
                 decoder_rates=[8, 8, 3, 2], attn_window_size=32, vq_strides=[8, 4, 2, 1])


@pytest.mark.parametrize("changes", [{}, ATTENTIVE], ids=["24 kHz", "with attention"])
def test_pieces_are_exact(changes):
    model = tiny(**changes)
    x = vowel(model.pad_multiple*6.3/24000)
    lengths = 100, model.pad_multiple*2/model.sampling_rate  # s
    whole, pieces = (code_recording(model, x, seed=3, piece_seconds=s) for s in lengths)
    assert all(map(torch.equal, whole.codes, pieces.codes)) and len(whole.audio) == len(x)
    assert np.abs(whole.audio-pieces.audio).max() < 1e-5


def test_noise_and_seed_decide_and_are_told(codec):
    x = vowel(.5)
    ways = dict(seed=1), dict(seed=1), dict(seed=2), dict(seed=1, noise=0.)
    a, b, c, off = (code_recording(codec, x, **way).audio for way in ways)
    assert np.array_equal(a, b) and not np.array_equal(a, c) and not np.array_equal(a, off)
    o = evaluate_codec(codec, {"a": x}, noise=.5, seed=7, measures=QUICK, name="m")
    assert (o.settings["noise"], o.settings["seed"], o.settings["sample_rate"]) == (.5, 7, 24000)
    head, _, row = evaluation_table([o]).splitlines()
    assert "| 24000 | 0.5 | 1 |" in row and "mel distance ↓" in head and "SI-SDR (dB) ↑" in head
    parts = [evaluation_table([o], only).splitlines()[0] for only in ("qualities", "costs")]
    assert ["bit/s" in part for part in parts] == ["SI-SDR" not in part for part in parts] == [
        False, True]  # a page shows them below each other
    assert all(v > 0 for k, v in o.speed.items() if k != "on") and "torch" in o.speed["on"]


# --- intervals

def test_intervals_are_seeded_and_hold_the_mean():
    values = list(np.random.default_rng(0).gamma(2, size=25))+[None]
    o = mean_interval(values, 4)
    assert o == mean_interval(values, 4) and o["low"] < o["mean"] < o["high"] and o["files"] == 25
    width = 2*1.96*np.std(values[:-1])/5  # the normal approximation
    assert .75*width < o["high"]-o["low"] < 1.25*width
    assert mean_interval([None]) == {"mean": None, "low": None, "high": None, "files": 0}


def test_pairs_tell_more_than_two_means():
    sounds = {str(i): .2*(i+1)*vowel(.4, seed=i) for i in range(5)}
    codecs = [Perfect(lambda x, g=g: x+g*hiss(x)) for g in (.01, .012)]
    first, other = (evaluate_codec(model, sounds, measures=QUICK) for model in codecs)
    found = paired_differences(first, other)["SI-SDR (dB)"]
    assert found["mean"] == pytest.approx(-20*math.log10(1.2), abs=.1)
    assert found["high"] < -1  # the intervals of the two means overlap
    assert other.summary["SI-SDR (dB)"]["high"] > first.summary["SI-SDR (dB)"]["low"]
    other.settings["sample_rate"] = 44100
    assert paired_differences(first, other) == {}


# --- pages

class Tags(HTMLParser):
    "Open tags must be closed, and nothing may be loaded from elsewhere"
    def __init__(self, text):
        super().__init__()
        self.stack, self.links, self.bare = [], [], 0
        self.feed(text)
    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [v for k, v in attributes.items() if k in ("src", "href")]
        self.bare += tag == "img" and not attributes.get("alt")
        self.bare += tag == "audio" and not attributes.get("aria-label")
        assert tag not in ("script", "link", "iframe", "b>")
        if tag not in ("meta", "img", "br"): self.stack.append(tag)
    def handle_endtag(self, tag): assert self.stack.pop() == tag


def checked(page):
    "The page's links, all of them to files beside it"
    tags = Tags(page.read_text(encoding="utf-8"))
    assert not tags.stack and not tags.bare
    for link in tags.links:
        assert not link.startswith(("/", "http", "file", ".."))
        assert (page.parent/unquote(link)).is_file()
    return tags.links


def test_page(tmp_path):
    tone = .5*np.sin(np.arange(800))
    page = Page(tmp_path/"é"/"x", "<i>&", name="p")
    page.heading("<h>").text("a<b").note('"').facts({"<f>": 1.5})
    page.definitions({"t>": "<m"}).code(["a && b"])
    page.table({"<script>": {"<x>": 1, "y|z": None}})
    page.sounds({"<a>": tone, "b": 3*torch.tensor(tone)}, 8000, "s")
    page.figure(plot_spectrograms({"$x": tone}, 8000), "<c>", "f")
    path = page.write()
    assert checked(path) == ["p_files/s_0.wav", "p_files/s_1.wav", "p_files/f.png"]
    text = path.read_text()
    assert "turned down by" in text and "prefers-color-scheme: dark" in text
    assert not re.search("<(h|f|m|x|c|a|script)>", text)
    a, b = (read_audio(path.parent/o)[0] for o in checked(path)[:2])
    assert np.abs(b).max()/np.abs(a).max() == pytest.approx(3, rel=.01) and np.abs(b).max() <= 1
    for add in (
        lambda: page.sounds({"a": tone}, 8000, "s"), lambda: page.figure(None, "", "f"),
        lambda: page.sounds({"a": tone}, 8000, "../s"), lambda: Page(".", "", name=""),
        lambda: page.sounds({"a": tone*math.nan}, 8000, "t"),
    ):
        with pytest.raises(ValueError): add()


def test_nothing_is_written_before_the_end(tmp_path):
    page = Page(tmp_path/"new", "x").sounds({"a": np.zeros(10)}, 8000)
    assert not (tmp_path/"new").exists()
    page.write()
    names = sorted(o.name for o in (tmp_path/"new").rglob("*"))
    assert names == ["page.html", "page_files", "sound_0.wav"]


def test_report_of_strange_names_and_two_codecs(codec, tmp_path):
    folder = tmp_path/"in"
    folder.mkdir()
    names = ["<b>$1&'.wav", "ü|ß.wav", "c.wav"]
    for i, name in enumerate(names): write_audio(folder/name, vowel(.3+.05*i, seed=i), 24000)
    both = [evaluate_codec(model, sorted(folder.iterdir()), measures=QUICK, name=name)
            for model, name in [(codec, "<one>"), (Perfect(), "_two$")]]
    page = write_evaluation(tmp_path/"out", both, title="<t>")
    links, text = checked(page), page.read_text(encoding="utf-8")
    assert len(links) == 3*3+3*2+1  # best, median, worst; codebooks
    assert "&lt;one&gt;" in text and "<one>" not in text and str(tmp_path) not in text
    assert all(f"{which}: " in text for which in ("best", "median", "worst"))
    assert "&lt;b&gt;$1&amp;&#x27;.wav" in text
    found = json.loads((page.with_suffix(".json")).read_text(), parse_constant=pytest.fail)
    first, other = found["models"]
    assert [first["model"], other["model"]] == ["<one>", "_two$"]
    assert [row["name"] for row in first["files"]] == sorted(names)
    assert set(found["differences"]["_two$"]) == set(QUICK) and found["versions"]["torch"]
    assert sum(first["counts"][2]) == first["levels"][2]["codes"]
    assert "_two$ − <one>" in page.with_suffix(".md").read_text(encoding="utf-8")
    twice = [both[0], both[0]]
    with pytest.raises(SnacError, match="one name"): write_evaluation(tmp_path/"out", twice)


def test_an_excerpt_is_what_was_measured(codec, tmp_path):
    x = vowel(2.)
    found = evaluate_codec(codec, {"a": x}, measures=QUICK, seed=5)
    page = write_evaluation(tmp_path, found, excerpt_seconds=.5)
    played, rate = read_audio(page.parent/"evaluation_files/example_best_1.wav", mono=True)
    whole = code_recording(codec, x, seed=5).audio[:12000]
    gain = played@whole/(whole@whole)  # one for all sounds of the page
    assert rate == 24000 and len(played) == 12000
    assert np.abs(played-gain*whole).max() < 1e-3*np.abs(whole).max()+2e-4


def test_codecs_of_two_rates_stand_on_one_page(codec, tmp_path):
    write_audio(tmp_path/"a.wav", vowel(.5, 44100), 44100)
    write_audio(tmp_path/"b.wav", np.stack([vowel(.5, 16000)]*2), 16000)  # stereo: its mean
    wide = tiny(sampling_rate=44100)
    files = [tmp_path/"a.wav", tmp_path/"b.wav"]
    codecs = {"24": codec, "44": wide}
    both = [evaluate_codec(o, files, measures=QUICK, name=name) for name, o in codecs.items()]
    page = write_evaluation(tmp_path/"out", both)
    assert {read_audio(page.parent/o)[1] for o in checked(page) if o.endswith("wav")} == {44100}
    assert "What changed" not in page.read_text() and "do not compare" in page.read_text()


# --- the command

def test_eval_command(codec, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    save_pretrained(codec, "base")
    save_pretrained(tiny(decoder_dim=32), "tuned")
    Path("in/deep").mkdir(parents=True)
    write_audio("in/a.wav", vowel(.4), 24000)
    write_audio("in/deep/a.flac", vowel(.4, 16000), 16000)
    words = ["base", "in", "--compare", "tuned", "--output", "out", "--noise", "0"]
    config = config_cli(EvalConfig, words, positional=True).config
    assert (config.model, config.sounds, config.compare) == ("base", ("in",), ("tuned",))
    plan = "measure base, tuned on 2 recordings, decoder noise 0, into out"
    assert config.plan() == plan
    with caplog.at_level(logging.INFO, "audiolab"): assert eval_command(config) == 0
    found = json.loads(Path("out/evaluation.json").read_text())
    assert [m["model"] for m in found["models"]] == ["base", "tuned"]
    assert [r["name"] for r in found["models"][1]["files"]] == ["a.wav", "deep/a.flac"]
    assert "open out/evaluation.html" in caplog.text and "mel distance" in caplog.text
    checked(Path("out/evaluation.html"))
    Path("in/broken.wav").write_bytes(b"RIFF and no more")
    with caplog.at_level(logging.INFO, "audiolab"):
        assert eval_command(EvalConfig("base", ("in",), "again")) == 2
    assert "not read: broken.wav" in caplog.text
    assert "broken.wav" in Path("again/evaluation.md").read_text()


def test_eval_command_refuses(codec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pretrained(codec, "base")
    Path("empty").mkdir()
    Path("bad.wav").write_bytes(b"no sound")
    write_audio("a.wav", vowel(.2), 24000)
    with pytest.raises(SnacError, match="no sound in empty"):
        eval_command(EvalConfig("base", ("empty",)))
    assert EvalConfig("base", ("empty",)).plan().startswith("cannot run: no sound")
    with pytest.raises(AudioError, match="nowhere"): eval_command(EvalConfig("base", ("nowhere",)))
    with pytest.raises(SnacError, match="device 'abacus'"):
        eval_command(EvalConfig("base", ("a.wav",), device="abacus"))
    with pytest.raises(SnacError, match="bad.wav"): eval_command(EvalConfig("base", ("bad.wav",)))
    write_checkpoint("other.safetensors", {"state_means": np.zeros(3, np.float32)}, {})
    with pytest.raises((SnacError, CheckpointError), match="other.safetensors"):
        eval_command(EvalConfig("other.safetensors", ("a.wav",)))
    assert not Path("eval").exists()
