"A model file for a wider vocabulary: what does not belong together is told, and nothing written."
import logging

import pytest
import torch

from audiolab.tts import (
    ExtendConfig, T3Config, TTSError, extend_command, extend_file, init_t3, load_t3,
    merge_vocabulary, read_t3_notes, rows_to_have, save_t3, straddling_script, train_tokenizer,
)

TABLES = "text_emb.weight", "text_head.weight"
TEXT = "the quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "A base, its vocabulary, and one with syllables."
    folder = tmp_path_factory.mktemp("base")
    base = train_tokenizer([TEXT], kind="char", language="en")
    wide = merge_vocabulary(base, [*"ሀለመሰረበተነአከ።"], "am").tokenizer
    base.save(folder/"base.json")
    wide.save(folder/"wide.json")
    config = T3Config.small(len(base), 20, width=32, layers=1, heads=2)
    save_t3(init_t3(config), folder/"base.safetensors", {"card": "mine"})
    return folder, base, wide


def config_of(files, output, **more):
    folder = files[0]
    base, vocabulary = str(folder/"base.safetensors"), str(folder/"wide.json")
    return ExtendConfig(base, vocabulary, str(output), **more)


@pytest.mark.parametrize("init", ["mean_noise", "phonetic", "normal"])
def test_base_rows_stay_and_the_file_says_what_is_new(files, tmp_path, init):
    folder, base, wide = files
    before = load_t3(folder/"base.safetensors").state_dict()
    assert extend_command(config_of(files, tmp_path/"wide.safetensors", size=80, init=init)) == 0
    after = load_t3(tmp_path/"wide.safetensors").state_dict()
    for name, value in before.items(): assert torch.equal(after[name][:len(value)], value)
    assert [len(after[name]) for name in TABLES] == [80, 80]
    form, notes = read_t3_notes(tmp_path/"wide.safetensors")
    assert form.text_vocab == 80 and notes["base_rows"] == len(base) and notes["card"] == "mine"
    assert notes["tokens"] == len(wide) and notes["tokenizer"] == wide.fingerprint()
    assert "am" in notes["languages"]


def test_syllables_begin_between_their_letters(files, tmp_path):
    _, base, wide = files
    path = extend_file(config_of(files, tmp_path/"x.safetensors", init="phonetic"))
    rows, row = load_t3(path).state_dict()[TABLES[0]], wide.layout.tokens
    near = (rows[row["s"]] + rows[row["e"]])/2
    assert (rows[row["ሰ"]] - near).norm() < .3*rows.norm(dim=1).mean()


def test_as_many_rows_as_are_needed(files, tmp_path):
    path = extend_file(config_of(files, tmp_path/"x.safetensors"))
    assert read_t3_notes(path)[0].text_vocab == len(files[2])


@pytest.mark.parametrize("numbers, told", [
    ((2454, 2352), "another base"), ((2454, 2789, 2454), "--size 2789"),
    ((3000, 2789), "--size says"), ((3000, 2789, 2800), "cut some off")])
def test_sizes_that_do_not_fit(numbers, told):
    with pytest.raises(TTSError, match=told): rows_to_have(*numbers)


def test_sizes_that_fit():
    assert rows_to_have(2454, 2789) == 2789 and rows_to_have(2454, 2789, 3000) == 3000
    assert rows_to_have(3000, 2789, 3000) == 3000 and rows_to_have(2454, 2454) == 2454


def test_nothing_is_written_where_it_cannot_be(files, tmp_path):
    target = tmp_path/"x.safetensors"
    small = config_of(files, target, size=3)
    with pytest.raises(TTSError, match="--size"): extend_command(small)
    assert "cannot run" in small.plan() and not target.exists()
    base = config_of(files, files[0]/"base.safetensors")
    with pytest.raises(TTSError, match="base itself"): extend_file(base)
    missing = ExtendConfig(str(tmp_path/"none"), str(files[0]/"wide.json"), str(target))
    with pytest.raises(TTSError, match="none"): extend_file(missing)
    assert "cannot run" in missing.plan()


def test_extended_twice_the_base_is_what_had_a_meaning(files, tmp_path):
    wide = files[2]
    first = extend_file(config_of(files, tmp_path/"first.safetensors", size=80))
    more = merge_vocabulary(wide, [*"αβγδ"], "el").tokenizer
    more.save(tmp_path/"more.json")
    second = extend_file(ExtendConfig(str(first), str(tmp_path/"more.json"),
                                      str(tmp_path/"second.safetensors"), 80))
    assert read_t3_notes(second)[1]["base_rows"] == len(wide)


def test_a_vocabulary_of_another_base_is_noticed(files, tmp_path, caplog):
    folder, base, wide = files
    short = T3Config.small(len(base) + 3, 20, width=32, layers=1, heads=2)
    save_t3(init_t3(short), tmp_path/"other.safetensors")
    config = ExtendConfig(str(tmp_path/"other.safetensors"), str(folder/"wide.json"),
                          str(tmp_path/"x.safetensors"))
    with caplog.at_level(logging.WARNING): extend_file(config)
    assert "ETHIOPIC" in caplog.text
    assert straddling_script(wide.layout.tokens, len(base)) == ""
