"The codec's networks against the package snac; batches, pieces and noise to the bit of the whole."
import copy

import pytest
import torch

from audiolab.snac import (
    SNAC, SnacError, create_snac_24khz_config, create_snac_32khz_config, create_snac_44khz_config,
)

PUBLISHED = {
    "24khz": (create_snac_24khz_config, 19.84, 269),
    "32khz": (create_snac_32khz_config, 54.55, 286),
    "44khz": (create_snac_44khz_config, 54.55, 286),
}
PLAIN = dict(sampling_rate=24000, encoder_dim=8, encoder_rates=[2, 4, 8, 8], decoder_dim=64,
             decoder_rates=[8, 8, 4, 2], attn_window_size=None, codebook_size=64, codebook_dim=8,
             vq_strides=[4, 2, 1])
WINDOWED = dict(sampling_rate=44100, encoder_dim=4, encoder_rates=[2, 3, 8, 8], decoder_dim=64,
                decoder_rates=[8, 8, 3, 2], attn_window_size=32, codebook_size=64, codebook_dim=8,
                vq_strides=[8, 4, 2, 1])
ODD = dict(sampling_rate=16000, encoder_dim=4, encoder_rates=[3, 5, 7], decoder_dim=16,
           decoder_rates=[7, 5, 3], attn_window_size=None, codebook_size=16,
           vq_strides=[2, 1], noise=False, depthwise=False)
LAYOUTS = {"plain": PLAIN, "windowed": WINDOWED, "odd": ODD}
each = pytest.mark.parametrize("config", LAYOUTS.values(), ids=LAYOUTS)
both = pytest.mark.parametrize("config", [PLAIN, WINDOWED], ids=["plain", "windowed"])


def codec(config, seed=0, kind=torch.float32):
    "A codec with weights by chance"
    torch.manual_seed(seed)
    return SNAC(**config).to(kind).eval().requires_grad_(False)


def package(): return pytest.importorskip("snac", reason="optional: needs the package snac")
def twin(model):  # the package's codec with the same weights
    theirs = package().SNAC(**model.config)
    theirs.load_state_dict(model.state_dict())
    return theirs.eval()
def equal_all(a, b): return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
def sound(*shape, seed=0, kind=torch.float32):
    return .3*torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=kind)
def some_codes(model, frames, batch=1, seed=0):
    rng = torch.Generator().manual_seed(seed)
    sizes = [(batch, frames//stride) for stride in model.vq_strides]
    return [torch.randint(model.codebook_size, size, generator=rng) for size in sizes]
def cut(codes, model, first, last):
    return [c[:, first//s:last//s] for c, s in zip(codes, model.vq_strides)]
def silent(monkeypatch):  # noise off in the package
    monkeypatch.setattr(torch, "randn", lambda shape, **kw: torch.zeros(shape, **kw))


# ---- the package

@pytest.mark.parametrize("name", ["24khz", pytest.param("32khz", marks=pytest.mark.slow), "44khz"])
def test_names_order_shapes_and_counts_are_those_of_the_package(name):
    make, millions, tensors = PUBLISHED[name]
    with torch.device("meta"): theirs, ours = package().SNAC(**make()), SNAC(**make())
    def shapes(m): return [(key, tuple(v.shape), v.dtype) for key, v in m.state_dict().items()]
    assert shapes(ours) == shapes(theirs) and len(shapes(ours)) == tensors
    assert [k for k, _ in ours.named_parameters()] == [k for k, _ in theirs.named_parameters()]
    assert round(sum(p.numel() for p in ours.parameters())/1e6, 2) == millions


@each
def test_sound_codes_and_attributes_are_those_of_the_package(config, monkeypatch):
    ours = codec(config)
    theirs = twin(ours)
    for name in ("sampling_rate", "hop_length", "n_codebooks", "codebook_size", "codebook_dim",
                 "vq_strides", "latent_dim", "attn_window_size"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for length in (ours.pad_multiple, 77):
        audio = sound(2, 1, length, seed=length)
        assert torch.equal(ours.preprocess(audio), theirs.preprocess(audio))
        codes = ours.encode(audio)
        assert equal_all(codes, other := theirs.encode(audio))
        assert [c.dtype for c in codes] == [c.dtype for c in other]
        torch.manual_seed(3)
        mine, my_codes = ours(audio)
        torch.manual_seed(3)
        other, their_codes = theirs(audio)
        assert mine.shape == (2, 1, length) and mine.std() > 1e-4
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)
        assert equal_all(my_codes, their_codes) and equal_all(my_codes, codes)
        torch.manual_seed(4)
        mine = ours.decode(codes)
        torch.manual_seed(4)
        torch.testing.assert_close(mine, theirs.decode(codes), atol=1e-6, rtol=0)
        with monkeypatch.context() as quiet:
            silent(quiet)
            mine, other = ours.decode(codes, noise=0), theirs.decode(codes)
            torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)


@both
def test_gradients_are_those_of_the_package(config):
    ours = codec(config).requires_grad_(True)
    theirs = twin(ours).train()
    audio, weight = sound(1, 1, ours.pad_multiple), sound(1, 1, ours.pad_multiple, seed=1)
    for model in (ours, theirs):
        torch.manual_seed(0)
        (model(audio)[0]*weight).sum().backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        # straight through: the entries learn from other losses only
        if "codebook" in name: assert a.grad is None and b.grad is None
        else: assert (a.grad-b.grad).abs().max() <= 1e-5*b.grad.abs().max().clamp(min=1e-6), name


def test_half_precision_around_it_changes_no_code():
    model = codec(PLAIN)
    audio = sound(2, 1, 3*model.pad_multiple)
    codes = model(audio)[1]
    with torch.autocast("cpu", torch.bfloat16): assert equal_all(model(audio)[1], codes)


# ---- clips of several lengths

@both
def test_encoding_a_batch_gives_each_clip_its_codes(config):
    model = codec(config | {"codebook_size": 4096})
    pad = model.pad_multiple
    lengths = torch.tensor([3*pad, pad-7, 2*pad+1])
    batch = torch.zeros(3, 1, 3*pad)
    for clip, n in zip(batch, lengths.tolist()): clip[:, :n] = sound(1, n, seed=n)
    together, without, differ = model.encode(batch, lengths), model.encode(batch), 0
    for row, n in enumerate(lengths.tolist()):
        for level, alone in enumerate(model.encode(batch[row:row+1, :, :n])):
            assert torch.equal(together[level][row, :alone.shape[1]], alone[0]), (row, level)
            differ += int((without[level][row, :alone.shape[1]] != alone[0]).sum())
    assert differ  # so the lengths were needed


@both
def test_decoding_a_batch_gives_each_clip_its_sound(config):
    model = codec(config, kind=torch.float64)
    step = model.frame_multiple
    frames = torch.tensor([3*step, step, 2*step])
    codes = some_codes(model, 3*step, batch=3)
    for options in (dict(noise=0), dict(seed=7)):
        together = model.decode(codes, frames=frames, **options)
        without = model.decode(codes, **options)
        for row, n in enumerate(frames.tolist()):
            alone = model.decode([c[row:row+1] for c in cut(codes, model, 0, n)], **options)[0]
            found = together[row, :, :alone.shape[-1]]
            torch.testing.assert_close(found, alone, atol=1e-12, rtol=0)
            if row: assert (without[row, :, :alone.shape[-1]]-alone).abs().max() > 1e-6


# ---- pieces, noise, lengths

def pieces(model, codes, frames, size, context, **options):
    "Sound of codes, `size` frames at a time, each seen with its context"
    found, hop = [], model.hop_length
    for first in range(0, frames, size):
        left, right = max(0, first-context), min(frames, first+size+context)
        audio = model.decode(cut(codes, model, left, right), first_frame=left, **options)
        found.append(audio[..., (first-left)*hop:(min(first+size, frames)-left)*hop])
    return torch.cat(found, -1)


@both
def test_pieces_with_context_are_the_whole_and_with_less_are_not(config):
    model = codec(config, kind=torch.float64)
    step, context = model.frame_multiple, model.context_frames
    assert context == (12 if config is PLAIN else 64)
    frames = 7*step if config is WINDOWED else 48
    codes = some_codes(model, frames)
    for options in (dict(noise=0), dict(seed=5, noise=.3)):
        whole = model.decode(codes, **options)
        found = pieces(model, codes, frames, 2*step, context, **options)
        torch.testing.assert_close(found, whole, atol=1e-12, rtol=0)
        less = pieces(model, codes, frames, 2*step, context-step, **options)
        assert (less-whole).abs().max() > 1e-9


@both
def test_context_is_what_a_sample_depends_on(config):
    "The gradient of a frame's sound reaches no further than the context, but beyond one step less"
    model = codec(config, kind=torch.float64)
    step, context, hop = model.frame_multiple, model.context_frames, model.hop_length
    frames, reach = 2*context+4*step, []
    for at in (context+step, context+2*step-1):  # both ends of a step, or of a window
        z = sound(1, model.latent_dim, frames, kind=torch.float64).requires_grad_()
        model.decoder(z, noise=False)[..., at*hop:(at+1)*hop].sum().backward()
        touched = z.grad.abs().sum((0, 1)).nonzero()[:, 0]
        first = at//step*step  # pieces begin and end at steps
        reach += [first-int(touched[0]), int(touched[-1])-(first+step)+1]
    assert context-step < max(reach) <= context


def test_noise_is_a_function_of_seed_and_place():
    model = codec(PLAIN)
    codes = some_codes(model, 24)
    options = dict(seed=1), dict(seed=1), dict(seed=2), dict(noise=0)
    once, again, other, plain = (model.decode(codes, **o) for o in options)
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert torch.equal(plain, model.decode(codes, seed=9, noise=0))
    assert not torch.equal(model.decode(codes), model.decode(codes))  # without a seed it is fresh
    steps = [(model.decode(codes, seed=1, noise=n)-plain).std() for n in (.01, .1, 1.)]
    assert 0 < steps[0] < steps[1] < steps[2] and steps[0]*5 < steps[1]
    state = torch.get_rng_state()
    model.decode(codes, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    twice = model.decode([c.expand(2, -1) for c in codes], seed=1)
    # the same for each clip of a batch
    torch.testing.assert_close(twice, once.expand(2, -1, -1), atol=1e-5, rtol=0)


def test_length():
    model = codec(PLAIN)
    codes = model.encode(sound(1, 1, 5000))
    whole = model.decode(codes, seed=0)
    assert whole.shape[-1] == 3*model.pad_multiple
    for length in (5000, 1, whole.shape[-1]):
        found = model.decode(codes, length=length, seed=0)
        assert found.shape == (1, 1, length) and torch.equal(found, whole[..., :length])


# ---- errors

GOOD = [[0]*2, [0]*4, [0]*8]
@pytest.mark.parametrize("codes, words", [
    (GOOD[:2], "codes of 3 levels, coarse first, found 2"),
    (GOOD + [[0]*8], "codes of 3 levels, coarse first, found 4"),
    (GOOD[::-1], "do not fit levels of the strides"),
    ([[0]*2, [0]*4, [0]*7], "do not fit"), ([[], [], []], "do not fit"),
    ([[0]*2, [0, 0, 64, 0], [0]*8], "level 1 has codes from 0 to 64; this codec has 0 to 63"),
    ([[-1, 0], [0]*4, [0]*8], "level 0 has codes from -1 to 0")])
def test_codes_that_are_not_of_this_codec(codes, words):
    codes = [torch.tensor([c], dtype=torch.int64) for c in codes]
    with pytest.raises(SnacError, match=words): codec(PLAIN).decode(codes)


def test_codes_of_another_shape():
    model = codec(PLAIN)
    flat = [torch.zeros(n, dtype=torch.int64) for n in (2, 4, 8)]
    uneven = [torch.zeros(b, n, dtype=torch.int64) for b, n in ((1, 2), (2, 4), (2, 8))]
    for codes in (flat, uneven):
        with pytest.raises(SnacError, match="do not fit"): model.decode(codes)
    model = codec(WINDOWED)
    with pytest.raises(SnacError, match="16 latent frames; this codec needs a multiple of 32"):
        model.decode(some_codes(model, 16))


@pytest.mark.parametrize("changes, words", [
    (dict(decoder_rates=[8, 8, 4, 4]), "mirror the rates"),
    (dict(latent_dim=100), "latent_dim is 128 with this encoder, not 100"),
    (dict(vq_strides=[1, 2, 4]), "coarse to fine"),
    (dict(vq_strides=[4, 3, 1]), "each dividing the first"),
    (dict(attn_window_size=32, encoder_dim=6), "heads of 64")])
def test_layouts_that_cannot_be(changes, words):
    with pytest.raises(SnacError, match=words): SNAC(**PLAIN | changes)


def test_folding_makes_a_copy_with_the_same_sound():
    model = codec(WINDOWED)
    before, audio = copy.deepcopy(model.state_dict()), sound(1, 1, model.pad_multiple)
    plain = model.fold_weight_norm()
    assert equal_all(before.values(), model.state_dict().values())
    assert not any("parametrizations" in key for key in plain.state_dict())
    codes = model.encode(audio)
    assert all(torch.equal(a, b) for a, b in zip(plain.encode(audio), codes))
    found, wanted = (o.decode(codes, seed=0) for o in (plain, model))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
