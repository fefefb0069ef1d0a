"""One training run from its settings to its result, whoever the ranks are.

prepare ──▶ crew (Ray)  ──┐
        └─▶ torchrun    ──┴──▶ conclude
"""

from __future__ import annotations

from collections.abc import Sequence

from convoy.runtime import results
from convoy.runtime.concluding import announce, conclude
from convoy.runtime.crew import Crew
from convoy.runtime.deciding import Decision, carry_out, decide
from convoy.runtime.formation import Job
from convoy.runtime.interrupt import Interrupt
from convoy.runtime.observer import Observer
from convoy.runtime.placement import Place, places
from convoy.runtime.pool import Pool, pool
from convoy.runtime.preparation import (
    Preparation,
    last_generation,
    make_plan,
    open_folder,
    open_journal,
    prepare,
)
from convoy.runtime.servers.run import run_with_servers


def run_with_crew(job: Job, observer: Observer, *, verbose: bool = False) -> results.RunResult:
    """Train over Ray actors, as the job's settings say.

    Raises:
        ConvoyError: see errors.py.
        KeyboardInterrupt: after a first Ctrl-C, once everything is safe.
    """
    preparation = prepare(job, observer)
    settings = preparation.settings
    with places(settings, observer, verbose=verbose) as found, pool() as processes:
        preparation.timeline.mark("ray")
        decision = _decide(preparation, found, observer, processes)
        with Interrupt() as interrupt:  # from here on there is something to keep
            return run_at(preparation, decision, processes, interrupt, observer)


def run_at(
    preparation: Preparation,
    decision: Decision,
    processes: Pool,
    interrupt: Interrupt,
    observer: Observer,
) -> results.RunResult:
    """Train as decided, by processes out of the pool; raises as `run_with_crew` does."""
    preparation.job, preparation.prediction = decision.job, decision.prediction
    preparation.world = decision.world
    places = decision.places
    plan = make_plan(preparation, [places[i].worker() for i in decision.taking_part])
    terms = preparation.job.decided.terms(plan)
    if terms is not None:
        ended = run_with_servers(preparation, decision, plan, terms, processes, interrupt, observer)
        if ended is None:
            raise KeyboardInterrupt
        return ended
    open_folder(preparation)
    announce(preparation, plan, observer)
    journal = open_journal(preparation, observer)
    crew = Crew(
        job=preparation.job,
        plan=plan,
        places=places,
        journal=journal,
        observer=observer,
        interrupt=interrupt,
        num_steps=preparation.num_steps,
        problem=preparation.problem,
        pool=processes,
        generation=last_generation(preparation),
    )
    try:
        tensors = crew.run(preparation.start)
        if tensors is not None:
            assert crew.formation is not None
            return conclude(
                *(preparation, journal, crew.formation, tensors, crew.recoveries, observer),
                rebalancings=crew.rebalancings,
            )
    finally:
        journal.close()
    kept = journal.last_checkpoint
    observer.say(
        f"stopped before step {journal.last_step + 1}; the checkpoint of step "
        f"{kept.step if kept else 0} is kept. Go on with: convoy train --resume "
        f"{preparation.folder.path}"
    )
    raise KeyboardInterrupt


def _decide(
    preparation: Preparation, found: Sequence[Place], observer: Observer, processes: Pool
) -> Decision:
    """Settle what is done: as asked, or as planned."""
    job = preparation.job
    given = job.settings.profile
    needs = job.strategy is None or job.strategy.needs_layers or given is not None
    to_plan = job.strategy is None or (needs and job.settings.shares is None)
    if not to_plan or (job.strategy is not None and len(found) == 1):
        return Decision(job=job, places=tuple(found), taking_part=tuple(range(len(found))))
    settle = decide if job.strategy is None else carry_out
    decision = settle(job, preparation.facts, found, observer, processes, given=given)
    if decision.prediction is not None:
        preparation.timeline.mark("plan")
    return decision
