"What tokens cost: the plain value and gradient in less memory, shifted right, no label lost."
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from audiolab.tts import (
    IGNORED, init_t3, linear_cross_entropy, make_pack, reference_logits, speech_text_loss,
    T3Config, Utterance,
)


def plain(hidden, weight, labels):
    return F.cross_entropy(hidden @ weight.t(), labels, ignore_index=IGNORED, reduction="sum")


def problem(places=50, width=8, tokens=30, ignored=.2, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    hidden = torch.randn(places, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, tokens, (places,))
    return hidden, weight, labels.masked_fill(torch.rand(places) < ignored, IGNORED)


@pytest.mark.parametrize("chunk", [1, 7, 50, 1000, None])
@pytest.mark.parametrize("ignored", [0., .3])
def test_the_value_and_the_gradient_are_the_plain_ones(chunk, ignored):
    hidden, weight, labels = problem(ignored=ignored)
    found = linear_cross_entropy(hidden, weight, labels, chunk)
    wanted = plain(hidden, weight, labels)
    torch.testing.assert_close(found.total, wanted)
    ours = torch.autograd.grad(3*found.total, (hidden, weight))
    for one, other in zip(ours, torch.autograd.grad(3*wanted, (hidden, weight))):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)
    assert int(found.count) == int((labels >= 0).sum())
    assert int(found.right) == int(((hidden @ weight.t()).argmax(1) == labels).sum())


def test_the_gradient_is_that_of_numbers():
    hidden, weight, labels = problem(9, 3, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, labels, 4).total, (hidden, weight))


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_does_not_learn_gets_no_gradient(frozen):
    hidden, weight, labels = problem()
    (hidden, weight)[frozen].requires_grad_(False)
    linear_cross_entropy(hidden, weight, labels, 16).total.backward()
    assert (hidden, weight)[frozen].grad is None
    assert (weight, hidden)[frozen].grad.abs().sum() > 0


def test_half_precision_costs_about_the_same():
    hidden, weight, labels = problem(200, 32, 100)
    with torch.autocast("cpu", torch.bfloat16):
        total = linear_cross_entropy(hidden, weight, labels, 64).total
    total.backward()
    wanted = plain(hidden, weight, labels)
    assert total.dtype == torch.float32 and abs(float((total/wanted).detach()) - 1) < .01
    slope, = torch.autograd.grad(wanted, weight)
    assert weight.grad.dtype == torch.float32
    assert float((weight.grad - slope).norm()/slope.norm()) < .02


def test_places_without_labels_cost_nothing():
    hidden, weight, labels = problem(ignored=1.1)
    found = linear_cross_entropy(hidden, weight, labels)
    found.total.backward()
    assert not found.total.item() and not found.mean().item() and not found.accuracy().item()
    assert not hidden.grad.any() and not weight.grad.any()


class Largest(TorchDispatchMode):
    "Notes the largest tensor that comes into being."
    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        if isinstance(made, torch.Tensor): self.numbers = max(self.numbers, made.numel())
        return made


def test_the_logits_of_all_places_are_never_there():
    hidden, weight, labels = problem(4000, 4, 500)
    with Largest() as largest: linear_cross_entropy(hidden, weight, labels, 50).total.backward()
    assert largest.numbers == 50*500
    with Largest() as largest: plain(hidden, weight, labels).backward()
    assert largest.numbers >= 3000*500


# packs

CONFIG = T3Config.small(300, codes=40, width=32, layers=2, heads=2)


def sentences(count=4, seed=0, config=CONFIG):
    draw = torch.Generator().manual_seed(seed)
    def some(most, below): return torch.randint(1, below, (int(torch.randint(
        2, most, (1,), generator=draw)),), generator=draw)
    ends = torch.tensor([config.start_text]), torch.tensor([config.stop_text])
    return [Utterance(torch.cat([ends[0], some(9, 250), ends[1]]), some(20, config.codes),
                      some(9, config.codes) if n % 2 else None, torch.randn(256, generator=draw))
            for n in range(count)]


class Oracle:
    "Answers each place with a token of its choice."
    def __init__(self, choose, config=CONFIG):
        self.choose, self.sizes = choose, (config.text_vocab, config.speech_vocab)
        self.text_head, self.speech_head = (
            SimpleNamespace(weight=torch.eye(size)) for size in self.sizes)

    def hidden(self, pack):
        chosen = zip(self.choose(pack), self.sizes)
        return [50.*F.one_hot(each.clamp(min=0), size) for each, size in chosen]


@pytest.mark.parametrize("layout", ["single", "double"])
def test_who_knows_the_next_token_pays_nothing_and_who_copies_pays_dearly(layout):
    "A loss without a shift, as public trainers had it, rewards the copier"
    config = T3Config.small(300, codes=40, width=32, heads=2, bos_layout=layout)
    pack = make_pack(sentences(20), config)
    knows = speech_text_loss(Oracle(lambda p: (p.text_labels, p.speech_labels)), pack)
    copies = speech_text_loss(Oracle(lambda p: (p.text, p.speech)), pack)
    assert float(knows["loss"]) == 0 and float(knows["speech_accuracy"]) == 1
    assert float(copies["speech_loss"]) > 40 and float(copies["text_loss"]) > 40
    assert float(copies["speech_accuracy"]) < .15 and float(copies["text_accuracy"]) < .15


@pytest.mark.parametrize("layout", ["single", "double"])
def test_no_label_is_lost(layout):
    "n + 1 of n sounds: others left out the first 150 codes, or the end"
    config = T3Config.small(300, codes=40, width=32, heads=2, bos_layout=layout)
    spoken = sentences(20)
    found = speech_text_loss(init_t3(config), make_pack(spoken, config))
    assert int(found["speech_count"]) == sum(len(one.speech) + 1 for one in spoken)
    assert int(found["text_count"]) == sum(len(one.text) - 1 for one in spoken)


def test_a_model_that_knows_nothing_pays_the_logarithm_of_the_choice():
    config = T3Config.small(2454, codes=1024)
    found = speech_text_loss(init_t3(config), make_pack(sentences(10, config=config), config))
    assert abs(float(found["speech_loss"]) - math.log(config.speech_vocab)) < .3
    assert abs(float(found["text_loss"]) - math.log(2454)) < .3


def test_a_pack_costs_what_its_sentences_cost_alone():
    model, spoken = init_t3(CONFIG, 1).eval(), sentences(5)
    total = torch.zeros(2)
    for one in spoken:
        text, speech = reference_logits(model, one)
        end = torch.tensor([CONFIG.stop_speech])
        total += torch.stack([F.cross_entropy(text[:-1], one.text[1:], reduction="sum"),
                              F.cross_entropy(speech, torch.cat([one.speech, end]),
                                              reduction="sum")])
    found = speech_text_loss(model, make_pack(spoken, CONFIG), chunk=13)
    parts = torch.stack([found["text_loss"]*found["text_count"],
                         found["speech_loss"]*found["speech_count"]])
    torch.testing.assert_close(parts, total, rtol=1e-5, atol=1e-4)


def test_packs_add_up():
    "Sums over the packs of an update, whatever each holds, are those of one pack"
    model, spoken = init_t3(CONFIG, 1).eval(), sentences(6)
    drop = [False, True, False, False, True, False]
    whole = speech_text_loss(model, make_pack(spoken, CONFIG, drop), text_rate=2.5)
    parts = [speech_text_loss(model, make_pack(spoken[part], CONFIG, drop[part]), text_rate=2.5)
             for part in (slice(1), slice(1, 6))]
    torch.testing.assert_close(sum(part["total"] for part in parts), whole["total"])
    assert sum(int(part["speech_count"]) for part in parts) == int(whole["speech_count"])
    one = {name: float(value) for name, value in whole.items()}
    rate = one["text_count"]/one["speech_count"]
    assert one["loss"] == pytest.approx(one["speech_loss"] + .25*rate*one["text_loss"])
    usual = speech_text_loss(model, make_pack(spoken, CONFIG), .3)
    assert float(usual["loss"]) == pytest.approx(
        float(usual["speech_loss"] + .3*usual["text_loss"]))


def test_hidden_texts_cost_nothing():
    model, spoken = init_t3(CONFIG).eval(), sentences(3)
    found = speech_text_loss(model, make_pack(spoken, CONFIG, [True]*3))
    assert int(found["text_count"]) == 0 and float(found["loss"]) == float(found["speech_loss"])
    found["total"].backward()
    assert model.text_head.weight.grad is None or not model.text_head.weight.grad.any()
    assert not model.text_emb.weight.grad.any()
