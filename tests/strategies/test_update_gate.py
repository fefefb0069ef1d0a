"""When pushes become updates, against replicas and shards played message by message."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.strategies.update_gate import Offer, UpdateGate

Push = tuple[int, int]
"""Replica, and which of its pushes."""
BOUNDS = st.one_of(st.none(), st.integers(0, 4))


@dataclass
class Sent:
    """A push on its way, and the version that each shard answers with."""

    push: Push
    answers: dict[int, int] = field(default_factory=dict)


@dataclass
class Replica:
    """One replica as `client.py` is one: it settles, then computes, then pushes."""

    bases: dict[int, int] = field(default_factory=dict)
    """By shard: the version that it computes with."""
    due: deque[Sent] = field(default_factory=deque)
    num_pushed: int = 0
    computes: bool = False
    rests: bool = False
    """Whether it has told all shards so; it then waits for every answer."""
    gone: bool = False


class Play:
    """Replicas, shards and what is on its way between them, in any order that may be."""

    def __init__(self, bound: int | None, depth: int, num_shards: int, rng: random.Random) -> None:
        self.bound, self.rng = bound, rng
        # An answer may be on its way that has the version of the weights that are there already,
        # if its update was that of two pushes: where versions count, nobody computes meanwhile.
        self.depth = depth if bound is None else 0
        self.gates: list[UpdateGate[Push]] = [UpdateGate(bound) for _ in range(num_shards)]
        self.replicas: list[Replica] = []
        self.mail: dict[tuple[int, int], deque[tuple[str, Offer[Push] | None, bool]]] = {}
        """By replica and shard, in order: what a shard has yet to get."""
        self.arrived: list[list[Push]] = [[] for _ in self.gates]
        self.updates: list[list[tuple[Push, ...]]] = [[] for _ in self.gates]

    def join(self) -> None:
        """All shards know of a replica before it fetches."""
        number = len(self.replicas)
        self.replicas.append(Replica())
        for shard, gate in enumerate(self.gates):
            gate.join(number)
            self.mail[number, shard] = deque([("fetch", None, False)])

    def actions(self) -> list[tuple[str, int, int]]:
        """All that may happen next."""
        found = [("mail", *key) for key, mail in self.mail.items() if mail]
        for number, replica in enumerate(self.replicas):
            if replica.computes:
                found.append(("push", number, 0))
            elif replica.due and len(replica.due[0].answers) == len(self.gates):
                found.append(("settle", number, 0))
        return found

    def act(self, kind: str, number: int, shard: int) -> None:
        match kind:
            case "mail":
                self._deliver(number, shard)
            case "push":
                self._push(number)
            case "settle":
                self._settle(number)

    def rest(self, number: int) -> None:
        """It finds nothing to do, and says so before it waits for answers."""
        replica = self.replicas[number]
        replica.computes, replica.rests = False, True
        for shard in range(len(self.gates)):
            self.mail[number, shard].append(("leave", None, False))

    def come_back(self, number: int) -> None:
        self.replicas[number].rests = False
        self.replicas[number].bases.clear()
        for shard in range(len(self.gates)):
            self.mail[number, shard].append(("fetch", None, False))

    def die(self, number: int) -> None:
        """Some of what it has sent is lost, then its death is known."""
        replica = self.replicas[number]
        replica.computes, replica.gone = False, True
        replica.due.clear()
        for shard in range(len(self.gates)):
            mail = self.mail[number, shard]
            kept = self.rng.randint(0, len(mail))
            self.mail[number, shard] = deque([*list(mail)[:kept], ("leave", None, False)])

    def _push(self, number: int) -> None:
        replica = self.replicas[number]
        replica.computes = False
        push = (number, replica.num_pushed)
        replica.num_pushed += 1
        replica.due.append(Sent(push))
        # Does it compute once more before it takes over newer weights?
        goes_on = len(replica.due) <= self.depth
        for shard, base in replica.bases.items():
            offer = Offer(replica=number, base=base, content=push)
            self.mail[number, shard].append(("push", offer, goes_on))
        self._settle(number)

    def _settle(self, number: int) -> None:
        replica = self.replicas[number]
        depth = 0 if replica.rests else self.depth
        while replica.due and len(replica.due[0].answers) == len(self.gates):
            if len(replica.due) <= depth and self.rng.random() < 0.3:
                break  # they come a moment later
            replica.bases |= replica.due.popleft().answers
        if len(replica.due) <= depth and not replica.rests:
            replica.computes = True

    def _deliver(self, number: int, shard: int) -> None:
        gate, replica = self.gates[shard], self.replicas[number]
        kind, offer, goes_on = self.mail[number, shard].popleft()
        if kind == "leave":
            gate.leave(number)
        elif kind == "fetch":
            replica.bases[shard] = gate.fetched(number)
            replica.computes = len(replica.bases) == len(self.gates) and not replica.gone
        else:
            assert offer is not None
            self.arrived[shard].append(offer.content)
            gate.offer(offer, [offer.base] if goes_on else [])
        while taken := gate.next_update():
            self.updates[shard].append(tuple(offer.content for offer in taken))
            for offer in taken:
                behind = gate.version - 1 - offer.base
                assert self.bound is None or behind <= self.bound, f"{behind} behind"
                version = gate.hand_out(offer.replica)
                for sent in self.replicas[offer.replica].due:
                    if sent.push == offer.content:
                        sent.answers[shard] = version


def play(
    bound: int | None,
    depth: int,
    num_shards: int,
    num_replicas: int,
    seed: int,
    *,
    changes: bool,
    num_pushes: int = 25,
) -> Play:
    """Play to the end: everybody rests, and has been answered.

    Raises:
        AssertionError: a push is too far behind, or nothing can go on.
    """
    rng = random.Random(seed)
    found = Play(bound, depth, num_shards, rng)
    for _ in range(num_replicas):
        found.join()
    speeds = [rng.choice([1, 1, 3, 9]) for _ in range(30)]
    while True:
        here = [n for n, r in enumerate(found.replicas) if not r.gone]
        pushes = sum(replica.num_pushed for replica in found.replicas)
        if pushes >= num_pushes:
            for number in here:
                if found.replicas[number].computes:
                    found.rest(number)
            if all(r.gone or (r.rests and not r.due) for r in found.replicas) and not any(
                found.mail.values()
            ):
                return found
        elif changes and rng.random() < 0.1:
            number = rng.choice(here) if here else -1
            change = rng.choice(["join", "die", "rest", "back"])
            if change == "join" or not here:
                if len(found.replicas) < 8:
                    found.join()
            elif change == "die" and len(here) > 1:
                found.die(number)
            elif change == "rest" and found.replicas[number].computes:
                found.rest(number)
            elif change == "back" and _has_rested(found, number):
                found.come_back(number)
        actions = found.actions()
        if not actions:
            resting = [n for n in here if _has_rested(found, n)]
            assert resting or not here, "nobody computes, and no push that waits can be applied"
            if pushes < num_pushes and resting:
                found.come_back(resting[0])
                continue
            assert all(found.replicas[n].rests for n in here), "those who wait, wait for ever"
        weights = [speeds[number] for _, number, _ in actions]
        found.act(*rng.choices(actions, weights)[0])


def _has_rested(found: Play, number: int) -> bool:
    replica = found.replicas[number]
    mail = [found.mail[number, shard] for shard in range(len(found.gates))]
    return replica.rests and not replica.due and not any(mail)


CASES = given(
    bound=BOUNDS,
    depth=st.integers(0, 2),
    num_shards=st.integers(1, 2),
    num_replicas=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)


@settings(deadline=None, max_examples=300)
@CASES
def test_no_push_is_further_behind_than_allowed_and_none_waits_for_ever(
    bound: int | None, depth: int, num_shards: int, num_replicas: int, seed: int
) -> None:
    found = play(bound, depth, num_shards, num_replicas, seed, changes=False)
    everything = {(n, i) for n, r in enumerate(found.replicas) for i in range(r.num_pushed)}
    for updates in found.updates:
        applied = Counter(push for update in updates for push in update)
        assert set(applied) == everything
        assert set(applied.values()) == {1}


@settings(deadline=None, max_examples=300)
@CASES
def test_nor_where_replicas_come_and_rest_and_die(
    bound: int | None, depth: int, num_shards: int, num_replicas: int, seed: int
) -> None:
    found = play(bound, depth, num_shards, num_replicas, seed, changes=True)
    for arrived, updates in zip(found.arrived, found.updates, strict=True):
        assert Counter(arrived) == Counter(push for update in updates for push in update)


@settings(deadline=None, max_examples=100)
@CASES
def test_the_pushes_of_a_replica_stay_in_order(
    bound: int | None, depth: int, num_shards: int, num_replicas: int, seed: int
) -> None:
    found = play(bound, depth, num_shards, num_replicas, seed, changes=True)
    for updates in found.updates:
        for number in range(len(found.replicas)):
            own = [i for update in updates for n, i in update if n == number]
            assert own == sorted(own)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 2), st.integers(0, 2**32))
def test_a_bound_of_zero_is_synchronous(num_replicas: int, num_shards: int, seed: int) -> None:
    found = play(0, 1, num_shards, num_replicas, seed, changes=False)
    for updates in found.updates:
        # the last ones rest, and what they have pushed is all that there is
        whole = updates[: min(r.num_pushed for r in found.replicas)]
        assert whole
        for number, update in enumerate(whole):
            assert sorted(update) == [(n, number) for n in range(num_replicas)]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(0, 2), st.integers(0, 2**32))
def test_without_a_bound_every_push_is_an_update_as_it_arrives(
    num_replicas: int, depth: int, seed: int
) -> None:
    found = play(None, depth, 1, num_replicas, seed, changes=True)
    assert found.updates[0] == [(push,) for push in found.arrived[0]]


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 5).flatmap(lambda n: st.permutations(range(n))))
def test_with_a_bound_of_all_others_equal_replicas_never_wait(order: list[int]) -> None:
    """In rounds, always in the same order: each push is an update at once."""
    gate: UpdateGate[int] = UpdateGate(len(order) - 1)
    bases = {}
    for replica in order:
        gate.join(replica)
        bases[replica] = gate.fetched(replica)
    for _ in range(5):
        for replica in order:
            gate.offer(Offer(replica=replica, base=bases[replica], content=replica), ())
            (taken,) = gate.next_update()
            assert taken.content == replica
            bases[replica] = gate.hand_out(replica)


def offer(replica: int, base: int, content: str = "") -> Offer[str]:
    return Offer(replica=replica, base=base, content=content)


def contents(gate: UpdateGate[str]) -> list[str]:
    return [found.content for found in gate.next_update()]


def test_the_drawing_of_a_bound_of_one() -> None:
    gate: UpdateGate[str] = UpdateGate(1)
    gate.join(0)
    gate.join(1)
    gate.offer(offer(0, 0, "a1"), ())
    assert contents(gate) == ["a1"]
    assert gate.hand_out(0) == 1
    gate.offer(offer(0, 1, "a2"), ())
    assert contents(gate) == []  # would leave 1 two behind
    gate.offer(offer(1, 0, "b1"), ())
    assert contents(gate) == ["a2", "b1"]  # b1 has waited, and would be left behind itself
    assert gate.version == 2
    assert contents(gate) == []


def test_what_leaves_holds_nothing_back_and_what_it_pushed_counts() -> None:
    gate: UpdateGate[str] = UpdateGate(0)
    for replica in range(3):
        gate.join(replica)
    gate.offer(offer(0, 0, "a"), ())
    gate.offer(offer(1, 0, "b"), ())
    assert contents(gate) == []
    gate.leave(1)
    gate.leave(2)
    assert gate.replicas == {0}
    assert contents(gate) == ["a", "b"]


def test_one_that_left_takes_part_again_once_it_fetches() -> None:
    gate: UpdateGate[str] = UpdateGate(0, version=7)
    gate.join(0)
    gate.leave(0)
    assert gate.hand_out(0) == 7
    assert gate.replicas == set()
    assert gate.fetched(0) == 7
    assert gate.replicas == {0}


def test_a_replica_that_computes_on_with_old_weights_holds_others_back() -> None:
    gate: UpdateGate[str] = UpdateGate(1)
    gate.join(0)
    gate.join(1)
    gate.offer(offer(0, 0, "a1"), [0])
    assert contents(gate) == ["a1"]
    gate.offer(offer(1, 0, "b1"), ())
    assert contents(gate) == []  # 0 is still at work on version 0
    gate.offer(offer(0, 0, "a2"), ())
    assert contents(gate) == ["b1", "a2"]


class Incomparable:
    """Like arrays: whether two of them are the same is no yes or no."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise AssertionError("pushes are told apart by what they hold")


def test_pushes_are_not_compared_by_what_they_hold() -> None:
    """Two of one replica with the same weights, which both have waited too long."""
    gate: UpdateGate[Incomparable] = UpdateGate(1)
    for replica in range(3):
        gate.join(replica)
    gate.offer(Offer(replica=0, base=0, content=Incomparable()), ())
    assert len(gate.next_update()) == 1
    gate.offer(Offer(replica=0, base=1, content=Incomparable()), ())
    for holds in ([0], []):
        gate.offer(Offer(replica=1, base=0, content=Incomparable()), holds)
    assert gate.next_update() == ()
    gate.leave(2)
    assert [found.replica for found in gate.next_update()] == [0, 1, 1]


@pytest.mark.parametrize("bound", [None, 0, 3])
def test_nothing_comes_of_nothing(bound: int | None) -> None:
    gate: UpdateGate[str] = UpdateGate(bound, version=5)
    gate.join(0)
    assert gate.next_update() == ()
    assert gate.version == 5
