"What was forgotten is counted as one would with all logits at hand, and asking changes nothing."
import copy

import numpy as np
import pytest
import torch
from torch import nn

from audiolab.tts import (
    ForgettingProbe, T3Config, TTSError, Utterance, cached_utterances, extend_vocabulary,
    forgetting_table, init_t3, make_pack, measure_forgetting, probe_packs,
)

CONFIG = T3Config.small(text_vocab=20, codes=12, width=16, layers=1, heads=2, start_text=1,
                        speaker_size=4, queries=2, max_text=16, max_speech=32)


def sentences(count, seed=0):
    "Random texts, and random sounds."
    draw = torch.Generator().manual_seed(seed)
    ends = torch.tensor([1]), torch.tensor([0])
    return [Utterance(torch.cat([ends[0], torch.randint(2, 20, (5,), generator=draw), ends[1]]),
                      torch.randint(12, (6,), generator=draw), None,
                      torch.randn(4, generator=draw)) for _ in range(count)]


@pytest.fixture(scope="module")
def base(): return init_t3(CONFIG)


@pytest.fixture(scope="module")
def tuned(base):
    model = copy.deepcopy(base)
    for p in model.parameters(): p.data += .1*torch.randn(p.shape)
    return extend_vocabulary(model, 26)


@pytest.mark.parametrize("rows", [60, 10_000])
def test_as_with_all_logits_at_hand(base, tuned, rows):
    packs = probe_packs(sentences(7), CONFIG, rows)
    found = measure_forgetting(ForgettingProbe(base, {"xx": packs}), tuned)["xx"]
    whole, cost = make_pack(sentences(7), CONFIG), nn.functional.cross_entropy
    for kind, old, new in zip(("text", "speech"), base.eval()(whole), tuned.eval()(whole)):
        labels = getattr(whole, f"{kind}_labels")
        asked = labels >= 0
        old, new, labels = old[asked].log_softmax(1), new[asked].log_softmax(1), labels[asked]
        change = found[kind]
        shift = (old.exp()*(old - new[:, :old.shape[1]])).sum(1).mean().item()
        assert change.tokens == len(labels) == (42 if kind == "text" else 49)
        assert change.before == pytest.approx(cost(old, labels).item(), abs=1e-4)
        assert change.after == pytest.approx(cost(new, labels).item(), abs=1e-4)
        assert change.divergence == pytest.approx(shift, abs=1e-4)
        same = (old.argmax(1) == new.argmax(1)).float().mean().item()
        assert change.agreement == pytest.approx(same) and change.divergence > .01


def test_nothing_is_forgotten_where_nothing_changed(base):
    probe = ForgettingProbe(base, {"a": probe_packs(sentences(3), CONFIG), "b": []})
    found = measure_forgetting(probe, base)
    assert found["a"]["speech"].divergence == 0 and found["a"]["text"].agreement == 1
    assert found["b"]["speech"].tokens == 0


def test_the_probe_remembers_the_base_and_leaves_models_as_they_were(base):
    model = copy.deepcopy(base).train()
    probe = ForgettingProbe(model, {"xx": probe_packs(sentences(3), CONFIG)})
    for p in model.parameters(): p.data += .1
    before = copy.deepcopy(model.state_dict())
    assert measure_forgetting(probe, model)["xx"]["speech"].before == pytest.approx(
        measure_forgetting(probe, base)["xx"]["speech"].after)
    assert model.training and not any(p.grad is not None for p in model.parameters())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_packs_hold_every_sentence_once_in_order():
    given = sentences(9)
    packs = probe_packs(given, CONFIG, rows=40)
    assert len(packs) > 3
    laid = torch.cat([pack.text for pack in packs])
    assert torch.equal(laid, torch.cat([one.text for one in given]))
    assert probe_packs([], CONFIG) == []


class FewClips:
    "A cache in memory."
    def __init__(self, clips): self.clips = clips
    def __len__(self): return len(self.clips)
    def entry(self, n): return {"language": self.clips[n][0]}
    def text(self, n): return np.array([1, 3, 0], np.int32)
    def speech(self, n): return np.full(self.clips[n][1], 5, np.int16)
    def speaker_embedding(self, n): return np.zeros(4, np.float32)


def test_sentences_of_a_cache():
    cache = FewClips([("en", 4), ("de", 4), ("en", 40), ("en", 0), *[("en", 5)]*30])
    found = cached_utterances(cache, CONFIG, "en", 8)
    assert len(found) == 8 and max(len(one.speech) for one in found) < 32
    assert make_pack(found, CONFIG).text.dtype == torch.int64
    assert len(cached_utterances(cache, CONFIG)) == 32
    with pytest.raises(TTSError, match="no sentence of am"): cached_utterances(cache, CONFIG, "am")


def test_a_probe_without_sentences_is_refused(base):
    with pytest.raises(TTSError, match="no sentences"): ForgettingProbe(base, {"am": []})


def test_the_table_names_languages(base):
    probe = ForgettingProbe(base, {"sw": probe_packs(sentences(2), CONFIG)})
    assert "| sw | speech | 14 |" in forgetting_table(measure_forgetting(probe, base))
