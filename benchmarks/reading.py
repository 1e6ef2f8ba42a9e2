"""What reading a long file whole costs, against soundfile alone and against another checkout of audiolab, as a table in Markdown.

    python benchmarks/reading.py [--minutes 10] [--runs 5] [--formats wav flac ogg mp3] [--before CHECKOUT]

CPU seconds, medians; the readers take turns, each in a process of its own. Stereo music at 44.1 kHz, read to float32 [channels, samples] at its own rate.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile as sf

RATE = 44_100  # Hz
CHILD = """
import sys, time
if sys.argv[1] == "soundfile":
    import numpy, soundfile
    def read(path): return numpy.ascontiguousarray(soundfile.read(path, dtype="float32", always_2d=True)[0].T)
else:
    from audiolab.audio import read_audio
    def read(path): return read_audio(path)[0]
for path in map(str.strip, sys.stdin):
    began = time.process_time()
    samples = read(path).shape[-1]
    print(time.process_time() - began, samples, flush=True)
"""


def music(minutes, seed=0):
    "Tones that change, and noise, [T, 2]"
    rng, time = np.random.default_rng(seed), np.arange(int(60*minutes*RATE))/RATE
    sides = [.3*np.sin(2*np.pi*(220 + 40*np.sin(time*rate))*time) for rate in (.7, .9)]
    return (np.stack(sides, axis=1) + rng.normal(0, .02, (len(time), 2))).astype(np.float32)


def reader(name, checkout):
    "A process that reads files when told to, and says what it cost"
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", CHILD, name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                            env=env, cwd=checkout)


def cost(process, path):
    "CPU seconds of one reading, and samples that came of it"
    process.stdin.write(f"{path}\n")
    process.stdin.flush()
    seconds, samples = process.stdout.readline().split()
    return float(seconds), int(samples)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--formats", nargs="+", default=["wav", "flac", "ogg", "mp3"])
    parser.add_argument("--before", type=Path)
    asked = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    places = {"soundfile": here, "audiolab": here}
    if asked.before: places["before"] = asked.before
    readers = {name: reader(name, place) for name, place in places.items()}
    print("| " + " | ".join(["file", *readers, "audiolab / soundfile"]) + " |\n"
          + "|---"*(len(readers) + 2) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for ending in asked.formats:
            path = Path(folder)/f"music.{ending}"
            with sf.SoundFile(path, "w", RATE, 2) as out:
                for minute in range(max(1, round(asked.minutes))):
                    out.write(music(min(1, asked.minutes), minute))
            spent, samples = {name: [] for name in readers}, {}
            for _ in range(asked.runs):
                for name, process in readers.items():
                    seconds, samples[name] = cost(process, path)
                    spent[name].append(seconds)
            middle = {name: statistics.median(times) for name, times in spent.items()}
            costs = [f"{seconds:.2f} s, {samples[name]:,}" for name, seconds in middle.items()]
            ratio = f"{middle['audiolab']/middle['soundfile']:.2f}"
            print("| " + " | ".join([ending, *costs, ratio]) + " |", flush=True)
            path.unlink()
    for process in readers.values(): process.stdin.close()


if __name__ == "__main__": main()
