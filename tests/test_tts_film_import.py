"Films with subtitles into a data set: pairs, once only, kills, wrong texts, the command."
import shutil, subprocess, sys, time

import numpy as np
import pytest

from audiolab.audio import read_audio, write_audio
from audiolab.tts import (
    Dictation, FilmSettings, ImportConfig, Segment, SpeechDataset, TTSError, find_pairs,
    first_number, import_films, open_dataset, tts_import_command,
)
from audiolab.tts import film_folders
from program_runs import run

RATE = 16_000


def make_film(folder, name, count=3, seed=0, extra="", fault=None):
    "Noise that rises for two seconds where somebody speaks, and subtitles beside it."
    chance = np.random.default_rng(seed)
    sound = chance.normal(0, .0005, (1 + 3*count)*RATE)
    cues = []
    for n in range(count):
        at = 1 + 3*n
        swell = .5 - .5*np.cos(2*np.pi*5*np.arange(2*RATE)/RATE)
        if n != fault: sound[at*RATE:(at + 2)*RATE] += chance.laplace(0, .07, 2*RATE)*(.1 + swell)
        text = "the words of sentence " + "abcdefghij"[n]
        cues.append(f"{n + 1}\n00:00:{at + .2:06.3f} --> 00:00:{at + 1.9:06.3f}\n{text}\n")
    folder.mkdir(exist_ok=True, parents=True)
    write_audio(folder/f"{name}.wav", sound.clip(-1, 1), RATE)
    (folder/f"{name}.srt").write_text("\n".join(cues) + extra)
    return folder


@pytest.fixture
def films(tmp_path):
    make_film(tmp_path/"films", "one", extra="\n9\n00:00:03.200 --> 00:00:03.900\n♪ la la ♪\n")
    return make_film(tmp_path/"films", "two", 4, seed=1, fault=2)


def taken(tmp_path, films, name="voices", **options):
    pairs = find_pairs(films, films)[0]
    return import_films(tmp_path/name, pairs, FilmSettings(language="en"), **options)


def state(folder):
    "All that a data set is: segments, sounds, table."
    dataset = open_dataset(folder)
    sounds = {p.name: p.read_bytes() for p in (folder/"wavs").iterdir()}
    return dataset.segments, dataset.sources, sounds, (folder/"metadata.csv").read_bytes()


def test_every_cue_is_there_with_its_reason(tmp_path, films):
    report = taken(tmp_path, films)
    dataset = open_dataset(tmp_path/"voices")
    assert dataset == report.dataset and len(dataset) == 8 and len(dataset.accepted) == 6
    assert dict(report.reasons) == {"music": 1, "silent": 1}
    for segment in dataset.segments:
        sound, rate = read_audio(dataset.path(segment), mono=True)
        assert rate == 24_000 and abs(len(sound)/rate - segment.seconds) < 1e-3
    assert dataset.segments[1].id == "voices_speaker_01_000002"
    assert dataset.segments[-1].speaker == "speaker_02"
    first = dataset.segments[0].origin
    assert first.recording == "one.wav" and abs(first.start - 1) < .1 and abs(first.end - 3) < .12
    assert "2 films are new" in str(report) and "1 silent" in str(report)


def test_the_same_again_adds_nothing(tmp_path, films):
    taken(tmp_path, films)
    before = state(tmp_path/"voices")
    (films/"one.wav").rename(films/"same.wav")
    (films/"one.srt").rename(films/"same.srt")
    report = taken(tmp_path, films)
    assert not report.new and report.known == ["one.wav", "two.wav"]
    assert state(tmp_path/"voices") == before
    make_film(films, "three", seed=5)
    report = taken(tmp_path, films)
    assert report.new == ["three.wav"] and len(report.dataset) == 11


def test_other_subtitles_are_told_and_taken_when_asked(tmp_path, films):
    taken(tmp_path, films)
    (films/"one.srt").write_text((films/"one.srt").read_text().replace("sentence a", "sentence z"))
    before = state(tmp_path/"voices")
    report = taken(tmp_path, films)
    assert report.other == ["one.wav"] and "--overwrite" in str(report)
    assert state(tmp_path/"voices") == before
    report = taken(tmp_path, films, overwrite=True)
    texts = [s.text for s in open_dataset(tmp_path/"voices").segments if s.group == "one.wav"]
    assert report.new == ["one.wav"] and len(texts) == 4 and "the words of sentence z" in texts
    assert len(list((tmp_path/"voices/wavs").iterdir())) == 8


def test_films_that_nobody_listened_to_are_told_when_a_recogniser_comes(tmp_path, films):
    "Else the same line with --asr would find no wrong text and say nothing"
    taken(tmp_path, films)
    pairs, heard = find_pairs(films, films)[0], FilmSettings(language="en", asr="whisper")
    report = import_films(tmp_path/"voices", pairs, heard)
    assert report.other == ["one.wav", "two.wav"] and "--overwrite" in str(report)


def test_a_recogniser_is_not_asked_about_a_language_that_it_does_not_know(tmp_path, films):
    "It would find all texts wrong"
    def deaf(sound, rate): return "nothing of the kind"
    assert taken(tmp_path, films, dictation=Dictation(deaf, ("fr",))).reasons["wrong-text"] == 0
    config = ImportConfig(str(films), str(films), "new", str(tmp_path), language="am", asr="math:sin")
    with pytest.raises(TTSError, match="--asr-languages am"): tts_import_command(config)
    assert not (tmp_path/"new").exists()


@pytest.mark.parametrize("moment", ["before", "between", "after"])
@pytest.mark.parametrize("film", [1, 2])
def test_a_kill_in_the_midst_goes_on(tmp_path, films, monkeypatch, moment, film):
    "Killed before the sounds are moved, between that and the writing, and behind it"
    whole = taken(tmp_path, films, "whole").dataset
    shutil.move(tmp_path/"whole", tmp_path/"kept")
    calls, write, take = [], film_folders.write_dataset, film_folders.take_in

    def dies(*args):
        calls.append(args)
        at = len(calls) == film
        if at and moment == "before": raise KeyboardInterrupt
        if at and moment == "between": monkeypatch.setattr(film_folders, "write_dataset", killed)
        take(*args)
        if at and moment == "after": raise KeyboardInterrupt

    def killed(dataset): raise KeyboardInterrupt
    monkeypatch.setattr(film_folders, "take_in", dies)
    with pytest.raises(KeyboardInterrupt): taken(tmp_path, films, "whole")
    monkeypatch.setattr(film_folders, "take_in", take)
    monkeypatch.setattr(film_folders, "write_dataset", write)
    assert taken(tmp_path, films, "whole").dataset.segments == whole.segments
    assert state(tmp_path/"whole") == state(tmp_path/"kept")
    assert not (tmp_path/"whole/.import").exists()


def test_a_real_kill_in_the_midst_goes_on(tmp_path, films):
    whole = taken(tmp_path, films, "whole").dataset.segments
    shutil.rmtree(tmp_path/"whole")
    words = f"--srt {films} --media {films} --name whole --output {tmp_path} --language en"
    command = [sys.executable, "-m", "audiolab", "tts", "import", *words.split(), "--workers", "1"]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while child.poll() is None and not list((tmp_path/"whole").glob(".import/*/wavs/*.wav")):
        time.sleep(.002)
    child.kill()
    child.wait()
    assert taken(tmp_path, films, "whole").dataset.segments == whole


def test_processes_make_the_same(tmp_path, films):
    taken(tmp_path, films, "whole")
    shutil.move(tmp_path/"whole", tmp_path/"kept")
    taken(tmp_path, films, "whole", workers=2)
    assert state(tmp_path/"whole") == state(tmp_path/"kept")


def test_a_bad_film_does_not_stop_the_others(tmp_path, films):
    (films/"bad.wav").write_bytes(b"no sound at all"*9)
    (films/"bad.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nwords\n")
    report = taken(tmp_path, films)
    assert list(report.failed) == ["bad.wav"] and len(report.new) == 2
    assert "bad.wav: " in str(report)
    report = taken(tmp_path, films)
    assert list(report.failed) == ["bad.wav"] and not report.new


def test_one_speaker_for_all_and_names_in_subtitles(tmp_path):
    films = make_film(tmp_path/"films", "one")
    text = (films/"one.srt").read_text()
    (films/"one.srt").write_text(text.replace("the words of sentence b", "ANNA: the words"))
    named = taken(tmp_path, films, "named").dataset
    assert [s.speaker for s in named.segments] == ["speaker_01", "ANNA", "speaker_01"]
    one = taken(tmp_path, films, "one", speaker="me").dataset
    assert {s.speaker for s in one.segments} == {"me"} and one.segments[0].id == "one_me_000001"


def test_wrong_texts_are_heard(tmp_path):
    films = make_film(tmp_path/"films", "one")
    heard = iter(["the words of sentence a", "nobody is at home", "the word of sentence see"])
    report = taken(tmp_path, films, dictation=Dictation(lambda sound, rate: next(heard)))
    assert [s.accepted for s in report.dataset.segments] == [True, False, True]
    assert dict(report.reasons) == {"wrong-text": 1}

    def fails(sound, rate): raise RuntimeError("no model")
    with pytest.raises(TTSError, match="recogniser fails: RuntimeError: no model"):
        taken(tmp_path, films, "other", dictation=Dictation(fails))


def test_issues_only_mark_where_nothing_is_validated(tmp_path, films):
    settings = FilmSettings(language="en", validate=False)
    dataset = import_films(tmp_path/"all", find_pairs(films, films)[0], settings).dataset
    assert len(dataset.accepted) == 7 and [s.issues[0].code for s in dataset.rejected] == ["music"]


def test_cues_beyond_the_end_and_on_top_of_each_other(tmp_path):
    films = make_film(tmp_path/"films", "one", extra="""
7\n00:00:04.000 --> 00:00:06.000\nat the same time as another\n
8\n00:01:00.000 --> 00:01:02.000\nlong after the end\n""")
    report = taken(tmp_path, films)
    assert dict(report.reasons) == {"overlap": 2, "beyond-the-end": 1}
    assert next(s for s in report.dataset.segments if s.text == "long after the end").file is None


def test_pairs_by_name(tmp_path):
    for name in ("a.mp4", "b.mkv", "c.webm", "sub/a.mp4", ".hidden.mp4"):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_bytes(b"x")
    for name in ("a.srt", "b.en.srt", "c.en.vtt", "c.am.vtt", "sub/a.ass", "lonely.srt"):
        (tmp_path/name).write_bytes(b"x")
    pairs, lonely = find_pairs(tmp_path, tmp_path)
    assert [(a.relative_to(tmp_path).as_posix(), b.name) for a, b in pairs] == [
        ("a.mp4", "a.srt"), ("b.mkv", "b.en.srt"), ("sub/a.mp4", "a.ass")]
    assert "c.webm: has several subtitles" in lonely[0] and "srt: has no film" in lonely[1]
    two = tmp_path/"a.mp4", tmp_path/"lonely.srt"
    assert len(lonely) == 2 and find_pairs(*two[::-1]) == ([two], [])
    with pytest.raises(TTSError, match="no such file"): find_pairs(tmp_path/"gone", tmp_path)
    with pytest.raises(TTSError, match="two files, or two"): find_pairs(two[1], tmp_path)


def test_numbers_go_on():
    segments = [Segment(f"d_a_{n:06d}", None, "x", "a") for n in (1, 7)]
    assert first_number(SpeechDataset("d", segments), "d_a_") == 8


def test_the_command(tmp_path, films, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["tts", "import", "--srt", str(films), "--media", str(films), "--name", "voices"]
    words += ["--workers", "1"]
    code, out, _ = run(capsys, *words, "--dry-run")
    assert code == 0 and "cut 2 films into datasets/voices" in out
    assert not (tmp_path/"datasets").exists()
    assert run(capsys, *words)[0] == 0 and len(open_dataset(tmp_path/"datasets/voices")) == 8
    assert run(capsys, *words, "--limits.min-seconds", "3", "--name", "long")[0] == 0
    assert not open_dataset(tmp_path/"datasets/long").accepted
    (films/"bad.wav").write_bytes(b"no sound"*9)
    (films/"bad.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nwords\n")
    assert run(capsys, *words)[0] == 2
    with pytest.raises(TTSError, match="name: that of a data set"):
        tts_import_command(ImportConfig(str(films), str(films), "../up"))
