"Merges of data sets: names that stay, nothing twice, a folder that is there whole or not at all."
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from program_runs import run
from test_tts_speech_dataset import make_dataset
from tts_corpus import RATE, hum

from audiolab.audio import write_audio
from audiolab.tts import (
    Issue, Origin, SpeechDataset, TTSError, dataset_merge, free_name, merge_datasets,
    open_dataset, plain_name, read_table, split_dataset, why_no_name, write_dataset,
)


@pytest.fixture
def films(tmp_path):
    "Two data sets of the same names and other sounds"
    one = make_dataset(tmp_path/"one", 4, (3,), first=0)
    two = make_dataset(tmp_path/"two", 4, (3,), first=20)
    for dataset in (one, two): rename(dataset, "film")
    return one, two


def rename(dataset, prefix):
    for number, segment in enumerate(dataset.segments):
        file = f"wavs/{prefix}_{number}.wav"
        (dataset.folder/segment.file).rename(dataset.folder/file)
        dataset.segments[number] = replace(segment, id=f"{prefix}_{number}", file=file)
    write_dataset(dataset)


def ids(dataset): return [segment.id for segment in dataset.segments]


def test_names_stay_unless_they_clash(films, tmp_path):
    merged = merge_datasets([d.folder for d in films], tmp_path/"both")
    assert ids(merged) == ["film_0", "film_1", "film_2", "two_film_0", "two_film_1", "two_film_2"]
    for segment, old in zip(merged.segments, films[0].accepted + films[1].accepted):
        assert segment.text == old.text and segment.speaker == old.speaker
    new, old = merged.path(merged.segments[3]), films[1].path(films[1].segments[0])
    assert new.read_bytes() == old.read_bytes()
    assert [entry.id for entry in read_table(tmp_path/"both")] == ids(merged)
    assert merged.made["merged_from"] == ["one", "two"]


def test_a_merge_of_merges_has_no_double_prefix(films, tmp_path):
    "Names of the original grew with each merge: defect 12"
    folders = [d.folder for d in films]
    both = merge_datasets(folders, tmp_path/"both")
    third = make_dataset(tmp_path/"third", 2, (), first=40)
    rename(third, "film")
    again = merge_datasets([both.folder, third.folder, films[1].folder], tmp_path/"again")
    assert ids(again) == [*ids(both), "third_film_0", "third_film_1"]
    more = merge_datasets([again.folder, both.folder], tmp_path/"more")
    assert ids(more) == ids(again) and len(more.made["left_out"]) == len(both)


def test_names_of_two_merges_that_clash_get_no_second_prefix(films, tmp_path):
    both = merge_datasets([d.folder for d in films], tmp_path/"both")
    others = [make_dataset(tmp_path/"other"/name, 4, (3,), first=first)
              for name, first in (("one", 50), ("two", 70))]
    for dataset in others: rename(dataset, "film")
    pair = merge_datasets([d.folder for d in others], tmp_path/"pair")
    found = ids(merge_datasets([both.folder, pair.folder], tmp_path/"all"))
    assert found[6:] == ["pair_film_0", "pair_film_1", "pair_film_2",
                         "two_film_0_2", "two_film_1_2", "two_film_2_2"]


def test_the_same_sound_is_there_once_whatever_its_format(films, tmp_path):
    one, two = films
    old = two.segments[0]
    (two.folder/old.file).unlink()
    plain = np.round(hum(1)*2**15)/2**15  # as 16 bits hold it
    write_audio(one.folder/"wavs/film_1.wav", plain, RATE)
    write_audio(two.folder/"wavs/film_0.flac", plain, RATE)
    two.segments[0] = replace(old, file="wavs/film_0.flac")
    write_dataset(two)
    merged = merge_datasets([one.folder, two.folder], tmp_path/"both")
    assert merged.made["left_out"] == [["two", "film_0", "one", "film_1"]]
    assert len(merged) == 5


def test_a_double_with_another_text_is_told(films, tmp_path, caplog):
    one, two = films
    write_audio(two.folder/"wavs/film_2.wav", hum(0), RATE)
    merge_datasets([one.folder, two.folder], tmp_path/"both")
    assert "two/film_2 sounds like one/film_0, but has another text" in caplog.text


def test_rejected_segments_come_along_on_wish(films, tmp_path):
    one, two = films
    (two.folder/"wavs/film_3.wav").unlink()  # nobody needs the sound of a rejected one
    merged = merge_datasets([one.folder, two.folder], tmp_path/"both", include_invalid=True)
    assert [s.id for s in merged.rejected] == ["film_3", "two_film_3"]
    assert [s.file for s in merged.rejected] == ["wavs/film_3.wav", None]
    assert merged.rejected[0].issues == (Issue("too-fast", "41 characters a second"),)
    assert not merge_datasets([one.folder, two.folder], tmp_path/"valid").rejected


def test_an_accepted_one_stays_before_a_rejected_one(films, tmp_path):
    one, two = films
    write_audio(one.folder/"wavs/film_3.wav", hum(20), RATE)  # sounds like two's first
    merged = merge_datasets([one.folder, two.folder], tmp_path/"both", include_invalid=True)
    assert merged.made["left_out"] == [["one", "film_3", "two", "film_0"]]
    assert merged.find("film_0").accepted and merged.find("two_film_0").accepted


def test_recordings_of_one_name_are_told_apart_if_they_differ(films, tmp_path):
    one, two = films
    two.sources["film0.mp4"] = {"seconds": 7.}
    write_dataset(two)
    merged = merge_datasets([one.folder, two.folder], tmp_path/"both")
    assert sorted(merged.sources) == ["film0.mp4", "film1.mp4", "two_film0.mp4"]
    assert merged.find("two_film_0").group == "two_film0.mp4"
    assert merged.find("two_film_1").group == "film1.mp4"  # the same recording: one side of a split
    parts = split_dataset(merged, .6, .4, 0)
    assert not {s.group for s in parts["train"]} & {s.group for s in parts["val"]}


def test_each_data_set_lives_without_the_other(films, tmp_path):
    merged = merge_datasets([d.folder for d in films], tmp_path/"both")
    sound = merged.path(merged.segments[0]).read_bytes()
    for segment in films[0].segments: films[0].path(segment).unlink()
    assert merged.path(merged.segments[0]).read_bytes() == sound


def test_a_disk_that_gives_a_file_one_name_only(films, tmp_path, monkeypatch):
    def refused(*args, **more): raise OSError(18, "Invalid cross-device link")
    monkeypatch.setattr(dataset_merge.os, "link", refused)
    merged = merge_datasets([d.folder for d in films], tmp_path/"both")
    assert merged.path(merged.segments[0]).stat().st_nlink == 1


def test_what_cannot_be_merged(films, tmp_path):
    one, two = (dataset.folder for dataset in films)
    with pytest.raises(TTSError, match="one: is named twice"):
        merge_datasets([one, two, one], tmp_path/"m")
    with pytest.raises(TTSError, match="at least two"): merge_datasets([one], tmp_path/"m")
    with pytest.raises(TTSError, match="two: is there already"): merge_datasets([one, two], two)
    (two/"wavs/film_1.wav").write_bytes(b"")
    with pytest.raises(TTSError, match="missing, empty or links"):
        merge_datasets([one, two], tmp_path/"m")
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_an_error_half_way_leaves_nothing(films, tmp_path, monkeypatch):
    count = []

    def full(source, target):
        count.append(target)
        if len(count) == 3: raise OSError(28, "No space left on device")
    monkeypatch.setattr(dataset_merge, "link_or_copy", full)
    with pytest.raises(TTSError, match="both: not written: No space left"):
        merge_datasets([d.folder for d in films], tmp_path/"both")
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


KILLED = """
import os, signal, sys
from audiolab.tts import dataset_merge, merge_datasets
link, seen = dataset_merge.link_or_copy, []
def die(source, target):
    link(source, target)
    seen.append(target)
    if len(seen) == 4: os.kill(os.getpid(), signal.SIGKILL)
dataset_merge.link_or_copy = die
merge_datasets(sys.argv[2:], sys.argv[1])
"""


def test_a_kill_leaves_nothing_that_looks_whole(films, tmp_path):
    folders = [str(dataset.folder) for dataset in films]
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path/"both"), *folders])
    assert done.returncode == -signal.SIGKILL and not (tmp_path/"both").exists()
    assert len(os.listdir(tmp_path)) == 3  # a hidden folder
    merge_datasets(folders, tmp_path/"both")
    assert sorted(os.listdir(tmp_path)) == ["both", "one", "two"]


@given(st.lists(st.text(max_size=210), max_size=12), st.text(min_size=1, max_size=210))
@settings(max_examples=80, deadline=None)
def test_any_names_are_free_and_names(texts, prefix):
    names, taken, prefix = [plain_name(text) for text in texts], set(), plain_name(prefix)
    found = [free_name(name, (prefix,), taken) for name in names + names]
    assert len({dataset_merge._as_key(name) for name in found}) == len(found)
    assert not any(why_no_name(name) for name in found)


def test_segments_without_origin_or_known_sources(tmp_path):
    one = make_dataset(tmp_path/"one", 2, ())
    two = make_dataset(tmp_path/"two", 2, (), first=9)
    two.segments[0] = replace(two.segments[0], origin=None)
    two.segments[1] = replace(two.segments[1], origin=Origin("nowhere.mp4", 0, 1))
    write_dataset(two)
    merged = merge_datasets([one.folder, two.folder], tmp_path/"both")
    assert [s.group for s in merged.segments[2:]] == ["two_0", "nowhere.mp4"]


def test_the_command(films, tmp_path, capsys, caplog):
    folders = [str(dataset.folder) for dataset in films]
    words = "tts", "merge", "--datasets", *folders, "--output", str(tmp_path/"both")
    code, out, _ = run(capsys, *words, "--dry-run")
    assert code == 0 and "merge 6 segments of 2 data sets" in out and not (tmp_path/"both").exists()
    assert run(capsys, *words, "--include-invalid")[0] == 0
    assert len(open_dataset(tmp_path/"both")) == 8
    code, _, told = run(capsys, *words)
    assert code == 2 and "is there already" in told


def test_empty_folders_are_taken_and_no_others(films, tmp_path):
    (tmp_path/"both").mkdir()
    assert isinstance(merge_datasets([d.folder for d in films], tmp_path/"both"), SpeechDataset)
    Path(tmp_path/"file").write_text("x")
    with pytest.raises(TTSError, match="file: is there already"):
        merge_datasets([d.folder for d in films], tmp_path/"file")
