"What the package needs is in settings.ini; the rest of its metadata is in pyproject.toml."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

ini = ConfigParser(delimiters=["="])
ini.read(Path(__file__).parent/"settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]


def lines(key): return [o for o in cfg.get(key, "").split("\n")[1:] if o.strip() and not o.lstrip().startswith("#")]


extras = {k.removesuffix("_requirements"): lines(k) for k in cfg if k.endswith("_requirements")}
setup(install_requires=lines("requirements"), extras_require=extras)
