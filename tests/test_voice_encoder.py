"Encoders of voices: padding that never leaks, whole styles out, files that say what they are"
import json

import numpy as np
import pytest
import torch

from audiolab.files import CheckpointError, read_checkpoint, write_checkpoint
from audiolab.voice import (
    EncoderSpec, Features, FeatureSpec, StyleSpace, TorchBasis, VoiceEncoder, fit_basis,
    frame_statistics, load_encoder, save_encoder, unit_rows, valid_mask,
)

SPACES = {True: StyleSpace("parametric", "1", (12, 16), (4, 8)),
          False: StyleSpace("kokoro", "1", (1, 32), (1, 32), unit=False)}
TRUNKS = {"convnext": {}, "cnn": {}, "transformer": {}, "ecapa": {}}
HEADS = "basis", "tokens", "flat"
SMALL = {"hidden_dim": 32, "num_layers": 2, "num_heads": 4}


def bases(space, voices=40):
    rng = np.random.default_rng(0)
    styles = {part: rng.standard_normal((1, *space.shape(part)))
              + .3*rng.standard_normal((voices, *space.shape(part))) for part in ("ttl", "dp")}
    if space.unit: styles = {part: unit_rows(rows) for part, rows in styles.items()}
    return [fit_basis(rows, 8, space.unit) for rows in styles.values()]


def encoder(trunk="convnext", head="basis", unit=True, seed=0, trained=True, **kw):
    "A small one; `trained` lets its last layers say something"
    space = SPACES[unit]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = VoiceEncoder(space, EncoderSpec(trunk, head=head, **SMALL | kw), *bases(space))
        if trained:
            for p in made.parameters():
                if p.ndim == 2 and not p.any(): torch.nn.init.normal_(p, std=.05)
    return made.eval()


def sounds(*lengths, rate=24_000):
    "A batch of noise, the shorter ones followed by what must not be heard"
    generator = torch.Generator().manual_seed(1)
    audio = torch.randn(len(lengths), max(lengths), generator=generator)*.1
    for row, length in zip(audio, lengths): row[length:] = 7
    return audio, torch.tensor(lengths)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("trunk", TRUNKS)
def test_padding_never_leaks(trunk, head):
    net = encoder(trunk, head)
    audio, lengths = sounds(30_000, 9001, 12_288, 200)
    with torch.no_grad():
        together = net(audio, lengths)
        for n, length in enumerate(lengths.tolist()):
            alone = net(audio[n:n + 1, :length], lengths[n:n + 1])
            for one, all_of_them in zip(alone, together):
                if one is not None: assert abs(one[0] - all_of_them[n]).max() <= 1e-5


@pytest.mark.parametrize("unit", SPACES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("trunk", TRUNKS)
def test_every_part_learns_and_rows_are_styles(trunk, head, unit):
    net = encoder(trunk, head, unit).train()
    heard = net(*sounds(20_000, 8000))
    space = SPACES[unit]
    for part in ("ttl", "dp"):
        rows = getattr(heard, part)
        assert rows.shape == (2, *space.shape(part)) and rows.dtype == torch.float32
        if unit: torch.testing.assert_close(rows.norm(dim=-1), torch.ones(rows.shape[:-1]))
        assert (getattr(heard, f"{part}_coefficients") is None) == (head != "basis")
    (heard.ttl.square()*torch.rand(heard.ttl.shape)).sum().backward(retain_graph=True)
    (heard.dp.square()*torch.rand(heard.dp.shape)).sum().backward()
    grads = {name: p.grad for name, p in net.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    still = [name for name, grad in grads.items() if name.startswith("trunk") and not grad.any()]
    assert len(still) <= 2  # a bias before a norm has no say


@pytest.mark.parametrize("head", HEADS)
def test_training_begins_at_the_mean_voice(head):
    net = encoder(head=head, trained=False)
    heard = net(*sounds(9000))
    for part, basis in zip(("ttl", "dp"), bases(SPACES[True])):
        mean = basis.decode(np.zeros(len(basis)))
        assert abs(getattr(heard, part)[0].detach().numpy() - mean).max() < 1e-6


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("samples", [1, 255, 257, 60*24_000])
def test_one_frame_and_a_minute_are_finite(trunk, samples):
    heard = encoder(trunk, hidden_dim=16, num_layers=1)(*sounds(samples))
    assert torch.isfinite(heard.ttl).all() and torch.isfinite(heard.dp).all()


def test_an_empty_or_silent_row_of_a_batch_is_finite():
    audio, _ = sounds(5000, 5000)
    audio[0] = 0
    heard = encoder()(audio, torch.tensor([5000, 0]))
    assert torch.isfinite(heard.ttl).all()


@pytest.mark.parametrize("audio, why", [
    (np.zeros(24_000), "is silent"), (np.full(24_000, .3), "is silent"), (np.ones((2, 9)), "mono"),
    (np.zeros(0), "not empty"), (np.array([0, np.nan, 1.]), "not finite")])
def test_where_nobody_is_heard_it_says_so(audio, why):
    with pytest.raises(ValueError, match=why): encoder().style(audio, 24_000)


def test_a_recording_of_another_rate_and_level_is_the_same_voice():
    t = np.arange(48_000)/48_000
    tone = sum(np.sin(2*np.pi*f*t)/f for f in range(150, 5000, 150)).astype(np.float32)
    net = encoder()
    one, other = net.style(tone, 48_000), net.style(tone[::2]*.1, 24_000)
    assert abs(one.ttl - other.ttl).max() < 2e-3
    assert not one.is_stack and one.space == net.space


def test_a_style_is_heard_in_eval_mode_and_training_goes_on():
    net = encoder("cnn", dropout=.5).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    one, other = (net.style(sounds(9000)[0][0], 24_000) for _ in range(2))
    assert net.training and (one.ttl == other.ttl).all()
    assert all((value == before[name]).all() for name, value in net.state_dict().items())


def test_a_seed_makes_the_same_encoder():
    one, other = (encoder(seed=4).state_dict() for _ in range(2))
    assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_settings_have_a_say_in_every_trunk(trunk):
    def size(**kw): return sum(p.numel() for p in encoder(trunk, trained=False, **kw).parameters())
    usual = size()
    assert size(hidden_dim=64) > usual and size(num_layers=3) > usual and size(num_heads=8) != usual
    assert size(features=FeatureSpec(n_mels=40)) < usual
    dropped = encoder(trunk, dropout=.9).train().ttl.layers
    assert any(isinstance(m, torch.nn.Dropout) and m.p == .9 for m in dropped)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_half_of_the_bits_are_enough(trunk):
    net, (audio, lengths) = encoder(trunk).train(), sounds(6000, 4000)
    with torch.autocast("cpu", torch.bfloat16): heard = net(audio, lengths)
    assert {each.dtype for each in heard} == {torch.float32}
    torch.testing.assert_close(heard.ttl.norm(dim=-1), torch.ones(heard.ttl.shape[:-1]))
    (heard.ttl[..., 0].sum() + heard.dp[..., 0].sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    with torch.no_grad(): exact = net(audio, lengths)
    assert abs(heard.ttl - exact.ttl).max() < .05


@pytest.mark.parametrize("unit", SPACES)
def test_a_basis_in_torch_is_the_basis(unit):
    basis = bases(SPACES[unit])[0]
    inside, drawn = TorchBasis(basis), np.random.default_rng(1).standard_normal((5, len(basis)))
    rows = basis.decode(drawn)
    assert abs(inside.decode(torch.from_numpy(drawn)).numpy() - rows).max() <= 1e-6
    assert abs(inside.encode(torch.from_numpy(rows)).numpy() - basis.encode(rows)).max() <= 1e-4
    assert abs(inside.basis().decode(drawn) - rows).max() <= 1e-6


@pytest.mark.parametrize("trunk, head, unit", [
    ("convnext", "basis", True), ("cnn", "flat", False), ("transformer", "tokens", True)])
def test_a_file_brings_the_encoder_back(trunk, head, unit, tmp_path):
    features = FeatureSpec(n_mels=40, f_max=7000.)
    net = encoder(trunk, head, unit, features=features)
    again = load_encoder(save_encoder(net, tmp_path/"best_model.safetensors"))
    assert (again.space, again.spec, again.notes()) == (net.space, net.spec, net.notes())
    audio = sounds(9000)[0][0]
    assert (again.style(audio, 24_000).ttl == net.style(audio, 24_000).ttl).all()
    assert not again.training and load_encoder(tmp_path).spec == net.spec


def changed_notes(path, change):
    tensors, notes = read_checkpoint(path)
    about = json.loads(notes["voice_encoder"])
    change(about)
    return write_checkpoint(path, tensors, {"voice_encoder": json.dumps(about)})


@pytest.mark.parametrize("why, change", {
    "hidden_dim": lambda o: o["spec"].update(hidden_dim=10**9),
    "trunk": lambda o: o["spec"].update(trunk="lstm"),
    "colour": lambda o: o["spec"].update(colour="blue"),
    "num_layers": lambda o: o["spec"].update(num_layers="2"),
    "settings": lambda o: o["spec"].update(num_layers=3),
    "basis of ttl": lambda o: o["space"].update(ttl_shape=[13, 16]),
    "f_max": lambda o: o["spec"]["features"].update(f_max=90_000.),
    "space": lambda o: o.pop("space")}.items())
def test_a_file_that_contradicts_itself_is_named(why, change, tmp_path):
    path = changed_notes(save_encoder(encoder(), tmp_path/"a.safetensors"), change)
    with pytest.raises(CheckpointError, match=rf"a\.safetensors: [\s\S]*{why}"): load_encoder(path)


def test_files_of_something_else_are_named(tmp_path):
    other = write_checkpoint(tmp_path/"b.safetensors", {"a": np.zeros(3)})
    with pytest.raises(CheckpointError, match="b.safetensors: .*no encoder"): load_encoder(other)
    (tmp_path/"c.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="c.pt: .*run code"): load_encoder(tmp_path/"c.pt")
    (tmp_path/"d").mkdir()
    with pytest.raises(CheckpointError, match="d: no encoder"): load_encoder(tmp_path/"d")
    with pytest.raises((CheckpointError, OSError), match="nothing.safetensors"):
        load_encoder(tmp_path/"nothing.safetensors")


def test_weights_that_are_not_finite_are_named(tmp_path):
    net = encoder()
    net.trunk.first.conv.bias.data[3] = torch.nan
    path = save_encoder(net, tmp_path/"a.safetensors")
    with pytest.raises(CheckpointError, match="trunk.first.conv.bias"): load_encoder(path)


def test_statistics_are_never_divided_by_nothing(tmp_path):
    net = encoder()
    net.statistics.scale[5] = 0
    path = save_encoder(net, tmp_path/"a.safetensors")
    with pytest.raises(CheckpointError, match="statistics.scale is not above 0"): load_encoder(path)


def test_the_licence_goes_along():
    space = StyleSpace("supertonic-3", "main", (12, 16), (4, 8))
    net = VoiceEncoder(space, EncoderSpec(**SMALL), *bases(space))
    assert "Open RAIL-M" in net.notes()["licence"]
    assert "licence" not in encoder().notes()


@pytest.mark.parametrize("settings", [
    {"hidden_dim": 7}, {"num_layers": 0}, {"dropout": 1.0}, {"components": 0}, {"num_heads": 100}])
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))): EncoderSpec(**settings)


def test_sizes_that_do_not_fit_are_refused():
    for trunk, why in (("transformer", "heads of attention"), ("ecapa", "eighths")):
        with pytest.raises(ValueError, match=why): encoder(trunk, hidden_dim=30, num_heads=4)


@pytest.mark.parametrize("settings", [
    {"f_max": 13_000.}, {"n_mels": 513}, {"hop_length": 2000}, {"floor": 0.}, {"scale": -1.},
    {"sample_rate": 0}, {"n_fft": 1023}])
def test_features_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match="is not possible"): FeatureSpec(**settings)


@pytest.mark.parametrize("spec", [FeatureSpec(), FeatureSpec(16_000, 512, 160, 400, 64, 50., 7e3)])
def test_features_do_not_know_of_padding_or_level(spec):
    audio, lengths = sounds(9000, 4321, 1)
    mel, mask = Features(spec)(audio, lengths)
    assert mask.sum(1).tolist() == spec.frames(lengths).tolist()
    assert not mel.mT[~mask].any()
    for n, length in enumerate(lengths.tolist()):
        alone, _ = Features(spec)(audio[n:n + 1, :length]*8, lengths[n:n + 1])
        assert abs(alone[0] - mel[n][:, mask[n]]).max() <= 1e-5


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
@pytest.mark.parametrize("pitch", [75., 110., 230., 420.])
def test_the_map_shows_the_pitch_of_a_buzz_at_every_rate(rate, pitch):
    frame = 2*(rate//47)
    spec = FeatureSpec(sample_rate=rate, n_fft=frame, hop_length=256, win_length=frame)
    audio = torch.sin(2*torch.pi*pitch*torch.arange(rate//2)/rate).sign()[None]
    heard, mask = Features(spec)(audio, torch.tensor([rate//2]))
    likely = heard[0, spec.n_mels:, 4:-4].mean(-1)
    found = 500*(60/500)**(int(likely.argmax())/(spec.n_lags - 1))
    assert abs(np.log2(found/pitch)) < 1/12


def test_silence_and_noise_have_no_pitch():
    audio = torch.stack([torch.zeros(24_000), torch.randn(24_000)*1e-3])
    heard, _ = Features()(audio, torch.tensor([24_000, 24_000]))
    assert abs(heard[0, 80:]).max() < 1e-5
    assert heard[1, 80:].mean(-1).max() < 1


def test_without_a_map_there_are_bands_alone():
    net = encoder(features=FeatureSpec(n_lags=0))
    heard, _ = net.features(*sounds(9000))
    assert heard.shape[1] == 80 and net(*sounds(9000)).ttl.isfinite().all()


@pytest.mark.parametrize("frames", [1, 2, 13, 40])
def test_statistics_count_the_frames_that_are_there(frames):
    x, mask = torch.randn(2, 3, 60), valid_mask(torch.tensor([60, frames]), 60)
    alone = frame_statistics(x[1:, :, :frames], mask[1:, :frames])
    assert abs(frame_statistics(x, mask)[1] - alone[0]).max() < 1e-5
    for n, step in enumerate((1, 4, 12)):
        moved = torch.zeros(3, 1)
        if frames > step: moved = x[1, :, step:frames] - x[1, :, :frames - step]
        wanted = moved.square().mean(-1).sqrt()
        assert abs(alone[0].view(5, 3)[2 + n] - wanted).max() < 1e-5
