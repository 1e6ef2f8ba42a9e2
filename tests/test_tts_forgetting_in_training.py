"A run that teaches a base a language tells, with each validation, what becomes of its own."
import logging
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from child_processes import over, two
from tts_runs import changed, fit, settings, small_cache, stopped_at, TEXTS

from audiolab.training import Event, read_history
from audiolab.tts import (
    as_tts_config, ForgettingProbe, gather_material, load_t3, measure_forgetting, merge_vocabulary,
    old_clips, steady_packs, train_tokenizer, training_plan, tts_tags, TTSTask,
)
from audiolab.watch import RunCurves

NAME = "en/forgotten_loss"


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    "A base that reads en, a tokenizer that knows am as well, and a cache of each"
    folder = tmp_path_factory.mktemp("room")
    english = train_tokenizer(TEXTS, "char", language="en", output=folder/"english.json")
    both = merge_vocabulary(english, [*"ሀለመ።"], "am").tokenizer
    both.save(folder/"tokenizer.json")
    small_cache(folder/"first", 24, "en", english)
    for name in ("en", "am"): small_cache(folder, 24, name, both)
    first = changed(settings(folder/"first", folder/"base", ("en",), epochs=4), data={
        "tokenizer": str(folder/"english.json"), "caches": [str(folder/"first"/"en")]})
    fit(first)
    return SimpleNamespace(folder=folder, base=folder/"base"/"model_final.safetensors",
                           rows=len(english), both=both)


def taught(room, output, model=None, data=None, **training):
    "Settings to teach am, with en to replay"
    usual = {"epochs": 0, "steps": 6, "validate_every": "2 steps"}
    given = settings(room.folder, output, ("am",), **usual | training)
    replay = {"replay": [str(room.folder/"en")], "replay_share": .3}
    return changed(given, model={"base": str(room.base)} | (model or {}),
                   data=replay if data is None else data)


def measured(folder):
    return [row["values"] for row in read_history(folder) if row["kind"] == "validation"]


def told(folder): return [values[NAME] for values in measured(folder)]


@pytest.fixture(scope="module")
def whole(room, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")/"run"
    assert fit(taught(room, folder)).state == "completed"
    return folder


def test_it_is_the_divergence_from_the_base_as_the_probe_measures_it(room, whole):
    values = told(whole)
    assert len(values) == 3 and 0 < values[0] < values[1] < values[2]
    model, base = load_t3(whole/"model_final.safetensors"), load_t3(room.base)
    material = gather_material(as_tts_config(taught(room, whole)))
    material.sets["validation"] = old_clips(material, room.rows)
    assert list(material.sets["validation"]) == ["en"]
    probe = ForgettingProbe(base, steady_packs(material, model.config, "validation", 400, 32))
    found = measure_forgetting(probe, model)["en"]["speech"]
    assert values[-1] == pytest.approx(found.divergence, rel=1e-5)


def test_it_moves_with_the_model_only(room, tmp_path):
    "Not with the step: nothing is forgotten at a rate of nothing, nor where text alone learns"
    fit(taught(room, tmp_path/"still", learning_rate=1e-30, weight_decay=0.))
    assert max(told(tmp_path/"still")) < 1e-9
    fit(taught(room, tmp_path/"text", model={"freeze": "text_only"}))
    assert max(told(tmp_path/"text")) < 1e-9
    assert measured(tmp_path/"text")[-1]["am/text_loss"] < measured(tmp_path/"text")[0]["am/text_loss"]


@pytest.mark.parametrize("freeze", ["base_rows", "lora"])
def test_a_run_that_goes_on_tells_what_it_would_have_told(room, whole, tmp_path, freeze):
    if freeze == "lora" and not find_spec("peft"): pytest.skip("optional: needs peft")
    given = taught(room, tmp_path/"run", model={"freeze": freeze, "lora_rank": 4})
    stopped_at(given, 3)
    assert fit(given, "auto").state == "completed"
    if freeze == "lora": fit(taught(room, whole := tmp_path/"whole", given["model"]))
    assert told(tmp_path/"run") == told(whole) and told(whole)[-1] > 0


def test_two_processes_find_what_one_does(room, tmp_path):
    given = changed(taught(room, tmp_path/"two", steps=2, tokens=200), data={"val_ratio": .5})
    assert [over(pid, 240) for pid in two(lambda: fit(given))] == [0, 0]
    material = gather_material(as_tts_config(given))
    material.sets["validation"] = old_clips(material, room.rows)
    model = load_t3(tmp_path/"two"/"model_final.safetensors")
    packs = steady_packs(material, model.config, "validation", 200, 32)
    assert len(packs["en"]) > 1  # each has its share
    alone = measure_forgetting(ForgettingProbe(load_t3(room.base), packs), model)
    assert told(tmp_path/"two")[-1] == pytest.approx(alone["en"]["speech"].divergence, rel=1e-4)


def test_a_base_that_is_gone_when_a_run_goes_on_is_told_and_not_needed(room, tmp_path, caplog):
    base = tmp_path/"base.safetensors"
    base.write_bytes(room.base.read_bytes())
    given = taught(room, tmp_path/"run", model={"base": str(base)})
    stopped_at(given, 3)
    base.unlink()
    with caplog.at_level(logging.WARNING): assert fit(given, "auto").state == "completed"
    assert "what is forgotten is not measured" in caplog.text and str(base) in caplog.text
    assert [NAME in values for values in measured(tmp_path/"run")] == [True, False, False]


@pytest.mark.parametrize("data, model", [
    ({}, {}), ({"replay": ["en"], "probe_clips": 0}, {}), ({"replay": ["en"]}, {"base": ""})])
def test_where_nothing_can_be_forgotten_nothing_is_told(room, tmp_path, data, model):
    "No sentence of the base's language, none wanted, no base"
    data = data | {"replay": [str(room.folder/name) for name in data.get("replay", ())]}
    given = taught(room, tmp_path/"run", model, data)
    assert not [name for name in TTSTask(as_tts_config(given)).measures if "forgotten" in name]


def test_a_language_in_the_lessons_of_an_extended_base_is_an_old_one(room, tmp_path):
    "Also without a word about replay; and of a base that is not extended, what is held out only"
    both = {"caches": [str(room.folder/name) for name in ("am", "en")]}
    assert NAME in TTSTask(taught(room, tmp_path, data=both)).measures
    same = {"tokenizer": str(room.folder/"english.json"), "caches": [str(room.folder/"first"/"en")]}
    assert NAME not in TTSTask(taught(room, tmp_path, data=same)).measures
    again = TTSTask(taught(room, tmp_path, data=same | {"replay": same["caches"]}))
    assert NAME in again.measures


def test_the_best_model_may_be_the_one_that_forgets_least(room, tmp_path):
    result = fit(taught(room, tmp_path/"run", best_metric=NAME))
    assert result.best == min(told(tmp_path/"run"))


def test_tensorboard_and_the_monitor_have_it(whole):
    values, curves = measured(whole)[-1], RunCurves()
    assert tts_tags(Event("validation", 6, 0, 1., values))[f"validation/{NAME}"] == values[NAME]
    for row in read_history(whole): curves.take(Event(**row))
    assert NAME in curves.names()


def test_the_plan_says_whether_it_will_be_known(room, tmp_path):
    plan = training_plan(as_tts_config(taught(room, tmp_path/"run")))
    assert "what the base forgets of en is measured" in plan
    plan = training_plan(as_tts_config(taught(room, tmp_path/"run", data={})))
    assert "no clip of its own languages is held out (data.replay" in plan
