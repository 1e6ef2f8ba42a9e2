"Adapters: nothing changes until they learn, nothing else learns but new rows, merged it is a T3."
import copy
import importlib.util
import sys

import pytest
import torch
from checkpoint_files import run_python
from small_t3 import BASE, ROWS, SMALL, TABLES, loss_of, sentences
from torch import nn

from audiolab.files import CheckpointError, read_checkpoint, write_checkpoint
from audiolab.training import Task, Trainer, TrainingConfig
from audiolab.tts import (
    KeyValueCache, T3, T3Config, TTSError, adapted_layers, apply_adapter,
    extend_vocabulary, freeze, init_t3, make_pack, merge_adapters, merge_lora, parameter_groups,
    save_adapter, with_lora,
)

if not importlib.util.find_spec("peft"):
    pytest.skip("optional: needs peft (pip install 'audiolab[lora]')", allow_module_level=True)


def train(model, steps=4):
    "Some steps of AdamW with decay."
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-2, weight_decay=.1))
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, make_pack(sentences(2, step), model.config)).backward()
        optimizer.step()
    return model


def plain_model(): return init_t3(T3Config.small(text_vocab=BASE, **SMALL))


def adapted_model(**settings):
    "Extended, with adapters."
    model = extend_vocabulary(plain_model(), ROWS)
    return with_lora(model, **{"rank": 3, "base_rows": BASE} | settings)


@pytest.fixture(scope="module")
def learnt(): return train(adapted_model())


def test_nothing_changes_until_something_is_learnt():
    model, plain = adapted_model().eval(), extend_vocabulary(plain_model(), ROWS).eval()
    pack = make_pack(sentences(3), model.config)
    for one, other in zip(model(pack), plain(pack)): assert torch.equal(one, other)


def test_only_adapters_and_new_rows_learn_and_the_base_stays_to_the_bit(learnt):
    before, after = extend_vocabulary(plain_model(), ROWS).state_dict(), learnt.state_dict()
    for name, value in before.items():
        rows = BASE if name in TABLES else len(value)
        assert torch.equal(after[name][:rows], value[:rows])
    for name in TABLES: assert not torch.equal(after[name][BASE:], before[name][BASE:])
    assert all(after[name].abs().sum() > 0 for name in after if name.endswith("lora_B.weight"))


def test_without_new_rows_only_adapters_learn():
    learning = {name for name, p in adapted_model(base_rows=None).named_parameters()
                if p.requires_grad}
    assert learning and all(".lora_" in name for name in learning)


def test_every_projection_has_an_adapter_that_is_used(learnt):
    assert len(adapted_layers(learnt)) == 2*7
    model = adapted_model()
    for name, p in model.named_parameters():
        if "lora_B" in name: nn.init.normal_(p)
    loss_of(model, make_pack(sentences(2), model.config)).backward()
    for name, p in model.named_parameters():
        if ".lora_" in name: assert p.grad.abs().sum() > 0, name


def test_merged_it_is_a_plain_t3_that_says_the_same(learnt):
    model, pack = copy.deepcopy(learnt).eval(), make_pack(sentences(4), learnt.config)
    said = [answers.detach() for answers in model(pack)]
    merged = merge_lora(model)
    assert merged is model and not adapted_layers(merged)
    for one, other in zip(merged(pack), said): assert (one - other).abs().max() < 1e-5
    fresh = T3(merged.config)
    freeze(merged, "none")
    assert list(merged.state_dict()) == list(fresh.state_dict())
    fresh.load_state_dict(merged.state_dict(), strict=True)
    names = [name for name, _ in fresh.named_parameters()]
    assert sorted(name for name, _ in merged.named_parameters()) == sorted(names)


def test_a_file_is_merged_without_the_model(learnt):
    tensors = merge_adapters(learnt.state_dict())
    merged = merge_lora(copy.deepcopy(learnt)).state_dict()
    assert list(tensors) == list(merged)
    assert all(torch.equal(tensors[name], value) for name, value in merged.items())
    assert merge_adapters(merged).keys() == merged.keys()


def test_the_state_has_released_names_and_adapters_beside_them(learnt):
    released, found = extend_vocabulary(plain_model(), ROWS).state_dict(), learnt.state_dict()
    assert [name for name in found if ".lora_" not in name] == list(released)
    name = "tfmr.layers.0.mlp.down_proj"
    assert found[f"{name}.lora_A.weight"].shape == (3, 64)
    assert found[f"{name}.lora_B.weight"].shape == (16, 3)
    assert float(found[f"{name}.lora_scale"]) == 2
    other = adapted_model(seed=7)
    other.load_state_dict(found, strict=True)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in found.items())


def test_another_strength_is_told(learnt):
    with pytest.raises(RuntimeError, match="lora_scale is 2 there and 4 here"):
        adapted_model(alpha=12).load_state_dict(learnt.state_dict())


def test_decoding_step_by_step_uses_adapters(learnt):
    model, (one,) = copy.deepcopy(learnt).eval(), sentences(1)
    rows, _ = model.embed_prefix([one])
    hidden = model.decode(rows, KeyValueCache(model.config, 1, rows.shape[1]))
    merged = merge_lora(model)
    again = merged.decode(rows, KeyValueCache(model.config, 1, rows.shape[1]))
    assert (hidden - again).abs().max() < 1e-5
    plain = extend_vocabulary(plain_model(), ROWS)
    other = plain.decode(rows, KeyValueCache(model.config, 1, rows.shape[1]))
    assert (hidden - other).abs().max() > 1e-3


def test_seeds_decide_and_nothing_else_is_drawn():
    state = torch.random.get_rng_state()
    one, same, other = (adapted_model(seed=seed).state_dict() for seed in (1, 1, 2))
    name = "tfmr.layers.0.mlp.down_proj.lora_A.weight"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_half_precision_stays():
    model = with_lora(plain_model().bfloat16(), rank=2)
    merged = merge_lora(model).state_dict()
    assert {value.dtype for value in merged.values()} == {torch.bfloat16}


@pytest.mark.parametrize("settings, told", [
    (dict(rank=0), "rank of 1"), (dict(targets=()), "layers"), (dict(targets=["qkv"]), "qkv"),
    (dict(base_rows=99), "26")])
def test_what_cannot_be_is_told(settings, told):
    with pytest.raises(TTSError, match=told): adapted_model(**settings)


def test_two_sets_of_adapters_are_refused(learnt):
    for again in (lambda m: with_lora(m), lambda m: freeze(m, "none")):
        with pytest.raises(TTSError, match="merge them first"): again(copy.deepcopy(learnt))


def test_without_peft_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TTSError, match=r"audiolab\[lora\]"): adapted_model()


def test_an_adapter_file_is_small_and_makes_the_same_model(learnt, tmp_path):
    file = save_adapter(learnt, tmp_path/"am.safetensors", {"tokenizer": "abc"})
    tensors, notes = read_checkpoint(file)
    assert notes["base_rows"] == "20" and notes["tokenizer"] == "abc"
    assert not [name for name in tensors if ".lora_" not in name and not name.endswith(".new")]
    wanted = merge_lora(copy.deepcopy(learnt)).state_dict()
    for base in plain_model(), extend_vocabulary(plain_model(), ROWS, "normal"):
        found = apply_adapter(base, file)
        assert found.config.text_vocab == ROWS
        for name, value in wanted.items(): assert torch.equal(found.state_dict()[name], value)


def test_an_adapter_file_is_not_applied_to_something_else(learnt, tmp_path):
    file = save_adapter(learnt, tmp_path/"am.safetensors")
    other = plain_model()
    with torch.no_grad(): other.tfmr.norm.weight[0] += 1e-6
    with pytest.raises(CheckpointError, match="another base"): apply_adapter(other, file)
    with pytest.raises(CheckpointError, match="another base"): apply_adapter(init_t3(T3Config.small(
        text_vocab=BASE, **(SMALL | dict(layers=1)))), file)
    none = write_checkpoint(tmp_path/"none.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="no adapter file"): apply_adapter(plain_model(), none)
    with pytest.raises(TTSError, match="no adapters"): save_adapter(plain_model(), file)


class Adapting(Task):
    "Adapters in the engine."
    name = "adapting"

    def setup(self, loop):
        self.model = loop.module("t3", adapted_model())
        loop.optimizer("t3", torch.optim.AdamW(parameter_groups(self.model, 1e-2)))

    def step(self, batch, loop):
        pack = make_pack(sentences(3, loop.step), loop.modules["t3"].config)
        loss = loss_of(self.model, pack)
        loop.update("t3", loss)
        return {"loss": loss}


def test_runs_with_adapters_are_resumed_to_the_bit(tmp_path):
    def settings(steps):
        return TrainingConfig(steps=steps, ema_decay=.9, device="cpu", schedule="constant")
    whole = Trainer(Adapting(), settings(6), tmp_path/"whole").fit()
    Trainer(Adapting(), settings(3), tmp_path/"parts").fit()
    parts = Trainer(Adapting(), settings(6), tmp_path/"parts").fit("auto")
    for name in "checkpoints/checkpoint_final.safetensors", "model_final.safetensors":
        one, other = (read_checkpoint(run.folder/name)[0] for run in (whole, parts))
        tensors = {name: torch.as_tensor(value) for name, value in one.items()}
        weights = {n: v for n, v in tensors.items() if n.startswith("t3.")}
        assert all(torch.equal(v, torch.as_tensor(other[n])) for n, v in weights.items())
        plain = {n.removeprefix("t3."): v for n, v in merge_adapters(weights).items()}
        T3(T3Config.small(text_vocab=ROWS, **SMALL)).load_state_dict(plain, strict=True)


def test_who_has_looked_for_torchaudio_before_can_still_be_adapted():
    "transformers remembers that there is one, also where it does not load beside this torch"
    done = run_python("""
from transformers.utils import is_torchaudio_available
is_torchaudio_available()
from audiolab.tts import T3Config, adapted_layers, init_t3, with_lora
model = with_lora(init_t3(T3Config.small(20, 30, width=64, heads=2, layers=1)), rank=2)
print(len(list(adapted_layers(model))))""", check=True)
    assert int(done.stdout) == 7
