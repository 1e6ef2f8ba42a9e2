# ruff: noqa: F811 (fixtures of another file)
"The monitor as a person meets it: buttons pressed in JupyterLab, in a browser, while a real run goes on."
import inspect, json, os, re
from io import BytesIO

import pytest
import soundfile
import test_monitor
from test_tutorial_ui import CONTENT, OUTPUTS, READY, lab, tab  # noqa: F401

IMPORTS = """import time
import numpy as np, torch
from audiolab.watch import watch
from audiolab.training import Sample
from audiolab.training import Task, Trainer, TrainingConfig
torch.set_num_threads(1)"""
CELLS = [IMPORTS, *map(inspect.getsource,
                       (test_monitor.Tones, test_monitor.Denoise, test_monitor.denoising)),
         "first = denoising('run')\nwatch(first)", "print('at', first.join().step)\nsecond = denoising('run')\nagain = watch(second, resume='auto')"]
BYTES = "async e => [...new Uint8Array(await (await fetch(e.src)).arrayBuffer())]"
RUN = "i => { const n = window.jupyterapp.shell.currentWidget.content; n.activeCellIndex = i; window.jupyterapp.commands.execute('notebook:run-cell') }"


def step(text): return int(re.search(r"step (\d+)", text)[1])


@pytest.fixture
def page(tab, lab):
    "The notebook, with its cells up to the first panel run"
    from playwright.sync_api import expect
    expect.set_options(timeout=60_000)
    def cell(i, source):
        return dict(cell_type="code", id=f"cell{i}", metadata={}, source=source, outputs=[],
                    execution_count=None)
    meta = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))
    (lab[1]/"watch.ipynb").write_text(
        json.dumps(dict(cells=[cell(i, s) for i, s in enumerate(CELLS)], metadata=meta, nbformat=4,
                        nbformat_minor=5)))
    tab.goto(f"{lab[0]}/doc/tree/watch.ipynb?reset&token=t")
    tab.wait_for_function(READY)
    for i in range(len(CELLS) - 1): tab.evaluate(RUN, i)
    return tab


def shoot(page, name):
    "A picture of the page, kept where AUDIOLAB_SCREENSHOTS says"
    if folder := os.environ.get("AUDIOLAB_SCREENSHOTS"): page.screenshot(path=f"{folder}/{name}.png")


def test_watch_pause_listen_stop_resume(page, lab):
    from playwright.sync_api import expect
    line = page.locator(".widget-html-content").first
    def button(name): return page.get_by_role("button", name=name)
    pictures, players = page.locator(".jp-OutputArea-output img"), page.locator(".jp-OutputArea-output audio")

    # it moves
    expect(line).to_have_text(re.compile(r"^running at epoch 1/100, step [1-9]\d*/100000$"))
    before = pictures.first.evaluate(CONTENT)
    page.wait_for_function("s => document.querySelector('.jp-OutputArea-output img').src != s",
                           arg=pictures.first.get_attribute("src"))
    assert pictures.first.evaluate(CONTENT) != before
    shoot(page, "running")

    # it stands still
    button("Pause").click()
    expect(button("Resume")).to_be_visible()
    expect(line).to_contain_text("paused at")
    page.wait_for_timeout(1500)
    held = line.inner_text()
    page.wait_for_timeout(2500)
    assert line.inner_text() == held

    # it sounds, while it waits
    expect(players.first).to_be_hidden()
    button("Sample now").click()
    expect(players.last).to_be_visible()
    page.wait_for_function("() => [...document.querySelectorAll('.jp-OutputArea-output audio')].every(a => a.duration == 1)")
    for player, loudest in zip(players.all(), (.5, None), strict=True):  # target and output
        audio, rate = soundfile.read(BytesIO(bytes(player.evaluate(BYTES))))
        assert (rate, len(audio)) == (8000, 8000)
        assert abs(abs(audio).max() - .5) < (.01 if loudest else .5)
    expect(pictures).to_have_count(2)
    assert step(line.inner_text()) == step(held)
    shoot(page, "paused")

    # it goes on
    button("Resume").click()
    expect(button("Pause")).to_be_visible()
    expect(line).not_to_have_text(held)
    expect(line).to_contain_text("running at")

    # it stops, and leaves a picture and the sound
    button("Stop and save").click()
    expect(button("Pause")).to_have_count(0)
    expect(pictures).to_have_count(1)
    expect(players).to_have_count(2)
    shown = [o for o in page.evaluate(KINDS) if o]
    assert shown == [["image/png", "text/html", "text/plain"]], shown
    shoot(page, "stopped")

    # it is resumed by another trainer, at the step where it was stopped
    page.evaluate(RUN, len(CELLS) - 1)
    expect(button("Pause")).to_be_visible()
    said = next(o["text"] for o in page.evaluate(OUTPUTS) if o["type"] == "stream"
                and o["name"] == "stdout")
    stopped = int(re.match(r"at (\d+)\n$", "".join(said))[1])
    assert stopped > step(held)
    expect(line).to_have_text(re.compile(r"^running at epoch \d+/100, step \d+/100000$"))
    rows = [json.loads(o) for o in (lab[1]/"run/history.jsonl").read_text().splitlines()]
    assert [(o["step"], bool(o["values"]["resumed"])) for o in rows
            if o["kind"] == "start"] == [(0, False), (stopped, True)]
    page.wait_for_function("s => parseInt(document.querySelector('.widget-html-content').innerText.match(/step (\\d+)/)[1]) > s", arg=stopped + 20)
    shoot(page, "resumed")
    button("Stop and save").click()
    expect(button("Pause")).to_have_count(0)
    assert not [o for o in page.evaluate(OUTPUTS) if o["type"] == "error" or o["name"] == "stderr"]
    page.evaluate("() => { window.jupyterapp.commands.execute('docmanager:save') }")
    page.wait_for_timeout(1000)
    # what is saved is a picture, not a widget that will be dead
    assert "widget-view" not in (lab[1]/"watch.ipynb").read_text()


KINDS = """() => [...window.jupyterapp.shell.currentWidget.content.model.cells].filter(c => c.type == 'code')
    .flatMap(c => c.outputs.toJSON().filter(o => o.output_type == 'display_data').map(o => Object.keys(o.data).sort()))"""
