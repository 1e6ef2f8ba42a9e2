"One step of a codec: codebooks that learn, one look for both parties, loops of your own."
import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import rows
from snac_runs import batch, fit, in_one_thread, make_corpus, party, RATE, settings, streamed, TINY

from audiolab.snac import (
    CodebookTrainer, codec_loss, Comparison, create_snac_24khz_config, create_snac_44khz_config,
    discriminator_loss, DiscriminatorConfig, feature_matching_loss, generator_loss, LossConfig,
    make_discriminators, multi_scale_mel_loss, offset_loss, ResidualVectorQuantize,
    setup_dataset, SNAC, stft_loss, train_step,
)
from audiolab.training import seed_step


@pytest.fixture(scope="module")
def corpus(tmp_path_factory): return make_corpus(tmp_path_factory.mktemp("corpus")/"sound")


@pytest.fixture(autouse=True)
def one_thread(): yield from in_one_thread()


@pytest.mark.parametrize("mode", ["gradient", "ema", "none"])
def test_every_codebook_moves_in_the_first_step(mode):
    "By its own rule: neither filled from data nor restarted"
    generator, mpd, msd, optim_g, optim_d, books = party(mode, initialise=False, restart_after=0)
    before = copy.deepcopy(generator.state_dict())
    values = train_step(batch(), generator, mpd, msd, optim_g, optim_d, codebooks=books,
                        precision="float32")
    moved = {name for name, value in generator.state_dict().items()
             if not torch.equal(value, before[name])}
    assert {f"quantizer.quantizers.{i}.codebook.weight" in moved
            for i in range(3)} == {mode != "none"}
    assert {"encoder", "quantizer", "decoder"} == {name.split(".")[0] for name in moved}
    eight = {"loss_g", "loss_d", "mel_loss", "stft_loss", "gen_adv_loss", "fm_loss", "mel_weight",
             "offset_loss",
             "stft_weight"}
    levels = {f"{name}/{i}" for name in ("usage", "perplexity") for i in range(3)}
    assert values.keys() == eight | levels | {"commitment_loss", "codebook_loss", "grad_norm_g",
                                              "grad_norm_d"}
    assert all(np.isfinite(float(v)) for v in values.values())


def test_the_step_of_old_keeps_its_codebooks_with_the_generator():
    generator, mpd, msd, optim_g, optim_d, _ = party()
    before = [q.codebook.weight.detach().clone() for q in generator.quantizer.quantizers]
    usage = []
    for i in range(3):
        usage.append(float(train_step(batch(i), generator, mpd, msd, optim_g, optim_d, "cpu",
                                      i)["usage/2"]))
    # filled with what was heard
    assert all((q.codebook.weight != old).any(1).float().mean() > .2
               for q, old in zip(generator.quantizer.quantizers, before))
    assert usage[0] < usage[2]  # counted over the steps


def varied(seed, size, samples=2560):
    "Tones and noise of many colours that come and go"
    rng, t = np.random.default_rng(seed), np.arange(samples)/RATE
    def one():
        f, k = rng.uniform(80, 1500), np.arange(1, 6)[:, None]
        if rng.random() < .6:
            x = (np.sin(2*np.pi*f*k*t + rng.uniform(0, 6, (5, 1)))/k**rng.uniform(0, 2)).sum(0)
        else:
            hiss = rng.normal(size=samples)
            x = np.convolve(hiss, rng.normal(size=8)*.7**np.arange(8), "same")
        level = rng.uniform(.02, .3)
        beat = np.sin(2*np.pi*rng.uniform(2, 20)*t + rng.uniform(0, 6))
        return x*level*(.05 + (beat > rng.uniform(-1, .5)))
    return torch.from_numpy(np.stack([one() for _ in range(size)]).astype(np.float32))


def learn(mode, steps, size=4):
    "Distances and entries in use, at the end of a training by distance alone"
    generator, _, _, optimizer, _, books = party(mode, model=TINY | {"codebook_size": 256},
                                                 initialise=mode != "none")
    optimizer.param_groups[0]["lr"] = 2e-3
    losses, judged, found = LossConfig(), Comparison(nn.ModuleDict(), LossConfig(), RATE), []
    for step in range(steps):
        seed_step(1, step)
        real = varied(step % 12, size)[:, None]
        coded = generator(real, details=True)
        list(judged.compare(real, coded.audio, critics=False))
        loss, _ = codec_loss(coded, judged.gradient, losses, mode == "gradient")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        books.update(coded.levels, step)
        found.append(float(judged.values["mel_loss"]))
    with torch.no_grad(): codes = [generator.encode(varied(i, size)[:, None]) for i in range(12)]
    used = [len(torch.unique(torch.cat([c[level] for c in codes]))) for level in range(3)]
    return np.mean(found[:5]), np.mean(found[-5:]), used


def reconstruct(mode, steps=150):
    "Number of entries in use at the end of a training of the quantiser alone, and its error"
    rng = torch.Generator().manual_seed(0)
    # latents of a fresh encoder all point in about one direction
    centres = torch.randn(40, 16, generator=rng) + 4*torch.randn(16, generator=rng)
    def latents():
        chosen = centres[torch.randint(40, (4, 16), generator=rng)]
        return (chosen + .1*torch.randn(4, 16, 16, generator=rng)).transpose(1, 2)
    torch.manual_seed(0)
    rvq = ResidualVectorQuantize(16, 128, 4, [2, 1])
    optimizer, books = torch.optim.AdamW(rvq.parameters(), 3e-3), CodebookTrainer(rvq, mode,
        initialise=mode != "none")
    for step in range(steps):
        z = latents()
        total, levels = rvq(z, details=True)
        learns = mode == "gradient"
        inside = sum(.25*level.commitment + learns*level.codebook for level in levels)
        loss = (total-z).square().mean() + inside
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        books.update(levels, step)
    codes = [rvq(latents())[1] for _ in range(20)]
    used = [torch.unique(torch.cat([levels[i] for levels in codes])) for i in range(2)]
    return float(loss.detach()), list(map(len, used))


@pytest.mark.parametrize("mode", ["gradient", "ema"])
def test_entries_that_learn_are_used_by_far_more(mode):
    (worst, frozen), (error, entries) = reconstruct("none"), reconstruct(mode)
    # 1 and 1 of 128; 104 and 121 or more
    assert max(frozen) < 10 and min(entries) > 60 and error < .2*worst


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_codecs_whose_codebooks_learn_use_far_more_of_them():
    found = {mode: learn(mode, 500) for mode in ("none", "gradient", "ema")}
    print(found)
    for mode in ("gradient", "ema"):
        first, end, entries = found[mode]
        # 114 and 43 against 5, when it was written
        assert end < .9*first and sum(entries) > 4*sum(found["none"][2])


def two_passes(real, generator, mpd, msd, optim_g, optim_d, weights):
    "The step as it is usually written: critics see the sounds once for each update"
    coded, critics = generator(real, details=True), (mpd, msd)
    optim_d.zero_grad()
    sum(sum(discriminator_loss(multi(real)[0], multi(coded.audio.detach())[0]))
        for multi in critics).backward()
    norm = nn.utils.clip_grad_norm_([p for multi in critics for p in multi.parameters()], 10.)
    loss = weights.mel*multi_scale_mel_loss(real, coded.audio, RATE)
    loss = loss+weights.stft*stft_loss(real, coded.audio)
    loss = loss+weights.offset*offset_loss(real, coded.audio, RATE)
    for multi in critics:
        outputs, maps = multi(coded.audio)
        matching = feature_matching_loss(multi(real)[1], maps)
        loss = loss + weights.adversarial*generator_loss(outputs)
        loss = loss + weights.feature_matching*matching
    loss = loss + sum(weights.commitment*level.commitment + weights.codebook*level.codebook
                      for level in coded.levels)
    parameters = list(generator.parameters())
    for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters)): p.grad = gradient
    optim_d.step()
    optim_g.step()
    return norm, loss.detach()


@pytest.mark.parametrize("kind, near, steps", [(torch.float32, 1e-5, 1), (torch.float64, 1e-9, 2)],
                         ids=["float32", "float64"])
def test_one_look_gives_the_gradients_of_two_passes(kind, near, steps):
    "All critics, narrow; after an update in float64, where rounding turns no sign"
    wide = {"periods": [2, 3, 5, 7, 11], "fft_sizes": [2048, 1024, 512]}
    parties = [party(discriminators=wide) for _ in range(2)]
    for networks in parties:
        for net in networks[:3]: net.to(kind)
    parties[0] = *parties[0][:5], CodebookTrainer(parties[0][0].quantizer, initialise=False,
                                                  restart_after=0)
    for step in range(steps):
        real = batch(step).to(kind)
        *nets, books = parties[0]
        torch.manual_seed(step)
        values = train_step(real, *nets, codebooks=books, precision="float32")
        torch.manual_seed(step)
        norm, loss = two_passes(real[:, None], *parties[1][:5], LossConfig())
        assert float(values["grad_norm_d"]) == pytest.approx(float(norm), rel=near)
        assert float(values["loss_g"]) == pytest.approx(float(loss), rel=near)
        for a, b in zip(parties[0][:3], parties[1][:3]):
            for (name, p), q in zip(a.named_parameters(), b.parameters()):
                scale = q.grad.abs().max().clamp(min=1e-6)
                assert (p.grad-q.grad).abs().max() <= near*max(scale, .01*norm
                    if a is not parties[0][0] else scale), name
                if kind == torch.float64: torch.testing.assert_close(p, q, atol=1e-8, rtol=1e-7)


def test_a_step_may_be_taken_by_the_codec_or_by_critics_alone():
    critics = make_discriminators(DiscriminatorConfig(width=1/16, periods=(2,), fft_sizes=(512,)))
    judged = Comparison(critics, LossConfig(), RATE)
    real, fake = batch()[:, None], .5*batch(1)[:, None]
    losses = list(judged.compare(real, fake, codec=False))
    assert judged.gradient is None and len(losses) == 2 and {"loss_d"} <= judged.values.keys()
    assert "mel_loss" not in judged.values
    assert list(judged.compare(real, fake, critics=False)) == []
    assert judged.gradient.shape == fake.shape
    assert judged.values.keys() == {"mel_loss", "stft_loss", "offset_loss"}


def test_an_older_trainer_to_compare_with():
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in SNAC(**make(legacy=True)).parameters())
                 for make in (create_snac_24khz_config, create_snac_44khz_config)]
    assert [round(n/1e6, 2) for n in sizes] == [41.07, 50.34]
    nets = party("none", discriminators={"legacy": True, "fft_sizes": [2048, 1024, 512]})
    for step, weight in ((499, 5.), (500, 15.)):
        values = train_step(batch(), *nets[:5], iteration=step, losses=LossConfig(legacy=True),
                            codebooks=nets[5], precision="float32")
        assert (values["mel_weight"], values["stft_weight"]) == (weight, weight)
        assert float(values["loss_g"]) > weight*float(values["mel_loss"]+values["stft_loss"])


@pytest.mark.slow
def test_a_run_of_the_older_trainer(corpus, tmp_path):
    old = {"encoder_rates": [3, 3, 7, 7], "decoder_rates": [7, 7, 3, 3], "attn_window_size": 4,
           "vq_strides": [2, 1]}
    more = {"model": old, "losses": {"legacy": True},
            "discriminators": {"legacy": True, "fft_sizes": [2048, 1024, 512]},
            "codebooks": {"mode": "none"}, "training": {"steps": 1}}
    assert fit(settings(tmp_path/"run", corpus, more)).state == "completed"
    logged = rows(tmp_path/"run", ["log"])[-1][3]
    assert {"mel_loss", "stft_loss", "loss_d"} <= logged.keys()
    assert all(np.isfinite(v) for v in logged.values() if isinstance(v, float))


def test_data_for_a_loop_of_your_own(corpus, tmp_path):
    loader = setup_dataset(settings(tmp_path, corpus))
    found = next(iter(loader))
    assert found.shape == (2, 2560) and found.dtype == torch.float32 and len(loader) == 24
    more, table = streamed(tmp_path)
    assert sum(len(b) for b in setup_dataset(settings(tmp_path, table, more))) == 16
