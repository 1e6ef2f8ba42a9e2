"Splits of a data set: by shares of its time, never with a recording or a voice on two sides."
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from program_runs import run
from test_tts_speech_dataset import make_dataset
from tts_corpus import Letters

from audiolab.tts import (
    LoudnessCodec, Origin, Segment, SpeechDataset, TTSError, build_cache, dataset_split,
    linked_groups, open_dataset, read_split, read_table, renew_split, split_dataset, write_dataset,
    write_split,
)


def films(lengths, per_film=5, voices=4):
    "Segments of as many recordings as there are lengths"
    segments = [Segment(f"s{n}_{k}", f"wavs/s{n}_{k}.wav", "words", f"v{n % voices}", "en",
                        Origin(f"film{n}", k, k + length), length)
                for n, length in enumerate(lengths) for k in range(per_film)]
    return SpeechDataset(Path("films"), segments)


@given(st.lists(st.floats(.5, 15), min_size=3, max_size=30), st.integers(0, 5),
       st.sampled_from([(.85, .10, .05), (.5, .25, .25), (.9, .1, 0)]))
@settings(max_examples=60)
def test_no_recording_is_in_two_parts(lengths, seed, shares):
    dataset = films(lengths)
    parts = split_dataset(dataset, *shares, seed)
    where = [{s.group for s in some} for some in parts.values()]
    assert all(where) and sum(map(len, where)) == len(set.union(*where)) == len(lengths)
    given_away = sorted(s.id for some in parts.values() for s in some)
    assert given_away == sorted(s.id for s in dataset.segments)
    assert split_dataset(dataset, *shares, seed) == parts


def test_shares_are_those_of_the_time():
    parts = split_dataset(films([3 + n % 5 for n in range(100)]))
    time = {part: sum(s.seconds for s in some) for part, some in parts.items()}
    total = sum(time.values())
    shares = {part: round(t/total, 2) for part, t in time.items()}
    assert shares == {"train": .85, "val": .1, "test": .05}


def test_a_film_of_an_hour_among_short_ones_is_learnt_from():
    dataset = films([3600] + [6]*40, 1)
    for seed in range(9):
        parts = split_dataset(dataset, seed=seed)
        assert dataset.segments[0] in parts["train"] and len(parts["val"]) + len(parts["test"]) > 20


@pytest.mark.parametrize("seed", range(3))
def test_no_part_gets_the_short_clips(seed):
    "The longest first would leave clips of 2 s to be judged on, and those of 10 s to be learnt from"
    parts = split_dataset(films([2 + n % 9 for n in range(900)], 1), seed=seed)
    means = {part: sum(s.seconds for s in some)/len(some) for part, some in parts.items()}
    assert max(means.values()) - min(means.values()) < 1.5


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
@settings(max_examples=100)
def test_groups_by_speaker_share_nothing(pairs):
    "Two films with one voice, two voices in one film: all of that is one group"
    segments = [Segment(f"s{n}", None, "w", f"v{voice}", "en", Origin(f"film{film}", 0, 1), 1)
                for n, (film, voice) in enumerate(pairs)]
    groups = linked_groups(segments, "speaker")
    assert sorted(s.id for some in groups for s in some) == sorted(s.id for s in segments)
    films_of = [{s.group for s in some} for some in groups]
    voices_of = [{s.speaker for s in some} for some in groups]
    for sets in (films_of, voices_of): assert sum(map(len, sets)) == len(set.union(*sets))
    links = {frozenset((f"film{film}", f"v{voice}")) for film, voice in pairs}
    assert len(groups) == components(links)


def components(links):
    "How many parts a graph has, found by painting"
    left, count = set(links), 0
    while left:
        count, seen, grows = count + 1, set(left.pop()), True
        while grows:
            near = {link for link in left if link & seen}
            seen, left, grows = seen.union(*near), left - near, bool(near)
    return count


def test_by_speaker_and_by_names():
    parts = split_dataset(films([2]*12), by="speaker")
    voices = [{s.speaker for s in some} for some in parts.values()]
    assert sorted(map(len, voices)) == [1, 1, 2] and len(set.union(*voices)) == 4
    alone = [replace(s, id=f"LJ{n//10:03}-{n:04}", file=None, accepted=True, origin=None)
             for n, s in enumerate(films([2]*20, 3).segments)]
    parts = split_dataset(SpeechDataset(Path("lj"), alone), names=r"^LJ\d+")
    books = [{s.id[:5] for s in some} for some in parts.values()]
    assert sum(map(len, books)) == len(set.union(*books)) == 6


def test_another_seed_is_another_split():
    dataset = films([2]*30)
    assert len({tuple(s.id for s in split_dataset(dataset, seed=n)["test"]) for n in range(8)}) > 3


@pytest.mark.parametrize("shares", [(.9, .2, .1), (1.1, -.1, 0), (0, 0, 0)])
def test_shares_that_are_none(shares):
    with pytest.raises(TTSError, match="films: .*make 1 together"):
        split_dataset(films([2]*9), *shares)


def test_too_few_recordings_or_voices_and_no_expression():
    with pytest.raises(TTSError, match="2 recordings cannot be split into 3 parts"):
        split_dataset(films([2, 2]))
    with pytest.raises(TTSError, match="films: 2 speakers cannot"):
        split_dataset(films([2]*9, voices=2), by="speaker")
    with pytest.raises(TTSError, match="no regular expression"): split_dataset(films([2]*9), names="(")


def test_lengths_that_are_not_known_count_alike():
    parts = split_dataset(films([0]*40, 1), .5, .25, .25)
    assert [len(some) for some in parts.values()] == [20, 10, 10]


@pytest.fixture
def dataset(tmp_path): return make_dataset(tmp_path/"film", 6, (5,), 3)


def test_tables_of_parts_are_read_and_cached(dataset, tmp_path):
    parts = split_dataset(dataset, .5, .25, .25)
    paths = write_split(dataset, parts)
    read = {path.name: [entry.id for entry in read_table(path)] for path in paths}
    assert read == {f"metadata_{part}.csv": [s.id for s in some] for part, some in parts.items()}
    assert sum(map(len, read.values())) == 5  # the rejected one is in none
    cache = build_cache(paths[0], Letters(), LoudnessCodec(), tmp_path/"cache", "statistics")
    assert len(cache) == len(parts["train"]) and set(cache.languages) == {"en"}
    assert {entry.speaker for path in paths for entry in read_table(path)} == {"v0", "v1"}


def test_no_table_of_an_older_split_stays(dataset, monkeypatch):
    "Also not where the process dies in between"
    write_split(dataset, split_dataset(dataset, .5, .25, .25))
    write_split(dataset, split_dataset(dataset, .6, .4, 0, seed=3))
    assert sorted(read_split(dataset.folder)) == ["train", "val"]

    def dies(path, chunks): raise KeyboardInterrupt
    monkeypatch.setattr(dataset_split, "durable_write", dies)
    with pytest.raises(KeyboardInterrupt):
        write_split(dataset, split_dataset(dataset, .5, .5, 0, seed=9))
    assert read_split(dataset.folder) == {}


def test_a_split_is_kept_when_the_data_set_changes(dataset):
    write_split(dataset, split_dataset(dataset, .5, .25, .25))
    before = read_split(dataset.folder)
    dataset.segments[0] = replace(dataset.segments[0], text="other words")
    dataset.segments[1] = replace(dataset.segments[1], accepted=False)
    dataset.segments[5] = replace(dataset.segments[5], accepted=True)  # of film2, as segment 2
    dataset.segments[4] = replace(dataset.segments[4], origin=Origin("film9", 0, 1))
    write_dataset(dataset)
    assert renew_split(dataset, before) == []
    after = read_split(dataset.folder)
    where = {id: part for part, ids in after.items() for id in ids}
    assert where["film_5"] == where["film_2"] and "film_1" not in where
    assert where == where | {id: part for part, ids in before.items() for id in ids if id != "film_1"}
    texts = {entry.id: entry.text for part in after
             for entry in read_table(dataset.folder/f"metadata_{part}.csv")}
    assert texts["film_0"] == "other words" and len(texts) == 5


def test_what_came_from_a_new_recording_is_told(dataset):
    write_split(dataset, split_dataset(dataset, .5, .25, .25))
    dataset.segments[5] = replace(dataset.segments[5], accepted=True, origin=Origin("film9", 0, 1))
    assert [s.id for s in renew_split(dataset, read_split(dataset.folder))] == ["film_5"]
    assert renew_split(dataset, {}) == []


def test_a_folder_that_cannot_be_written(dataset, monkeypatch):
    parts = split_dataset(dataset, .5, .25, .25)

    def refused(self, missing_ok=False): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(TTSError, match="film: Permission denied"): write_split(dataset, parts)


def test_the_command(dataset, capsys, caplog):
    shares = "--train", ".5", "--val", ".25", "--test", ".25", "--seed", "42"
    code, out, _ = run(capsys, "tts", "split", str(dataset.folder), *shares)
    assert code == 0 and "metadata_train.csv: " in out + caplog.text
    assert read_split(dataset.folder) == {part: [s.id for s in some] for part, some
                                          in split_dataset(dataset, .5, .25, .25).items()}
    assert sorted(os.listdir(dataset.folder)) == ["dataset.json", "metadata.csv", "metadata_test.csv",
                                                  "metadata_train.csv", "metadata_val.csv", "wavs"]
    code, _, told = run(capsys, "tts", "split", str(dataset.folder), "--train", ".5")
    assert code == 2 and "make 1 together" in told
    assert open_dataset(dataset.folder) == dataset
