"What guessed styles cost: nothing for the truth, one for the mean voice, the original's to the letter"
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional

from audiolab.voice import (
    ParametricStyles, StyleLoss, contrast, disagreement, draw_factors, fit_basis, same_voice,
    style_variance, unit_rows,
)


class Guess(NamedTuple):
    ttl: torch.Tensor
    dp: torch.Tensor
    ttl_coefficients: torch.Tensor | None = None
    dp_coefficients: torch.Tensor | None = None


@pytest.fixture(scope="module", params=["unit rows", "rows of any length"])
def voices(request):
    "Bases, true rows, and the guess of a model that has learned nothing."
    if request.param == "unit rows":
        styles = ParametricStyles().encode(*draw_factors(300, np.random.default_rng(0)))
        parts, unit = {"ttl": styles.ttl, "dp": styles.dp}, True
    else:
        rng, unit = np.random.default_rng(1), False
        mixed = [rng.standard_normal((300, 12)) @ rng.standard_normal((12, 128))/8 for _ in "12"]
        parts = {name: (2 + x)[:, None].astype(np.float32) for name, x in zip(("ttl", "dp"), mixed)}
    bases = {name: fit_basis(rows, unit=unit) for name, rows in parts.items()}
    mean = [torch.from_numpy(basis.decode(np.zeros((300, len(basis))))) for basis in bases.values()]
    zeros = [torch.zeros(300, len(basis)) for basis in bases.values()]
    truth = {name: torch.from_numpy(rows) for name, rows in parts.items()}
    return bases, truth, Guess(*mean, *zeros)


def true_guess(bases, truth):
    values = [torch.tensor(bases[name].encode(truth[name].numpy()), dtype=torch.float32)
              for name in truth]
    return Guess(*truth.values(), *values)


def test_every_term_is_one_for_the_mean_voice_and_nothing_for_the_truth(voices):
    bases, truth, mean = voices
    loss = StyleLoss(**bases, lambda_contrast=1, lambda_agreement=1)
    start, end = loss(mean, **truth), loss(true_guess(bases, truth), **truth)
    for name, low in dict(loss_ttl=.9, loss_dp=.9, loss_cosine=.8, loss_contrast=.99).items():
        assert low < start[name] < 1.2, (name, start[name])
        assert end[name] < .3 if name == "loss_contrast" else end[name] < 1e-3, (name, end[name])
    assert start["loss_agreement"] == 0


def test_variance_is_what_the_mean_voice_misses(voices):
    bases, truth, mean = voices
    for name, basis in bases.items():
        missed = (truth[name] - getattr(mean, name)).square().sum((1, 2)).mean()
        assert abs(style_variance(basis)/missed - 1) < 1e-3


def test_a_head_without_coefficients_is_judged_by_its_rows(voices):
    bases, truth, mean = voices
    loss, given = StyleLoss(**bases), true_guess(bases, truth)
    alone = given._replace(ttl_coefficients=None, dp_coefficients=None)
    for name, value in loss(alone, **truth).items():
        assert abs(value - loss(given, **truth)[name]) < 1e-5


def test_the_original_to_the_letter(voices):
    bases, truth, mean = voices
    found = StyleLoss(**bases, kind="mse", lambda_ttl=2, lambda_dp=.5)(mean, **truth)
    ttl, dp = (functional.mse_loss(getattr(mean, name), truth[name]) for name in truth)
    flat = [torch.cat([x.flatten(1), y.flatten(1)], 1) for x, y in (mean[:2], truth.values())]
    cosine = 1 - functional.cosine_similarity(*flat).mean()
    assert torch.equal(found["loss"], 2*ttl + .5*dp + .1*cosine)
    assert found.keys() == {"loss", "loss_ttl", "loss_dp", "loss_cosine"}


def test_gradients_of_a_model_that_says_nothing(voices):
    bases, truth, mean = voices
    zeros = {f"{name}_coefficients": torch.zeros(300, len(basis), requires_grad=True)
             for name, basis in bases.items()}
    StyleLoss(**bases, lambda_cosine=1, lambda_contrast=1)(
        mean._replace(**zeros), **truth)["loss"].backward()
    for value in zeros.values():
        assert torch.isfinite(value.grad).all() and 0 < value.grad.abs().max()*300 < 20


def test_half_precision_is_summed_in_full(voices):
    bases, truth, mean = voices
    loss = StyleLoss(**bases)
    with torch.autocast("cpu", torch.bfloat16): half = loss(mean, **truth)
    assert half["loss"].dtype == torch.float32
    assert torch.equal(half["loss"], loss(mean, **truth)["loss"])


def test_clips_of_one_voice():
    same = same_voice(torch.tensor([4, 4, 9]))
    assert same.tolist() == same_voice(["b", "b", "a"]).tolist()
    assert disagreement(torch.tensor([[0.], [2.], [7.]]), same, variance=2.) == 1
    likeness = torch.tensor([[1., 1, 0], [1, 1, 0], [0, 0, 1]])
    assert contrast(likeness, same) < .01 < .4 < contrast(likeness, torch.eye(3).bool())
    assert torch.isfinite(contrast(torch.zeros(1, 1), torch.ones(1, 1).bool()))


def test_learning_in_the_basis_moves_further_than_the_original():
    "The same steps from the mean voice: the original's gradients are a hundredth of these."
    styles = ParametricStyles().encode(*draw_factors(64, np.random.default_rng(0)))
    bases = {name: fit_basis(styles.part(name)) for name in ("ttl", "dp")}
    truth = {name: torch.from_numpy(styles.part(name)) for name in bases}
    def slope(kind):
        rows = [torch.from_numpy(np.repeat(unit_rows(basis.mean)[None], 64, 0).astype(np.float32))
                .requires_grad_() for basis in bases.values()]
        StyleLoss(**bases, kind=kind)(Guess(*rows), **truth)["loss"].backward()
        return float(rows[0].grad.norm())
    assert slope("basis") > 100*slope("mse")
