"What somebody meets who begins: wrong places, wrong order, second starts. Nothing is lost or silent."
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tts_corpus import Letters, make_corpus
from tts_runs import changed, fit, settings, small_cache, stopped_at

from audiolab.apps import main
from audiolab.audio import write_audio
from audiolab.config import describe_aliases
from audiolab.tts import (
    SUNG_LETTERS, CacheConfig, EvalTTSConfig, ExtendConfig, InspectT3Config, LoudnessCodec,
    MergeVocabConfig, SamplingConfig, SayConfig, T3Config, Talker, TextTokenizer, TokenCache,
    TokenizerConfig, ToneCodec, TTSConfig, TTSError, VoicePrompt, as_tts_config, build_cache,
    check_folder, chosen_exercises, dataset_entries, describe_t3, extend_command, find_t3,
    init_t3, letter_codes, letter_tokenizer, merge_vocab_command, open_codec, read_t3_notes,
    readable_ids, readable_parts, save_t3, say, stream_say, taught_reader, tokenizer_command,
    train_tokenizer, tts_eval_command, tts_trainer,
)
from audiolab.tts.caching_command import cache_command

TONES, SURE = ToneCodec(), SamplingConfig(temperature=0, repetition_penalty=1)


@pytest.fixture(scope="module")
def talker():
    return Talker(taught_reader(), letter_tokenizer(), TONES, prepare=lambda text, language: text)


@pytest.fixture
def nobody(talker):
    return VoicePrompt(np.zeros(talker.model.config.speaker_size, np.float32), None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A corpus with its cache, and a run that is over"
    folder = tmp_path_factory.mktemp("newcomer")
    small_cache(folder)
    fit(settings(folder, folder/"run", epochs=1))
    return folder


def table(folder, *lines):
    folder.mkdir(exist_ok=True)
    (folder/"metadata.csv").write_text("\n".join(["id|text|speaker|language", *lines, ""]))
    return folder


# tokenizers

def test_the_table_says_the_language(tmp_path):
    "An English table gave an Amharic tokenizer, and the cache found it out"
    english = table(tmp_path/"en", "a|Good morning.|ada|en")
    config = TokenizerConfig(str(english), output=str(tmp_path/"en.json"))
    assert tokenizer_command(config) == 0
    assert TextTokenizer.from_file(config.output).languages == ["en"]
    with pytest.raises(TTSError, match="are in en, and --lang is am"):
        tokenizer_command(replace(config, lang="am"))
    both = table(tmp_path/"both", "a|Good morning.|ada|en", "b|ሰላም።|abe|am")
    with pytest.raises(TTSError, match="has texts in am, en.*--lang"):
        tokenizer_command(replace(config, metadata=str(both)))
    assert tokenizer_command(replace(config, metadata=str(both), lang="am")) == 0


@pytest.mark.parametrize("name", ["metadata.csv", "notes.txt", "other.json"])
def test_no_file_of_another_kind_is_written_over(name, tmp_path):
    folder = table(tmp_path, "a|Good morning.|ada|en")
    (folder/"notes.txt").write_text("years of work")
    (folder/"other.json").write_text('{"mine": 1}')
    before = (folder/name).read_bytes()
    TextTokenizer.save(train_tokenizer(["good"], "char", language="en"), folder/"base.json")
    for command, config in (
            (tokenizer_command, TokenizerConfig(str(folder), output=str(folder/name))),
            (merge_vocab_command, MergeVocabConfig(str(folder/"base.json"),
                                                   output=str(folder/name)))):
        with pytest.raises(TTSError, match="is no tokenizer; name another file"): command(config)
    assert (folder/name).read_bytes() == before


def test_folders_and_tables_in_the_place_of_tokenizers(run, tmp_path):
    base = str(run/"tokenizer.json")
    words = table(tmp_path/"words", "a|Good morning.|ada|en")
    for change, told in (({"new": str(words)}, "audiolab tts tokenizer --metadata"),
                         ({"model": str(run/"run")}, "is a folder; name the file of weights"),
                         ({"base": str(words/"metadata.csv")}, "no tokenizer, which is a file of")):
        fields = {"base": base, "output": str(tmp_path/"x.json")} | change
        with pytest.raises(TTSError, match=told): merge_vocab_command(MergeVocabConfig(**fields))
    assert not (tmp_path/"x.json").exists()


# models

def test_extending_writes_nothing_that_it_cannot_read(run, tmp_path):
    asked = ExtendConfig(str(run/"run"), str(run/"tokenizer.json"), str(tmp_path/"x.pt"))
    with pytest.raises(TTSError, match=r"written as \.safetensors"): extend_command(asked)
    (tmp_path/"mine.safetensors").write_text("not weights")
    with pytest.raises(TTSError, match="is no T3; name another"):
        extend_command(replace(asked, output=str(tmp_path/"mine.safetensors")))
    assert (tmp_path/"mine.safetensors").read_text() == "not weights"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.safetensors"]


def test_a_model_that_is_not_there_or_none(run, tmp_path):
    with pytest.raises(TTSError, match="no such file or folder; name a run.*audiolab tts train"):
        find_t3(tmp_path/"nothing")
    with pytest.raises(TTSError) as caught: read_t3_notes(run/"tokenizer.json")
    assert str(caught.value).count("tokenizer.json") == 1


def test_a_run_brings_its_tokenizer_to_the_map_of_rows(run, tmp_path):
    told = describe_t3(InspectT3Config(str(run/"run")))
    assert "rows of text, by" in told and "language" in told and "[am]" in told
    (tmp_path/"tokenizer.json").write_bytes((run/"tokenizer.json").read_bytes())
    alone = save_t3(init_t3(T3Config.small(40, 8, width=8, heads=1)), tmp_path/"t3.safetensors")
    assert "rows of text, by" not in describe_t3(InspectT3Config(str(alone)))  # perhaps another's


# codecs and caches

def test_addresses_of_codecs(tmp_path):
    with pytest.raises(TTSError, match="is a folder; name the file.*mel:.*model_final.safetensors"):
        open_codec(f"mel:{tmp_path}")
    with pytest.raises(TTSError, match="no such file.*audiolab tts codec"):
        open_codec(f"mel:{tmp_path/'codec.safetensors'}")


def test_a_cache_with_other_settings_says_which_flags(tmp_path):
    corpus = make_corpus(tmp_path/"book", 2)
    build_cache(corpus, Letters(), LoudnessCodec(), tmp_path/"cache")
    with pytest.raises(TTSError, match="another folder .--output., or code all .* --overwrite"):
        build_cache(corpus, Letters(), LoudnessCodec(codes=32), tmp_path/"cache")


def test_a_table_that_does_not_say_its_language(tmp_path, monkeypatch):
    "It was taught without a tag, and said with one"
    corpus = make_corpus(tmp_path/"book", 2)
    (corpus/"metadata.csv").write_text("c0|the words\nc1|more words\n")
    monkeypatch.setattr("audiolab.tts.caching_command.open_codec", lambda *_: LoudnessCodec())
    alone = train_tokenizer(["the words. more"], "char", language="en", output=tmp_path/"en.json")
    config = CacheConfig((str(corpus),), str(tmp_path/"en.json"), "mel:x", str(tmp_path/"cache"),
                         "statistics")
    assert cache_command(config) == 0
    cache = TokenCache(tmp_path/"cache")
    assert cache.languages == ["en"] and alone.pieces(cache.text(0))[1] == "[en]"
    merge_vocab_command(MergeVocabConfig(config.tokenizer, output=str(tmp_path/"both.json")))
    both = replace(config, tokenizer=str(tmp_path/"both.json"), output=str(tmp_path/"new"))
    with pytest.raises(TTSError, match="2 of 2 texts do not say.*c0.*knows am, en.*--language"):
        cache_command(both)
    assert cache_command(replace(both, language="en")) == 0


# training

def test_a_run_that_goes_on_keeps_its_size_and_says_so(run, tmp_path, caplog):
    given = settings(run, tmp_path/"run", epochs=1)
    stopped_at(given, 1)
    with caplog.at_level(logging.WARNING):
        fit(changed(given, model={"small": {"width": 64, "layers": 2, "heads": 2}}), "auto")
    assert "width 64 (it has 32)" in caplog.text and "layers" not in caplog.text
    assert read_t3_notes(tmp_path/"run")[0].width == 32


def test_an_output_that_is_a_file(run, tmp_path, capsys):
    (tmp_path/"run").write_text("mine")
    words = ["tts", "train", "--cache", str(run/"am"), "--tokenizer", str(run/"tokenizer.json"),
             "--output", str(tmp_path/"run"), "--training.device", "cpu"]
    assert main(words) == 2
    assert "is a file, and a run needs a folder" in capsys.readouterr().err
    assert (tmp_path/"run").read_text() == "mine"


def test_the_help_says_what_a_cache_is():
    told = describe_aliases(TTSConfig)
    assert "--cache FOLDER: a single one; --data.caches takes several" in told


def test_an_interval_shorter_than_an_epoch(run, tmp_path):
    "The names of an earlier trainer, which divided by zero there; and one much longer"
    given = settings(run, tmp_path/"run", epochs=1)
    short = {"eval_interval": 1, "save_interval": 2, "log_interval": 1}
    names = {name for name in given["training"] if not name.endswith("_every")}
    kept = {name: given["training"][name] for name in names} | short
    trainer = tts_trainer(as_tts_config(given | {"training": kept}))
    seen = []
    trainer.listeners.append(lambda event: seen.append((event.kind, event.step)))
    result = trainer.fit()
    assert result.step > 2
    assert {step for kind, step in seen if kind == "validation"} == set(range(1, result.step + 1))


def test_two_runs_at_once_know_nothing_of_each_other(run, tmp_path):
    "In one process: no settings, stops or dice of one reach the other"
    alone = fit(settings(run, tmp_path/"alone", epochs=1))
    one, other = (tts_trainer(as_tts_config(settings(run, tmp_path/name, epochs=epochs, **more)))
                  for name, epochs, more in (("one", 1, {}), ("other", 50, {"tokens": 300})))
    other.fit(background=True)
    result = one.fit()
    other.control.stop()
    assert other.join().state == "stopped" and result.state == "completed"
    assert result.step == alone.step and one.control.state != other.control.state
    first, second = (torch.cat([value.flatten() for value in weights_of(tmp_path/name)])
                     for name in ("alone", "one"))
    assert torch.equal(first, second)


def weights_of(folder):
    from audiolab.tts import load_t3
    return load_t3(folder/"model_final.safetensors").state_dict().values()


# reading aloud

def test_letters_that_a_model_was_not_taught(talker, nobody, caplog):
    with pytest.raises(TTSError, match="was taught no ሰ ላ ም, and knows none of the letters"):
        say(talker, "ሰላም", nobody, None, SURE)
    with pytest.raises(TTSError, match="knows none"):
        next(stream_say(talker, "ሰላም", nobody, None, SURE))
    with caplog.at_level(logging.WARNING):
        say(talker, "the sky", nobody, None, replace(SURE, max_tokens=4))
    assert "was taught no k y" in caplog.text
    caplog.clear()
    readable_parts(talker, "the sun, in its house.".replace(",", "").replace(".", ""))
    assert not caplog.text


def test_pieces_are_as_long_as_the_model_takes(talker, nobody):
    "A text that fits into 250 characters did not fit into the model, which was no news to it"
    room = talker.model.config.max_text + 2
    text = " ".join(["the rain on its tail"]*((room + 30)//21 + 1))
    parts, texts = readable_parts(talker, text)
    assert len(parts) > 1 and max(len(ids) for _, ids in texts) <= room
    assert " ".join(part.text for part in parts) == text
    with pytest.raises(TTSError, match="tokens in one word, and the model takes"):
        say(talker, "a"*(room + 1), nobody, None, SURE)


def test_texts_in_files(tmp_path):
    with pytest.raises(TTSError, match="nothing.txt: No such file.*@FILE"):
        SayConfig(f"@{tmp_path/'nothing.txt'}").words()
    (tmp_path/"sound.wav").write_bytes(b"RIFF\xff\xfe\x00")
    with pytest.raises(TTSError, match="sound.wav: not text in UTF-8"):
        SayConfig(f"@{tmp_path/'sound.wav'}").words()


# judging

@pytest.fixture
def sung(tmp_path):
    folder = table(tmp_path/"sung", "a|the sun|low|en", "b|the tin|low|en")
    (folder/"wavs").mkdir()
    for name, text in (("a", "the sun"), ("b", "the tin")):
        write_audio(folder/"wavs"/f"{name}.wav", TONES.decode(letter_codes(text)),
                    TONES.sample_rate)
    return folder


def test_an_evaluation_writes_into_no_folder_of_recordings(sung):
    "It put its sounds and tables among them"
    before = {path.name: path.read_bytes() for path in sung.rglob("*") if path.is_file()}
    for folder in (sung, sung/"wavs", sung/"metadata.csv"):
        with pytest.raises(TTSError, match="holds what is of no evaluation.*--out"):
            tts_eval_command(EvalTTSConfig("m", str(sung), str(folder), overwrite=True))
    (sung/"metadata.csv").rename(sung.parent/"metadata.csv")
    with pytest.raises(TTSError, match="such as a.wav"): check_folder(sung, overwrite=True)
    (sung.parent/"metadata.csv").rename(sung/"metadata.csv")
    assert {path.name: path.read_bytes() for path in sung.rglob("*") if path.is_file()} == before


def test_what_an_evaluation_left_half_done_is_gone_on_with(tmp_path):
    (tmp_path/"wavs").mkdir()
    (tmp_path/"wavs"/"000_model.wav").write_bytes(b"")
    assert check_folder(tmp_path) == tmp_path and check_folder(tmp_path/"new") == tmp_path/"new"


def test_texts_in_a_language_or_letters_that_the_model_does_not_know(talker, sung):
    entries = dataset_entries(sung)
    plain = SimpleNamespace(tokenizer=talker.tokenizer, prepare=talker.prepare)
    assert [len(ids) for ids in readable_ids(entries, plain)] == [9, 9]
    strange = [replace(entries[0], text="why, my sky")]
    with pytest.raises(TTSError, match="unknown to the tokenizer, more than 1%.*y"):
        readable_ids(strange, plain)
    knows = train_tokenizer([SUNG_LETTERS], "char", language="en")
    tagged = SimpleNamespace(tokenizer=knows, prepare=talker.prepare)
    with pytest.raises(TTSError, match="knows en, and the texts are in am"):
        readable_ids([replace(entries[0], language="am")], tagged)
    assert readable_ids(entries, tagged)[0][1] == knows.encode("a", "en")[1]  # with its tag
    (sung/"metadata.csv").write_text("a|the sun\n")  # of the only language that the model knows
    one, = chosen_exercises(EvalTTSConfig("m", str(sung)), tagged)
    assert one.language == one.entry.language == "en"
