"Runs of T3: they learn, go on to the bit, freeze what they should, and refuse what cannot be."
import json
import logging
import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from child_processes import over, two
from run_remains import state, weights
from tts_runs import changed, fit, settings, small_cache, stopped_at, TEXTS

from audiolab.apps import Command, COMMANDS, main
from audiolab.config import ConfigError, load_config, save_config
from audiolab.files import CheckpointError
from audiolab.training import NotFinite, read_history
from audiolab.tts import (
    as_tts_config, begin, EarlyStop, gather_material, HeldOut, init_t3, load_t3, pack_of,
    read_t3_notes, save_t3, speech_text_loss, steady_packs, T3Config, taught_loader, TextTokenizer,
    train_tokenizer, training_plan, tts_train_command, tts_trainer, TTSConfig, TTSError, TTSTask,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory): return small_cache(tmp_path_factory.mktemp("corpus")/"c")


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    "A run that nobody disturbs"
    folder = tmp_path_factory.mktemp("whole")/"run"
    result = fit(settings(corpus, folder))
    assert (result.state, result.exit_code) == ("completed", 0)
    return folder, result


def rows(folder, kind): return [row for row in read_history(folder) if row["kind"] == kind]


def files(folder): return sorted((folder/"checkpoints").glob("*.safetensors"))


def same_run(one, other):
    for name in ("model_final", "best_model", "checkpoints/checkpoint_final"):
        file = f"{name}.safetensors"
        assert weights(one/file) == weights(other/file), name
    last = "checkpoints/checkpoint_final.safetensors"
    assert state(one/last) == state(other/last)
    for kind in ("log", "validation"):
        told = [[(row["step"], {name: value for name, value in row["values"].items()
                                if name.split("_")[-1] in ("loss", "accuracy", "norm", "rate")})
                 for row in rows(folder, kind)] for folder in (one, other)]
        assert told[0] == told[1], kind


@pytest.mark.parametrize("workers, step", [(0, 2), (0, 5), (2, 4)])
def test_a_run_that_goes_on_in_mid_epoch_ends_as_if_it_had_not_stopped(corpus, whole, tmp_path,
                                                                        workers, step):
    "Hidden texts, prompts, dropout of the Perceiver, order of packs: all to the bit"
    given = settings(corpus, tmp_path/"run", num_workers=workers)
    assert stopped_at(given, step).state == "stopped"
    assert fit(given, "auto").state == "completed"
    same_run(whole[0], tmp_path/"run")


def test_a_paused_run_that_frees_its_device_ends_as_if_it_had_not_paused(corpus, whole, tmp_path):
    trainer = tts_trainer(settings(corpus, tmp_path/"run", pause_frees_device=True))
    states = []

    def follow(event):
        states.append(event.values.get("state"))
        if event.kind == "log" and event.step == 3: trainer.control.pause()
        if event.values.get("state") == "paused": trainer.control.resume()
    trainer.listeners.append(follow)
    assert trainer.fit().state == "completed" and "paused" in states
    same_run(whole[0], tmp_path/"run")


def test_it_learns_and_validation_moves_with_the_model(corpus, tmp_path):
    "Not with the calendar: with a rate of nothing it stays, whatever the step"
    fit(settings(corpus, tmp_path/"run", epochs=0, steps=40, validate_every="10 steps"))
    learnt = [row["values"] for row in rows(tmp_path/"run", "validation")]
    assert learnt[-1]["speech_loss"] < learnt[0]["speech_loss"] < math.log(66)
    assert learnt[-1]["speech_accuracy"] > .3
    fit(settings(corpus, tmp_path/"still", epochs=0, steps=9, learning_rate=1e-30,
                 validate_every="3 steps", weight_decay=0.))
    still = [row["values"] for row in rows(tmp_path/"still", "validation")]
    assert len(still) == 3 and still[0] == still[1] == still[2]
    assert abs(still[0]["speech_loss"] - math.log(66)) < .3


def test_rows_of_the_history_say_what_it_cost_and_how_often_it_was_right(whole):
    first, *_, last = [row["values"] for row in rows(whole[0], "log")]
    names = {"loss", "speech_loss", "text_loss", "speech_accuracy", "text_accuracy", "packing",
             "gradient_norm", "learning_rate/t3"}
    assert names <= first.keys() and last["speech_loss"] < first["speech_loss"]
    assert 0 < first["packing"] <= 1


def test_an_update_is_the_sum_of_its_packs_over_all_their_sounds(corpus, tmp_path):
    "However many sounds each of them has"
    given = changed(settings(corpus, tmp_path/"run", accumulate=3, steps=1),
                    data={"prompt_dropout": 1.})
    fit(given)
    config = as_tts_config(given)
    task = TTSTask(config)
    model = begin(config, task.material).model
    batches = list(taught_loader(task.material, model.config, config).batches(0))[:3]
    found = [speech_text_loss(model, pack_of(batch), .1, task.text_rate) for batch in batches]
    counts = [task.count(batch) for batch in batches]
    assert len(set(counts)) > 1 and counts == [int(each["speech_count"]) for each in found]
    (sum(each["total"] for each in found)/sum(counts)).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    row = rows(tmp_path/"run", "log")[0]["values"]
    assert row["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)
    mean = sum(float(each["total"].detach()) for each in found)/sum(counts)
    assert row["loss"] == pytest.approx(mean, rel=1e-6)


def test_two_processes_measure_what_one_does(corpus, tmp_path):
    given = settings(corpus, tmp_path/"two", epochs=1, tokens=800)
    pids = two(lambda: fit(given))
    assert [over(pid, 240) for pid in pids] == [0, 0]
    measured = rows(tmp_path/"two", "validation")[-1]["values"]
    model, material = load_t3(tmp_path/"two"), gather_material(as_tts_config(given))
    alone = HeldOut(steady_packs(material, model.config, "validation", 800)).measure(model)
    for name in ("speech_loss", "text_loss", "speech_accuracy"):
        assert measured[name] == pytest.approx(alone[name], abs=1e-5), name


def test_a_batch_size_limits_the_clips_of_a_pack(corpus, tmp_path):
    config = as_tts_config(settings(corpus, tmp_path/"run", batch_size=2))
    material = gather_material(config)
    form = begin(config, material).model.config
    sizes = [len(pack_of(batch)) for batch in taught_loader(material, form, config).batches(0)]
    assert max(sizes) == 2 and sum(sizes) == material.counts()["train"]


def test_a_gradient_that_is_not_finite_moves_nothing(corpus, tmp_path, monkeypatch):
    real, bad = TTSTask.count, []

    def poisoned(self, batch):
        if len(bad) < 2:
            bad.append(batch["speaker"].fill_(torch.nan))
        return real(self, batch)
    monkeypatch.setattr(TTSTask, "count", poisoned)
    result = fit(settings(corpus, tmp_path/"run", epochs=1))
    assert result.state == "completed" and len(rows(tmp_path/"run", "problem")) == 2
    bad.clear()
    with pytest.raises(NotFinite, match="2 times in a row.*Lower the learning rate"):
        fit(settings(corpus, tmp_path/"other", epochs=1, max_bad_steps=2))


# bases

@pytest.fixture(scope="module")
def base(whole): return whole[0]/"model_final.safetensors"


def extended(corpus, base, folder, tokenizer=None, **model):
    usual = {"base": str(base), "rows": read_t3_notes(base)[0].text_vocab + 18}
    return changed(settings(corpus, folder, epochs=1), model=usual | model)


def test_base_rows_stay_to_the_bit_under_weight_decay(corpus, base, tmp_path):
    given = changed(extended(corpus, base, tmp_path/"run"), training={
        "learning_rate": 1e-2, "weight_decay": .5})
    fit(given)
    before, after = load_t3(base), load_t3(tmp_path/"run")
    count = before.config.text_vocab
    assert after.config.text_vocab == count + 18
    for name in ("text_emb", "text_head"):
        old, new = getattr(before, name).weight, getattr(after, name).weight
        assert torch.equal(old, new[:count]), name
    assert not torch.equal(before.speech_head.weight, after.speech_head.weight)
    form, notes = read_t3_notes(tmp_path/"run")
    assert notes["base_rows"] == count and notes["languages"] == ["am"] and notes["prompts"] == 1


@pytest.mark.parametrize("freeze", ["base_rows", "text_only", "layers", "lora"])
def test_frozen_runs_go_on_to_the_bit(corpus, base, tmp_path, freeze):
    if freeze == "lora" and not find_spec("peft"): pytest.skip("optional: needs peft")
    more = {"layers": [1]} if freeze == "layers" else {"lora_rank": 4} if freeze == "lora" else {}
    runs = []
    for name in ("one", "other"):
        given = extended(corpus, base, tmp_path/name, freeze=freeze, **more)
        if name == "other": stopped_at(given, 2)
        runs.append(fit(given, "auto" if name == "other" else None))
    assert [run.state for run in runs] == ["completed"]*2
    one, other = tmp_path/"one"/"model_final.safetensors", tmp_path/"other"/"model_final.safetensors"
    assert weights(one) == weights(other)
    before, after = load_t3(base).state_dict(), load_t3(one).state_dict()
    assert before.keys() == after.keys()
    moved = {name.split(".")[0] for name in before if name not in (
        "text_emb.weight", "text_head.weight") and not before[name].equal(after[name])}
    assert moved == {"base_rows": {"tfmr", "cond_enc", "speech_emb", "speech_head",
                                   "text_pos_emb", "speech_pos_emb"},
                     "text_only": set(), "layers": {"tfmr"}, "lora": {"tfmr"}}[freeze]


@pytest.mark.parametrize("model, told", [
    ({"base_rows": 2454, "rows": 3000}, r"has \d+ rows of text, not 2454: the tokenizer"),
    ({"rows": 100}, r"the tokenizer has \d+ rows, and model.rows is 100"),
    ({"freeze": "base_rows", "rows": 0}, "so none would learn"),
])
def test_a_base_that_does_not_fit_is_told_before_it_is_read(corpus, base, tmp_path, model, told):
    with pytest.raises(TTSError, match=told):
        fit(extended(corpus, base, tmp_path/"run", **model))
    assert not (tmp_path/"run"/"history.jsonl").exists()


@pytest.mark.parametrize("notes, codes, told", [
    ({"codec": "mel-1"}, 64, "taught with the codec mel-1, and the caches were made with"),
    ({"speakers": "ge2e"}, 64, "taught with the speakers ge2e"),
    ({"tokenizer": "0"}, 64, "another tokenizer of the same size"),
    ({}, 32, "knows 32 sounds, and the codec loudness of the caches has 64"),
])
def test_a_base_of_other_sounds_or_letters_is_refused(corpus, tmp_path, notes, codes, told):
    rows = len(TextTokenizer.from_file(corpus/"tokenizer.json"))
    form = T3Config.small(rows, codes, width=32, layers=1, heads=2)
    save_t3(init_t3(form), tmp_path/"base.safetensors", notes)
    with pytest.raises(TTSError, match=told):
        fit(extended(corpus, tmp_path/"base.safetensors", tmp_path/"run", rows=0))


def test_material_that_does_not_go_together_is_refused(corpus, tmp_path):
    given = settings(corpus, tmp_path/"run")
    train_tokenizer([*TEXTS, "zq"], "char", language="en", output=tmp_path/"other.json")
    def refused(told, error=TTSError, **data):
        with pytest.raises(error, match=told):
            gather_material(as_tts_config(changed(given, data=data)))
    refused("another tokenizer", tokenizer=str(tmp_path/"other.json"))
    refused("name the tokenizer that the caches were made with", tokenizer="")
    refused("holds no whole cache.*audiolab tts cache", caches=[str(tmp_path/"nowhere")])
    refused("nothing to learn from", error=ConfigError, caches=[])
    small_cache(tmp_path/"coarse", 8, codes=32)
    both = [str(corpus/"am"), str(tmp_path/"coarse"/"am")]
    refused("do not go together: their codec", caches=both)
    assert not (tmp_path/"run").exists()


def test_a_run_goes_on_with_its_own_tokenizer_only(corpus, whole, tmp_path):
    (other := tmp_path/"other").mkdir()
    tokenizer = train_tokenizer([*TEXTS, "xqz"], "char", None, "am", other/"tokenizer.json")
    small_cache(other, 24, tokenizer=tokenizer)
    start = whole[0]/"checkpoints"/"checkpoint_final.safetensors"
    with pytest.raises((TTSError, CheckpointError), match="another tokenizer|model.rows|shape"):
        fit(settings(other, tmp_path/"run", epochs=5), start)


# replay, languages, ends

def test_old_languages_are_replayed_in_their_share_and_measured_apart(corpus, tmp_path):
    both = train_tokenizer(TEXTS, "char", language="am", output=None)
    small_cache(tmp_path/"old", 24, None, tokenizer=both, texts=TEXTS[::-1])
    given = changed(settings(corpus, tmp_path/"run", epochs=1), data={
        "caches": [str(corpus/"am")], "replay": [str(tmp_path/"old"/"plain")], "replay_share": .3,
        "val_ratio": .25, "full": 0, "tokenizer": str(corpus/"tokenizer.json")})
    material = gather_material(as_tts_config(given))
    assert sum(material.shares.values()) == pytest.approx(1)
    assert min(material.shares.values()) == pytest.approx(.3)
    task = TTSTask(given, material)
    assert {"am/speech_loss", "untold/speech_loss", "speech_loss"} <= set(task.measures)
    assert fit(given).state == "completed"
    assert {"am/speech_loss", "untold/speech_loss"} <= rows(
        tmp_path/"run", "validation")[-1]["values"].keys()


def test_patience_counts_from_min_epochs_on_and_is_remembered(corpus, tmp_path):
    given = settings(corpus, tmp_path/"run", epochs=9, learning_rate=1e-12, patience=2,
                     min_epochs=4)
    result = fit(given)
    assert result.epoch == 4 and "speech_loss has not become better for" in result.reason
    never = fit(settings(corpus, tmp_path/"never", epochs=4, learning_rate=1e-12, patience=1,
                         early_stopping=False))
    assert never.epoch == 4 and "are done" in never.reason
    stopped_at(changed(given, paths={"output": str(tmp_path/"again")}), result.step - 3)
    ended = fit(changed(given, paths={"output": str(tmp_path/"again")}), "auto")
    assert (ended.step, ended.reason) == (result.step, result.reason)


def test_better_by_a_little_is_not_better():
    stop = EarlyStop(patience=2, min_delta=.1, mode="max")
    for value in (1., 1.05, 1.09, 1.3): stop.judge(value)
    assert (stop.best, stop.stale) == (1.3, 0)


@pytest.mark.parametrize("schedule, rates", [
    ("constant", [.5, 1., 1., 1.]), ("exponential", [.5, 1., 1., .5**(1/3)])])
def test_the_rate_rises_then_falls_step_by_step(corpus, tmp_path, schedule, rates):
    fit(settings(corpus, tmp_path/"run", epochs=0, steps=4, warmup=2, schedule=schedule,
                 decay=.5**(1/3), learning_rate=1.))
    told = [row["values"]["learning_rate/t3"] for row in rows(tmp_path/"run", "log")]
    assert told == pytest.approx(rates)


def test_the_test_set_is_measured_at_the_end_only(corpus, tmp_path):
    given = changed(settings(corpus, tmp_path/"run", epochs=1), data={"test_ratio": .3})
    fit(given)
    found = json.loads((tmp_path/"run"/"test_metrics.json").read_text())
    assert found["clips"] > 0 and np.isfinite(found["best_model"]["speech_loss"])


def test_the_plan_says_what_would_be_done(corpus, base, tmp_path):
    plan = training_plan(as_tts_config(extended(corpus, base, tmp_path/"run")))
    there = read_t3_notes(base)[0].text_vocab
    assert f"({there} rows of text), then with {there + 18} rows, frozen: base_rows" in plan
    assert not (tmp_path/"run").exists()


def test_a_dry_run_prints_the_plan(corpus, base, tmp_path, capsys, monkeypatch):
    command = Command("audiolab.tts:TTSConfig:tts_train_command", "teach a T3")
    monkeypatch.setitem(COMMANDS, ("tts", "train"), command)
    save_config(as_tts_config(extended(corpus, base, tmp_path/"run")), tmp_path/"c.yaml")
    assert main(["tts", "train", "--config", str(tmp_path/"c.yaml"), "--dry-run"]) == 0
    assert "frozen: base_rows" in capsys.readouterr().out
    assert main(["tts", "train", "--output", str(tmp_path/"run")]) == 2
    assert "nothing to learn from" in capsys.readouterr().err and not (tmp_path/"run").exists()


def test_a_command_trains_and_a_second_one_says_that_it_is_done(corpus, tmp_path, caplog):
    given = as_tts_config(settings(corpus, tmp_path/"run", epochs=1) | {"resume": "auto"})
    with caplog.at_level(logging.INFO):
        assert tts_train_command(given) == 0 and tts_train_command(given) == 0
    assert 'audiolab tts say "..." --model' in caplog.text
    assert load_config(TTSConfig, tmp_path/"run"/"config.yaml").config == given
    assert (tmp_path/"run"/"tokenizer.json").is_file()
