"How a model reads: figures that catch what goes wrong, controls that are worse, files, refusals"
import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from audiolab.audio import AudioError, write_audio
from audiolab.tts import (
    BASE_READING, COPY, OTHER_TEXT, READING, RECORDING, SUNG_LETTERS, Codes, Dictation, Entry,
    EvalTTSConfig, SamplingConfig, SpeechEvaluation, Talker, ToneCodec, TTSError,
    check_folder, code_figures, compare_readings, dataset_entries, edit_distance,
    evaluate_reading, find_recogniser, heard_counts, init_t3, letter_codes, letter_speaker,
    letter_tokenizer, longest_loop, make_exercises, mean_figures, other_texts, prepare_exercises,
    reading_faults, reading_page, sound_distance, taught_reader, tts_eval_command, untaught_entries,
    voice_lenders, with_rates, worst_first, write_reading,
)

WORDS = "the sun", "the tin", "sailors", "in turn", "its tail", "rain on tin"
SURE, TONES = SamplingConfig(temperature=0, repetition_penalty=1), ToneCodec()


def by_pitch(audio, rate):
    return letter_speaker(int(TONES.encode(audio, rate).mean() > 26))


def parrot(audio, rate):
    "Understands letters, if they are sung"
    begins = {letter_codes(letter, voice)[0]: letter for voice in (0, 1)
              for letter in SUNG_LETTERS}
    return "".join(begins.get(code, "") for code in TONES.encode(audio, rate).tolist())


@pytest.fixture(scope="module")
def talker():
    return Talker(taught_reader(), letter_tokenizer(), TONES, speakers=by_pitch,
                  prepare=lambda text, language: text)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sung")
    (folder/"wavs").mkdir()
    lines = ["id|text|speaker|language"]
    for number, text in enumerate(WORDS):
        write_audio(folder/"wavs"/f"c{number}.wav",
                    TONES.decode(letter_codes(text, number % 2)), TONES.sample_rate)
        lines.append(f"c{number}|{text}|{'low high'.split()[number % 2]}|en")
    (folder/"metadata.csv").write_text("\n".join([*lines, ""]))
    return folder


@pytest.fixture(scope="module")
def exercises(corpus):
    entries = dataset_entries(corpus)
    return make_exercises(entries, voice_lenders(entries))


@pytest.fixture(scope="module")
def found(talker, exercises, tmp_path_factory):
    "An evaluation of the reader, beside one that has learnt nothing"
    folder = tmp_path_factory.mktemp("out")
    base = replace(talker, model=init_t3(talker.model.config))
    return folder, evaluate_reading(talker, exercises, base=base, dictation=Dictation(parrot),
                                    sampling=replace(SURE, max_tokens=60), folder=folder)


def reading(ids, reason="stop", text="the sun"):
    true = letter_codes(text)
    return with_rates(code_figures(Codes(np.asarray(ids), reason), true, len(true)))


@pytest.mark.parametrize("one, other, count", [
    ("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("ab", "ba", 2)])
def test_edit_distance(one, other, count):
    assert edit_distance(one, other) == edit_distance(other, one) == count


def test_edit_distance_is_that_of_the_table():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = (rng.integers(0, 4, rng.integers(0, 12)).tolist() for _ in range(2))
        table = np.add.outer(np.arange(len(a)+1), np.arange(len(b)+1))
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i+1, j+1] = min(table[i, j]+(x != y), table[i, j+1]+1, table[i+1, j]+1)
        assert edit_distance(a, b) == table[-1, -1]


def test_a_perfect_reading_has_no_fault():
    row = reading(letter_codes("the sun"))
    assert row["token_error"] == 0 and row["length_ratio"] == 1 and not reading_faults(row)


def test_a_loop_is_caught_and_comes_first():
    stuck = reading([*letter_codes("the"), *list(letter_codes("la"))*20], "limit")
    told = " ".join(reading_faults(stuck))
    assert "goes round in a circle" in told and "longer than its text" in told
    well = reading(letter_codes("the sun"))
    rows = [row | {"name": name} for name, row in (("a", well), ("b", stuck))]
    assert worst_first(rows)[0]["name"] == "b"


@pytest.mark.parametrize("ids, size", [([1, 2]*2, 0), ([1, 2]*3, 6), ([7]*3, 3), ([], 0),
                                       ([1, 2, 3, 4], 0), ([9, *[1, 2, 3]*4, 9], 12)])
def test_loops(ids, size):
    assert longest_loop(ids) == size


def test_a_reading_of_nothing():
    row = reading([])
    assert row["token_error"] == 1 and "0.00 times as long" in " ".join(reading_faults(row))


def test_words_are_compared_as_they_are_heard():
    assert heard_counts("It cost 21!", "it cost twenty-one")["word_edits"] == 0
    counts = heard_counts("one two", "one")
    assert (counts["words"], counts["word_edits"]) == (2, 1)
    assert heard_counts("one two", "")["letter_edits"] == 7


def test_rates_are_of_sums():
    rows = [{"word_edits": 0, "words": 9}, {"word_edits": 1, "words": 1}, {}]
    assert mean_figures([with_rates(row) for row in rows])["word_error"] == .1
    assert "word_error" not in mean_figures([{}]) and mean_figures([]) == {}


def test_distance_of_silence_is_not_known():
    tone = TONES.decode(letter_codes("the sun"))
    assert sound_distance(tone, 0*tone, 16000) is None
    assert sound_distance(tone, tone, 16000) == 0


def test_the_reader_is_better_than_its_controls(found):
    means = found[1].means
    assert means[COPY]["token_error"] == 0 == means[RECORDING]["word_error"]
    assert means[READING]["token_error"] < .3 < means[OTHER_TEXT]["token_error"]
    assert means[READING]["nll"]+1 < means[OTHER_TEXT]["nll"]
    assert means[READING]["word_error"] < means[OTHER_TEXT]["word_error"]


def test_the_reader_is_better_than_a_base(found):
    changes = compare_readings(found[1])
    assert changes["nll"]["difference"] < -1 and changes["accuracy"]["difference"] > .3
    assert not found[1].means[BASE_READING]["complete"] == 1
    assert compare_readings(SpeechEvaluation({}, found[1].of_kind(READING))) == {}


def test_it_is_told_how_a_reading_ended(found):
    rows = found[1].of_kind(BASE_READING)
    assert all(row["complete"] == (row["stop_reason"] == "stop") for row in rows)
    assert "limit" in {row["stop_reason"] for row in rows}


def test_files(found):
    folder, evaluation = found
    write_reading(folder, evaluation)
    told = json.loads((folder/"evaluation.json").read_text())
    with (folder/"evaluation.csv").open() as file: rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [row["name"] for row in told["sentences"]]
    assert all((folder/row["file"]).is_file() for row in rows if row["file"])
    assert len(rows) == 5*len(WORDS)


def test_page(found):
    folder, evaluation = found
    text = reading_page(folder, evaluation, shown=2).read_text()
    assert text.count("<h3>") == 2 and text.count("<audio") == 10 and "Where the model" in text


def test_the_same_again(talker, exercises, found):
    again = evaluate_reading(talker, exercises[:2], sampling=replace(SURE, max_tokens=60),
                             other_texts=False)
    codes = {row["name"]: row["token_edits"] for row in found[1].of_kind(READING)}
    assert all(row["token_edits"] == codes[row["name"]] for row in again.of_kind(READING))


def test_a_recogniser_that_raises(talker, exercises):
    def broken(audio, rate): raise RuntimeError("no ears")
    with pytest.raises(TTSError, match="no ears"):
        evaluate_reading(talker, exercises, dictation=Dictation(broken))
    counts = Dictation(broken).counts(exercises[0], np.ones(9), 16000)
    assert "no ears" in counts["problem"] and "words" not in counts


@pytest.mark.parametrize("name", ["whisperer", "math:tau", "nothing.at.all:x", ":x"])
def test_no_recogniser(name):
    with pytest.raises(TTSError, match="asr"): find_recogniser(name)


def test_a_language_that_the_recogniser_does_not_know(exercises):
    assert Dictation(parrot, ("fr",)).counts(exercises[0], np.ones(9), 16000) == {}


def test_what_is_of_no_use_is_left_out(talker, exercises, tmp_path):
    silent = write_audio(tmp_path/"silent.wav", np.zeros(16000, np.float32), 16000)
    bad = replace(exercises[0], entry=replace(exercises[0].entry, path=str(silent)))
    ready, left_out = prepare_exercises(talker, [bad, exercises[1]], by_pitch)
    assert len(ready) == 1 and "silent" in left_out[bad.entry.id]
    with pytest.raises(TTSError, match="silent"): prepare_exercises(talker, [bad], by_pitch)


def test_another_text_and_another_recording(exercises):
    for one in exercises:
        assert one.other in WORDS and one.other != one.entry.text
        assert one.voice != one.entry.path
    alone = Entry("a", "a.wav", "one", "me", "en")
    assert other_texts([alone, replace(alone, language="am", text="two")]) == ["", ""]


def test_taught_texts_are_left_out(exercises):
    entries = [one.entry for one in exercises]
    ids = [np.array([number], np.int32) for number in range(len(entries))]
    assert untaught_entries(entries, ids, {ids[0].tobytes()}) == entries[1:]
    assert untaught_entries(entries, ids, None) == entries
    with pytest.raises(TTSError, match="--which all"):
        untaught_entries(entries, ids, {one.tobytes() for one in ids})


def test_who_was_taught_without_prompts_gets_none(talker, exercises):
    lent = [replace(one, voice=one.entry.path) for one in exercises]
    for seconds, given in ((6., True), (0., False)):
        ready, _ = prepare_exercises(replace(talker, prompt_seconds=seconds), lent, by_pitch)
        assert all((one.voice.prompt is not None) == given for one in ready)


def test_refusals_before_work(corpus, tmp_path):
    (tmp_path/"evaluation.json").write_text("{}")
    with pytest.raises(TTSError, match="--overwrite"):
        tts_eval_command(EvalTTSConfig("m", str(corpus), str(tmp_path)))
    assert check_folder(tmp_path, overwrite=True) == tmp_path
    with pytest.raises((TTSError, AudioError), match="nowhere"):
        tts_eval_command(EvalTTSConfig(str(tmp_path/"nowhere"), str(corpus)))
    assert "6 of 6" in EvalTTSConfig("m", str(corpus)).plan()
    (tmp_path/"metadata.csv").write_text("gone|a text\n")
    with pytest.raises(TTSError, match="gone"): dataset_entries(tmp_path)
