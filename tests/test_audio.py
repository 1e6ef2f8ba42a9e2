"audiolab.audio reads: every kind of damage named, every format to the sample, ranges equal to crops."
import os
import pickle
import shutil
import struct
import subprocess

import numpy as np
import pytest
import soundfile as sf

from audiolab.audio import decoding, file_checks
from audiolab.audio import (
    AudioError, probe_audio, read_audio, write_audio, mp3_frame,
)
from audio_files import ENDINGS, fails, music, rate_of


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "One good file of each format, 6 s, stereo."
    d = tmp_path_factory.mktemp('made')
    files = {e: write_audio(d/f'good.{e}', music(rate_of(e), 6), rate_of(e)) for e in ENDINGS}
    vbr = d/'vbr.mp3'
    sf.write(vbr, music(22_050, 8, 1)[0], 22_050, format='MP3', subtype='MPEG_LAYER_III',
             bitrate_mode='VARIABLE', compression_level=.9)
    data = vbr.read_bytes()
    size = mp3_frame(data, 0).size
    assert b'Xing' in data[:size]
    (d/'noindex.mp3').write_bytes(data[size:])  # what a stream dump looks like
    (d/'tagged.mp3').write_bytes(b'ID3\x04\0\0\0\0\x01\x02'+b'\0'*130+data[size:]+b'TAG'+b' '*125)
    return {**files, 'vbr': vbr, 'noindex': d/'noindex.mp3', 'tagged': d/'tagged.mp3'}


# ---- what cannot be read, and why

def test_missing_folder_and_odd_paths(tmp_path):
    fails(tmp_path/'no.wav', 'missing')
    fails(tmp_path, 'folder')
    fails(tmp_path/'a\0b.wav')
    os.mkfifo(tmp_path/'pipe.wav')
    fails(tmp_path/'pipe.wav', 'not a regular file')
    (tmp_path/'gone.wav').symlink_to(tmp_path/'nothing')
    fails(tmp_path/'gone.wav', 'missing')


def test_no_permission(tmp_path, monkeypatch):
    p = write_audio(tmp_path/'x.wav', np.zeros(10), 8000)
    def refuse(*a): raise PermissionError(13, 'Permission denied', str(p))
    monkeypatch.setattr(file_checks, 'open', refuse, raising=False)
    fails(p, 'cannot be opened: Permission denied')  # root may read anything, so no chmod


@pytest.mark.parametrize('ending', ENDINGS)
def test_not_audio(tmp_path, ending):
    p = tmp_path/f'x.{ending}'
    for data, word in [(b'', 'empty (0 bytes)'), (b'just some words\n'*99, 'not audio'), (b'<!doctype html><p>404'*50, 'web page'),
                       (np.random.default_rng(3).bytes(5000), 'not audio'), (b'\0'*3000, '')]:
        p.write_bytes(data)
        fails(p, word)
        with pytest.raises(AudioError, match=r'x\.'): probe_audio(p)


@pytest.mark.parametrize('ending', ['wav', 'flac', 'ogg', 'opus'])
def test_header_cut(made, tmp_path, ending):
    p = tmp_path/f'x.{ending}'
    for n in (1, 3, 4, 11, 20, 30):
        p.write_bytes(made[ending].read_bytes()[:n])
        fails(p)


def wav(rate=8000, channels=1, samples=b'\0\0'*800, declared=None, code=1, bits=16):
    n = len(samples) if declared is None else declared
    fmt = struct.pack('<HHIIHH', code, channels, rate, rate*channels*bits//8 & 0xffffffff,
                      channels*bits//8 & 0xffff, bits)
    return b'RIFF'+struct.pack('<I', (36+n) & 0xffffffff)+b'WAVEfmt '+struct.pack('<I', 16)+fmt+b'data'+struct.pack('<I', n)+samples


def test_absurd_headers(tmp_path):
    p = tmp_path/'x.wav'
    for rate in (0, 1, 999, 768_001, 2_147_483_647, 4_294_967_295):
        p.write_bytes(wav(rate))
        fails(p)
    p.write_bytes(wav(2_147_483_647))
    fails(p, 'absurd sample rate')
    for rate in (1000, 8000, 192_000, 768_000):
        p.write_bytes(wav(rate))
        assert read_audio(p)[0].shape == (1, 800)
    for channels in (0, 65, 1024, 65_535):
        p.write_bytes(wav(channels=channels, samples=b'\0\0'*70_000))
        fails(p)
    p.write_bytes(wav(channels=65, samples=b'\0\0'*650))
    fails(p, 'absurd channel count 65')
    p.write_bytes(wav(samples=b''))
    fails(p, '0 samples')
    p.write_bytes(wav(samples=b'\1\0'))
    assert read_audio(p)[0].shape == (1, 1)


def test_wav_lengths_that_lie(tmp_path):
    "A placeholder (a program wrote to a pipe) means until the end; a plausible length that is not there means truncated."
    p = tmp_path/'x.wav'
    for n in (10**9, 2**30, 0x7ffff000, 0xffffffff, 0xffffffff-36):
        p.write_bytes(wav(declared=n))
        assert read_audio(p)[0].shape == (1, 800)
    p.write_bytes(wav(declared=1600+44))
    assert read_audio(p)[0].shape == (1, 800)
    for n in (1800, 10**6, 10**8):
        p.write_bytes(wav(declared=n))
        fails(p, 'truncated')


@pytest.mark.parametrize('ending', [*ENDINGS, 'vbr'])
def test_truncated(made, tmp_path, ending):
    data, p = made[ending].read_bytes(), tmp_path/('x.mp3' if ending == 'vbr' else f'x.{ending}')
    for part in (.1, .3, .5, .77, .9, .99):
        p.write_bytes(data[:int(len(data)*part)])
        fails(p, 'truncated')
    p.write_bytes(data[:len(data)//3])
    fails(p, 'truncated', start=1.9, duration=.5)


@pytest.mark.parametrize('ending', ['flac', 'ogg', 'opus'])
def test_corrupt_inside(made, tmp_path, ending):
    data, p = bytearray(made[ending].read_bytes()), tmp_path/f'x.{ending}'
    for i in range(len(data)//2, len(data)//2+300): data[i] ^= 0xff
    p.write_bytes(data)
    fails(p, 'damaged')


def test_bad_samples(tmp_path):
    p, x = tmp_path/'x.wav', np.zeros((2, 4000), np.float32)
    for bad, word in [(np.nan, 'NaN'), (np.inf, 'infinite'), (-np.inf, 'infinite'), (1e30, 'absurd amplitude')]:
        for at in (0, 1234, 3999):
            y = x.copy()
            y[1, at] = bad
            sf.write(p, y.T, 8000, subtype='FLOAT')
            fails(p, word)
            fails(p, word, mono=True)
            fails(p, word, sample_rate=16_000)
    y = x.copy()
    y[1, 3999] = np.nan
    sf.write(p, y.T, 8000, subtype='FLOAT')
    assert read_audio(p, duration=.4)[0].shape == (2, 3200), "what is not asked for does no harm"
    sf.write(p, x.T+3, 8000, subtype='FLOAT')
    assert read_audio(p)[0].max() == 3, "beyond full scale is not an error"


def test_silence_dc_many_channels_and_codings(tmp_path):
    for subtype in ('PCM_U8', 'PCM_24', 'PCM_32', 'FLOAT', 'DOUBLE', 'ALAW', 'ULAW', 'IMA_ADPCM'):
        p = tmp_path/f'{subtype}.wav'
        sf.write(p, np.zeros(4000), 8000, subtype=subtype)
        assert abs(read_audio(p, mono=True)[0]).max() < .02
    x = np.linspace(-.5, .5, 8)[:, None]*np.ones(100)
    write_audio(tmp_path/'eight.wav', x, 192_000, subtype='FLOAT')
    y, rate = read_audio(tmp_path/'eight.wav')
    assert rate == 192_000
    np.testing.assert_allclose(y, x, atol=1e-7)
    assert abs(read_audio(tmp_path/'eight.wav', mono=True)[0]).max() < 1e-7


def test_remedy_for_foreign_formats(tmp_path):
    for name, data in [('a b.m4a', b'\0\0\0\x1cftypM4A '), ('x.mp4', b'\0\0\0\x1cftypisom'), ('x.wma', bytes.fromhex('3026b2758e66cf11')), ('x.aac', b'\xff\xf1\x50\x80'),
                       ('x.webm', bytes.fromhex('1a45dfa3')), ('y.aac', b'????')]:
        p = tmp_path/name
        p.write_bytes(data+b'\0'*200)
        fails(p, 'no decoder', 'ffmpeg -i')
    assert f"'{tmp_path}/a b.m4a'" in fails(tmp_path/'a b.m4a').cause, "the remedy can be pasted"


def test_wrong_ending_is_decoded_by_content(made, tmp_path):
    for real, claimed in [('flac', 'wav'), ('mp3', 'ogg'), ('wav', 'mp3'), ('ogg', 'raw')]:
        p = tmp_path/f'x.{claimed}'
        shutil.copy(made[real], p)
        assert read_audio(p)[0].shape == (2, 6*44_100)


def test_limits(made, tmp_path, monkeypatch):
    fails(made['wav'], 'max_seconds', max_seconds=5)
    assert read_audio(made['wav'], duration=4, max_seconds=5)[0].shape[1] == 4*44_100
    b = bytearray(made['flac'].read_bytes())
    b[21] |= 15
    b[22:26] = b'\xff'*4
    p = tmp_path/'x.flac'
    p.write_bytes(b)
    fails(p, 'promises 68719476735 samples, at most 264600')
    monkeypatch.setattr(decoding, 'MAX_SAMPLES', 44_100*7)
    fails(made['wav'], 'read a range')
    read_audio(made['wav'], mono=True)
    read_audio(made['wav'], start=1, duration=3)
    fails(unknown_length(made, tmp_path), 'more than 308700 samples')


def unknown_length(made, tmp_path):
    b = bytearray(made['flac'].read_bytes())
    b[21] &= 0xf0
    b[22:26] = b'\0'*4
    p = tmp_path/'stream.flac'
    p.write_bytes(b)
    return p


def test_flac_stream_of_unknown_length(made, tmp_path):
    p = unknown_length(made, tmp_path)
    x, _ = read_audio(made['flac'])
    np.testing.assert_array_equal(read_audio(p)[0], x)
    assert probe_audio(p).frames == x.shape[1]
    np.testing.assert_array_equal(read_audio(p, start=2, duration=1)[0], x[:, 88_200:132_300])
    np.testing.assert_array_equal(read_audio(p, start=5)[0], x[:, 5*44_100:])
    np.testing.assert_array_equal(read_audio(p, start=5.5, duration=9)[0], x[:, 242_550:])
    fails(p, 'max_seconds', max_seconds=2)
    fails(p, start=7)


def test_arguments(made):
    p = made['wav']
    for kw in (dict(start=-1), dict(start=np.nan), dict(duration=0), dict(duration=-1),
               dict(duration=np.inf), dict(sample_rate=10), dict(sample_rate=10**7)):
        fails(p, **kw)
    fails(p, 'the file lasts 6 s', start=6.0)
    fails(p, 'the file lasts 6 s', start=1e12)


def test_error_survives_pickling():
    e = pickle.loads(pickle.dumps(AudioError('a.wav', 'cut')))
    assert (str(e), str(e.path), e.cause) == ('a.wav: cut', 'a.wav', 'cut')


# ---- what is read is right

@pytest.mark.parametrize('ending', ENDINGS)
def test_round_trip(made, ending):
    rate, info = rate_of(ending), probe_audio(made[ending])
    x, y = music(rate, 6), read_audio(made[ending])[0]
    assert (info.sample_rate, info.channels, info.frames, info.duration) == (rate, 2, 6*rate, 6.0)
    assert y.dtype == np.float32 and y.flags.c_contiguous and y.shape == x.shape
    np.testing.assert_allclose(y, sf.read(made[ending], dtype='float32')[0].T, atol=1e-6)
    if ending in ('wav', 'flac'): np.testing.assert_allclose(y, x, atol=5e-5)
    else: assert np.corrcoef(x.ravel(), y.ravel())[0, 1] > .9
    np.testing.assert_allclose(read_audio(made[ending], mono=True)[0], y.mean(0), atol=1e-6)


@pytest.mark.parametrize('ending', [*ENDINGS, 'vbr', 'noindex', 'tagged'])
def test_ranges_are_crops(made, ending):
    whole, rate = read_audio(made[ending])
    rng = np.random.default_rng(5)
    for start in [0, *rng.uniform(0, 5.4, 12)]:
        part, _ = read_audio(made[ending], start=start, duration=.5)
        at = round(start*rate)
        # the decoders dither nothing; MP3 sums in another order
        np.testing.assert_allclose(part, whole[:, at:at+round(.5*rate)], atol=2e-6)
    assert read_audio(made[ending], start=5, duration=99)[0].shape[1] == whole.shape[1]-5*rate, "the end of the file is the end"


@pytest.mark.parametrize('ending,target', [('wav', 16_000), ('wav', 48_000), ('flac', 24_000), ('ogg', 16_000), ('vbr', 16_000), ('noindex', 44_100), ('mp3', 11_025), ('wav', 44_101)])
def test_resampled_ranges_are_crops_of_the_resampled_file(made, ending, target):
    whole, _ = read_audio(made[ending], sample_rate=target, mono=True)
    for start, seconds in [(0, .1), (.01, .3), (1.23456, .5), (3.3, 1), (4.9, .0001), (5.6, 9)]:
        part, rate = read_audio(made[ending], sample_rate=target, mono=True, start=start,
                                duration=seconds)
        crop = whole[round(start*target):][:max(1, round(seconds*target))]
        assert rate == target and part.shape == crop.shape
        np.testing.assert_allclose(part, crop, atol=1e-4)


def test_mp3_without_index_is_read_to_its_end(made):
    "The decoder alone believes the first frame's bit rate, and stops early or late."
    full, _ = read_audio(made['vbr'])
    guess = sf.info(made['noindex']).frames
    for name in ('noindex', 'tagged'):
        x, _ = read_audio(made[name], mono=True)
        assert len(x) == probe_audio(made[name]).frames
        assert abs(len(x)-full.shape[1]) < 3*1152 < abs(len(x)-guess)
        # encoder delay, no longer known
        shift = max(range(1800), key=lambda s: np.dot(x[s:s+20_000], full[0, :20_000]))
        np.testing.assert_allclose(x[shift+3000:shift+150_000], full[0, 3000:150_000], atol=1e-4)


@pytest.mark.skipif(not shutil.which('ffmpeg'), reason="needs the program ffmpeg")
def test_other_encoders(tmp_path, monkeypatch):
    write_audio(tmp_path/'in.wav', music(44_100, 5), 44_100)
    for name, *options in [('a.mp3', '-q:a', '5'), ('b.mp3', '-q:a', '5', '-write_xing', '0'), ('c.mp3', '-b:a', '64k', '-ar', '16000'), ('a.ogg', '-c:a', 'libvorbis'), ('a.opus',), ('a.flac',)]:
        for extra in ([], ['-f', name.split('.')[1]]):  # to a file, and through a pipe
            out = tmp_path/name
            with open(out, 'wb') as f:
                subprocess.run(['ffmpeg', '-y', '-loglevel', 'error', '-i', tmp_path/'in.wav',
                                *options, *extra, '-' if extra else out],
                                stdout=f if extra else None, check=True)
            assert abs(read_audio(out, sample_rate=16_000, mono=True)[0].shape[0]-
                       80_000) < 1200, name
    subprocess.run(['ffmpeg', '-loglevel', 'error', '-i', tmp_path/'in.wav',
                    tmp_path/'x.m4a'], check=True)
    monkeypatch.setattr(decoding, 'has_ffmpeg_decoders', lambda: False)
    fails(tmp_path/'x.m4a', 'ffmpeg -i')
