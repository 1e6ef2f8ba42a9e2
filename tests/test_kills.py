"""Runs killed with kill -9 at random instants end as if nothing had happened, and end.

The campaign:  AUDIOLAB_KILLS=300 pytest -n 0 -s -m slow tests/test_kills.py
with AUDIOLAB_KILLS_SEED=1 other instants, with AUDIOLAB_KILLS_OF=ssgs,pushed these kinds only.
"""
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from kill_chains import AIMS, KINDS, Chain, Whole
from snac_runs import make_corpus

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"),
                                reason="optional: needs a system with fork and SIGKILL")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory): return make_corpus(tmp_path_factory.mktemp("corpus")/"sound")


class Kills:
    "Of one kind of training: an unbroken run, chains of kills, and what they found"

    def __init__(self, name, folder, sounds, seed=0):
        self.name, self.folder, self.sounds, self.seed = name, folder, sounds, seed
        self.whole, self.done, self.failed, self.chains = None, Counter(), [], 0

    def chain(self, most):
        "One more run, killed at most so often"
        if not self.whole: self.whole = Whole(self.name, self.folder/"whole", self.sounds)
        self.chains += 1
        place = self.folder/f"chain{self.chains}"
        place.mkdir()
        rng = np.random.default_rng([self.seed, self.chains])
        chain = Chain(self.name, place/"run", self.sounds, self.whole, rng)
        try: chain.run(most)
        except Exception as error:
            problem = f"{place} after {chain.kills}: {type(error).__name__}: {error}"
            self.failed.append(problem)
            print(problem, flush=True)
        else: shutil.rmtree(place)
        self.done.update(aim for aim, _, _ in chain.kills)

    def row(self):
        counts = "".join(f"{self.done[aim.__name__]:14}" for aim in AIMS)
        return f"{self.name:24}{self.chains:8}{self.done.total():8}{counts}{len(self.failed):8}"


@pytest.mark.parametrize("name, kills", [("two optimizers", 2), ("voice", 2), ("tts", 1)])
def test_killed_runs_end_as_if_nothing_had_happened(name, kills, sounds, tmp_path):
    campaign = Kills(name, tmp_path/"runs", sounds)
    while campaign.done.total() < kills and campaign.chains < 4:
        campaign.chain(kills - campaign.done.total())
    assert not campaign.failed and campaign.done.total() == kills


@pytest.mark.slow
@pytest.mark.timeout(12*3600)
def test_a_campaign_of_kills(sounds, tmp_path):
    "300 kills, or as many as AUDIOLAB_KILLS says, over all kinds in turn; a table of what was done"
    wanted, seed = (int(os.environ.get(f"AUDIOLAB_KILLS{word}", usual))
                    for word, usual in (("", 300), ("_SEED", 0)))
    words = os.environ.get("AUDIOLAB_KILLS_OF", "").split(",")  # parts of names of kinds
    kinds = [Kills(name, tmp_path/name, sounds, seed) for name in KINDS
             if any(word in name for word in words)]
    def kills(): return sum(kind.done.total() for kind in kinds)
    def problems(): return sum((kind.failed for kind in kinds), [])
    try:
        while (left := wanted - kills()) > 0 and len(problems()) < 10:
            next_one = min(kinds, key=lambda kind: (kind.done.total() + kind.chains / 4)
                           / KINDS[kind.name].share)
            next_one.chain(min(left, 4))
            print(f"{kills()} of {wanted} kills: {next_one.name}", flush=True)
    finally:
        print(f"\n{'':24}{'chains':>8}{'kills':>8}" +
              "".join(f"{aim.__name__:>14}" for aim in AIMS) + f"{'failed':>8}")
        for kind in kinds: print(kind.row(), flush=True)
    assert not problems() and kills() >= wanted
