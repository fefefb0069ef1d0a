from __future__ import annotations

import hashlib
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.datasets.split import stratified_split


def _keys(count: int) -> list[str]:
    return [str(index) for index in range(count)]


@settings(max_examples=60, deadline=None)
@given(
    targets=st.lists(st.integers(0, 6), min_size=1, max_size=120),
    seed=st.integers(-3, 1_000_000),
)
def test_every_index_once_and_a_fifth_of_every_class(targets: list[int], seed: int) -> None:
    train, test = stratified_split(_keys(len(targets)), targets, seed=seed)
    assert sorted(train + test) == list(range(len(targets)))
    sizes, held_back = Counter(targets), Counter(targets[index] for index in test)
    for target, size in sizes.items():
        assert size // 5 <= held_back[target] <= min(-(-size // 5), size - 1)
    if min(sizes.values()) > 1:
        assert len(test) == -(-len(targets) // 5)


def test_the_split_is_the_same_for_ever() -> None:
    targets = [index % 7 for index in range(200)]
    _, test = stratified_split(_keys(200), targets, seed=3)
    digest = hashlib.sha256(",".join(map(str, test)).encode()).hexdigest()
    assert digest == "e4f50a4237c7acf8c26f607ddce2032e351f12e593424bd6f0c27672e9246058"


def test_seeds_differ() -> None:
    targets = [0] * 100
    splits = {tuple(stratified_split(_keys(100), targets, seed=seed)[1]) for seed in range(5)}
    assert len(splits) == 5


def test_a_sample_that_is_added_moves_no_other_across() -> None:
    keys = _keys(100)
    before = {keys[i] for i in stratified_split(keys, [0] * 100, seed=0)[1]}
    keys = ["new", *keys]
    after = {keys[i] for i in stratified_split(keys, [0] * 101, seed=0)[1]}
    assert before < after
