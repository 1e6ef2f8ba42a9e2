"The docs build, break loudly when something in them is broken, and show well in a browser."
import json, re, shutil, subprocess, sys, tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def preview(out, root=ROOT):
    return subprocess.run([sys.executable, root/"tools/preview_docs.py", out], text=True, capture_output=True, timeout=600)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("docs")/"site"
    r = preview(out)
    assert r.returncode == 0, f"{r.stdout}\n{r.stderr}"
    return out


def pages(site): return sorted(site.rglob("*.html"))


def test_every_notebook_has_a_page(site):
    notebooks = [p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    assert len(pages(site)) == len(notebooks) > 1
    index = (site/"index.html").read_text(encoding="utf-8")
    for p in pages(site): assert f'href="{p.relative_to(site).as_posix()}"' in index


def test_source_links_follow_the_setting(site):
    "While no repository is named in pyproject.toml there are no links to the source, and none that begin at a server's root"
    urls = tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    for p in pages(site):
        links = re.findall(r'href="([^"]*)"', p.read_text(encoding="utf-8"))
        assert not [u for u in links if u.startswith("/") or "/blob/" in u and not u.startswith(urls.get("Repository", "no repository"))]


def text(source): return dict(cell_type="markdown", metadata={}, source=source)
def code(source, *outputs): return dict(cell_type="code", metadata={}, source=source, outputs=list(outputs), execution_count=None)
def output(**data): return dict(output_type="display_data", metadata={}, data=data)


def a_small_project(top, cell):
    "The tools, and docs of one page that ends with the given cell"
    for f in ("pyproject.toml", "settings.ini", "_quarto.yml"): shutil.copy(ROOT/f, top)
    shutil.copytree(ROOT/"tools", top/"tools", ignore=shutil.ignore_patterns("__pycache__"))
    (top/"audiolab").mkdir()
    (top/"audiolab/__init__.py").write_text('__version__ = "0"\n')
    (top/"nbs").mkdir()
    shutil.copy(ROOT/"_quarto.yml", top/"nbs")
    shutil.copy(ROOT/"nbs/styles.css", top/"nbs")
    (top/"nbs/sidebar.yml").write_text("website: {sidebar: {contents: [{section: Start, contents: [index.ipynb]}]}}\n")
    cells = [text("# Title\n> subtitle"), code("#| default_exp one"), code('#| export\ndef one():\n    "The number 1."\n    return 1'), cell]
    meta = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))
    nb = dict(cells=[dict(c, id=f"c{i}") for i, c in enumerate(cells)], metadata=meta, nbformat=4, nbformat_minor=5)
    (top/"nbs/index.ipynb").write_text(json.dumps(nb))


@pytest.mark.parametrize("cell, complaint", [
    (text("All is well: $x^2$, [here](index.ipynb#title-of-it)\n\n## Title of it"), None),
    (text("[there](nowhere.ipynb)"), "nowhere.ipynb does not exist"),
    (text("![a picture](images/none.png)"), "images/none.png does not exist"),
    (text("[a place](#nowhere)\n\n## Somewhere"), "no such anchor"),
    (text("[away](/elsewhere.html)"), "points outside the site"),
    (text("[^1]\n\n[^2]: a note nobody calls, and a call without a note"), "pandoc"),
    (code("1/0", dict(output_type="error", ename="ZeroDivisionError", evalue="division by zero", traceback=[])), "stored error output: ZeroDivisionError"),
    (code("w", output(**{"application/vnd.jupyter.widget-view+json": dict(model_id="a"), "text/plain": "W()"})), "stored widget view"),
    (code("h", output(**{"text/html": '<audio src="lost.wav"></audio>'})), "lost.wav does not exist"),
    (code("import math\nmath.pi"), "imports belong in cells of their own: | index.ipynb"),
    (code("#| export\nimport a_module_that_is_not_there"), "a_module_that_is_not_there"),
], ids=["good", "page", "picture", "anchor", "outside", "footnote", "error", "widget", "sound", "mixed", "import"])
def test_broken_docs_are_found(tmp_path, cell, complaint):
    (tmp_path/"p").mkdir()
    a_small_project(tmp_path/"p", cell)
    r = preview(tmp_path/"site", tmp_path/"p")
    assert r.returncode == (complaint is not None), r.stdout + r.stderr
    if complaint is None: assert "<math" in (tmp_path/"site/index.html").read_text(encoding="utf-8")
    else:
        for part in complaint.split(": | "): assert part in r.stderr


def test_a_page_outside_the_sidebar_is_found(tmp_path):
    (tmp_path/"p").mkdir()
    a_small_project(tmp_path/"p", text("fine"))
    shutil.copy(tmp_path/"p/nbs/index.ipynb", tmp_path/"p/nbs/00_other.ipynb")
    r = preview(tmp_path/"site", tmp_path/"p")
    assert r.returncode == 1 and "does not list 00_other.ipynb" in r.stderr


CHECK_PAGE = """async () => {
  const media = [...document.querySelectorAll('audio')];
  await Promise.all(media.map(a => new Promise(done => { a.preload = 'metadata'; a.onloadedmetadata = a.onerror = done; a.load(); setTimeout(done, 5000) })));
  const root = document.documentElement;
  return {
    wide: root.scrollWidth - root.clientWidth,
    pictures: [...document.images].filter(i => !i.naturalWidth).map(i => i.src.slice(0, 80)),
    silent: media.filter(a => !(a.duration > 0)).length,
  } }"""


def test_pages_in_a_browser(site, browser_path):
    "No page scrolls sideways, all pictures show, all players have something to play, no script fails"
    sync_api = pytest.importorskip("playwright.sync_api")
    wrong = []
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        tab = browser.new_page(viewport=dict(width=1300, height=900))
        tab.on("pageerror", lambda e: wrong.append(str(e)))
        for page in pages(site):
            tab.goto(page.as_uri())
            found = tab.evaluate(CHECK_PAGE)
            if found != dict(wide=0, pictures=[], silent=0): wrong.append(f"{page.relative_to(site)}: {found}")
        browser.close()
    assert not wrong, "\n".join(wrong)
