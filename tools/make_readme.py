"""Write README.md from nbs/index.ipynb: `python tools/make_readme.py`, or with `--check` exit 1 if it would change.

The same road as the docs (nbdev's processing, then pandoc), so the front page of the site and the README say the same.
Pictures come from `nbs/images/`; links to notebooks lead to the notebooks themselves.
"""
import argparse, difflib, json, sys, tempfile
from pathlib import Path
from urllib.parse import urlsplit

from preview_docs import DROP, ROOT, DocsError, pandoc, process, to_page, walk


def relink(node):
    "Links and pictures as seen from the top of the repository; links nbdev made from names in backticks become plain names"
    # players, which a README cannot play
    if node["t"] == "Div" and "site-only" in node["c"][0][1]: return DROP
    if node["t"] not in ("Link", "Image"): return node
    url = urlsplit(node["c"][2][0])
    if url.scheme or url.netloc or not url.path: return node
    if url.path.startswith("/"):  # a path from the root of a site that has no address yet
        return {"t": "Span", "c": [["", [], []], node["c"][1]]}
    if not (ROOT/"nbs"/url.path).is_file(): raise DocsError(f"index.ipynb: {url.path} does not exist in nbs/")
    node["c"][2][0] = "nbs/" + url.path + (f"#{url.fragment}" if url.fragment else "")
    return node


def readme():
    "The text of README.md"
    with tempfile.TemporaryDirectory() as tmp: page, files = to_page(process(Path(tmp), file_glob="index.ipynb"), "index.ipynb", "markdown-implicit_figures")
    if files: raise DocsError(f"index.ipynb: pictures of the README belong in nbs/images/, but a cell stores {sorted(files)}")
    page.tree["blocks"] = walk(page.tree["blocks"], relink)
    body = pandoc(["-f", "json", "-t", "gfm", "--wrap=preserve"], json.dumps(page.tree),
                  page.source)
    return f"# {page.title}\n\n{page.subtitle}\n\n{body}"


def main():
    parser = argparse.ArgumentParser(description="Write README.md from nbs/index.ipynb.")
    parser.add_argument("--check", action="store_true", help="change nothing; show the difference and exit 1 if there is one")
    check = parser.parse_args().check
    try: new = readme()
    except DocsError as e:
        print(f"broken: {e}", file=sys.stderr)
        return 1
    path = ROOT/"README.md"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if not check: path.write_text(new, encoding="utf-8")
    elif new != old:
        sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), "README.md", "from nbs/index.ipynb"))
        return 1
    return 0


if __name__ == "__main__": sys.exit(main())
