"""T3: a pack says what its sentences say alone, in logits and gradients; nothing that should be asked for is left out."""
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from audiolab.tts.language_tables import TTSError
from audiolab.tts.packed_attention import (
    Documents, KeyValueCache, document_attention, masked_attention, sliced_attention,
)
from audiolab.tts.packs import IGNORED, Pack, Utterance, count_rows, make_pack
from audiolab.tts.t3 import compare_starts, init_t3, reference_logits
from audiolab.tts.t3_config import T3Config, config_text, parse_config, tensor_shapes

SMALL = T3Config.small(60, 100, width=32, layers=2)


def sentence(rng, letters, sounds, prompt=0, config=SMALL, emotion=.5):
    text = [config.start_text, *rng.integers(1, config.text_vocab - 1, letters), config.stop_text]
    codes, other = (torch.from_numpy(rng.integers(0, config.codes, n)) for n in (sounds, prompt))
    speaker = torch.from_numpy(rng.normal(size=config.speaker_size).astype(np.float32))
    return Utterance(torch.tensor(text), codes, other if prompt else None, speaker, emotion)


def several(seed=0, config=SMALL):
    rng = np.random.default_rng(seed)
    sizes = ((3, 7, 5), (9, 4, 0), (6, 12, 20), (1, 1, 1), (20, 40, 150), (0, 0, 0))
    return [sentence(rng, *size, config=config, emotion=rng.random()) for size in sizes]


def loud(model):
    "Weights ten times as large as at first, so that attention is not flat."
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1: value.mul_(4)
    return model.eval()


@pytest.fixture(scope="module")
def model(): return loud(init_t3(SMALL, 1))


def losses(model, logits, labels):
    return F.cross_entropy(logits.double(), labels, ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize("layout", ["single", "double"])
@pytest.mark.parametrize("hidden", [None, [True, False, True, False, False, True]])
def test_a_pack_is_its_sentences_alone(layout, hidden):
    "Specification 7.5.2: logits and gradients below 1e-5."
    config = replace(SMALL, bos_layout=layout)
    model = loud(init_t3(config, 1))
    pack = make_pack(several(config=config), config, hidden)
    text, speech = model(pack)
    packed = losses(model, text, pack.text_labels) + losses(model, speech, pack.speech_labels)
    packed.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    many = several(config=config)
    alone = [reference_logits(model, one, bool(hidden and hidden[n])) for n, one in enumerate(many)]
    assert (text - torch.cat([part for part, _ in alone])).abs().max() < 1e-5
    assert (speech - torch.cat([part for _, part in alone])).abs().max() < 1e-5
    total = 0
    for n, one in enumerate(many):
        own = make_pack([one], config, hidden and [hidden[n]])
        total = total + losses(model, alone[n][0], own.text_labels)
        total = total + losses(model, alone[n][1], own.speech_labels)
    total.backward()
    for name, value in model.named_parameters():
        if value.grad is None: continue
        size = max(1., float(value.grad.abs().max()))
        assert (gradients[name] - value.grad).abs().max() < 1e-5*size, name
    assert "tfmr.embed_tokens.weight" not in gradients
    assert len(gradients) == len(model.state_dict()) - 1


def test_neighbours_do_not_count(model):
    "Upstream: 1.04 between a clip alone and beside one with a longer text."
    first, *rest = several()
    alone = model(make_pack([first], SMALL))
    for others in (rest, rest[::-1], several(7)):
        text, speech = model(make_pack([*others, first], SMALL))
        assert (text[-len(alone[0]):] - alone[0]).abs().max() < 1e-6
        assert (speech[-len(alone[1]):] - alone[1]).abs().max() < 1e-6


def test_the_future_does_not_count(model):
    one = several()[2]
    other = replace(one, speech=torch.cat([one.speech[:5], one.speech[5:].flip(0)]))
    before, after = (model(make_pack([each], SMALL))[1] for each in (one, other))
    assert torch.equal(before[:6], after[:6]) and not torch.equal(before[6:], after[6:])


def test_every_token_is_asked_for_once():
    "Specification 7.5.3: the count is the sum of n + 1, and labels are what follows."
    many = several()
    pack = make_pack(many, SMALL)
    assert int((pack.speech_labels != IGNORED).sum()) == sum(len(one.speech) + 1 for one in many)
    assert int((pack.text_labels != IGNORED).sum()) == sum(len(one.text) - 1 for one in many)
    for one, read, asked in zip(many, pack.speech.split(pack.speech_lengths.tolist()),
                                pack.speech_labels.split(pack.speech_lengths.tolist())):
        assert read.tolist() == [SMALL.start_speech, *one.speech.tolist()]
        assert asked.tolist() == [*one.speech.tolist(), SMALL.stop_speech]
    for one, asked in zip(many, pack.text_labels.split(pack.text_lengths.tolist())):
        assert asked.tolist() == [*one.text[1:].tolist(), IGNORED]


def test_a_double_start_asks_the_first_sound_of_the_second():
    config = replace(SMALL, bos_layout="double")
    one = several()[0]
    pack = make_pack([one], config)
    assert pack.speech.tolist() == [100, 100, *one.speech.tolist()]
    assert pack.speech_labels.tolist() == [IGNORED, *one.speech.tolist(), 101]
    assert pack.layout.speech_positions.tolist() == [0, 0, *range(1, 8)]
    surprise = compare_starts(loud(init_t3(SMALL, 1)), several()[:3])
    assert surprise["single"] != surprise["double"]


def oracle(labels, rows, wrong):
    "Logits that are sure of a label each."
    return F.one_hot(torch.where(labels < 0, 0, labels).roll(int(wrong)), rows).float()*1e3


def test_who_knows_what_follows_is_not_surprised():
    pack = make_pack(several()[:3], SMALL)
    asked, rows = pack.speech_labels, SMALL.speech_vocab
    sure, late = (F.cross_entropy(oracle(asked, rows, wrong), asked) for wrong in (False, True))
    assert sure == 0 and late > 100


def test_at_first_all_tokens_are_alike():
    model, pack = init_t3(SMALL).eval(), make_pack(several(), SMALL)
    text, speech = model(pack)
    for logits, labels, rows in ((text, pack.text_labels, 60), (speech, pack.speech_labels, 102)):
        assert abs(F.cross_entropy(logits, labels, ignore_index=IGNORED) - math.log(rows)) < .3


def test_rows_up_to_a_size_change_nothing(model):
    pack, filled = make_pack(several(), SMALL), make_pack(several(), SMALL, rows=512)
    assert len(filled.layout.order) == 512 and sum(filled.layout.lengths) == 512
    for one, other in zip(model(pack), model(filled)): assert torch.equal(one, other)
    full = make_pack(several(), SMALL, rows=len(pack.layout.order))
    assert full.layout.lengths == pack.layout.lengths


def test_rows_are_counted_before_they_are_made():
    for config in (SMALL, replace(SMALL, bos_layout="double")):
        many = several(config=config)
        counted = [count_rows(len(one.text), len(one.speech), one.prompt is not None, config)
                   for one in many]
        assert make_pack(many, config).layout.lengths == counted


def test_a_pack_survives_a_dictionary(model):
    from audiolab.training.batch_cursor import on_device
    pack = make_pack(several(), SMALL)
    again = Pack.from_dict(on_device(pack.to_dict(), torch.device("cpu")))
    for one, other in zip(model(pack), model(again)): assert torch.equal(one, other)


def test_activations_made_anew_give_the_same_gradients():
    found = []
    for again in (False, True):
        model = loud(init_t3(SMALL, 1))
        if again: model.recompute()
        for layer in model.tfmr.layers: layer.train()  # the Perceiver stays without its dropout
        pack = make_pack(several(), SMALL)
        losses(model, model(pack)[1], pack.speech_labels).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, value in found[0].items(): assert torch.equal(value, found[1][name]), name


@pytest.mark.parametrize("lengths", [[5], [1, 1, 1], [3, 17, 2, 40]])
def test_ways_of_attention_agree(lengths):
    torch.manual_seed(0)
    rows = [torch.randn(sum(lengths), 2, 8, requires_grad=True) for _ in range(3)]
    weight, found = torch.randn(sum(lengths), 2, 8), []
    for way in (sliced_attention, masked_attention, document_attention):
        answer = way(*rows, Documents.of(lengths))
        found.append((answer, *torch.autograd.grad((answer*weight).sum(), rows)))
    for others in found[1:]:
        for one, other in zip(found[0], others): assert (one - other).abs().max() < 1e-5


def test_in_sixteen_bits_it_is_nearly_the_same(model):
    pack = make_pack(several(), SMALL)
    exact = model(pack)[1]
    with torch.autocast("cpu", torch.bfloat16): rough = model(pack)[1]
    assert rough.dtype == torch.bfloat16 and (rough - exact).abs().max() < .1*exact.abs().max()


@pytest.mark.parametrize("layout", ["single", "double"])
def test_step_by_step_is_all_at_once(layout):
    config = replace(SMALL, bos_layout=layout)
    model, many = loud(init_t3(config, 2)), several(config=config)[:3]
    hidden = [True, False, False]
    rows, starts = model.embed_prefix([replace(one, speech=one.speech[:0]) for one in many], hidden)
    cache = KeyValueCache(config, 3, rows.shape[1] + 3).begin(starts)
    known = [model.decode(rows, cache)[:, -1]]
    for place in range(3):
        codes = torch.stack([one.speech[place] for one in many])[:, None]
        rows = model.embed_speech(codes, torch.tensor([place + 1]))
        known.append(model.decode(rows, cache)[:, 0])
        if place == 0:  # the second is over; the others change places
            cache.keep(torch.tensor([2, 0]))
            known = [step[[2, 0]] for step in known]
            many, hidden = [many[2], many[0]], [hidden[2], hidden[0]]
    stepped = model.speech_head(torch.stack(known, 1))
    for row, one, drop in zip(stepped, many, hidden):
        whole = reference_logits(model, one, drop)[1][config.starts - 1:]
        assert (row - whole[:4]).abs().max() < 1e-5


def test_attention_maps_are_what_attention_does(model):
    one = several()[2]
    maps = model.attention_maps(one, [(1, 3), (0, 0)])
    assert maps.shape == (2, len(one.speech) + 1, len(one.text))
    seen = []

    def watched(query, key, value):
        scores = torch.einsum("ihd,jhd->hij", query, key)/query.shape[-1]**.5
        later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        seen.append(weights)
        return torch.einsum("hij,jhd->ihd", weights, value)

    pack = make_pack([one], SMALL)
    from audiolab.tts.rotary import rotary_angles
    angles = rotary_angles(pack.layout.positions, SMALL)
    model.tfmr(model.joined(pack), angles, lambda layer: watched)
    first = 2 + SMALL.queries
    for found, (layer, head) in zip(maps, [(1, 3), (0, 0)]):
        wanted = seen[layer][head, first + len(one.text):, first:first + len(one.text)]
        assert (found - wanted).abs().max() < 1e-6
    with pytest.raises(TTSError, match="layer 2, head 0"): model.attention_maps(one, [(2, 0)])


def test_a_form_survives_its_text_and_a_stranger_s_is_refused():
    assert parse_config(config_text(SMALL)) == SMALL
    for text in ("", "[]", "{", '{"width": true}', '{"layers": -1}', '{"text_vocab": 1e99}',
                 '{"what": 1}', '{"rope_theta": 0}', '{"bos_layout": "triple"}', '{"codes": 9000}',
                 '{"heads": 7}'):
        with pytest.raises(TTSError): parse_config(text)


def test_shapes_are_those_of_the_module(model):
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == tensor_shapes(SMALL)


def test_what_does_not_fit_is_refused_and_named():
    many = several()
    changes = (dict(text=many[0].text[:-1]), dict(speech=torch.tensor([-1])),
               dict(prompt=torch.zeros(151, dtype=torch.int64)), dict(speaker=torch.zeros(3)),
               dict(speech=torch.zeros(1028).long()))
    for change in changes:
        with pytest.raises(TTSError, match="sentence 1 cannot be packed"):
            make_pack([many[1], replace(many[0], **change)], SMALL)
    with pytest.raises(TTSError, match="no sentences"): make_pack([], SMALL)
    with pytest.raises(TTSError, match="of 6 sentences, and 2 are"):
        make_pack(many, SMALL, [True, False])


def test_a_beginning_is_the_same_on_any_day():
    one, other, third = init_t3(SMALL, 3), init_t3(SMALL, 3), init_t3(SMALL, 4)
    state = torch.get_rng_state()
    init_t3(SMALL, 5)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one.text_emb.weight, other.text_emb.weight)
    assert not torch.equal(one.text_emb.weight, third.text_emb.weight)
