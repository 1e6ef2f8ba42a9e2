"""The vocoder: formats, Griffin-Lim, the network, its file, its training on the loop, its commands"""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolab.audio import read_audio, resample, write_audio
from audiolab.files import CheckpointError, read_checkpoint, write_checkpoint
from audiolab.config import config_cli, load_config, save_config
from audiolab.audio import instrument_corpus
from audiolab.data import scan_audio, split_clips
from audiolab.training import read_history
from audiolab.training import TrainingConfig, check_task
from audiolab.vocoder import MelFormat, MelVocoder, Vocoder, VocoderError, VocoderModel, griffin_lim
from audiolab.vocoder.phase_iteration import band_tables
from audiolab.vocoder import (
    ResynthConfig, SpectralLoss, VocoderConfig, VocoderTask, train_vocoder,
    vocoder_apply_command, vocoder_train_command, vocoder_trainer,
)

MEL = MelFormat(n_mels=40, n_fft=512, hop_length=128)
TINY = VocoderModel(width=12, hidden=24, blocks=1, draft_rounds=2, polish_rounds=1, extra_rounds=2)


def vowel(seconds=1., rate=16000, pitch=120., seed=0):
    "Pulses through two resonances, with a moving pitch"
    n, rng = int(seconds*rate), np.random.default_rng(seed)
    phase = np.cumsum(pitch*(1+.2*np.sin(2*np.pi*1.5*np.arange(n)/rate)))/rate
    x = sum(np.cos(2*np.pi*k*phase)/(1+abs(k*pitch-700)/300) for k in range(1, 30))
    return (.08*x+.003*rng.standard_normal(n)).astype(np.float32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    for i in range(6): write_audio(folder/f"{i}.wav", vowel(1.5, pitch=90+25*i, seed=i), 16000)
    return folder


@pytest.fixture(scope="module")
def parts(clips): return split_clips(scan_audio(clips)[0], validation=.2, seed=0)


def settings(folder, **changes):
    training = dict(steps=6, batch_size=4, device="cpu", log_every=1, validate_every="6 steps",
                    sample_every="never", save_every="never", warmup=.3, clip_norm=5.)
    training |= {k: changes.pop(k) for k in list(changes)
                 if k in TrainingConfig.__dataclass_fields__}
    return VocoderConfig(output=str(folder), mel=MEL, model=TINY, segment_seconds=.4,
                         windows=(512, 256), training=TrainingConfig(**training), **changes)


# --- the format and the classical method

@pytest.mark.parametrize("changes", [dict(n_fft=511), dict(n_fft=8), dict(hop_length=0),
                                     dict(hop_length=513), dict(n_mels=0), dict(n_mels=600),
                                     dict(f_min=9000.), dict(f_max=8001.), dict(f_min=-1.),
                                     dict(sample_rate=0), dict(n_fft=10**9)])
def test_impossible_formats_are_refused(changes):
    with pytest.raises(VocoderError, match="no possible format"): MelFormat(**changes)


@pytest.mark.parametrize("model", [dict(width=0), dict(kernel=4), dict(blocks=65),
                                   dict(draft_rounds=-1), dict(hidden=10**9)])
def test_impossible_models_are_refused(model):
    with pytest.raises(VocoderError, match="no possible model"): VocoderModel(**model)


@pytest.mark.parametrize("mel", [MelFormat(), MEL, MelFormat(24000, f_max=8000.),
                                 MelFormat(22050, 80, 1024, 256, 0., 8000.),
                                 MelFormat(16000, 100, 640, 160, 50., 7600.),
                                 MelFormat(8000, 128, 256, 64)], ids=str)
def test_tables_are_finite_and_levels_spread_back(mel):
    filters, inverse, spread, bandwidth = band_tables(mel, torch.device("cpu"))
    assert all(torch.isfinite(t).all() for t in (filters, inverse, spread, bandwidth))
    np.testing.assert_allclose(spread.sum(1), 1, rtol=1e-5)  # a flat spectrum stays flat
    assert torch.isfinite(griffin_lim(mel(torch.from_numpy(vowel(.3, mel.sample_rate))),
                                      mel, 3)).all()
    out = Vocoder(mel, TINY)(mel(torch.from_numpy(vowel(.3, mel.sample_rate)))[None])
    assert torch.isfinite(out).all()


def test_griffin_lim_equals_a_plain_numpy_implementation():
    "The method of 1984, written out with scipy's transforms"
    from scipy.signal import get_window
    mel, x = MEL, vowel(.5)
    L = mel(x)
    window, hop, n = get_window("hann", mel.n_fft), mel.hop_length, mel.n_fft
    T = (L.shape[1]-1)*hop
    def forward(y):
        y = np.pad(y, n//2)
        return np.stack([np.fft.rfft(y[i*hop:i*hop+n]*window) for i in range(L.shape[1])], 1)
    def backward(X):
        y, total = np.zeros(T+n), np.zeros(T+n)
        for i in range(X.shape[1]):
            y[i*hop:i*hop+n] += np.fft.irfft(X[:, i])*window
            total[i*hop:i*hop+n] += window**2
        return (y/np.maximum(total, 1e-11))[n//2:n//2+T]
    magnitude = np.maximum(np.linalg.pinv(
        band_tables(mel, torch.device("cpu"))[0].double().numpy())@np.exp(L.double().numpy()), 1e-6)
    phase = np.where(np.arange(n//2+1) % 2, -1., 1.)[:, None]*np.ones_like(magnitude)
    for _ in range(3):
        now = forward(backward(magnitude*phase))
        phase = now/(np.abs(now)+1e-5)
    found = griffin_lim(L, mel, 3, momentum=0, follow_mel=False).numpy()
    assert np.abs(found-backward(magnitude*phase)).max() < 2e-3*np.abs(found).max()


def test_more_rounds_and_following_the_mel_come_nearer():
    L = MEL(vowel(1.))
    def error(**kw):
        return float((MEL(griffin_lim(L, MEL, **kw))-
                      L[:, :MEL(griffin_lim(L, MEL, **kw)).shape[1]]).abs().mean())
    few, many, plain = error(rounds=2), error(rounds=40), error(rounds=40, follow_mel=False)
    assert many < .7*few and many < plain


def test_griffin_lim_is_deterministic_and_batches_do_not_mix():
    L = torch.stack([MEL(vowel(.4, seed=i, pitch=100+40*i)) for i in range(3)])
    both = griffin_lim(L, MEL, 5)
    assert torch.equal(both, griffin_lim(L, MEL, 5))
    np.testing.assert_allclose(both[1], griffin_lim(L[1], MEL, 5), atol=1e-4)


# --- the network

def test_shapes_lengths_and_determinism():
    torch.manual_seed(0)
    vocoder = MelVocoder(Vocoder(MEL, TINY))
    L = MEL(vowel(.5))
    assert L.shape == (40, 63)
    assert vocoder(L).shape == (62*128,) and vocoder(L[None].expand(3, -1, -1)).shape == (3, 62*128)
    assert vocoder(L.numpy()).shape == (62*128,)
    assert vocoder(L, length=8000).shape == (8000,) and vocoder(L, length=5).shape == (5,)
    assert torch.equal(vocoder(L), vocoder(L))
    assert torch.equal(vocoder(L, length=8000)[:61*128], vocoder(L)[:61*128])
    state = torch.random.get_rng_state()
    vocoder(L)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("samples", [1, 5, 127, 128, 129, 1000, 12345])
def test_resynthesis_keeps_every_length(samples):
    vocoder = MelVocoder(Vocoder(MEL, TINY))
    x = torch.randn(2, samples)*.1
    assert vocoder.resynthesize(x, 16000).shape == (2, samples)
    assert vocoder.resynthesize(x[0].numpy(), 16000).shape == (samples,)


@pytest.mark.parametrize("at_once", [25, 37, 200, 399])
def test_pieces_make_the_same_sound(at_once):
    torch.manual_seed(0)
    vocoder = MelVocoder(Vocoder(MEL, replace(TINY, blocks=2, polish_rounds=2)))
    L = MEL(vowel(3.3))
    whole = vocoder(L, length=len(vowel(3.3)))
    assert float((vocoder(L, length=len(whole), frames_at_once=at_once)-
                  whole).abs().max()) < 1e-3*float(whole.abs().max())
    assert vocoder(L, length=1000, frames_at_once=at_once).shape == (1000,)


def test_silence_and_extremes_stay_finite():
    vocoder = MelVocoder(Vocoder(MEL, TINY))
    silent = vocoder.resynthesize(torch.zeros(4000), 16000)
    assert torch.isfinite(silent).all() and silent.abs().max() < 1e-2
    for x in (torch.ones(4000), torch.zeros(4000).index_fill(0, torch.tensor(2000), 1.),
              torch.randn(4000)):
        assert torch.isfinite(vocoder.resynthesize(x, 16000)).all()
    net, loss = Vocoder(MEL, TINY), SpectralLoss(16000, (512, 256))
    audio = torch.stack([torch.zeros(8192), torch.from_numpy(vowel(.512))])
    loss(audio, net(MEL(audio))).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


BAD = [(lambda L: L[:39], "40, F"), (lambda L: torch.cat([L, L]), "40, F"), (lambda L: L[0], "40, F"), (lambda L: L[None, None], "40, F"),
       (lambda L: L.int(), "floating point"), (lambda L: L[:, :0], "no frames"),
       (lambda L: L[:, :1], "1 frame"),
       (lambda L: L.clone().index_fill_(1, torch.tensor(3), float("nan")), "NaN"),
       (lambda L: L.clone().index_fill_(1, torch.tensor(3), float("inf")), "infinite"),
       (lambda L: 100*L.exp(), "natural logarithm")]

@pytest.mark.parametrize("change, words", BAD)
def test_what_is_no_mel_is_refused(change, words):
    with pytest.raises(VocoderError, match=words):
        MelVocoder(Vocoder(MEL, TINY))(change(MEL(vowel(.2))))


def test_other_bad_calls_are_refused():
    vocoder, L = MelVocoder(Vocoder(MEL, TINY)), MEL(vowel(.2))
    for call, words in [(lambda: vocoder(L, length=0), "length=0"),
                        (lambda: vocoder(L, length=10**6), "length=1000000"),
                        (lambda: vocoder(L, frames_at_once=0), "frames_at_once"),
                        (lambda: vocoder.resynthesize(np.zeros(100), 22050), "22050 Hz"),
                        (lambda: vocoder.resynthesize(np.full(100, np.nan), 16000), "finite"),
                        (lambda: vocoder.resynthesize(np.zeros(0), 16000), "not empty"),
                        (lambda: griffin_lim(L[:5], MEL), "40, F")]:
        with pytest.raises(VocoderError, match=words): call()


# --- the file

def test_save_and_load_are_exact(tmp_path):
    torch.manual_seed(1)
    vocoder = MelVocoder(Vocoder(MEL, TINY))
    again = MelVocoder.load(vocoder.save(tmp_path/"v.safetensors"))
    L = MEL(vowel(.3))
    assert torch.equal(vocoder(L), again(L)) and again.mel == MEL and again.net.settings == TINY
    assert again.sample_rate == 16000
    assert again.save(tmp_path/"w.safetensors").read_bytes() == (
        tmp_path/"v.safetensors").read_bytes()


def test_files_of_something_else_are_refused(tmp_path):
    vocoder = MelVocoder(Vocoder(MEL, TINY))
    tensors, metadata = read_checkpoint(vocoder.save(tmp_path/"v.safetensors"))
    config = json.loads(metadata["config"])
    huge = {"mel": config["mel"], "model": {**config["model"], "width": 4096, "hidden": 16384, "blocks": 64}}
    cases = {"nothing": ({}, {}), "no_config": (tensors, {}),
             "bad_json": (tensors, {"config": "{"}), "list": (tensors, {"config": "[]"}),
             "no_model": (tensors, {"config": json.dumps({"mel": config["mel"]})}),
             "text": (tensors, {"config": json.dumps({**config, "mel": {**config["mel"], "n_fft": "x"}})}),
             "huge": (tensors, {"config": json.dumps(huge)}),
             "wider": (tensors, {"config": json.dumps({**config, "model": {**config["model"], "width": 13}})}),
             "less": (dict(list(tensors.items())[1:]), metadata), "nan": ({**tensors, "vocoder.out.bias": np.full_like(tensors["vocoder.out.bias"], np.nan)}, metadata),
             "dtype": ({**tensors,
                        "vocoder.out.bias": tensors["vocoder.out.bias"].astype(np.float64)},
                        metadata)}
    for name, (some, notes) in cases.items():
        write_checkpoint(tmp_path/f"{name}.safetensors", some, notes)
        with pytest.raises(CheckpointError, match=f"{name}.safetensors"): MelVocoder.load(tmp_path/f"{name}.safetensors")
    raw = bytearray((tmp_path/"v.safetensors").read_bytes())
    raw[-3] ^= 1
    (tmp_path/"flipped.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError): MelVocoder.load(tmp_path/"flipped.safetensors")


# --- the loss and the task

def test_the_loss_is_a_distance():
    loss, x = SpectralLoss(16000), torch.from_numpy(vowel(.5))[None]
    assert float(loss(x, x)) == 0
    near, far = (
        float(loss(x, x+level*torch.randn(x.shape, generator=torch.Generator().manual_seed(0))))
        for level in (.001, .1))
    assert 0 < near < far and float(loss(x, -x)) < 1e-5  # the sign of a wave is not heard
    y = (.5*x).requires_grad_()
    loss(x, y).backward()
    assert torch.isfinite(y.grad).all() and y.grad.abs().sum() > 0


def test_the_step_depends_on_its_data(parts, tmp_path):
    found = check_task(VocoderTask(settings(tmp_path), parts), settings(tmp_path).training)
    assert found["loss"][0] != found["loss"][1]


@pytest.fixture(scope="module")
def unbroken(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return train_vocoder(settings(folder), parts)


def outcome(folder):
    rows = [(row["step"], row["kind"], row["values"]["loss"]) for row in read_history(folder)
            if row["kind"] in ("log", "validation")]
    return {name: t.tobytes() for name,
            t in read_checkpoint(Path(folder)/"model_final.safetensors")[0].items()}, rows


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(stop, unbroken, parts, tmp_path):
    trainer = vocoder_trainer(settings(tmp_path), parts)
    trainer.listeners.append(lambda event: event.kind == "log" and event.step >= stop
                             and trainer.control.stop())
    first = trainer.fit()
    assert first.state == "stopped" and stop <= first.step < 6
    second = train_vocoder(settings(tmp_path, resume="auto"), parts)
    assert second.state == "completed" and outcome(tmp_path) == outcome(unbroken.folder)


def test_a_run_leaves_a_vocoder(unbroken):
    final = MelVocoder.load(unbroken.folder/"model_final.safetensors")
    L = MEL(vowel(.3))
    # also of a full checkpoint
    for name in ("best_model.safetensors", "checkpoints/checkpoint_final.safetensors"):
        assert torch.equal(MelVocoder.load(unbroken.folder/name)(L), final(L))
    assert str(unbroken.folder) not in str(read_checkpoint(unbroken.folder/"model_final.safetensors")[1])  # no names of folders


def test_another_size_cannot_be_resumed(unbroken, parts, tmp_path):
    other = settings(tmp_path, resume=str(unbroken.folder/"checkpoints/checkpoint_final.safetensors"))
    other.model = replace(TINY, width=16)
    with pytest.raises(CheckpointError, match="another model"): train_vocoder(other, parts)


def test_training_makes_copies_better(parts, tmp_path):
    config = settings(tmp_path, steps=60, batch_size=4, learning_rate=5e-3, validate_every="30 steps")
    config.model = replace(TINY, width=32, hidden=64)
    train_vocoder(config, parts)
    trained = MelVocoder.load(tmp_path/"model_final.safetensors")
    torch.manual_seed(0)
    untrained, loss = MelVocoder(Vocoder(MEL, config.model)), SpectralLoss(16000, config.windows)
    x = torch.from_numpy(parts["validation"].read(0)[0])
    before, after = (float(loss(x[None], v.resynthesize(x, 16000)[None]))
                     for v in (untrained, trained))
    assert after < .92*before
    mel_before, mel_after = (float((MEL(v.resynthesize(x, 16000))-MEL(x)).abs().mean())
                             for v in (untrained, trained))
    assert mel_after < mel_before


def test_samples_and_no_validation(parts, tmp_path):
    config = settings(tmp_path/"a", steps=2, sample_every="2 steps", validate_every="2 steps")
    train_vocoder(config, parts)
    names = sorted(path.name for path in (tmp_path/"a/samples").iterdir())
    assert names and all(name.endswith(".wav") for name in names)
    assert any("reference" in name for name in names)
    assert train_vocoder(settings(tmp_path/"b", steps=2, validation=0.),
                         {"train": parts["train"]}).state == "completed"


# --- configuration and commands

def test_configuration_round_trip(tmp_path):
    config = settings(tmp_path, folders=("a", "b"))
    save_config(config, tmp_path/"c.yaml")
    assert load_config(VocoderConfig, tmp_path/"c.yaml").config == config
    flags = config_cli(VocoderConfig, ["--folders", "x", "--model.width", "64", "--mel.n-mels", "40", "--training.steps", "7"]).config
    assert (flags.folders, flags.model.width, flags.mel.n_mels,
            flags.training.steps) == (("x",), 64, 40, 7)
    assert "x" in flags.plan() and flags.training.batch_size == 8


def test_bad_folders_are_named(tmp_path):
    (tmp_path/"empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        VocoderConfig(folders=(str(tmp_path/"empty"),)).clips()
    with pytest.raises(ValueError, match="missing"):
        VocoderConfig(folders=(str(tmp_path/"missing"),)).clips()


def test_train_and_resynth_commands(clips, tmp_path):
    assert vocoder_train_command(settings(tmp_path/"run", folders=(str(clips),), steps=2)) == 0
    model = str(tmp_path/"run/model_final.safetensors")
    (tmp_path/"in/deep").mkdir(parents=True)
    stereo = np.stack([vowel(.4, 22050), vowel(.4, 22050, 200.)])
    write_audio(tmp_path/"in/a.flac", vowel(.4), 16000)
    write_audio(tmp_path/"in/loud.wav", np.sign(vowel(.4)), 16000)
    write_audio(tmp_path/"in/deep/b.wav", stereo, 22050)
    (tmp_path/"in/bad.wav").write_bytes(b"RIFF")
    assert vocoder_apply_command(ResynthConfig(str(tmp_path/"in"), str(tmp_path/"out"), model)) == 2
    one, rate = read_audio(tmp_path/"out/a.wav")
    two, _ = read_audio(tmp_path/"out/deep/b.wav")
    assert rate == 16000 and one.shape == (1, 6400)
    assert two.shape == (2, resample(stereo, 22050, 16000).shape[1])
    assert not (tmp_path/"out/bad.wav").exists()
    # turned down, not clipped
    assert .99 < np.abs(read_audio(tmp_path/"out/loud.wav")[0]).max() <= 1
    assert vocoder_apply_command(ResynthConfig(str(tmp_path/"in/a.flac"), str(tmp_path/"one.flac"),
                                               model)) == 0
    np.testing.assert_allclose(read_audio(tmp_path/"one.flac")[0], one, atol=1e-4)


def test_resynth_refuses_to_harm(tmp_path):
    write_audio(tmp_path/"a.wav", vowel(.2), 16000)
    write_audio(tmp_path/"a.flac", vowel(.2), 16000)
    for source, target, words in [(tmp_path/"a.wav", tmp_path/"a.wav", "overwritten"),
                                  (tmp_path, tmp_path/"out", "two files")]:
        with pytest.raises(VocoderError, match=words):
            ResynthConfig(str(source), str(target)).jobs()
    (tmp_path/"none").mkdir()
    with pytest.raises(VocoderError, match="no audio"):
        ResynthConfig(str(tmp_path/"none"), "x").jobs()
    with pytest.raises(CheckpointError):
        vocoder_apply_command(ResynthConfig(str(tmp_path/"a.wav"), str(tmp_path/"b.wav"),
                                            str(tmp_path/"no.safetensors")))


@pytest.mark.slow
def test_a_longer_run_beats_griffin_lim_on_clips_it_never_heard(tmp_path):
    "600 steps on music: mel, STFT and log-spectral distances below the plain method's 60 rounds"
    from audiolab.measure import measure_distances
    instrument_corpus(tmp_path/"music", n_files=None, seconds=180)
    config = VocoderConfig(folders=(str(tmp_path/"music"),), output=str(tmp_path/"run"))
    config.training = replace(config.training, steps=600, device="cpu", sample_every="never")
    held = config.clips()["validation"]
    train_vocoder(config)
    vocoder, rows = MelVocoder.load(tmp_path/"run/model_final.safetensors"), []
    for i in range(min(4, len(held))):
        x = held.read(i)[0]
        L = config.mel(x)
        rows.append([measure_distances(x, y, 16000, listeners=())
                     for y in (griffin_lim(L, config.mel, 60, follow_mel=False, length=len(x)),
                               vocoder(L, len(x)))])
    for column in ("mel distance", "multi-scale STFT distance", "STFT distance", "log-spectral distance (dB)"):
        plain, ours = (np.mean([row[i][column] for row in rows]) for i in (0, 1))
        assert ours < plain, column
