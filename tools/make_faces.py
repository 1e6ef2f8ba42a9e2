"""Write each room's face: `python tools/make_faces.py`, or with `--check` exit 1 if a face would change.

A face is the `__init__` of a room's package. It hands on every public name of the room's modules, each loaded when it is
first used, so that `from audiolab.training import Trainer` works and `import audiolab.training` loads nothing.
"""
import argparse, ast, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class FaceError(Exception):
    "Two things of a room have one name; the message says which."


def public_names(module):
    "What a module lists in its `__all__`, in that order"
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def face(room):
    "The text of a room's `__init__`: its own docstring, and the names of its modules"
    modules = {p.stem: public_names(p) for p in sorted(room.glob("*.py")) if p.stem[0] != "_"}
    homes = {}
    for module, names in modules.items():
        for name in names:
            if name in modules: raise FaceError(f"{room.name}: {name} is a module, and a name in {module}")
            if name in homes: raise FaceError(f"{room.name}: {name} is in {homes[name]} and in {module}")
            homes[name] = module
    text = (room/"__init__.py").read_text(encoding="utf-8") if (room/"__init__.py").is_file() else ""
    doc = ast.get_docstring(ast.parse(text)) or f"The room `{room.name}`."
    table = "".join(entry(module, names) for module, names in modules.items() if names)
    return f'"{doc}"\nimport lazy_loader\n\n__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={{\n{table}}})\n'


def entry(module, names):
    "One module of the table, its names in lines of at most 100 characters"
    lines, line = [], f'    "{module}": ['
    for name in sorted(names):
        if len(line) + len(name) + 4 > 98:
            lines.append(line.rstrip())
            line = "        "
        line += f'"{name}", '
    return "\n".join([*lines, line.removesuffix(", ") + "],\n"])


def main():
    parser = argparse.ArgumentParser(description="Write the face of each room from the names of its modules.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a face is not what its modules say")
    check, stale = parser.parse_args().check, []
    try:
        faces = {room: face(room) for room in sorted(p for p in (ROOT/"audiolab").iterdir()
                                                     if p.is_dir() and p.name[0] != "_")}
    except FaceError as e:
        print(f"broken: {e}", file=sys.stderr)
        return 1
    for room, text in faces.items():
        path = room/"__init__.py"
        if path.is_file() and path.read_text(encoding="utf-8") == text: continue
        stale.append(room.name)
        if not check: path.write_text(text, encoding="utf-8")
    if check and stale: print("not what the modules say: " + ", ".join(stale), file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__": sys.exit(main())
