"One more language: old rows and old texts stay, new ones are behind them, and the wrong base is refused"
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tts_tokenizers import amharic_lines, stand_in

from audiolab.tts import (
    PROBE_TEXTS, TextTokenizer, TTSError, check_merge, check_rows, layout_json, merge_vocabulary,
    probe_pairs, script_letters, train_tokenizer,
)

BASE = stand_in()
ENGLISH = train_tokenizer(["a small base", "of a few letters"]*2, "bpe", language="en")
LINES = amharic_lines()
CHARACTERS = merge_vocabulary(BASE, script_letters("am"), "am", rows=2454)
NEW = train_tokenizer([*LINES, "ሰላም tv", "tv", "tv ላይ"], "bpe")
JOINED = merge_vocabulary(BASE, NEW, "am")


def test_2454_becomes_2789():
    assert CHARACTERS.added == ["[am]", *script_letters("am")] and len(CHARACTERS.tokenizer) == 2789
    rows = CHARACTERS.tokenizer.layout.tokens
    assert [rows[token] for token in CHARACTERS.added] == list(range(2454, 2789))
    assert all(rows[token] == row for token, row in BASE.layout.tokens.items())
    assert [rows[token] for token in ("[STOP]", "[UNK]", "[SPACE]", "[START]")] == [0, 1, 2, 255]
    old = [token["content"] for token in BASE.layout.added]
    assert [t["content"] for t in CHARACTERS.tokenizer.layout.added] == [*old, "[am]"]
    assert set(CHARACTERS.added) <= set(CHARACTERS.tokenizer.layout.vocabulary)
    assert str(CHARACTERS.report) == "2,454 rows + 335 = 2,789; am has a tag, 0 merges"


@pytest.mark.parametrize("merged", [CHARACTERS, JOINED], ids=["letters", "joined"])
def test_amharic_is_known_and_comes_back(merged):
    found = check_merge(BASE, merged.tokenizer, "am", LINES, rows=2454)
    assert found["unknown"] == 0 and found["old texts"] >= 46 and found["new texts"] == 263
    ids = merged.tokenizer.encode("ሰላም ለዓለም።", "am")
    assert ids[0] == 255 and ids[1] == 2454 and ids[-1] == 0 and 1 not in ids


def test_new_texts_are_cut_as_by_the_new_tokenizer():
    assert JOINED.report.merges > 50
    for line in LINES:
        ids = JOINED.tokenizer.encode(line, "am")
        assert JOINED.tokenizer.pieces(ids) == NEW.pieces(NEW.encode(line, "am"))


def test_nothing_that_old_texts_could_use_is_added():
    assert ("t", "v") in NEW.layout.merges and "tv" in JOINED.report.left_out
    for merged in (CHARACTERS, JOINED):
        assert all(any("\u1200" <= c <= "\u139f" for c in token) for token in merged.added[1:])
    typed = merge_vocabulary(BASE, ["ሰ", "„", "…", "å", "✓"], "am")
    assert typed.added == ["[am]", "ሰ", "✓"]


@settings(max_examples=150)
@given(st.sampled_from([None, "en", "fr", "tr", "ta"]),
       st.text(st.sampled_from(sorted(set("".join(PROBE_TEXTS.values())) | set("[]tv")))))
def test_old_texts_have_their_encodings(language, text):
    if "[" in text: text = text.replace("[", "")
    for merged in (CHARACTERS, JOINED):
        ids = merged.tokenizer.encode(text, language)
        assert ids.tolist() == BASE.encode(text, language).tolist()


def test_own_old_texts_stay_too():
    probe = {"en": ["a ✓ here"]}
    assert merge_vocabulary(BASE, ["✓", "ሰ"], "am", probe=probe).added == ["[am]", "ሰ"]
    merged = merge_vocabulary(BASE, ["✓", "ሰ"], "am").tokenizer
    assert check_merge(BASE, merged, "am")
    with pytest.raises(TTSError, match="'a ✓ here' in en is no longer encoded"):
        check_merge(BASE, merged, "am", probe=probe)


def test_the_library_reads_the_same():
    library = Tokenizer.from_str(layout_json(JOINED.tokenizer.layout))
    assert library.get_vocab(with_added_tokens=True) == JOINED.tokenizer.layout.tokens
    text = "[am]ሰላም[SPACE]ለዓለም።"
    assert library.encode(text).ids == JOINED.tokenizer.encode("ሰላም ለዓለም።", "am")[1:-1].tolist()


def test_languages_one_after_the_other():
    two = merge_vocabulary(CHARACTERS.tokenizer, [*script_letters("ti"), "ɓ", "ɗ"], "ti")
    assert two.added == ["[ti]", "ɓ", "ɗ"] and two.report.there_already == 334
    assert check_merge(CHARACTERS.tokenizer, two.tokenizer, "ti", ["ሰላም ɓ"])
    again = merge_vocabulary(CHARACTERS.tokenizer, script_letters("am"), "am")
    assert not again.added and again.report.tag_was_there
    assert again.tokenizer.fingerprint() == CHARACTERS.tokenizer.fingerprint()


def test_an_unused_tag_of_the_base_is_used():
    merged = merge_vocabulary(BASE, ["க"], "ta")
    assert merged.added == ["க"] and merged.report.tag_was_there
    assert merged.tokenizer.encode("க", "ta")[1] == BASE.layout.tokens["[ta]"]


@pytest.mark.parametrize("rows, file", [
    (2454, "grapheme_mtl_merged_expanded_v1"), (704, "tokenizer.json"), (999, "saved with")])
def test_the_tokenizer_of_another_release(rows, file):
    other = stand_in(2352)
    with pytest.raises(TTSError, match=f"has 2,352 rows.*{file}"):
        merge_vocabulary(other, script_letters("am"), "am", rows=rows)
    with pytest.raises(TTSError): check_rows(other, 2351, reserve=True)
    assert check_rows(other, 3000, reserve=True) is None


@pytest.mark.parametrize("code", ["", "AM", "amharic", "a", "[am]", "cj_o", "sip"])
def test_codes_that_are_none(code):
    with pytest.raises(TTSError, match="no code of a language"): merge_vocabulary(BASE, ["ሰ"], code)


@settings(max_examples=40)
@given(st.lists(st.text(max_size=6), max_size=12))
def test_any_list_of_tokens(tokens):
    try: merged = merge_vocabulary(ENGLISH, [*tokens, "ሰ"], "am")
    except TTSError as error: assert "is no token" in str(error)
    else:
        assert check_merge(ENGLISH, merged.tokenizer, "am", ["ሰሰ"])["new rows"] == len(merged.added)


def test_a_damaged_merge_is_found():
    layout = CHARACTERS.tokenizer.layout
    swapped = dict(layout.vocabulary)
    swapped["e"], swapped["f"] = swapped["f"], swapped["e"]
    gap = {token: row + (row > 2500) for token, row in layout.vocabulary.items()}
    for rows, why in ((swapped, "had the row"), (gap, "are not 2,454-2,789")):
        bad = TextTokenizer(replace(layout, vocabulary=rows, merges=[]), "bad.json")
        with pytest.raises(TTSError, match=f"bad.json.*{why}"): check_merge(BASE, bad, "am")
    with pytest.raises(TTSError, match="comes back as"):
        check_merge(BASE, CHARACTERS.tokenizer, "am", ["ሰላም\tለዓለም"])


def test_probe_covers_the_23_languages():
    assert len(PROBE_TEXTS) == 23 == len({code for code, _ in probe_pairs(BASE) if code})
