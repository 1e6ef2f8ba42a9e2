"What the tests of the writer share."
from pathlib import Path

import pytest

both = pytest.mark.parametrize("background", [True, False])
PATIENCE = 60  # s, for a busy machine


def names(folder): return sorted(p.stem for p in Path(folder).glob("*.safetensors"))


def contents(folder): return {p.name: p.read_bytes() for p in Path(folder).iterdir()}
