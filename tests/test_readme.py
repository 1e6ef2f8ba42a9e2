"The README does what it says: its commands are those of CI, its Python and its shell examples run."
import os, re, shlex, shutil, subprocess, sys, tomllib
from pathlib import Path

import pytest
from notebook_runner import Runner

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
README = (ROOT/"README.md").read_text(encoding="utf-8")


def blocks(language): return re.findall(rf"^```\s*{language}\n(.*?)^```", README, re.M | re.S)


def commands():
    return [line for b in blocks("bash") for line in b.splitlines() if line
            and not line.startswith("#")]


def check(args, **kwargs):
    r = subprocess.run([str(a) for a in args], text=True, capture_output=True,
                       timeout=300, **kwargs)
    assert r.returncode == 0, f"{args} ended with {r.returncode}\n{r.stdout[-3000:]}\n{r.stderr[-3000:]}"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    "Runs `python FILE` or `audiolab ...` in a folder, in a process of its own; see notebook_runner.py"
    if not hasattr(os, "fork"):
        starts = {"audiolab": [BIN/"audiolab"]}
        def start(folder, name, *words):
            return check([*starts.get(name, [sys.executable, name]), *words], cwd=folder)
        yield start
        return
    runner = Runner(tmp_path_factory.mktemp("programs"))
    def run_one(folder, name, *words):
        status, said = runner("python", folder, name, *words)
        untaught = words[:2] == ("tts", "say")  # three steps do not teach when to stop
        fine = ("0", "3") if untaught else ("0",)
        assert status in fine, f"{name} {words} ended with {status or 'nothing'}\n{said[-6000:]}"
    try: yield run_one
    finally: runner.close()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, program):
    "A folder where the Python examples have run, all in one namespace, so that what they made is there for the shell examples"
    folder = tmp_path_factory.mktemp("readme")
    (folder/"example.py").write_text("\n".join(blocks("python")), encoding="utf-8")
    program(folder, "example.py")
    shutil.copy(folder/"new.wav", folder/"me.wav")  # any 5 s of sound: here nobody is cloned
    spoken_folder(folder/"my_speech", folder/"new.wav")
    return folder


def spoken_folder(folder, sound, clips=12):
    "What the README asks of who brings speech; here nobody speaks."
    import soundfile as sf
    audio, rate = sf.read(sound)
    (folder/"wavs").mkdir(parents=True)
    for n in range(clips): sf.write(folder/f"wavs/{n}.wav", audio[n*rate//4:n*rate//4+rate], rate)
    words = "ሰላም ነው ውሃ ጠጣ ቤት ሄደ".split()
    rows = [f"{n}|{words[n%6]} {words[n*5%6]} {words[n//2%6]}።" for n in range(clips)]
    (folder/"metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def test_made_from_the_index(): check([sys.executable, ROOT/"tools/make_readme.py", "--check"])


def test_python_examples(workplace):
    import numpy as np, soundfile as sf
    audio, rate = sf.read(workplace/"new.wav")
    assert audio.shape[0] == 5*rate and np.isfinite(audio).all() and np.abs(audio).max() > 1e-3


def test_shell_examples(workplace, program):
    "Every `audiolab` line of the README, in its order and for real"
    lines = [line for line in commands() if line.startswith("audiolab ")]
    assert [line for line in lines if " train " in line] and [line for line in lines if " generate " in line]
    # the vocoder's hours are made minutes, and its minutes seconds:
    # 4 steps, then 6 where the line says more
    lines = [line.replace("--training.steps 3000", "--training.steps 6")
             if "--training.steps" in line else f"{line} --training.steps 4"
             if "vocoder train" in line else line
             for line in lines]
    lines = [line.replace("--num_iterations 3000", "--num_iterations 3 --batch_size 2 --discriminators.start 2") for line in lines]
    few = "--num-samples 24 --num-val-samples 8 --num-test-samples 4 --seconds 0.5"
    small = "--preset cpu --epochs 1 --encoder.hidden-dim 16 --encoder.num-layers 1"
    codec = "--training.steps 3 --training.batch-size 2 --training.validate-every never"
    reader = ("--model.small.width 64 --model.small.layers 2 --training.epochs 0 --training.steps 3 --training.tokens 600 "
              "--training.sample-every never")
    changed = {"--num-samples 6000": few, "--preset cpu": small, "--output runs/speech_codec": f"--output runs/speech_codec {codec}",
               "--output runs/tts": f"--output runs/tts {reader}", "--out heard": "--out heard --max-tokens 20"}
    for what, instead in changed.items(): lines = [line.replace(what, instead) for line in lines]
    for line in lines: program(workplace, *shlex.split(line))
    assert (workplace/"me.json").is_file() and (workplace/"said.wav").is_file() and (workplace/"heard/evaluation.html").is_file()
    assert {p.name for p in (workplace/"models").iterdir()} >= {"checkpoint_epoch_10.safetensors", "checkpoint_final.safetensors"}
    assert (workplace/"outputs/new.wav").stat().st_size > 1000


def test_set_up_commands_need_only_python_and_pip():
    "The two commands of a newcomer; `demo` is a command that exists, and `.ci/run` tests with the very line the README gives"
    demo, test = [line for line in commands() if line.startswith("python3 -m venv ")]
    assert demo.endswith("&& .venv/bin/audiolab demo") and test.endswith("&& .venv/bin/pytest")
    check([BIN/"audiolab", "demo", "--help"])
    assert test in (ROOT/".ci/run").read_text(encoding="utf-8").splitlines()


def test_pictures_and_links_exist():
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", README) + re.findall(r'(?:src|href)="([^"]+)"', README) if "://" not in t]
    heads = re.findall(r"^#+ (.+)$", README, re.M)
    titles = {re.sub(r"[^a-z0-9 -]", "", t.lower()).replace(" ", "-") for t in heads}
    assert {t[1:] for t in targets if t.startswith("#")} <= titles
    targets = [t for t in targets if not t.startswith("#")]
    assert any(t.startswith("nbs/images/") for t in targets)
    assert [t for t in targets if not (ROOT/t.partition("#")[0]).is_file()] == []


def test_python_version_and_licence():
    project = tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"Python {project['requires-python'].removeprefix('>=')}" in README
    assert "Apache License" in (ROOT/"LICENSE").read_text(encoding="utf-8")
    assert "Apache-2.0" in README
    for person in ("Damien Davison", "Michael Maillet", "Sacha Davison"):
        assert person in README and person in (ROOT/"NOTICE").read_text(encoding="utf-8")
