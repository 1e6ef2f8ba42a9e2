"The tutorial and the dashboard as a person meets them: in JupyterLab, in a browser."
import json, os, re, shutil, socket, subprocess, sys, time, urllib.error, urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {  # no news over the buttons; every cell in the page, also those out of sight
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}
DASHBOARD = """import tempfile
from audiolab.audio import instrument_corpus
from audiolab.ssgs import Dashboard, SpectralStateGuidedSynthesis
files = instrument_corpus(tempfile.mkdtemp(), n_files=2, kinds=["strings"], seed=0)
model = SpectralStateGuidedSynthesis(8, seed=0).train(files, n_em_iterations=4)
Dashboard(model)"""

READY = """() => { const s = window.jupyterapp?.shell.currentWidget?.context?.sessionContext
    return s?.isReady && s.session?.kernel?.status === 'idle' }"""
# not awaited: the promise may never end
RUN_ALL = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }"
DONE = """() => {
  const shown = window.jupyterapp.shell.currentWidget, cells = [...shown.content.model.cells]
  const failed = c => c.outputs.toJSON().some(o => o.output_type == 'error')
  return cells.every(c => c.type != 'code' || c.executionCount || failed(c))
    && shown.context.sessionContext.session.kernel.status == 'idle' }"""
OUTPUTS = """() => {
  const cells = [...window.jupyterapp.shell.currentWidget.content.model.cells]
  return cells.filter(c => c.type == 'code').flatMap(c => c.outputs.toJSON().map(o => (
    {type: o.output_type, name: o.name ?? o.ename ?? '', text: o.text ?? o.evalue ?? ''}))) }"""
MEDIA = """async () => {
  const all = tag => [...document.querySelectorAll(`.jp-OutputArea-output ${tag}`)]
  const audio = all('audio'), pictures = all('img')
  await Promise.all(audio.map(a => new Promise(done => {
    a.onloadedmetadata = a.onerror = done; a.load(); setTimeout(done, 5000) })))
  return {players: audio.length, silent: audio.filter(a => !(a.duration > 0)).length,
          pictures: pictures.length, blank: pictures.filter(i => !i.naturalWidth).length} }"""
CONTENT = """async e => {
  const b = new Uint8Array(await (await fetch(e.src)).arrayBuffer())
  return b.reduce((s, v, i) => (s + v*(i % 8191 + 1)) % 2147483647, b.length) }"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory, browser_path):
    "A JupyterLab with settings and files in a temporary folder: (address, folder of notebooks)"
    for o in ("jupyterlab", "playwright"):
        pytest.importorskip(o, reason=f"needs {o} (pip install -e '.[dev]')")
    top = tmp_path_factory.mktemp("lab")
    (top/"cfg/labconfig").mkdir(parents=True)
    (top/"cfg/labconfig/default_setting_overrides.json").write_text(json.dumps(SETTINGS))
    notebooks = top/"notebooks"
    notebooks.mkdir()
    names = dict(JUPYTER_CONFIG_DIR="cfg", JUPYTER_DATA_DIR="data", JUPYTER_RUNTIME_DIR="run",
                 JUPYTERLAB_WORKSPACES_DIR="spaces", IPYTHONDIR="ipython")
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    env |= {k: str(top/v) for k, v in names.items()}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
               f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=t",
               "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly",
               f"--ServerApp.root_dir={notebooks}"]
    url = f"http://127.0.0.1:{port}"
    with open(top/"log", "w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        for _ in range(240):
            if server.poll() is not None: break
            try: urllib.request.urlopen(f"{url}/api?token=t", timeout=5)
            except (urllib.error.URLError, OSError): time.sleep(.25)
            else: break
        else: pytest.fail(f"JupyterLab does not answer:\n{(top/'log').read_text()}")
        assert server.poll() is None, (top/"log").read_text()
        yield url, notebooks
    finally:
        server.terminate()  # ends its kernels too
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()


@pytest.fixture
def tab(lab, browser_path):
    "A page of the browser; a script that fails on it fails the test"
    from playwright.sync_api import sync_playwright
    wrong = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=browser_path,
                                    args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport=dict(width=1200, height=1000))
        page.set_default_timeout(180_000)
        page.on("pageerror", lambda e: wrong.append(str(e)))
        yield page
        browser.close()
    assert not wrong, "\n".join(wrong)


def run_all(tab, lab, notebook):
    "Open a notebook and run all of its cells"
    tab.goto(f"{lab[0]}/doc/tree/{notebook}?reset&token=t")
    tab.wait_for_function(READY)
    # what is stored proves nothing
    tab.evaluate("() => window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    assert tab.evaluate(OUTPUTS) == []
    tab.evaluate(RUN_ALL)
    tab.wait_for_function(DONE)


def test_the_tutorial_runs(tab, lab):
    shutil.copy(ROOT/"nbs/tutorials/ssgs.ipynb", lab[1]/"tutorial.ipynb")
    run_all(tab, lab, "tutorial.ipynb")
    outputs = tab.evaluate(OUTPUTS)
    assert not [o for o in outputs if o["type"] == "error" or o["name"] == "stderr"
                and "%|" not in o["text"]]
    stored = json.loads((ROOT/"nbs/tutorials/ssgs.ipynb").read_text(encoding="utf-8"))
    kept = [o for c in stored["cells"] for o in c.get("outputs", ())]
    assert len(outputs) >= len(kept) > 10
    # a figure that shows itself only where pyplot is loaded is missing here
    drawn = sum("image/png" in o.get("data", ()) for o in kept)
    media = tab.evaluate(MEDIA)
    assert media["silent"] == media["blank"] == 0 and media["players"] >= 5 and media[
        "pictures"] == drawn > 4, media


def test_the_dashboard_plays(tab, lab):
    from playwright.sync_api import expect
    expect.set_options(timeout=60_000)
    meta = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))
    cell = dict(cell_type="code", id="panel", metadata={}, source=DASHBOARD, outputs=[],
                execution_count=None)
    (lab[1]/"panel.ipynb").write_text(json.dumps(dict(cells=[cell], metadata=meta, nbformat=4,
                                                      nbformat_minor=5)))
    run_all(tab, lab, "panel.ipynb")
    assert not [o for o in tab.evaluate(OUTPUTS) if o["type"] == "error"]
    audio, pictures = tab.locator(
        ".jp-OutputArea-output audio"), tab.locator(".jp-OutputArea-output img")
    # held, real, and the result, which is hidden until there is one
    expect(audio).to_have_count(3)
    expect(pictures).to_have_count(3)
    expect(audio.nth(2)).to_be_hidden()

    def shown(): return [o.evaluate(CONTENT) for o in (audio.nth(2), pictures.nth(2))]
    generate, status = tab.get_by_role("button",
                                       name="Generate"), tab.locator(".widget-html-content")
    generate.click()
    expect(audio.nth(2)).to_be_visible()
    expect(pictures.nth(2)).to_be_visible()
    expect(status.filter(has_text="seed 0")).to_have_count(1)
    tab.wait_for_function(
        "() => document.querySelectorAll('.jp-OutputArea-output audio')[2].duration == 5")
    first = shown()

    tab.get_by_role("spinbutton").fill("3")
    tab.get_by_role("spinbutton").press("Enter")
    generate.click()
    expect(status.filter(has_text="seed 3")).to_have_count(1)
    expect(audio).to_have_count(4)   # the one before stays on the panel
    second = shown()
    assert first[0] != second[0] and first[1] != second[1]

    about, held = status.filter(has_text="of the time"), audio.nth(0).evaluate(CONTENT)
    before = about.inner_text()
    tab.locator(".noUi-handle").first.press(
        "ArrowLeft" if before.startswith(f"state {last_state(tab)}") else "ArrowRight")
    expect(about).not_to_have_text(before)
    assert re.match(r"state \d+: [\d.]+ % of the time", about.inner_text())
    assert audio.nth(0).evaluate(CONTENT) != held


def last_state(tab): return tab.locator(".noUi-handle").first.get_attribute("aria-valuemax")
