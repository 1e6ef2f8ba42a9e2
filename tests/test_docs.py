"The docs build, break loudly when something in them is broken, and show well in a browser."
import ast, json, re, shutil, subprocess, sys, tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def preview(out, root=ROOT):
    return subprocess.run([sys.executable, root/"tools/preview_docs.py", out], text=True,
                          capture_output=True, timeout=600)


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
    urls = tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))[
        "project"].get("urls", {})
    for p in pages(site):
        links = re.findall(r'href="([^"]*)"', p.read_text(encoding="utf-8"))
        assert not [u for u in links if u.startswith("/") or "/blob/" in u
                    and not u.startswith(urls.get("Repository", "no repository"))]


# --- what the site must show, counted against the code and not by what makes the pages

EXPORT = re.compile(r"^#\s*\|\s*exports?\b", re.M)


def chapters():
    "Each notebook that makes a module: (path, [(kind, source), ...])"
    for path in sorted((ROOT/"nbs").glob("*/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        cells = [(c["cell_type"], "".join(c["source"])) for c in cells]
        if any("default_exp" in source for kind, source in cells if kind == "code"):
            yield path, cells


def exported(cells):
    return [source for kind, source in cells if kind == "code" and EXPORT.search(source)]


def is_public(node):
    return (isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            and node.name[0] != "_")


def patched_class(node):
    "The class that an `@patch` function becomes a method of, or None"
    if not any("patch" in ast.unparse(d) for d in getattr(node, "decorator_list", [])): return None
    return ast.unparse(node.args.args[0].annotation)


def wanted(tree):
    "Headings and anchors that the entry of each public thing of a cell must have"
    for node in filter(is_public, tree.body):
        owner = patched_class(node)
        yield "heading", f"{owner}.{node.name}" if owner else node.name
        if not isinstance(node, ast.ClassDef): continue
        for part in node.body:
            if is_public(part): yield "heading", f"{node.name}.{part.name}"
            elif isinstance(part, ast.AnnAssign) and part.target.id[0] != "_":
                yield "anchor", f"{node.name.lower()}.{part.target.id}"


def page_of(site, path):
    "The page of a notebook: nbdev drops the number in front of its name"
    return site/path.parent.name/(re.sub(r"^\d+[a-z]?_", "", path.stem) + ".html")


def test_every_method_and_setting_has_an_entry(site):
    "Every public function, class, method, field and setting stands on the page of its chapter"
    missing, count = [], {"heading": 0, "anchor": 0}
    for path, cells in chapters():
        page = page_of(site, path).read_text(encoding="utf-8")
        headings = {re.sub(r"<[^>]+>", "", h)
                    for h in re.findall(r"<h[3-5][^>]*>(.*?)</h[3-5]>", page, re.S)}
        anchors = set(re.findall(r'<code id="([^"]+)"', page))
        for source in exported(cells):
            for kind, name in wanted(ast.parse(source)):
                count[kind] += 1
                if name not in (headings if kind == "heading" else anchors): missing.append(f"{path.name}: {name}")
    assert not missing, "\n".join(missing)
    assert count["heading"] > 800 and count["anchor"] > 220, count


def sections(cells):
    "The parts of a chapter, each from one H2 to the next: (title, exported sources)"
    title, found = "", []
    for kind, source in cells:
        if kind == "markdown" and (heading := re.search(r"^## (.+)$", source, re.M)):
            yield title, found
            title, found = heading[1], []
        elif kind == "code" and EXPORT.search(source): found.append(source)
    yield title, found


def shows_something(sources):
    "Whether a section's code is seen: a public name has an entry, `#| exports` shows the source; imports need not be"
    trees = [(source, ast.parse(source).body) for source in sources]
    made = [(source, node) for source, body in trees for node in body
            if not isinstance(body[0], (ast.Import, ast.ImportFrom))]
    return not made or any(is_public(node) or re.search(r"^#\s*\|\s*exports\b", source, re.M)
                           for source, node in made)


def test_no_section_exports_and_shows_nothing():
    hollow = [f"{path.name}: {title}" for path, cells in chapters() for title,
              found in sections(cells)
              if not shows_something(found)]
    assert not hollow, "\n".join(hollow)


def test_the_front_page_plays_and_leads(site):
    page = (site/"index.html").read_text(encoding="utf-8")
    assert page.count("<audio") == 7
    for door in ("gallery.html", "tutorials/ssgs.html", "tasks.html", "names.html"): assert f'href="{door}' in page
    gallery = (site/"gallery.html").read_text(encoding="utf-8")
    assert gallery.count("<audio") > 20 and gallery.count("<img") + gallery.count("<svg") > 60
    names = (site/"names.html").read_text(encoding="utf-8")
    # parts are headed by the titles of chapters
    assert "default_exp" not in gallery + names and "Functions of the step" in names


def text(source): return dict(cell_type="markdown", metadata={}, source=source)
def code(source, *outputs):
    return dict(cell_type="code", metadata={}, source=source, outputs=list(outputs),
                execution_count=None)
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
    nb = dict(cells=[dict(c, id=f"c{i}") for i, c in enumerate(cells)], metadata=meta, nbformat=4,
              nbformat_minor=5)
    (top/"nbs/index.ipynb").write_text(json.dumps(nb))


@pytest.mark.parametrize("cell, complaint", [
    (text("All is well: $x^2$, [here](index.ipynb#title-of-it)\n\n## Title of it"), None),
    (text("[there](nowhere.ipynb)"), "nowhere.ipynb does not exist"),
    (text("![a picture](images/none.png)"), "images/none.png does not exist"),
    (text("[a place](#nowhere)\n\n## Somewhere"), "no such anchor"),
    (text("[away](/elsewhere.html)"), "points outside the site"),
    (text("[^1]\n\n[^2]: a note nobody calls, and a call without a note"), "pandoc"),
    (code("1/0", dict(output_type="error", ename="ZeroDivisionError", evalue="division by zero",
                      traceback=[])), "stored error output: ZeroDivisionError"),
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


def test_search_and_turning_in_a_browser(site, browser_path):
    "A word leads to the entry that has it; each page leads to the next"
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        tab = browser.new_page(viewport=dict(width=1300, height=900))
        tab.goto((site/"index.html").as_uri())
        tab.fill("#find", "TrainingConfig")
        tab.click("#found a >> nth=0")
        assert tab.url.endswith("#trainingconfig") and "TrainingConfig" in tab.inner_text("main")
        first = tab.url
        tab.click(".turn a >> nth=-1")
        assert tab.url != first and tab.inner_text("h1")
        # the start, and the room of the page
        assert tab.locator("nav.rooms details[open]").count() == 2
        browser.close()
