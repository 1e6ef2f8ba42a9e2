"Runs of a codec: resumed to the bit, killed at any moment, fine-tuned with tokens that stay."
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import rows, state_of
from snac_runs import (
    batch, codec_of, copy_run, equal, fit, forked, in_one_thread, last, make_corpus, over,
    published, published_bytes, RATE, settings, TINY, training_of,
)

from audiolab.files import CheckpointFolder, read_checkpoint
from audiolab.snac import (
    as_config, from_pretrained, make_loader, open_training_data, save_checkpoint, setup_models,
    setup_optimizers, SNAC, snac_trainer, train_step,
)
from audiolab.apps import program as cli
from audiolab.training import learning_rate_factor, seed_step


@pytest.fixture(scope="module")
def corpus(tmp_path_factory): return make_corpus(tmp_path_factory.mktemp("corpus")/"sound")


@pytest.fixture(autouse=True)
def one_thread(): yield from in_one_thread()


PHASES = {"gradient": {}, "ema, critics later": {"codebooks": {"mode": "ema"},
                                                 "discriminators": {"start": 3}},
          "balanced, critics alone": {"losses": {"balance": True, "stft": 1.},
                                      "codebooks": {"restart_after": .5},
                                      "discriminators": {"alone": 3}},
          "ema": {"codebooks": {"mode": "ema"}}, "balanced": {"losses": {"balance": True}},
          "none": {"codebooks": {"mode": "none"}, "training": {"ema_decay": 0}}}


quick = list(PHASES)[:3]


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    "Folders of runs that nobody disturbed, by name"
    found = {}
    def run(name):
        if name not in found:
            found[name] = tmp_path_factory.mktemp("whole")/"run"
            fit(settings(found[name], corpus, PHASES[name]))
        return found[name]
    return run


def stopped(name, at):
    return pytest.param(name, at, marks=[pytest.mark.slow]*(at != 2 or name not in quick))


@pytest.mark.parametrize("name, at", [stopped(name, at) for name in PHASES for at in (1, 2, 3)])
def test_four_steps_are_two_and_two(name, at, whole, corpus, tmp_path):
    "Weights, optimizers, average, codebooks, critics and history, to the bit"
    copy_run(whole(name), tmp_path/"part", at)
    result = fit(settings(tmp_path/"part", corpus, PHASES[name],
                          {"training": {"save_every": "never"}}), "auto")
    assert (result.state, result.step) == ("completed", 4)
    assert state_of(last(tmp_path/"part")) == state_of(last(whole(name)))
    assert rows(tmp_path/"part") == rows(whole(name))
    assert published_bytes(tmp_path/"part") == published_bytes(whole(name))


def test_published_names_and_nothing_else_beside_the_training(whole):
    run = whole(quick[1])
    tensors, metadata = read_checkpoint(last(run))
    model = SNAC(**TINY, attn_window_size=None, vq_strides=[4, 2, 1])
    assert {k: v.shape for k, v in tensors.items()
            if not k.startswith("training.")} == {k: tuple(v.shape)
                                                  for k, v in model.state_dict().items()}
    state = training_of(last(run))
    assert state["task"].keys() == {"discriminators", "codebooks", "balancer"}
    assert state["task"]["codebooks"].keys() == {"0", "1", "2"}
    assert json.loads(metadata["config"])["model"] == model.config
    assert from_pretrained(last(run)).config == model.config


def test_phases_are_what_their_names_say(whole):
    later, alone = (whole(name) for name in quick[1:])
    def paths(folder): return [folder/f"snac_16khz_iter_{i}.safetensors" for i in (1, 2, 3, 4)]
    def critics(folder):
        return [{k: np.asarray(v) for k, v in training_of(path)["task"]["discriminators"].items()}
                for path in paths(folder)]
    def same(states): return [equal(a, b) for a, b in zip(states, states[1:])]
    assert same(critics(later)) == [True, True, False]
    assert same(list(map(codec_of, paths(later)))) == [False]*3
    assert same(critics(alone)) == [False]*3
    assert same(list(map(codec_of, paths(alone)))) == [True, True, False]
    logged = [[row[3].keys() & {"loss_d", "mel_loss"} for row in rows(folder, ["log"])]
              for folder in (later, alone)]
    assert logged == [[{"mel_loss"}]*3 + [{"loss_d", "mel_loss"}],
                      [{"loss_d"}]*3 + [{"loss_d", "mel_loss"}]]


def test_a_loop_of_your_own_is_gone_on_with(corpus, tmp_path):
    "Two steps by hand, saved, and two by the engine are four by hand"
    config = as_config(settings(tmp_path/"run", corpus, {"training": {"ema_decay": 0}}))
    data, _ = open_training_data(corpus, RATE, config.segment_samples/RATE,
                                 multiple=config.pad_multiple, validation_share=0)
    batches = [b["audio"] for b, _ in zip(make_loader(data, 2).batches(0, 0), range(2))]
    torch.manual_seed(0)
    networks = setup_models(config)
    optim_g, optim_d, *schedulers = setup_optimizers(*networks, config)
    for step in range(4):
        seed_step(0, step)
        train_step(batches[step % 2], *networks, optim_g, optim_d, "cpu", step, precision="float32")
        for scheduler in schedulers: scheduler.step()
        if step == 1:
            path = save_checkpoint(2, *networks, optim_g, optim_d, *schedulers, config,
                                   tmp_path/"run")
    assert path.name == "snac_16khz_iter_2.safetensors"
    assert from_pretrained(tmp_path/"run").config == networks[0].config
    result = fit(config, path)  # the data begins anew: the same two batches
    assert result.step == 4
    assert equal(codec_of(last(tmp_path/"run")),
                 {k: v.numpy() for k, v in networks[0].state_dict().items()})
    critics = nn.ModuleDict(zip(("mpd", "msd"), networks[1:])).state_dict()
    assert equal({k: np.asarray(v)
                  for k, v in training_of(last(tmp_path/"run"))["task"]["discriminators"].items()},
                 {k: v.numpy() for k, v in critics.items()})


@pytest.fixture
def little(corpus, tmp_path):
    "Two recordings: 12 pieces"
    (tmp_path/"sound").mkdir()
    for path in sorted(corpus.iterdir())[:2]: (tmp_path/"sound"/path.name).symlink_to(path)
    return tmp_path/"sound"


def test_the_engine_knows_how_long_a_run_by_epochs_is(little, tmp_path):
    "Both parties follow a cosine to its end; critics after a warm-up of their own"
    by_epochs = {"steps": 0, "epochs": 2, "batch_size": 4, "save_every": "never"}
    config = as_config(settings(tmp_path/"run", little, {
        "training": by_epochs | {"schedule": "cosine", "warmup": 3, "final_factor": .1}}))
    result = fit(config)
    assert (result.state, result.step, result.epoch) == ("completed", 6, 2)
    found = {step: values for _, step, _, values in rows(tmp_path/"run", ["log"])}
    rates = config.training.learning_rate, config.discriminators.learning_rate
    for step, values in found.items():
        factor = learning_rate_factor(step-1, 6, "cosine", 3, .1)
        assert values["learning_rate/generator"] == rates[0]*factor
        warm = min(1., step/(config.discriminators.warmup+1))
        assert values["learning_rate/discriminators"] == rates[1]*(factor*warm)
    assert len(found) == 6


def test_the_small_preset_by_epochs(little, tmp_path, monkeypatch):
    "What TensorBoard shows lies in the run folder too: two runs are never one curve"
    monkeypatch.chdir(tmp_path)
    words = ["--model", "small", "--dataset_path", str(little), "--training.steps", "0",
             "--training.epochs", "2", "--batch_size", "2", "--device", "cpu",
             "--checkpoint_dir", str(tmp_path/"run"),
             "--training.validate_every", "never"]
    assert cli.main(["snac", "train", *words]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "sound"]
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    assert list((tmp_path/"run"/"logs").glob("events.out.tfevents.*"))
    assert (tmp_path/"run"/"snac_16khz_final.safetensors").exists()


def check_kills(corpus, tmp_path, kills, longest, more, whole):
    rng, killed, code = np.random.default_rng(0), 0, None
    while code is None:
        pid, = forked(lambda: fit(settings(tmp_path/"killed", corpus, more), "auto"))
        code = over(pid, rng.uniform(0, longest) if killed < kills else 120)
        if code is None:
            os.kill(pid, signal.SIGKILL)
            over(pid, 10)
            killed += 1
        if code is None and killed > kills: raise AssertionError("it never ends")
    assert code == 0
    assert state_of(last(tmp_path/"killed")) == state_of(last(whole))
    assert rows(tmp_path/"killed") == rows(whole)
    assert not list((tmp_path/"killed").rglob(".*tmp*"))
    for path in whole.glob("*[!0-9].safetensors"):
        same = path.read_bytes() == (tmp_path/"killed"/path.name).read_bytes()
        assert same or path == last(whole)
    assert published_bytes(tmp_path/"killed") == published_bytes(whole)
    return killed


def test_kill_9_at_random_instants(whole, corpus, tmp_path):
    assert check_kills(corpus, tmp_path, 3, 1., PHASES["gradient"], whole("gradient"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_9_fifty_times(corpus, tmp_path):
    killed = 0
    more = {"training": {"steps": 24, "keep_last": 3, "validate_every": "3 steps"},
            "data": {"validation": .2, "validation_clips": 1, "validation_seconds": .2},
            "codebooks": {"restart_after": 1.}}
    fit(settings(tmp_path/"whole", corpus, more))
    for round in range(5):
        (tmp_path/str(round)).mkdir()
        killed += check_kills(corpus, tmp_path/str(round), 10, 3., more, tmp_path/"whole")
    assert killed >= 40


@pytest.mark.parametrize("call, count", [("replace", 1),
                                         *(pytest.param(call, n, marks=pytest.mark.slow)
                                           for call, counts in {"fsync": (1, 2, 3, 4, 5),
    "replace": (2,)}.items() for n in counts)])
def test_killed_while_saving(call, count, whole, corpus, tmp_path):
    "The checkpoint before is there, opens as a codec, and the run goes on from it to the same end"
    def die():  # at a call after the first checkpoint
        original, calls = getattr(os, call), []
        first = tmp_path/"killed"/"snac_16khz_iter_1.safetensors"
        def counted(*args, **more):
            if first.exists() and (".safetensors" in str(args[0]) or call == "fsync"):
                calls.append(1)
            if len(calls) == count: os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **more)
        setattr(os, call, counted)
        fit(settings(tmp_path/"killed", corpus))
    assert over(*forked(die), 60) == -signal.SIGKILL
    found = CheckpointFolder(tmp_path/"killed").resolve("auto")
    assert found.stem.startswith("snac_16khz_iter_")
    assert from_pretrained(tmp_path/"killed").codebook_size == 64
    before = training_of(found)["step"]
    assert 1 <= before < 4 and fit(settings(tmp_path/"killed", corpus), "auto").step == 4
    assert state_of(last(tmp_path/"killed")) == state_of(last(whole("gradient")))


@pytest.mark.parametrize("package", [pytest.param(False, marks=pytest.mark.slow), True],
                         ids=["own", "package"])
def test_fine_tuning_keeps_tokens_and_opens_in_the_package(package, corpus, tmp_path, monkeypatch):
    snac = pytest.importorskip("snac", reason="optional: needs the package snac")
    source = published(tmp_path/"published", package)
    before = from_pretrained(source)
    more = {"fine_tuning": {"weights": str(source), "freeze_tokens": True},
            "discriminators": {"alone": 1}, "training": {"validate_every": "4 steps",
                                                         "ema_decay": .9},
            "data": {"validation": .3, "validation_clips": 1, "validation_seconds": .3}}
    given = settings(tmp_path/"tuned", corpus, more)
    del given["model"]  # the size is that of the weights
    trainer = snac_trainer(given)
    trainer.fit()
    assert equal(codec_of(tmp_path/"tuned"/"snac_16khz_iter_1.safetensors"),
                 {k: v.numpy() for k, v in before.state_dict().items()})
    after, average = from_pretrained(tmp_path/"tuned"), trainer.loop.average
    audio = batch(size=1, samples=6400)[:, None]
    # the average, and the weights of the last step
    for model in (after, from_pretrained(last(tmp_path/"tuned"))):
        moved = {k for k, v in model.state_dict().items()
                 if not torch.equal(v, before.state_dict()[k])}
        assert moved and all(name.startswith("decoder.") for name in moved)
        assert all(torch.equal(a, b) for a, b in zip(model.encode(audio), before.encode(audio)))
    final, best = (codec_of(tmp_path/"tuned"/f"{name}.safetensors")
                   for name in ("model_final", "best_model"))
    with average.swapped():
        live = {k: v.numpy().copy()
                for k, v in trainer.loop.modules["generator"].state_dict().items()}
    assert equal(final, live) and equal(best, final)
    assert equal(final, {k: v.numpy() for k, v in after.state_dict().items()})
    assert not equal(final, codec_of(last(tmp_path/"tuned")))
    theirs = snac.SNAC.from_pretrained(str(tmp_path/"tuned"))
    codes = after.encode(audio)
    monkeypatch.setattr(torch, "randn", lambda shape, **kw: torch.zeros(shape, **kw))
    with torch.no_grad():
        torch.testing.assert_close(theirs.decode(codes), after.decode(codes, noise=0), atol=1e-6,
                                   rtol=0)


def test_fine_tuning_of_everything_does_not_fill_codebooks_anew(corpus, tmp_path):
    source = published(tmp_path/"published")
    before = from_pretrained(source)
    fit(settings(tmp_path/"tuned", corpus, {"fine_tuning": {"weights": str(source)},
                                            "training": {"steps": 1, "ema_decay": 0,
                                                         "learning_rate": 1e-4}}))
    after = from_pretrained(tmp_path/"tuned")
    for a, b in zip(after.quantizer.quantizers, before.quantizer.quantizers):
        # a small step, and no entry from elsewhere
        assert 0 < (a.codebook.weight-b.codebook.weight).abs().max() < 1e-3
