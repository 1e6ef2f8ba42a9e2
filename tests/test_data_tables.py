"Tables of sound: cells of every format, streams of shards, and one door that names what is wrong."
import json
import logging
import multiprocessing
import shutil
import sys

import numpy as np
import pytest

from audiolab.audio import AudioError, read_audio, write_audio
from audiolab.data import (
    Clip, DataError, HubClips, HubStream, Loader, Segments, StreamLoader, open_clips, split_clips,
)
from audiolab.data.hub_cells import read_content
from audiolab.files import pack_state, unpack_state

RATE = 8000


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    assert not multiprocessing.active_children()


def sound(n): return (np.sin(np.arange(1000 + 100*n)*.02*(n % 5 + 1))*.5).astype(np.float32)


def cell(folder, n, ending="flac"):
    return write_audio(folder/f"c.{ending}", sound(n), RATE).read_bytes()


def write_shards(folder, sizes, tmp, damaged=(), start=0, name="train-{:05d}-of-{:05d}.parquet"):
    "Parquet files as the Hub has them, `sizes` rows each"
    import pyarrow, pyarrow.parquet
    folder.mkdir(parents=True, exist_ok=True)
    features = {"audio": {"_type": "Audio"}, "text": {"dtype": "string", "_type": "Value"},
                "speaker_id": {"dtype": "int64", "_type": "Value"}}
    for shard, size in enumerate(sizes):
        rows = range(start, start := start + size)
        sounds = [b"broken" if n in damaged else cell(tmp, n) for n in rows]
        cells = [{"bytes": sound, "path": f"{n}.flac"} for n, sound in zip(rows, sounds)]
        table = pyarrow.table({"audio": cells, "text": [f"t{n}" for n in rows],
                               "speaker_id": [n % 4 for n in rows]})
        about = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": about})
        pyarrow.parquet.write_table(table, folder/name.format(shard, len(sizes)), row_group_size=3)
    return folder


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    "A cache of its own, no network, no bars"
    room = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        if "datasets" not in sys.modules:
            patch.setenv("HF_HUB_OFFLINE", "1")
            patch.setenv("HF_HOME", str(room/"hf"))
        import datasets
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(room/"cache"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        datasets.disable_progress_bars()
        yield room


@pytest.fixture(scope="module")
def shards(room): return write_shards(room/"shards", [5, 7, 4, 6, 1, 5], room)


def texts(batches): return [[fields["text"] for fields in batch["fields"]] for batch in batches]


def stream(path, **options):
    return open_clips(path, streaming=True, **({"sample_rate": RATE, "seconds": .05} | options))


@pytest.mark.parametrize("world, lanes", [(1, 1), (2, 1), (1, 3), (2, 4)])
def test_each_row_once_whatever_the_division(shards, world, lanes):
    "Six shards are dealt to up to six parts; to eight, rows are dealt"
    seen = []
    for rank in range(world):
        loader = StreamLoader(stream(shards), world, rank=rank, world=world, lanes=lanes,
                              shuffle_buffer=6)
        seen += sum(texts(loader.batches(0)), [])
    assert sorted(seen) == sorted(f"t{n}" for n in range(28))


@pytest.mark.parametrize("lanes, buffer", [(1, 1), (1, 4), (2, 6), (7, 20)])
def test_tables_resume_exactly(shards, lanes, buffer):
    def make():
        rows = stream(shards, seed=3)
        return StreamLoader(rows, 2, lanes=lanes, shuffle_buffer=buffer, drop_last=False)

    def plain(batch): return batch["id"], batch["audio"].tolist(), batch["start"].tolist()

    whole = [plain(batch) for batch in make().batches(1)]
    for stop in range(1, len(whole) + 1, 2 if lanes == 1 else 5):
        first = make()
        it = first.batches(1)
        head = [plain(next(it)) for _ in range(stop)]
        second = make()
        second.load_state_dict(unpack_state(*pack_state(first.state_dict())))
        assert head + [plain(batch) for batch in second.batches(1, stop)] == whole


def test_tables_resume_exactly_with_workers(shards):
    def make(**more): return StreamLoader(stream(shards), 2, shuffle_buffer=8, **more)

    whole = texts(make(lanes=2).batches(0))
    first = make(num_workers=2)
    it = first.batches(0)
    head = texts(next(it) for _ in range(4))
    state = first.state_dict()
    first.close()
    second = make(num_workers=2)
    second.load_state_dict(state)
    assert head + texts(second.batches(0, 4)) == whole
    second.close()


def test_other_tables_are_told_on_resume(shards, tmp_path, room, caplog):
    shutil.copytree(shards, tmp_path/"moved")
    write_shards(tmp_path/"other", [5, 7, 4, 6, 1, 5], room, start=1)
    before = StreamLoader(stream(shards), 2).state_dict()
    StreamLoader(stream(tmp_path/"moved"), 2).load_state_dict(before)
    assert "another stream" not in caplog.text
    StreamLoader(stream(tmp_path/"other"), 2).load_state_dict(before)
    assert "another stream" in caplog.text


def test_pieces_do_not_depend_on_the_division(shards):
    "The same rows give the same samples in one part and in four, others in another epoch"
    def pieces(epoch, **options):
        batches = StreamLoader(stream(shards), 1, **options).batches(epoch)
        return {batch["fields"][0]["text"]: batch["audio"][0].tolist() for batch in batches}

    one = pieces(0, lanes=1)
    assert one == pieces(0, lanes=4) == pieces(0, lanes=9) != pieces(1)


def test_whole_clips_and_damage(room):
    folder = write_shards(room/"damaged", [4, 4], room, damaged=[5])
    loader = StreamLoader(stream(folder, seconds=None), 1, max_unreadable=.5, shuffle_buffer=1)
    lengths = {batch["fields"][0]["text"]: batch["length"].item() for batch in loader.batches(0)}
    assert lengths == {f"t{n}": 1000 + 100*n for n in range(8) if n != 5}
    (name, note), = loader.report()["names"].items()
    assert "row 1 (5.flac)" in name and "not audio" in note["cause"]


def test_random_access(shards, caplog, room):
    clips = open_clips(shards)
    assert len(clips) == 28 and clips.clip(3).fields == {"text": "t3", "speaker_id": 3}
    assert clips.clip(6).source == "2"
    clip = clips.clip(9)
    assert (clip.sample_rate, clip.channels, clip.frames) == (RATE, 1, 1900)
    assert np.abs(clips.read(9)[0] - sound(9)).max() < 1e-4
    assert np.array_equal(clips.read(9, 500, 300), clips.read(9)[:, 500:800])
    with pytest.raises(DataError, match="samples 1000 to 2000 asked for"): clips.read(9, 1000, 1000)
    parts = split_clips(clips, validation=.3)
    speakers = {name: {part.clip(i).source for i in range(len(part))} for name,
                part in parts.items()}
    assert not speakers["train"] & speakers["validation"]
    loader = Loader(Segments(parts["train"], RATE, .1), 4, num_workers=1)
    assert all(batch["audio"].shape == (4, 800) for batch in loader.batches(0))
    loader.close()
    with caplog.at_level(logging.WARNING):
        assert len(open_clips(write_shards(room/"one-broken", [3], room, damaged=[1]))) == 2
    assert "left out: one-broken[1] (1.flac)" in caplog.text
    with pytest.raises(DataError, match="no row can be read"):
        open_clips(write_shards(room/"all-broken", [2], room, damaged=[0, 1]))


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3", "ogg", "opus", "aiff"])
def test_formats_in_cells(tmp_path, ending):
    "Any range equals that range of the whole, and the whole is what the file would give"
    both = np.stack([sound(80), sound(81)[:len(sound(80))]])
    limit = 1e-4 if ending == "opus" else 1e-6
    path = write_audio(tmp_path/f"a.{ending}", both, RATE)
    whole = read_content(path.read_bytes(), "cell", 0, read_audio(path)[0].shape[1])
    assert np.allclose(whole, read_audio(path)[0], atol=1e-6)
    for start, frames in ((1, 10), (3000, 2000), (whole.shape[1] - 5, 5)):
        part = read_content(path.read_bytes(), "cell", start, frames)
        assert part.shape == (2, frames)
        assert np.abs(part - whole[:, start:start + frames]).max() < limit


def test_hostile_cells(room, tmp_path):
    good = cell(room, 40)
    rng = np.random.default_rng(0)
    for data in (b"", b"x", b"<html>", good[:100], rng.bytes(5000), b"RIFF" + good):
        with pytest.raises(AudioError, match="cell 1"): read_content(data, "cell 1", 0, 100)
    for _ in range(60):  # flipped bits: the sound, or an error that names the cell
        data = bytearray(good)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        try: assert np.isfinite(read_content(bytes(data), "cell 1", 100, 2000)).all()
        except AudioError as problem: assert "cell 1" in str(problem)


def test_cells_that_only_have_paths(room, tmp_path):
    import datasets
    files = [str(write_audio(tmp_path/f"{n}.wav", sound(n), RATE)) for n in range(3)]
    data = datasets.Dataset.from_dict({"audio": [{"bytes": None, "path": f} for f in files],
                                       "id": ["a", "b", "c"]})
    clips = HubClips(data)
    assert clips.clip(1).id == "b" and np.abs(clips.read(2)[0] - sound(2)).max() < 1e-4
    paths = "http://example.invalid/a.wav", str(tmp_path/"no.wav"), ""
    cells = [{"bytes": None, "path": path} for path in paths]
    data = datasets.Dataset.from_dict({"audio": cells})
    for index, text in enumerate(("is not fetched", "missing", "no sound in this row")):
        with pytest.raises(AudioError, match=text): HubClips(data).clip(index)


def test_saved_to_disk(room, shards):
    import datasets
    table = datasets.load_dataset("parquet", data_files=sorted(map(str, shards.glob("*.parquet"))),
                                  split="train")
    table.save_to_disk(room/"saved")
    datasets.DatasetDict(train=table, test=table.select(range(3))).save_to_disk(room/"splits")
    assert len(open_clips(room/"saved")) == 28 and len(open_clips(room/"splits", split="test")) == 3
    with pytest.raises(DataError, match=r"has the splits \['test', 'train'\]"):
        open_clips(room/"splits")
    seen = sum(texts(StreamLoader(stream(room/"saved"), 1, lanes=3).batches(0)), [])
    assert sorted(seen) == sorted(f"t{n}" for n in range(28))
    (room/"torn").mkdir()
    (room/"torn"/"state.json").write_text("{")
    with pytest.raises(DataError, match="torn: cannot be opened as a saved"):
        open_clips(room/"torn")


def test_names_on_the_hub(room, shards, monkeypatch):
    "Found in the folder we are in, as `datasets` does; without a network the error says so"
    monkeypatch.chdir(room)
    write_shards(room/"owner"/"name"/"data", [3, 3], room)
    assert len(open_clips("hf:owner/name")) == 6
    loader = StreamLoader(stream("hf:owner/name", split="train"), 2, lanes=2, drop_last=False)
    assert sorted(sum(texts(loader.batches(0)), [])) == [f"t{n}" for n in range(6)]
    with pytest.raises(DataError, match="splits"): open_clips("hf:owner/name", split="dev")
    with pytest.raises(DataError, match="hf:owner/nobody: "): open_clips("hf:owner/nobody")
    for name in ("hf:", "hf:../../etc", "hf:a/b/c", "hf:/abs"):
        with pytest.raises(DataError, match="no name of a data set"): open_clips(name)


def test_programs_never_run(room, monkeypatch):
    monkeypatch.chdir(room)
    proof = room/"proof"
    for place in ("owner/script", "alone"):
        (room/place).mkdir(parents=True)
        script = room/place/f"{room.joinpath(place).name}.py"
        script.write_text(f"open({str(proof)!r}, 'w').write('ran')")
    with pytest.raises(DataError, match="loading script.*not run"): open_clips("hf:owner/script")
    with pytest.raises(DataError, match="not run"): open_clips("alone")
    assert not proof.exists()


def test_errors_say_what_there_is(room, shards, tmp_path, monkeypatch):
    import pyarrow, pyarrow.parquet
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "sound": [1]}), tmp_path/"t.parquet")
    for streaming in ({}, {"streaming": True, "sample_rate": RATE}):
        with pytest.raises(DataError, match=r"column 'audio'; the columns are \['sound', 'text'\]"):
            open_clips(tmp_path/"t.parquet", **streaming)
        with pytest.raises(DataError, match="column 'text'"):
            open_clips(shards, column="text", **streaming)
    (tmp_path/"bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="bad.parquet: cannot be opened as Parquet"):
        open_clips(tmp_path/"bad.parquet")
    (tmp_path/"x.txt.zip").write_bytes(b"PK")
    (tmp_path/"empty").mkdir()
    (tmp_path/"junk").mkdir()
    (tmp_path/"junk"/"a.wav").write_text("junk")
    wrong = [("nowhere", {}, "no such file"), (tmp_path/"x.txt.zip", {}, "neither sound"),
             (shards, {"streaming": True}, "needs sample_rate"),
             (shards, {"seconds": 1}, "settings of streams"),
             (tmp_path/"junk", {}, "no file can be read"),
             (tmp_path/"junk", {"streaming": True, "sample_rate": 8000},
              "only tables are streamed"),
             (tmp_path/"junk", {"split": "a"}, "split_clips")]
    for spec, options, text in wrong:
        with pytest.raises(DataError, match=text): open_clips(spec, **options)
    with pytest.raises((DataError, AudioError), match="empty"): open_clips(tmp_path/"empty")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'audiolab\[hf\]'"): open_clips(shards)


def test_folders_and_manifests(tmp_path):
    for n in range(3): write_audio(tmp_path/f"{n}.wav", sound(n), RATE)
    lines = [json.dumps({"path": f"{n}.wav"}) + "\n" for n in range(2)]
    (tmp_path/"list.jsonl").write_text("".join(lines))
    (tmp_path/"list.csv").write_text("0|nought\n1|one\n")
    assert [len(open_clips(tmp_path/name))
            for name in (".", "list.jsonl", "list.csv", "2.wav")] == [3, 2, 2, 1]
    assert isinstance(open_clips(tmp_path).clip(0), Clip)


def test_plain_bytes_and_several_splits(room, tmp_path):
    "A Parquet file that knows nothing of Hugging Face; splits told by the names of files"
    import pyarrow, pyarrow.parquet
    for split, numbers in (("test", range(4)), ("train", [7])):
        table = pyarrow.table({"flac": [cell(room, n) for n in numbers], "n": list(numbers)})
        pyarrow.parquet.write_table(table, tmp_path/f"{split}-00000-of-00001.parquet")
    assert open_clips(tmp_path, split="test", column="flac").clip(2).frames == 1200
    assert len(open_clips(tmp_path, split="train", column="flac")) == 1
    with pytest.raises(DataError, match=r"splits \['test', 'train'\]"):
        open_clips(tmp_path, column="flac")
    rows = stream(tmp_path, split="test", column="flac", seconds=None)
    lengths = [batch["length"].item()
               for batch in StreamLoader(rows, 1, shuffle_buffer=1).batches(0)]
    assert lengths == [1000, 1100, 1200, 1300]


def test_a_column_that_only_rows_can_tell(room, shards):
    "A stream without features: the missing column is an error that lists those there are"
    import datasets
    data = datasets.IterableDataset.from_generator(lambda: iter([{"sound": 1, "text": "a"}]*200))
    with pytest.raises(DataError,
                       match=r"no audio column 'audio'; the columns are \['sound', 'text'\]"):
        list(StreamLoader(HubStream(data, RATE), 1).batches(0))
