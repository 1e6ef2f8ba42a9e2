"""Whether this checkout trains, saves and sounds as another one does, to the bit: `python benchmarks/same_runs.py OTHER_CHECKOUT`.

The same commands run in both, on the same sound, with the same seeds; then weights, training states, histories (without
their clocks) and sound are compared. What is equal is counted, what differs is named, and the exit code tells.
"""
import argparse, hashlib, json, os, re, subprocess, sys, tempfile
from pathlib import Path

import numpy as np
import soundfile as sf

ROOT = Path(__file__).resolve().parents[1]
RATE = 16000
CLOCKS = "steps_per_second", "seconds_left", "memory", "seconds"
CLOCK = re.compile(r'\["seconds",\{"float":"[^"]*"\}\]')  # in the tree of a training state
TINY = "--data.segment_length 0.32 --batch_size 4 --discriminators.start 3 --training.save_every '4 steps'"
COMMANDS = {
    "ssgs": "ssgs train --folders {sound} --n-states 12 --n-iterations 6 --checkpoint-dir {out}/models --seed 3",
    "ssgs resumed": "ssgs train --folders {sound} --resume {out}/models/checkpoint_epoch_5.safetensors "
                    "--n-iterations 4 --checkpoint-dir {out}/resumed",
    "ssgs sound": "ssgs generate --model {out}/models/checkpoint_final.safetensors --seconds 2 --fidelity 0 --seed 1 --out {out}/zero.wav",
    "ssgs middle": "ssgs generate --model {out}/models/checkpoint_final.safetensors --seconds 2 --fidelity 0.5 --seed 1 --out {out}/half.wav",
    "vocoder": "vocoder train --folders {sound} --output {out}/vocoder --training.steps 12 --training.save_every '5 steps' "
               "--training.keep_last 0 --training.device cpu",
    "vocoder sound": "vocoder resynth {sound} {out}/copies --model {out}/vocoder/model_final.safetensors",
    "snac": "snac train --model small --dataset_path {sound} --num_iterations 8 --device cpu --paths.checkpoint_dir {out}/snac "
            "--paths.log_dir {out}/snac-logs " + TINY,
    "snac codes": "snac encode {sound} {out}/codes --model {out}/snac",
    "snac sound": "snac decode {out}/codes {out}/decoded --model {out}/snac",
}


def make_sound(folder):
    "Six seconds each of three gliding, noisy tones"
    folder.mkdir(parents=True)
    for number in range(3):
        rng = np.random.default_rng(number)
        t = np.arange(6*RATE)/RATE
        pitch = 110*2**(number/3)*(1 + .1*np.sin(2*np.pi*.5*t))
        tone = sum(np.sin(2*np.pi*k*np.cumsum(pitch)/RATE)/k
                   for k in range(1, 8))*(.6 + .4*np.sin(2*np.pi*3*t))
        sf.write(folder/f"tone-{number}.wav",
                 (.15*tone + .01*rng.normal(size=t.size)).astype(np.float32), RATE, subtype="FLOAT")


def run(checkout, line, places):
    "One `audiolab` command of a checkout"
    import shlex
    env = os.environ | dict(PYTHONPATH=str(checkout), OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    words = shlex.split(line.format(**places))
    done = subprocess.run([sys.executable, "-m", "audiolab", *words], env=env, text=True,
                          capture_output=True, cwd=places["out"])
    if done.returncode: sys.exit(f"{checkout}: audiolab {' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")


def digest(data): return hashlib.blake2b(data, digest_size=12).hexdigest()


def without_clocks(value):
    if isinstance(value, dict):
        return {k: without_clocks(v) for k, v in value.items() if k not in CLOCKS
                and not k.startswith("share/") and k != "time"}
    return [without_clocks(v) for v in value] if isinstance(value, list) else value


def facts(out):
    "What must be equal, as {name: digest}"
    from safetensors import safe_open
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = path.relative_to(out).as_posix()
        if path.suffix == ".safetensors":
            with safe_open(path, "np") as file:
                for key in file.keys():
                    found[f"{name}:{key}"] = digest(file.get_tensor(key).tobytes())
                state = (file.metadata() or {}).get("audiolab.state", "")
            found[f"{name}:state"] = digest(CLOCK.sub("", state).encode())
        elif path.name == "history.jsonl":
            rows = [without_clocks(json.loads(line)) for line in path.read_text().splitlines()]
            found[name] = digest(json.dumps([row for row in rows if row.get("kind") in ("log", "validation", "epoch")]).encode())
        elif path.suffix in (".wav", ".npz", ".bin"): found[name] = digest(path.read_bytes())
    return found


def results(checkout, sound, out):
    out.mkdir(parents=True)
    for name, line in COMMANDS.items():
        print(f"{checkout.name}: {name}", file=sys.stderr, flush=True)
        run(checkout, line, dict(sound=sound, out=out))
    return facts(out)


def main():
    parser = argparse.ArgumentParser(description="Compare what this checkout trains with what another one does, to the bit.")
    parser.add_argument("other", type=Path, help="folder of the other checkout, or a JSON file of what it gave")
    parser.add_argument("--save", type=Path, help="write what the other gave to this file, for a later comparison")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        sound = Path(tmp)/"sound"
        make_sound(sound)
        if args.other.is_file(): before = json.loads(args.other.read_text())
        else: before = results(args.other.resolve(), sound, Path(tmp)/"a"/"out")
        if args.save: args.save.write_text(json.dumps(before, indent=1))
        now = results(ROOT, sound, Path(tmp)/"b"/"out")
    different = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    for name in different:
        print(f"differs: {name}" + (" (only one has it)" if name not in before
                                    or name not in now else ""))
    print(f"{len(before.keys() & now.keys()) - sum(k in before and k in now for k in different)} equal to the bit, {len(different)} different")
    return bool(different)


if __name__ == "__main__": sys.exit(main())
