"The sound of films: where the subtitles count from, which track, damage told."
import importlib.util

import numpy as np
import pytest

from audiolab.audio import AudioError, write_audio
from audiolab.tts import decode_film, placed_blocks

needs_av = pytest.mark.skipif(not importlib.util.find_spec("av"), reason="needs the package av")
RATE = 24_000


def write_film(path, sounds, rate=48_000, begins=0.0):
    "A film with a picture, whose tracks of sound begin later than it."
    import av
    webm = path.suffix == ".webm"
    with av.open(str(path), "w") as out:
        picture = out.add_stream("libvpx" if webm else "mpeg4", rate=10)
        picture.width = picture.height = 32
        picture.pix_fmt = "yuv420p"
        tracks = [out.add_stream("libopus" if webm else "aac", rate=rate, layout="mono")
                  for _ in sounds]
        for n, track in enumerate(tracks): track.metadata["language"] = ("eng", "amh")[n]
        for n in range(10*(1 + round(begins + len(sounds[0])/rate))):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
            frame.pts = n
            out.mux(picture.encode(frame))
        out.mux(picture.encode(None))
        for sound, track in zip(sounds, tracks):
            for at in range(0, len(sound), 960):
                block = np.zeros(960, np.float32)
                block[:len(sound[at:at + 960])] = sound[at:at + 960]
                frame = av.AudioFrame.from_ndarray(block[None], "fltp", "mono")
                frame.sample_rate, frame.pts = rate, at + round(begins*rate)
                out.mux(track.encode(frame))
            out.mux(track.encode(None))
    return path


def burst(first, last, seconds=2, rate=48_000):
    "Noise between two moments."
    sound = np.zeros(round(seconds*rate), np.float32)
    chance = np.random.default_rng(0)
    sound[round(first*rate):round(last*rate)] = chance.normal(0, .1, round((last - first)*rate))
    return sound


def heard(film):
    "s, where it is loud."
    found = np.flatnonzero(np.abs(np.asarray(film.samples, float)) > 1000)/film.rate
    return found[0], found[-1]


@needs_av
@pytest.mark.parametrize("kind, begins", [("mkv", 0), ("mkv", 1.5), ("mp4", 1.5), ("webm", 0), ("ts", 0)])
def test_sound_lies_where_the_film_has_it(tmp_path, kind, begins):
    path = write_film(tmp_path/f"film.{kind}", [burst(1, 1.5)], begins=begins)
    film = decode_film(path, tmp_path/"x", RATE)
    first, last = heard(film)
    assert abs(first - begins - 1) < .06 and abs(last - begins - 1.5) < .06


@needs_av
def test_a_track_is_chosen_and_a_missing_one_told(tmp_path, caplog):
    path = write_film(tmp_path/"film.mkv", [burst(.2, .4), burst(1, 1.5)])
    with caplog.at_level("INFO", "audiolab"): decode_film(path, tmp_path/"x", RATE)
    assert "0 eng, 1 amh; 0 is taken" in caplog.text
    assert abs(heard(decode_film(path, tmp_path/"y", RATE, track=1))[0] - 1) < .06
    with pytest.raises(AudioError, match="no track 2 of sound; there are: 0 eng, 1 amh"):
        decode_film(path, tmp_path/"z", track=2)


@needs_av
def test_a_film_that_was_cut_off_is_told(tmp_path):
    "The index stands in front, the sound behind it is not all there"
    import av
    whole = write_film(tmp_path/"whole.mp4", [burst(0, 6, 6)])
    options = {"movflags": "faststart"}
    with (av.open(str(whole)) as source,
          av.open(str(tmp_path/"film.mp4"), "w", options=options) as out):
        streams = {stream.index: out.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is None: continue
            packet.stream = streams[packet.stream.index]
            out.mux(packet)
    raw = (tmp_path/"film.mp4").read_bytes()
    (tmp_path/"film.mp4").write_bytes(raw[:len(raw)*2//3])
    with pytest.raises(AudioError, match="film.mp4: (truncated|damaged)"):
        decode_film(tmp_path/"film.mp4", tmp_path/"x")


@needs_av
def test_a_film_without_sound(tmp_path):
    path = write_film(tmp_path/"film.mp4", [np.zeros(0, np.float32)])
    with pytest.raises(AudioError, match="film.mp4: "): decode_film(path, tmp_path/"x")


def test_files_of_sound_are_read_and_resampled(tmp_path):
    tone = .5*np.sin(2*np.pi*440*np.arange(16_000*3)/16_000)
    write_audio(tmp_path/"film.wav", np.stack([tone, tone]), 16_000)
    film = decode_film(tmp_path/"film.wav", tmp_path/"x", RATE)
    assert len(film.samples) == 3*RATE and film.part(1, 2).shape == (RATE,)
    assert abs(np.sqrt(np.mean(film.part(1, 2)**2)) - .5/2**.5) < .002
    with pytest.raises(AudioError, match="no track 1"):
        decode_film(tmp_path/"film.wav", tmp_path/"x", track=1)


def test_what_is_no_film_is_named(tmp_path):
    (tmp_path/"film.mp4").write_bytes(b"no film" * 99)
    with pytest.raises(AudioError, match="film.mp4"): decode_film(tmp_path/"film.mp4", tmp_path/"x")
    with pytest.raises(AudioError, match="missing"): decode_film(tmp_path/"gone.mp4", tmp_path/"x")
    write_audio(tmp_path/"long.wav", np.zeros(16_000), 8000)
    with pytest.raises(AudioError, match="more than 1 s"):
        decode_film(tmp_path/"long.wav", tmp_path/"x", max_seconds=1)


def test_holes_and_overlaps_are_put_right():
    one = np.ones(100, np.float32)
    parts = [(0, one), (3, one), (3.5, one), (None, one)]
    placed = np.concatenate(list(placed_blocks(parts, 100, 60)))
    assert placed.tolist() == [1]*100 + [0]*200 + [1]*250
    with pytest.raises(ValueError): list(placed_blocks([(1e12, one)], 100, 60))
