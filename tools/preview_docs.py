"""Build every page of the docs as plain HTML and fail on anything broken: `python tools/preview_docs.py OUT`.

Quarto builds the site. Where Quarto is not installed this checks the content: nbdev's own processing of the notebooks,
then pandoc (from a wheel) with a small template. It exits 1 when a notebook stores an error, a page of the sidebar is
missing, a link, anchor, picture or sound does not resolve, or pandoc warns. It writes to OUT only: the work is done on
a copy, so the checkout stays as it was.
"""
import argparse, base64, gc, html, inspect, json, os, re, shutil, subprocess, sys, tempfile
import warnings
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
IMAGE_TYPES = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg"}

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$pagetitle$</title>
<style>
$highlighting-css$
</style>
<style>
body { font: 16px/1.55 system-ui, sans-serif; color: #24292f; margin: 0; display: grid; gap: 2rem;
  grid-template-columns: 13rem minmax(0, 52rem) 13rem; justify-content: center; padding: 0 1rem; }
nav { font-size: 85%; position: sticky; top: 0; align-self: start; max-height: 100vh; overflow-y: auto; padding: 1.2rem 0; }
nav ul { list-style: none; padding-left: .7rem; margin: .2rem 0 .9rem; } nav > ul { padding-left: 0; }
nav summary { font-weight: 600; cursor: pointer; } nav details { margin-bottom: .5rem; }
#find { width: 100%; box-sizing: border-box; margin-bottom: .8rem; padding: .3rem .5rem; } #found { padding-left: 0; }
.turn { display: flex; justify-content: space-between; gap: 2rem; margin-top: 3rem; border-top: 1px solid #d8dee4; padding-top: .8rem; } nav a { color: #57606a; text-decoration: none; } nav a.here { color: #0b5cad; font-weight: 600; }
nav li { margin: .15rem 0; overflow-wrap: anywhere; }
main { padding: 1.2rem 0 4rem; min-width: 0; }
h1 { margin-bottom: .2rem; } .subtitle { color: #57606a; margin-top: 0; } a { color: #0b5cad; }
pre { background: #f6f8fa; padding: .6rem .8rem; overflow-x: auto; font-size: 84%; line-height: 1.4; }
code { font-size: 92%; } p code, li code, td code { overflow-wrap: anywhere; }
.output pre, pre.output { background: none; border-left: 2px solid lightsalmon; margin-left: .8rem; }
table { border-collapse: collapse; font-size: 88%; display: block; overflow-x: auto; max-width: 100%; }
td, th { border-bottom: 1px solid #d8dee4; padding: .25rem .6rem; text-align: left; vertical-align: top; }
img, svg { max-width: 100%; height: auto; } audio { max-width: 100%; display: block; margin: .3rem 0; }
div[class*="callout"] { border-left: 4px solid #0b5cad; padding: .1rem 1rem; background: #f2f7fc; }
@media (max-width: 1000px) { body { display: block; } nav { position: static; max-height: none; } nav.toc { display: none; } }
</style>
$for(css)$<link rel="stylesheet" href="$css$">$endfor$
</head>
<body>
<nav class="rooms"><input id="find" type="search" placeholder="Search" aria-label="Search the docs"><ul id="found"></ul>$rooms$</nav>
<main><h1>$pagetitle$</h1>
$if(subtitle)$<p class="subtitle">$subtitle$</p>$endif$
$body$
<div class="turn">$turn$</div>
</main>
<nav class="toc">$if(toc)$$table-of-contents$$endif$</nav>
<script src="$up$search.js"></script>
<script>
const box = document.getElementById("find"), list = document.getElementById("found");
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  const score = o => words.every(w => o.text.includes(w)) ? (o.name.toLowerCase().startsWith(words[0]) ? 2 : 1) : 0;
  const hits = words.length ? PLACES.map(o => [score(o), o]).filter(([n]) => n).sort((a, b) => b[0] - a[0]).slice(0, 20) : [];
  list.replaceChildren(...hits.map(([, o]) => {
    const item = document.createElement("li"), link = item.appendChild(document.createElement("a"));
    link.href = "$up$" + o.url; link.textContent = o.name + (o.page === o.name ? "" : " · " + o.page);
    return item;
  }));
});
</script>
</body>
</html>
"""


class DocsError(Exception):
    "Something in the docs is broken; the message says where and what."


@dataclass
class Page:
    "One notebook on its way to a page."
    source: str   # notebook, relative to the docs' root: "ssgs/12_hmm.ipynb"
    target: str   # page, relative to the site's root: "ssgs/hmm.html"
    title: str
    subtitle: str
    tree: dict    # pandoc's syntax tree
    ids: set = field(default_factory=set)   # anchors on the page


def process(work, file_glob=""):
    "Copy what the docs are made of to `work`, run nbdev's processing there, return the folder of processed notebooks"
    try: metadata.distribution("audiolab")
    except metadata.PackageNotFoundError as e:
        raise DocsError("audiolab is not installed, so its names cannot be linked: pip install -e '.[dev]'") from e
    from nbdev import config
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    config._load_toml = cache(config._load_toml)  # it is asked at every cell
    inspect.getsourcelines = cache(inspect.getsourcelines)  # and that twelve times for each class
    skip = shutil.ignore_patterns("__pycache__", ".*", "nbdev.yml")
    for d in ("nbs", "audiolab"): shutil.copytree(ROOT/d, work/d, symlinks=True, ignore=skip)
    for f in ("pyproject.toml", "settings.ini", "_quarto.yml"): shutil.copy(ROOT/f, work)
    here, failure = Path.cwd(), None
    os.chdir(work)
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            refresh_quarto_yml()
            proc = proc_nbs(n_workers=0, file_glob=file_glob)
    except Exception as e: failure = e
    finally: os.chdir(here)
    mixed = [cell_name(str(w.message), work/"nbs") for w in seen if "cells containing imports and other code" in str(w.message)]
    if mixed: raise DocsError("imports belong in cells of their own, or building the docs runs the rest of the cell too: " + "; ".join(mixed)) from failure
    if failure: raise DocsError(f"nbdev's processing failed: {failure}") from failure
    return proc


def cell_name(message, nbs):
    "The notebook and the first line of the cell that one of nbdev's warnings quotes"
    code = message.split("---\n")[1].strip()
    names = [p.relative_to(nbs).as_posix() for p in sorted(nbs.rglob("*.ipynb"))
             if any(code in join(c["source"]) for c in json.loads(p.read_text(encoding="utf-8"))["cells"])]
    return f"{' or '.join(names)}: {code.splitlines()[0]}"


def pandoc(args, text, what):
    "Run pandoc on `text`; a warning is an error that names `what`"
    import pypandoc
    r = subprocess.run([pypandoc.get_pandoc_path(), "--fail-if-warnings", *args], input=text,
                       capture_output=True, text=True, encoding="utf-8")
    if r.returncode: raise DocsError(f"{what}: pandoc: {r.stderr.strip()}")
    return r.stdout


def join(s): return s if isinstance(s, str) else "".join(s)


def fence(text, attrs):
    "`text` as a fenced block, with a fence longer than any run of backticks in it"
    ticks = "`"*max(3, 1 + max((len(m) for m in re.findall(r"`+", text)), default=0))
    return f"{ticks} {attrs}\n{text.rstrip(chr(10))}\n{ticks}\n"


def cell_options(code):
    "Quarto's `#| key: value` lines at the head of `code`, and the rest of it"
    lines = code.splitlines()
    n = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
    pairs = (line[2:].partition(":") for line in lines[:n])
    return {k.strip(): v.strip().strip('"') for k, _, v in pairs}, "\n".join(lines[n:]).strip("\n")


def output_markdown(out, stem, options, files):
    "One stored output as markdown; pictures are put into `files` under a name that begins with `stem`"
    if out["output_type"] == "error": raise DocsError(f"{stem}: a stored error output: {out['ename']}: {out['evalue']}")
    if out["output_type"] == "stream": return fence(join(out["text"]), f"{{.output .{out['name']}}}")
    data = out["data"]
    if "application/vnd.jupyter.widget-view+json" in data: raise DocsError(f"{stem}: a stored widget view, dead on a page; show a picture instead")
    data = {k: join(v) for k, v in data.items() if isinstance(v, (str, list))}
    if "text/html" in data: return fence(data["text/html"], "{=html}")
    if kind := next((k for k in IMAGE_TYPES if k in data), None):
        name = f"{stem}.{IMAGE_TYPES[kind]}"
        files[name] = (data[kind].encode() if kind == "image/svg+xml"
                       else base64.b64decode(data[kind]))
        return f"![{options.get('fig-cap', '')}]({name}){{fig-alt=\"{options.get('fig-alt', '')}\"}}\n"
    if "text/markdown" in data: return data["text/markdown"] + "\n"
    if "text/latex" in data: return data["text/latex"] + "\n"
    return fence(data["text/plain"], "{.output}") if "text/plain" in data else ""


def read_notebook(path, source):
    "A processed notebook as front matter, markdown and the pictures it holds by the name the markdown gives them"
    import yaml
    meta, md, files = {}, [], {}
    for i, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        text = join(cell["source"])
        if cell["cell_type"] == "raw" and text.startswith("---"):
            meta = yaml.safe_load(text.strip().strip("-"))
        elif cell["cell_type"] == "markdown": md.append(text)
        elif cell["cell_type"] == "code":
            opts, text = cell_options(text)
            if opts.get("include") == "false": continue
            if opts.get("echo") != "false" and text: md.append(fence(text, "python"))
            if opts.get("output") == "false": continue
            for j, out in enumerate(cell["outputs"]): md.append(output_markdown(out, f"{Path(source).stem}-{i}-{j}", opts, files))
    return meta, "\n\n".join(md), files


DROP = object()


def walk(node, change):
    "Rebuild a syntax tree, bottom up; `change` returns a node for each typed node, or `DROP`"
    if isinstance(node, list): return [o for o in (walk(x, change) for x in node) if o is not DROP]
    if not isinstance(node, dict): return node
    node = {k: walk(v, change) for k, v in node.items()}
    return change(node) if "t" in node else node


def visit(node, see):
    "Call `see` with each typed node of a syntax tree, in the order of the text"
    left = [node]
    while left:
        node = left.pop()
        if type(node) is list: left.extend(reversed(node))
        elif type(node) is dict:
            if "t" in node: see(node)
            left.extend(reversed(node.values()))


def anchors(tree):
    "Every id in a syntax tree"
    found = set()

    def see(node):
        c = node.get("c")
        attr = c[1] if node["t"] == "Header" else c[0] if node["t"] in ("Div", "Span", "Link", "Image", "Code", "CodeBlock", "Figure", "Table") else None
        if attr and attr[0]: found.add(attr[0])
    visit(tree["blocks"], see)
    return found


def to_page(proc, source, reader="markdown"):
    "Read one processed notebook into a `Page`, and the pictures it holds"
    meta, md, files = read_notebook(proc/source, source)
    target = (Path(source).parent/meta.get("output-file",
                                           Path(source).with_suffix(".html").name)).as_posix()
    tree = json.loads(pandoc(["-f", reader, "-t", "json"], md, source))
    files = {(Path(source).parent/k).as_posix(): v for k, v in files.items()}
    return Page(source, target, str(meta.get("title", Path(source).stem)), str(meta.get("description", "")), tree, anchors(tree)), files


# what nbdev makes of a link to the source while no repository is named
def is_source_link(url): return url.startswith("/blob/")


def relink(page, pages):
    "Point the links of `page` at pages relative to it, where nbdev left notebooks or paths from the site's root"
    by_source, by_target = {p.source: p for p in pages}, {p.target: p for p in pages}
    up = up_from(page)

    def change(node):
        if node["t"] == "Para" and not node["c"]: return DROP
        if node["t"] != "Link": return node
        url = urlsplit(node["c"][2][0])
        if url.scheme or url.netloc or not url.path: return node
        if is_source_link(url.path): return DROP
        at = (url.path[1:] if url.path[0] == "/"
              else os.path.normpath((Path(page.source).parent/unquote(url.path)).as_posix()))
        to = by_source.get(at) or by_target.get(at)
        if to is None: return node   # a file, or broken: the check of the finished pages tells
        frag = url.fragment
        if [o["t"] for o in node["c"][1]] == ["Code"] and frag not in to.ids:
            # nbdev links a method by its own anchor also where only its class has a heading
            frag = next((f for f in (frag.partition(".")[0],) if f in to.ids), "")
        node["c"][2][0] = up + to.target + (f"#{frag}" if frag else "")
        return node
    page.tree["blocks"] = walk(page.tree["blocks"], change)


def read_sidebar(proc):
    "The sidebar as [(room, [notebook, ...]), ...]; a notebook outside any section stands in a room without a name"
    import yaml
    contents = yaml.safe_load((proc/"sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    return [(o["section"], o["contents"]) if isinstance(o, dict) else ("", [o]) for o in contents]


def rooms_html(rooms, pages, here):
    "The left navigation of the page `here`: the room it stands in is open, the others are closed"
    by_source, up = {p.source: p for p in pages}, up_from(here)

    def item(source):
        mark = " class=here" if source == here.source else ""
        return f'<li><a href="{up}{by_source[source].target}"{mark}>{html.escape(by_source[source].title)}</a></li>'

    def part(room, sources):
        items = f"<ul>{''.join(map(item, sources))}</ul>"
        if not room: return items
        is_open = " open" if here.source in sources or room == rooms[0][0] else ""
        return f"<details{is_open}><summary>{html.escape(room)}</summary>{items}</details>"
    return "".join(part(room, sources) for room, sources in rooms)


def up_from(page): return "../"*page.target.count("/")


def turn_html(rooms, pages, here):
    "Links to the page before and the page after, in reading order"
    by_source = {p.source: p for p in pages}
    order = [by_source[s] for _, sources in rooms for s in sources]
    at = order.index(here) if here in order else None
    if at is None: return ""
    def link(page, text): return f'<a href="{up_from(here)}{page.target}">{text}</a>'

    before = link(order[at - 1], f"← {html.escape(order[at - 1].title)}") if at else "<span></span>"
    after = (link(order[at + 1], f"{html.escape(order[at + 1].title)} →") if at + 1 < len(order)
             else "<span></span>")
    return before + after


def plain(node):
    "The words of a piece of a syntax tree"
    if isinstance(node, list): return "".join(map(plain, node))
    if not isinstance(node, dict): return ""
    if node["t"] in ("Str", "Code"): return node["c"] if node["t"] == "Str" else node["c"][1]
    return " " if node["t"] in ("Space", "SoftBreak") else plain(node.get("c", []))


def places(page):
    "What search finds of a page: each heading, with the words of the first paragraph below it"
    found = [dict(name=page.title, page=page.title, url=page.target, text=f"{page.title} {page.subtitle}".lower())]
    for block in page.tree["blocks"]:
        if block["t"] == "Header":
            name = plain(block["c"][2]).strip()
            found.append(dict(name=name, page=page.title, url=f"{page.target}#{block['c'][1][0]}",
                              text=name.lower()))
        elif block["t"] in ("Para", "Plain") and len(found[-1]["text"]) < 400:
            found[-1]["text"] += " " + plain(block["c"]).lower()
    return found


def write_search(pages, out):
    "A script with all places, which a page can load from a disk, too"
    found = json.dumps([place for page in pages for place in places(page)], ensure_ascii=False)
    (out/"search.js").write_text(f"const PLACES = {found};\n", encoding="utf-8")


def highlight(pages, template):
    "Colour the code of all pages, and return the style sheet for it: in one go, because pandoc takes longer to load its rules than to apply them"
    blocks, cut = [], "<!-- next -->\n"

    def see(node):
        if node["t"] == "CodeBlock": blocks.append(node)
    for page in pages: visit(page.tree["blocks"], see)
    template.write_text(f"$highlighting-css$\n{cut}$body$\n", encoding="utf-8")
    tree = {"pandoc-api-version": pages[0].tree["pandoc-api-version"], "meta": {},
            "blocks": [b for node in blocks
                       for b in (dict(node), {"t": "RawBlock", "c": ["html", cut]})]}
    css, *coloured = pandoc(["-f", "json", "-t", "html5", "--standalone", f"--template={template}",
                             "-V", "pagetitle=code"], json.dumps(tree), "code").split(cut)
    for node, block in zip(blocks, coloured): node.update(t="RawBlock", c=["html", block])
    return css


def write_page(page, pages, rooms, out, template, css):
    "Write one page as HTML"
    up = up_from(page)
    args = ["-f", "json", "-t", "html5", "--standalone", "--toc", "--toc-depth=2", "--mathml", f"--template={template}", "--css", up + "styles.css",
            "-V", f"pagetitle={html.escape(page.title)}", "-V", f"subtitle={html.escape(page.subtitle)}", "-V", f"rooms={rooms_html(rooms, pages, page)}",
            "-V", f"turn={turn_html(rooms, pages, page)}", "-V", f"up={up}", "-V", f"highlighting-css={css}"]
    dest = out/page.target
    dest.parent.mkdir(parents=True, exist_ok=True)
    dest.write_text(pandoc(args, json.dumps(page.tree), page.source), encoding="utf-8")


class Links(HTMLParser):
    "The anchors of a page, and everything it refers to"
    def __init__(self, text):
        super().__init__()
        self.ids, self.refs = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for k, v in attrs:
            if k in ("id", "name") and v: self.ids.add(v)
            elif k in ("href", "src", "poster") and v: self.refs.append(v)


def broken_links(out):
    "What the finished pages refer to and cannot reach, as sentences"
    pages = {p: Links(p.read_text(encoding="utf-8")) for p in sorted(out.rglob("*.html"))}
    bad = []

    @cache  # all pages of a room have the same links in front
    def resolve(folder, path):
        to = Path(os.path.normpath(folder/unquote(path)))
        return to, to.is_relative_to(out), to.is_file()
    for page, links in pages.items():
        where = page.relative_to(out)
        for ref in links.refs:
            url = urlsplit(ref)
            if url.scheme or url.netloc: continue
            to, inside, there = resolve(page.parent, url.path) if url.path else (page, True, True)
            if url.path.startswith("/") or not inside: bad.append(f"{where}: {ref} points outside the site")
            elif not there: bad.append(f"{where}: {ref} does not exist")
            elif url.fragment and to in pages and unquote(url.fragment) not in pages[to].ids:
                bad.append(f"{where}: {ref}: no such anchor")
    return bad


def build(out):
    "Build all pages into the folder `out`; return them and what is wrong with them"
    import yaml
    problems = []
    with tempfile.TemporaryDirectory() as tmp:
        proc = process(Path(tmp))
        quarto = yaml.safe_load((proc/"_quarto.yml").read_text(encoding="utf-8"))
        wanted = [*quarto["metadata-files"], quarto["format"]["html"]["css"]]
        problems += [f"_quarto.yml: names {f}, which does not exist" for f in wanted
                     if not (proc/f).is_file()]
        rooms, found = read_sidebar(proc), {p.relative_to(proc).as_posix() for p in proc.rglob("*.ipynb")}
        listed = [s for _, sources in rooms for s in sources]
        problems += [f"sidebar.yml: lists {s}, which does not exist" for s in listed
                     if s not in found]
        problems += [f"sidebar.yml: does not list {s}" for s in sorted(found - set(listed))]
        rooms = [(room, [s for s in sources if s in found]) for room, sources in rooms]
        pages = []
        for source in sorted(found, key=lambda s: listed.index(s) if s in listed else len(listed)):
            try: page, files = to_page(proc, source)
            except DocsError as e:
                problems.append(str(e))
                continue
            pages.append(page)
            for name, data in files.items():
                (out/name).parent.mkdir(parents=True, exist_ok=True)
                (out/name).write_bytes(data)
        read = {p.source for p in pages}
        rooms = [(room, [s for s in sources if s in read]) for room, sources in rooms]
        for f in proc.rglob("*"):
            if f.is_file() and f.suffix not in (".ipynb", ".yml"):
                dest = out/f.relative_to(proc)
                dest.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(f, dest)
        template = Path(tmp)/"page.html"
        template.write_text(TEMPLATE, encoding="utf-8")
        for page in pages: relink(page, pages)
        write_search(pages, out)
        css = highlight(pages, Path(tmp)/"code.html") if pages else ""
        for page in pages:
            try: write_page(page, pages, rooms, out, template, css)
            except DocsError as e: problems.append(str(e))
    return pages, problems + broken_links(out)


def main():
    parser = argparse.ArgumentParser(description="Build the docs as plain HTML, without Quarto, and fail on anything broken.")
    parser.add_argument("out", type=Path, help="folder for the pages; made if missing, must be empty")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()): parser.error(f"{out} is not empty")
    try: pages, problems = build(out)
    except DocsError as e: pages, problems = [], [str(e)]
    for p in problems: print(f"broken: {p}", file=sys.stderr)
    print(f"{len(pages)} pages in {out}, {len(problems)} broken")
    return 1 if problems else 0


if __name__ == "__main__":
    gc.set_threshold(200_000, 50, 100)  # pages are big trees that are all kept
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # each page left a shell that would collect garbage for half a second
