"Segments by number: lengths, workers, tables, places, and every kind of bad input."
import json
import logging
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))
from snac_sounds import (
    make_folder, make_parquet, noise, number_of, RATE, SHORT, silent, table, tagged,
)

from audiolab.audio import loudness, write_audio
from audiolab.data import DataError
from audiolab.snac import (
    AudioDataset, AudioStream, make_loader, open_training_data, snap_segment,
)


@pytest.fixture
def folder(tmp_path): return make_folder(tmp_path/"sound")


@pytest.fixture(scope="module")
def parquet(tmp_path_factory): return make_parquet(tmp_path_factory.mktemp("parquet"))


def test_lengths_fit_the_models():
    assert snap_segment(.8, 24000, 2048) == 20480
    assert snap_segment(.8, 44100, 12288) == snap_segment(.8, 32000, 12288) == 36864
    assert snap_segment(.8, 24000) == 19200 and snap_segment(2048/24000, 24000, 2048) == 2048
    assert snap_segment(1e-9, 24000, 2048) == 2048
    for wrong in (0, -1, math.nan, math.inf):
        with pytest.raises(DataError, match="above 0"): snap_segment(wrong, 24000)


def test_the_arguments_of_old(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    shutil.copytree(folder, "path/to/dataset")
    for dataset in (AudioDataset("path/to/dataset"),
                    AudioDataset("./sound", 24000, .8, "train", False, "audio"),
                    AudioDataset(folder), AudioDataset(str(folder))):
        assert len(dataset) == 12 and dataset.segment_samples == 19200
        assert isinstance(dataset[0], torch.Tensor) and dataset[0].dtype == torch.float32
        assert dataset[0].shape == (19200,)
        assert dataset[0][12000:].abs().max() == 0  # the clip lasts half a second
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(AudioDataset("~/sound")) == 12


def test_segments_depend_on_seed_epoch_and_index(folder):
    one, two = AudioDataset(folder, **SHORT), AudioDataset(folder, **SHORT)
    other = AudioDataset(folder, **SHORT, seed=1)
    forward, backward = [one[i] for i in range(12)], [two[i] for i in range(11, -1, -1)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward))
    assert [number_of(x) for x in forward] == list(range(12))
    assert sum(torch.equal(a, other[i]) for i, a in enumerate(forward)) < 3
    one.set_epoch(3)
    assert sum(torch.equal(a, one[i]) for i, a in enumerate(forward)) < 3  # tones repeat themselves
    np.testing.assert_array_equal(one[5], two.item(5, 3)["audio"])
    assert torch.equal(one[-1], one[11]) and one.length(0) == 2400
    assert one.name(0).endswith("00.wav")
    with pytest.raises(IndexError): one[12]
    assert len(list(iter(two))) == 12  # a map is iterated over to its end
    assert all(loudness(x, RATE) == pytest.approx(-16, abs=.05) for x in forward)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_of_torch(folder, workers):
    "Give what this process gives, follow set_epoch though they run, tell what they could not read"
    write_audio(folder/"silent.wav", np.zeros(RATE, np.float32), RATE)
    (folder/"voice0/00.wav").write_bytes((folder/"voice0/00.wav").read_bytes()[:60] + b"\0"*10)
    dataset = AudioDataset(folder, **SHORT)
    # cut files show in their header
    assert len(dataset) == 12 and [Path(name).name for name in dataset.left_out] == ["00.wav"]
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, persistent_workers=workers > 0)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        batches = torch.cat(list(loader))
        plain = AudioDataset(folder, **SHORT)
        plain.set_epoch(epoch)
        assert torch.equal(batches, torch.stack([plain[i] for i in range(12)]))
        assert batches.square().mean(1).min() > .001
    report = dataset.report()
    assert report["items"] == 12 and report["unreadable"] == report["silent"] == 1
    assert len(report["names"]) == 2
    assert "silent" in report["names"][str(folder/"silent.wav")]
    assert "truncated" in report["names"][str(folder/"voice0/00.wav")]


def test_opening_decodes_nothing_and_tables_are_not_read_through(folder, parquet, monkeypatch):
    import audiolab.audio.reading
    import audiolab.data.clips
    import audiolab.data.hub_cells
    import audiolab.data.hub_tables
    def no(*args, **kwargs): raise AssertionError("decoded")
    for module in (audiolab.audio.reading, audiolab.data.clips, audiolab.data.hub_cells):
        monkeypatch.setattr(module, "decode_frames", no)
    monkeypatch.setattr(audiolab.data.hub_tables, "probe_content", no)
    assert len(AudioDataset(folder)) == 12 and len(AudioDataset(parquet)) == 40
    assert len(AudioDataset(folder, **SHORT, per_clip=0)) == 60
    assert len(AudioDataset(folder, **SHORT, per_clip=3)) == 36


@pytest.mark.parametrize("kind", ["parquet", "file", "saved", "saved parts"])
def test_tables(kind, tmp_path):
    import datasets
    whole, place = table(6), tmp_path/"data"
    if kind == "parquet":
        place.mkdir()
        whole.to_parquet(place/"sounds.parquet")
    elif kind == "file":
        place = tmp_path/"x.parquet"
        whole.to_parquet(place)
    elif kind == "saved": whole.save_to_disk(str(place))
    else: datasets.DatasetDict(train=whole, test=whole.select([3])).save_to_disk(str(place))
    dataset = AudioDataset(place, **SHORT)
    assert [number_of(x) for x in dataset] == list(range(6)) and "05.wav" in dataset.name(5)
    assert [number_of(x)
            for x in torch.cat(list(DataLoader(dataset, 3, num_workers=2)))] == list(range(6))
    assert sorted(map(number_of, AudioDataset(place, **SHORT, streaming=True))) == list(range(6))
    if kind == "saved parts":
        assert [number_of(x) for x in AudioDataset(place, **SHORT, split="test")] == [3]
        with pytest.raises(DataError, match="test.*train"): AudioDataset(place, split="dev")
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"'sound'.*\['audio'\].*audio_column="):
            AudioDataset(place, audio_column="sound", streaming=streaming)


def test_names_on_the_hub(monkeypatch, tmp_path):
    import datasets
    monkeypatch.chdir(tmp_path)
    asked, whole = [], table(6)
    def names(name, config=None): return ["train.clean.100", "train"]
    def load(name, config=None, split=None, streaming=False):
        asked.append((name, config, split, streaming))
        if "mozilla" in name:
            raise RuntimeError("Dataset scripts are no longer supported, "
                               "but found common_voice_16_1.py")
        if name == "owner/none": raise FileNotFoundError("Couldn't find any data")
        return whole.to_iterable_dataset(2) if streaming else whole
    monkeypatch.setattr(datasets, "get_dataset_split_names", names)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(AudioDataset("bad49wolf/ljspeech-simple", **SHORT)) == 6
    assert len(list(AudioDataset("openslr/librispeech_asr", **SHORT, split="train.clean.100",
                                 streaming=True, config="all"))) == 6
    assert asked == [("bad49wolf/ljspeech-simple", None, "train", False),
                     ("openslr/librispeech_asr", "all", "train.clean.100", True)]
    with pytest.raises(DataError, match="script.*Use fixie-ai/common_voice_17_0 with config='en'"):
        AudioDataset("mozilla-foundation/common_voice_16_1", streaming=True)
    with pytest.raises(DataError, match="no such file or folder here, and the Hub"):
        AudioDataset("owner/none")
    with pytest.raises(DataError, match="splits.*train.clean.100"):
        AudioDataset("owner/name", split="dev")
    with pytest.raises(DataError, match="no name of a data set"): AudioDataset("path/to/dataset")
    assert len(asked) == 4


def test_folders_of_splits(folder):
    shutil.copytree(folder/"voice0", folder/"test")
    shutil.move(folder/"voice1", folder/"train")
    assert len(AudioDataset(folder)) == len(AudioDataset(folder, split="test")) == 4
    with pytest.raises(DataError, match="no folder 'dev'"): AudioDataset(folder, split="dev")
    with pytest.raises(DataError, match="nothing to stream"): AudioStream(folder)


def test_a_folder_that_is_asked_for_as_a_stream(folder, caplog):
    "All of it, once each, in a mixed order; a loop and a run take it like a stream"
    with caplog.at_level(logging.INFO): mixed = AudioDataset(folder, streaming=True)
    plain = AudioDataset(folder)
    assert type(mixed) is AudioDataset and "nothing to stream" in caplog.text
    names = [[Path(o.name(i)).name for i in range(len(o))] for o in (mixed, plain)]
    assert names[0] != names[1] and sorted(names[0]) == sorted(names[1])
    batches = torch.utils.data.DataLoader(mixed, batch_size=3)
    assert sum(len(batch) for batch in batches) == len(plain)
    train, held = open_training_data(folder, **SHORT, streaming=True)
    usual, of_usual = open_training_data(folder, **SHORT)
    assert len(train) == len(usual) and len(held) == len(of_usual) > 0


def test_every_format(tmp_path):
    for number, ending in enumerate(("wav", "flac", "mp3", "ogg", "opus", "aiff")):
        write_audio(tmp_path/f"{number}.{ending}", tagged(number, 1), RATE)
    write_audio(tmp_path/"6.wav", np.stack([tagged(6, 1, 44100)]*8), 44100)
    dataset = AudioDataset(tmp_path, **SHORT)
    assert [number_of(x) for x in dataset] == list(range(7)) and dataset.report()["names"] == {}
    assert all(loudness(x, RATE) == pytest.approx(-16, abs=.05) for x in dataset)


def test_eight_channels_are_averaged(tmp_path):
    channels = np.stack([tagged(3)*gain for gain in (1, .5, 0, 0, 0, 0, 0, .5)]).astype(np.float32)
    write_audio(tmp_path/"x.wav", channels, RATE, subtype="FLOAT")
    segment = AudioDataset(tmp_path/"x.wav", segment_length=.5, target=None)[0]
    np.testing.assert_allclose(segment, channels.mean(0), atol=1e-6)


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(DataError, match="holds no sound"): AudioDataset(tmp_path)
    with pytest.raises(DataError, match="no such file"): AudioDataset(tmp_path/"nowhere")
    for n in range(12): (tmp_path/f"{n}.wav").write_bytes(b"not a sound")
    with pytest.raises(DataError, match=r"none of 12 files can be read: .*0.wav: .*; \.\.\."):
        AudioDataset(tmp_path)
    (tmp_path/"songs").mkdir()
    (tmp_path/"songs/a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(200))
    with pytest.raises(DataError, match="no decoder here; .*convert it first: ffmpeg -i"):
        AudioDataset(tmp_path/"songs")
    with pytest.raises(DataError, match="no rows|cannot be opened as a saved"):
        table(1).select([]).save_to_disk(str(tmp_path/"e"))
        AudioDataset(tmp_path/"e")


def nearly_silent(place): write_audio(place, noise(1, level=5e-4), RATE)


def cut(place):
    write_audio(place, noise(2), RATE, subtype="FLOAT")
    place.write_bytes(place.read_bytes()[:RATE])


def with_nan(place):
    x = noise(1)
    x[:] = np.nan
    soundfile.write(place, x, RATE, subtype="FLOAT")


def of_1_hz(place):
    write_audio(place, noise(1), RATE)
    data = bytearray(place.read_bytes())
    data[24:28] = (1).to_bytes(4, "little")
    place.write_bytes(data)


@pytest.mark.parametrize("spoil, cause", [(silent, "silent: below -60 dB"),
                                          (nearly_silent, "silent"), (cut, "truncated"),
                                          (with_nan, "NaN"),
                                          (of_1_hz, "absurd sample rate 1 Hz")])
def test_what_cannot_be_used_is_named_and_never_trained_on(folder, tmp_path, spoil, cause):
    spoil(folder/"bad.wav")
    dataset = AudioDataset(folder, **SHORT)
    loader = make_loader(dataset, 4)
    batches = [batch["audio"] for epoch in range(3) for batch in loader.batches(epoch)]
    assert torch.cat(batches).square().mean(1).min() > .01
    report = dataset.report()
    assert cause in report["names"][str(folder/"bad.wav")]
    assert len(report["names"]) == 1 == report["unreadable"] + report["silent"]
    assert report["silent"] == (1 if "silent" in cause else 0)
    if not dataset.left_out:
        assert cause in loader.report()["names"][str(folder/"bad.wav")]["cause"]
    (tmp_path/"all").mkdir()
    for n in range(12): spoil(tmp_path/"all"/f"{n}.wav")
    with pytest.raises(DataError, match=f"none of 12 .*{cause}"):
        make_loader(AudioDataset(tmp_path/"all", **SHORT), 4)
    with pytest.raises(DataError, match=cause): AudioDataset(tmp_path/"all", **SHORT)[3]


def test_quiet_places_are_drawn_again(tmp_path):
    write_audio(tmp_path/"x.wav", np.concatenate([np.zeros(2*RATE, np.float32), noise(4)]), RATE)
    dataset = AudioDataset(tmp_path, **SHORT)
    levels = [dataset.item(0, epoch)["audio"].std() for epoch in range(30)]
    assert min(levels) > .01 and dataset.report()["names"] == {}
    assert AudioDataset(tmp_path, **SHORT, floor=None, target=None)[0].shape == (2400,)


def test_a_manifest_that_lies(tmp_path):
    write_audio(tmp_path/"a.wav", noise(1), RATE)
    write_audio(tmp_path/"b.wav", noise(1), RATE)
    rows = [{"path": "a.wav", "sample_rate": 48000, "channels": 1, "frames": 24000},
            {"path": "b.wav"}]
    (tmp_path/"m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = AudioDataset(tmp_path/"m.jsonl", **SHORT)
    dataset[0]
    dataset[1]
    assert len(dataset) == 2
    cause = dataset.report()["names"][str(tmp_path/"a.wav")]
    assert "24000 Hz, 1 channels, 24000 samples instead of 48000" in cause
    rows[0]["sample_rate"] = 1
    (tmp_path/"m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="m.jsonl:1: .*absurd sample rate"):
        AudioDataset(tmp_path/"m.jsonl")


def test_too_much_that_cannot_be_used_stops_the_run(folder):
    for n in range(6): silent(folder/f"silent{n}.wav")
    loader = make_loader(AudioDataset(folder, **SHORT), 6)
    with pytest.raises(DataError, match="more than max_unreadable=0.1"):
        for epoch in range(50): list(loader.batches(epoch))


def test_wrong_settings(folder):
    for wrong in ({"segment_length": 0}, {"sample_rate": 0}, {"per_clip": -1}, {"multiple": 0}):
        with pytest.raises(DataError): AudioDataset(folder, **wrong)
    with pytest.raises(DataError, match="12 segments make no batch of 16"):
        make_loader(AudioDataset(folder), 16)
