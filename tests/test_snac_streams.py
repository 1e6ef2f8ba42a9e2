"Streams of segments, and what is held out of files, tables and streams."
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))
from snac_sounds import make_folder, make_parquet, number_of, RATE, SHORT, silent, table, tagged

from audiolab.audio import write_audio
from audiolab.data import DataError, Loader, Segments, StreamLoader
from audiolab.files import pack_state, unpack_state
from audiolab.snac import (
    AudioDataset, AudioStream, make_loader, open_training_data, split_dataset,
)


@pytest.fixture
def folder(tmp_path): return make_folder(tmp_path/"sound")


@pytest.fixture(scope="module")
def parquet(tmp_path_factory): return make_parquet(tmp_path_factory.mktemp("parquet"))


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_stream_gives_each_item_once(parquet, workers, world, monkeypatch):
    if world == 2 and workers in (1, 4): return
    orders = []
    for epoch in (0, 1):
        found, before = [], 0
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(world))
            stream = AudioDataset(parquet, **SHORT, streaming=True, shuffle_buffer=64)
            stream.set_epoch(epoch)
            found += [number_of(x) for batch in DataLoader(stream, batch_size=3,
                                                           num_workers=workers) for x in batch]
            assert stream.report() == {"items": len(found) if rank == 0 else 40 - before,
                                       "unreadable": 0, "silent": 0, "names": {}}
            before = len(found)
        assert sorted(found) == list(range(40))
        orders.append(found)
    assert orders[0] != orders[1] and sorted(orders[0]) != orders[0]


def test_a_stream_is_no_list(parquet):
    stream = AudioDataset(parquet, 24000, .1, "train", True)
    assert type(stream) is AudioStream and isinstance(stream, AudioDataset)
    assert isinstance(stream, torch.utils.data.IterableDataset)
    with pytest.raises(TypeError, match="iterate over it"): stream[0]
    with pytest.raises(TypeError, match="no length"): len(stream)
    assert not isinstance(AudioDataset(parquet), torch.utils.data.IterableDataset)
    assert next(iter(pickle.loads(pickle.dumps(stream)))).shape == (2400,)


def test_the_cost_of_an_item_does_not_grow(parquet):
    "Rows read for the last item are as many as for the first: each is read once"
    stream, read = AudioDataset(parquet, **SHORT, streaming=True, shuffle_buffer=1), []
    make = stream.stream.open
    def counted(*args):
        rows = make(*args)
        step = type(rows).__next__
        class Counted:
            state = rows.state
            def __iter__(self): return self
            def __next__(self):
                read.append(1)
                return step(rows)
        return Counted()
    stream.stream.open = counted
    costs = []
    for _ in stream:
        costs.append(len(read))
        read.clear()
    assert len(costs) == 40 and set(costs) == {1}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_in_the_middle(parquet, workers):
    def loader():
        return make_loader(AudioDataset(parquet, **SHORT, streaming=True, shuffle_buffer=16), 4,
                           seed=5, num_workers=workers)
    whole = loader()
    batches = [batch["audio"] for batch in whole.batches(2)]
    whole.close()
    first = loader()
    it = first.batches(2)
    [next(it) for _ in range(3)]
    state = unpack_state(*pack_state(first.state_dict()))
    first.close()
    second = loader()
    second.load_state_dict(state)
    rest = [batch["audio"] for batch in second.batches(2, 3)]
    second.close()
    assert isinstance(whole, StreamLoader) and len(batches) == 10 and len(rest) == len(batches) - 3
    assert all(torch.equal(a, b) for a, b in zip(batches[3:], rest))


def test_what_a_stream_cannot_use_is_counted(tmp_path):
    import datasets
    rows = [table(1)[0]["audio"] for _ in range(10)]
    for n in (2, 5): rows[n] = {"bytes": b"no sound", "path": f"bad{n}.wav"}
    silent(tmp_path/"s.wav")
    rows[7] = {"bytes": (tmp_path/"s.wav").read_bytes(), "path": "s.wav"}
    def make(rows, name):
        return datasets.Dataset.from_dict({"audio": rows}).cast_column("audio",
            datasets.Audio(decode=False)).to_parquet(tmp_path/name)
    make(rows, "some.parquet")
    make([rows[2], rows[7]]*20, "none.parquet")
    stream = AudioDataset(tmp_path/"some.parquet", **SHORT, streaming=True)
    assert len(list(stream)) == 7
    report = stream.report()
    assert (report["items"], report["unreadable"], report["silent"]) == (10, 2, 1)
    assert any("bad2.wav" in name for name in report["names"])
    # counted in the workers
    assert sum(map(len, DataLoader(stream, 2, num_workers=2))) == 7
    assert stream.report()["unreadable"] == 4
    nothing = AudioDataset(tmp_path/"none.parquet", **SHORT, streaming=True)
    with pytest.raises(DataError, match="the first 32 rows cannot be used"): list(nothing)
    with pytest.raises(DataError, match="none of 3"): make_loader(nothing, 2)
    table_of_bad = AudioDataset(tmp_path/"none.parquet", **SHORT)
    with pytest.raises(DataError, match="none of 3.*silent|none of 3.*not audio"):
        make_loader(table_of_bad, 2)


def test_held_out_files(folder):
    train, held = open_training_data(folder, **SHORT, validation_share=.2)
    ids = {clip.id for clip in train.source.clips}
    assert 0 < len(held) < 6 and not ids & {item["id"] for item in held}
    assert ids | {item["id"] for item in held} == {c.id for c in AudioDataset(folder).source.clips}
    assert len(train) == 5*len(ids) and held[0]["audio"].shape == (2400,)  # as many pieces as fit
    again = open_training_data(folder, **SHORT, validation_share=.2)[1]
    assert all((a["audio"] == b["audio"]).all() for a, b in zip(held, again))
    train, held = open_training_data(folder, **SHORT, group="folder", per_clip=1)
    assert len({item["id"].split("/")[0] for item in held}) == 1 and len(train) == 8
    assert len(held) == 4
    assert not {item["id"].split("/")[0] for item in held} & {clip.source
                                                              for clip in train.source.clips}
    loader = make_loader(train, 4, num_workers=2, rank=1, world=2)
    assert isinstance(loader, Loader) and next(loader.batches(0))["audio"].shape == (2, 2400)
    loader.close()
    assert open_training_data(folder, **SHORT, validation_share=0)[1] == []


def test_held_out_by_name(folder, tmp_path, parquet):
    write_audio(tmp_path/"v.wav", tagged(20, 1), RATE)
    train, held = open_training_data(folder, **SHORT, validation_path=tmp_path/"v.wav")
    assert len(train) == 60 and [number_of(item["audio"]) for item in held] == [20]
    shutil.copytree(folder/"voice0", folder/"dev")
    shutil.move(folder/"voice1", folder/"train")
    train, held = open_training_data(folder, **SHORT, validation_split="dev", validation_items=3)
    assert len(train.source) == 4 and len(held) == 3
    silent(tmp_path/"s.wav")
    with pytest.raises(DataError, match="nothing that was held out can be used"):
        open_training_data(folder, **SHORT, validation_path=tmp_path/"s.wav")
    with pytest.raises(DataError, match="too short to hold out.*data.validation_path of a run"):
        open_training_data(tmp_path/"v.wav", sample_rate=RATE, segment_length=.6)


def test_held_out_rows(parquet):
    train, held = open_training_data(parquet, **SHORT, validation_share=.2)
    kept, apart = {number_of(x)//4 for x in train}, {number_of(item["audio"])//4 for item in held}
    assert len(train) < 40 and apart and not kept & apart  # speakers, of four rows each
    with pytest.raises(DataError, match="no column 'singer'"):
        open_training_data(parquet, **SHORT, group="singer")


def test_held_out_of_a_stream(parquet, tmp_path):
    train, held = open_training_data(parquet, **SHORT, streaming=True, validation_items=6)
    assert [number_of(item["audio"]) for item in held] == list(range(6))
    for epoch in (0, 1):
        train.set_epoch(epoch)
        # rows 6 and 7 are of a speaker held out
        assert sorted(map(number_of, train)) == list(range(8, 40))
    loader = make_loader(train, 4, num_workers=2)
    assert sorted(number_of(x) for batch in loader.batches(0)
                  for x in batch["audio"]) == list(range(8, 40))
    loader.close()
    table(1, speaker=["one"]).to_parquet(tmp_path/"one.parquet")
    with pytest.raises(DataError, match="no rows are left"):
        open_training_data(tmp_path/"one.parquet", **SHORT, streaming=True)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("speakers, flatters", [(1, True), (2, True), (3, True), (8, False),
                                                (20, False), (60, False)])
def test_few_speakers_cost_at_most_a_quarter_of_the_rows(tmp_path, speakers, flatters, streaming,
                                                         caplog):
    "Mixed voices: held out by speaker where enough is left, else by row, and said aloud"
    who = [f"s{i % speakers}" for i in range(120)]
    table(120, speaker=who).to_parquet(tmp_path/"mixed.parquet")
    with caplog.at_level("INFO"):
        train, held = open_training_data(tmp_path/"mixed.parquet", **SHORT, streaming=streaming)
    kept, apart = ({number_of(x) for x in train}, {number_of(item["audio"]) for item in held})
    assert len(kept) >= 90 and apart and not kept & apart and len(apart) <= 16
    voices = [{who[number] for number in part} for part in (kept, apart)]
    assert bool(voices[0] & voices[1]) == flatters
    told = [r for r in caplog.records if "held out to validate on" in r.getMessage()]
    assert len(told) == 1 and ("flatters" in told[0].getMessage()) == flatters


def test_one_recording_is_split_in_time(tmp_path, caplog):
    write_audio(tmp_path/"long.wav", np.concatenate([tagged(i, 1) for i in range(60)]), RATE)
    train, held = open_training_data(tmp_path, **SHORT, validation_share=.1, validation_seconds=2.)
    clip = train.source.clip(0)
    assert clip.frames == 54*RATE and len(held) == 3 and len(train) == 540
    assert {number_of(item["audio"][:2400]) for item in held} <= set(range(54, 60))
    assert {number_of(train[i]) for i in range(0, 540, 9)} <= set(range(54))
    assert "long.wav from 54.0 s on" in caplog.text
    two = AudioDataset(tmp_path, **SHORT)
    assert [part.source.clip(0).frames for part in split_dataset(two, .001)][0] == 60*RATE - 2400


def test_plain_pieces_are_those_of_the_ground_floor(folder):
    "Nothing happens to a segment but its gain"
    plain, even = AudioDataset(folder, **SHORT, target=None), AudioDataset(folder, **SHORT)
    for index in range(12):
        a, b = plain[index].numpy(), even[index].numpy()
        np.testing.assert_allclose(a*(b @ a)/(a @ a), b, atol=1e-6)
    clip = Segments(plain.source, RATE, .1, placement="grid")
    assert any(np.abs(np.correlate(plain[0].numpy(), clip.item(piece)["audio"])).max() > 0
               for piece in range(3))


@pytest.mark.slow
def test_spawned_workers(folder, parquet):
    "Where processes cannot fork, data sets and what they share travel by pickling"
    program = f"""
import torch
from torch.utils.data import DataLoader
from audiolab.snac import AudioDataset
if __name__ == "__main__":
    for path, streaming, n in (({str(folder)!r}, False, 12), ({str(parquet)!r}, True, 40)):
        dataset = AudioDataset(path, segment_length=.1, streaming=streaming)
        loader = DataLoader(dataset, 3, num_workers=2, multiprocessing_context="spawn")
        assert sum(map(len, loader)) == n
"""
    (folder.parent/"program.py").write_text(program)
    subprocess.run([sys.executable, folder.parent/"program.py"], check=True,
                   env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])})
