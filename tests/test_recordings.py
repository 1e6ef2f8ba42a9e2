"audiolab.audio.recordings: packages fetched once and whole, nothing of them run, words and sound that belong together."
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from audiolab.audio import (
    MissingProgram, decode_g722, download_package, fetch_package, parse_transcripts, probe_audio,
    read_transcripts, recorded_music, recorded_sentences, recorded_speech, recordings,
    recordings_cache,
)

WORDS = "; Sounds\nhello: Hello,  you.\nbeep: [a tone]\ndigits/1: one\nlost: Not there.\n"
APT = """#!{python}
import os, shutil, sys
name = sys.argv[-1]
made = os.path.join(os.environ["STUB"], name + ".deb")
open(os.path.join(os.environ["STUB"], "calls"), "a").write(" ".join(sys.argv[1:]) + "\\n")
if not os.path.exists(made): sys.exit(f"E: Unable to locate package {{name}}")
if "--print-uris" in sys.argv:
    digest = open(made + ".sha256").read()
    print(f"'http://archive/{{name}}_1.deb' {{name}}_1.deb {{os.path.getsize(made)}} SHA256:{{digest}}")
else: shutil.copy(made, f"{{name}}_1.deb")
"""
DPKG = """#!{python}
import sys, tarfile
assert sys.argv[1] == "-x"
tarfile.open(sys.argv[2]).extractall(sys.argv[3])
"""


class Archive:
    "Programs that stand for apt-get and dpkg-deb, and the packages that they know"
    def __init__(self, folder):
        self.folder = folder
        (folder/"bin").mkdir()
        for name, text in {"apt-get": APT, "dpkg-deb": DPKG}.items():
            path = folder/"bin"/name
            path.write_text(text.format(python=sys.executable))
            path.chmod(0o755)

    def add(self, name, files):
        "A package with these files {path: bytes}"
        tree = self.folder/f"tree-{name}"
        for path, content in files.items():
            (tree/path).parent.mkdir(parents=True, exist_ok=True)
            (tree/path).write_bytes(content)
        made = self.folder/f"{name}.deb"
        with tarfile.open(made, "w") as tar: tar.add(tree, ".")
        (self.folder/f"{name}.deb.sha256").write_text(hashlib.sha256(made.read_bytes()).hexdigest())

    @property
    def calls(self): return (self.folder/"calls").read_text().splitlines()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    folder = tmp_path/"archive"
    folder.mkdir()
    made = Archive(folder)
    monkeypatch.setenv("STUB", str(folder))
    monkeypatch.setenv("PATH", f"{folder/'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"cache"))
    sounds = "usr/share/asterisk/sounds/en_US_f_Allison"
    words = gzip.compress(WORDS.encode())
    made.add("asterisk-core-sounds-en", {"usr/share/doc/x/core-sounds-en.txt.gz": words})
    made.add("asterisk-core-sounds-en-g722", {
        f"{sounds}/hello.g722": bytes(16000), f"{sounds}/beep.g722": bytes(16000),
        f"{sounds}/digits/1.g722": bytes(4000), f"{sounds}/wordless.g722": bytes(16000)})
    made.add("asterisk-moh-opsound-g722", {
        f"usr/share/asterisk/moh/{song}.g722": bytes(n) for song, n in (("a", 20000), ("b", 9000))})
    return made


@pytest.fixture
def any_decoder(monkeypatch):
    "G.722 without a decoder: two samples a byte"
    def decode(path):
        return np.linspace(-.5, .5, 2*os.path.getsize(path), dtype=np.float32), 16000
    monkeypatch.setattr(recordings, "decode_g722", decode)
    recordings._song.cache_clear()
    yield
    recordings._song.cache_clear()


def test_a_package_is_fetched_once_and_whole(archive):
    tree = fetch_package("asterisk-core-sounds-en")
    assert tree == recordings_cache()/"asterisk-core-sounds-en"
    assert len(list(tree.rglob("*.txt.gz"))) == 1 and len(archive.calls) == 2
    assert fetch_package("asterisk-core-sounds-en", fetch=False) == tree and len(archive.calls) == 2
    assert [p.name for p in recordings_cache().iterdir()] == [tree.name]  # no scratch
    assert all("AllowUnauthenticated=false" in call for call in archive.calls)


def test_a_package_with_other_bytes_is_refused(archive):
    (archive.folder/"asterisk-core-sounds-en.deb.sha256").write_text("0"*64)
    with pytest.raises(ValueError, match="apt-get update"): fetch_package("asterisk-core-sounds-en")
    assert not list(recordings_cache().iterdir())


def test_what_cannot_be_fetched_names_the_remedy(archive, monkeypatch, tmp_path):
    with pytest.raises(RuntimeError, match="Unable to locate package.*apt-get update"):
        fetch_package("nothing-here")
    with pytest.raises(FileNotFoundError, match="fetch=True"):
        fetch_package("asterisk-core-sounds-en", fetch=False)
    for name in ("-o=Dpkg::x", "../a", "A b", ""):
        with pytest.raises(ValueError, match="no name of a package"): fetch_package(name)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingProgram, match="apt-get is not on this machine"):
        fetch_package("asterisk-core-sounds-en")
    assert not list(recordings_cache().glob("*/"))


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="optional: needs the program dpkg-deb")
def test_no_script_of_a_package_runs(tmp_path, monkeypatch):
    tree = tmp_path/"tree"
    (tree/"DEBIAN").mkdir(parents=True)
    (tree/"usr").mkdir()
    (tree/"usr/words").write_text("hello")
    (tree/"DEBIAN/control").write_text("Package: words\nVersion: 1\nArchitecture: all\n"
                                       "Maintainer: x <x@x>\nDescription: x\n")
    for name in ("preinst", "postinst"):
        (tree/"DEBIAN"/name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (tree/"DEBIAN"/name).chmod(0o755)
    package = tmp_path/"words_1.deb"
    build = "dpkg-deb", "--root-owner-group", "-b", tree, package
    subprocess.run(build, check=True, capture_output=True)
    monkeypatch.setattr(recordings, "download_package",
                        lambda name, folder: type(folder)(shutil.copy(package, folder/"w.deb")))
    assert (fetch_package("words", tmp_path/"cache")/"usr/words").read_text() == "hello"
    assert not (tmp_path/"ran").exists()


def test_words_and_sounds_belong_together(archive, any_decoder, tmp_path):
    assert list(recorded_sentences("en", shortest=0)) == ["digits/1", "hello"]
    assert list(recorded_sentences("en")) == ["hello"]
    clips = recorded_speech(tmp_path/"voice", shortest=.2, sample_rate=8000)
    words = {"hello": "Hello, you.", "digits-1": "one"}
    for clip in clips: assert clip.text == words[clip.path.stem.split("_en_")[1]]
    assert {clip.text: probe_audio(clip.path).frames for clip in clips} == {"Hello, you.": 16000, "one": 4000}
    stamps = [clip.path.stat().st_mtime_ns for clip in clips]
    again = recorded_speech(tmp_path/"voice", shortest=.2, sample_rate=8000)
    assert again == clips and [clip.path.stat().st_mtime_ns for clip in again] == stamps
    with pytest.raises(ValueError, match="there are en, es, fr, it, ru"):
        recorded_speech(tmp_path/"x", language="de")


def test_amounts_and_seeds_of_a_voice(archive, any_decoder, tmp_path):
    assert len(recorded_speech(tmp_path/"a", shortest=.2, n_files=1)) == 1
    made = [recorded_speech(tmp_path/f"s{seed}", shortest=.2, seed=seed) for seed in range(6)]
    assert len({tuple(clip.text for clip in clips) for clips in made}) == 2
    assert len(recorded_speech(tmp_path/"b", shortest=.2, n_files=None, seconds=.3)) == 1
    with pytest.raises(ValueError, match="take 1 or more"): recorded_speech(tmp_path/"c", n_files=0)


def test_pieces_of_music_do_not_overlap(archive, any_decoder, tmp_path):
    pieces = recorded_music(tmp_path/"music", n_files=9, piece_seconds=.5)
    assert [p.path.name for p in pieces] == [f"music_{i:03d}_{song}.wav" for i, song in enumerate("aaaaabb")]
    assert {probe_audio(p.path).duration for p in pieces} == {.5}
    assert len({p.path.read_bytes() for p in pieces}) == 7
    assert len(recorded_music(tmp_path/"less", n_files=2, piece_seconds=.5)) == 2


def test_transcripts(tmp_path):
    text = "\ufeff; remark: no\n\na: One: two.\nb:\n c : d  e\nf: <no>\nh: (beep)\nno colon\ng: [tone] x\n"
    assert parse_transcripts(text) == {"a": "One: two.", "c": "d e"}
    path = tmp_path/"list.gz"
    path.write_bytes(gzip.compress("é: è\n".encode()*1000))
    assert read_transcripts(path) == {"é": "è"}
    with pytest.raises(ValueError, match="more than 100 bytes"): read_transcripts(path, 100)
    path.write_bytes(gzip.compress(b"\xff\xfe:"))
    with pytest.raises(ValueError, match="no UTF-8"): read_transcripts(path)


def test_g722_without_a_decoder_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path/"a.g722").write_bytes(bytes(800))
    with pytest.raises(MissingProgram, match="pip install av"): decode_g722(tmp_path/"a.g722")


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs ffmpeg (apt-get install ffmpeg)")
def test_g722_comes_back_as_it_was_sent(monkeypatch, tmp_path):
    import soundfile
    monkeypatch.setitem(sys.modules, "av", None)
    tone = .4*np.sin(2*np.pi*440*np.arange(16000)/16000)
    soundfile.write(tmp_path/"tone.wav", tone, 16000)
    command = "ffmpeg", "-v", "error", "-i", tmp_path/"tone.wav", tmp_path/"tone.g722"
    subprocess.run(command, check=True)
    heard, rate = decode_g722(tmp_path/"tone.g722")
    assert rate == 16000 and heard.dtype == np.float32 and heard.shape == (16000,)
    late = np.argmax(np.correlate(heard, tone[:8000]))
    assert np.abs(heard[late:late + 8000] - tone[:8000])[400:].max() < .02


def test_a_listed_package_needs_a_digest(archive):
    (archive.folder/"asterisk-core-sounds-en.deb.sha256").write_text("")
    with pytest.raises(ValueError, match="no package with a SHA-256"):
        download_package("asterisk-core-sounds-en", archive.folder)
