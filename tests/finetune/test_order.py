"""The order of examples and how they are packed: permutations, resumable at any number, within the bound."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.finetune import DataOrder, pack, share


@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_an_epoch_is_a_permutation_and_the_next_another(examples, seed):
    order = DataOrder(examples, seed)
    first, epochs = order.take(0, 2 * examples)
    assert sorted(first[:examples]) == sorted(first[examples:]) == list(range(examples))
    assert epochs.tolist() == [0] * examples + [1] * examples
    if examples > 50:
        assert (first[:examples] != first[examples:]).mean() > 0.8


@given(st.integers(1, 500), st.lists(st.integers(1, 90), min_size=1, max_size=12))
def test_taken_in_pieces_it_is_the_same(examples, pieces):
    order = DataOrder(examples, 7)
    whole, _ = order.take(0, sum(pieces))
    starts = np.cumsum([0, *pieces[:-1]])
    parts = [order.take(int(start), count)[0] for start, count in zip(starts, pieces, strict=True)]
    assert np.concatenate(parts).tolist() == whole.tolist()


def test_seeds_differ_and_no_place_is_favoured():
    one, two = DataOrder(1000, 1).take(0, 1000)[0], DataOrder(1000, 2).take(0, 1000)[0]
    assert (one != two).mean() > 0.99
    firsts = np.array([DataOrder(10, seed).take(0, 1)[0][0] for seed in range(5000)])
    counts = np.bincount(firsts, minlength=10)
    assert ((counts - 500) ** 2 / 500).sum() < 27.9, "chi squared, 9 degrees of freedom, p = 0.001"
    neighbours = np.abs(np.diff(DataOrder(100_000, 0).take(0, 100_000)[0]))
    assert abs(neighbours.mean() - 100_000 / 3) < 500


def test_a_web_of_examples_takes_no_memory():
    assert DataOrder(10**12, 0).take(10**11, 3)[0].max() < 10**12


def test_unshuffled_it_is_the_order_they_are_in():
    assert DataOrder(3, 0, shuffle=False).take(1, 4)[0].tolist() == [1, 2, 0, 1]


@given(st.lists(st.integers(1, 100), max_size=80), st.integers(100, 300))
def test_every_example_has_a_row_and_no_row_is_too_full(lengths, capacity):
    rows = pack(lengths, capacity)
    assert sorted(at for row in rows for at in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[at] for at in row) <= capacity for row in rows)
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // capacity) + 6 / 9 + sum(lengths) / capacity * 0.25 + 1


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_first_fit_longest_first(lengths):
    rooms, rows = [], []
    for at in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        row = next((number for number, room in enumerate(rooms) if room >= lengths[at]), len(rooms))
        if row == len(rooms):
            rooms.append(20)
            rows.append([])
        rooms[row] -= lengths[at]
        rows[row].append(at)
    assert pack(lengths, 20) == rows


def test_what_fits_nowhere_is_told():
    with pytest.raises(ValueError, match="of 9 tokens in rows of 8"):
        pack([3, 9], 8)


@given(st.integers(0, 30), st.integers(1, 5))
def test_workers_get_as_many_rows(count, workers):
    rows = [[at] for at in range(count)]
    shared = share(rows, workers)
    assert len({len(each) for each in shared}) == 1
    assert sorted(row[0] for each in shared for row in each if row) == list(range(count))
