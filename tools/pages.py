"""What the pages of the docs say of the code, for nbdev (`renderer` and `doc_procs` in pyproject.toml).

`Entry` shows a name as `show_doc` does, from the installed package, and below a class every public method and every field
or setting with its type, default and comment. `Gallery` and `Names` fill two pages from all the others.
"""
import ast, inspect, io, json, re, sys, textwrap, tokenize, typing
from importlib import import_module
from pathlib import Path

from fastcore.docments import MarkdownRenderer
from fastcore.nbio import mk_cell
from nbdev.process import Processor
from nbdev.processors import exec_show_docs

MODULE = re.compile(r"^#\s*\|\s*default_exp\s+(\S+)", re.M)
LONG_NAMES = re.compile(r"\b(?:audiolab|typing|pathlib|collections|fastcore|numpy|torch\.nn)\.(?:\w+\.)*(?=[A-Z])")
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "a multiple of"}


# --- the thing itself: notebooks run again while the docs are built,
# but only the package knows its own source

def notebook_in_hand():
    "The notebook that nbdev is processing just now, in a thread that waits for its cells; None elsewhere, as in JupyterLab"
    for frame in sys._current_frames().values():
        while frame is not None:
            if isinstance(found := frame.f_locals.get("self"), exec_show_docs):
                return Path(found.nb.path_)
            frame = frame.f_back
    return None


def module_name(notebook):
    "The module a notebook makes; None for a story"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    found = MODULE.search("\n".join("".join(c["source"]) for c in cells
                                    if c["cell_type"] == "code"))
    return f"audiolab.{found[1]}" if found else None


def installed(sym, name):
    "What the package has under the name that a notebook shows; `sym` where it has nothing"
    notebook = notebook_in_hand()
    if notebook is None or (module := module_name(notebook)) is None: return sym
    try:
        found = import_module(module)
        for part in name.split("."): found = getattr(found, part)
        return found
    except (ImportError, AttributeError): return sym


def class_tree(cls):
    "The syntax tree of a class and its lines; (None, []) where there is no source"
    try: source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError): return None, []
    tree = ast.parse(source).body[0]
    return (tree, source.splitlines()) if isinstance(tree, ast.ClassDef) else (None, [])


def comments(lines):
    "The comment of each line that has one, {line number: text}"
    tokens = tokenize.generate_tokens(io.StringIO("\n".join(lines) + "\n").readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}


# --- fields

def type_text(hint):
    "A type for people: `int ≥ 0`, `a, b or c`, `float or None`"
    if typing.get_origin(hint) is typing.Annotated:
        base, *limits = typing.get_args(hint)
        return " ".join([type_text(base), *filter(None, map(limit_text, limits))])
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if hint is type(None): return "None"
    if getattr(hint, "__args__", None) and "|" in str(hint):
        return " or ".join(map(type_text, hint.__args__))
    return (hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__")
            else str(hint).replace("typing.", ""))


def limit_text(limit):
    "A limit of annotated_types: `≥ 0 ≤ 1`"
    named = {k: getattr(limit, k, None) for k in SIGNS}
    return " ".join(f"{SIGNS[k]} {v:g}" for k, v in named.items() if isinstance(v, (int, float)))


def field_rows(cls):
    "Public fields that a class states in its body: (name, type, default, comment)"
    tree, lines = class_tree(cls)
    if tree is None: return []
    said = comments(lines)
    try: hints = typing.get_type_hints(cls, include_extras=True)
    except Exception: hints = {}
    rows = []
    for node in tree.body:
        if not isinstance(node, ast.AnnAssign) or node.target.id[0] == "_": continue
        name = node.target.id
        kind = type_text(hints[name]) if name in hints else ast.unparse(node.annotation)
        about = next((said[n] for n in range(node.lineno, node.end_lineno + 1) if n in said), "")
        rows.append((name, kind, default_text(node.value), about))
    return rows


def default_text(node):
    "A default as a reader writes it: what `field(default_factory=X)` makes, not how"
    if node is None: return ""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "field":
        given = {k.arg: k.value for k in node.keywords}
        if "default" in given: return ast.unparse(given["default"])
        if "default_factory" not in given: return ""
        made = given["default_factory"]
        return ast.unparse(made.body) if isinstance(made, ast.Lambda) else f"{ast.unparse(made)}()"
    return ast.unparse(node)


def escape(text):
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def code(text): return f"`{text}`".replace("|", "\\|") if text else ""


def field_table(cls, rows):
    "The fields of a class as a table, each with an anchor of its own"
    anchor = cls.__name__.lower()
    lines = [f'| <code id="{anchor}.{name}">{name}</code> | {code(kind)} | {code(default)} | {escape(about)} |'
             for name, kind, default, about in rows]
    title = "setting" if cls.__name__.endswith(("Config", "Settings")) else "field"
    return "\n".join([f"| {title} | type | default | meaning |", "|---|---|---|---|", *lines])


# --- methods

def public_methods(cls):
    "Names of the public methods and properties that stand in the body of a class"
    tree, _ = class_tree(cls)
    found = ((n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
             if tree else ())
    return list(dict.fromkeys(name for name in found if name[0] != "_"))


def method_entry(cls, name, level):
    "The entry of one method: heading, signature, what it does"
    member = inspect.getattr_static(cls, name)
    if isinstance(member, (classmethod, staticmethod)): member = member.__func__
    heading = f"{'#'*level} {cls.__name__}.{name}"
    if hasattr(member, "fget") or not callable(member): return f"{heading}\n\n{property_text(member)}"
    return f"{heading}\n\n{signature_text(member, name)}"


def signature_text(function, name):
    "How a function is called, and what it does; types go by their own names"
    return LONG_NAMES.sub("", MarkdownRenderer(function, name=name)._repr_markdown_())


def property_text(member):
    getter = getattr(member, "fget", None) or getattr(member, "func", member)
    kind = getattr(getter, "__annotations__", {}).get("return", "")
    kind = kind if isinstance(kind, str) else type_text(kind)
    about = inspect.getdoc(getter) or ""
    return f"*A property{f' ({kind})' if kind else ''}.* {about}"


class Entry:
    "An entry of the docs: a function, or a class with all it offers."

    def __init__(self, sym, name=None, title_level=3):
        owner = sym.fget if isinstance(sym, property) else sym
        self.nm = name or getattr(owner, "__qualname__", getattr(owner, "__name__", ""))
        self.found, self.title_level = installed(sym, self.nm), title_level

    def _repr_markdown_(self):
        return f"---\n\n{'#'*self.title_level} {self.nm}\n\n{self._text()}"

    def _text(self):
        if isinstance(self.found, property): return property_text(self.found)
        if not inspect.isclass(self.found): return signature_text(self.found, self.nm)
        return class_text(self.found, self.title_level + 1)


def made_by(cls):
    "How an object of a class is made"
    try: call = str(MarkdownRenderer(cls).dm)
    except NameError: call = f"def {cls.__name__}(...)"  # types that only a checker knows
    return re.sub(r"^(async )?def ", "class ", LONG_NAMES.sub("", call))


def class_text(cls, level):
    "A class: how it is made, what it is, its fields, its methods"
    rows, about = field_rows(cls), inspect.getdoc(cls)
    made = f"class {cls.__name__}" if rows else made_by(cls)
    parts = [f"```python\n{made}\n```", f"*{about}*" if about else "",
             field_table(cls, rows) if rows else ""]
    methods = (method_entry(cls, name, level) for name in public_methods(cls))
    return "\n\n".join([*filter(None, parts), *methods])


# --- pages made of the others

def chapters(nbs):
    "Every other notebook in the order of the sidebar: (path from the docs' root, cells)"
    import yaml
    sidebar = yaml.safe_load((nbs/"sidebar.yml").read_text(encoding="utf-8"))
    contents = sidebar["website"]["sidebar"]["contents"]
    for room in contents:
        for path in room["contents"]:
            if "/" in path: yield path, json.loads((nbs/path).read_text(encoding="utf-8"))["cells"]


def title_of(cells):
    first = next(cell for cell in cells if cell["cell_type"] == "markdown")
    return "".join(first["source"]).splitlines()[0].lstrip("# ")


def shows(output):
    "Whether an output is a picture or a player"
    data = output.get("data", {})
    return any(k.startswith("image/") for k in data) or "<audio" in "".join(data.get("text/html", ""))


def shown_outputs(cells):
    "Pictures and players of a notebook, each with the heading it stands under"
    heading = ""
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = next((line.lstrip("# ") for line in reversed(source.splitlines())
                            if line.startswith("#")), heading)
        for output in cell.get("outputs", []):
            if shows(output) and "#| hide" not in source: yield heading, output


class Gallery(Processor):
    "Fills gallery.ipynb with every picture and player of the chapters."

    def begin(self):
        if Path(self.nb.path_).name != "gallery.ipynb": return
        for path, cells in chapters(Path(self.nb.path_).parent):
            found = list(shown_outputs(cells))
            if found: self.nb.cells.append(mk_cell(f"## [{title_of(cells)}]({path})", "markdown"))
            last = None
            for heading, output in found:
                if heading != last: self.nb.cells.append(mk_cell(f"**{heading}**", "markdown"))
                last = heading
                cell = mk_cell("#| echo: false", "code")
                cell.outputs = [output]
                self.nb.cells.append(cell)


class Names(Processor):
    "Fills names.ipynb with every public name, what it is in a line, and where its entry stands."

    def begin(self):
        if Path(self.nb.path_).name != "names.ipynb": return
        nbs = Path(self.nb.path_).parent
        for path, cells in chapters(nbs):
            if (module := module_name(nbs/path)) is None: continue
            rows = [name_row(path, module, name) for name in entries(cells)]
            table = "\n".join(["| name | what it is |", "|---|---|", *rows])
            if rows: self.nb.cells.append(mk_cell(f"## [{title_of(cells)}]({path}) `{module}`\n\n{table}", "markdown"))


def entries(cells):
    "Names that the page of a notebook has entries for: public functions and classes of exported cells"
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or not re.search(r"^#\s*\|\s*exports?\b", source, re.M):
            continue
        for node in ast.parse(source).body:
            if (isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"
                and not is_patch(node)):
                yield node.name


def is_patch(node): return any("patch" in ast.unparse(d) for d in node.decorator_list)


def name_row(path, module, name):
    found = getattr(import_module(module), name, None)
    about = (inspect.getdoc(found) or "").split("\n")[0]
    return f"| [`{name}`]({path}#{name.lower()}) | {escape(about)} |"
