"New rows of text: the base stays as it was, and embedding and head are of one size."
import copy
import unicodedata

import pytest
import torch

from audiolab.tts import (
    T3, T3Config, TTSError, extend_vocabulary, init_t3, phonetic_sources, romanise, rows_like,
)

BASE = T3Config.small(text_vocab=300, codes=20, width=32, layers=1, heads=2)
TABLES = "text_emb.weight", "text_head.weight"


@pytest.fixture(scope="module")
def base(): return init_t3(BASE)


@pytest.mark.parametrize("init", ["mean_noise", "phonetic", "normal"])
def test_base_rows_and_everything_else_stay_to_the_bit(base, init):
    before = copy.deepcopy(base.state_dict())
    after = extend_vocabulary(copy.deepcopy(base), 350, init, sources={300: [1, 2]}).state_dict()
    assert list(after) == list(before)
    for name, value in before.items():
        if name in TABLES: assert after[name].shape == (350, 32)
        assert torch.equal(after[name][:len(value)], value)


def test_an_extended_state_is_that_of_a_t3_of_this_size(base):
    model = extend_vocabulary(copy.deepcopy(base), 350)
    assert model.config.text_vocab == 350
    other = T3(model.config)
    other.load_state_dict(model.state_dict(), strict=True)
    assert (other.text_emb.num_embeddings, other.text_head.out_features) == (350, 350)
    assert model.text_emb.num_embeddings == 350 and model.text_head.out_features == 350


def test_the_released_size_to_that_of_the_original():
    config = T3Config(width=32, layers=1, heads=2, feed_forward=32, max_text=8, max_speech=8)
    model = extend_vocabulary(init_t3(config), 3000)
    assert [len(model.state_dict()[name]) for name in TABLES] == [3000, 3000]
    assert model.config.start_text == 255 and model.config.stop_text == 0


def test_new_rows_are_like_the_old_and_unlike_each_other(base):
    rows = torch.randn(400, 6)@torch.randn(6, 12) + 3
    new = rows_like(rows, 4000, generator=torch.Generator().manual_seed(0))
    assert (new.mean(0) - rows.mean(0)).abs().max() < .3
    change = new.T.cov() - rows.T.cov()
    assert change.norm() < .15*rows.T.cov().norm()
    assert torch.linalg.matrix_rank(new - rows.mean(0), rtol=1e-4) == 6
    table = extend_vocabulary(copy.deepcopy(base), 350).state_dict()[TABLES[0]][300:]
    assert len(table.unique(dim=0)) == 50


def test_the_seed_decides(base):
    one, same, other = (extend_vocabulary(copy.deepcopy(base), 310, seed=seed).state_dict()
                        for seed in (3, 3, 4))
    for name in TABLES:
        assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])
    assert not torch.equal(one[TABLES[0]][300:], one[TABLES[1]][300:])


def test_precision_stays(base):
    model = extend_vocabulary(copy.deepcopy(base).bfloat16(), 310)
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}


def test_phonetic_rows_begin_between_their_letters(base):
    sources = {300: [5, 6], 302: [7]}
    model = extend_vocabulary(copy.deepcopy(base), 303, "phonetic", sources=sources)
    for name in TABLES:
        table = model.state_dict()[name]
        scatter = (table[:300] - table[:300].mean(0)).norm(dim=1).mean()
        assert (table[300] - table[5:7].mean(0)).norm() < .25*scatter
        assert (table[302] - table[7]).norm() < .25*scatter
        assert (table[301] - table[:300].mean(0)).norm() > .5*scatter  # without letters: anywhere


@pytest.mark.parametrize("size, settings, told", [
    (299, {}, "300 rows of text"), (310, {"init": "zeros"}, "'zeros'"),
    (310, {"init": "phonetic"}, "phonetic_sources"),
    (310, {"init": "phonetic", "sources": {301: [300]}}, "300 is not")])
def test_what_cannot_be_is_told(base, size, settings, told):
    model = copy.deepcopy(base)
    with pytest.raises(TTSError, match=told): extend_vocabulary(model, size, **settings)


def test_no_new_rows_change_nothing(base):
    before = copy.deepcopy(base.state_dict())
    after = extend_vocabulary(copy.deepcopy(base), 300).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_every_syllable_has_letters():
    syllables = [chr(code) for code in range(0x1200, 0x135b)
                 if unicodedata.category(chr(code)) == "Lo"]
    assert len(syllables) == 326
    assert all(romanise(letter).isascii() and romanise(letter).isalpha() for letter in syllables)
    for first in "ለሰመበ":
        assert len({romanise(chr(ord(first) + order)) for order in range(7)}) == 7


@pytest.mark.parametrize("text, letters", [
    ("ሰላም", "selam"), ("አዲስ አበባ", "adis abeba"), ("ኢትዮጵያ", "ityopya"), ("ቋንቋ", "kwankwa"),
    ("።፣፤፥፧፡", ".,;:? "), ("፫", "3"), ("Déjà vu", "deja vu"), ("☕", ""), ("", "")])
def test_letters_of_texts(text, letters): assert romanise(text) == letters


@pytest.mark.parametrize("one, other", ["ሀሐ", "ሀኀ", "ሰሠ", "ጸፀ", "አዐ"])
def test_what_sounds_alike_has_the_same_letters(one, other):
    assert romanise(one) == romanise(other)


def test_sources_are_rows_of_the_base():
    tokens = {letter: row for row, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    tokens |= {"[SPACE]": 26, "[en]": 27, "[UNK]": 28} | {chr(0x1200 + n): 29 + n for n in range(7)}
    tokens |= {"[am]": 36, "☕": 37, "ሀለ": 38}
    found = phonetic_sources(tokens, 29)
    assert found[29] == [7, 0] and found[36] == [27] and 37 not in found
    assert found[38] == [7, 0, 11, 4]
    assert all(0 <= row < 29 for rows in found.values() for row in rows)
