"""The recipe that `benchmarks/voice.py` compares with: clips in compressed npz files, librosa for each clip, a convolutional network.

Written from the description of the first voice encoder for Supertonic, in its defaults: noise, time stretch, pitch shift and gain, each for
every second clip; power mels in dB below the clip's maximum; one time mask and one frequency mask; five convolutions with batch
normalisation, attention pooling, two linear heads; MSE of both tables and the cosine of all numbers.
"""
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

RATE = 24000  # Hz, of the features, whatever the rate of the clips
MASKS = ((1, 20), (0, 10))  # axis of a mel spectrogram, and the widest mask of it


def write_clips(folder, sounds, ttl, dp, rate):
    "`sample_%06d.npz` files, as the recipe has them."
    Path(folder).mkdir(parents=True, exist_ok=True)
    for i, (audio, a, b) in enumerate(zip(sounds, ttl, dp)):
        np.savez_compressed(
            Path(folder)/f"sample_{i:06d}.npz", audio=audio.astype(np.float32), style_ttl=a[None],
            style_dp=b[None], text="", lang="en", duration=len(audio)/rate, sample_rate=rate)
    return sorted(Path(folder).glob("*.npz"))


def changed_sound(audio, rng):
    "Noise, time stretch, pitch shift and gain, each with a probability of a half."
    import librosa
    if rng.random() < .5:
        power = (audio**2).mean()/10**(rng.uniform(20, 40)/10)
        audio = audio + rng.normal(0, np.sqrt(power), len(audio)).astype(np.float32)
    if rng.random() < .5: audio = librosa.effects.time_stretch(audio, rate=rng.uniform(.9, 1.1))
    if rng.random() < .5:
        audio = librosa.effects.pitch_shift(audio, sr=RATE, n_steps=rng.uniform(-1, 1))
    return audio*rng.uniform(.8, 1.2) if rng.random() < .5 else audio


def features(audio):
    "[80, frames], dB below the clip's maximum."
    import librosa
    power = librosa.feature.melspectrogram(
        y=audio, sr=RATE, n_fft=1024, hop_length=256, win_length=1024, n_mels=80, fmin=0.,
        fmax=8000.)
    return librosa.power_to_db(power, ref=np.max).astype(np.float32)


def masked(mel, rng):
    "One band of time and one of frequency at 0, for every second clip."
    if rng.random() >= .5: return mel
    for axis, widest in MASKS:
        width = rng.integers(0, widest + 1)
        begin = rng.integers(0, max(1, mel.shape[axis] - width))
        mel[(slice(None),)*axis + (slice(begin, begin + width),)] = 0
    return mel


def read_clip(path, rng):
    "Features and both tables of one file."
    with np.load(path, allow_pickle=True) as file:
        audio, ttl, dp = file["audio"], file["style_ttl"], file["style_dp"]
    return masked(features(changed_sound(audio, rng)), rng), ttl, dp


def read_batch(paths, rng):
    "mel [B, 80, T], lengths [B], tables [B, 1, 50, 256] and [B, 1, 8, 16]."
    mels, ttl, dp = zip(*(read_clip(path, rng) for path in paths))
    lengths = torch.tensor([mel.shape[1] for mel in mels])
    mel = torch.zeros(len(mels), 80, int(lengths.max()))
    for row, one in zip(mel, mels): row[:, :one.shape[1]] = torch.from_numpy(one)
    return mel, lengths, torch.from_numpy(np.stack(ttl)), torch.from_numpy(np.stack(dp))


class OriginalEncoder(nn.Module):
    "Five convolutions, attention pooling, two heads: 9.1 million parameters."
    def __init__(self, ttl=(50, 256), dp=(8, 16)):
        super().__init__()
        sizes = ((80, 128, 7, 2), (128, 256, 5, 2), (256, 512, 3, 2), (512, 512, 3, 2),
                 (512, 512, 3, 1))
        self.trunk = nn.Sequential(*(nn.Sequential(
            nn.Conv1d(i, o, k, s, k//2), nn.BatchNorm1d(o), nn.GELU()) for i, o, k, s in sizes))
        self.attention = nn.Linear(512, 1)
        self.body = nn.Sequential(nn.Linear(512, 512), nn.GELU(), nn.Dropout(.1))
        self.shapes = (1, *ttl), (1, *dp)
        self.heads = nn.ModuleList(nn.Linear(512, int(np.prod(shape))) for shape in self.shapes)

    def forward(self, mel, lengths):
        x = self.trunk(mel).transpose(1, 2)
        mask = torch.zeros(x.shape[:2], dtype=torch.bool)
        for row, length in zip(mask, lengths): row[:length//16] = True
        weights = self.attention(x)[..., 0].masked_fill(~mask, -torch.inf).softmax(1)
        pooled = self.body((x*weights[..., None]).sum(1))
        return [head(pooled).view(-1, *shape) for head, shape in zip(self.heads, self.shapes)]


def losses(found, true):
    "MSE of both tables, and a tenth of what the cosine of all numbers lacks of 1."
    flat = [torch.cat([part.flatten(1) for part in tables], 1) for tables in (found, true)]
    cosine = F.cosine_similarity(*flat).mean()
    return sum(map(F.mse_loss, found, true)) + .1*(1 - cosine)


def make_step(model, batch):
    "A training step: `batch()` reads and changes clips; its loss."
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-5)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1., step/100))
    model.train()

    def step():
        mel, lengths, *true = batch()
        loss = losses(model(mel, lengths), true)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        rate.step()
        return float(loss.detach())
    return step
