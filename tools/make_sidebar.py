"""Write nbs/sidebar.yml from the folders: `python tools/make_sidebar.py`. Rooms in the order of layers, chapters by number."""
import sys

from house import LAYERS, ROOT

TITLES = {"files": "Files", "config": "Settings", "audio": "Sound", "measure": "Measures",
          "remote": "Other machines",
          "data": "Data", "training": "Training", "watch": "Watching", "vocoder": "Vocoder",
          "ssgs": "SSGS", "snac": "SNAC",
          "voice": "Voice", "tts": "TTS", "apps": "Apps", "tutorials": "Tutorials"}
START = "index", "tasks", "gallery", "names"


def main():
    rooms = [("Start", [f"{name}.ipynb" for name in START])]
    for room in ("tutorials", *(r for r in LAYERS if r != "tutorials")):
        paths = sorted((ROOT/"nbs"/room).glob("*.ipynb"), key=lambda p: (p.stem != "ssgs", p.name)
                       if room == "tutorials" else p.name)
        rooms.append((TITLES[room], [f"{room}/{p.name}" for p in paths]))
    lines = ["# The rooms of the house, in reading order: written by tools/make_sidebar.py.", "website:", "  sidebar:", "    contents:"]
    for title, paths in rooms:
        lines += [f"      - section: {title}", "        contents:",
                  *(f"          - {path}" for path in paths)]
    (ROOT/"nbs/sidebar.yml").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__": sys.exit(main())
