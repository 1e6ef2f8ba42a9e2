"""Files of T3: released, ours, in runs and in torch.save's manner; what does not fit is named, and nothing is executed."""
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from audiolab.files import CheckpointError, save_state, write_checkpoint
from audiolab.tts.language_tables import TTSError
from audiolab.tts.t3 import init_t3
from audiolab.tts.t3_config import T3Config, tensor_shapes
from audiolab.tts.t3_files import (
    find_t3, load_t3, read_t3_notes, released_name, save_t3, shapes_config, t3_notes,
)

SMALL = T3Config.small(70, 100, width=64, heads=1, layers=2, max_text=30, max_speech=60)


@pytest.fixture(scope="module")
def model(): return init_t3(SMALL, 1)


@pytest.fixture(scope="module")
def state(model): return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, state):
    found = one.state_dict()
    return all(torch.equal(found[name], value) for name, value in state.items())


def test_ours_come_back_with_their_notes(model, state, tmp_path):
    notes = {"tokenizer": "ab12", "languages": ["am"], "rows": 70}
    path = save_t3(model, tmp_path/"t3.safetensors", notes)
    again = load_t3(path)
    assert same(again, state) and again.config == SMALL and not again.training
    assert read_t3_notes(path) == (SMALL, notes)
    with safe_open(path, "pt") as file: assert set(file.keys()) == set(tensor_shapes(SMALL))


@pytest.mark.parametrize("rows", [704, 2352, 2454, 3000])
def test_a_file_that_says_nothing_is_known_by_its_shapes(rows, tmp_path):
    "As released, of the released form but narrower: 8194 rows of speech, 34 rows before the text."
    config = T3Config(rows, width=64, layers=1, heads=1, feed_forward=128)
    state = init_t3(config, 2).state_dict()
    save_file(state, tmp_path/"t3.safetensors")
    found = load_t3(tmp_path/"t3.safetensors")
    assert same(found, state) and found.config == config


def test_released_names_are_292():
    assert len(tensor_shapes(T3Config())) == 292
    assert shapes_config(tensor_shapes(T3Config(704))) == T3Config(704)


@pytest.mark.parametrize("prefix", ["model.", "module._orig_mod.", "t3.", "model.0."])
def test_words_before_the_names_do_not_matter(state, prefix, tmp_path):
    save_file({prefix + name: value for name, value in state.items()}, tmp_path/"t3.safetensors")
    assert same(load_t3(tmp_path/"t3.safetensors", SMALL), state)


def test_a_run_is_opened_by_its_folder(model, state, tmp_path):
    run = tmp_path/"run"
    (run/"checkpoints").mkdir(parents=True)
    tensors = {f"t3.{name}": value for name, value in state.items()}
    tensors["training.optimizer.step"] = torch.tensor(3)
    newest = run/"checkpoints"/"checkpoint_step_000003.safetensors"
    write_checkpoint(newest, tensors, t3_notes(SMALL))
    assert find_t3(run).parent.name == "checkpoints" and same(load_t3(run), state)
    save_t3(init_t3(SMALL, 9), run/"model_final.safetensors")
    assert find_t3(run).name == "model_final.safetensors"
    save_t3(model, run/"best_model.safetensors")
    assert same(load_t3(run), state)


def wrapped(state):
    return {"state_dict": {f"module.{name}": value for name, value in state.items()}}


@pytest.mark.parametrize("nest", [dict, lambda s: {"model": [s]}, lambda s: {"model": s}, wrapped])
def test_files_of_torch_save_are_opened_without_running_them(state, nest, tmp_path):
    torch.save(nest(state), tmp_path/"t3.pt")
    again = load_t3(tmp_path/"t3.pt", SMALL)
    assert same(again, state) and not again.tfmr.embed_tokens.weight.requires_grad


class Mischief:
    def __init__(self, target): self.target = target
    def __reduce__(self): return Path.touch, (Path(self.target),)


def test_nothing_in_a_file_is_executed(state, tmp_path):
    torch.save({"model": [state], "more": Mischief(tmp_path/"was_here")}, tmp_path/"bad.pt")
    (tmp_path/"bare.pt").write_bytes(pickle.dumps(Mischief(tmp_path/"was_here")))
    for name in ("bad.pt", "bare.pt"):
        with pytest.raises(ValueError, match=name): load_t3(tmp_path/name)
    assert not (tmp_path/"was_here").exists()


def test_what_does_not_fit_is_named_with_both_shapes(state, tmp_path):
    save_file(state, tmp_path/"t3.safetensors")
    torch.save(state, tmp_path/"t3.pt")
    for name in ("t3.safetensors", "t3.pt"):
        wanted = r"text_emb.weight is \[70, 64\] in the file, \[3000, 64\] in the mod"
        with pytest.raises(ValueError, match=wanted):
            load_t3(tmp_path/name, replace(SMALL, text_vocab=3000))
        wanted = f"{name}.*tfmr.layers.2.self_attn.q_proj.weight is missing"
        with pytest.raises(ValueError, match=wanted):
            load_t3(tmp_path/name, replace(SMALL, layers=3))


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_missing_and_strange_tensors_are_named(state, ending, tmp_path):
    changed = {name: value for name, value in state.items() if name != "speech_head.weight"}
    changed["speech_head.bias"] = torch.zeros(102)
    path = tmp_path/f"t3.{ending}"
    (save_file if ending == "safetensors" else torch.save)(changed, path)
    wanted = "speech_head.weight is missing; speech_head.bias is not of this mod"
    with pytest.raises(ValueError, match=wanted): load_t3(path, SMALL)


def test_what_is_no_t3_is_said_to_be_none(tmp_path):
    save_file({"conv.weight": torch.zeros(3)}, tmp_path/"other.safetensors")
    torch.save([1, 2], tmp_path/"list.pt")
    save_state(tmp_path/"state.safetensors", {"a": [torch.zeros(1)]})
    (tmp_path/"broken.safetensors").write_bytes(b"not at all")
    (tmp_path/"empty.safetensors").touch()
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises((TTSError, CheckpointError), match=path.name): load_t3(path)
    with pytest.raises(TTSError, match="name one of broken.safetensors, empty"): load_t3(tmp_path)
    with pytest.raises(TTSError, match="no such file or folder"): load_t3(tmp_path/"nowhere")


def test_a_cut_or_changed_file_is_not_taken(model, tmp_path):
    path = save_t3(model, tmp_path/"t3.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(ValueError, match="t3.safetensors"): load_t3(path)
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.raises(CheckpointError, match="do not match"): load_t3(path)


def test_a_header_cannot_ask_for_the_moon(state, tmp_path):
    notes = t3_notes(SMALL)
    notes["audiolab.t3"] = notes["audiolab.t3"].replace('"layers":2', '"layers":200000000')
    write_checkpoint(tmp_path/"t3.safetensors", state, notes)
    with pytest.raises(TTSError, match="layers is 200000000"): load_t3(tmp_path/"t3.safetensors")


def test_sixteen_bits_go_out_and_in(model, state, tmp_path):
    path = save_t3(model, tmp_path/"half.safetensors", dtype="bfloat16")
    assert path.stat().st_size < sum(value.nbytes for value in state.values())*.6
    again, half = load_t3(path), load_t3(path, dtype=torch.bfloat16)
    assert again.text_emb.weight.dtype == torch.float32
    assert half.text_emb.weight.dtype == torch.bfloat16
    assert torch.equal(again.text_emb.weight, state["text_emb.weight"].bfloat16().float())


def test_names_of_a_run_s_own_state_are_left_out():
    assert released_name("training.optimizer.0") is None
    assert released_name("model.text_emb.weight") == "text_emb.weight"
    assert released_name("cond_enc.perceiver.attn.norm.bias") == "cond_enc.perceiver.attn.norm.bias"


def test_inspect_tells_size_notes_and_rows(model, tmp_path, capsys):
    from audiolab.tts.row_map import InspectT3Config, inspect_t3_command, map_rows
    from audiolab.tts.tokenizer_training import train_tokenizer
    tokenizer = train_tokenizer(["a small fox"], "char", language="en")
    tokenizer.save(tmp_path/"tokenizer.json")
    path = save_t3(model, tmp_path/"t3.safetensors", {"base_rows": 60, "tokenizer": "of another"})
    asked = InspectT3Config(str(path), str(tmp_path/"tokenizer.json"))
    assert inspect_t3_command(asked) == 0
    shown = capsys.readouterr().out
    for wanted in ("2 blocks", "base_rows: 60", "language", "unused", "another tokenizer"):
        assert wanted in shown
    torch.save(model.state_dict(), tmp_path/"t3.pt")
    assert inspect_t3_command(InspectT3Config(str(tmp_path/"t3.pt"))) == 0
    ranges = map_rows(70, tokenizer, 60)
    assert [one.new for one in ranges] == sorted(one.new for one in ranges)
    covered = [row for one in ranges for row in range(one.first, one.last + 1)]
    assert covered == list(range(70)) and ranges[-1][:4] == (60, 69, "unused", True)


@pytest.mark.slow
def test_loading_takes_hardly_more_than_the_file(tmp_path):
    "A file of the released size, 2.14 GB: at most 1.1 times as much at the peak."
    import subprocess
    import sys
    if shutil.disk_usage(tmp_path).free < 4e9: pytest.skip("needs 4 GB on the disk")
    with torch.device("meta"):
        from audiolab.tts.t3 import T3
        model = T3(T3Config())
    path = save_t3(model.to_empty(device="cpu"), tmp_path/"t3.safetensors")
    del model
    code = f"""
def peak(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))*1024
from audiolab.tts.t3_files import load_t3
before = peak()
model = load_t3({str(path)!r})
print(peak() - before)"""
    done = subprocess.run([sys.executable, "-c", code], stdout=-1, check=True, timeout=600)
    assert int(done.stdout) < 1.1*path.stat().st_size
