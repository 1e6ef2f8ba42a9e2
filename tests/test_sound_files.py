"Every sample that is in a file, or an error that names what is missing."
import importlib.util
import shutil
import struct
import subprocess
import tracemalloc

import numpy as np
import pytest
import soundfile as sf
from sound_zoo import (
    APE, ID3, KINDS, RATE, chunk, coded, form, mp3, notes, ogg_flac, wav, with_count, with_vbri,
    without_index,
)

from audiolab.audio import AudioError, decoding, probe_audio, read_audio, reading
from audiolab.data import probe_content, read_content

needs_av = pytest.mark.skipif(not importlib.util.find_spec("av"), reason="needs the package av")
SAMPLES = (9000*np.sin(np.arange(RATE)/20)).astype("<i2").tobytes()
FLOATS = np.sin(np.arange(RATE)/20).astype("<f4").tobytes()


@pytest.fixture(scope="module")
def songs(): return mp3(2, seed=1), mp3(1.5, seed=2)


def read(folder, name, data):
    "What is read of a file with such bytes: the same whole, probed, as bytes, and in ranges"
    path = folder/name
    path.write_bytes(data)
    x, rate = read_audio(path)
    assert probe_audio(path).frames == x.shape[1]
    assert probe_content(data, name)[2] == x.shape[1]
    for begin in (0, 1, x.shape[1]//3, x.shape[1]//2, x.shape[1] - 700):
        part = read_audio(path, start=begin/rate, duration=600/rate)[0]
        np.testing.assert_allclose(part, x[:, begin:begin+600], atol=3e-6, err_msg=str(begin))
        np.testing.assert_array_equal(read_content(data, name, begin, 600), part)
    return x


def written(folder, data):
    (folder/"a.bin").write_bytes(data)
    return folder/"a.bin"


def refused(folder, name, data, *words):
    path = folder/name
    path.write_bytes(data)
    with pytest.raises(AudioError) as error: read_audio(path)
    for word in words: assert word in error.value.cause, error.value.cause


def alone(data):
    "What a decoder makes of a file that needs no help"
    import io
    return sf.read(io.BytesIO(data), dtype="float32", always_2d=True)[0].T


# ---- MP3

def test_joined_mp3_files_are_read_one_after_the_other(songs, tmp_path):
    a, b = songs
    whole = np.concatenate([alone(a), alone(b)], axis=1)
    np.testing.assert_allclose(read(tmp_path, "a.mp3", a + b), whole, atol=3e-6)
    tagged = ID3 + a + b"TAG" + b" "*125 + ID3 + b
    np.testing.assert_allclose(read(tmp_path, "b.mp3", tagged), whole, atol=3e-6)
    more = read(tmp_path, "c.mp3", a + without_index(b)).shape[1]
    assert whole.shape[1] <= more < whole.shape[1] + 3*1152, "also where the second has no index"


@pytest.mark.parametrize("change", [lambda n: n//2, lambda n: 0, lambda n: 2*n, lambda n: n + 1,
                                    lambda n: n - 1], ids=["half", "0", "x2", "+1", "-1"])
def test_wrong_counts_of_mp3_frames(songs, tmp_path, change):
    for n, song in enumerate(songs):
        x = read(tmp_path, f"{n}.mp3", with_count(song, change))
        np.testing.assert_allclose(x, alone(song), atol=3e-6)


@pytest.mark.parametrize("fast", [True, False])
def test_vbri(songs, tmp_path, fast):
    for n, song in enumerate(songs):
        missing = alone(song).shape[1] - read(tmp_path, f"{n}.mp3", with_vbri(song, fast)).shape[1]
        assert -3*1152 < missing <= 0, "the encoder's delay and padding are not told"


@pytest.mark.parametrize("front", [b"\r", bytes(512), APE, b"junk of an HTTP header\r\n"*130, ID3],
                         ids=["r", "zeros", "ape", "3 kB", "id3"])
def test_mp3_behind_tags_and_junk(songs, tmp_path, front):
    for n, song in enumerate(songs):
        np.testing.assert_allclose(read(tmp_path, f"{n}.mp3", front + song), alone(song), atol=3e-6)
        bare = read(tmp_path, f"{n}-bare.mp3", front + without_index(song))
        assert 0 <= bare.shape[1] - alone(song).shape[1] < 3*1152


def test_mp3_that_was_cut_is_still_an_error(songs, tmp_path):
    a, b = songs
    for data in (a[:-200], a[:len(a)//2], ID3 + a[:-200], a + b[:-200], a[:-200] + b):
        refused(tmp_path, "a.mp3", data, "truncated")


def test_mp3_in_wav(songs, tmp_path):
    bare = without_index(songs[0])
    x = read(tmp_path, "a.wav", wav(form(0x55, 44_100), chunk(b"data", bare)))
    np.testing.assert_allclose(x, read(tmp_path, "a.mp3", bare), atol=3e-6)


def test_streams_that_cannot_be_one_are_an_error(songs, tmp_path):
    refused(tmp_path, "a.mp3", songs[0] + mp3(1, 22_050, channels=1), "22050 Hz, 1 channels",
            "at 2.00 s", "ffmpeg -i")
    ogg = coded("OGG", "VORBIS")
    refused(tmp_path, "a.ogg", ogg + coded("OGG", "VORBIS", rate=16_000), "16000 Hz", "ffmpeg -i")


# ---- Ogg and FLAC

@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg(tmp_path, subtype):
    links = [coded("OGG", subtype, seconds, seed=n) for n, seconds in enumerate((1, .7, 1.2))]
    for chain in (links, links[:1]*3):  # also with one and the same serial number
        whole = np.concatenate([alone(link) for link in chain], axis=1)
        x = read(tmp_path, f"{len(set(chain))}.ogg", b"".join(chain))
        np.testing.assert_allclose(x, whole, atol=3e-6)
    refused(tmp_path, "cut.ogg", links[0][:-100] + links[1], "Ogg pages of link 1 are missing")
    refused(tmp_path, "end.ogg", links[0] + links[1][:-100], "truncated")


def test_a_long_chain_is_found_by_a_few_pages(tmp_path, monkeypatch):
    monkeypatch.setattr("audiolab.audio.ogg_pages._SMALL", 0)
    a, b = (coded("OGG", "VORBIS", seconds, seed=n) for n, seconds in enumerate((4, 3)))
    for chain in ([a, b], [b, a, b], [a, a]):
        assert read(tmp_path, "a.ogg", b"".join(chain)).shape[1] == sum(map(
            lambda link: alone(link).shape[1], chain))
    assert read(tmp_path, "b.ogg", a).shape[1] == 4*RATE


@pytest.mark.parametrize("front", [ID3, bytes(512), b"\r"])
@pytest.mark.parametrize("kind", ["OGG", "FLAC", "WAV", "AIFF", "CAF"])
def test_tags_and_junk_in_front(tmp_path, kind, front):
    data = coded(kind)
    np.testing.assert_allclose(read(tmp_path, f"a.{kind.lower()}", front + data), alone(data),
                               atol=3e-6)


def test_flac_counts_and_joined_flac(tmp_path):
    a, b = coded("FLAC", seed=1), coded("FLAC", seconds=.8, seed=2)
    np.testing.assert_array_equal(read(tmp_path, "a.flac", ogg_flac(a)), alone(a))
    few = a[:21] + bytes([a[21] & 0xf0]) + struct.pack(">I", RATE//2) + a[26:]
    np.testing.assert_array_equal(read(tmp_path, "b.flac", few), alone(a))
    both = np.concatenate([alone(a), alone(b)], axis=1)
    np.testing.assert_array_equal(read(tmp_path, "c.flac", a + b), both)
    many = a[:21] + bytes([a[21] & 0xf0]) + struct.pack(">I", RATE*2) + a[26:]
    refused(tmp_path, "d.flac", many, "promises 16000 samples, at most 8000")


# ---- sizes in headers, and legal files

def test_wav_of_every_legal_and_wrong_shape(tmp_path):
    data, sixteen = chunk(b"data", SAMPLES), form()
    long = struct.pack("<QQQI", 0, len(SAMPLES), RATE, 0)
    endless = b"data\xff\xff\xff\xff" + SAMPLES
    big = np.frombuffer(SAMPLES, "<i2").astype(">i2").tobytes()
    files = {
        "plain": wav(sixteen, data), "data first": wav(data, sixteen),
        "zero": wav(sixteen, chunk(b"data", SAMPLES, 0)),
        "all zero": wav(sixteen, chunk(b"data", SAMPLES, 0), size=0),
        "rifx zero": wav(form(order=">"), chunk(b"data", big, 0), magic=b"RIFX"),
        "bw64": wav(chunk(b"ds64", long), sixteen, endless, magic=b"BW64", size=2**32-1),
        "rf64": wav(chunk(b"ds64", long), sixteen, endless, magic=b"RF64", size=2**32-1),
        "rf64 zero": wav(chunk(b"ds64", bytes(28)), sixteen, endless, magic=b"RF64"),
        "smpl odd": wav(sixteen, b"smpl" + struct.pack("<I", 61) + bytes(61), data),
        "two data": wav(sixteen, chunk(b"data", SAMPLES[:6000]), chunk(b"data", SAMPLES[6000:]))}
    expected = np.frombuffer(SAMPLES, "<i2")/2**15
    for name, content in files.items():
        np.testing.assert_array_equal(read(tmp_path, f"{name}.wav", content)[0], expected, name)
    float32 = form(3, bits=32)
    bad_peak = wav(float32, chunk(b"PEAK", bytes(48)), chunk(b"data", FLOATS))
    assert read(tmp_path, "peak.wav", bad_peak).shape == (1, RATE)
    twice = read(tmp_path, "twice.wav", files["plain"]*2)
    np.testing.assert_array_equal(twice[0], np.tile(expected, 2))
    empty = wav(sixteen, chunk(b"data", b""), chunk(b"LIST", b"INFO"))
    refused(tmp_path, "no.wav", empty, "0 samples")


def test_the_byte_behind_an_odd_number_of_gsm_blocks_is_no_sound(tmp_path):
    for samples, blocks in ((320, 1), (641, 3), (900, 3), (1280, 4)):
        data = coded("WAV", "GSM610", samples/RATE, channels=1)
        x = read_audio(written(tmp_path, data + b"junk"*9))[0]
        assert x.shape == (1, 320*blocks)
        at = data.index(b"data") + 4
        unsized = data[:at] + b"\xff"*4 + data[at+4:]
        assert read_audio(written(tmp_path, unsized))[0].shape == (1, 320*blocks)
        plain = np.abs(alone(coded("AIFF", "GSM610", samples/RATE, channels=1))[0, :samples])
        np.testing.assert_allclose(np.abs(x[0, :samples]), plain, atol=.05)


def test_sizes_that_are_too_small(tmp_path):
    "Perhaps it was killed between two times of writing it; perhaps it has more than 4 GB"
    for kind in ("WAV", "RF64", "AIFF", "CAF", "AU", "W64"):
        data = coded(kind, "PCM_16", channels=1)
        at = 28 if kind == "RF64" else 8 if kind == "AU" else data.index(
            b"SSND" if kind == "AIFF" else b"data") + (16 if kind == "W64" else 4)
        size, order = (8 if kind in ("RF64", "CAF", "W64") else 4), (
            "little" if kind in ("WAV", "RF64", "W64") else "big")
        few = data[:at] + (5000).to_bytes(size, order) + data[at+size:]
        refused(tmp_path, f"a.{kind}", few, "fewer samples than there seem to be")
        for tag in (b"TAG" + b" "*3000, bytes(5000), b"\r\n"*50):
            whole = data + tag
            assert read_audio(written(tmp_path, whole))[0].shape == (1, RATE), (kind, tag[:4])


def test_a_name_does_not_make_sound(tmp_path):
    for name in ("a.au", "b.snd", "c.raw"): refused(tmp_path, name, b"words and words "*90, "not audio")


def test_sizes_of_zero_elsewhere(tmp_path):
    au, caf, w64 = coded("AU"), coded("CAF"), coded("W64", "PCM_16")
    place, w64_place = caf.index(b"data") + 4, w64.index(b"data") + 16
    expected = alone(au)
    for n, size in enumerate((bytes(8), b"\xff"*8)):
        x = read(tmp_path, f"{n}.caf", caf[:place] + size + caf[place+8:])
        np.testing.assert_array_equal(x, expected)
        x = read(tmp_path, f"{n}.w64", w64[:w64_place] + size + w64[w64_place+8:])
        np.testing.assert_array_equal(x, expected)
        x = read(tmp_path, f"{n}.au", au[:8] + size[:4] + au[12:])
        np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "CAF", "W64", "RF64", "SVX"])
def test_what_was_cut_is_an_error(tmp_path, kind):
    data = coded(kind, "PCM_16", channels=1)
    refused(tmp_path, f"a.{kind.lower()}", data[:len(data)//2], "truncated: its header promises")
    assert read(tmp_path, f"b.{kind.lower()}", data).shape == (1, RATE)


def test_voc_of_many_blocks(tmp_path):
    head = b"Creative Voice File\x1a\x1a\0\x0a\x01\x29\x11"
    about = struct.pack("<IBBHI", RATE, 16, 1, 4, 0)
    blocks = [(9, about + SAMPLES[:5000]), (2, SAMPLES[5000:9000]), (2, SAMPLES[9000:])]
    sizes = [struct.pack("<I", len(part))[:3] for _, part in blocks]
    body = b"".join(bytes([kind]) + size + part for (kind, part), size in zip(blocks, sizes))
    x = read(tmp_path, "a.voc", head + body + b"\0")
    np.testing.assert_array_equal(x[0], np.frombuffer(SAMPLES, "<i2")/2**15)
    refused(tmp_path, "b.voc", head + body[:9000], "truncated")


# ---- ranges, and other decoders

@pytest.mark.parametrize("kind", KINDS)
def test_ranges_equal_the_whole_in_every_format(tmp_path, kind):
    for subtype in KINDS[kind]:
        path = tmp_path/f"{subtype}.{kind.lower()}"
        for channels in (1, 2):
            try: sf.write(path, notes(1.5, channels=channels), RATE, format=kind, subtype=subtype)
            except sf.SoundFileError: continue  # it has one channel only
            for wanted in (None, 11_025):
                x, rate = read_audio(path, sample_rate=wanted)
                for begin in (1, x.shape[1]//3, x.shape[1] - 100, x.shape[1] - 1):
                    asked = dict(start=begin/rate, duration=100/rate, sample_rate=wanted)
                    np.testing.assert_allclose(read_audio(path, **asked)[0], x[:, begin:begin+100],
                                               atol=3e-6, err_msg=f"{path} {asked}")


def test_refusals_carry_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "has_ffmpeg_decoders", lambda: False)
    wma = wav(form(0x161), chunk(b"data", SAMPLES))
    for name, data in (("a b.wav", wma), ("x.tta", b"TTA1" + SAMPLES),
                       ("x.aiff", b"FORM\0\0\0\x20MAUD" + SAMPLES), ("x.mp3", bytes(range(200)))):
        refused(tmp_path, name, data, "ffmpeg -i")
    refused(tmp_path, "a.m4a", b"\0\0\0\x1cftypM4A " + bytes(99), "pip install av", "ffmpeg -i")


@needs_av
def test_pyav_reads_what_libsndfile_refuses(tmp_path):
    import av
    x = (notes(1.2)*2**15).astype(np.int16)
    path = tmp_path/"a.m4a"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("alac", rate=RATE, layout="stereo", format="s16p")
        channels = np.ascontiguousarray(x.T)
        frame = av.AudioFrame.from_ndarray(channels, format="s16p", layout="stereo")
        frame.sample_rate, frame.pts = RATE, 0
        for packet in (*stream.encode(frame), *stream.encode(None)): out.mux(packet)
    np.testing.assert_array_equal(read(tmp_path, "b.m4a", path.read_bytes()), x.T/2**15)
    refused(tmp_path, "list.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\na.m4a\n", "ffmpeg")
    refused(tmp_path, "cut.m4a", path.read_bytes()[:3000], "FFmpeg cannot read it")


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the program ffmpeg")
def test_what_ffmpeg_writes(tmp_path):
    sf.write(tmp_path/"in.wav", notes(2, 44_100), 44_100)
    for name, *options in (("a.mp2", "-b:a", "192k"), ("b.ogg", "-c:a", "flac"), ("c.voc",),
                           ("d.wav", "-c:a", "libmp3lame")):
        command = ["ffmpeg", "-y", "-nostdin", "-loglevel", "error", "-i", tmp_path/"in.wav"]
        subprocess.run([*command, *options, tmp_path/name], check=True)
        x = read(tmp_path, name, (tmp_path/name).read_bytes())
        assert 0 <= x.shape[1] - 2*44_100 < 3*1152, name


# ---- memory

@pytest.mark.parametrize("kind,rate,mono", [("WAV", RATE, False), ("FLAC", 5000, True),
                                            ("OGG", 16_000, False)])
def test_long_files_are_read_block_by_block_and_equal(tmp_path, monkeypatch, kind, rate, mono):
    path = tmp_path/f"a.{kind.lower()}"
    path.write_bytes(coded(kind, seconds=3))
    for start, duration in ((0, None), (.71, None), (.5, 2)):
        asked = dict(sample_rate=rate, mono=mono, start=start, duration=duration)
        monkeypatch.setattr(reading, "_LONG", 2**20)
        whole = read_audio(path, **asked)[0]
        monkeypatch.setattr(reading, "_LONG", 100)
        monkeypatch.setattr(decoding, "_BLOCK", 999)
        np.testing.assert_array_equal(read_audio(path, **asked)[0], whole)
        monkeypatch.setattr(decoding, "_BLOCK", 2**17)


@pytest.mark.parametrize("rate,mono", [(None, False), (16_000, True), (16_000, False)])
def test_a_long_file_takes_hardly_more_memory_than_its_result(tmp_path, rate, mono):
    sf.write(tmp_path/"a.wav", np.zeros((44_100*200, 2), np.int16), 44_100)
    tracemalloc.start()
    x = read_audio(tmp_path/"a.wav", sample_rate=rate, mono=mono)[0]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert x.shape[-1] == 200*(rate or 44_100)
    assert peak < 1.2*x.nbytes + 2**23, "its result, and a few blocks"
