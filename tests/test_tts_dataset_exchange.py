"LJSpeech and audio folders become data sets and back; any table is read or refused with a reason."
import json
import os
import random
from dataclasses import replace

import pytest
from program_runs import run
from test_tts_speech_dataset import make_dataset
from tts_corpus import RATE, hum

from audiolab.audio import write_audio
from audiolab.tts import (
    Origin, TTSError, export_audio_folder, export_ljspeech, import_table, open_dataset, read_table,
    split_dataset, write_split,
)

TEXTS = ["the first", "a second, with a comma", 'a "third" one', "ሰላም፣ እንደምን"]


@pytest.fixture
def table(tmp_path):
    (tmp_path/"book/wavs").mkdir(parents=True)
    for number in range(4): write_audio(tmp_path/f"book/wavs/c{number}.wav", hum(number), RATE)
    return tmp_path/"book"


def lines(form):
    "The same four recordings as tables are found in the wild"
    ending = ".wav" if "ending" in form else ""
    if "hub" in form:
        quoted = [text.replace('"', '""') for text in TEXTS]
        cells = [f'wavs/c{n}.wav,"{text}"' for n, text in enumerate(quoted)]
        return "\n".join(["file_name,transcription", *cells])
    often = 2 if "three" in form else 1
    rows = [[f"c{n}{ending}", *[text]*often] for n, text in enumerate(TEXTS)]
    if "header" in form: rows.insert(0, ["id", "text", "normalized_text"][:len(rows[0])])
    return "\n".join("|".join(row) for row in rows) + "\n"


@pytest.mark.parametrize("form", ["two", "three", "two ending", "three ending", "two header",
                                  "three ending header", "hub"])
@pytest.mark.parametrize("newline, mark", [("\n", ""), ("\r\n", "\ufeff")])
def test_tables_as_they_are_found(table, tmp_path, form, newline, mark):
    "Names without .wav and with it: defect 12"
    (table/"metadata.csv").write_bytes((mark + lines(form).replace("\n", newline)).encode())
    found = import_table(table, tmp_path/"new", "en")
    assert [s.text for s in found.segments] == TEXTS
    prefix = "wavs_c" if form == "hub" else "c"
    assert {s.id for s in found.segments} == {f"{prefix}{n}" for n in range(4)}
    assert all(abs(s.seconds - 1.2) < .01 and s.speaker == "book" for s in found.segments)


def test_a_list_of_objects(table, tmp_path):
    rows = [{"file_name": f"wavs/c{n}.wav", "text": text, "speaker": f"v{n}", "more": [1]}
            for n, text in enumerate(TEXTS)]
    (table/"metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = import_table(table, tmp_path/"new", "am")
    assert [(s.text, s.speaker, s.language) for s in found.segments] == [
        (text, f"v{n}", "am") for n, text in enumerate(TEXTS)]


@pytest.mark.parametrize("line", [
    "{", "[]", "{}", '{"file_name": "wavs/c9.wav", "text": "a"}', '{"file_name": 3, "text": "a"}',
    '{"file_name": "wavs/c0.wav"}', '{"file_name": "wavs/c0.wav", "text": "..."}', "[" * 9999])
def test_objects_that_are_none(table, tmp_path, line):
    (table/"metadata.jsonl").write_text('{"file_name": "wavs/c1.wav", "text": "good"}\n' + line)
    with pytest.raises(TTSError, match="metadata.jsonl: 1 lines cannot be used: line 2"):
        import_table(table, tmp_path/"new")
    assert sorted(os.listdir(tmp_path)) == ["book"]


def test_nothing_is_taken_from_outside(table, tmp_path):
    write_audio(tmp_path/"secret.wav", hum(9), RATE)
    (table/"metadata.csv").write_text("../../secret.wav|words\n")
    with pytest.raises(TTSError, match="book: the sound of .* lies outside"):
        import_table(table, tmp_path/"new")
    os.symlink(tmp_path/"secret.wav", table/"wavs/link.wav")
    (table/"metadata.csv").write_text("link|words\n")
    with pytest.raises(TTSError, match="lies outside"): import_table(table, tmp_path/"new")


def told(dataset): return [(s.id, s.text, dataset.path(s).read_bytes()) for s in dataset.accepted]


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("ending", [False, True])
def test_out_and_in_again(tmp_path, columns, ending):
    dataset = make_dataset(tmp_path/"film")
    export_ljspeech(dataset, tmp_path/"lj", columns, ending)
    first = (tmp_path/"lj/metadata.csv").read_text().splitlines()[0].split("|")
    assert len(first) == columns and first[0] == "film_0" + ".wav"*ending
    assert told(import_table(tmp_path/"lj", tmp_path/"back")) == told(dataset)


def test_other_formats_are_decoded_for_ljspeech(tmp_path):
    dataset = make_dataset(tmp_path/"film", 2, ())
    write_audio(tmp_path/"film/wavs/film_0.flac", hum(5), RATE)
    dataset.segments[0] = replace(dataset.segments[0], file="wavs/film_0.flac")
    export_ljspeech(dataset, tmp_path/"lj")
    assert (tmp_path/"lj/wavs/film_0.wav").read_bytes()[:4] == b"RIFF"
    export_audio_folder(dataset, tmp_path/"hub")
    sounds = [tmp_path/"hub/film_0.flac", tmp_path/"film/wavs/film_0.flac"]
    assert sounds[0].read_bytes() == sounds[1].read_bytes()


def test_an_audio_folder_has_the_parts_of_a_split(tmp_path):
    dataset = make_dataset(tmp_path/"film", 6, (), 3)
    dataset.segments[0] = replace(dataset.segments[0], text='with "marks", and commas',
                                  origin=Origin("film0.mp4", 0, 1))
    parts = split_dataset(dataset, .4, .3, .3)
    write_split(dataset, parts)
    hub = export_audio_folder(dataset, tmp_path/"hub")
    names = {"train": "train", "val": "validation", "test": "test"}
    for part, some in parts.items():
        read = read_table(hub/names[part])
        found, wanted = ([(e.id, e.text, e.speaker, e.language) for e in them]
                         for them in (read, some))
        assert found == wanted


PIECES = [b"|", b"\n", b"\r", b"\xff", b"\xef\xbb\xbf", b"\0", b'"', b",", b"id|text\n", b"../",
          b"/etc/passwd|a\n", b"c0|", b"c1.wav", b"a"*300, b"\xe2\x80\xa8", b"c2|words|words",
          b"file_name,text\n", b"seconds", b"|1e999", b"\t", "ሰላም".encode()]


def fuzz_once(table, raw, rng, number):
    "Damage a table; it is read, or the error names it, and nothing is written elsewhere"
    damage = bytearray(raw)
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(damage) + 1)
        if rng.random() < .3: del damage[at:at + rng.randint(1, 30)]
        else: damage[at:at] = rng.choice(PIECES)
    (table/"metadata.csv").write_bytes(damage)
    new = table.parent/"new"
    try: found = import_table(table, new) if number % 20 == 0 else read_table(table)
    except TTSError as error: assert str(table) in str(error)
    else: assert len(found) > 0
    if new.exists(): new.rename(table.parent.parent/f"out/{number}")


@pytest.mark.parametrize("times", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_fuzzed_tables(tmp_path, times):
    (tmp_path/"in/book/wavs").mkdir(parents=True)
    (tmp_path/"out").mkdir()
    table = tmp_path/"in/book"
    for number in range(4): write_audio(table/f"wavs/c{number}.wav", hum(number, .1), RATE)
    raw = [lines(form).encode() for form in ("two", "three ending header", "hub")]
    rng = random.Random(7)
    for number in range(times): fuzz_once(table, raw[number % 3], rng, number)
    assert sorted(os.listdir(table)) == ["metadata.csv", "wavs"]
    assert os.listdir(tmp_path/"in") == ["book"]


def test_the_commands(table, tmp_path, capsys):
    (table/"metadata.csv").write_text(lines("two"))
    code, _, err = run(capsys, "tts", "import-table", str(table), str(tmp_path/"new"),
                       "--language", "en")
    assert code == 0, err
    code, _, err = run(capsys, "tts", "export", str(tmp_path/"new"), str(tmp_path/"lj"),
                       "--columns", "2", "--ending")
    assert code == 0, err
    assert (tmp_path/"lj/metadata.csv").read_text() == lines("two ending")
    assert len(open_dataset(tmp_path/"new")) == 4
    assert run(capsys, "tts", "import-table", str(table), str(tmp_path/"new"))[0] == 2
