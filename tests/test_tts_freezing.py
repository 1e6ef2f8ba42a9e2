"Base rows stay to the bit under weight decay, and who reads or writes a state needs not know."
import copy

import pytest
import torch
from small_t3 import BASE, ROWS, SMALL, TABLES, extended_t3, loss_of, sentences
from torch import nn

from audiolab.files import read_checkpoint
from audiolab.training import Loop, Task, Trainer, TrainingConfig
from audiolab.tts import (
    SplitTable, T3, T3Config, TTSError, extend_vocabulary, freeze, init_t3, make_pack,
    parameter_groups,
)


@pytest.fixture
def model():
    return extended_t3()


def train(model, steps, optimizer=None):
    "Some steps of AdamW with decay."
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=.1)
    packs = [make_pack(sentences(2, seed), model.config) for seed in range(4)]
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, packs[step % 4]).backward()
        optimizer.step()
    return optimizer


def moved(before, after):
    "Names of the tensors that changed."
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_base_rows_stay_to_the_bit_in_500_steps_with_decay():
    config = T3Config.small(text_vocab=BASE, **(SMALL | dict(layers=1)))
    model = extend_vocabulary(init_t3(config), ROWS)
    before = copy.deepcopy(model.state_dict())
    freeze(model, "base_rows", BASE)
    train(model, 500)
    after = model.state_dict()
    for name in TABLES:
        assert torch.equal(after[name][:BASE], before[name][:BASE])
        assert (after[name][BASE:] != before[name][BASE:]).any(1).all()
    assert moved(before, after) > {"speech_emb.weight", "tfmr.norm.weight"}


def test_a_hook_on_the_gradient_does_not_hold_them(model):
    before = copy.deepcopy(model.state_dict())
    for table in model.text_emb, model.text_head:
        table.weight.register_hook(
            lambda g: torch.cat([torch.zeros_like(g[:BASE]), g[BASE:]]))
    train(model, 50)
    for name in TABLES:
        drift = (model.state_dict()[name] - before[name])[:BASE].norm()/before[name][:BASE].norm()
        assert drift == pytest.approx(1 - (1 - 1e-4)**50, rel=.01)


def test_adamw_remembers_nothing_of_base_rows(model):
    freeze(model, "base_rows", BASE)
    optimizer = train(model, 1)
    shapes = [tuple(state["exp_avg"].shape) for state in optimizer.state.values()]
    assert shapes.count((ROWS - BASE, 16)) == 2 and (ROWS, 16) not in shapes


@pytest.mark.parametrize("mode, layers", [("none", ()), ("base_rows", ()), ("text_only", ()),
                                          ("layers", (-1,))])
def test_states_have_released_names_in_every_mode(model, mode, layers):
    released = copy.deepcopy(model.state_dict())
    freeze(model, mode, BASE, layers)
    state = model.state_dict()
    assert list(state) == list(released) and not moved(released, state)
    T3(model.config).load_state_dict(state, strict=True)
    others = init_t3(model.config, seed=5).state_dict()
    model.load_state_dict(others, strict=True)
    assert not moved(others, model.state_dict())


@pytest.mark.parametrize("mode, layers, stay", [
    ("text_only", (), {"tfmr", "cond_enc", "speech_emb", "speech_head", "text_pos_emb"}),
    ("layers", (1,), {"tfmr.layers.0", "cond_enc", "speech_emb", "speech_head", "tfmr.norm"})])
def test_what_does_not_learn_does_not_move(model, mode, layers, stay):
    before = copy.deepcopy(model.state_dict())
    freeze(model, mode, BASE, layers)
    train(model, 3)
    changed = moved(before, model.state_dict())
    assert not [name for name in changed if name.startswith(tuple(stay))]
    assert changed >= set(TABLES)
    assert any(name.startswith("tfmr.layers.1") for name in changed) == (mode == "layers")
    for name in TABLES: assert torch.equal(model.state_dict()[name][:BASE], before[name][:BASE])


def test_answers_and_gradients_are_those_of_a_model_that_is_whole(model):
    pack, whole = make_pack(sentences(5), model.config), copy.deepcopy(model)
    freeze(model, "base_rows", BASE)
    model.eval(), whole.eval()
    for one, other in zip(model(pack), whole(pack)): assert torch.equal(one, other)
    for each in model, whole: loss_of(each, pack).backward()
    for name in "text_emb", "text_head":
        table = getattr(model, name)
        assert torch.equal(table.new_rows.grad, getattr(whole, name).weight.grad[BASE:])
        assert table.base_rows.grad is None


def test_freezing_again_starts_anew(model):
    names = [name for name, _ in model.named_parameters()]
    freeze(model, "base_rows", BASE)
    freeze(model, "base_rows", BASE + 2)
    assert len(model.text_emb.base_rows) == BASE + 2
    assert list(model.state_dict())[-2:] == ["text_head.weight", "speech_head.weight"]
    freeze(model, "none")
    assert sorted(name for name, _ in model.named_parameters()) == sorted(names)
    resting = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert resting == ["tfmr.embed_tokens.weight"]  # which nothing reads


def test_a_copy_is_frozen_like_its_original(model):
    freeze(model, "base_rows", BASE)
    twin = copy.deepcopy(model)
    train(twin, 2)
    assert torch.equal(twin.state_dict()[TABLES[0]][:BASE], model.state_dict()[TABLES[0]][:BASE])
    assert moved(model.state_dict(), twin.state_dict()) > set(TABLES)


def test_a_copy_is_thawed_and_its_original_is_not(model):
    freeze(model, "base_rows", BASE)
    freeze(copy.deepcopy(model), "none")
    assert len(model.text_emb.weight) == ROWS and not model.text_emb.base_rows.requires_grad


def test_no_new_rows_freeze_the_tables_whole(model):
    freeze(model, "base_rows", ROWS)
    before = copy.deepcopy(model.state_dict())
    train(model, 2)
    assert not moved(before, model.state_dict()) & set(TABLES)


@pytest.mark.parametrize("settings, told", [
    (dict(mode="base_rows"), "2454"), (dict(mode="base_rows", base_rows=27), "26"),
    (dict(mode="base_rows", base_rows=-1), "0"), (dict(mode="half"), "'half'"),
    (dict(mode="layers"), "names the blocks"), (dict(mode="layers", layers=[2]), "no block 2"),
    (dict(mode="none", layers=[0]), "for it only")])
def test_what_cannot_be_frozen_is_told_and_nothing_changes(model, settings, told):
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(TTSError, match=told): freeze(model, **settings)
    assert [p.requires_grad for p in model.parameters()] == flags


def test_a_frozen_model_is_neither_extended_nor_filled_in_place(model):
    freeze(model, "base_rows", BASE)
    with pytest.raises(TTSError, match="extend first"): extend_vocabulary(model, 30)
    with pytest.raises(TTSError, match="load first"): model.state_dict(keep_vars=True)


def test_a_state_of_another_size_is_refused(model):
    freeze(model, "base_rows", BASE)
    state = init_t3(T3Config.small(text_vocab=BASE + 1, **SMALL)).state_dict()
    with pytest.raises(RuntimeError, match="text_emb"): model.load_state_dict(state)


def test_groups_hold_each_parameter_once_and_decay_matrices_alone(model):
    freeze(model, "base_rows", BASE)
    groups = {group["name"]: group for group in parameter_groups(model, 1e-4, 10., .01)}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "matrices": (1e-4, .01), "tables_and_norms": (1e-4, 0.), "new_rows": (1e-3, 0.)}
    members = [p for group in groups.values() for p in group["params"]]
    learning = [p for p in model.parameters() if p.requires_grad]
    assert len(members) == len(set(members)) and set(members) == set(learning)
    names = {p: name for name, p in model.named_parameters()}
    decayed = {names[p] for p in groups["matrices"]["params"]}
    assert "speech_head.weight" in decayed and "tfmr.layers.0.mlp.up_proj.weight" in decayed
    assert not [name for name in decayed if "emb" in name or "norm" in name or "bias" in name]


def test_without_freezing_new_rows_can_still_be_faster(model):
    freeze(model, "none", BASE)
    groups = {group["name"]: group for group in parameter_groups(model, 1e-4)}
    assert [len(p) for p in groups["new_rows"]["params"]] == [ROWS - BASE]*2
    before = copy.deepcopy(model.state_dict())
    train(model, 1, torch.optim.AdamW(groups.values()))
    assert not torch.equal(model.state_dict()[TABLES[0]][:BASE], before[TABLES[0]][:BASE])


class Reading(Task):
    "A frozen T3 in the engine."
    name = "reading"

    def __init__(self, mode="base_rows"): self.mode = mode

    def setup(self, loop: Loop):
        model = extended_t3()
        freeze(model, self.mode, BASE)
        self.model = loop.module("t3", model)
        loop.optimizer("t3", torch.optim.AdamW(parameter_groups(model, 1e-2)))

    def step(self, batch, loop):
        pack = make_pack(sentences(3, loop.step), loop.modules["t3"].config)
        loss = loss_of(self.model, pack)
        loop.update("t3", loss)
        return {"loss": loss}


def settings(**more):
    return TrainingConfig(ema_decay=.9, device="cpu", save_every="4 steps", schedule="constant",
                          **more)


def weights(path):
    "Tensors of a model in a file of a run."
    return {name.removeprefix("t3."): torch.as_tensor(value)
            for name, value in read_checkpoint(path)[0].items() if name.startswith("t3.")}


def test_runs_are_saved_resumed_averaged_and_exported_like_any_other(tmp_path):
    whole = Trainer(Reading(), settings(steps=8), tmp_path/"whole").fit()
    Trainer(Reading(), settings(steps=4), tmp_path/"parts").fit()
    parts = Trainer(Reading(), settings(steps=8), tmp_path/"parts").fit("auto")
    first = extended_t3()
    for name in "checkpoints/checkpoint_final.safetensors", "model_final.safetensors":
        one, other = weights(whole.folder/name), weights(parts.folder/name)
        assert list(one) == list(other) and not moved(one, other)
        for table in TABLES: assert torch.equal(one[table][:BASE], first.state_dict()[table][:BASE])
        assert moved(first.state_dict(), one) > set(TABLES)
        T3(first.config).load_state_dict(one, strict=True)
    averaged, last = (weights(whole.folder/f"{kind}_final.safetensors")
                      for kind in ("model", "checkpoints/checkpoint"))
    assert moved(averaged, last) > set(TABLES)


def test_another_mode_does_not_resume_unnoticed(tmp_path):
    Trainer(Reading(), settings(steps=2), tmp_path).fit()
    with pytest.raises(ValueError, match="other parameters"):
        Trainer(Reading("text_only"), settings(steps=4), tmp_path).fit("auto")


def test_a_table_alone_can_be_split():
    head = nn.Linear(3, 5, bias=False)
    split = SplitTable(head, 2)
    assert torch.equal(split(torch.eye(3)), head(torch.eye(3)))
    assert list(split.state_dict()) == ["weight"]
    back = split.plain()
    assert (type(back), back.in_features, back.out_features) == (nn.Linear, 3, 5)
    assert torch.equal(back.weight, head.weight)
