"""What all of the driver's parts know of one asynchronous run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from convoy.runtime.formation import Job
from convoy.runtime.observer import Observer
from convoy.runtime.placement import Place
from convoy.runtime.pool import Pool
from convoy.runtime.servers.fleet_log import FleetLog
from convoy.strategies import Plan
from convoy.strategies.server import ServerLayout, ServerTerms


@dataclass(frozen=True, kw_only=True)
class ServedRun:
    """What is to be trained how, where, and who is told of it."""

    job: Job
    plan: Plan
    layout: ServerLayout
    terms: ServerTerms
    places: list[Place]
    """By rank of the plan, then those that are left over and take a lost one's place. Those that
    come later are added, and a machine that comes back takes its former one's."""
    log: FleetLog
    observer: Observer
    pool: Pool
    generation: int
    find_places: Callable[[], Sequence[Place]]
    """Places on all machines that there are now, for those that come later."""
