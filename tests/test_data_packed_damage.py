"Damaged and hostile stores: every bit has a witness, and no index is believed."
import json
import os
import shutil
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_items import build

from audiolab.data import DataError, PackedStore
from audiolab.data.packed_format import canonical_json, json_digest


@pytest.fixture
def store(tmp_path): return build(tmp_path/"s")


def test_other_settings_are_named(store):
    assert len(PackedStore(store.folder, {"sample_rate": 16_000}, {"a": "1"})) == 10
    other = "n_mels is nothing instead of 80; sample_rate is 16000 instead of 24000"
    with pytest.raises(DataError, match=other):
        PackedStore(store.folder, {"sample_rate": 24_000, "n_mels": 80})
    with pytest.raises(DataError, match="1 inputs instead of 2, and other ones: a, b, item 0"):
        PackedStore(store.folder, inputs={"a": "1", "b": "2"})


def test_every_flipped_bit_of_the_index_is_noticed(store):
    path = store.folder/"index.json"
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.choice(8*len(sound), 400, replace=False).tolist():
        raw = bytearray(sound)
        raw[bit//8] ^= 1 << bit % 8
        path.write_bytes(raw)
        with pytest.raises(DataError): PackedStore(store.folder)
    for size in (0, 1, len(sound)//2, len(sound) - 1):
        path.write_bytes(sound[:size])
        with pytest.raises(DataError): PackedStore(store.folder)


@pytest.mark.parametrize("name",
                         ["audio.bin", "audio.offsets", "mel.bin", "mel.offsets", "info.bin",
                          "info.offsets"])
def test_damaged_files(store, name):
    path = store.folder/name
    sound = path.read_bytes()
    for at in range(0, len(sound), max(1, len(sound)//40)):
        raw = bytearray(sound)
        raw[at] ^= 0x10
        path.write_bytes(raw)
        try: damaged = PackedStore(store.folder)
        except DataError:
            assert name.endswith("offsets")
            continue
        assert list(damaged.verify()) == [name]
    for size in (0, len(sound) - 1, len(sound) + 1):
        path.write_bytes((sound + b"x")[:size])
        with pytest.raises(DataError, match=name): PackedStore(store.folder)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="not a regular file"): PackedStore(store.folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="not a regular file"): PackedStore(store.folder)
    path.unlink()
    with pytest.raises(DataError, match=name): PackedStore(store.folder)


def forge(store, **changes):
    "An index that fits its own digests"
    index = json.loads((store.folder/"index.json").read_text())
    index.pop("digest")
    for key, value in changes.items():
        where, *rest = key.split("__")
        tree = index
        for part in rest: tree, where = tree[where], part
        tree[where] = value
    (store.folder/"index.json").write_bytes(canonical_json(index | {"digest": json_digest(index)}))


def extra(name): return {f"fields__{name}": {"dtype": "uint8", "shape": [], "rows": 1}}


FORGED = [
    *({"count": count} for count in (2**39, 11, 0, -1, 1.5, True, 2**70)),
    *({"fields": fields} for fields in ({}, [])),
    *({"fields__audio__rows": rows} for rows in (2**47, 2**80, -5, 1.0)),
    *({"fields__audio__dtype": dtype} for dtype in ("object", "int64", ["int16"])),
    *({"fields__audio__shape": shape} for shape in ([2**30, 2**30], [2], "x", [-1])),
    *map(extra, ("../../../etc/passwd", "/dev/zero", "nul\0")),
    *({"fields__audio": entry} for entry in (None, {})),
    {"fields__info__dtype": "int8"}, {"fields__info__shape": [1]}, {"format": "zip"},
    *({"settings": settings} for settings in ([], {"x": 1})),
    {"version": 2}, {"fingerprint": "0"}, {"inputs": None},
]


@pytest.mark.parametrize("changes", FORGED, ids=lambda changes: str(changes)[:60])
def test_forged_indexes(store, changes):
    forge(store, **changes)
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as error: PackedStore(store.folder)
        assert tracemalloc.get_traced_memory()[1] < 5e6 and len(str(error.value)) < 600
    finally: tracemalloc.stop()


def test_offsets_that_lie(store):
    path = store.folder/"audio.offsets"
    sound = np.frombuffer(path.read_bytes(), "<i8")
    for at, value in ((0, 1), (0, -5), (3, 2**62), (3, -1), (4, int(sound[2])),
                      (10, int(sound[10]) + 1), (10, 0)):
        lying = sound.copy()
        lying[at] = value
        path.write_bytes(lying.tobytes())
        with pytest.raises(DataError, match="overlap or are out of order"):
            PackedStore(store.folder)


def test_huge_and_hostile_json(store):
    path = store.folder/"index.json"
    for raw in (b"["*100_000, b"[]", b"null", b"{}", b'{"digest": 1}', b"\xff", b" "*(17 << 20),
                b'{"a":' * 50_000):
        path.write_bytes(raw)
        with pytest.raises(DataError): PackedStore(store.folder)
    for bad in (store.folder/"none", "/dev/zero", "a\0b", store.folder/"audio.bin"):
        with pytest.raises(DataError): PackedStore(bad)


def test_hostile_notes(tmp_path, store):
    raw = bytearray((store.folder/"info.bin").read_bytes())
    raw[0] = 0x20
    raw[5] = 0xff
    (store.folder/"info.bin").write_bytes(raw)
    damaged = PackedStore(store.folder)
    with pytest.raises(DataError, match="info.bin: damaged at item 0"): damaged.item(0)
    assert damaged.item(1)["id"] == "item 1"


PLAIN = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
KEYS = ["count", "fields", "settings", "inputs", "fingerprint", "fields__audio",
        "fields__audio__rows", "fields__mel__shape", "fields__info"]


def nested(inner):
    return st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.recursive(PLAIN, nested, max_leaves=5), st.sampled_from(KEYS))
def test_no_value_breaks_the_reader(tmp_path_factory, value, key):
    folder = tmp_path_factory.getbasetemp()/"forged"
    if not folder.exists():
        build(folder)
        shutil.copy(folder/"index.json", folder/"sound.json")
    shutil.copy(folder/"sound.json", folder/"index.json")
    forge(SimpleNamespace(folder=folder), **{key: value})
    try: assert len(PackedStore(folder)) == 10
    except DataError: pass
