"The rules of the house, counted; tools/house.py says what each of them counts."
import subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"tools"))
import house  # noqa: E402


@pytest.fixture(scope="module")
def found():
    return house.findings()


def broken(found, *rules):
    return "\n".join(str(finding) for finding in found if finding.rule in rules)


def test_no_class_is_a_slice_of_another(found):
    assert not broken(found, "slice", "depth")


def test_state_is_named_and_small(found):
    assert not broken(found, "attributes", "targets")


def test_functions_are_short(found):
    assert not broken(found, "function")


def test_lines_are_short(found):
    assert not broken(found, "wide")


def test_proof_stands_beside_the_claim(found):
    assert not broken(found, "unseen", "cells")


def test_what_two_modules_need_is_public(found):
    assert not broken(found, "private")


def test_order_is_import_order(found):
    assert not broken(found, "order", "numbers")


def test_faces_are_what_their_modules_say():
    done = subprocess.run([sys.executable, ROOT/"tools/make_faces.py", "--check"], text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
