"audiolab.audio writes, finds and draws: nothing half written, mel equal to librosa's."
import os
import struct
import warnings

import numpy as np
import pytest
import torch

from audiolab.audio import (
    AudioError, find_audio_files, log_mel, mel_filterbank, play, probe_audio, read_audio, resample,
    show_audio, stft, write_audio, write_blocks,
)
from audio_files import music


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


@pytest.mark.parametrize("error", [RuntimeError("no memory for more"), OSError(5, "no such take"),
                                   ValueError("a length below 0"), AudioError("b.wav", "cut")])
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_what_the_maker_of_blocks_raises_comes_as_itself(blocks, error, tmp_path):
    def made():
        for _ in range(blocks): yield np.zeros(1000, np.float32)
        raise error
    with pytest.raises(type(error)) as caught: write_blocks(tmp_path/"a.wav", made(), 8000)
    assert caught.value is error and not any(tmp_path.iterdir())
