"Batches by cost: every item once, none over its limit, equally many for each process."
import logging

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from loader_items import Items, check_nothing_is_left, indices, plain

from audiolab.data import Budget, DataError, DealtPlan, Loader, arranged_deal, count_hands
from audiolab.files import pack_state, unpack_state


@pytest.fixture(autouse=True)
def nothing_is_left(): yield from check_nothing_is_left()


COSTS = st.lists(st.integers(1, 500), min_size=1, max_size=80)


def plan_of(costs, budget, size, drop_last):
    "The plan, or None if the dearest item does not fit"
    costs = np.array(costs, np.float64)
    try: return budget.plan(costs, size, drop_last, str)
    except DataError as problem:
        assert "do not fit" in str(problem) and costs.max() > budget.limit/budget.multiple
        return None


@given(COSTS, st.integers(1, 4), st.integers(100, 3000), st.booleans(), st.booleans(),
       st.sampled_from([None, 4, 12]))
@settings(max_examples=150)
def test_any_costs(costs, multiple, limit, drop_last, shuffle, size):
    "Each item at most once, all but an odd rest; each hand within its part of the limit"
    plan = plan_of(costs, Budget(limit, multiple=multiple), size and size*multiple, drop_last)
    assume(plan is not None)
    costs, odd = np.array(costs), len(costs) % multiple
    for epoch in (0, 1):
        batches = plan.batches(7, epoch, shuffle)
        flat = np.concatenate([np.empty(0, int), *batches]).tolist()
        assert len(batches) == plan.count and len(set(flat)) == len(flat)
        assert len(flat) == len(costs) - (odd if drop_last else 0)
        for batch in batches[:plan.full]:
            assert len(batch) % multiple == 0 and (size is None or len(batch) <= size*multiple)
            hands = [costs[batch[hand::multiple]].sum() for hand in range(multiple)]
            assert max(hands) <= limit/multiple
        rest = batches[plan.full:]
        assert [len(batch) for batch in rest] == [odd]*(odd > 0 and not drop_last)


@given(COSTS, st.integers(1, 3), st.integers(500, 3000), st.booleans())
@settings(max_examples=60)
def test_padded_costs(costs, multiple, limit, drop_last):
    plan = plan_of(costs, Budget(limit, padded=True, bands=4, multiple=multiple), None, drop_last)
    assume(plan is not None)
    costs = np.array(costs)
    for epoch in (0, 1):
        batches = plan.batches(7, epoch, True)
        flat = np.concatenate([np.empty(0, int), *batches]).tolist()
        assert len(batches) == plan.count and len(set(flat)) == len(flat)
        assert drop_last or len(flat) == len(costs)
        assert all(len(batch)*costs[batch].max() <= limit for batch in batches)


@given(COSTS, st.integers(500, 5000), st.integers(1, 3))
@settings(max_examples=60)
def test_hands_that_stay_within_the_limit_and_leave_something_to_chance(costs, limit, step):
    costs = np.sort(costs[:len(costs)//step*step])[::-1]
    assume(len(costs))
    hands = count_hands(costs, limit, step)
    assert hands % step == 0 and hands <= len(costs) and hands*limit >= costs.sum()
    assert arranged_deal(costs, hands)[1].max() <= max(.99*limit, costs[0])


@pytest.mark.parametrize("limit, used", [(8000, .95), (16_000, .97), (32_000, .98)])
def test_nearly_full(limit, used):
    "Clips of speech in tokens, dealt: the batches are full, and all cost nearly the same"
    costs = np.random.default_rng(0).gamma(4, 75, 20_000).round() + 34
    plan = DealtPlan(costs, limit, 1, None, drop_last=True)
    sums = np.array([costs[batch].sum() for batch in plan.batches(0, 0, True)])
    assert sums.max() <= limit and sums.mean() > used*limit and np.ptp(sums) < .05*limit


def test_company_changes():
    "Who is in a batch with whom is drawn anew in each epoch, at both ends of the costs"
    costs = np.arange(1, 401, dtype=float)
    plan = DealtPlan(costs, 4000, 1, None, drop_last=True)
    for item in (0, 399):
        met = [next(set(batch) for batch in plan.batches(0, epoch, True) if item in batch)
               for epoch in range(6)]
        assert len(set.intersection(*met)) < 3


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_processes_and_resuming(world, padded):
    "The global batches do not depend on the processes; from any batch on the rest is the same"
    budget, data = Budget(400, padded=padded, multiple=4), Items(61)
    whole = indices(Loader(data, None, bucket=budget))
    ranks = [indices(Loader(data, None, bucket=budget, rank=r, world=world)) for r in range(world)]
    for number, batch in enumerate(whole):
        for rank, batches in enumerate(ranks):
            share = batches[number]
            assert share == batch[rank::world]
            cost = sum(map(data.length, share))
            if padded: cost = len(share)*max(map(data.length, share))
            assert cost <= 400/world
    assert {len(batches) for batches in ranks} == {len(whole)}
    loader = Loader(data, None, bucket=budget, world=world)
    for start in range(len(whole) + 1): assert indices(loader, 0, start) == ranks[0][start:]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_rest_of_an_epoch_after_any_batch(workers):
    "With any number of workers, and the same account of what could not be read"
    def make(workers=0):
        data = Items(50, unreadable=[3, 30])
        return Loader(data, None, bucket=Budget(300), num_workers=workers, max_unreadable=.5)

    whole = make()
    batches = [plain(batch) for batch in whole.batches(2)]
    for stop in range(1, len(batches), 1 if not workers else 3):
        first, second = make(workers), make(workers)
        iteration = first.batches(2)
        head = [plain(next(iteration)) for _ in range(stop)]
        second.load_state_dict(unpack_state(*pack_state(first.state_dict())))
        first.close()
        assert head + [plain(batch) for batch in second.batches(2, stop)] == batches
        assert second.state_dict() == whole.state_dict()
        second.close()


def test_repeats_fill_the_last_batch():
    "Without drop_last each process has equally many items of the odd rest too, and they are marked"
    loaders = [Loader(Items(10), None, bucket=Budget(300, multiple=4), rank=rank, world=4,
                      drop_last=False) for rank in range(4)]
    ranks = [list(loader.batches(0)) for loader in loaders]
    assert len({tuple(len(batch["id"]) for batch in rank) for rank in ranks}) == 1
    once = [i for rank in ranks for batch in rank
            for i, again in zip(batch["index"].tolist(), batch["repeat"].tolist()) if not again]
    assert sorted(once) == list(range(10))


def test_another_limit_is_noticed(caplog):
    state = Loader(Items(40), None, bucket=Budget(300)).state_dict()
    with caplog.at_level(logging.WARNING):
        Loader(Items(40), None, bucket=Budget(500)).load_state_dict(state)
    assert "budget was 300 and is 500 now: from here on the batches are others" in caplog.text


def test_what_cannot_be():
    with pytest.raises(DataError,
                       match=r"file6.wav: 1 items that cost 70 do not fit into a batch of 60"):
        Loader(Items(20), None, bucket=Budget(60))
    for cost in (lambda index: 0, lambda index: float("nan"), lambda index: -index):
        with pytest.raises(DataError, match="give a cost above 0"):
            Loader(Items(20), None, bucket=Budget(60, cost))
    with pytest.raises(DataError, match="out of range"): Loader(Items(20), None, bucket=Budget(0))
    with pytest.raises(DataError, match="Budget.multiple=. to a multiple of 2"):
        Loader(Items(20), None, bucket=Budget(200), world=2)


# --- batches that are filled

def heavy_tailed(items, seed=0):
    "Costs of clips of 1 to 30 s"
    rng = np.random.default_rng(seed)
    seconds = np.clip(rng.lognormal(np.log(4.8), .55, items), 1, 30)
    return np.round(34 + seconds*(25 + rng.normal(12, 2, items).clip(6, 20))).astype(float)


@pytest.mark.parametrize("limit", [4096, 8192, 32768])
@pytest.mark.parametrize("items, multiple", [(1000, 1), (1000, 4), (6000, 2)])
def test_filled_batches_are_full_within_the_limit_and_hold_no_item_twice(items, multiple, limit):
    costs = heavy_tailed(items)
    plan = plan_of(costs, Budget(limit*multiple, multiple=multiple, full=.97), None, True)
    for epoch in (0, 1):
        batches = plan.batches(3, epoch, True)
        hands = [batch[rank::multiple] for batch in batches for rank in range(multiple)]
        tokens = np.array([costs[hand[hand >= 0]].sum() for hand in hands])
        taken = np.concatenate(batches)
        assert len(batches) == plan.count and tokens.max() <= limit
        assert tokens.mean() >= .97*limit
        assert len(set(taken[taken >= 0])) == (taken >= 0).sum() == items - plan.odd


def test_what_is_left_out_comes_in_turn_and_epochs_differ():
    costs = heavy_tailed(300)
    plan = plan_of(costs, Budget(8192, full=.97), None, True)
    epochs = [plan.batches(0, epoch, True) for epoch in range(40)]
    counts = np.bincount(np.concatenate([np.concatenate(batches) for batches in epochs]))
    assert plan.odd and counts.min() >= 40*(1 - 1.5*plan.odd/300) - 1
    partners = [{(a, b) for batch in batches for a in batch for b in batch}
                for batches in epochs[:2]]
    assert len(partners[0] & partners[1]) < .3*len(partners[0])
    assert all(map(np.array_equal, epochs[5], plan.batches(0, 5, True)))


def test_filled_batches_reach_all_processes_through_the_loader():
    class Costly(Items):
        def length(self, index): return 40 + index % 200

    loaders = [Loader(Costly(900), None, bucket=Budget(2*2048, multiple=2, full=.97), rank=rank,
                      world=2) for rank in range(2)]
    shares = [[batch["index"].tolist() for batch in loader.batches(0)] for loader in loaders]
    assert len(shares[0]) == len(shares[1]) == len(loaders[0])
    taken = [index for share in shares for batch in share for index in batch]
    assert len(taken) == len(set(taken)) and min(taken) >= 0
    sums = [sum(40 + index % 200 for index in batch) for share in shares for batch in share]
    assert .97*2048 <= np.mean(sums) and max(sums) <= 2048
    assert [len(batch) for batch in shares[0]] != [len(batch) for batch in shares[1]]


@given(COSTS, st.integers(1, 4), st.integers(500, 3000), st.booleans())
@settings(max_examples=100)
def test_any_costs_are_filled(costs, multiple, limit, shuffle):
    plan = plan_of(costs, Budget(limit*multiple, multiple=multiple, full=.97), None, True)
    costs = np.array(costs)
    assert (plan.count == 0) == (len(costs) < multiple)
    for epoch in (0, 1):
        batches = plan.batches(7, epoch, shuffle)
        hands = [batch[rank::multiple] for batch in batches for rank in range(multiple)]
        hands = [hand[hand >= 0] for hand in hands]
        flat = np.concatenate([np.empty(0, int), *hands]).tolist()
        assert len(batches) == plan.count and len(flat) == len(set(flat)) == len(costs) - plan.odd
        assert all(len(hand) and costs[hand].sum() <= limit for hand in hands)


@pytest.mark.parametrize("more", [dict(full=1.), dict(full=0)])
def test_a_share_that_cannot_be_reached_is_refused(more):
    def plan(drop_last, **more): Budget(3, **more).plan(np.ones(9), None, drop_last, str)
    with pytest.raises(DataError, match="up to 0.99"): plan(True, **more)
    with pytest.raises(DataError, match="drop_last"): plan(False, full=.9)
