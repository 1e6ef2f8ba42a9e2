"One more language: old rows and old texts stay, new ones are behind them, and the wrong base is refused"
import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tts_tokenizers import amharic_lines, stand_in

from audiolab.tts import (
    PROBE_TEXTS, MergeVocabConfig, TextTokenizer, TokenizerConfig, TTSError, check_merge, check_rows,
    layout_json, merge_vocab_command, merge_vocabulary, probe_pairs, read_texts, read_tokens,
    script_letters, tokenizer_command, train_tokenizer,
)

BASE = stand_in()
LINES = amharic_lines()
CHARACTERS = merge_vocabulary(BASE, script_letters("am"), "am", rows=2454)
NEW = train_tokenizer([*LINES, "ሰላም tv", "tv", "tv ላይ"], "bpe", 500)
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
        assert JOINED.tokenizer.pieces(JOINED.tokenizer.encode(line, "am")) == NEW.pieces(NEW.encode(line, "am"))


def test_nothing_that_old_texts_could_use_is_added():
    assert ("t", "v") in NEW.layout.merges and "tv" in JOINED.report.left_out
    for merged in (CHARACTERS, JOINED):
        assert all(any("\u1200" <= c <= "\u139f" for c in token) for token in merged.added[1:])
    typed = merge_vocabulary(BASE, ["ሰ", "„", "…", "å", "✓"], "am")
    assert typed.added == ["[am]", "ሰ", "✓"]


@settings(max_examples=150)
@given(st.sampled_from([None, "en", "fr", "tr", "ta"]),
       st.text(st.sampled_from(sorted({c for t in PROBE_TEXTS.values() for c in t} | set("[]tv€")))))
def test_old_texts_have_their_encodings(language, text):
    if "[" in text: text = text.replace("[", "")
    for merged in (CHARACTERS, JOINED):
        assert merged.tokenizer.encode(text, language).tolist() == BASE.encode(text, language).tolist()


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


@pytest.mark.parametrize("rows, file", [(2454, "grapheme_mtl_merged_expanded_v1"), (704, "tokenizer.json"),
                                        (999, "saved with")])
def test_the_tokenizer_of_another_release(rows, file):
    other = stand_in(2352)
    with pytest.raises(TTSError, match=f"has 2,352 rows.*{file}"):
        merge_vocabulary(other, script_letters("am"), "am", rows=rows)
    with pytest.raises(TTSError): check_rows(other, 2351, reserve=True)
    assert check_rows(other, 3000, reserve=True) is None


@pytest.mark.parametrize("code", ["", "AM", "amharic", "a", "[am]", "cj_o", "sip"])
def test_codes_that_are_none(code):
    with pytest.raises(TTSError, match="no code of a language"): merge_vocabulary(BASE, ["ሰ"], code)


@settings(max_examples=100)
@given(st.lists(st.text(max_size=6), max_size=12))
def test_any_list_of_tokens(tokens):
    try: merged = merge_vocabulary(BASE, [*tokens, "ሰ"], "am")
    except TTSError as error: assert "is no token" in str(error)
    else:
        assert check_merge(BASE, merged.tokenizer, "am", ["ሰሰ"])["new rows"] == len(merged.added)


def test_a_damaged_merge_is_found():
    layout = CHARACTERS.tokenizer.layout
    swapped = dict(layout.vocabulary)
    swapped["e"], swapped["f"] = swapped["f"], swapped["e"]
    for rows, why in ((swapped, "had the row"),
                      ({k: v + (v > 2500) for k, v in layout.vocabulary.items()}, "are not 2,454-2,789")):
        bad = TextTokenizer(type(layout)(rows, [], layout.added, pre_tokenizer=layout.pre_tokenizer), "bad.json")
        with pytest.raises(TTSError, match=f"bad.json.*{why}"): check_merge(BASE, bad, "am")
    with pytest.raises(TTSError, match="comes back as"):
        check_merge(BASE, CHARACTERS.tokenizer, "am", ["ሰላም\tለዓለም"])


def test_probe_covers_the_23_languages():
    assert len(PROBE_TEXTS) == 23 == len({code for code, _ in probe_pairs(BASE) if code})


# --- commands

@pytest.fixture
def files(tmp_path):
    "A table, a base, and weights"
    table = "".join(f"clip{n}|{line}|{line}\n" for n, line in enumerate(LINES))
    (tmp_path/"metadata.csv").write_text(table, encoding="utf-8-sig")
    BASE.save(tmp_path/"base.json")
    save_file({"text_emb.weight": np.zeros((2454, 4), "f")}, tmp_path/"t3.safetensors")
    return tmp_path


def test_from_a_table_to_a_merged_file(files, caplog):
    caplog.set_level(logging.INFO)
    made = TokenizerConfig(str(files), "bpe", 450, output=str(files/"am.json"))
    assert tokenizer_command(made) == 0
    merge = MergeVocabConfig(str(files/"base.json"), str(files/"am.json"), output=str(files/"both.json"),
                             model=str(files/"t3.safetensors"), texts=str(files/"metadata.csv"),
                             keep=("en=" + str(files/"old.txt"),))
    (files/"old.txt").write_text("Check ✓ this.\n")
    assert merge_vocab_command(merge) == 0
    both = TextTokenizer.from_file(files/"both.json")
    assert both.encode("ሰላም", "am")[1] == 2454 and "2,454 rows + " in caplog.text
    assert "263 texts" in caplog.text and "100.00% of it known" in caplog.text


def test_commands_refuse_before_they_write(files):
    config = MergeVocabConfig(str(files/"base.json"), output=str(files/"both.json"))
    save_file({"text_emb.weight": np.zeros((2352, 4), "f")}, files/"old.safetensors")
    (files/"japanese.txt").write_text("日本語です。\n")
    for change, why in (({"model": "old.safetensors"}, "do not belong together"), ({"base": "none.json"}, "none.json"),
                        ({"texts": "japanese.txt"}, "are unknown"), ({"output": "base.json"}, "the base itself"),
                        ({"model": "base.json"}, "base.json"), ({"new": "metadata.csv"}, "base")):
        fields = vars(config) | {key: str(files/value) for key, value in change.items()}
        if "new" in change: fields["lang"], why = "Amharic", "no code of a language"
        with pytest.raises(TTSError, match=why): merge_vocab_command(MergeVocabConfig(**fields))
    assert not (files/"both.json").exists()
    assert (files/"base.json").read_text() == layout_json(BASE.layout)


@pytest.mark.parametrize("raw, texts", [
    (b"a|One.|one\nb|Two.|two\n", ["one", "two"]), (b"a|One.\r\nb|Two.\r\n", ["One.", "Two."]),
    (b"\xef\xbb\xbfid|text|speaker\na|One.|ada\n", ["One."]), (b'id,text\n1,"Well, well"\n', ["Well, well"]),
    (b"One, two.\n\nThree.\n", ["One, two.", "Three."]), (b'a|Say "no".|\n', ['Say "no".'])])
def test_tables_of_texts(raw, texts, tmp_path):
    (tmp_path/"metadata.csv").write_bytes(raw)
    assert read_texts(tmp_path) == texts


@pytest.mark.parametrize("raw, why", [
    (b"", "no texts"), (b"\n \n", "no texts"), (b"a|One.\nb\n", "line 2: only 1 columns"),
    (b"a|One.\nb|\xff\n", "line 2: not UTF-8"), (b"a|" + b"x"*200_000, "line 1: field larger")])
def test_damaged_tables(raw, why, tmp_path):
    (tmp_path/"metadata.csv").write_bytes(raw)
    with pytest.raises(TTSError, match=f"metadata.csv.*{why}"): read_texts(tmp_path)


@settings(max_examples=100)
@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode) | st.sampled_from(
    [b"[]", b"{}", b'{"a": 1}', b'["a", "b"]', b'{"model": 1}', b'{"a": "b"}', b'[1]']))
def test_any_file_of_tokens(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("tokens")/"new.txt"
    path.write_bytes(raw)
    try: found = read_tokens(path)
    except TTSError as error: assert "new.txt" in str(error)
    else: assert isinstance(found, list) and all(isinstance(token, str) for token in found)


def test_lists_of_other_programs(tmp_path):
    (tmp_path/"vocab.json").write_text(json.dumps({"<PAD>": 0, "<MASK>": 4, "ሰ": 5, "ላ": 6, "[am]": 7}))
    merged = merge_vocabulary(BASE, read_tokens(tmp_path/"vocab.json"), "am")
    assert merged.added == ["[am]", "ሰ", "ላ"]
