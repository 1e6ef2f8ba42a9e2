"A cache of tokens: nothing is coded twice, nothing is cut, and nothing that changed is believed."
import errno
import json
import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from tts_corpus import Letters, hum, make_corpus

import audiolab.tts.caching_command as command_module
from audiolab.audio import write_audio
from audiolab.tts import (
    CacheConfig, Entry, Limits, LoudnessCodec, Material, TextTokenizer, TokenCache, TTSError,
    build_cache, cache_building, cache_report, clip_tokens, notes_of, open_cache, read_table,
    token_cache, train_tokenizer,
)
from audiolab.tts.caching_command import cache_command

CODEC = LoudnessCodec()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A corpus of six clips and its cache"
    folder = tmp_path_factory.mktemp("made")
    corpus = make_corpus(folder/"book", 6)
    build_cache(corpus, Letters(), CODEC, folder/"cache")
    return folder


@pytest.fixture
def copy(made, tmp_path):
    "The same, to change"
    shutil.copytree(made, tmp_path/"made", copy_function=shutil.copy2)
    build_cache(tmp_path/"made"/"book", Letters(), CODEC, tmp_path/"made"/"cache")
    return tmp_path/"made"


def build(folder, tokenizer=None, codec=CODEC, **more):
    return build_cache(folder/"book", tokenizer or Letters(), codec, folder/"cache", **more)


def contents(cache):
    return {cache.name(i): (cache.text(i).tolist(), cache.speech(i).tolist(),
                            cache.speaker_embedding(i).tolist()) for i in range(len(cache))}


class CountingCodec(LoudnessCodec):
    "Notes what it is asked"
    asked = []

    def encode(self, audio, sample_rate):
        self.asked.append(len(audio))
        return super().encode(audio, sample_rate)


@pytest.fixture
def counting():
    CountingCodec.asked.clear()
    return CountingCodec()


def test_what_is_in_it(made):
    cache = TokenCache(made/"cache")
    entry = cache.entry(3)
    assert len(cache) == 6 and cache.voices == ["v0", "v1"] and entry["id"] == "book/c3"
    assert (entry["speaker"], entry["language"]) == ("v1", "en")
    assert entry["text"] == "the words of clip d"
    assert cache.text(3).tolist() == Letters().encode(entry["text"] + ".").tolist()
    assert cache.speech(3).tolist() == CODEC.encode(hum(3), 16_000).tolist()
    assert cache.speech_lengths.tolist() == [30]*6 and cache.text(0).dtype == np.int32
    assert np.linalg.norm(cache.voice_means(), axis=1) == pytest.approx(1) and not cache.verify()


def test_ten_new_clips_are_ten_clips_of_work(copy, counting):
    before = contents(TokenCache(copy/"cache"))
    make_corpus(copy/"book", 16, first=6)
    cache = build(copy, codec=counting)
    assert len(counting.asked) == cache_report(cache).coded == 10 and len(cache) == 16
    assert {name: contents(cache)[name] for name in before} == before
    fresh = build_cache(copy/"book", Letters(), CODEC, copy/"fresh")
    assert contents(fresh) == contents(cache)


def test_a_new_tokenizer_encodes_texts_and_no_sound(copy, counting):
    old = contents(TokenCache(copy/"cache"))
    with pytest.raises(TTSError, match="edited or exchanged since"):
        open_cache(copy/"cache", Letters(first=5))
    new = contents(build(copy, Letters(first=5), counting))
    assert not counting.asked and all(new[name][1:] == old[name][1:] for name in old)
    assert all(new[name][0] != old[name][0] for name in old)
    assert len(list((copy/"cache").glob("texts-*"))) == 1  # the old ones are gone


def test_another_codec_is_refused_and_overwrite_is_not_careless(copy):
    other = LoudnessCodec(codes=32)
    with pytest.raises(TTSError, match="codec is"): build(copy, codec=other)
    with pytest.raises(TTSError, match="not of loudness"): open_cache(copy/"cache", codec=other)
    (copy/"cache"/"thesis.doc").write_text("years of work")
    with pytest.raises(TTSError, match="thesis.doc"): build(copy, codec=other, overwrite=True)
    (copy/"cache"/"thesis.doc").unlink()
    assert build(copy, codec=other, overwrite=True).codec["codes"] == 32


def test_a_cache_says_where_its_codec_is(copy, tmp_path):
    "So that a run from it can be heard without naming the codec once more"
    codec = type("PlacedCodec", (LoudnessCodec,), {"address": f"mel:{tmp_path/'codec.bin'}"})()
    (tmp_path/"codec.bin").write_bytes(b"")
    material = Material(Letters(), {"book": build(copy, codec=codec)}, {})
    assert material.codec_file == codec.address == notes_of(material, 0)["codec_file"]
    (tmp_path/"codec.bin").unlink()
    assert material.codec_file == ""
    assert Material(Letters(), {"book": build(copy)}, {}).codec_file == ""


def test_other_voices_are_refused(copy):
    with pytest.raises(TTSError, match="there are statistics, ge2e"): build(copy, speakers="nose")


def test_sound_that_changed_is_coded_again(copy, counting):
    write_audio(copy/"book"/"wavs"/"c2.wav", hum(77), 16_000)
    assert list(TokenCache(copy/"cache").verify().values()) == [
        "changed since it was coded; run audiolab tts cache again"]
    cache = build(copy, codec=counting)
    assert len(counting.asked) == 1 and not cache.verify()
    assert cache.speech(2).tolist() == CODEC.encode(hum(77), 16_000).tolist()


def test_a_file_that_was_moved_or_copied_is_not_coded_again(copy, counting):
    shutil.copy(copy/"book"/"wavs"/"c1.wav", copy/"book"/"wavs"/"twin.wav")
    with open(copy/"book"/"metadata.csv", "a") as table: table.write("twin|the same words|v1|en\n")
    cache = build(copy, codec=counting)
    assert not counting.asked and len(cache) == 7
    assert cache.speech(6).tolist() == cache.speech(1).tolist()


def test_workers_and_this_process_give_the_same(made, tmp_path):
    many = build_cache(made/"book", Letters(), CODEC, tmp_path/"many", workers=2)
    assert contents(many) == contents(TokenCache(made/"cache"))


def test_texts_and_sounds_that_are_too_long_are_left_out_whole(made, tmp_path, caplog):
    limits = Limits(max_text=19, max_speech=29, max_left_out=1.)
    with pytest.raises(TTSError, match="6 of 6 clips cannot be used"):
        build_cache(made/"book", Letters(), CODEC, tmp_path/"a", limits=limits)
    entries = read_table(made/"book")
    entries[2] = Entry("long", entries[2].path, "the words of clip c and of many more", "v0", "en")
    loud = make_corpus(tmp_path/"slow", 1, seconds=4.)
    cache = build_cache([*entries, *read_table(loud)], Letters(), CODEC, tmp_path/"b",
                        limits=Limits(max_text=20, max_speech=60, max_left_out=.5))
    report = cache_report(cache)
    assert report.left_out == {"text longer than 20 tokens": ["long"],
                               "speech longer than 60 codes": ["c0"]}
    assert len(cache) == report.clips == 5 and report.missing == 2 and "long" in str(report)
    assert "left out: long: text longer than 20 tokens" in caplog.text
    with pytest.raises(TTSError, match="2% may be left out.*raise max_left_out"):
        build_cache(entries, Letters(), CODEC, tmp_path/"c", limits=Limits(max_text=20))


@pytest.mark.parametrize("damage, why", [
    (lambda sound: 0*sound, "is silent"), (lambda sound: sound[:800], "has 0.05 s of sound"),
    (lambda sound: np.where(np.arange(len(sound)) < 7000, sound, 0), "zeros instead of sound")])
def test_sound_that_is_no_speech_is_left_out_and_not_tried_again(copy, counting, damage, why):
    write_audio(copy/"book"/"wavs"/"c4.wav", damage(hum(4)), 16_000)
    limits = Limits(max_left_out=.2)
    for _ in range(2):
        cache = build(copy, codec=counting, limits=limits)
        assert len(cache) == 5 and not counting.asked
        (reason, names), = cache_report(cache).left_out.items()
        assert why in reason and names == ["book/c4"]
    with pytest.raises(TTSError, match="1 of 6 clips cannot be used"): build(copy)


def test_mistakes_are_told_before_the_first_sound(made, tmp_path, counting):
    def attempt(entries=made/"book", tokenizer=None, codec=counting):
        build_cache(entries, tokenizer or Letters(), codec, tmp_path/"cache")
    entries = read_table(made/"book")
    with pytest.raises(TTSError, match="unknown to the tokenizer.*merge-vocab"):
        attempt(tokenizer=Letters(alphabet="abc"))
    with pytest.raises(TTSError, match=r"no \[en\]"): attempt(tokenizer=Letters(tags=("am",)))
    short = tmp_path/"short.wav"
    short.write_bytes(Path(entries[0].path).read_bytes()[:5000])
    with pytest.raises(TTSError, match="1 of 7 sound files cannot be used.*short.wav"):
        attempt([*entries, Entry("s", str(short), "words", "v", "en")])
    with pytest.raises(TTSError, match="is no speech codec: it has no .*encode"):
        attempt(codec=namedtuple("NoCodec", "name")("none"))
    assert not counting.asked


def test_a_disk_without_room(made, tmp_path, counting, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(TTSError, match="make room"):
        build_cache(made/"book", Letters(), counting, tmp_path/"cache")
    assert not counting.asked


def test_a_disk_that_fills_up_keeps_what_it_has(made, tmp_path, counting, monkeypatch):
    add, added = token_cache.PackedWriter.add, []

    def full(self, name, values, info=None):
        added.append(name)
        if len(added) == 4: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, name, values, info)

    with monkeypatch.context() as patch:
        patch.setattr(token_cache.PackedWriter, "add", full)
        with pytest.raises(TTSError, match="No space left.*make room and build again"):
            build_cache(made/"book", Letters(), counting, tmp_path/"cache")
    with pytest.raises(TTSError, match="no whole cache"): open_cache(tmp_path/"cache")
    counting.asked.clear()
    cache = build_cache(made/"book", Letters(), counting, tmp_path/"cache")
    assert len(counting.asked) == 3 and contents(cache) == contents(TokenCache(made/"cache"))


def test_a_codec_with_a_mistake_stops_the_build_and_names_the_file(made, tmp_path):
    class Wrong(LoudnessCodec):
        def encode(self, audio, sample_rate): return super().encode(audio, sample_rate) + 1000
    with pytest.raises(TTSError, match="c0.wav: codec loudness gave codes .* from 0 to 63"):
        build_cache(made/"book", Letters(), Wrong(), tmp_path/"cache")


@pytest.mark.parametrize("change, why", [
    (lambda about: about | {"version": 9}, "another version"),
    (lambda about: about | {"texts": "../other"}, "damaged"),
    (lambda about: about | {"parts": [3]}, "damaged"),
    (lambda about: {"format": about["format"]}, "damaged")])
def test_a_damaged_cache_is_refused(copy, change, why):
    path = copy/"cache"/"cache.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(TTSError, match=why): TokenCache(copy/"cache")


def test_parts_are_joined_when_there_are_many(copy, counting, monkeypatch):
    join = cache_building.join_parts
    monkeypatch.setattr(cache_building, "join_parts", lambda parts: join(parts, most=2))
    for clips in (7, 8, 9):
        make_corpus(copy/"book", clips, first=clips - 1)
        cache = build(copy, codec=counting)
    assert len(cache) == 9 and len(counting.asked) == 3
    assert len(list((copy/"cache"/"sounds").iterdir())) <= 2
    assert contents(cache) == contents(build_cache(copy/"book", Letters(), CODEC, copy/"fresh"))


class SlowCodec(LoudnessCodec):
    def encode(self, audio, sample_rate):
        time.sleep(.05)
        return super().encode(audio, sample_rate)


def start(target, *arguments):
    "A process that has everything imported already"
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def noted_items(folder):
    "How many items of an unfinished store are on the disk for certain"
    try: return json.loads((folder/"building.json").read_text())["count"]
    except (OSError, ValueError): return 0


def kill_while_coding(made, folder, part, after):
    "Start a build and kill it when so many items are noted"
    process = start(build_cache, made/"book", Letters(), SlowCodec(), folder)
    while process.is_alive() and noted_items(folder/"sounds"/part) < after: time.sleep(.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_build_that_is_killed_goes_on(made, tmp_path, counting, monkeypatch):
    monkeypatch.setattr(cache_building, "_SAVE_EVERY", 1)
    kill_while_coding(made, tmp_path/"cache", "00000-0", after=2)
    kill_while_coding(made, tmp_path/"cache", "00001-0", after=1)
    with pytest.raises(TTSError, match="no whole cache"): open_cache(tmp_path/"cache")
    cache = build_cache(made/"book", Letters(), counting, tmp_path/"cache")
    assert 1 <= len(counting.asked) <= 3
    assert contents(cache) == contents(TokenCache(made/"cache"))


@pytest.mark.slow
def test_fifty_kills(tmp_path, monkeypatch):
    "At any moment: while coding, while stores are joined, while texts are written"
    monkeypatch.setattr(cache_building, "_SAVE_EVERY", 1)
    corpus, rng = make_corpus(tmp_path/"book", 120, seconds=.4), np.random.default_rng(0)
    folder, killed = tmp_path/"cache", 0
    for _ in range(50):
        process = start(build_cache, corpus, Letters(first=2 + killed % 3), CODEC, folder)
        process.join(rng.uniform(.03, .5))
        killed += process.is_alive()
        process.kill()
        process.join()
        if process.exitcode == 0: shutil.rmtree(folder)
    cache = build_cache(corpus, Letters(), CODEC, folder)
    assert killed > 20 and not cache.verify()
    assert contents(cache) == contents(build_cache(corpus, Letters(), CODEC, tmp_path/"fresh"))


def build_as_rank(rank, port, book, folder):
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    (folder.parent/f"rank{rank}").write_text(str(cache_report(
        build_cache(book, Letters(), CODEC, folder)).coded))


def test_two_processes_of_torchrun_share_the_work(made, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [start(build_as_rank, rank, port, made/"book", tmp_path/"cache") for rank in range(2)]
    for process in both: process.join(120)
    assert [(tmp_path/f"rank{rank}").read_text() for rank in range(2)] == ["6", "6"]
    cache = TokenCache(tmp_path/"cache")
    assert len(cache.parts) == 2 and contents(cache) == contents(TokenCache(made/"cache"))


def test_what_goes_wrong_in_one_process_ends_all(made, tmp_path):
    def told_of_another(): raise TTSError("no such file")
    place = namedtuple("Place", "gather")(lambda text: ["", "TTSError: no such file"])
    with pytest.raises(TTSError, match="process 1: TTSError: no such file"):
        cache_building.together(place, lambda: "well")
    with pytest.raises(TTSError, match="^no such file"):
        cache_building.together(place, told_of_another)


def test_the_command_makes_what_the_function_makes(made, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(command_module, "open_codec", lambda address, device: CODEC)
    texts = [entry.text + "." for entry in read_table(made/"book")]
    train_tokenizer(texts, "char", language="en").save(tmp_path/"tokenizer.json")
    config = CacheConfig((str(made/"book"),), str(tmp_path/"tokenizer.json"), "mel:codec",
                         str(tmp_path/"cache"), "statistics")
    assert config.plan().startswith("code 6 clips of 2 voices with mel:codec")
    with caplog.at_level("INFO"): assert cache_command(config) == 0
    assert "6 sounds coded in this run, 0 clips left out" in caplog.text
    reader = TextTokenizer.from_file(tmp_path/"tokenizer.json")
    cache = open_cache(tmp_path/"cache", reader, CODEC)
    assert reader.decode(cache.text(3)) == "the words of clip d."
    config.overwrite, config.speakers = True, "ge2e"
    monkeypatch.setattr(clip_tokens, "speaker_encoder", no_weights)
    with pytest.raises(TTSError, match="speakers 'ge2e': pip install"): cache_command(config)


def no_weights(): raise ImportError("pip install resemblyzer")
