"How codebooks move, are filled and start anew, by hand and against another package."
import copy

import numpy as np
import pytest
import torch

from audiolab.snac import CodebookTrainer, LevelDetails, ResidualVectorQuantize, codebook_use
from audiolab.training import WeightAverage


def details(rvq, z): return rvq(z, details=True)[1]
def distances(a, b): return (a.detach()[:, None]-b[None]).norm(dim=2)
def quantizer(size=16, strides=(2, 1), seed=0):
    torch.manual_seed(seed)
    return ResidualVectorQuantize(12, size, 4, list(strides))
def latent(seed, frames=8, batch=3):
    return torch.randn(batch, 12, frames, generator=torch.Generator().manual_seed(seed))
def rows_of(level): return level.latents.detach().transpose(1, 2).reshape(-1, 4)


def test_moving_averages_by_hand():
    rvq = quantizer()
    keeper = CodebookTrainer(rvq, "ema", decay=.8, restart_after=0, initialise=False)
    assert not any(q.codebook.weight.requires_grad for q in rvq.quantizers)
    sizes = [np.ones(16) for _ in range(2)]
    sums = [q.codebook.weight.numpy().astype(float).copy() for q in rvq.quantizers]
    for step in range(4):
        entries = [q.codebook.weight.numpy().copy() for q in rvq.quantizers]
        found = details(rvq, latent(step))
        keeper.update(found, step)
        for i, level in enumerate(found):
            rows, codes = rows_of(level).numpy(), level.codes.flatten().numpy()
            for k in range(16):
                mine = rows[codes == k]
                sizes[i][k] = .8*sizes[i][k] + .2*len(mine)
                sums[i][k] = .8*sums[i][k] + .2*mine.sum(0)
                if len(mine): entries[i][k] = sums[i][k]/sizes[i][k]
            weight = rvq.quantizers[i].codebook.weight.numpy()
            np.testing.assert_allclose(weight, entries[i], atol=1e-5)


def test_moving_averages_as_another_package_has_them():
    reason = "optional: needs the package vector-quantize-pytorch"
    vq = pytest.importorskip("vector_quantize_pytorch", reason=reason).VectorQuantize
    rvq = ResidualVectorQuantize(8, 8, 8, [1])
    theirs = vq(dim=8, codebook_size=8, decay=.9, eps=1e-9, commitment_weight=0.).train()
    noise = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    corners = torch.eye(8)*2 + .015*noise
    with torch.no_grad():
        rvq.quantizers[0].codebook.weight.copy_(corners)
        book = theirs._codebook
        book.embed.copy_(corners[None])
        book.embed_avg.copy_(corners[None])
        book.cluster_size.fill_(1)
    keeper = CodebookTrainer(rvq, "ema", decay=.9, restart_after=0, initialise=False)
    for step in range(5):
        rng = torch.Generator().manual_seed(step)
        rows = torch.eye(8)[torch.randint(8, (1, 30), generator=rng)]*2
        rows += .2*torch.randn(1, 30, 8, generator=rng)
        codes = theirs(rows)[1]
        keeper.update([LevelDetails(rows.transpose(1, 2), codes, None, None)], step)
        weight = rvq.quantizers[0].codebook.weight.detach()
        torch.testing.assert_close(weight, book.embed[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["gradient", "ema", "none"])
def test_initialisation_fills_with_latents(mode):
    rvq = quantizer(size=64)
    before = [q.codebook.weight.detach().clone() for q in rvq.quantizers]
    keeper, given = CodebookTrainer(rvq, mode, seed=3), [[], []]
    for step in range(8):
        found = details(rvq, latent(step))
        for seen, level in zip(given, found): seen.append(rows_of(level))
        keeper.update(found, step)
    for q, old, seen, level in zip(rvq.quantizers, before, given, keeper.levels):
        if mode == "none":
            assert torch.equal(q.codebook.weight, old)
            continue
        new = (q.codebook.weight != old).any(1)
        assert new.sum() > 32 and level.age.max() < 1e6  # all others were in use from the start
        nearest = distances(q.codebook.weight[new], torch.cat(seen)).min(1).values
        if mode == "gradient": assert (nearest < 1e-6).all()  # each is a latent that was there


def test_what_nobody_uses_starts_anew_also_in_the_average():
    rvq = quantizer(size=8, strides=[1])
    weight = rvq.quantizers[0].codebook.weight
    with torch.no_grad():
        weight.copy_(torch.randn(8, 4))
        weight[5:] = -50*torch.ones(3, 4) + torch.eye(3, 4)  # nothing is ever like the last three
    keeper = CodebookTrainer(rvq, restart_after=2., initialise=False)
    average = WeightAverage({"g": rvq}, .9)
    moved_at = None
    for step in range(8):  # 24 choices of 8 entries: three uses each step, were all alike
        z = latent(step).abs()
        found = details(rvq, z)
        rows = found[0].latents.detach().transpose(1, 2).reshape(-1, 4)
        old, old_average = weight.detach().clone(), average.of(weight).clone()
        unused = {*range(8)} - {*found[0].codes.flatten().tolist()}
        keeper.update(found, step, average)
        changed = (weight != old).any(1).nonzero()[:, 0].tolist()
        assert {*changed} <= unused  # what was just chosen is never taken away
        others = [k for k in range(8) if k not in changed]
        assert torch.equal(average.of(weight)[others], old_average[others])
        assert torch.equal(average.of(weight)[changed], weight[changed].detach())
        if changed and moved_at is None:
            moved_at = step
            assert (distances(weight[changed], rows).min(1).values < 1e-6).all()
    assert moved_at == 0  # three uses are more than two
    keeper = CodebookTrainer(rvq, restart_after=0, initialise=False)
    old = weight.detach().clone()
    for step in range(8): keeper.update(details(rvq, latent(step)), step)
    assert torch.equal(weight, old)  # never


def test_statistics_travel_and_do_not_touch_the_codec():
    rvq, other = quantizer(), quantizer(seed=1)
    names = list(rvq.state_dict())
    keeper = CodebookTrainer(rvq, "ema")
    for step in range(3): keeper.update(details(rvq, latent(step)), step)
    assert list(rvq.state_dict()) == names
    other.load_state_dict(rvq.state_dict())
    second = CodebookTrainer(other, "ema")
    second.load_state_dict(copy.deepcopy(keeper.state_dict()))
    for one, place in ((rvq, keeper), (other, second)):
        use = place.update(details(one, latent(9)), 9)
    states = [one.state_dict().values() for one in (rvq, other)]
    assert all(torch.equal(a, b) for a, b in zip(*states))
    assert set(use) == {f"{n}/{i}" for n in ("usage", "perplexity") for i in (0, 1)}
    state = keeper.state_dict()
    with pytest.raises(ValueError, match="of 2 codebooks do not fit 1"):
        CodebookTrainer(quantizer(strides=[1])).load_state_dict(state)
    with pytest.raises(ValueError, match="do not fit"):
        CodebookTrainer(quantizer(size=8)).load_state_dict(state)
    with pytest.raises(ValueError, match="'gradient' or 'ema'"): CodebookTrainer(rvq, "kmeans")


def test_usage_and_perplexity_by_hand():
    usage, perplexity = codebook_use(torch.tensor([2., 2., 0., 0.]))
    assert float(usage) == .5 and float(perplexity) == pytest.approx(2)
    assert float(codebook_use(torch.ones(10))[1]) == pytest.approx(10)
    assert float(codebook_use(torch.zeros(4))[0]) == 0
