"""What machine listeners say of the systems, on a real voice and on a synthetic one that says the same words, as a table in Markdown.

    python benchmarks/listeners.py [--clips 4] [--seconds 60] [--steps 100] [--only judges vocoder ssgs snac] [--fetch]

The real voice is a speaker of Debian's announcements (fetched into the user's cache folder with --fetch, 10 MB), the synthetic one is
eSpeak NG. Systems are trained for minutes on one core, on `--seconds` of each voice; what is judged are clips that they have not heard.
The judges: Whisper tiny.en (words), DNSMOS (quality), GE2E (similarity to the clips trained on). One that is not installed has a dash.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np

from audiolab.audio import (
    MissingProgram, espeak, read_audio, recorded_speech, resample, write_audio,
)
from audiolab.measure import compare_table, judge_speech

RATE = 16000  # Hz
PARTS = "judges", "vocoder", "ssgs", "snac"


def audiolab(folder, *words):
    "One command of the program; what it said where it fails."
    words = [str(word) for word in words]
    command = sys.executable, "-m", "audiolab", *words
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True)
    if done.returncode: sys.exit(f"audiolab {' '.join(words)}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")


def voices(folder, seconds, clips, fetch):
    "{voice: (training files, held-out files, texts of these)}; the synthetic voice says what the real one says"
    lengths = dict(shortest=2., longest=8., fetch=fetch)
    training = recorded_speech(folder/"training", n_files=None, seconds=seconds, **lengths)
    # those, and more
    said = recorded_speech(folder/"all", n_files=len(training) + clips, **lengths)
    texts, made = [clip.text for clip in said], {}
    for name in ("real voice", "synthetic voice"):
        paths = []
        for i, clip in enumerate(said):
            if name == "real voice": audio, rate = read_audio(clip.path, mono=True)
            else:
                audio, rate = espeak(clip.text, "en-us+f2")
                audio = resample(.5*audio/abs(audio).max(), rate, RATE)
            part = "held-out" if i >= len(said) - clips else "training"
            paths.append(folder/name.partition(" ")[0]/part/f"{i:03d}.wav")
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            write_audio(paths[-1], audio, RATE)
        made[name] = paths[:-clips], paths[-clips:], texts[-clips:]
    return made


def with_noise(sound, decibels):
    noise = np.random.default_rng(0).standard_normal(len(sound))*np.sqrt((sound**2).mean())
    return noise if decibels is None else sound + noise/10**(decibels/20)


def damaged(sounds, files, folder, steps):
    "What judges are for: the clips as they are, in noise, and noise alone"
    yield "as it is", sounds
    yield "noise at 10 dB", [with_noise(x, 10) for x in sounds]
    yield "noise alone", [with_noise(x, None) for x in sounds]


def vocoded(sounds, files, folder, steps):
    "To mel spectrograms of 80 bands and back"
    from audiolab.vocoder import MelFormat, MelVocoder, griffin_lim
    mel = MelFormat()
    mels = [mel(x.astype(np.float32)) for x in sounds]
    made = [griffin_lim(log_mel, length=len(x)) for log_mel, x in zip(mels, sounds)]
    yield "mel, phase iteration", [x.numpy() for x in made]
    audiolab(folder, "vocoder", "train", "--folders", files[0].parent, "--output", folder/"vocoder",
             "--training.steps", steps, "--training.device", "cpu", "--validation", "0")
    vocoder = MelVocoder.load(folder/"vocoder"/"model_final.safetensors")
    made = [vocoder.resynthesize(x, RATE).detach().numpy() for x in sounds]
    yield f"mel, vocoder of {steps} steps", made


def guided(sounds, files, folder, steps):
    "SSGS: states of the clips, sound of the model; and its own succession of states"
    from audiolab.ssgs import SpectralStateGuidedSynthesis
    audiolab(folder, "ssgs", "train", "--folders", files[0].parent, "--checkpoint-dir", folder/"ssgs",
             "--checkpoint-interval", 0)
    model = SpectralStateGuidedSynthesis.load_checkpoint(folder/"ssgs"/"checkpoint_final.safetensors")
    for excitation in ("Karplus-Strong", "residual"):
        options = dict(excitation_type=excitation, seed=0, path="viterbi")
        made = [model.generate(None, RATE, guide=x, **options) for x in sounds]
        yield f"SSGS, guided, {excitation}", made
    for fidelity in (0., .5, 1.):
        yield f"SSGS, free, fidelity {fidelity:g}", [model.generate(
            len(x)/RATE, RATE, fidelity, "residual", seed=i) for i, x in enumerate(sounds)]


def coded(sounds, files, folder, steps):
    "A small codec before it has learnt anything, and as its preset trains it, by four pieces at a time"
    import torch
    from audiolab.snac import SNAC, Codec, create_snac_small_config
    torch.manual_seed(0)
    codec = Codec(SNAC(**create_snac_small_config()).eval())
    yield "SNAC, small, untrained", [codec.reconstruct(x, RATE).numpy() for x in sounds]
    audiolab(folder, "snac", "train", "--model", "small", "--dataset_path", files[0].parent, "--num_iterations", steps,
             "--device", "cpu", "--paths.checkpoint_dir", folder/"snac", "--paths.log_dir", folder/"logs", "--batch_size", 4)
    codec = Codec.load(str(folder/"snac"))
    yield f"SNAC, small, {steps} steps", [codec.reconstruct(x, RATE).numpy() for x in sounds]


SYSTEMS = dict(judges=damaged, vocoder=vocoded, ssgs=guided, snac=coded)


def rows_of(name, voice, folder, args):
    "Judged rows of one voice, as they are made"
    files, held_out, texts = voice
    sounds = [read_audio(path, mono=True)[0].astype(np.float64) for path in held_out]
    known = [read_audio(path, mono=True)[0] for path in files[:8]]
    for part in args.only:
        begun = sum(os.times()[:4])
        for row, made in SYSTEMS[part](sounds, files, folder, args.steps):
            spent = sum(os.times()[:4]) - begun
            made = [np.asarray(x, np.float64)*min(1, .99/max(abs(x).max(), 1e-9)) for x in made]
            wordless = "free" in row or "alone" in row
            judged = judge_speech(made, RATE, None if wordless else texts, known)
            yield f"{name}: {row}", judged | {"CPU s": round(spent, 1)}
            begun = sum(os.times()[:4])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=4, help="held-out clips to judge")
    parser.add_argument("--seconds", type=float, default=60, help="of sound to train on")
    parser.add_argument("--steps", type=int, default=100, help="updates of the vocoder and of SNAC")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--fetch", action="store_true", help="fetch the recordings if they are not in the cache")
    args, begun, rows = parser.parse_args(), time.time(), {}
    with tempfile.TemporaryDirectory() as tmp:
        try: made = voices(Path(tmp), args.seconds, args.clips, args.fetch)
        except (MissingProgram, FileNotFoundError) as e: sys.exit(str(e))
        for name, voice in made.items():
            for row, judged in rows_of(name, voice, Path(tmp)/name.partition(" ")[0], args):
                rows[row] = judged
                print(f"{time.time() - begun:.0f} s: {row}: {judged}", file=sys.stderr, flush=True)
    print(compare_table(rows))


if __name__ == "__main__": main()
