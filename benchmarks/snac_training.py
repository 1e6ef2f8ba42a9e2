"""A real training: a small codec on speech in several languages and voices, by three rules.

    python benchmarks/snac_training.py                 # corpus, three runs one after the other, figure and table
    python benchmarks/snac_training.py run audiolab    # one run; others: dac, seed
    python benchmarks/snac_training.py figure          # from the runs that are there

Rules, on the same batches, networks and weights of losses:
  audiolab   this library: codebooks with a loss, first entries from data, restarts; one look by the critics
  seed       the same without any loss of the quantiser, as an earlier trainer had it: codebooks stay as chance has made them.
             With its clipping of gradients to 1, without which latents that nothing holds grow until the run fails
  dac        a plain two-pass loop in the order of the Descript Audio Codec, written out below: critics first, then the codec;
             codebook losses, its clipping of gradients to 1000, no first entries from data, no restarts, no average of weights
Held out: sentences and voices that training never hears. Needs espeak-ng and the extra `metrics` (STOI).
"""
import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from audiolab.audio import read_audio, resample, write_audio
from audiolab.audio import SENTENCES, VOICES, espeak
from audiolab.measure import mel_distance, multi_scale_stft_distance, stoi
from audiolab.watch import TerminalProgress
from audiolab.training import seed_step
from audiolab.training import read_history
from audiolab.snac import codebook_use
from audiolab.snac import as_config
from audiolab.snac import make_loader, open_training_data
from audiolab.snac import (
    discriminator_loss, feature_matching_loss, generator_loss, multi_scale_mel_loss,
)
from audiolab.snac import SnacTask, setup_models
from audiolab.training import NotFinite, Trainer

RULES = "audiolab", "dac", "seed"
RATE, TRAIN_VOICES, HELD_VOICES = 16000, VOICES[:6], VOICES[6:]


def make_corpus(folder: Path, minutes: float) -> None:
    "Training: sentences of the words of all but the last three sentences of each language, in new orders; held out: those three, by two other voices."
    if (folder / "done").exists(): return
    rng = np.random.default_rng(0)
    for part in ("train", "held"): (folder / part).mkdir(parents=True, exist_ok=True)
    for language, lines in SENTENCES.items():
        for i, line in enumerate(lines[-3:]):
            for voice in HELD_VOICES:
                audio, rate = espeak(line, f"{language}+{voice}")
                write_audio(folder / "held" / f"{language}_{voice}_{i}.wav",
                            resample(audio, rate, RATE), RATE)
    seconds, number = 0., 0
    while seconds < minutes * 60:
        language = list(SENTENCES)[number % len(SENTENCES)]
        words = " ".join(SENTENCES[language][:-3]).split()
        text = " ".join(rng.choice(words, size=12))
        audio, rate = espeak(text, f"{language}+{rng.choice(TRAIN_VOICES)}",
                             speed=int(rng.integers(130, 200)), pitch=int(rng.integers(30, 70)))
        write_audio(folder / "train" / f"{number:04d}_{language}.wav",
                    resample(audio, rate, RATE), RATE)
        seconds, number = seconds + len(audio) / rate, number + 1
    (folder / "done").touch()


def held_out(folder: Path, seconds: float = 3.) -> list[dict]:
    items = []
    for path in sorted((folder / "held").glob("*.wav"))[::2]:
        audio = np.asarray(read_audio(path, sample_rate=RATE, mono=True)[0],
                           np.float32)[:round(seconds * RATE)]
        items.append({"audio": audio, "length": len(audio), "id": path.stem})
    return items


def in_noise(held: list[dict], decibels=(-5, 0, 5)) -> dict:
    """STOI of the held-out speech itself in noise of its own long-term spectrum, by signal-to-noise ratio (dB): a yardstick, because how well such speech
    is understood is known. Half of the sentences at about -5 dB, nearly all words at 0 dB (Plomp and Mimpen 1979)."""
    speech, rng = np.concatenate([item["audio"] for item in held]), np.random.default_rng(0)
    spectrum = np.abs(np.fft.rfft(speech))
    noise = np.fft.irfft(spectrum * np.exp(2j*np.pi*rng.random(len(spectrum))), len(speech))
    ends = np.cumsum([item["length"] for item in held])
    pairs = [(item["audio"], noise[end - item["length"]:end]) for item, end in zip(held, ends)]
    def mixed(x, n, db):
        return (x + n * np.sqrt(np.mean(x**2) / np.mean(n**2)) * 10**(-db/20)).astype(np.float32)
    return {db: float(np.mean([stoi(x, mixed(x, n, db), RATE) for x, n in pairs]))
            for db in decibels}


def settings(rule, folder, args):
    "The recipe of the preset `small`; what is not named here comes with it."
    return as_config({"model": "small", "data": {"dataset_path": str(folder / "train"), "validation": 0.}, "discriminators": {"start": args.start},
                      "codebooks": {"mode": "none" if rule == "seed" else "gradient"}, "losses": {"commitment": 0. if rule == "seed" else .25},
                      "training": {"steps": args.steps, "validate_every": f"{args.every} steps", "sample_every": "never", "log_every": 50, "device": "cpu",
                                   "clip_norm": 1. if rule == "seed" else 0.},
                      "paths": {"checkpoint_dir": str(args.output / rule)}})


class Measured(SnacTask):
    "The task with the held-out sounds of this benchmark."
    def __init__(self, config, held):
        super().__init__(config)
        self.chosen = held
    def setup(self, loop):
        super().setup(loop)
        self.held = self.chosen


def measure(generator, held, codebook_size) -> dict:
    "As `SnacTask.validate`."
    torch.manual_seed(0)
    rows, codes = [], None
    with torch.no_grad():
        for item in held:
            real = torch.as_tensor(item["audio"])
            sound, found = generator(real[None, None])
            sound = sound[0, 0]
            rows.append((mel_distance(real, sound, RATE), multi_scale_stft_distance(real, sound),
                         stoi(real, sound, RATE)))
            codes = ([torch.cat([a, b.flatten()]) for a, b in zip(codes, found)] if codes
                     else [b.flatten() for b in found])
    use = {}
    for i, c in enumerate(codes):
        use[f"used/{i}"], use[f"perplexity/{i}"] = map(
            float, codebook_use(torch.bincount(c, minlength=codebook_size).float()))
    return dict(zip(("mel", "stft", "stoi"), (float(np.mean(o)) for o in zip(*rows)))) | use


def run_dac(config, held, folder: Path) -> None:
    "The plain loop: two passes, critics first."
    t, d, w, rate = (config.training, config.discriminators, config.losses,
                     config.model.sampling_rate)
    seed_step(t.seed, -3)  # the first weights are those of the other runs
    generator, mpd, msd = setup_models(config)
    critics = [*mpd.parameters(), *msd.parameters()]
    optim_g = torch.optim.AdamW(generator.parameters(), t.learning_rate, t.betas,
                                weight_decay=t.weight_decay)
    optim_d = torch.optim.AdamW(critics, d.learning_rate, t.betas, weight_decay=t.weight_decay)
    def rates(step):
        return min(1., (step + 1) / (t.warmup + 1)) * (t.final_factor + (1 - t.final_factor) * .5 *
                                                       (1 + np.cos(np.pi * step / t.steps)))
    dataset, _ = open_training_data(config.data.dataset_path, rate, config.segment_samples / rate,
                                    validation_share=0., multiple=config.pad_multiple, seed=t.seed)
    loader, step, epoch, spent = make_loader(dataset, t.batch_size, seed=t.seed), 0, 0, 0.
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "history.jsonl", "w") as history:
        while step < t.steps:
            for batch in loader.batches(epoch, 0):
                began, real = time.thread_time(), batch["audio"][:, None]
                for group in optim_g.param_groups: group["lr"] = t.learning_rate * rates(step)
                for group in optim_d.param_groups:
                    group["lr"] = d.learning_rate * rates(step) * min(1.,
                                                                      (step + 1) / (d.warmup + 1))
                coded = generator(real, details=True)
                if step >= d.start:
                    fake = coded.audio.detach()
                    loss_d = sum(sum(discriminator_loss(net(real)[0], net(fake)[0]))
                                 for net in (mpd, msd))
                    optim_d.zero_grad()
                    loss_d.backward()
                    torch.nn.utils.clip_grad_norm_(critics, d.clip_norm)
                    optim_d.step()
                loss = w.mel * multi_scale_mel_loss(real, coded.audio, rate) + sum(
                    w.commitment * o.commitment + w.codebook * o.codebook for o in coded.levels)
                if step >= d.start:
                    for net in (mpd, msd):
                        with torch.no_grad(): maps_real = net(real)[1]
                        said, maps = net(coded.audio)
                        loss = loss + w.adversarial * generator_loss(
                            said) + w.feature_matching * feature_matching_loss(maps_real, maps)
                optim_g.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(generator.parameters(), 1e3)
                optim_g.step()
                spent += time.thread_time() - began
                step += 1
                if step % int(t.validate_every.split()[0]) == 0 or step == t.steps:
                    generator.eval()
                    values = measure(generator, held, config.model.codebook_size)
                    generator.train()
                    history.write(json.dumps({"kind": "validation", "step": step, "epoch": epoch, "seconds": spent, "values": values}) + "\n")
                    history.flush()
                    print(f"dac {step}: {values} after {spent:.0f} CPU s", file=sys.stderr)
                if step >= t.steps: break
            epoch += 1


def run(rule, args):
    torch.set_num_threads(1)
    config, held = settings(rule, args.corpus, args), held_out(args.corpus)
    if rule == "dac":
        run_dac(config, held, args.output / rule)
        return
    before = time.process_time()
    try:
        Trainer(Measured(config, held), config.training, config.paths.checkpoint_dir,
                [TerminalProgress()]).fit("auto" if args.resume else None)
    # the figure says so, too
    except NotFinite as problem: print(f"{rule}: {problem}", file=sys.stderr)
    (args.output / rule / "cpu_seconds.json").write_text(json.dumps(time.process_time() - before))


def failed(folder: Path) -> str:
    "Where a run failed, for its name in the figure."
    return "".join(f", failed at step {row['step']}" for row in read_history(folder)
                   if row["kind"] == "end" and row["values"].get("state") == "failed")


def validations(folder: Path) -> list[dict]:
    found = []
    for row in read_history(folder):
        if row["kind"] == "validation": found.append({"step": row["step"], **row["values"]})
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="all",
                        choices=("all", "corpus", "run", "figure"))
    parser.add_argument("rule", nargs="?", default="audiolab", choices=RULES)
    parser.add_argument("--corpus", type=Path, default=Path("snac_speech"), help="where the speech is made")
    parser.add_argument("--output", type=Path, default=Path("snac_runs"), help="where runs are written")
    parser.add_argument("--minutes", type=float, default=40., help="of speech to train on")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--every", type=int, default=250, help="steps between measurements")
    parser.add_argument("--start", type=int, default=1500, help="step from which critics take part")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    if args.what != "figure": make_corpus(args.corpus, args.minutes)
    if args.what == "run": run(args.rule, args)
    if args.what == "all":
        for rule in RULES: run(rule, args)
    if args.what in ("all", "figure"): figure(args)


def figure(args):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    runs = {rule: validations(args.output / rule) for rule in RULES if (args.output / rule / "history.jsonl").exists()}
    yardstick = in_noise(held_out(args.corpus))
    print("STOI of the recordings themselves in noise of the same spectrum:", ", ".join(f"{db} dB: {value:.3f}" for db, value in yardstick.items()))
    picture = Figure(figsize=(10, 3.3), layout="constrained")
    for axes, (name, title) in zip(picture.subplots(1, 3), (("mel", "mel distance (lower is better)"), ("stoi", "STOI (higher is better)"), ("perplexity/2", "perplexity, finest level"))):
        for db, value in (yardstick if name == "stoi" else {}).items():
            axes.axhline(value, color="0.6", lw=.8, ls=":")
            axes.annotate(f"in noise, {db} dB", (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7, color="0.4")
        for rule, rows in runs.items():
            axes.plot([r["step"] for r in rows], [r[name] for r in rows], "o-", ms=3,
                      label=rule + failed(args.output / rule))
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=.3)
        axes.margins(y=.1)
    picture.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(runs))
    FigureCanvasAgg(picture).print_figure(args.output / "snac_training.png", dpi=110)
    print("| rule | step | mel | STFT | STOI | used, by level | perplexity, by level |\n|---|---|---|---|---|---|---|")
    for rule, rows in runs.items():
        for r in rows[1::2] if len(rows) > 8 else rows:
            use, perplexity = ([r[f"{kind}/{i}"] for i in range(3)] for kind in ("used", "perplexity"))
            print(f"| {rule} | {r['step']} | {r['mel']:.3f} | {r['stft']:.3f} | {r['stoi']:.3f} | {' / '.join(f'{o:.0%}' for o in use)} | {' / '.join(f'{o:.0f}' for o in perplexity)} |")


if __name__ == "__main__": main()
