"""One asynchronous training run, from its plan to its result."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from convoy.runtime import results
from convoy.runtime.concluding import announce, leave_network, machines_of, of_any_run
from convoy.runtime.deciding import Decision
from convoy.runtime.interrupt import Interrupt
from convoy.runtime.observer import Observer
from convoy.runtime.placement import Place, places_now
from convoy.runtime.pool import Pool
from convoy.runtime.preparation import Preparation, last_generation, open_folder
from convoy.runtime.servers.fleet import Fleet
from convoy.runtime.servers.fleet_log import FleetLog, Tally, pace_of
from convoy.runtime.servers.served_run import ServedRun
from convoy.state import Tensors, copy_of
from convoy.strategies import Plan
from convoy.strategies.server import ServerLayout, ServerTerms


def run_with_servers(
    preparation: Preparation,
    decision: Decision,
    plan: Plan,
    terms: ServerTerms,
    processes: Pool,
    interrupt: Interrupt,
    observer: Observer,
) -> results.RunResult | None:
    """Train as planned; None if interrupted.

    Raises:
        ConvoyError: see errors.py.
    """
    open_folder(preparation)
    announce(preparation, plan, observer)
    settings, layout = preparation.settings, plan.servers
    assert layout is not None
    log = FleetLog(
        preparation.folder,
        preparation.order,
        len(preparation.data.test),
        preparation.num_steps,
        observer,
        preparation.timeline,
        parts=_parts_of_a_replica(plan, layout),
        chance=math.log(max(2, preparation.data.train.num_classes)),
    )
    served = ServedRun(
        job=preparation.job,
        plan=plan,
        layout=layout,
        terms=terms,
        places=_places(decision, plan),
        log=log,
        observer=observer,
        pool=processes,
        generation=last_generation(preparation) + 1,
        find_places=lambda: places_now(settings),
    )
    fleet = Fleet(
        served=served,
        network=copy_of(preparation.network.to(preparation.dtype).state_dict()),
        interrupt=interrupt,
        num_steps=preparation.num_steps,
        steps_per_epoch=preparation.order.steps_per_epoch,
    )
    try:
        tensors = fleet.run(preparation.start)
        if tensors is not None:
            return _conclude(preparation, fleet, tensors, observer)
    finally:
        log.close()
    kept = fleet.shards.snapshots.kept
    observer.say(
        f"stopped; the checkpoint of step {kept.step if kept else 0} is kept. Go on with: convoy "
        f"train --resume {preparation.folder.path}"
    )
    return None


def _conclude(
    preparation: Preparation, fleet: Fleet, tensors: Tensors, observer: Observer
) -> results.RunResult:
    """Write the trained network and result.json."""
    log, order = fleet.served.log, preparation.order
    tally, worked = log.tally, max(1.0, sum(log.tally.by_rank.values()))
    last_epoch = order.epoch_of(preparation.num_steps - 1)
    recent = [row for row in log.rows if row["epoch"] == last_epoch and row["loss"] is not None]
    weight = sum(row["samples"] for row in recent)
    evaluation = log.evaluation
    ranks = _rank_times(log.rows)
    machines = machines_of(fleet.served.plan)
    for rank, machine in enumerate(machines):
        machine["share"] = tally.by_rank[rank] / worked
    known = fleet.served.places[len(machines) :]
    machines += [
        {"name": place.machine, "device": place.device, "samples": None}
        | {"share": tally.by_rank[len(machines) + i] / worked}
        for i, place in enumerate(known)
    ]
    result = results.RunResult(
        **of_any_run(preparation, log.layout, log.convolutions),
        machines=machines,
        **pace_of([row for row in log.rows if not row["position"]], results.WARM_UP_STEPS),
        sent_bytes_per_step=sum(row["sent_bytes"] for row in log.rows) / max(1, log.steps_now),
        train_loss=sum(r["loss"] * r["samples"] for r in recent) / weight if weight else None,
        test_loss=evaluation[2] if evaluation else None,
        test_accuracy=evaluation[1] if evaluation else None,
        samples_seen=tally.samples,
        reformations=len(fleet.replicas.losses),
        slowest=None,  # nobody waits for it
        ranks=ranks,
        recoveries=[
            {"step": r["step"], "lost": r["lost"], "seconds": None} for r in fleet.replicas.losses
        ],
        servers=_servers(fleet, tally),
    )
    leave_network(preparation, log.board, tensors, result, observer)
    return result


def _places(decision: Decision, plan: Plan) -> list[Place]:
    """By rank of the plan, then those that it has no use for unless one of these is lost."""
    planned = [worker.index for worker in plan.problem.workers]
    left_over = [index for index in decision.taking_part if index not in planned]
    return [decision.places[index] for index in [*planned, *left_over]]


def _parts_of_a_replica(plan: Plan, layout: ServerLayout) -> tuple[float, ...]:
    """Of a replica's work, each device's part."""
    first = plan.portions[: layout.team]
    return tuple(portion / sum(first) for portion in first)


def _servers(fleet: Fleet, tally: Tally) -> dict[str, Any]:
    pushes = sum(tally.staleness.values())
    behind = sum(versions * count for versions, count in tally.staleness.items())
    return {
        "shards": len(fleet.served.layout.homes),
        "updates": max((facts["version"] for facts in fleet.shards.facts), default=0),
        "apply_s": [facts["apply_s"] for facts in fleet.shards.facts],
        "lost_updates": sum(r.lost_updates for r in fleet.shards.restorations),
        "restorations": [vars(restoration) for restoration in fleet.shards.restorations],
        "moves": [vars(move) for move in fleet.shards.moves],
        "staleness": {
            "histogram": {str(k): tally.staleness[k] for k in sorted(tally.staleness)},
            "mean": behind / pushes if pushes else None,
            "max": max(tally.staleness, default=None),
        },
        "samples_repeated": tally.repeated,
        "steps_leased_again": sum(loss["again"] for loss in fleet.replicas.losses),
    }


def _rank_times(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Median times of each rank's steps."""
    of_ranks: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        of_ranks.setdefault(row["rank"], []).append(row)
    found = []
    for rank, own in sorted(of_ranks.items()):
        steady = own[results.WARM_UP_STEPS :] or own
        found.append(
            {
                "rank": rank,
                "machine": own[-1]["machine"],
                "samples": max(row["samples"] for row in own),
                "steps": len(own),
            }
            | {
                key: statistics.median(row[key] for row in steady)
                for key in ("compute_s", "wait_s", "comm_s", "sent_bytes")
            }
        )
    return found
