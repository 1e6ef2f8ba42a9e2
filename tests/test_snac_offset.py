"A constant offset: heard by the losses of every preset, by validation and by eval; and silence"
import json
import logging
import sys
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from snac_runs import fit, in_one_thread, make_corpus, RATE, settings

from audiolab.audio import speech_corpus
from audiolab.measure import level_difference, offset_difference
from audiolab.snac import (
    as_config, codec_loss, Comparison, create_training_config, evaluate_codec, HeldOutMeasures,
    hears_offset, LossConfig, make_codebooks, make_generator, make_optimizer, MODELS, offset_loss,
    plot_waveforms, setup_dataset, SnacError, write_evaluation,
)

one_thread = pytest.fixture(autouse=True)(in_one_thread)


def sound(samples=16000, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, .05, samples)).float()[None, None]


# ---- what hears it

@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("shift", [.05, .3, .6])
def test_the_losses_of_every_preset_hear_an_offset_at_every_size(model, shift):
    "The gradient of all of them, without critics, leads back, and as strongly where it is large"
    losses, real = as_config(create_training_config("x", model=model)).losses, sound()
    judged = Comparison(nn.ModuleDict(), losses, RATE)
    list(judged.compare(real, real + shift, critics=False))
    assert hears_offset(losses) and float(judged.gradient.sum()) > 40


def test_without_both_of_them_a_large_offset_is_hardly_heard():
    deaf, real = Comparison(nn.ModuleDict(), LossConfig(stft=0., offset=0.), RATE), sound()
    list(deaf.compare(real, real + .6, critics=False))
    assert not hears_offset(deaf.losses) and float(deaf.gradient.sum()) < 15


def test_with_a_balance_an_offset_is_heard_beside_the_shares():
    balanced, real = Comparison(nn.ModuleDict(), LossConfig(balance=True), RATE), sound()
    for shift in (.3, -.3):
        list(balanced.compare(real, real + shift, critics=False))
        assert float(balanced.gradient.sum())*np.sign(shift) > 40
    assert "offset" not in balanced.balancer.weights and "offset_loss" in balanced.values
    alone = Comparison(nn.ModuleDict(), LossConfig(balance=True, mel=0., stft=0.), RATE)
    list(alone.compare(real, real + .3, critics=False))
    assert float(alone.gradient.sum()) == pytest.approx(50, rel=1e-3)


def test_the_offset_loss_by_hand():
    real = sound(4000)
    assert float(offset_loss(real, real)) == 0
    for shift, loss in ((.3, .295), (-.3, .295), (.005, .00125)):
        assert float(offset_loss(real, real + shift, RATE)) == pytest.approx(loss, abs=1e-6)
    sides = torch.sign(torch.arange(3200) - 1599.5)[None]  # no mean in the whole
    assert float(offset_loss(0*sides, .3*sides, RATE)) == pytest.approx(.295, abs=1e-6)
    with pytest.raises(SnacError, match="one shape"): offset_loss(real, real[..., 1:])


def test_level_and_offset_by_hand():
    x = sound()[0, 0].numpy().astype(np.float64)
    assert level_difference(x, 2*x) == pytest.approx(20*np.log10(2))
    assert level_difference(x, 0*x) == -100 and level_difference(x, 1e9*x) == 100
    assert offset_difference(x, x - .3, RATE) == pytest.approx(.3)
    tone = np.sin(2*np.pi*40*np.arange(16000)/RATE)  # deep, and turned: no offset
    assert offset_difference(tone, -tone, RATE) < .01
    with pytest.raises(ValueError, match="silent"): level_difference(0*x, x)
    pair, lengths = (np.stack([x, x]), np.stack([x + .3, 2*x])), [16000, 8000]
    assert offset_difference(*pair, RATE, lengths)[0] == pytest.approx(.3)
    assert level_difference(*pair, lengths)[1] == pytest.approx(20*np.log10(2))
    with pytest.raises(ValueError, match="sample_rate"): offset_difference(x, x, 0)


def test_validation_says_level_and_offset():
    measures, x = HeldOutMeasures(RATE, levels=1, codebook_size=2), sound()[0, 0]
    codes = [torch.zeros(1, 4, dtype=torch.int64)]
    measures.add(x, x + .3, codes)
    measures.add(0*x, 0*x, codes)  # silence has no level, but an offset
    values = measures.values()
    assert values["offset"] == pytest.approx(.15) and values["level"] > 10


class Shifts(nn.Module):
    "A codec that gives back what it took, with an offset"
    sampling_rate, hop_length, pad_multiple = RATE, 320, 1280
    vq_strides, codebook_size, bit_rate = [4, 2, 1], 8, 875
    context_frames = encoder_context_frames = 12

    def __init__(self, shift):
        super().__init__()
        self.shift = shift
    def encode(self, audio):
        self.kept = nn.functional.pad(audio, (0, -audio.shape[-1] % 1280))
        frames = self.kept.shape[-1]//320
        return [torch.zeros(1, frames//s, dtype=torch.int64) for s in self.vq_strides]
    def decode(self, codes, seed=None, noise=1., first_frame=0): return self.kept + self.shift


def test_eval_and_its_page_say_level_and_offset(tmp_path):
    sounds = {name: sound(16000, seed)[0, 0] for seed, name in enumerate("a")}
    names = ["mel distance", "SI-SDR (dB)", "level (dB)", "offset"]
    found = evaluate_codec(Shifts(.3), sounds, measures=names)
    assert found.summary["offset"]["mean"] == pytest.approx(.3, abs=1e-4)
    assert found.summary["level (dB)"]["mean"] == pytest.approx(15.7, abs=.2)
    assert found.summary["SI-SDR (dB)"]["mean"] > 60  # which does not hear it
    page = write_evaluation(tmp_path, found, excerpt_seconds=1)
    assert "level (dB) →0" in page.read_text() and "offset ↓" in page.read_text()
    assert list(tmp_path.glob("*/waveform_best*"))
    kept = json.loads(page.with_suffix(".json").read_text())["models"][0]["files"][0]["values"]
    assert kept["offset"] == pytest.approx(.3, abs=1e-4)


def test_a_level_is_best_near_0():
    sounds = {"loud": sound()[0, 0], "soft": .01*sound()[0, 0]}
    found = evaluate_codec(Shifts(.1), sounds, measures=["level (dB)"])
    assert found.ranking == [0, 1] and found.summary["level (dB)"]["best"] == "loud"


def test_waveforms_of_any_length_are_drawn():
    figure = plot_waveforms({"one": np.zeros(1), "long": np.ones(100_000)}, RATE)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "long"]


# ---- and what comes of it

MODEL = {"sampling_rate": RATE, "encoder_dim": 4, "encoder_rates": [2, 4, 5, 8], "decoder_dim": 32,
         "decoder_rates": [8, 5, 4, 2], "codebook_size": 64}


def silence_after(steps, corpus, losses, seed=1, rate=3e-3, **data):
    "Mean of decoded silence after a short training without critics, by the parts of a run"
    config = as_config({"model": MODEL, "losses": losses, "training": {"batch_size": 2},
                        "data": {"dataset_path": str(corpus), "segment_length": .08,
                                 "validation": 0} | data})
    torch.manual_seed(seed)
    model, _ = make_generator(config)
    books = make_codebooks(model, config)
    optimizer = make_optimizer(model.parameters(), rate, config.training)
    judged, pieces = Comparison(nn.ModuleDict(), config.losses, RATE), setup_dataset(config)
    for step, real in zip(range(steps), chain.from_iterable(repeat(pieces))):
        coded = model(real[:, None], details=True)
        list(judged.compare(real[:, None], coded.audio, step, critics=False))
        optimizer.zero_grad()
        codec_loss(coded, judged.gradient, config.losses)[0].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        books.update(coded.levels, step, optimizer=optimizer)
    with torch.no_grad(): return float(model.eval()(torch.zeros(1, 1, 3200))[0].mean())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    place = tmp_path_factory.mktemp("speech")/"corpus"
    speech_corpus(place, n_files=12, sample_rate=RATE, seed=1)
    return place


def test_decoded_silence_is_silent(corpus):
    "A tiny codec in its first steps: deaf, it stands at the rail; as presets train, it comes back"
    assert abs(silence_after(10, corpus, {"stft": 0., "offset": 0.})) > .5
    assert abs(silence_after(20, corpus, {})) < .1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_decoded_silence_is_silent_whatever_the_seed(corpus, seed):
    assert abs(silence_after(60, corpus, {}, seed, 1e-3, segment_length=.16)) < .1


def test_a_run_that_hears_no_offset_says_so(tmp_path, caplog):
    given = settings(tmp_path/"run", make_corpus(tmp_path/"data"),
                     {"training": {"steps": 1}, "losses": {"stft": 0., "offset": 0.}})
    with caplog.at_level(logging.WARNING): fit(given)
    assert "hears a constant offset" in caplog.text


# ---- critics as a share of the run, heard or told

def test_critics_start_at_a_share_of_the_run_or_at_a_step():
    def begins(start, steps, total=None):
        given = {"discriminators": {"start": start}, "training": {"steps": steps}}
        return as_config(given).critics_start(total)
    assert [begins(*o) for o in ((.5, 1200), (.5, 3001), (1500, 1200), (0, 9), (1, 9), (.999, 10))
            ] == [600, 1501, 1500, 0, 1, 10]
    assert begins(.25, 0, 80) == 20 and begins(.25, 0) == 0  # epochs, of a known length or not
    small = as_config(create_training_config("x", model="small", num_iterations=1200))
    assert small.critics_start() == 600 and "critics from step 600 on" in small.plan()
    late = as_config({"discriminators": {"start": 1500}, "training": {"steps": 1200}})
    assert "no critics" in late.plan() and "critics" not in as_config({}).plan()


@pytest.mark.parametrize("start, first", [(.5, 2), (3, 3), (9, None)])
def test_critics_are_heard_from_there_on(tmp_path, caplog, start, first):
    given = settings(tmp_path/"run", make_corpus(tmp_path/"data"),
                     {"discriminators": {"start": start}})
    with caplog.at_level(logging.WARNING): fit(given)
    rows = [json.loads(line) for line in (tmp_path/"run/history.jsonl").read_text().splitlines()]
    heard = [row["step"] for row in rows if "loss_d" in str(row)]
    assert ("critics are never heard" in caplog.text) == (first is None)
    assert heard == list(range((first or 4) + 1, 5))
