"A data set of speech on disk: written whole, read with suspicion, edited by hand."
import json, os, random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tts_corpus import RATE, hum

from audiolab.audio import write_audio
from audiolab.tts import (
    Issue, Origin, Segment, SpeechDataset, TTSError, as_row, build_cache, dataset_json,
    open_dataset, plain_name, read_table, segment_of, speech_dataset, table_text, why_no_name,
    write_dataset,
)


def make_dataset(folder, count=4, rejected=(3,), recordings=2, first=0):
    "Segments of some recordings, the rejected ones with an issue"
    (folder/"wavs").mkdir(parents=True)
    segments = []
    for number in range(count):
        id = f"{folder.name}_{number}"
        write_audio(folder/"wavs"/f"{id}.wav", hum(number + first), RATE)
        wrong = (Issue("too-fast", "41 characters a second"),) if number in rejected else ()
        segments.append(Segment(id, f"wavs/{id}.wav", f"the words of {'abcdefghij'[number % 10]}", f"v{number % 2}", "en",
                                Origin(f"film{number % recordings}.mp4", number, number + 1.2), 1.2,
                                {"snr": 20.0 + number}, wrong, number not in rejected))
    sources = {f"film{n}.mp4": {"seconds": 60.0} for n in range(recordings)}
    dataset = SpeechDataset(folder, segments, sources, {"how": "hand"})
    write_dataset(dataset)
    return dataset


@pytest.fixture
def dataset(tmp_path): return make_dataset(tmp_path/"film")


def test_what_is_written_is_read(dataset):
    assert open_dataset(dataset.folder) == dataset
    assert (dataset.folder/"metadata.csv").read_text().splitlines() == [
        f"film_{n}|the words of {letter}|the words of {letter}" for n, letter in enumerate("abc")]
    assert [entry.id for entry in read_table(dataset.folder)] == ["film_0", "film_1", "film_2"]


def test_the_cache_of_tokens_takes_it(dataset, tmp_path):
    from tts_corpus import Letters

    from audiolab.tts import LoudnessCodec
    cache = build_cache(dataset.folder, Letters(), LoudnessCodec(), tmp_path/"cache",
                        "statistics", language="en")
    assert len(cache) == 3


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "a.", "a.wav", "a b", "a\n", "a|b",
                                  "x"*201, "a\\b", "c:", "a\ud800"])
def test_names_that_are_no_files(name):
    assert why_no_name(name)
    assert not why_no_name(plain_name(name))


@given(st.text(max_size=60))
@settings(max_examples=150)
def test_any_text_has_a_name_and_fits_a_line(text):
    assert not why_no_name(plain_name(text)) and plain_name(plain_name(text)) == plain_name(text)
    fitting = table_text(text)
    assert table_text(fitting) == fitting and not set(fitting) & set("|\n\r\x85")


@pytest.mark.parametrize("change, why", [
    ({"text": "a|b"}, "bars"), ({"text": "..."}, "no words"), ({"file": None}, "no sound"), ({"speaker": ""}, "no speaker"),
    ({"file": "wavs/other.wav"}, "is not wavs/ID"),
    ({"file": "/wavs/film_0.wav"}, "is not wavs/ID"),
    ({"figures": {"snr": float("nan")}}, "cannot be measured"), ({"seconds": float("inf")}, "is no time"),
    ({"seconds": -1}, "is no time"), ({"origin": Origin("f", 2, 1)}, "before it begins"), ({"id": "FILM_1"}, "wavs/ID"),
    ({"issues": (Issue("Too fast", ""),)}, "the code"), ({"speaker": "a\nb"}, "breaks")])
def test_what_cannot_be_a_segment_is_not_written(dataset, change, why):
    before = (dataset.folder/"dataset.json").read_bytes()
    dataset.segments[0] = replace(dataset.segments[0], **change)
    with pytest.raises(TTSError, match="segment 1") as told: write_dataset(dataset)
    assert why in str(told.value) and str(dataset.folder) in str(told.value)
    assert (dataset.folder/"dataset.json").read_bytes() == before


def test_names_that_are_one_file_elsewhere(dataset):
    dataset.segments.append(replace(dataset.segments[0], id="FILM_0", file="wavs/FILM_0.wav"))
    with pytest.raises(TTSError, match="is that of segment 1"): write_dataset(dataset)


@pytest.mark.parametrize("made", [{"a": float("nan")}, {"a": object()}, {"a": "\ud800"}])
def test_what_json_cannot_hold_is_refused(dataset, made):
    with pytest.raises(TTSError, match="made or sources"):
        write_dataset(replace(dataset, made=made))


def test_half_of_the_sound_missing_and_links(dataset):
    (dataset.folder/"wavs/film_1.wav").unlink()
    (dataset.folder/"wavs/film_2.wav").unlink()
    os.symlink("/etc/passwd", dataset.folder/"wavs/film_2.wav")
    with pytest.raises(TTSError, match="2 of 3 sound files are missing, empty or links: wavs/film_1.wav, wavs/film_2.wav"):
        open_dataset(dataset.folder)


def test_a_folder_of_sound_that_is_a_link(dataset, tmp_path):
    (dataset.folder/"wavs").rename(tmp_path/"elsewhere")
    (dataset.folder/"wavs").symlink_to(tmp_path/"elsewhere")
    with pytest.raises(TTSError, match="wavs: is a link"): open_dataset(dataset.folder)


def test_a_rejected_segment_needs_no_sound(dataset):
    (dataset.folder/"wavs/film_3.wav").unlink()
    assert len(open_dataset(dataset.folder)) == 4


def damaged(dataset, change):
    path = dataset.folder/"dataset.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    return dataset.folder


@pytest.mark.parametrize("change, why", [
    (lambda t: t.update(version=2), "version is 2"), (lambda t: t.update(format="x"), "format is not"),
    (lambda t: t.pop("sources"), "'sources' is missing"), (lambda t: t.update(more=1), "'more' is missing, unknown"),
    (lambda t: t.update(segments={}), "'segments'"), (lambda t: t.update(sources={"a": 1}), "sources are not"),
    (lambda t: t["segments"][1].update(file="../../etc/passwd"), "segment 2: the file"),
    (lambda t: t["segments"][1].update(colour=1), "segment 2: the key 'colour'"),
    (lambda t: t["segments"][1].pop("text"), "segment 2: has no 'text'"),
    (lambda t: t["segments"][1].update(accepted=1), "segment 2: accepted is 1"),
    (lambda t: t["segments"][1].update(seconds=True), "segment 2: seconds is True"),
    (lambda t: t["segments"][1].update(origin=["f", 1]), "segment 2: origin is"),
    (lambda t: t["segments"][1].update(issues=[["a"]]), "segment 2: issues are"),
    (lambda t: t["segments"][1].update(figures={"a": None}), "segment 2: figures are"),
    (lambda t: t["segments"].__setitem__(1, 7), "segment 2: is no JSON object"),
    (lambda t: t["segments"].append(t["segments"][0]), "is that of segment 1")])
def test_each_damage_is_told_with_file_and_segment(dataset, change, why):
    folder = damaged(dataset, change)
    with pytest.raises(TTSError, match="dataset.json: ") as told: open_dataset(folder)
    assert why in str(told.value)


@pytest.mark.parametrize("raw", [b"", b"{", b"[" * 100_000, b"[]", b"\xff\xfe", b'{"format":1,"format":1}', b"[1e999]", b"[NaN]",
                                 b"[" + b"[]," * 4_000_000 + b"1]"], ids=lambda raw: f"{raw[:8]!r}-{len(raw)}")
def test_no_data_set_at_all(dataset, raw):
    (dataset.folder/"dataset.json").write_bytes(raw)
    with pytest.raises(TTSError, match="dataset.json: is no data set that can be read"):
        open_dataset(dataset.folder)


def test_no_file_and_a_folder_in_its_place(dataset, tmp_path):
    with pytest.raises(TTSError, match="write_dataset makes one"): open_dataset(tmp_path)
    (tmp_path/"dataset.json").mkdir()
    with pytest.raises(TTSError, match="not a regular file"): open_dataset(tmp_path)


def test_death_between_the_two_files(dataset, monkeypatch):
    "The table that is there is known to be the old one, and is written anew"
    old = (dataset.folder/"metadata.csv").read_bytes()
    dataset.segments[0] = replace(dataset.segments[0], text="other words")
    durable_write = speech_dataset.durable_write

    def dies(path, chunks):
        if path.name == "metadata.csv": raise KeyboardInterrupt
        return durable_write(path, chunks)
    monkeypatch.setattr(speech_dataset, "durable_write", dies)
    with pytest.raises(KeyboardInterrupt): write_dataset(dataset)
    assert (dataset.folder/"metadata.csv").read_bytes() == old
    monkeypatch.undo()
    assert open_dataset(dataset.folder).find("film_0").text == "other words"
    assert read_table(dataset.folder)[0].text == "other words"


def test_a_table_edited_by_hand(dataset):
    table = dataset.folder/"metadata.csv"
    table.write_text("\ufefffilm_0|new words|new words\r\nfilm_3|wanted|wanted after all\r\n")
    with pytest.raises(TTSError, match="was edited since"): open_dataset(dataset.folder)
    found = open_dataset(dataset.folder, "adopt")
    assert [(s.text, s.accepted) for s in found.segments] == [
        ("new words", True), ("the words of b", False), ("the words of c", False), ("wanted after all", True)]
    assert found.segments[1].issues[-1].code == "taken-out"
    assert open_dataset(dataset.folder) == found and len(read_table(dataset.folder)) == 2


def test_an_edit_that_is_thrown_away(dataset):
    (dataset.folder/"metadata.csv").write_text("film_0|new words|new words\n")
    assert open_dataset(dataset.folder, "discard") == dataset == open_dataset(dataset.folder)


@pytest.mark.parametrize("line", ["film_9|a|b", "film_0|a|b|c", "film_0", "film_0|a\nfilm_0|b"])
def test_an_edit_that_is_none(dataset, line):
    (dataset.folder/"metadata.csv").write_text(f"{line}\n")
    with pytest.raises(TTSError, match="metadata.csv, line [12]"): open_dataset(dataset.folder, "adopt")


def fuzz_once(folder, raw, rng):
    "Damage dataset.json in some places; it is read, or the error names it"
    damage = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(damage))
        kind = rng.randrange(4)
        if kind == 0: damage[at] = rng.randrange(256)
        elif kind == 1: del damage[at:at + rng.randint(1, 40)]
        elif kind == 2: damage[at:at] = rng.choice([b'"', b"{", b"]", b"null", b"-1", b"1e400", b"\\u0000", b"../", b"|"])
        else: damage[at:at] = damage[rng.randrange(len(damage)):][:rng.randint(1, 60)]
        if not damage: damage = bytearray(b" ")
    (folder/"dataset.json").write_bytes(damage)
    try: found = open_dataset(folder, "discard")
    except TTSError as error: assert str(folder) in str(error)
    else: assert all(s.file is None or s.file.startswith("wavs/") for s in found.segments)


@pytest.mark.parametrize("times", [60, pytest.param(10_000, marks=pytest.mark.slow)])
def test_fuzzed_data_sets(dataset, times):
    raw, rng = dataset_json(dataset), random.Random(5)
    for _ in range(times): fuzz_once(dataset.folder, raw, rng)
    assert sorted(os.listdir(dataset.folder.parent)) == ["film"]


def test_rows_go_there_and_back(dataset):
    for segment in dataset.segments:
        assert segment_of(json.loads(json.dumps(as_row(segment)))) == segment
