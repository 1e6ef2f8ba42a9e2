"""Count the rules of the house: `python tools/house.py [ROOM ...]` lists what breaks them, and the figures of the package.

The rules are those of the chapter on style: small ideas with their proof beside them, classes that are whole, state that is
named. They are counted on the notebooks and on the modules made from them; ruff counts spelling. (It
cannot leave strings out, nor the `__all__` that nbdev writes, so the width of lines is counted here.)
"""
import argparse, ast, io, json, re, statistics, sys, tokenize
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("files", "config", "audio", "measure", "remote", "data", "training", "watch",
          "vocoder", "ssgs", "snac", "voice", "tts", "apps", "tutorials")
# systems do not know of each other, but for the vocoder; what speaks text may use all of them
SIDE_BY_SIDE = "vocoder", "ssgs", "snac", "voice"
UNSEEN_LINES, MEDIAN_CELL, FUNCTION_LINES, SHORT_METHOD = 40, 15, 40, 15
ATTRIBUTES, DEPTH, TARGETS, LINE = 10, 3, 3, 100
OTHERS = "tests", "tools", "benchmarks"  # folders of plain modules
EXPORT = re.compile(r"^#\s*\|\s*exports?\b", re.M)
HIDDEN = re.compile(r"^#\s*\|\s*hide\b", re.M)


@dataclass(frozen=True)
class Finding:
    "One place where a rule is broken."
    rule: str
    where: str  # file, and line or name
    what: str

    def __str__(self): return f"{self.rule}: {self.where}: {self.what}"


def modules(rooms=LAYERS):
    "The modules of rooms, as {path: syntax tree}"
    paths = (p for room in rooms for p in sorted((ROOT/"audiolab"/room).glob("*.py")) if p.name != "__init__.py")
    return {p: ast.parse(p.read_text(encoding="utf-8")) for p in paths}


def notebooks(rooms=LAYERS):
    "The notebooks of rooms in reading order, as {path: code cells, each a string}"
    paths = (p for room in rooms for p in sorted((ROOT/"nbs"/room).glob("*.ipynb")))
    return {p: code_cells(p) for p in paths}


def code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def short(path): return path.relative_to(ROOT).as_posix()


def parse_cell(source):
    "A cell as a tree; lines for the shell are left out"
    lines = ("" if line.lstrip()[:1] in ("%", "!") else line for line in source.splitlines())
    return ast.parse("\n".join(lines))


def is_import(tree):
    "Whether a cell only makes ready: imports, and perhaps a logger after them"
    first = tree.body and isinstance(tree.body[0], (ast.Import, ast.ImportFrom))
    defined = any(isinstance(n, (ast.FunctionDef, ast.ClassDef)) for n in tree.body)
    return not tree.body or first and not defined


def code_lines(source):
    return sum(bool(line.strip()) and not line.startswith("#|") for line in source.splitlines())


def length(node): return node.end_lineno - min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) + 1


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def body_length(function): return function.end_lineno - function.body[0].lineno + 1


def is_short_class(tree):
    "Whether a cell is one class, all of whose methods are short: it has no largest size"
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.ClassDef): return False
    return all(body_length(f) <= SHORT_METHOD for f in functions(tree))


# --- classes

def base_name(node):
    while isinstance(node, ast.Subscript): node = node.value
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


class Classes:
    "Every class of the package, found by (module, name), with its bases followed through imports"
    def __init__(self):
        self.trees = modules()
        self.found, self.children = {}, defaultdict(list)
        for path, tree in self.trees.items():
            for node in tree.body:
                if isinstance(node, ast.ClassDef): self.found[path, node.name] = node
        self.imported = {path: self._imports(path, tree) for path, tree in self.trees.items()}
        for (path, name), node in self.found.items():
            for base in node.bases:
                if home := self.resolve(path, base_name(base)):
                    self.children[home].append((path, name))

    def _imports(self, path, tree):
        names = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names: names[alias.asname or alias.name] = alias.name
        return names

    def resolve(self, path, name):
        "The class of ours that `name` means in a module; None if it is not ours"
        if (path, name) in self.found: return path, name
        if (original := self.imported[path].get(name)) is None: return None
        homes = [key for key in self.found if key[1] == original]
        return homes[0] if homes else None

    def depth(self, key):
        "Own classes in the longest line from a class to its last base, itself included"
        path, node = key[0], self.found[key]
        bases = [home for base in node.bases if (home := self.resolve(path, base_name(base)))]
        return 1 + sum(self.depth(home) for home in bases)


def is_settings(node):
    "Whether a class is a form to fill in, whose fields are settings and not state"
    return node.name.endswith(("Config", "Settings")) or node.name == "Config"


def attributes(node):
    "Names of the data attributes of a class: its fields, and what its methods set on `self`"
    fields = (n.target for n in node.body if isinstance(n, ast.AnnAssign))
    names = {field.id for field in fields if isinstance(field, ast.Name)}
    return names | {n.attr for n in ast.walk(node) if is_set_on_self(n)}


def is_set_on_self(node):
    if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store): return False
    return getattr(node.value, "id", "") == "self"


def class_findings(rooms):
    classes = Classes()
    for (path, name), node in classes.found.items():
        if path.parent.name not in rooms: continue
        where = f"{short(path)}:{node.lineno}"
        if name[0] == "_" and len(classes.children[path, name]) == 1:
            yield Finding("slice", where, f"{name} has one child, {classes.children[path, name][0][1]}")
        if (depth := classes.depth((path, name))) > DEPTH: yield Finding("depth", where, f"{name} stands on {depth} own classes")
        if not is_settings(node) and len(names := attributes(node)) > ATTRIBUTES:
            yield Finding("attributes", where, f"{name} has {len(names)}: {', '.join(sorted(names))}")


# --- functions, assignments, imports

def targets(node):
    "How many targets an assignment has"
    if not isinstance(node, ast.Assign): return 0
    return max(len(node.targets),
               *(len(t.elts) if isinstance(t, ast.Tuple) else 1 for t in node.targets))


def module_findings(rooms):
    for path, tree in modules(rooms).items():
        for node in ast.walk(tree):
            where = f"{short(path)}:{getattr(node, 'lineno', 0)}"
            is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            if is_function and length(node) > FUNCTION_LINES:
                yield Finding("function", where, f"{node.name} has {length(node)} lines")
            if (count := targets(node)) > TARGETS: yield Finding("targets", where, f"{count} targets in an assignment")
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("audiolab")):
                if private := [a.name for a in node.names if a.name[0] == "_"]:
                    yield Finding("private", where, f"imports {', '.join(private)} of {node.module}")


# --- lines

def strings(text):
    "Where strings stand in a source: (first line, column, last line, column), f-strings with all they hold"
    begun = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        name = tokenize.tok_name[token.type]
        if name == "STRING": yield *token.start, *token.end
        elif name in ("FSTRING_START", "TSTRING_START"): begun.append(token.start)
        elif name in ("FSTRING_END", "TSTRING_END"): yield *begun.pop(), *token.end


def wide_lines(path):
    "Numbers of the lines that are too long; one that a string or an address carries over the edge is not"
    text = path.read_text(encoding="utf-8")
    wide = {n for n, line in enumerate(text.splitlines(), 1) if len(line) > LINE and "://" not in line}
    if not wide: return []
    for node in ast.parse(text).body:  # what nbdev writes by itself
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            wide -= set(range(node.lineno, node.end_lineno + 1))
    for first, begin, last, end in strings(text):
        for n in range(first, last + 1):
            if (n > first or begin < LINE) and (n < last or end >= LINE): wide.discard(n)
    return sorted(wide)


def line_findings(rooms):
    others = sorted(p for folder in OTHERS for p in (ROOT/folder).glob("*.py"))
    for path in [*modules(rooms), *others]:
        for n in wide_lines(path): yield Finding("wide", f"{short(path)}:{n}", f"more than {LINE} characters")


# --- notebooks

def number(path): return int(found[0]) if (found := re.match(r"\d+", path.name)) else -1


def is_visible_call(source, tree):
    "Whether a reader sees something happen in a cell"
    if EXPORT.search(source) or HIDDEN.search(source): return False
    return any(isinstance(n, ast.Call) for n in ast.walk(tree))


def unseen(cells):
    "Runs of exported lines without a visible call between them: [(lines, first line of the run)]"
    runs, lines, first = [], 0, ""
    for source in cells:
        tree = parse_cell(source)
        if EXPORT.search(source):
            if is_import(tree): continue
            if not lines:
                first = next(line for line in source.splitlines() if line and not line.startswith("#"))
            count = code_lines(source)
            lines += min(count, UNSEEN_LINES) if is_short_class(tree) else count
        elif is_visible_call(source, tree) and lines:
            runs.append((lines, first))
            lines = 0
    return [*runs, (lines, first)] if lines else runs


def cell_lengths(cells):
    "Lines of each exported cell that defines something"
    return [code_lines(s) for s in cells if EXPORT.search(s) and not is_import(parse_cell(s))]


def notebook_findings(rooms):
    for path, cells in notebooks(rooms).items():
        for lines, first in unseen(cells):
            if lines > UNSEEN_LINES: yield Finding("unseen", short(path), f"{lines} exported lines before a call, from {first[:60]!r}")
        middle = statistics.median(cell_lengths(cells) or [0])
        if middle > MEDIAN_CELL:
            yield Finding("cells", short(path), f"the median exported cell has {middle:g} lines")
    for room in rooms:
        if room == "tutorials": continue
        paths = sorted((ROOT/"nbs"/room).glob("*.ipynb"))
        if (numbers := [number(p) for p in paths]) != list(range(len(paths))):
            yield Finding("numbers", f"nbs/{room}", f"chapters are numbered {numbers}")


def imported_modules(source):
    "Parts of audiolab that a cell imports, at any depth: 'ssgs.hmm', or 'files' for a face"
    for node in ast.walk(parse_cell(source)):
        if isinstance(node, ast.Import):
            yield from (a.name[9:] for a in node.names if a.name.startswith("audiolab."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("audiolab."):
            yield node.module[9:]


def why_misplaced(room, place, target, homes):
    "Why a notebook of a room, at a place in it, may not import a part of audiolab; None if it may"
    other = target.partition(".")[0]
    if target.startswith("_"): return None
    if room == "tutorials": return None if other in LAYERS else "there is no such room"
    if other not in LAYERS: return "there is no such room"
    if other == room: return None if homes.get(target, place) < place else "it does not come before, or is the room's own face"
    if LAYERS.index(other) > LAYERS.index(room): return f"{other} is a later layer"
    if {room, other} <= set(SIDE_BY_SIDE) and other != "vocoder": return f"{other} is a system beside it"
    return None


def import_findings(rooms):
    everywhere = notebooks()
    homes = {}
    for path, cells in everywhere.items():
        if found := re.search(r"^#\s*\|\s*default_exp\s+(\S+)", "\n".join(cells), re.M):
            homes[found[1]] = number(path)
    for path, cells in everywhere.items():
        if (room := path.parent.name) not in rooms: continue
        for target in sorted({t for source in cells for t in imported_modules(source)}):
            if why := why_misplaced(room, number(path), target, homes):
                yield Finding("order", short(path), f"imports audiolab.{target}: {why}")


def findings(rooms=LAYERS):
    "All places where rooms break the rules that are counted here"
    parts = class_findings, module_findings, line_findings, notebook_findings, import_findings
    return [finding for part in parts for finding in part(rooms)]


# --- figures

def percentile(values, share): return sorted(values)[min(len(values) - 1, int(share*len(values)))]


def figures():
    "The table of the house: sizes, depths and distances, as {name: text}"
    classes, trees = Classes(), modules()
    texts = [p.read_text(encoding="utf-8").splitlines() for p in trees]
    texts = [[line for line in text if line.strip()] for text in texts]
    lines = [line for text in texts for line in text]
    sizes = [len(text) for text in texts]
    all_functions = [f for t in trees.values() for f in functions(t)]
    statements = [sum(isinstance(n, ast.stmt) for n in ast.walk(f)) - 1 for f in all_functions]
    cells = [n for cells in notebooks().values() for n in cell_lengths(cells)]
    runs = [n for cells in notebooks().values() for n, _ in unseen(cells)]
    def wide(limit): return sum(len(line) > limit for line in lines)
    slices = sum(len(v) == 1 and k[1][0] == "_" for k, v in classes.children.items())
    held = [len(attributes(n)) for n in classes.found.values() if not is_settings(n)]
    tests = [len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT/"tests").glob("test_*.py")]
    return {
        "modules": f"{len(sizes)}, {statistics.median(sizes):g} lines in the middle, {max(sizes)} at most, {sum(sizes)} in all",
        "lines over 100, over 120": f"{wide(100)}, {wide(120)} ({wide(120)/len(lines):.1%})",
        "lines over 100 that no string carries": f"{sum(len(wide_lines(p)) for p in trees)}",
        "own classes in a line of bases": f"{max(map(classes.depth, classes.found))} at most; private classes with one child: {slices}",
        "data attributes of a class": f"{max(held)} at most; {sum(n > ATTRIBUTES for n in held)} classes over {ATTRIBUTES}",
        "statements of a function": f"{percentile(statements, .9)} at 90 %, {max(statements)} at most",
        "lines of an exported cell": f"{statistics.median(cells):g} in the middle of {len(cells)}; {sum(n <= 10 for n in cells)/len(cells):.0%} at most 10",
        "exported lines before a call": f"{statistics.median(runs):g} in the middle, {percentile(runs, .9)} at 90 %, {max(runs)} at most",
        "test files": f"{len(tests)}, {statistics.median(tests):g} lines in the middle, {max(tests)} at most",
    }


def main():
    parser = argparse.ArgumentParser(description="List what breaks the rules of the house, and its figures.")
    parser.add_argument("rooms", nargs="*", default=LAYERS, metavar="ROOM", help="folders of nbs/; all where none is given")
    parser.add_argument("--figures", action="store_true", help="only the figures")
    args = parser.parse_args()
    found = [] if args.figures else findings(args.rooms)
    for finding in found: print(finding)
    for name, text in figures().items(): print(f"{name}: {text}")
    return bool(found)


if __name__ == "__main__": sys.exit(main())
