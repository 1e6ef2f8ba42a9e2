"`audiolab inspect` and `verify`: what files hold, and whether they are whole."
import json
import os

import numpy as np
import pytest

from audiolab.files import write_checkpoint
from program_runs import python, run


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(0)
    state = {"means": rng.normal(size=(5, 3)), "path": np.arange(100, dtype=np.int32)}
    return write_checkpoint(tmp_path/"model.safetensors", state, {"kind": "ssgs"})


def test_inspect(capsys, tmp_path, model):
    code, out, _ = run(capsys, "inspect", str(model))
    assert code == 0 and "2 tensors" in out
    assert any(line.split() == ["means", "F64", "[5,", "3]", "120"] for line in out.splitlines())
    data = json.loads(run(capsys, "inspect", str(model), "--json")[1])
    assert {t["name"]: t["shape"] for t in data["tensors"]} == {"means": [5, 3], "path": [100]}
    assert data["metadata"]["kind"].startswith("ssgs")
    np.savez_compressed(tmp_path/"old.npz", a=np.zeros((3, 2), np.float32), b=np.arange(4))
    code, out, _ = run(capsys, "inspect", str(tmp_path/"old.npz"))
    assert code == 0 and "2 arrays" in out and "[3, 2]" in out and "float32" in out
    assert json.loads(run(capsys, "inspect", "--json", str(tmp_path/"old.npz"))[1])["arrays"]["b"]["shape"] == [4]


def test_other_tools_files_cannot_write_to_the_terminal(capsys, tmp_path):
    from safetensors.numpy import save_file
    kind = {"kind": "\x1b]0;title\x07"}
    save_file({"a\x1b[2Jb": np.zeros(2)}, str(tmp_path/"x.safetensors"), kind)
    for verb in ("inspect", "verify"):
        code, out, err = run(capsys, verb, str(tmp_path/"x.safetensors"))
        assert code in (0, 1, 2) and "\x1b" not in out + err


def test_inspect_audio(capsys, tmp_path):
    import soundfile
    soundfile.write(tmp_path/"a.wav", np.zeros((800, 2), np.float32), 16000)
    code, out, _ = run(capsys, "inspect", str(tmp_path/"a.wav"))
    assert code == 0 and "0.050 s, 16000 Hz, 2 channels, 800 samples, WAV PCM_16" in out
    found = json.loads(run(capsys, "inspect", str(tmp_path/"a.wav"), "--json")[1])
    assert found["duration"] == 0.05


def test_inspect_refuses(capsys, tmp_path):
    class Payload:
        def __reduce__(self): return os.mkdir, (str(tmp_path/"owned"),)
    np.savez(tmp_path/"evil.npz", a=np.array([Payload()], dtype=object))
    (tmp_path/"text.safetensors").write_text("hello, I am not a checkpoint at all")
    (tmp_path/"empty.wav").touch()
    broken = "evil.npz", "text.safetensors", "empty.wav"
    for name in (*broken, "none.safetensors", "none.npz", "none.flac", "none"):
        code, out, err = run(capsys, "inspect", str(tmp_path/name))
        assert code == 2 and not out and err.startswith("audiolab: error: ")
        assert err.count("\n") == 1 and str(tmp_path) in err
        assert run(capsys, "verify", str(tmp_path/name))[0] == 1
    assert not (tmp_path/"owned").exists()
    assert run(capsys, "inspect")[0] == 2 and run(capsys, "verify")[0] == 2


def flip_bit(content, at, bit, path):
    path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1:])
    return path


def test_verify(capsys, tmp_path, model):
    sound = f"OK      {model}: 2 tensors, {model.stat().st_size:,} bytes\n"
    assert run(capsys, "verify", str(model))[:2] == (0, sound)
    content = model.read_bytes()
    means = content.rindex(np.random.default_rng(0).normal(size=(5, 3)).tobytes())
    for name, at in (("means", means), ("path", len(content) - 1)):
        bad = flip_bit(content, at, 1, tmp_path/f"bad_{name}.safetensors")
        code, out, _ = run(capsys, "verify", str(model), str(bad))
        failed = f"FAILED  {bad}: tensor {name!r}: does not match its digest"
        assert code == 1 and out.splitlines()[1] == failed
        assert len(run(capsys, "verify", "--quiet", str(model), str(bad))[1].splitlines()) == 1
    (tmp_path/"cut.safetensors").write_bytes(content[:-9])
    assert run(capsys, "verify", str(tmp_path/"cut.safetensors"))[0] == 1
    np.savez(tmp_path/"old.npz", a=np.arange(1000))
    assert run(capsys, "verify", str(tmp_path/"old.npz"))[0] == 0
    flip_bit((tmp_path/"old.npz").read_bytes(), 4000, 4, tmp_path/"old.npz")
    assert run(capsys, "verify", str(tmp_path/"old.npz"))[0] == 1


def test_run_folders(capsys, tmp_path, model):
    (tmp_path/"empty").mkdir()
    code, out, err = run(capsys, "inspect", str(tmp_path/"empty"))
    assert code == 2 and not out and "neither a history nor checkpoints" in err
    said = f"FAILED  {tmp_path/'empty'}: a folder without checkpoints\n"
    assert run(capsys, "verify", str(tmp_path/"empty"))[:2] == (1, said)
    row = '{"kind": "log", "step": 7, "epoch": 1, "seconds": 2.5, "values": {}}\n'
    (tmp_path/"history.jsonl").write_text(row)
    (tmp_path/"checkpoints").mkdir()
    flip_bit(model.read_bytes(), -100, 1, tmp_path/"checkpoints"/"last.safetensors")
    (tmp_path/"checkpoints"/".last.safetensors.tmp").touch()
    code, out, _ = run(capsys, "inspect", str(tmp_path))
    assert code == 0 and "step 7, epoch 1, 2 s trained; going on, or cut off" in out
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["checkpoints/last.safetensors",
                                                                  "model.safetensors"]
    assert json.loads(run(capsys, "inspect", str(tmp_path), "--json")[1])["history"]["step"] == 7
    code, out, _ = run(capsys, "verify", str(tmp_path))
    assert code == 1 and [line.split()[0] for line in out.splitlines()] == ["FAILED", "OK"]


def test_files_of_torch(capsys, tmp_path):
    import torch
    path, numbers = tmp_path/"pytorch_model.bin", torch.arange(1000.)
    within = []
    within.append(within)  # a list in itself does not keep the reader for ever
    torch.save({"model": {"weight": numbers, "same": numbers}, "steps": [1, within]}, path)
    code, out, _ = run(capsys, "inspect", str(path))
    assert code == 0 and "2 tensors" in out and "model.weight  float32" in out
    data = json.loads(run(capsys, "inspect", str(path), "--json")[1])
    assert data["tensors"]["model.same"] == {"dtype": "float32", "shape": [1000], "bytes": 4000}
    code, out, _ = run(capsys, "verify", str(path))
    assert code == 0 and out.startswith(f"OK      {path}: 2 tensors match the checksums")
    content = path.read_bytes()
    flip_bit(content, content.index(numbers.numpy().tobytes()) + 2000, 1, path)
    code, out, _ = run(capsys, "verify", str(path))
    assert code == 1 and "data/0: not what checksums say" in out
    path.write_bytes(content[:-10])
    assert run(capsys, "verify", str(path))[0] == 1 and run(capsys, "inspect", str(path))[0] == 2


def test_verbs_of_files_do_not_load_torch(model):
    program = f"""if True:
        import sys
        from audiolab.apps import main
        main(['inspect', {str(model)!r}])
        main(['verify', {str(model)!r}])
        main(['inspect', '--help'])
        sys.exit('torch' in sys.modules)"""
    done = python(program)
    assert done.returncode == 0 and "2 tensors" in done.stdout, done.stderr
