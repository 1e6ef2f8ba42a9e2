"Manifests: what goes in comes out, and nothing that a stranger wrote is believed."
import json
import os
from pathlib import Path

import numpy as np
import pytest
from data_sounds import clip_of, fill_folder, sound
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolab.audio import read_audio, write_audio
from audiolab.data import AudioFiles, Clip, DataError, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "Four files of three singers, as the working directory"
    monkeypatch.chdir(tmp_path)
    return fill_folder(tmp_path)


def test_manifest_round_trip(folder):
    fields = {"text": "naïve \"quote\"\t", "n": 1, "words": [["a", 0.5]]}
    clips = [clip_of("a/1.wav", source="ä\n|", fields=fields, digest="00"), clip_of("c/1.wav"),
             Clip("part", str(folder/"c/1.wav"), 44_100, 1, 500, "s", {}, offset=1000)]
    write_manifest("m.jsonl", AudioFiles(clips))
    back = read_manifest(folder/"m.jsonl")
    assert [c.id for c in back.clips] == ["a/1.wav", "c/1.wav", "part"]
    assert back.clip(0).fields == fields and back.clip(0).source == "ä\n|"
    assert np.array_equal(back.read(2), read_audio("c/1.wav")[0][:, 1000:1500])
    assert back.verify() == {str(folder/"a/1.wav"): "changed since it was scanned",
                             str(folder/"c/1.wav"): "has no digest; scan it"}
    outside = write_manifest(folder/"sub/m.jsonl", AudioFiles(clips[:1]))
    with pytest.raises(DataError, match="allow_outside"): read_manifest(outside)
    found = read_manifest(outside, allow_outside=True)
    assert np.array_equal(found.read(0), read_audio("a/1.wav")[0])
    for bad in ({"path": "x"}, {"text": {1, 2}}, {"x": float("nan")}):
        files = AudioFiles([clip_of("a/1.wav", fields=bad)])
        with pytest.raises(DataError, match="clip"): write_manifest("m.jsonl", files)
    assert len(read_manifest("m.jsonl")) == 3  # the old one is untouched
    assert not list(folder.glob(".m*"))


LINES = ('LJ001-0001|Printing, in "1456"|Printing, in fourteen\nLJ001-0002|"a|\r\n'
         'other.flac|x\nwavs/LJ001-0002.wav\n')


def test_lj_speech(tmp_path):
    (tmp_path/"wavs").mkdir()
    for name in ("LJ001-0001", "LJ001-0002"):
        write_audio(tmp_path/f"wavs/{name}.wav", sound(0.5, 22_050), 22_050)
    write_audio(tmp_path/"other.flac", sound(0.5, 16_000), 16_000)
    (tmp_path/"metadata.csv").write_text(LINES, encoding="utf-8-sig")
    files = read_manifest(tmp_path/"metadata.csv")
    assert [c.id for c in files.clips] == ["LJ001-0001", "LJ001-0002", "other.flac",
                                           "wavs/LJ001-0002.wav"]
    assert files.clip(0).fields == {"text": 'Printing, in "1456"',
                                    "normalized": "Printing, in fourteen"}
    assert files.clip(1).fields == {"text": '"a', "normalized": ""}
    assert files.clip(1).frames == 11_025 and files.clip(2).sample_rate == 16_000
    assert files.clip(1).source == files.clip(3).source  # one file, one side of a split
    wrong = {"LJ9|x": "missing", "../other|x": "leads out", "|x": "path",
             "LJ001-0001|x": "occurs twice"}
    for line, cause in wrong.items():
        (tmp_path/"m.csv").write_text(f"LJ001-0001|a\n{line}\n")
        with pytest.raises(DataError, match=rf"m\.csv:2: .*{cause}"):
            read_manifest(tmp_path/"m.csv")


HOSTILE = ["../x.wav", "a/../../x.wav", "/etc/passwd", "\\\\server\\x.wav", "C:x.wav", "C:/x.wav",
           "..\\x.wav", "a\0.wav", "a\n.wav", "NUL", "com1.wav", "a/aux.txt", "x"*300, "y/"*3000,
           "",
           "out/secret.wav", "secret.wav", "//x", "con .wav"]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:20]))
def test_hostile_paths(tmp_path, name):
    inner, outer = tmp_path/"inner", tmp_path/"outer"
    inner.mkdir()
    outer.mkdir()
    for path in (outer/"secret.wav", tmp_path/"x.wav"):
        write_audio(path, sound(0.1, 16_000), 16_000)
    (inner/"out").symlink_to(outer)
    (inner/"secret.wav").symlink_to(outer/"secret.wav")
    for known in ({}, {"sample_rate": 16_000, "channels": 1, "frames": 10}):
        (inner/"m.jsonl").write_text("\n" + json.dumps({"path": name} | known) + "\n")
        with pytest.raises(DataError, match=r"m\.jsonl:2: "): read_manifest(inner/"m.jsonl")


KNOWN = '{"path": "a/1.wav", "sample_rate": 16000, "channels": 1'
BAD_ROWS = ['{"path": 1}', "[]", "{}", "nonsense", '{"path": "a/1.wav", "frames": 1e999}',
            '{"path": "a/1.wav", "x": NaN}', '{"path": "a/1.wav", "start": -1}',
            '{"path": "a/1.wav", "start": 99}', '{"path": "a/1.wav", "duration": 99}',
            '{"path": "a/1.wav", "sample_rate": true}', "["*100_000,
            '{"path": "a/1.wav", "id": []}',
            '{"path": "a/1.wav", "sample_rate": 1, "channels": 1, "frames": 1}',
            '{"path": "missing.wav"}', '{"path": "a"}',
            '{"path": "a/1.wav", "sample_rate": 16000, "channels": 0, "frames": 1}',
            '{"path": "a/1.wav", "frames": 0}', '{"path": "a/1.wav", "duration": 0}',
            KNOWN + ', "frames": 99999999999999999999}', '{"path": "/dev/zero"}',
            '"' + "x"*2_000_000 + '"']


@pytest.mark.parametrize("row", BAD_ROWS, ids=lambda row: row[:60])
def test_bad_rows(folder, row):
    (folder/"m.jsonl").write_text('{"path": "a/1.wav", "id": "good"}\n' + row + "\n")
    with pytest.raises(DataError, match=r"m\.jsonl:2: ") as error: read_manifest("m.jsonl")
    assert len(str(error.value)) < 1000


def test_rows_in_seconds(folder):
    rows = [{"audio": "a/1.wav", "start": 0.25, "duration": 0.5, "speaker": "anna", "id": 7,
             "text": "hm"},
            {"audio_filepath": "a/1.wav", "duration": 1.5004, "id": "w"}]
    (folder/"m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = read_manifest("m.jsonl")
    assert files.clip(0) == Clip("7", "a/1.wav", 16_000, 1, 8000, "anna", {"text": "hm"}, 4000)
    assert files.clip(1).frames == 24_000
    assert np.array_equal(files.read(0), read_audio("a/1.wav", start=0.25, duration=0.5)[0])


def test_bad_manifest_files(tmp_path):
    path = tmp_path/"m.jsonl"
    path.write_text('{"path": "x"}\n'*100)
    with pytest.raises(DataError, match="max_bytes"): read_manifest(path, max_bytes=100)
    path.write_text("\n"*100)
    with pytest.raises(DataError, match=":11: more than max_lines=10"):
        read_manifest(path, max_lines=10)
    with pytest.raises(DataError, match="lists no clips"): read_manifest(path)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="UTF-8"): read_manifest(path)
    os.mkfifo(tmp_path/"pipe.jsonl")
    for bad in (tmp_path, tmp_path/"pipe.jsonl", tmp_path/"none.jsonl", "/dev/zero", "a\0.jsonl"):
        with pytest.raises(DataError): read_manifest(bad)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = ["path", "id", "sample_rate", "channels", "frames", "offset", "start", "duration", "digest",
        "source", "speaker", "text"]


@settings(max_examples=150, deadline=None)
@given(st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3), max_leaves=4),
       st.sampled_from(KEYS))
def test_no_value_breaks_the_reader(tmp_path_factory, value, key):
    here = tmp_path_factory.getbasetemp()/"fuzz"
    here.mkdir(exist_ok=True)
    if not (here/"a.wav").exists(): write_audio(here/"a.wav", sound(0.1, 16_000), 16_000)
    (here/"m.jsonl").write_text(json.dumps({"path": "a.wav"} | {key: value}))
    try: files = read_manifest(here/"m.jsonl")
    except DataError: return
    assert 0 < files.clip(0).frames and Path(files.clip(0).path).name == "a.wav"
