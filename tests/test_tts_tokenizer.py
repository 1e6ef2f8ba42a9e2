"Tokenizers of T3: encodings as the released program's, files of strangers, and sizes that are wishes"
import copy
import json
import pickle
import random
import unicodedata
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tts_tokenizers import amharic_lines, stand_in

from audiolab.tts import (
    TextTokenizer, TTSError, check_texts, count_words, hinted_sizes, layout_json, measure_tokenizer,
    merge_vocabulary, parse_layout, script_letters, sentencepiece_tokens, train_tokenizer,
)

BASE = stand_in()
TREE = json.loads(layout_json(BASE.layout))
LIBRARY = Tokenizer.from_str(layout_json(BASE.layout))
LINES = amharic_lines()


def released_encode(library, text, language=None):
    "As the released program does it, which adds START and STOP elsewhere"
    text = unicodedata.normalize("NFKD", text.lower())
    if language: text = f"[{language}]{text}"
    return library.encode(text.replace(" ", "[SPACE]")).ids


def test_rows_of_the_released_layout():
    table = BASE.layout.tokens
    assert len(BASE) == 2454 and sorted(table.values()) == list(range(2454))
    special = [table[token] for token in ("[STOP]", "[UNK]", "[SPACE]", "[START]")]
    assert special == [0, 1, 2, 255]
    assert (BASE.start_id, BASE.stop_id, BASE.unknown_id, BASE.space_id) == (255, 0, 1, 2)
    assert len(BASE.languages) > 23 and "ta" in BASE.languages and "am" not in BASE.languages


@settings(max_examples=60)
@given(st.text(max_size=60), st.sampled_from([None, "en", "de", "hi"]))
def test_encodings_are_those_of_the_released_program(text, language):
    if "[" in text: text = text.replace("[", "(")
    ids = BASE.encode(text, language)
    assert ids.dtype == np.int32 and ids[0] == 255 and ids[-1] == 0
    assert ids[1:-1].tolist() == released_encode(LIBRARY, text, language)


def test_what_upper_case_means():
    assert BASE.encode("ABC", "en").tolist() == BASE.encode("abc", "en").tolist()
    assert BASE.encode("ABC").tolist() == BASE.encode("abc").tolist()
    layout = copy.deepcopy(BASE.layout)  # the English model: an A, and no [en]
    rows = layout.vocabulary
    rows["A"], rows["[fr2]"] = rows.pop("z~") if "z~" in rows else len(BASE), rows.pop("[en]")
    layout.added[:] = [t for t in layout.added if t["content"] != "[en]"]
    english = TextTokenizer(layout)
    assert english.encode("A")[1] == rows["A"] and BASE.encode("A")[1] != rows["A"]


def test_amharic_is_unknown_to_the_base():
    assert BASE.unknown_share(LINES) > .7  # all but spaces and "?!"
    assert BASE.decode(BASE.encode("ሰላም", "en")) == "\ufffd"*3
    with pytest.raises(TTSError, match=r"no \[am\].*merge-vocab"): BASE.encode("ሰላም", "am")
    with pytest.raises(TTSError, match="are unknown.*'ነ' .*merge-vocab"):
        check_texts(BASE, LINES, "en")
    with pytest.raises(TTSError, match="Cangjie"): check_texts(BASE, ["你好世界"], "zh")


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_text_that_is_none(text):
    for language in (None, "en"):
        with pytest.raises(TTSError, match="Unicode"): BASE.encode(text, language)


@pytest.mark.parametrize("language", ["", "cj_o", "STOP", "PAD", "e n", "[en]", "english"])
def test_tags_that_are_no_languages(language):
    with pytest.raises(TTSError, match="no \\["): BASE.encode("hello", language)


def test_a_text_cannot_end_itself():
    layout = copy.deepcopy(BASE.layout)
    layout.added[:] = [t | {"normalized": False} for t in layout.added if t["content"] != "[en]"]
    layout.vocabulary["A"] = layout.vocabulary.pop("[en]")
    english = TextTokenizer(layout)
    for token in ("[STOP]", "[START]"):
        with pytest.raises(TTSError, match="do not belong"): english.encode(f"well {token} more")


def test_files_pickles_and_digests(tmp_path):
    path = BASE.save(tmp_path/"base.json")
    again = TextTokenizer.from_file(path)
    assert again.layout == BASE.layout and again.fingerprint() == BASE.fingerprint()
    assert path.read_bytes() == again.save(tmp_path/"two.json").read_bytes()
    assert pickle.loads(pickle.dumps(BASE)).fingerprint() == BASE.fingerprint()
    tree = json.loads(path.read_text())
    tree["model"]["merges"] = [pair.split(" ") for pair in tree["model"]["merges"]]
    tree["decoder"] = {"type": "BPEDecoder", "suffix": "</w>"}
    new_style = TextTokenizer.from_json(json.dumps(tree))
    assert new_style.fingerprint() == BASE.fingerprint()
    tree["model"]["merges"].pop()
    assert TextTokenizer.from_json(json.dumps(tree)).fingerprint() != BASE.fingerprint()


def change(tree, path, value):
    "A copy with one value replaced, or removed for ..."
    tree = json.loads(json.dumps(tree))
    *place, last = path
    inside = tree
    for key in place: inside = inside[key]
    if value is ...: del inside[last]
    else: inside[last] = value
    return json.dumps(tree).encode()


BAD = {
    "no model": (["model"], ..., "no `model`"), "words": (["model", "type"], "WordPiece", "WordPiece"),
    "chance": (["model", "dropout"], .1, "dropout"),
    "bytes": (["model", "byte_fallback"], True, "byte"),
    "other unknown": (["model", "unk_token"], "<unk>", "unk_token"),
    "marked ends": (["model", "end_of_word_suffix"], "</w>", "end_of_word"),
    "two meanings": (["model", "vocab", "e"], 0, "the row 0 means"),
    "far row": (["model", "vocab", "e"], 10**9, "none of 0-65,535"),
    "negative": (["model", "vocab", "e"], -1, "none of 0-65,535"),
    "fraction": (["model", "vocab", "e"], 1.5, "none of"),
    "true": (["model", "vocab", "e"], True, "none of"),
    "long": (["model", "vocab", "x"*300], 7, "no token"),
    "empty": (["model", "vocab", ""], 3, "no token"),
    "half a pair": (["model", "vocab", "\ud800"], 3, "no token"),
    "nothing": (["model", "vocab"], {}, "vocab"),
    "merge of three": (["model", "merges", 0], "a b c", "merges[0] is no pair"),
    "unknown part": (["model", "merges", 1], ["\u1234", "a"], "merges[1] needs"),
    "numbers": (["model", "merges", 0], [1, 2], "merges[0]"),
    "no list": (["model", "merges"], {}, "merges"), "padding": (["padding"], {"length": 9}, "padding"),
    "tail": (["post_processor"], {}, "post_processor"),
    "cut": (["truncation"], {"max_length": 3}, "truncation"),
    "pattern": (["pre_tokenizer"], {"type": "Split", "pattern": {"Regex": "(a*)*b"}}, "'Split'"),
    "replacing": (["normalizer"], {"type": "Replace"}, "'Replace'"),
    "decoding": (["decoder"], {"type": "Strip"}, "decoder is none"),
    "decoding by what": (["decoder"], {"type": "BPEDecoder"}, "library refuses"),
    "deep": (["normalizer"], {"type": "Sequence", "normalizers": [{"type": "Sequence"}]}, "normalizer"),
    "tag twice": (["added_tokens", 1, "content"], "[STOP]", "twice"),
    "tag elsewhere": (["added_tokens", 0, "id"], 9, "has the rows 0 and 9"),
    "flag": (["added_tokens", 0, "special"], "yes", "special"),
    "flat": (["added_tokens"], [3], "added_tokens[0]"),
    "no start": (["model", "vocab", "[START]"], ..., "START"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name):
    path, value, why = BAD[name]
    raw = change(TREE, path, value)
    if name == "no start": raw = raw.replace(b'"content": "[START]"', b'"content": "[START2]"')
    with pytest.raises(TTSError) as error: TextTokenizer.from_json(raw.decode(), "their.json")
    assert str(error.value).startswith("their.json: ") and why in str(error.value)
    assert len(str(error.value)) < 400


def test_what_is_no_file(tmp_path):
    for raw in (b"", b"{", b"[]", b"null", b"\xff\xfe", b"["*100_000, b'{"a":1,"a":2}',
                b"1"*10_000, b'{"model": NaN}'):
        (tmp_path/"a.json").write_bytes(raw)
        with pytest.raises(TTSError, match="a.json"): TextTokenizer.from_file(tmp_path/"a.json")
    with pytest.raises(TTSError, match="not a regular file"): TextTokenizer.from_file(tmp_path)
    with open(tmp_path/"big.json", "wb") as file: file.truncate(10**10)
    with pytest.raises(TTSError, match="more than 32,000,000 bytes"):
        TextTokenizer.from_file(tmp_path/"big.json")


def test_an_added_token_that_gets_another_row_elsewhere():
    tree = json.loads(layout_json(BASE.layout))
    tree["added_tokens"].append(dict(tree["added_tokens"][0], id=5000, content="[am]"))
    with pytest.raises(TTSError, match=r"'\[am\]' should have the row 5000, and gets 2454"):
        TextTokenizer.from_json(json.dumps(tree))


CATS = train_tokenizer(["the cat sat", "that hat"]*2, "bpe", None, "en")
SMALL = json.loads(layout_json(CATS.layout))
JUNK = st.one_of(st.none(), st.booleans(), st.integers(-5, 10**12), st.floats(allow_nan=False),
                 st.text(max_size=5), st.lists(st.text(max_size=2), max_size=3), st.just({}),
                 st.just({"type": "Sequence"}))


def places(tree, path=()):
    "Ways to everything inside"
    if not isinstance(tree, (dict, list)): return
    for key, value in (tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield (*path, key)
        yield from places(value, (*path, key))


PLACES = list(places(SMALL))


def opens_or_says(raw):
    "A tokenizer that works, or an error of ours: nothing else"
    try: found = TextTokenizer(parse_layout(raw, "fuzz.json"), "fuzz.json")
    except TTSError as error:
        assert str(error).startswith("fuzz.json: ")
        return
    ids = found.encode("that cat, በ")
    assert 0 <= ids.min() and ids.max() < len(found) and found.decode(ids)
    assert parse_layout(layout_json(found.layout).encode()) == found.layout


@settings(max_examples=250)
@given(st.sampled_from(PLACES), JUNK | st.just(...))
def test_any_value_elsewhere(place, value): opens_or_says(change(SMALL, place, value))


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_damaged_bytes(seed):
    rng, raw = random.Random(seed), bytearray(json.dumps(SMALL).encode())
    for _ in range(rng.choice([1, 1, 3, 20])):
        at = rng.randrange(len(raw))
        mark = rng.choice([b"", b"0", b'"', b"]", b"}", b",", bytes([rng.randrange(256)])])
        raw[at:at + rng.choice([0, 1, 1, 5])] = mark
    opens_or_says(bytes(raw))


# --- learning

def test_the_whole_script_has_rows():
    assigned = [chr(c) for c in range(0x1200, 0x135b) if unicodedata.category(chr(c)) == "Lo"]
    assert script_letters("am") == assigned + [chr(c) for c in range(0x1361, 0x1369)]
    assert all(letter == unicodedata.normalize("NFKD", letter) for letter in script_letters("am"))
    made = train_tokenizer(["ሰላም"], "char")
    assert made.unknown_share(["".join(assigned), "፡።፣፤፥፦፧፨", *LINES], "am") == 0
    signs = train_tokenizer(["ሰላም"], "char", gemination=True)
    assert signs.decode(signs.encode("አለ\u135f", "am")) == "አለ\u135f"
    tags = [token["content"] for token in made.layout.added]
    assert tags == ["[STOP]", "[UNK]", "[SPACE]", "[am]", "[START]"]
    assert [made.layout.tokens[token] for token in tags] == [0, 1, 2, 3, 255]
    assert CATS.start_id == len(CATS) - 1


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece", "char"])
def test_5000_asked_of_263_lines(kind):
    if kind == "sentencepiece": pytest.importorskip("sentencepiece", reason="optional")
    with pytest.warns(UserWarning, match="5,000 rows were asked for and [0-9]{3} are given"):
        made = train_tokenizer(LINES, kind, 5000)
    assert 340 < len(made) < 1000 and check_texts(made, LINES, "am") == 0
    assert all(made.decode(made.encode(line, "am")) == line for line in LINES)


@pytest.mark.parametrize("asked, given", [(1, 350), (100, 350), (400, 400), (20_000, 0)])
def test_a_size_is_a_wish(asked, given):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made = train_tokenizer(LINES, "bpe", asked)
    assert len(made) == given or given != 400
    assert bool(told) == (asked != len(made))
    for warning in told: assert f"{asked:,} rows were asked for" in str(warning.message)


def test_joined_letters_make_texts_shorter():
    plain, joined = train_tokenizer(LINES), train_tokenizer(LINES, "bpe", 450)
    ids = [measure_tokenizer(one, LINES, "am")["ids_per_character"] for one in (plain, joined)]
    assert ids[0] == 1 and ids[1] < .6


def test_learning_is_repeatable():
    for kind in ("bpe", "sentencepiece"):
        if kind == "sentencepiece": pytest.importorskip("sentencepiece", reason="optional")
        one, two = (train_tokenizer(iter(LINES), kind, 420) for _ in range(2))
        assert one.fingerprint() == two.fingerprint()


def test_pieces_become_merges_that_encode_alike(tmp_path):
    spm = pytest.importorskip("sentencepiece", reason="optional")
    words = [word for line in LINES for word in count_words([line]).elements()]
    with open(tmp_path/"m.model", "wb") as file:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(words), model_writer=file, model_type="bpe", vocab_size=260,
            hard_vocab_limit=False, normalization_rule_name="identity", add_dummy_prefix=False,
            character_coverage=1., bos_id=-1, eos_id=-1, minloglevel=2)
    theirs = spm.SentencePieceProcessor(model_file=str(tmp_path/"m.model"))
    tokens = sentencepiece_tokens((tmp_path/"m.model").read_bytes())
    size = theirs.get_piece_size()
    assert sorted(tokens) == sorted(theirs.id_to_piece(row) for row in range(1, size))
    ours = merge_vocabulary(BASE, tokens, "am").tokenizer
    for word in set(words):
        assert ours.pieces(ours.encode(word, "am"))[2:-1] == theirs.encode(word, out_type=str)


@settings(max_examples=150)
@given(st.binary(max_size=80) | st.integers(0, 2**32))
def test_damaged_models(raw):
    if isinstance(raw, int):
        rng = random.Random(raw)
        good = bytearray(b"\x0a\x08\x0a\x06\xe2\x96\x81cat\x0a\x0a\x0a\x03cat\x15\0\0\0\xc0"
                         b"\x12\x02\x08\x01"*3)
        good[rng.randrange(len(good))] = rng.randrange(256)
        raw = bytes(good)
    try: found = sentencepiece_tokens(raw, "a.model")
    except TTSError as error: assert str(error).startswith("a.model: no SentencePiece model")
    else: assert all(isinstance(token, str) and token for token in found)


def test_nothing_to_learn_from():
    for texts in ([], [""], ["  \n"]):
        with pytest.raises(TTSError, match="empty"): train_tokenizer(texts)
    with pytest.raises(TTSError, match="no code of a lang"): train_tokenizer(["a"], language="EN")
    with pytest.raises(TTSError, match="known are char, bpe"): train_tokenizer(["a"], "words")
    with pytest.raises(TTSError, match="Unicode"): train_tokenizer(["a\ud800"])
    with pytest.raises(TTSError, match="Unicode"): train_tokenizer([None])
    assert hinted_sizes(.5) == (300, 500) and hinted_sizes(7) == (1000, 2000)
