"Sound for the codec: loudness after the standard, segments by number and by stream, what is held out, and every kind of bad input."
import json, math, os, pickle, shutil, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from audiolab.audio import loudness, normalise_loudness, true_peak, write_audio
from audiolab.data import DataError, Loader, Segments, StreamLoader
from audiolab.files import pack_state, unpack_state
from audiolab.snac import (
    AudioDataset, AudioStream, make_loader, open_training_data, snap_segment,
)

RATE = 24000
SHORT = {"sample_rate": RATE, "segment_length": .1}


def noise(seconds, rate=RATE, level=.1, seed=0):
    return (level*np.random.default_rng(seed).standard_normal(round(seconds*rate))).astype(np.float32).clip(-1, 1)

def tagged(number, seconds=.5, rate=RATE):  # a tone whose number can be heard in its pitch
    return (.3*np.sin(2*np.pi*(200 + 50*number)*np.arange(round(seconds*rate))/rate)).astype(np.float32)

def number_of(segment):  # and heard again
    segment = np.asarray(segment)
    spectrum = np.abs(np.fft.rfft(segment*np.hanning(len(segment)), 8*len(segment)))
    return round((spectrum.argmax()*RATE/8/len(segment) - 200)/50)


@pytest.fixture
def folder(tmp_path):
    "Twelve files of tones in three folders"
    for number in range(12):
        place = tmp_path/"sound"/f"voice{number//4}"; place.mkdir(parents=True, exist_ok=True)
        write_audio(place/f"{number:02}.wav", tagged(number), RATE)
    return tmp_path/"sound"


def table(n=40, **more):  # a table of the library datasets
    import datasets
    def cell(number):
        from io import BytesIO
        file = BytesIO(); soundfile.write(file, tagged(number), RATE, format="WAV")
        return {"bytes": file.getvalue(), "path": f"{number:02}.wav"}
    rows = {"audio": [cell(number) for number in range(n)], **more}
    return datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    place = tmp_path_factory.mktemp("parquet")
    whole = table(40, speaker_id=[number//4 for number in range(40)])
    for shard in range(5): whole.select(range(8*shard, 8*shard + 8)).to_parquet(place/f"train-{shard:05}-of-00005.parquet")
    return place


# ---------------------------------------------------------------------------------------------------------------- lengths and loudness

def test_lengths_fit_the_models():
    assert snap_segment(.8, 24000, 2048) == 20480 and snap_segment(.8, 44100, 12288) == snap_segment(.8, 32000, 12288) == 36864
    assert snap_segment(.8, 24000) == 19200 and snap_segment(2048/24000, 24000, 2048) == 2048 and snap_segment(1e-9, 24000, 2048) == 2048
    for wrong in (0, -1, math.nan, math.inf):
        with pytest.raises(DataError, match="above 0"): snap_segment(wrong, 24000)


@pytest.mark.parametrize("rate", [16000, 24000, 44100, 48000])
def test_loudness_agrees_with_another_meter(rate):
    pyloudnorm = pytest.importorskip("pyloudnorm", reason="needs pyloudnorm (pip install pyloudnorm)")
    meter, same, t = pyloudnorm.Meter(rate), pyloudnorm.Meter(rate, filter_class="DeMan"), np.arange(5*rate)/rate  # filters rounded, and as here
    sounds = [noise(5, rate), noise(.8, rate), np.cumsum(noise(5, rate, .01)).astype(np.float32)*.05,  # pink-brown
              (.5*np.sin(2*np.pi*440*t)).astype(np.float32), noise(5, rate)*(np.sin(2*np.pi*.4*t) > 0),  # with pauses
              noise(5, rate)*np.float32(10)**(-np.arange(5*rate)/rate), np.stack([noise(5, rate), noise(5, rate, .02, seed=1)])]
    for sound in sounds:
        assert loudness(sound, rate) == pytest.approx(meter.integrated_loudness(sound.T), abs=.1 if rate > 16000 else .15)
        if sound.shape[-1] % (rate//10) == 0: assert loudness(sound, rate) == pytest.approx(same.integrated_loudness(sound.T), abs=.01)


def test_loudness_of_what_is_hardly_there():
    for sound in (np.zeros(100), np.zeros(RATE), noise(1, level=1e-5), np.ones(RATE)[:0], np.zeros((2, RATE))): assert loudness(sound, RATE) == -math.inf
    assert math.isfinite(loudness(noise(.01), RATE)) and loudness(noise(.39), RATE) == pytest.approx(loudness(noise(2), RATE), abs=.3)
    with pytest.raises(DataError, match="4000 Hz or more"): loudness(noise(1), 2000)
    assert loudness(torch.from_numpy(noise(1)), RATE) == loudness(noise(1), RATE)


def test_true_peak_finds_what_lies_between():
    from scipy.signal import resample
    rng = np.random.default_rng(1)
    for _ in range(20):
        x = np.fft.irfft(np.concatenate([[0], rng.standard_normal(380) + 1j*rng.standard_normal(380), np.zeros(132)]), 1024)  # nothing above 0.74 of half the rate
        x = (x*np.hanning(1024)/np.abs(x).max()).astype(np.float32)
        exact = 20*math.log10(np.abs(resample(x, 32*1024)).max())
        assert -.45 < true_peak(x) - exact < .05  # four times the rate misses at most this much (the standard says 0.55 dB)
        assert true_peak(x) >= 20*math.log10(np.abs(x).max()) - 1e-4
    assert true_peak(np.zeros(0)) == -math.inf


@pytest.mark.parametrize("seed", range(6))
def test_levels_reach_the_target_or_the_ceiling(seed):
    rng = np.random.default_rng(seed)
    sound = noise(20480/RATE, level=10**rng.uniform(-2.2, -.5), seed=seed)
    if seed % 2: sound[rng.integers(0, 20480, 3)] = 1  # peaks
    even = normalise_loudness(sound, RATE)
    level, peak = loudness(even, RATE), true_peak(even)
    assert even.dtype == np.float32 and level < -15.95 and peak < -.99 and np.abs(even).max() < 10**(-1/20) + 1e-6
    assert level == pytest.approx(-16, abs=.05) or peak == pytest.approx(-1, abs=.02)


def test_levels_of_the_faint_and_the_loud():
    faint = noise(1, level=2e-3)
    assert loudness(normalise_loudness(faint, RATE), RATE) == pytest.approx(loudness(faint, RATE) + 30, abs=.01)  # the gain has an end
    for silence in (np.zeros(1000, np.float32), noise(1, level=1e-6)): np.testing.assert_array_equal(normalise_loudness(silence, RATE), silence)
    step = np.ones(4800, np.float32)  # hardly audible, and too high
    assert true_peak(normalise_loudness(step, RATE)) <= -.99
    assert np.abs(normalise_loudness(noise(1, level=5), RATE)).max() < 1


def test_a_segment_is_measured_in_less_than_1_5_ms():
    sound = noise(20480/RATE); sound[::5000] = 1
    def cost():
        begin = time.process_time()
        for _ in range(20): normalise_loudness(sound, RATE)
        return (time.process_time() - begin)/20
    assert min(cost() for _ in range(5)) < 1.5e-3


# ---------------------------------------------------------------------------------------------------------------- segments by number

def test_the_arguments_of_old(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    shutil.copytree(folder, "path/to/dataset")
    for dataset in (AudioDataset("path/to/dataset"), AudioDataset("./sound", 24000, .8, "train", False, "audio"), AudioDataset(folder), AudioDataset(str(folder))):
        assert len(dataset) == 12 and dataset.segment_samples == 19200
        assert isinstance(dataset[0], torch.Tensor) and dataset[0].dtype == torch.float32 and dataset[0].shape == (19200,)
        assert dataset[0][12000:].abs().max() == 0  # the clip lasts half a second
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(AudioDataset("~/sound")) == 12


def test_segments_depend_on_seed_epoch_and_index(folder):
    one, two, other = AudioDataset(folder, **SHORT), AudioDataset(folder, **SHORT), AudioDataset(folder, **SHORT, seed=1)
    forward, backward = [one[i] for i in range(12)], [two[i] for i in range(11, -1, -1)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward)) and [number_of(x) for x in forward] == list(range(12))
    assert sum(torch.equal(a, other[i]) for i, a in enumerate(forward)) < 3
    one.set_epoch(3)
    assert sum(torch.equal(a, one[i]) for i, a in enumerate(forward)) < 3  # tones repeat themselves
    np.testing.assert_array_equal(one[5], two.item(5, 3)["audio"])
    assert torch.equal(one[-1], one[11]) and one.length(0) == 2400 and one.name(0).endswith("00.wav")
    with pytest.raises(IndexError): one[12]
    assert len(list(iter(two))) == 12  # a map is iterated over to its end
    assert all(loudness(x, RATE) == pytest.approx(-16, abs=.05) for x in forward)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_of_torch(folder, workers):
    "Give what this process gives, follow set_epoch though they run already, and tell what they could not read"
    write_audio(folder/"silent.wav", np.zeros(RATE, np.float32), RATE)
    (folder/"voice0/00.wav").write_bytes((folder/"voice0/00.wav").read_bytes()[:60] + b"\0"*10)
    dataset = AudioDataset(folder, **SHORT)
    assert len(dataset) == 12 and [Path(name).name for name in dataset.left_out] == ["00.wav"]  # cut files show in their header
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, persistent_workers=workers > 0)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        batches = torch.cat(list(loader))
        plain = AudioDataset(folder, **SHORT); plain.set_epoch(epoch)
        assert torch.equal(batches, torch.stack([plain[i] for i in range(12)])) and batches.square().mean(1).min() > .001
    report = dataset.report()
    assert report["items"] == 12 and report["unreadable"] == report["silent"] == 1 and len(report["names"]) == 2
    assert "silent" in report["names"][str(folder/"silent.wav")] and "truncated" in report["names"][str(folder/"voice0/00.wav")]


def test_opening_decodes_nothing_and_tables_are_not_read_through(folder, parquet, monkeypatch):
    import audiolab.audio.sound_files, audiolab.data.clips, audiolab.data.hub_cells, audiolab.data.hub_tables
    def no(*args, **kwargs): raise AssertionError("decoded")
    for module in (audiolab.audio.sound_files, audiolab.data.clips, audiolab.data.hub_cells): monkeypatch.setattr(module, "decode_frames", no)
    monkeypatch.setattr(audiolab.data.hub_tables, "probe_content", no)
    assert len(AudioDataset(folder)) == 12 and len(AudioDataset(parquet)) == 40
    assert len(AudioDataset(folder, **SHORT, per_clip=0)) == 60 and len(AudioDataset(folder, **SHORT, per_clip=3)) == 36


@pytest.mark.parametrize("kind", ["parquet", "file", "saved", "saved parts"])
def test_tables(kind, tmp_path):
    import datasets
    whole, place = table(6), tmp_path/"data"
    if kind == "parquet": place.mkdir(); whole.to_parquet(place/"sounds.parquet")
    elif kind == "file": place = tmp_path/"x.parquet"; whole.to_parquet(place)
    elif kind == "saved": whole.save_to_disk(str(place))
    else: datasets.DatasetDict(train=whole, test=whole.select([3])).save_to_disk(str(place))
    dataset = AudioDataset(place, **SHORT)
    assert [number_of(x) for x in dataset] == list(range(6)) and "05.wav" in dataset.name(5)
    assert [number_of(x) for x in torch.cat(list(DataLoader(dataset, 3, num_workers=2)))] == list(range(6))
    assert sorted(map(number_of, AudioDataset(place, **SHORT, streaming=True))) == list(range(6))
    if kind == "saved parts":
        assert [number_of(x) for x in AudioDataset(place, **SHORT, split="test")] == [3]
        with pytest.raises(DataError, match="test.*train"): AudioDataset(place, split="dev")
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"'sound'.*\['audio'\].*audio_column="): AudioDataset(place, audio_column="sound", streaming=streaming)


def test_names_on_the_hub(monkeypatch, tmp_path):
    import datasets
    monkeypatch.chdir(tmp_path)
    asked, whole = [], table(6)
    def names(name, config=None): return ["train.clean.100", "train"]
    def load(name, config=None, split=None, streaming=False):
        asked.append((name, config, split, streaming))
        if "mozilla" in name: raise RuntimeError("Dataset scripts are no longer supported, but found common_voice_16_1.py")
        if name == "owner/none": raise FileNotFoundError("Couldn't find any data")
        return whole.to_iterable_dataset(2) if streaming else whole
    monkeypatch.setattr(datasets, "get_dataset_split_names", names); monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(AudioDataset("bad49wolf/ljspeech-simple", **SHORT)) == 6
    assert len(list(AudioDataset("openslr/librispeech_asr", **SHORT, split="train.clean.100", streaming=True, config="all"))) == 6
    assert asked == [("bad49wolf/ljspeech-simple", None, "train", False), ("openslr/librispeech_asr", "all", "train.clean.100", True)]
    with pytest.raises(DataError, match="script.*Use fixie-ai/common_voice_17_0 with config='en'"): AudioDataset("mozilla-foundation/common_voice_16_1", streaming=True)
    with pytest.raises(DataError, match="no such file or folder here, and the Hub"): AudioDataset("owner/none")
    with pytest.raises(DataError, match="splits.*train.clean.100"): AudioDataset("owner/name", split="dev")
    with pytest.raises(DataError, match="no name of a data set"): AudioDataset("path/to/dataset")
    assert len(asked) == 4


def test_folders_of_splits(folder):
    shutil.copytree(folder/"voice0", folder/"test"); shutil.move(folder/"voice1", folder/"train")
    assert len(AudioDataset(folder)) == len(AudioDataset(folder, split="test")) == 4
    with pytest.raises(DataError, match="no folder 'dev'"): AudioDataset(folder, split="dev")
    with pytest.raises(DataError, match="nothing to stream"): AudioDataset(folder, streaming=True)


# ---------------------------------------------------------------------------------------------------------------- bad input

def test_every_format(tmp_path):
    for number, ending in enumerate(("wav", "flac", "mp3", "ogg", "opus", "aiff")): write_audio(tmp_path/f"{number}.{ending}", tagged(number, 1), RATE)
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
    with pytest.raises(DataError, match=r"none of 12 files can be read: .*0.wav: .*; \.\.\."): AudioDataset(tmp_path)
    (tmp_path/"songs").mkdir(); (tmp_path/"songs/a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(200))
    with pytest.raises(DataError, match="no decoder here; convert it first: ffmpeg -i"): AudioDataset(tmp_path/"songs")
    with pytest.raises(DataError, match="no rows|cannot be opened as a saved"): table(1).select([]).save_to_disk(str(tmp_path/"e")); AudioDataset(tmp_path/"e")


def silent(place): write_audio(place, np.zeros(RATE, np.float32), RATE)
def nearly_silent(place): write_audio(place, noise(1, level=5e-4), RATE)
def cut(place): write_audio(place, noise(2), RATE, subtype="FLOAT"); place.write_bytes(place.read_bytes()[:RATE])
def with_nan(place): x = noise(1); x[:] = np.nan; soundfile.write(place, x, RATE, subtype="FLOAT")
def of_1_hz(place):
    write_audio(place, noise(1), RATE); data = bytearray(place.read_bytes()); data[24:28] = (1).to_bytes(4, "little"); place.write_bytes(data)

@pytest.mark.parametrize("spoil, cause", [(silent, "silent: below -60 dB"), (nearly_silent, "silent"), (cut, "truncated"), (with_nan, "NaN"),
                                          (of_1_hz, "absurd sample rate 1 Hz")])
def test_what_cannot_be_used_is_named_and_never_trained_on(folder, tmp_path, spoil, cause):
    spoil(folder/"bad.wav")
    dataset = AudioDataset(folder, **SHORT)
    loader = make_loader(dataset, 4)
    batches = [batch["audio"] for epoch in range(3) for batch in loader.batches(epoch)]
    assert torch.cat(batches).square().mean(1).min() > .01
    report = dataset.report()
    assert cause in report["names"][str(folder/"bad.wav")] and len(report["names"]) == 1 == report["unreadable"] + report["silent"]
    assert report["silent"] == (1 if "silent" in cause else 0)
    if not dataset.left_out: assert cause in loader.report()["names"][str(folder/"bad.wav")]["cause"]
    (tmp_path/"all").mkdir()
    for n in range(12): spoil(tmp_path/"all"/f"{n}.wav")
    with pytest.raises(DataError, match=f"none of 12 .*{cause}"): make_loader(AudioDataset(tmp_path/"all", **SHORT), 4)
    with pytest.raises(DataError, match=cause): AudioDataset(tmp_path/"all", **SHORT)[3]


def test_quiet_places_are_drawn_again(tmp_path):
    write_audio(tmp_path/"x.wav", np.concatenate([np.zeros(2*RATE, np.float32), noise(4)]), RATE)
    dataset = AudioDataset(tmp_path, **SHORT)
    levels = [dataset.item(0, epoch)["audio"].std() for epoch in range(30)]
    assert min(levels) > .01 and dataset.report()["names"] == {}
    assert AudioDataset(tmp_path, **SHORT, floor=None, target=None)[0].shape == (2400,)


def test_a_manifest_that_lies(tmp_path):
    write_audio(tmp_path/"a.wav", noise(1), RATE); write_audio(tmp_path/"b.wav", noise(1), RATE)
    rows = [{"path": "a.wav", "sample_rate": 48000, "channels": 1, "frames": 24000}, {"path": "b.wav"}]
    (tmp_path/"m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = AudioDataset(tmp_path/"m.jsonl", **SHORT)
    dataset[0]; dataset[1]
    assert len(dataset) == 2 and "24000 Hz, 1 channels, 24000 samples instead of 48000" in dataset.report()["names"][str(tmp_path/"a.wav")]
    rows[0]["sample_rate"] = 1
    (tmp_path/"m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="m.jsonl:1: .*absurd sample rate"): AudioDataset(tmp_path/"m.jsonl")


def test_too_much_that_cannot_be_used_stops_the_run(folder):
    for n in range(6): silent(folder/f"silent{n}.wav")
    loader = make_loader(AudioDataset(folder, **SHORT), 6)
    with pytest.raises(DataError, match="more than max_unreadable=0.1"):
        for epoch in range(50): list(loader.batches(epoch))


def test_wrong_settings(folder):
    for wrong in ({"segment_length": 0}, {"sample_rate": 0}, {"per_clip": -1}, {"multiple": 0}):
        with pytest.raises(DataError): AudioDataset(folder, **wrong)
    with pytest.raises(DataError, match="12 segments make no batch of 16"): make_loader(AudioDataset(folder), 16)


# ---------------------------------------------------------------------------------------------------------------- streams

@pytest.mark.parametrize("workers", [0, 1, 2, 4])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_stream_gives_each_item_once(parquet, workers, world, monkeypatch):
    if world == 2 and workers in (1, 4): return
    orders = []
    for epoch in (0, 1):
        found = []
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank)); monkeypatch.setenv("WORLD_SIZE", str(world))
            stream = AudioDataset(parquet, **SHORT, streaming=True, shuffle_buffer=64)
            stream.set_epoch(epoch)
            found += [number_of(x) for batch in DataLoader(stream, batch_size=3, num_workers=workers) for x in batch]
            assert stream.report() == {"items": len(found) if rank == 0 else 40 - before, "unreadable": 0, "silent": 0, "names": {}}
            before = len(found)
        assert sorted(found) == list(range(40))
        orders.append(found)
    assert orders[0] != orders[1] and sorted(orders[0]) != orders[0]


def test_a_stream_is_no_list(parquet):
    stream = AudioDataset(parquet, 24000, .1, "train", True)
    assert type(stream) is AudioStream and isinstance(stream, AudioDataset) and isinstance(stream, torch.utils.data.IterableDataset)
    with pytest.raises(TypeError, match="iterate over it"): stream[0]
    with pytest.raises(TypeError, match="no length"): len(stream)
    assert not isinstance(AudioDataset(parquet), torch.utils.data.IterableDataset)
    assert next(iter(pickle.loads(pickle.dumps(stream)))).shape == (2400,)


def test_the_cost_of_an_item_does_not_grow(parquet):
    "Rows read for the last item are as many as for the first: each is read once, whatever its place"
    stream, read = AudioDataset(parquet, **SHORT, streaming=True, shuffle_buffer=1), []
    make = stream.stream.open
    def counted(*args):
        rows = make(*args); step = type(rows).__next__
        class Counted:
            state = rows.state
            def __iter__(self): return self
            def __next__(self): read.append(1); return step(rows)
        return Counted()
    stream.stream.open = counted
    costs = []
    for _ in stream: costs.append(len(read)); read.clear()
    assert len(costs) == 40 and set(costs) == {1}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_in_the_middle(parquet, workers):
    def loader(): return make_loader(AudioDataset(parquet, **SHORT, streaming=True, shuffle_buffer=16), 4, seed=5, num_workers=workers)
    whole = loader(); batches = [batch["audio"] for batch in whole.batches(2)]; whole.close()
    first = loader(); it = first.batches(2); [next(it) for _ in range(3)]
    state = unpack_state(*pack_state(first.state_dict())); first.close()
    second = loader(); second.load_state_dict(state)
    rest = [batch["audio"] for batch in second.batches(2, 3)]; second.close()
    assert isinstance(whole, StreamLoader) and len(batches) == 10 and len(rest) == len(batches) - 3
    assert all(torch.equal(a, b) for a, b in zip(batches[3:], rest))


def test_what_a_stream_cannot_use_is_counted(tmp_path):
    import datasets
    rows = [table(1)[0]["audio"] for _ in range(10)]
    for n in (2, 5): rows[n] = {"bytes": b"no sound", "path": f"bad{n}.wav"}
    silent(tmp_path/"s.wav"); rows[7] = {"bytes": (tmp_path/"s.wav").read_bytes(), "path": "s.wav"}
    make = lambda rows, name: datasets.Dataset.from_dict({"audio": rows}).cast_column("audio", datasets.Audio(decode=False)).to_parquet(tmp_path/name)
    make(rows, "some.parquet"); make([rows[2], rows[7]]*20, "none.parquet")
    stream = AudioDataset(tmp_path/"some.parquet", **SHORT, streaming=True)
    assert len(list(stream)) == 7
    report = stream.report()
    assert (report["items"], report["unreadable"], report["silent"]) == (10, 2, 1) and any("bad2.wav" in name for name in report["names"])
    assert sum(map(len, DataLoader(stream, 2, num_workers=2))) == 7 and stream.report()["unreadable"] == 4  # counted in the workers
    nothing = AudioDataset(tmp_path/"none.parquet", **SHORT, streaming=True)
    with pytest.raises(DataError, match="the first 32 rows cannot be used"): list(nothing)
    with pytest.raises(DataError, match="none of 3"): make_loader(nothing, 2)
    table_of_bad = AudioDataset(tmp_path/"none.parquet", **SHORT)
    with pytest.raises(DataError, match="none of 3.*silent|none of 3.*not audio"): make_loader(table_of_bad, 2)


# ---------------------------------------------------------------------------------------------------------------- for training

def test_held_out_files(folder):
    train, held = open_training_data(folder, **SHORT, validation_share=.2)
    ids = {clip.id for clip in train.source.clips}
    assert 0 < len(held) < 6 and not ids & {item["id"] for item in held} and ids | {item["id"] for item in held} == {c.id for c in AudioDataset(folder).source.clips}
    assert len(train) == 5*len(ids) and held[0]["audio"].shape == (2400,)  # as many pieces as fit
    again = open_training_data(folder, **SHORT, validation_share=.2)[1]
    assert all((a["audio"] == b["audio"]).all() for a, b in zip(held, again))
    train, held = open_training_data(folder, **SHORT, group="folder", per_clip=1)
    assert len({item["id"].split("/")[0] for item in held}) == 1 and len(train) == 8 and len(held) == 4
    assert not {item["id"].split("/")[0] for item in held} & {clip.source for clip in train.source.clips}
    loader = make_loader(train, 4, num_workers=2, rank=1, world=2)
    assert isinstance(loader, Loader) and next(loader.batches(0))["audio"].shape == (2, 2400); loader.close()
    assert open_training_data(folder, **SHORT, validation_share=0)[1] == []


def test_held_out_by_name(folder, tmp_path, parquet):
    write_audio(tmp_path/"v.wav", tagged(20, 1), RATE)
    train, held = open_training_data(folder, **SHORT, validation_path=tmp_path/"v.wav")
    assert len(train) == 60 and [number_of(item["audio"]) for item in held] == [20]
    shutil.copytree(folder/"voice0", folder/"dev"); shutil.move(folder/"voice1", folder/"train")
    train, held = open_training_data(folder, **SHORT, validation_split="dev", validation_items=3)
    assert len(train.source) == 4 and len(held) == 3
    silent(tmp_path/"s.wav")
    with pytest.raises(DataError, match="nothing that was held out can be used"): open_training_data(folder, **SHORT, validation_path=tmp_path/"s.wav")
    with pytest.raises(DataError, match="data.validation_path of a run"): open_training_data(tmp_path/"v.wav", **SHORT)


def test_held_out_rows(parquet):
    train, held = open_training_data(parquet, **SHORT, validation_share=.2)
    kept, apart = {number_of(x)//4 for x in train}, {number_of(item["audio"])//4 for item in held}
    assert len(train) < 40 and apart and not kept & apart  # speakers, of four rows each
    with pytest.raises(DataError, match="no column 'singer'"): open_training_data(parquet, **SHORT, group="singer")


def test_held_out_of_a_stream(parquet, tmp_path):
    train, held = open_training_data(parquet, **SHORT, streaming=True, validation_items=6)
    assert [number_of(item["audio"]) for item in held] == list(range(6))
    for epoch in (0, 1):
        train.set_epoch(epoch)
        assert sorted(map(number_of, train)) == list(range(8, 40))  # rows 6 and 7 are of a speaker held out
    loader = make_loader(train, 4, num_workers=2)
    assert sorted(number_of(x) for batch in loader.batches(0) for x in batch["audio"]) == list(range(8, 40)); loader.close()
    table(6, speaker=["one"]*6).to_parquet(tmp_path/"one.parquet")
    with pytest.raises(DataError, match="no rows are left"): open_training_data(tmp_path/"one.parquet", **SHORT, streaming=True)


def test_plain_pieces_are_those_of_the_ground_floor(folder):
    "Nothing happens to a segment but its gain"
    plain, even = AudioDataset(folder, **SHORT, target=None), AudioDataset(folder, **SHORT)
    for index in range(12):
        a, b = plain[index].numpy(), even[index].numpy()
        np.testing.assert_allclose(a*(b @ a)/(a @ a), b, atol=1e-6)
    clip = Segments(plain.source, RATE, .1, placement="grid")
    assert any(np.abs(np.correlate(plain[0].numpy(), clip.item(piece)["audio"])).max() > 0 for piece in range(3))


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
        assert sum(map(len, DataLoader(dataset, 3, num_workers=2, multiprocessing_context="spawn"))) == n
"""
    (folder.parent/"program.py").write_text(program)
    subprocess.run([sys.executable, folder.parent/"program.py"], check=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])})
