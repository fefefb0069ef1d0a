"""The surveyors at all places, asked together; and who is to blame when one does not answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from convoy.comm import PeerLostError
from convoy.errors import CrewError
from convoy.runtime.formation import Job
from convoy.runtime.member_handle import GONE, START_TIMEOUT_S, foreign_error
from convoy.runtime.placement import Place
from convoy.runtime.pool import Pool

PATIENCE_S = 15.0
"""How long to wait for Ray to tell who died, once somebody has lost touch."""
POLL_S = 0.2
"""As the crew's: how often members are asked for news."""
ANSWER_TIMEOUT_S = 300.0
"""For one question; a slow device measures a large network for minutes."""


class Party:
    """The surveyors, and questions to all or some of them at once."""

    def __init__(
        self, job: Job | None, places: Sequence[Place], threads: Sequence[int], pool: Pool
    ) -> None:
        self.places, self.threads = places, threads
        self.job = ray.put(job)
        self._pool = pool
        self._members = [pool.take(p, t) for p, t in zip(places, self.threads, strict=True)]
        try:
            self.ask("arrive", [(threads,) for threads in self.threads], START_TIMEOUT_S)
        except BaseException:
            self.end()
            raise

    def ask(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]],
        timeout_s: float = ANSWER_TIMEOUT_S,
        ranks: Sequence[int] | None = None,
    ) -> list[Any]:
        """Call `method` of every surveyor, or of `ranks`, with its arguments; wait for all.

        Meanwhile all are asked for news as often as in a run, so that what this takes of their
        machines, and of the one we are on, is in the figures.
        """
        asked = list(range(len(self.places)) if ranks is None else ranks)
        deadline = time.monotonic() + timeout_s
        pending = {
            self._members[rank].survey.remote(method, *given): rank
            for rank, given in zip(asked, arguments, strict=True)
        }
        found: dict[int, Any] = {}
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1, timeout=POLL_S)
            for answer in done:
                rank = pending.pop(answer)
                found[rank] = self._answer(rank, answer, pending)
            if pending and time.monotonic() > deadline:
                silent = ", ".join(self._where(rank) for rank in pending.values())
                raise CrewError(
                    f"{silent} did not answer within {timeout_s:.0f} s while it was measured"
                )
            with contextlib.suppress(*GONE, GetTimeoutError):  # who is gone does not answer either
                ray.get([member.poll.remote(0) for member in self._members], timeout=POLL_S)
        return [found[rank] for rank in asked]

    def _answer(self, rank: int, answer: Any, pending: Mapping[Any, int]) -> Any:
        try:
            return ray.get(answer)
        except RayTaskError as error:
            if isinstance(error.cause, PeerLostError):
                raise self._lost_touch(rank, pending) from None
            raise foreign_error(error, self._where(rank)) from None
        except GONE:
            raise self._died(rank) from None

    def _lost_touch(self, rank: int, pending: Mapping[Any, int]) -> CrewError:
        """Who is to blame when `rank` lost a peer: it hears of a death before Ray tells whose."""
        deadline = time.monotonic() + PATIENCE_S
        left = list(pending)
        while left and time.monotonic() < deadline:
            done, left = ray.wait(left, num_returns=1, timeout=deadline - time.monotonic())
            for answer in done:
                try:
                    ray.get(answer)
                except GONE:
                    return self._died(pending[answer])
                except RayTaskError:
                    continue  # it lost the same peer
        return CrewError(
            f"{self._where(rank)} lost touch with another machine while links were measured. "
            "`convoy doctor` tells whether they reach each other"
        )

    def _died(self, rank: int) -> CrewError:
        return CrewError(
            f"{self._where(rank)} died while it was measured; no profile is written. Start it "
            "again, or take it out of the cluster file, and measure anew"
        )

    def _where(self, rank: int) -> str:
        return f"{self.places[rank].machine} ({self.places[rank].device})"

    def dismiss(self) -> None:
        """Give the processes back."""
        self.ask("leave", [()] * len(self.places))
        for place, member in zip(self.places, self._members, strict=True):
            self._pool.give_back(place, member)

    def end(self) -> None:
        """End the processes, which may not have come to rest."""
        for member in self._members:
            ray.kill(member)
