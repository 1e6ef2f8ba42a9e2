"""Training the codec: both parties in one look, codebooks that learn, runs that resume to the bit, several processes, fine-tuning, bad input.

As a program: python test_snac_train.py SETTINGS.json SEEN  trains, resuming what is there, and writes down which clips each process saw.
"""
import copy, io, json, os, signal, socket, subprocess, sys, time, traceback
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import Denoise, config as engine_config, rows, state_of

from audiolab.apps import program as cli
from audiolab.audio import write_audio
from audiolab.files import read_checkpoint
from audiolab.training import seed_step
from audiolab.training import RunFolder
from audiolab.snac import CodebookTrainer
from audiolab.snac import (
    DiscriminatorConfig, LossConfig, as_config, create_snac_24khz_config,
    create_snac_44khz_config,
)
from audiolab.snac import make_loader, open_training_data
from audiolab.snac import SNAC
from audiolab.snac import (
    discriminator_loss, feature_matching_loss, generator_loss, multi_scale_mel_loss,
)
from audiolab.snac import from_pretrained, save_pretrained
from audiolab.snac import ResidualVectorQuantize
from audiolab.snac import Comparison, codec_loss, make_discriminators
from audiolab.snac import (
    SnacTask, save_checkpoint, setup_dataset, setup_models, setup_optimizers, snac_trainer,
    train_step,
)
from audiolab.files import CheckpointFolder, unpack_state
from audiolab.training import Trainer

RATE = 16000
TINY = {"sampling_rate": RATE, "encoder_dim": 8, "encoder_rates": [2, 4, 5, 8], "decoder_dim": 64, "decoder_rates": [8, 5, 4, 2], "codebook_size": 64}


def merged(a, b): return {**a, **{k: merged(a[k], v) if isinstance(v, dict) and isinstance(a.get(k), dict) else v for k, v in b.items()}}


def settings(folder, data, *more):
    "Of a run that is over soon"
    found = {"model": TINY, "data": {"dataset_path": str(data), "segment_length": .16, "validation": 0},
             "discriminators": {"width": 1/16, "periods": [2, 3], "fft_sizes": [512], "warmup": 2, "precision": "float32"},
             "training": {"steps": 4, "batch_size": 2, "log_every": 1, "validate_every": "never", "sample_every": "never", "save_every": "1 step", "keep_last": 0, "ema_decay": .5,
                          "device": "cpu"},
             "paths": {"checkpoint_dir": str(folder), "log_dir": str(Path(folder)/"logs")}}
    for part in more: found = merged(found, part)
    return found


def tone(number, seconds=1., rate=RATE):  # a voice that has its own pitch
    t, rng = np.arange(round(seconds*rate))/rate, np.random.default_rng(number)
    return (sum(np.sin(2*np.pi*k*(100+20*number)*t + rng.uniform(0, 6))/k for k in range(1, 12))*.1 + rng.normal(0, .02, len(t))).astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    "Eight recordings: 48 pieces"
    place = tmp_path_factory.mktemp("corpus")/"sound"; place.mkdir()
    for number in range(8): write_audio(place/f"{number}.wav", tone(number), RATE)
    return place


def parquet(place, shards=4, rows=3):
    "A table in shards, of clips of one piece each"
    import datasets
    place.mkdir()
    for shard in range(shards):
        cells = []
        for row in range(rows):
            file = io.BytesIO(); soundfile.write(file, tone(shard*rows+row, .16), RATE, format="WAV")
            cells.append({"bytes": file.getvalue(), "path": f"{shard*rows+row:02}.wav"})
        table = datasets.Dataset.from_dict({"audio": cells}).cast_column("audio", datasets.Audio(decode=False))
        table.to_parquet(place/f"train-{shard:05}-of-{shards:05}.parquet")
    return place


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads(); torch.set_num_threads(1); yield; torch.set_num_threads(before)


def last(folder): return Path(folder)/"snac_16khz_final.safetensors"
def codec_of(path): return {k: v for k, v in read_checkpoint(path)[0].items() if not k.startswith("training.")}
def training_of(path): return unpack_state(*read_checkpoint(path))["training"]
def equal(a, b): return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def copy_run(source, target, step):
    "A run as it was on the disk after the save of a step"
    target.mkdir()
    name = f"snac_16khz_iter_{step}.safetensors"
    (target/name).write_bytes((source/name).read_bytes())
    (target/"history.jsonl").write_bytes((source/"history.jsonl").read_bytes())


def fit(given, resume=None): return snac_trainer(given).fit(resume)


# ---- codebooks in a training

def party(mode="gradient", model=TINY, discriminators=None, **books):
    config = as_config({"model": model, "discriminators": {"width": 1/16, "periods": [2, 3], "fft_sizes": [512]} | (discriminators or {})})
    torch.manual_seed(0)
    networks = setup_models(config)
    return *networks, *setup_optimizers(*networks, config)[:2], CodebookTrainer(networks[0].quantizer, mode, **books)


def batch(seed=0, size=2, samples=2560): return torch.from_numpy(np.stack([tone(seed*size+i, samples/RATE) for i in range(size)]))


@pytest.mark.parametrize("mode", ["gradient", "ema", "none"])
def test_every_codebook_moves_in_the_first_step(mode):
    "By its own rule: neither filled from data nor restarted"
    generator, mpd, msd, optim_g, optim_d, books = party(mode, initialise=False, restart_after=0)
    before = copy.deepcopy(generator.state_dict())
    values = train_step(batch(), generator, mpd, msd, optim_g, optim_d, codebooks=books, precision="float32")
    moved = {name for name, value in generator.state_dict().items() if not torch.equal(value, before[name])}
    assert {f"quantizer.quantizers.{i}.codebook.weight" in moved for i in range(3)} == {mode != "none"}
    assert {"encoder", "quantizer", "decoder"} == {name.split(".")[0] for name in moved}
    eight = {"loss_g", "loss_d", "mel_loss", "stft_loss", "gen_adv_loss", "fm_loss", "mel_weight", "stft_weight"}
    levels = {f"{name}/{i}" for name in ("usage", "perplexity") for i in range(3)}
    assert values.keys() == eight | levels | {"commitment_loss", "codebook_loss", "grad_norm_g", "grad_norm_d"} and all(np.isfinite(float(v)) for v in values.values())


def test_the_step_of_old_keeps_its_codebooks_with_the_generator():
    generator, mpd, msd, optim_g, optim_d, _ = party()
    before = [q.codebook.weight.detach().clone() for q in generator.quantizer.quantizers]
    usage = []
    for i in range(3): usage.append(float(train_step(batch(i), generator, mpd, msd, optim_g, optim_d, "cpu", i)["usage/2"]))
    assert all((q.codebook.weight != old).any(1).float().mean() > .2 for q, old in zip(generator.quantizer.quantizers, before))  # filled with what was heard
    assert usage[0] < usage[2]  # counted over the steps


def varied(seed, size, samples=2560):
    "Tones and noise of many colours that come and go"
    rng, t = np.random.default_rng(seed), np.arange(samples)/RATE
    def one():
        f, k = rng.uniform(80, 1500), np.arange(1, 6)[:, None]
        x = (np.sin(2*np.pi*f*k*t + rng.uniform(0, 6, (5, 1)))/k**rng.uniform(0, 2)).sum(0) if rng.random() < .6 else np.convolve(rng.normal(size=samples), rng.normal(size=8)*.7**np.arange(8), "same")
        return x*rng.uniform(.02, .3)*(.05 + (np.sin(2*np.pi*rng.uniform(2, 20)*t + rng.uniform(0, 6)) > rng.uniform(-1, .5)))
    return torch.from_numpy(np.stack([one() for _ in range(size)]).astype(np.float32))


def learn(mode, steps, size=4):
    "Distances and number of entries in use, at the end of a training by distance alone, without critics"
    generator, _, _, optimizer, _, books = party(mode, model=TINY | {"codebook_size": 256}, initialise=mode != "none")
    optimizer.param_groups[0]["lr"] = 2e-3
    losses, judged, found = LossConfig(), Comparison(nn.ModuleDict(), LossConfig(), RATE), []
    for step in range(steps):
        seed_step(1, step)
        real = varied(step % 12, size)[:, None]
        coded = generator(real, details=True)
        list(judged.compare(real, coded.audio, critics=False))
        loss, _ = codec_loss(coded, judged.gradient, losses, mode == "gradient")
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        books.update(coded.levels, step)
        found.append(float(judged.values["mel_loss"]))
    with torch.no_grad(): codes = [generator.encode(varied(i, size)[:, None]) for i in range(12)]
    return np.mean(found[:5]), np.mean(found[-5:]), [len(torch.unique(torch.cat([c[level] for c in codes]))) for level in range(3)]


def reconstruct(mode, steps=150):
    "Number of entries in use at the end of a training of the quantiser alone, and its error"
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 16, generator=rng) + 4*torch.randn(16, generator=rng)  # latents of a fresh encoder all point in about one direction
    def latents(): return (centres[torch.randint(40, (4, 16), generator=rng)] + .1*torch.randn(4, 16, 16, generator=rng)).transpose(1, 2)
    torch.manual_seed(0)
    rvq = ResidualVectorQuantize(16, 128, 4, [2, 1])
    optimizer, books = torch.optim.AdamW(rvq.parameters(), 3e-3), CodebookTrainer(rvq, mode, initialise=mode != "none")
    for step in range(steps):
        z = latents()
        total, levels = rvq(z)
        loss = (total-z).square().mean() + sum(.25*level.commitment + (mode == "gradient")*level.codebook for level in levels)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        books.update(levels, step)
    codes = [rvq(latents())[1] for _ in range(20)]
    return float(loss.detach()), [len(torch.unique(torch.cat([levels[i].codes for levels in codes]))) for i in range(2)]


@pytest.mark.parametrize("mode", ["gradient", "ema"])
def test_entries_that_learn_are_used_by_far_more(mode):
    (worst, frozen), (error, entries) = reconstruct("none"), reconstruct(mode)
    assert max(frozen) < 10 and min(entries) > 60 and error < .2*worst  # 1 and 1 of 128; 104 and 121 or more


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_codecs_whose_codebooks_learn_use_far_more_of_them():
    found = {mode: learn(mode, 500) for mode in ("none", "gradient", "ema")}
    print(found)
    for mode in ("gradient", "ema"):
        first, end, entries = found[mode]
        assert end < .9*first and sum(entries) > 4*sum(found["none"][2])  # 114 and 43 against 5, when it was written


# ---- one look for both parties

def two_passes(real, generator, mpd, msd, optim_g, optim_d, weights):
    "The step as it is usually written: critics see the sounds once for their own update, and again for that of the codec"
    coded, critics = generator(real, details=True), (mpd, msd)
    optim_d.zero_grad()
    sum(sum(discriminator_loss(multi(real)[0], multi(coded.audio.detach())[0])) for multi in critics).backward()
    norm = nn.utils.clip_grad_norm_([p for multi in critics for p in multi.parameters()], 10.)
    loss = weights.mel*multi_scale_mel_loss(real, coded.audio, RATE)
    for multi in critics:
        outputs, maps = multi(coded.audio)
        loss = loss + weights.adversarial*generator_loss(outputs) + weights.feature_matching*feature_matching_loss(multi(real)[1], maps)
    loss = loss + sum(weights.commitment*level.commitment + weights.codebook*level.codebook for level in coded.levels)
    parameters = list(generator.parameters())
    for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters)): p.grad = gradient
    optim_d.step(); optim_g.step()
    return norm, loss.detach()


@pytest.mark.parametrize("kind, near, steps", [(torch.float32, 1e-5, 1), (torch.float64, 1e-9, 2)], ids=["float32", "float64"])
def test_one_look_gives_the_gradients_of_two_passes(kind, near, steps):
    "All critics of the defaults, narrow. After the update in float64, where rounding does not turn the sign of what is nearly nothing"
    wide = {"periods": [2, 3, 5, 7, 11], "fft_sizes": [2048, 1024, 512]}
    parties = [party(discriminators=wide) for _ in range(2)]
    for networks in parties:
        for net in networks[:3]: net.to(kind)
    parties[0] = *parties[0][:5], CodebookTrainer(parties[0][0].quantizer, initialise=False, restart_after=0)
    for step in range(steps):
        real = batch(step).to(kind)
        *nets, books = parties[0]
        torch.manual_seed(step); values = train_step(real, *nets, codebooks=books, precision="float32")
        torch.manual_seed(step); norm, loss = two_passes(real[:, None], *parties[1][:5], LossConfig())
        assert float(values["grad_norm_d"]) == pytest.approx(float(norm), rel=near) and float(values["loss_g"]) == pytest.approx(float(loss), rel=near)
        for a, b in zip(parties[0][:3], parties[1][:3]):
            for (name, p), q in zip(a.named_parameters(), b.parameters()):
                scale = q.grad.abs().max().clamp(min=1e-6)
                assert (p.grad-q.grad).abs().max() <= near*max(scale, .01*norm if a is not parties[0][0] else scale), name
                if kind == torch.float64: torch.testing.assert_close(p, q, atol=1e-8, rtol=1e-7)


def test_a_step_may_be_taken_by_the_codec_or_by_critics_alone():
    critics = make_discriminators(DiscriminatorConfig(width=1/16, periods=(2,), fft_sizes=(512,)))
    judged, real, fake = Comparison(critics, LossConfig(), RATE), batch()[:, None], .5*batch(1)[:, None]
    losses = list(judged.compare(real, fake, codec=False))
    assert judged.gradient is None and len(losses) == 2 and {"loss_d"} <= judged.values.keys() and "mel_loss" not in judged.values
    assert list(judged.compare(real, fake, critics=False)) == [] and judged.gradient.shape == fake.shape and judged.values.keys() == {"mel_loss"}


# ---- resume

PHASES = {"gradient": {}, "ema, critics later": {"codebooks": {"mode": "ema"}, "discriminators": {"start": 3}},
          "balanced, critics alone": {"losses": {"balance": True, "stft": 1.}, "codebooks": {"restart_after": .5}, "discriminators": {"alone": 3}},
          "ema": {"codebooks": {"mode": "ema"}}, "balanced": {"losses": {"balance": True}}, "none": {"codebooks": {"mode": "none"}, "training": {"ema_decay": 0}}}
quick = list(PHASES)[:3]


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    "Folders of runs that nobody disturbed, by name"
    found = {}
    def run(name):
        if name not in found: found[name] = tmp_path_factory.mktemp("whole")/"run"; fit(settings(found[name], corpus, PHASES[name]))
        return found[name]
    return run


@pytest.mark.parametrize("name, at", [pytest.param(name, at, marks=[pytest.mark.slow]*(at != 2 or name not in quick)) for name in PHASES for at in (1, 2, 3)])
def test_four_steps_are_two_and_two(name, at, whole, corpus, tmp_path):
    "Weights, optimizers, average, codebooks, critics and history, to the bit"
    copy_run(whole(name), tmp_path/"part", at)
    result = fit(settings(tmp_path/"part", corpus, PHASES[name], {"training": {"save_every": "never"}}), "auto")
    assert (result.state, result.step) == ("completed", 4)
    assert state_of(last(tmp_path/"part")) == state_of(last(whole(name))) and rows(tmp_path/"part") == rows(whole(name))
    assert (tmp_path/"part"/"pytorch_model.bin").read_bytes() == (whole(name)/"pytorch_model.bin").read_bytes()


def test_published_names_and_nothing_else_beside_the_training(whole):
    run = whole(quick[1])
    tensors, metadata = read_checkpoint(last(run))
    model = SNAC(**TINY, attn_window_size=None, vq_strides=[4, 2, 1])
    assert {k: v.shape for k, v in tensors.items() if not k.startswith("training.")} == {k: tuple(v.shape) for k, v in model.state_dict().items()}
    state = training_of(last(run))
    assert state["task"].keys() == {"discriminators", "codebooks", "balancer"} and state["task"]["codebooks"].keys() == {"0", "1", "2"}
    assert json.loads(metadata["config"])["model"] == model.config
    assert from_pretrained(last(run)).config == model.config


def test_phases_are_what_their_names_say(whole):
    later, alone = (whole(name) for name in quick[1:])
    paths = lambda folder: [folder/f"snac_16khz_iter_{i}.safetensors" for i in (1, 2, 3, 4)]
    critics = lambda folder: [{k: np.asarray(v) for k, v in training_of(path)["task"]["discriminators"].items()} for path in paths(folder)]
    same = lambda states: [equal(a, b) for a, b in zip(states, states[1:])]
    assert same(critics(later)) == [True, True, False] and same(list(map(codec_of, paths(later)))) == [False]*3
    assert same(critics(alone)) == [False]*3 and same(list(map(codec_of, paths(alone)))) == [True, True, False]
    logged = [[row[3].keys() & {"loss_d", "mel_loss"} for row in rows(folder, ["log"])] for folder in (later, alone)]
    assert logged == [[{"mel_loss"}]*3 + [{"loss_d", "mel_loss"}], [{"loss_d"}]*3 + [{"loss_d", "mel_loss"}]]


def test_a_loop_of_your_own_is_gone_on_with(corpus, tmp_path):
    "Two steps by hand, saved, and two by the engine are four by hand"
    config = as_config(settings(tmp_path/"run", corpus, {"training": {"ema_decay": 0}}))
    data, _ = open_training_data(corpus, RATE, config.segment_samples/RATE, multiple=config.pad_multiple, validation_share=0)
    batches = [b["audio"] for b, _ in zip(make_loader(data, 2).batches(0, 0), range(2))]
    torch.manual_seed(0)
    networks = setup_models(config)
    optim_g, optim_d, *schedulers = setup_optimizers(*networks, config)
    for step in range(4):
        seed_step(0, step)
        train_step(batches[step % 2], *networks, optim_g, optim_d, "cpu", step, precision="float32")
        for scheduler in schedulers: scheduler.step()
        if step == 1: path = save_checkpoint(2, *networks, optim_g, optim_d, *schedulers, config, tmp_path/"run")
    assert path.name == "snac_16khz_iter_2.safetensors" and from_pretrained(tmp_path/"run").config == networks[0].config
    result = fit(config, path)  # the data begins anew: the same two batches
    assert result.step == 4 and equal(codec_of(last(tmp_path/"run")), {k: v.numpy() for k, v in networks[0].state_dict().items()})
    critics = nn.ModuleDict(zip(("mpd", "msd"), networks[1:])).state_dict()
    assert equal({k: np.asarray(v) for k, v in training_of(last(tmp_path/"run"))["task"]["discriminators"].items()}, {k: v.numpy() for k, v in critics.items()})


# ---- kill -9

def forked(*functions):
    "Processes that each run a function; without the seconds that imports take"
    pids = []
    for function in functions:
        if not (pid := os.fork()):
            code = 1
            try: function(); code = 0
            except BaseException: traceback.print_exc()
            finally: os._exit(code)
        pids.append(pid)
    return pids


def over(pid, seconds):
    "The exit code (minus the signal) of a process that ends in time; None if it goes on"
    until = time.monotonic()+seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found: return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until: return None
        time.sleep(.005)


def check_kills(corpus, tmp_path, kills, longest, more, whole):
    rng, killed, code = np.random.default_rng(0), 0, None
    while code is None:
        pid, = forked(lambda: fit(settings(tmp_path/"killed", corpus, more), "auto"))
        code = over(pid, rng.uniform(0, longest) if killed < kills else 120)
        if code is None: os.kill(pid, signal.SIGKILL); over(pid, 10); killed += 1
        if code is None and killed > kills: raise AssertionError("it never ends")
    assert code == 0
    assert state_of(last(tmp_path/"killed")) == state_of(last(whole)) and rows(tmp_path/"killed") == rows(whole)
    assert not list((tmp_path/"killed").rglob(".*tmp*"))
    for path in whole.glob("*[!0-9].safetensors"): assert path.read_bytes() == (tmp_path/"killed"/path.name).read_bytes() or path == last(whole)
    assert (tmp_path/"killed"/"pytorch_model.bin").read_bytes() == (whole/"pytorch_model.bin").read_bytes()
    return killed


def test_kill_9_at_random_instants(whole, corpus, tmp_path): assert check_kills(corpus, tmp_path, 3, 1., PHASES["gradient"], whole("gradient"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_9_fifty_times(corpus, tmp_path):
    killed = 0
    more = {"training": {"steps": 24, "keep_last": 3, "validate_every": "3 steps"}, "data": {"validation": .2, "validation_clips": 1, "validation_seconds": .2}, "codebooks": {"restart_after": 1.}}
    fit(settings(tmp_path/"whole", corpus, more))
    for round in range(5): (tmp_path/str(round)).mkdir(); killed += check_kills(corpus, tmp_path/str(round), 10, 3., more, tmp_path/"whole")
    assert killed >= 40


@pytest.mark.parametrize("call, count", [("replace", 1), *(pytest.param(call, n, marks=pytest.mark.slow) for call, counts in {"fsync": (1, 2, 3, 4, 5), "replace": (2,)}.items() for n in counts)])
def test_killed_while_saving(call, count, whole, corpus, tmp_path):
    "The checkpoint before is there, opens as a codec, and the run goes on from it to the same end"
    def die():  # at a call after the first checkpoint
        original, calls, first = getattr(os, call), [], tmp_path/"killed"/"snac_16khz_iter_1.safetensors"
        def counted(*args, **more):
            if first.exists() and (".safetensors" in str(args[0]) or call == "fsync"): calls.append(1)
            if len(calls) == count: os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **more)
        setattr(os, call, counted)
        fit(settings(tmp_path/"killed", corpus))
    assert over(*forked(die), 60) == -signal.SIGKILL
    found = CheckpointFolder(tmp_path/"killed").resolve("auto")
    assert found.stem.startswith("snac_16khz_iter_") and from_pretrained(tmp_path/"killed").codebook_size == 64
    before = training_of(found)["step"]
    assert 1 <= before < 4 and fit(settings(tmp_path/"killed", corpus), "auto").step == 4
    assert state_of(last(tmp_path/"killed")) == state_of(last(whole("gradient")))


# ---- several processes

class Noting(SnacTask):
    "Writes down which clips it saw"
    def __init__(self, config, seen): super().__init__(config); self.seen = seen
    def step(self, batch, loop):
        with open(f"{self.seen}.{loop.rank}", "a") as file: file.write(json.dumps([loop.step, loop.epoch, list(map(str, batch["id"]))])+"\n")
        return super().step(batch, loop)


def fit_noting(given, seen):
    config = as_config(given)
    return Trainer(Noting(config, str(seen)), config.training, RunFolder(config.paths.checkpoint_dir, checkpoints="."))


def two(function):
    "Process ids of two ranks that run a function"
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    def rank(number):
        def run():
            os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            function()
        return run
    return forked(rank(0), rank(1))


def curve(folder): return {(kind, step, name): value for kind, step, _, values in rows(folder) for name, value in values.items() if isinstance(value, float) and value == value}
QUIET = {"model": {"noise": False}, "training": {"batch_size": 4}}  # processes draw different noise


def same_curve(a, b, near=1e-4):
    one, other = curve(a), curve(b)
    assert one.keys() == other.keys() and len(one) > 20
    for key, value in one.items(): assert other[key] == pytest.approx(value, rel=near, abs=1e-5), key


@pytest.mark.parametrize("mode", ["gradient", pytest.param("ema", marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_does(mode, corpus, tmp_path):
    more = merged(QUIET, {"codebooks": {"mode": mode, "restart_after": 1.}, "training": {"steps": 3, "validate_every": "3 steps"}, "data": {"validation": .3, "validation_clips": 2, "validation_seconds": .2}})
    assert [over(pid, 120) for pid in two(lambda: fit(settings(tmp_path/"two", corpus, more)))] == [0, 0]
    fit(settings(tmp_path/"one", corpus, more))
    same_curve(tmp_path/"one", tmp_path/"two")
    weights = [codec_of(last(tmp_path/name)) for name in ("one", "two")]
    for name, value in weights[0].items(): np.testing.assert_allclose(weights[1][name], value, atol=2e-3, err_msg=name)
    copy_run(tmp_path/"two", tmp_path/"two then one", 2)
    fit(settings(tmp_path/"two then one", corpus, more), "auto")
    same_curve(tmp_path/"one", tmp_path/"two then one")


def check_seen(seen, rank_steps, items):
    found = {}
    for rank in (0, 1):
        for line in Path(f"{seen}.{rank}").read_text().splitlines(): step, epoch, ids = json.loads(line); found[rank, step] = epoch, ids  # after a kill a step is repeated
    assert {step for _, step in found} == set(range(rank_steps))
    for epoch in {epoch for epoch, _ in found.values()}:
        ids = [name for number, names in found.values() if number == epoch for name in names]
        assert len(ids) == len(set(ids)) == items, epoch


def streamed(tmp_path, epochs=1): return merged(QUIET, {"data": {"streaming": True}, "training": {"steps": 0, "epochs": epochs, "schedule": "constant"}}), parquet(tmp_path/"table", rows=4)


def test_two_processes_on_a_stream_are_killed_and_go_on(tmp_path):
    "Each clip once an epoch over both, and the curve of an unbroken run"
    more, table = streamed(tmp_path)
    whole = lambda: fit_noting(settings(tmp_path/"whole", table, more), tmp_path/"all").fit()
    assert [over(pid, 120) for pid in two(whole)] == [0, 0]
    check_seen(tmp_path/"all", 4, 16)
    part = lambda: fit_noting(settings(tmp_path/"run", table, more), tmp_path/"seen").fit("auto")
    pids, until = two(part), time.monotonic()+60
    while not (tmp_path/"run"/"snac_16khz_iter_2.safetensors").exists(): assert time.monotonic() < until; time.sleep(.01)
    for pid in pids: os.kill(pid, signal.SIGKILL)
    assert [over(pid, 10) for pid in pids] == [-signal.SIGKILL]*2
    assert [over(pid, 120) for pid in two(part)] == [0, 0]
    check_seen(tmp_path/"seen", 4, 16)
    assert rows(tmp_path/"run") == rows(tmp_path/"whole") and state_of(last(tmp_path/"run")) == state_of(last(tmp_path/"whole"))


@pytest.mark.slow
def test_processes_of_the_command_line(corpus, tmp_path):
    for name, words in (("one", []), ("two", ["--processes", "2"])):
        (tmp_path/f"{name}.json").write_text(json.dumps(settings(tmp_path/name, corpus, QUIET)))
        command = [sys.executable, "-m", "audiolab", "snac", "train", "--config", str(tmp_path/f"{name}.json"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    same_curve(tmp_path/"one", tmp_path/"two")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_torchrun_on_a_stream_is_killed_and_goes_on(tmp_path):
    more, table = streamed(tmp_path, 2)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    def start(name):
        (tmp_path/f"{name}.json").write_text(json.dumps(settings(tmp_path/name, table, more)))
        return subprocess.Popen([*launcher, str(tmp_path/f"{name}.json"), str(tmp_path/f"{name}.seen")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    process = start("whole"); assert process.wait(300) == 0, process.stderr.read()
    for stop_at in (2, 5):
        process, until = start("run"), time.monotonic()+120
        while not (tmp_path/"run"/f"snac_16khz_iter_{stop_at}.safetensors").exists(): assert time.monotonic() < until; time.sleep(.01)
        for pid in [*subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split(), process.pid]: os.kill(int(pid), signal.SIGKILL)
        process.communicate()
    process = start("run"); assert process.wait(300) == 0, process.stderr.read()
    for name in ("run", "whole"): check_seen(tmp_path/f"{name}.seen", 8, 16)
    assert rows(tmp_path/"run") == rows(tmp_path/"whole") and state_of(last(tmp_path/"run")) == state_of(last(tmp_path/"whole"))


# ---- fine-tuning

def published(place, package=False):
    "A codec as it is published, by us or by the package snac"
    torch.manual_seed(5)
    model = SNAC(**TINY, attn_window_size=None, vq_strides=[4, 2, 1])
    if not package: return save_pretrained(model, place)
    snac = pytest.importorskip("snac", reason="optional: needs the package snac")
    theirs = snac.SNAC(**model.config)
    place.mkdir()
    torch.save(theirs.state_dict(), place/"pytorch_model.bin")
    (place/"config.json").write_text(json.dumps(model.config))
    return place


@pytest.mark.parametrize("package", [pytest.param(False, marks=pytest.mark.slow), True], ids=["own", "package"])
def test_fine_tuning_keeps_tokens_and_opens_in_the_package(package, corpus, tmp_path, monkeypatch):
    snac = pytest.importorskip("snac", reason="optional: needs the package snac")
    source = published(tmp_path/"published", package)
    before = from_pretrained(source)
    more = {"fine_tuning": {"weights": str(source), "freeze_tokens": True}, "discriminators": {"alone": 1}, "training": {"validate_every": "4 steps", "ema_decay": .9},
            "data": {"validation": .3, "validation_clips": 1, "validation_seconds": .3}}
    given = settings(tmp_path/"tuned", corpus, more); del given["model"]  # the size is that of the weights
    trainer = snac_trainer(given); trainer.fit()
    assert equal(codec_of(tmp_path/"tuned"/"snac_16khz_iter_1.safetensors"), {k: v.numpy() for k, v in before.state_dict().items()})
    after, average = from_pretrained(tmp_path/"tuned"), trainer.loop.average
    audio = batch(size=1, samples=6400)[:, None]
    for model in (after, from_pretrained(last(tmp_path/"tuned"))):  # the average, and the weights of the last step
        moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before.state_dict()[k])}
        assert moved and all(name.startswith("decoder.") for name in moved)
        assert all(torch.equal(a, b) for a, b in zip(model.encode(audio), before.encode(audio)))
    final, best = (codec_of(tmp_path/"tuned"/f"{name}.safetensors") for name in ("model_final", "best_model"))
    with average.swapped(): live = {k: v.numpy().copy() for k, v in trainer.loop.modules["generator"].state_dict().items()}
    assert equal(final, live) and equal(best, final) and equal(final, {k: v.numpy() for k, v in after.state_dict().items()}) and not equal(final, codec_of(last(tmp_path/"tuned")))
    theirs = snac.SNAC.from_pretrained(str(tmp_path/"tuned"))
    codes = after.encode(audio)
    monkeypatch.setattr(torch, "randn", lambda shape, **kw: torch.zeros(shape, **kw))
    with torch.no_grad(): torch.testing.assert_close(theirs.decode(codes), after.decode(codes, noise=0), atol=1e-6, rtol=0)


def test_fine_tuning_of_everything_does_not_fill_codebooks_anew(corpus, tmp_path):
    source = published(tmp_path/"published")
    before = from_pretrained(source)
    fit(settings(tmp_path/"tuned", corpus, {"fine_tuning": {"weights": str(source)}, "training": {"steps": 1, "ema_decay": 0, "learning_rate": 1e-4}}))
    after = from_pretrained(tmp_path/"tuned")
    for a, b in zip(after.quantizer.quantizers, before.quantizer.quantizers):
        assert 0 < (a.codebook.weight-b.codebook.weight).abs().max() < 1e-3  # a small step, and no entry from elsewhere


# ---- bad input, by the command line

def refused(capsys, words, *args):
    "The one message that a command ends with"
    code = cli.main(["snac", "train", *map(str, args)])
    said = capsys.readouterr().err
    assert code == 2 and "Traceback" not in said, said
    assert all(word in " ".join(said.split()) for word in words), said


def write_config(tmp_path, data, *more):
    (tmp_path/"run.json").write_text(json.dumps(settings(tmp_path/"run", data, {"training": {"steps": 1}}, *more)))
    return "--config", tmp_path/"run.json"


def spoilt(place, make):
    place.mkdir()
    for number in range(3): make(place/f"{number}.wav")
    return place


BAD = {"silent": (lambda p: write_audio(p, np.zeros(RATE, np.float32), RATE), ["none of", "silent", "below -60 dB"]),
       "not numbers": (lambda p: soundfile.write(p, np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT"), ["none of"]),
       "unreadable": (lambda p: p.write_bytes(b"RIFF not a sound"), ["none of 3 files can be read"])}


@pytest.mark.parametrize("kind", BAD)
def test_nothing_that_can_be_used(kind, capsys, tmp_path):
    make, words = BAD[kind]
    refused(capsys, [*words, "0.wav"], *write_config(tmp_path, spoilt(tmp_path/"sound", make)))
    assert not list((tmp_path/"run").glob("*.safetensors"))


def test_data_that_is_not_there(capsys, tmp_path, corpus):
    (tmp_path/"empty").mkdir()
    refused(capsys, ["empty", "holds no sound", ".wav"], *write_config(tmp_path, tmp_path/"empty"))
    refused(capsys, ["nowhere", "no such file or folder"], *write_config(tmp_path, tmp_path/"nowhere"))
    refused(capsys, ["'speech'", "columns are", "audio", "audio_column"], *write_config(tmp_path, parquet(tmp_path/"table", 1), {"data": {"audio_column": "speech"}}))
    refused(capsys, ["batch_size"], *write_config(tmp_path, corpus, {"training": {"batch_size": 4000}}))


def test_an_empty_table(capsys, tmp_path):
    import datasets
    datasets.Dataset.from_dict({"audio": []}, features=datasets.Features({"audio": datasets.Audio(decode=False)})).to_parquet(tmp_path/"none.parquet")
    refused(capsys, ["none.parquet"], *write_config(tmp_path, tmp_path/"none.parquet"))


def test_wrong_settings(capsys, tmp_path, corpus):
    def file(text): (tmp_path/"run.yaml").write_text(text); return "--config", tmp_path/"run.yaml"
    refused(capsys, ["run.yaml:2:3", "training.lerning_rate", "Did you mean 'learning_rate'"], *file("training:\n  lerning_rate: 1.0\n"))
    refused(capsys, ["run.yaml:3:", "codebooks.mode", "gradient"], *file("\ncodebooks:\n  mode: kmeans\n"))
    refused(capsys, ["--training.batch-size", "0"], "--training.batch-size", "0")
    refused(capsys, ["24khz", "'24kHz'"], "--model", "24kHz")
    refused(capsys, ["ljspeech"], "--dataset", "ljspeach")
    refused(capsys, ["no interval"], *write_config(tmp_path, corpus, {"training": {"save_every": "often"}}))
    refused(capsys, ["mirror the rates"], *write_config(tmp_path, corpus, {"model": {"decoder_rates": [8, 8, 8, 2]}}))
    refused(capsys, ["best_metric", "loudness", "mel"], *write_config(tmp_path, corpus, {"training": {"best_metric": "loudness", "validate_every": "1 step"}, "data": {"validation": .3}}))
    refused(capsys, ["2560 samples are too few", "8192"], *write_config(tmp_path, corpus, {"discriminators": {"fft_sizes": [8192]}}))


def test_weights_and_checkpoints_of_something_else(capsys, tmp_path, corpus):
    refused(capsys, ["nothing", "no such file or folder"], *write_config(tmp_path, corpus), "--weights", tmp_path/"nothing")
    Trainer(Denoise(), engine_config(steps=1, save_every="never"), tmp_path/"denoise").fit()
    refused(capsys, ["a run of 'denoise', not one of 'snac'"], *write_config(tmp_path, corpus), "--resume", tmp_path/"denoise"/"checkpoints"/"checkpoint_final.safetensors")
    fit(settings(tmp_path/"wide", corpus, {"model": {"encoder_dim": 16}, "training": {"steps": 1}}))
    refused(capsys, ["another model", "'encoder_dim': 16", "tensors differ", "config.yaml"], *write_config(tmp_path, corpus), "--resume", last(tmp_path/"wide"))
    path = published(tmp_path/"published")/"pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:1000])
    refused(capsys, ["pytorch_model.bin", "cut off"], *write_config(tmp_path, corpus), "--weights", path.parent)


@pytest.mark.slow
def test_a_checkpoint_with_other_critics(capsys, tmp_path, corpus):
    fit(settings(tmp_path/"narrow", corpus, {"discriminators": {"width": 1/32}, "training": {"steps": 1}}))
    refused(capsys, ["narrow", "size mismatch"], *write_config(tmp_path, corpus), "--resume", last(tmp_path/"narrow"))


def test_eight_channels(tmp_path):
    (tmp_path/"sound").mkdir()
    for number in range(2): soundfile.write(tmp_path/"sound"/f"{number}.wav", np.stack([tone(number+c, .5) for c in range(8)], 1), RATE)
    result = fit(settings(tmp_path/"run", tmp_path/"sound", {"training": {"steps": 1}}))
    assert result.state == "completed"


# ---- of old, and compiled

def test_an_older_trainer_to_compare_with():
    with torch.device("meta"): sizes = [sum(p.numel() for p in SNAC(**make(legacy=True)).parameters()) for make in (create_snac_24khz_config, create_snac_44khz_config)]
    assert [round(n/1e6, 2) for n in sizes] == [41.07, 50.34]
    nets = party("none", discriminators={"legacy": True, "fft_sizes": [2048, 1024, 512]})
    for step, weight in ((499, 5.), (500, 15.)):
        values = train_step(batch(), *nets[:5], iteration=step, losses=LossConfig(legacy=True), codebooks=nets[5], precision="float32")
        assert (values["mel_weight"], values["stft_weight"]) == (weight, weight) and float(values["loss_g"]) > weight*float(values["mel_loss"]+values["stft_loss"])


@pytest.mark.slow
def test_a_run_of_the_older_trainer(corpus, tmp_path):
    old = {"encoder_rates": [3, 3, 7, 7], "decoder_rates": [7, 7, 3, 3], "attn_window_size": 4, "vq_strides": [2, 1]}
    more = {"model": old, "losses": {"legacy": True}, "discriminators": {"legacy": True, "fft_sizes": [2048, 1024, 512]}, "codebooks": {"mode": "none"}, "training": {"steps": 1}}
    assert fit(settings(tmp_path/"run", corpus, more)).state == "completed"
    logged = rows(tmp_path/"run", ["log"])[-1][3]
    assert {"mel_loss", "stft_loss", "loss_d"} <= logged.keys() and all(np.isfinite(v) for v in logged.values() if isinstance(v, float))


def test_data_for_a_loop_of_your_own(corpus, tmp_path):
    loader = setup_dataset(settings(tmp_path, corpus))
    found = next(iter(loader))
    assert found.shape == (2, 2560) and found.dtype == torch.float32 and len(loader) == 24
    more, table = streamed(tmp_path)
    assert sum(len(b) for b in setup_dataset(settings(tmp_path, table, more))) == 16


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_networks_learn_the_same(corpus, tmp_path):
    import shutil
    if not shutil.which("g++"): pytest.skip("needs g++ (Debian: apt-get install g++)")
    for name in ("plain", "compiled"): fit(settings(tmp_path/name, corpus, QUIET, {"training": {"compile": name == "compiled", "steps": 2}}))
    same_curve(tmp_path/"plain", tmp_path/"compiled", 1e-3)
    assert codec_of(last(tmp_path/"compiled")).keys() == codec_of(last(tmp_path/"plain")).keys()


if __name__ == "__main__":
    torch.set_num_threads(1)
    given, seen = sys.argv[1:]
    sys.exit(fit_noting(json.loads(Path(given).read_text()), seen).fit("auto").exit_code)
