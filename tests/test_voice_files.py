"Files of voices: opened by clients that know one way to read them, and by us whatever is in them."
import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from voice_encoders import KOKORO

from audiolab.voice import (
    StyleError, StyleSpace, VoiceStyle, kokoro_voice, load_kokoro_voice, load_voice, save_style,
    save_voice, unit_rows, voice_name,
)

SUPERTONIC = StyleSpace("supertonic-3", "main")
RNG = np.random.default_rng(0)
ANNA = VoiceStyle(*(unit_rows(RNG.standard_normal(shape)) for shape in ((50, 256), (8, 16))),
                  SUPERTONIC, {"name": "Anna", "consent": "Anna agreed"})
KAI = VoiceStyle(*RNG.standard_normal((2, 1, 128)), KOKORO,
                 {"name": "Kai", "consent": "Kai agreed"})


def typed_style(text):
    """A style as Go, Rust and C++ programs parse it, into `struct { data: [[[f32]]], dims: [i64],
    type: String }`: no value of another type, none missing."""
    tree = json.loads(text)
    def typed(value, kind):
        assert type(value) is kind, f"{kind} expected, {type(value)} found"
        return value
    def part(name):
        table = typed(tree[name], dict)
        assert typed(table["type"], str) == "float32"
        dims = [typed(size, int) for size in typed(table["dims"], list)]
        flat = [typed(value, float) for block in typed(table["data"], list)
                for row in typed(block, list) for value in typed(row, list)]
        return np.array(flat, np.float32).reshape(dims)
    return part("style_ttl"), part("style_dp")


def test_typed_clients_read_the_json(tmp_path):
    ttl, dp = typed_style(save_voice(ANNA, tmp_path/"anna.json").read_text())
    assert ttl.shape == (1, 50, 256) and (ttl[0] == ANNA.ttl).all() and (dp[0] == ANNA.dp).all()
    axis = VoiceStyle(np.eye(50, 256), np.eye(8, 16), SUPERTONIC)  # whole numbers
    assert (typed_style(save_style(axis, tmp_path/"axis.json").read_text())[0][0] == axis.ttl).all()


def test_marks_of_the_json(tmp_path):
    notes = json.loads(save_voice(ANNA, tmp_path/"anna.json").read_text())["metadata"]
    assert notes["synthetic"] is True and notes["consent"] == "Anna agreed"
    assert (notes["teacher_model"], notes["teacher_revision"]) == ("supertonic-3", "main")


def test_kokoro_programs_read_the_archive(tmp_path):
    path = save_voice(KAI, tmp_path/"kai.npz")
    voices = np.load(path, allow_pickle=False)  # as kokoro-onnx does
    assert voices.files == ["Kai"] and voices["Kai"].dtype == np.float32
    assert voices["Kai"].shape == (510, 1, 256) and voices["Kai"][99].shape == (1, 256)
    assert (voices["Kai"] == voices["Kai"][0]).all()
    back = load_voice(path)
    assert (back.ttl == KAI.ttl).all() and (back.dp == KAI.dp).all() and back.space == KOKORO
    assert back.notes["synthetic"] is True and back.notes["consent"] == "Kai agreed"
    assert kokoro_voice(KAI, "kai")[:60] == kokoro_voice(KAI, "kai")[:60]


def test_endings_fit_the_synthesizer(tmp_path):
    for style, name in ((KAI, "kai.json"), (ANNA, "anna.npz"), (ANNA, "anna"), (KAI, "kai.npy")):
        with pytest.raises(StyleError, match="are kept in"): save_voice(style, tmp_path/name)
    assert not list(tmp_path.iterdir())
    with pytest.raises(StyleError, match="means nothing to"):
        load_voice(save_voice(KAI, tmp_path/"kai.npz"), replace(KOKORO, revision="else"))
    with pytest.raises(StyleError, match="60,000 bytes"):
        kokoro_voice(VoiceStyle(KAI.ttl, KAI.dp, KOKORO, {"description": "x"*70_000}))


@pytest.mark.parametrize("name", ["../x", "a/b", "\0", "ключ", "", "a"*300, "file", "x y\n"])
def test_names_are_words(tmp_path, name):
    assert 1 <= len(voice_name(name)) <= 64 and voice_name(name).replace("-", "_").isidentifier()
    raw = kokoro_voice(KAI, name)
    assert np.load(io.BytesIO(raw)).files == [voice_name(name)]


def archive(**arrays):
    np.savez(out := io.BytesIO(), **arrays)
    return out.getvalue()


def commented(raw, comment):
    with zipfile.ZipFile(out := io.BytesIO(raw), "a") as file: file.comment = comment
    return out.getvalue()


ROWS = np.ones((510, 1, 256), np.float32)
BAD = {
    "objects": archive(a=np.array([{}], object)), "flat": archive(a=ROWS[:, 0]),
    "short": archive(a=ROWS[:9]), "whole numbers": archive(a=ROWS.astype(int)),
    "not finite": archive(a=ROWS*np.nan), "too large": archive(a=np.full(ROWS.shape, 1e300)),
    "none": archive(), "two": archive(a=ROWS, b=ROWS), "no zip": b"Dear Kai", "nothing": b"",
    "lengths differ": archive(a=ROWS*np.arange(510, dtype=np.float32)[:, None, None])}


@pytest.mark.parametrize("kind", BAD)
def test_strange_archives(tmp_path, kind):
    (path := tmp_path/"bad.npz").write_bytes(BAD[kind])
    with np.errstate(all="ignore"), pytest.raises(StyleError, match="bad.npz"):
        load_voice(path, KOKORO)


@pytest.mark.parametrize("comment", [b"\xff", b"[1]", b"{", b'{"teacher_model": 3}', b"["*60_000])
def test_strange_comments(tmp_path, comment):
    (path := tmp_path/"kai.npz").write_bytes(commented(archive(kai=ROWS), comment))
    assert load_kokoro_voice(path, KOKORO).space == KOKORO
    with pytest.raises(StyleError, match="does not say"): load_kokoro_voice(path)


def damaged(raw, rng):
    if rng.random() < .2: return raw[:rng.integers(len(raw))]
    raw = bytearray(raw)
    for place in rng.integers(0, len(raw), rng.integers(1, 6)): raw[place] = rng.integers(256)
    return bytes(raw)


def fuzz(tmp_path, cases, seed=0):
    "Voices with bytes changed are read, or refused with the file's name"
    rng, opened = np.random.default_rng(seed), 0
    for style, name in ((KAI, "kai.npz"), (ANNA, "anna.json")):
        raw = save_voice(style, path := tmp_path/name).read_bytes()
        for _ in range(cases if name == "kai.npz" else cases//8):
            path.write_bytes(damaged(raw, rng))
            try: opened += load_voice(path, style.space) is not None
            except StyleError as error: assert name in str(error)
    return opened


def test_damaged_voices(tmp_path): fuzz(tmp_path, 60)


@pytest.mark.slow
def test_many_damaged_voices(tmp_path): fuzz(tmp_path, 5000, seed=1)
