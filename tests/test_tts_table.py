"A table of recordings and words: how it may look, and that every damage is told with its line."
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tts_corpus import make_corpus

from audiolab.tts import (
    Entry, TTSError, cut_line, header_columns, header_seconds, read_table, table_summary,
    write_table,
)


@pytest.fixture
def corpus(tmp_path): return make_corpus(tmp_path/"book", 4)


def rewrite(corpus, text, encoding="utf-8"):
    (corpus/"metadata.csv").write_bytes(text.encode(encoding))
    return corpus


def test_what_is_written_is_read(corpus):
    entries = read_table(corpus)
    assert [entry.id for entry in entries] == ["c0", "c1", "c2", "c3"]
    assert {entry.speaker for entry in entries} == {"v0", "v1"} and entries[1].language == "en"
    assert all(entry.path.endswith(f"wavs/{entry.id}.wav") for entry in entries)


@pytest.mark.parametrize("text", [
    "c0|One.\nc1|2|Two.\n", "c0.wav|One.\nc1.wav|2|Two.", "wavs/c0.wav|One.\r\nwavs/c1|2|Two.\r\n",
    "\ufeffc0|One.\n\nc1|2|Two.\n\n", "file_name,text\nc0,One.\nc1,Two.\n",
    "audio_file|text|lang\nc0|One.|\nc1|Two.|\n", 'id\ttext\nc0\tOne.\nc1\tTwo.\n'])
def test_tables_as_they_are_found(corpus, text):
    entries = read_table(rewrite(corpus, text), language="am", speaker="anna")
    assert [(entry.id.removeprefix("wavs/"), entry.text) for entry in entries] == [
        ("c0", "One."), ("c1", "Two.")]
    assert {(entry.language, entry.speaker) for entry in entries} == {("am", "anna")}


def test_a_comma_in_quotation_marks_and_marks_that_mean_themselves(corpus):
    assert read_table(rewrite(corpus, 'id,text\nc0,"Yes, it is"\n'))[0].text == "Yes, it is"
    assert read_table(rewrite(corpus, 'c0|"Yes", she said\n'))[0].text == '"Yes", she said'


@pytest.mark.parametrize("line, why", [
    ("c1", "1 columns"), ("c1|a|b|c", "4 columns"), ("|words", "no name"), ("c1|", "no words"),
    ("c1|?!", "no words"), ("c9|words", "no sound file 'c9'"), ("c0|words", "stands in line 1"),
    ("c1|wo\x07rds", "control characters"), ("empty|words", "is empty (0 bytes)")])
def test_each_damage_has_its_line(corpus, line, why):
    (corpus/"wavs"/"empty.wav").write_bytes(b"")
    with pytest.raises(TTSError, match="1 of its lines cannot be used: line 2: ") as told:
        read_table(rewrite(corpus, f"c0|words\n{line}\nc2|words\n"))
    assert why in str(told.value)


def test_all_damage_at_once_and_half_of_the_sound_missing(corpus):
    for number in (1, 3): (corpus/"wavs"/f"c{number}.wav").unlink()
    with pytest.raises(TTSError, match="2 of its lines .*line 3.*'c1'.*line 5.*'c3'"):
        read_table(corpus)


def test_seconds_that_are_none(corpus):
    with pytest.raises(TTSError, match="line 3"):
        read_table(rewrite(corpus, "id|text|seconds\nc0|a|1.5\nc1|b|soon\n"))
    with pytest.raises(TTSError, match="line 2: -3 seconds"):
        read_table(rewrite(corpus, "id|text|seconds\nc0|a|-3\n"))


def test_no_table_no_text_and_no_lines(corpus, tmp_path):
    with pytest.raises(TTSError, match="a corpus is a folder"): read_table(tmp_path/"nowhere")
    with pytest.raises(TTSError, match="line 2: not UTF-8"):
        read_table(rewrite(corpus, "c0|a\nc1|\u00e9t\u00e9\n", "latin-1"))
    with pytest.raises(TTSError, match="names no recordings"): read_table(rewrite(corpus, "\n"))


def test_sound_that_is_cut_off_is_told_by_its_head(corpus):
    path = corpus/"wavs"/"c2.wav"
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(TTSError, match="1 of 4 sound files cannot be used.*c2.wav"):
        header_seconds(read_table(corpus))


def test_how_much_there_is(corpus):
    entries = read_table(corpus)
    rows = table_summary(entries, header_seconds(entries))
    assert [(row["speaker"], row["clips"]) for row in rows] == [("v0", 2), ("v1", 2)]
    assert sum(row["hours"] for row in rows) == pytest.approx(4*1.2/3600, abs=1e-4)


def test_what_no_line_can_hold_is_refused(tmp_path):
    with pytest.raises(TTSError, match="has a bar or a new line"):
        write_table(tmp_path, [Entry("a", "", "one|two", "v")])


@given(st.text('ab|,"\t\u00e9\u1230 ', max_size=40))
@settings(max_examples=100)
def test_any_line_is_cut_or_refused(line):
    header_columns(line)
    try: cells = cut_line(line, None)
    except ValueError: return
    assert set(cells) <= {"id", "text", "spoken"}


@given(st.binary(max_size=200))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_a_table_or_an_error(corpus, raw):
    (corpus/"metadata.csv").write_bytes(raw)
    try: entries = read_table(corpus)
    except TTSError as error: assert "metadata.csv" in str(error)
    else: assert entries


def test_who_speaks_stands_in_dataset_json(corpus):
    (corpus/"metadata.csv").write_text("c0|words\nc1.wav|more words\n")
    beside = {"format": "audiolab speech data set", "segments": [
        {"id": "c0", "speaker": "anna", "language": "am"}, {"id": "c1", "speaker": 7}, 9,
        {"id": []}]}
    (corpus/"dataset.json").write_text(json.dumps(beside))
    found = read_table(corpus, "en")
    assert [(e.speaker, e.language) for e in found] == [("anna", "am"), ("book", "en")]
    (corpus/"metadata.csv").write_text("id|text|speaker\nc0|words|beth\n")
    assert read_table(corpus)[0].speaker == "beth"  # the table's own word counts more


@pytest.mark.parametrize("raw, read", [
    ("{}", True), ("[]", True), ('{"format": "x", "segments": 3}', True), ("{", False),
    ("[" * 99_999, False), ('{"a":1,"a":2}', False)])
def test_a_dataset_json_of_others_and_a_damaged_one(corpus, raw, read):
    (corpus/"dataset.json").write_text(raw)
    if read: assert len(read_table(corpus)) == 4
    else:
        with pytest.raises(TTSError, match="dataset.json: cannot be read.*move it away"):
            read_table(corpus)
