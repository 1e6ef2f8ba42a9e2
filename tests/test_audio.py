"audiolab.audio: every kind of damage named, every format to the sample, ranges equal to crops, mel equal to librosa's."
import os
import pickle
import shutil
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
import soundfile as sf
import torch

from audiolab.audio import decoding, file_checks
from audiolab.audio import (
    AudioError, find_audio_files, log_mel, mel_filterbank, play, probe_audio, read_audio, resample,
    show_audio, stft, write_audio, mp3_frame,
)

ENDINGS = ['wav', 'flac', 'mp3', 'ogg', 'opus']


def music(rate, seconds, channels=2, seed=0):
    "Bursts of a chord with noise between silences: makes variable bit rates vary."
    t = np.arange(int(rate*seconds))/rate
    x = sum(np.sin(2*np.pi*f*t) for f in (220, 277, 331))*(t % 1.3 < .7)
    x = x[None]+.3*np.random.default_rng(seed).standard_normal((channels, len(t)))*(t % 2 < .4)
    return (.2*x).clip(-.95, .95).astype(np.float32)


def rate_of(ending): return 48_000 if ending == 'opus' else 44_100


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


def fails(path, *words, **kw):
    with pytest.raises(AudioError) as e: read_audio(path, **kw)
    assert str(path) in str(e.value) and e.value.path == path, "the file is named"
    for w in words: assert w in e.value.cause, e.value.cause
    return e.value


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


# ---- writing

def test_write_refuses_and_leaves_nothing(tmp_path):
    good = write_audio(tmp_path/'x.wav', np.zeros(10), 8000)
    before = good.read_bytes()
    for audio, rate, name in [([np.nan], 8000, 'x.wav'), ([np.inf], 8000, 'x.wav'), ([], 8000, 'x.wav'), ([1, 2], 8000, 'x.wav'), (np.zeros((2, 3, 4)), 8000, 'x.wav'), (np.zeros((65, 9)), 8000, 'x.wav'),
                              ([0.], 0, 'x.wav'), ([0.], 10**6, 'x.wav'), ([0.], 8000, 'x.txt'),
                              ([0.], 8000, 'x'), ([0.], 44_100, 'x.opus'), ([0.], 8000, 'no/x.wav'),
                              ([0.], 8000, 'a\0b.wav'),
                              (np.zeros((9, 9)), 44_100, 'x.flac')]:
        with pytest.raises(AudioError) as e: write_audio(tmp_path/name, np.asarray(audio), rate)
        assert str(tmp_path/name) in str(e.value)
    with pytest.raises(AudioError): write_audio(good, np.zeros(5), 8000, subtype='NONSENSE')
    with pytest.raises(AudioError, match='4 GB'):
        write_audio(good, np.broadcast_to(np.float32(0), (1, 2**29+1)), 8000)
    (tmp_path/'d.wav').mkdir()
    with pytest.raises(AudioError): write_audio(tmp_path/'d.wav', np.zeros(5), 8000)
    assert good.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ['d.wav', 'x.wav']


def test_write_clips_with_a_warning(tmp_path):
    x = np.array([0, 1.5, -2, 1, -1])
    with pytest.warns(UserWarning, match=r'x\.wav: 2 samples beyond ±1 are clipped \(peak 2\)'):
        write_audio(tmp_path/'x.wav', x, 8000)
    np.testing.assert_allclose(read_audio(tmp_path/'x.wav', mono=True)[0], x.clip(-1, 1), atol=1e-4)
    with warnings.catch_warnings():  # a float format holds them
        warnings.simplefilter('error')
        write_audio(tmp_path/'x.wav', x, 8000, subtype='FLOAT')
        write_audio(tmp_path/'y.wav', x.clip(-1, 1), 8000)
    np.testing.assert_array_equal(read_audio(tmp_path/'x.wav', mono=True)[0], x.astype('f4'))


def test_write_tensors_names_and_modes(tmp_path):
    for name in ('größe ሰላም.wav', "it's; $(x).flac", '-v.ogg', os.fsdecode(b'raw\xff.wav')):
        p = write_audio(tmp_path/name,
                        torch.zeros(2, 800, dtype=torch.bfloat16, requires_grad=True), 8000)
        assert read_audio(p)[0].shape == (2, 800) and probe_audio(str(p)).channels == 2
    (tmp_path/'plain').touch()
    assert p.stat().st_mode == (tmp_path/'plain').stat().st_mode, "readable by whom other new files are"


def test_long_vorbis_does_not_crash(tmp_path):
    "In one call a minute of stereo kills the process inside libsndfile."
    p = write_audio(tmp_path/'x.ogg', np.zeros((2, 70*44_100), np.float32), 44_100)
    assert probe_audio(p).duration == 70


# ---- finding

def test_find(tmp_path, monkeypatch):
    for n in ('b.wav', 'A.WAV', 'c.mp3', 'd.txt', '.hidden.wav', '._b.wav', 'in/e.flac', 'in/deep/f.opus', '.git/g.wav', 'in/.x/h.wav', 'noending'):
        p = tmp_path/n
        p.parent.mkdir(exist_ok=True, parents=True)
        p.touch()
    (tmp_path/'in/loop').symlink_to(tmp_path)
    def names(*a, **k):
        return [p.relative_to(tmp_path).as_posix() for p in find_audio_files(*a, **k)]
    assert names(tmp_path) == names(str(tmp_path)) == ['A.WAV', 'b.wav', 'c.mp3']
    assert names([tmp_path], recursive=True) == ['A.WAV', 'b.wav', 'c.mp3', 'in/deep/f.opus', 'in/e.flac']
    for e in ('wav', '.wav', 'WAV', '.Wav', ['wav'], ['.WAV', 'wav'], ('wav',)):
        assert names(tmp_path, e) == ['A.WAV', 'b.wav']
    assert names(tmp_path, 'mp3,txt') == names(tmp_path, '.mp3 .txt') == ['c.mp3', 'd.txt']
    assert names(tmp_path, ['aiff']) == []
    assert names([tmp_path/'in', tmp_path/'d.txt', tmp_path]) == ['A.WAV', 'b.wav', 'c.mp3', 'd.txt', 'in/e.flac']
    assert names([tmp_path, tmp_path/'in'/'..', tmp_path], 'wav') == ['A.WAV', 'b.wav'], "no doubles"
    with pytest.raises(AudioError, match=r'nowhere: missing'):
        find_audio_files([tmp_path, tmp_path/'nowhere'])
    def refuse(path): raise PermissionError(13, 'Permission denied', os.fspath(path))
    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(AudioError, match='cannot be listed: Permission denied'):
        find_audio_files(tmp_path)


# ---- spectra

@pytest.mark.parametrize('rate,n_fft,n_mels,f_min,f_max',
                         [(16_000, 1024, 80, 0, None), (22_050, 1024, 80, 0, 8000.),
                          (24_000, 2048, 128, 20., 11_000.), (44_100, 512, 40, 300., None)])
def test_mel_equals_librosa(rate, n_fft, n_mels, f_min, f_max):
    import librosa  # here: it compiles for 20 s when it is imported first
    np.testing.assert_allclose(mel_filterbank(rate, n_fft, n_mels, f_min, f_max),
                               librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=f_min,
                                                   fmax=f_max), atol=1e-7)
    x = music(rate, 1.5).astype(float)
    for power in (1.0, 2.0):
        theirs = np.log(librosa.feature.melspectrogram(y=x, sr=rate, n_fft=n_fft,
                                                       hop_length=n_fft//4, n_mels=n_mels,
                                                       fmin=f_min, fmax=f_max,
                                                       power=power).clip(1e-5))
        np.testing.assert_allclose(log_mel(x, rate, n_mels=n_mels, n_fft=n_fft, hop_length=n_fft//4,
                                           f_min=f_min, f_max=f_max, power=power),
                                           theirs, atol=1e-4)


def test_stft_equals_librosa_and_takes_any_shape():
    import librosa
    x = music(16_000, 1)
    np.testing.assert_allclose(stft(x, 512, 128, 400), librosa.stft(x, n_fft=512, hop_length=128,
                                                                    win_length=400), atol=1e-4)
    assert stft(torch.randn(3, 2, 1000)).shape == (3, 2, 513, 4)
    assert stft(np.zeros(1, np.float32)).shape == (513, 1)
    y = torch.randn(2, 600, requires_grad=True)
    log_mel(y, 8000).sum().backward()
    assert torch.isfinite(y.grad).all()


def test_resample():
    x = music(44_100, 1, 3)
    assert resample(x, 44_100, 44_100) is x and resample(x[0], 44_100, 16_000).shape == (16_000,)
    assert resample(x[:, None], 44_100, 22_050).shape == (3, 1, 22_050)
    np.testing.assert_allclose(resample(x, 44_100, 16_000)[1],
                               resample(x[1], 44_100, 16_000), atol=1e-7)
    assert resample(np.zeros((2, 0), np.float32), 8000, 16_000).shape == (2, 0)
    assert resample(x.astype(float), 8000, 16_000).dtype == np.float64
    assert resample(np.zeros((64, 50), np.float32), 8000, 16_000).shape == (64, 100)


def test_pictures_and_players():
    import matplotlib._pylab_helpers as helpers
    for x in (np.zeros(1), np.zeros((2, 5000), np.float32), music(44_100, 6), torch.randn(100_000)):
        png, shown = show_audio(x, 16_000, "title")._repr_png_()
        assert png[:4] == b'\x89PNG' and shown['width'] == 576 and len(png) < 60_000
    assert not helpers.Gcf.figs, "no figure is left open"
    assert play(np.array([.5, -3.]), 8000).data[-4:] == struct.pack('<hh', 16_383, -32_767)


# ---- fuzz: whatever the bytes, sound or AudioError, in bounded memory and time

FUZZ = """
import resource, sys, time
from pathlib import Path
import numpy as np
from audiolab.audio import AudioError, probe_audio, read_audio
folder, seed, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
used = int(open('/proc/self/statm').read().split()[0])*resource.getpagesize() if Path('/proc/self/statm').exists() else 2**33
resource.setrlimit(resource.RLIMIT_AS, (used+2**30, used+2**30))
rng = np.random.default_rng(seed); read = refused = 0
def cpu_seconds(work):
    began = time.process_time()
    work()
    return time.process_time() - began
noise = rng.random(2**20)
transform = min(cpu_seconds(lambda: np.fft.rfft(noise)) for _ in range(5))
rng = np.random.default_rng(seed)
for name in ('wav', 'flac', 'mp3', 'ogg', 'opus'):
    good = (folder/f'small.{name}').read_bytes(); p = folder/f'fuzz{seed}.{name}'
    for i in range(rounds):
        b = bytearray(good)
        for _ in range(rng.integers(1, 6)):
            at = int(rng.integers(0, len(b) if rng.random() < .5 else min(len(b), 200)))
            b[at] = int(rng.integers(256)) if rng.random() < .5 else b[at]^(1 << int(rng.integers(8)))
        if rng.random() < .3: del b[int(rng.integers(1, len(b))):]
        p.write_bytes(b); t = time.process_time()
        try:
            probe_audio(p); x, rate = read_audio(p, sample_rate=16_000 if i%2 else None, start=.05*(i%3), duration=None if i%4 else .1)
            assert np.isfinite(x).all() and x.size and 1000 <= rate <= 768_000; read += 1
        except AudioError as e: assert str(p) in str(e); refused += 1
        assert time.process_time()-t < 200*transform, (name, i)
print(read, refused)
"""


def fuzz(folder, seed, rounds):
    for e in ENDINGS:
        write_audio(folder/f'small.{e}', music(8000 if e == 'opus' else 16_000, .5, 1),
                    8000 if e == 'opus' else 16_000)
    r = subprocess.run([sys.executable, '-c', FUZZ, str(folder), str(seed), str(rounds)],
                       capture_output=True, text=True, timeout=500)
    assert r.returncode == 0, r.stderr[-2000:]
    read, refused = map(int, r.stdout.split())
    assert read and refused and read+refused == 5*rounds


@pytest.mark.skipif(os.name == 'nt', reason="needs the resource module of Unix")
def test_fuzz(tmp_path): fuzz(tmp_path, 0, 60)


@pytest.mark.slow
@pytest.mark.skipif(os.name == 'nt', reason="needs the resource module of Unix")
@pytest.mark.parametrize('seed', range(1, 6))
def test_fuzz_long(tmp_path, seed): fuzz(tmp_path, seed, 2000)


@pytest.mark.parametrize('ending', ['wav', 'flac', 'ogg', 'opus', 'mp3'])
def test_every_truncation_is_found(tmp_path, ending):
    "Cut anywhere (in steps), only the last bytes, which hold no sound, may go unnoticed; Ogg is also whole when cut between two pages."
    rate = 16_000
    data = write_audio(tmp_path/f'a.{ending}', music(rate, .4, 1), rate).read_bytes()
    p = tmp_path/f'b.{ending}'
    for n in range(0, len(data)-64, max(1, len(data)//150)):
        if ending in ('ogg', 'opus') and data[n:n+4] == b'OggS': continue
        p.write_bytes(data[:n])
        fails(p)
