"`audiolab tts tokenizer` and `merge-vocab`: from tables and lists of any program, all or nothing"
import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tts_tokenizers import amharic_lines, stand_in

from audiolab.tts import (
    MergeVocabConfig, TextTokenizer, TokenizerConfig, TTSError, layout_json, merge_vocab_command,
    merge_vocabulary, read_texts, read_tokens, tokenizer_command,
)

BASE = stand_in()
LINES = amharic_lines()


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
    merge = MergeVocabConfig(
        str(files/"base.json"), str(files/"am.json"), output=str(files/"both.json"),
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
    for change, why in (({"model": "old.safetensors"}, "do not belong together"),
                        ({"base": "none.json"}, "none.json"), ({"texts": "japanese.txt"}, "are unknown"),
                        ({"output": "base.json"}, "the base itself"), ({"model": "base.json"}, "base.json"),
                        ({"new": "none.txt"}, "none.txt")):
        fields = vars(config) | {key: str(files/value) for key, value in change.items()}
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
    tokens = {"<PAD>": 0, "<MASK>": 4, "ሰ": 5, "ላ": 6, "[am]": 7}
    (tmp_path/"vocab.json").write_text(json.dumps(tokens))
    merged = merge_vocabulary(BASE, read_tokens(tmp_path/"vocab.json"), "am")
    assert merged.added == ["[am]", "ሰ", "ላ"]
