"""Make what the front page of the docs plays: `python tools/landing_sounds.py`, a quarter of an hour on one core.

A spectral-state model of speech at three fidelities, a codec's copy beside what it heard, and a denoiser's work beside the
noise it was given: each trained here, on speech that this program makes, and heard on sentences kept apart. The codec is
the one of the tutorial, whose stored players are used. Written as MP3 into nbs/sounds/.
"""
import base64, io, json, re, sys, tempfile
from pathlib import Path

import numpy as np
import soundfile as sf
import torch

from audiolab.audio import demo_corpus, read_audio, resample
from audiolab.data import Loader, Segments, scan_audio
from audiolab.ssgs import SpectralStateGuidedSynthesis
from audiolab.training import Task, Trainer, TrainingConfig

ROOT = Path(__file__).resolve().parents[1]
RATE, SECONDS = 16000, 4
SOUNDS = ROOT/"nbs/sounds"


def write(name, audio, rate):
    "One sound, its peak at -3 dB"
    SOUNDS.mkdir(exist_ok=True)
    sf.write(SOUNDS/f"{name}.mp3", 0.7*np.asarray(audio)/max(np.abs(audio).max(), 1e-9), rate,
             format="MP3")
    print(f"{name}: {len(audio)/rate:.1f} s, {(SOUNDS/f'{name}.mp3').stat().st_size/1000:.0f} kB")


def fidelities(paths):
    "The same seconds from learnt statistics alone, half-way, and exact"
    model = SpectralStateGuidedSynthesis(n_states=34)
    model.train(paths)
    for name, fidelity in (("fidelity_0", 0.), ("fidelity_half", .5), ("fidelity_1", 1.)):
        write(name, model.generate(SECONDS, fidelity=fidelity, seed=0), model.sample_rate)


class Denoise(Task):
    "White noise taken out of speech, by a small network"
    name = "denoise"

    def __init__(self, folder): self.folder = folder

    def setup(self, loop):
        layers = [torch.nn.Conv1d(1, 32, 65, padding=32), torch.nn.GELU()]
        for _ in range(3): layers += [torch.nn.Conv1d(32, 32, 33, padding=16), torch.nn.GELU()]
        net = torch.nn.Sequential(*layers, torch.nn.Conv1d(32, 1, 65, padding=32))
        self.net = loop.module("net", net)
        loop.optimizer("net", torch.optim.AdamW(net.parameters(), lr=1e-3))
        crops = Segments(scan_audio(self.folder)[0], RATE, 0.5, seed=loop.seed, per_clip=8)
        loop.data = Loader(crops, loop.config.batch_size, seed=loop.seed)

    def step(self, batch, loop):
        clean = batch["audio"][:, None]
        loss = (self.net(clean + 0.03*torch.randn_like(clean)) - clean).square().mean()
        loop.update("net", loss)
        return {"loss": loss}


def denoiser(folder, kept_apart):
    "Noise, and what is left of it after a few hundred steps"
    task = Denoise(folder)
    with tempfile.TemporaryDirectory() as run:
        Trainer(task,
                TrainingConfig(steps=600, batch_size=8, device="cpu", clip_norm=1.), run).fit()
    clean = kept_apart[:SECONDS*RATE]
    noisy = clean + 0.03*np.random.default_rng(0).normal(size=len(clean)).astype(np.float32)
    with torch.no_grad(): made = task.net(torch.from_numpy(noisy)[None, None])[0, 0].numpy()
    ratios = [10*np.log10(np.square(clean).sum()/np.square(x - clean).sum()) for x in (noisy, made)]
    print(f"denoiser: {ratios[0]:.1f} dB before, {ratios[1]:.1f} dB after")
    write("noisy", noisy, RATE)
    write("denoised", made, RATE)


def codec():
    "The players of the codec's tutorial: what it heard, and what it made of it"
    cells = json.loads((ROOT/"nbs/tutorials/snac.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = next(c for c in cells if "codec.compare(" in "".join(c["source"]))
    html = "".join(text for o in shown["outputs"]
                   for text in o.get("data", {}).get("text/html", ""))
    sounds = re.findall(r'src="data:audio/\w+;base64,([^"]+)"', html)
    for name, sound in zip(("codec_before", "codec_after"), sounds):
        write(name, *sf.read(io.BytesIO(base64.b64decode(sound))))


def main():
    with tempfile.TemporaryDirectory() as tmp:
        paths = demo_corpus(Path(tmp)/"learnt", seconds=60)[0]
        others = demo_corpus(Path(tmp)/"apart", seconds=12, seed=1)[0]
        audio, rate = read_audio(others[0], mono=True)
        fidelities(paths)
        codec()
        denoiser(Path(tmp)/"learnt", resample(np.ravel(audio), rate, RATE))


if __name__ == "__main__": sys.exit(main())
