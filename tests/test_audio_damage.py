"audiolab.audio and damaged files: whatever the bytes, sound or AudioError, in bounded memory and time."
import os
import subprocess
import sys

import pytest

from audiolab.audio import (
    write_audio,
)
from audio_files import ENDINGS, fails, music


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
