"""The first and the last word of a run: plan.json, and result.json with the trained network."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from convoy import state
from convoy.runtime import results
from convoy.runtime.formation import Formation
from convoy.runtime.journal import Journal
from convoy.runtime.observer import Observer
from convoy.runtime.preparation import Preparation
from convoy.runtime.rebalance import Rebalancing
from convoy.runtime.records import read_steps
from convoy.runtime.recovery import Recovery
from convoy.runtime.tensorboard import Board
from convoy.strategies import Plan


def announce(preparation: Preparation, plan: Plan, observer: Observer) -> None:
    """Write plan.json and tell the observer what will be done."""
    settings, predicted = preparation.settings, preparation.prediction
    content: dict[str, Any] = {
        "strategy": preparation.job.decided.name,
        "strategy_options": asdict(preparation.job.decided),  # type: ignore[call-overload]
        "network": settings.network,
        "parameters": preparation.facts.num_parameters,
        "dataset": preparation.data.name,
        "train_samples": len(preparation.data.train),
        "test_samples": len(preparation.data.test),
        "image_shape": list(preparation.data.train.image_shape),
        "classes": preparation.data.train.num_classes,
        "batch_size": settings.batch_size,
        "steps": preparation.num_steps,
        "steps_per_epoch": preparation.order.steps_per_epoch,
        "optimizer": settings.optimizer,
        "machines": machines_of(plan),
        "settled": plan.settled,
        "divided": {name: list(parts) for name, parts in plan.divided.items()},
        "kept": dict(plan.kept),
        "predicted_step_s": predicted.step_s if predicted else None,
        "predicted_step_p90_s": predicted.step_p90_s if predicted else None,
        "predicted_images_per_s": predicted.images_per_s if predicted else None,
        "folder": str(preparation.folder.path),
    }
    preparation.folder.write_json("plan.json", content)
    observer.planned(content)


def machines_of(plan: Plan) -> list[dict[str, Any]]:
    """Each rank's machine, device, share of the work and samples of the batch."""
    return [
        {
            "name": worker.machine,
            "device": worker.device,
            "share": portion,
            "samples": share,
        }
        for worker, share, portion in zip(
            plan.problem.workers, plan.shares, plan.portions, strict=True
        )
    ]


def conclude(
    preparation: Preparation,
    journal: Journal,
    formation: Formation,
    tensors: state.Tensors,
    recoveries: Sequence[Recovery],
    observer: Observer,
    *,
    rebalancings: Sequence[Rebalancing] = (),
) -> results.RunResult:
    """Write the trained network and result.json, from what is in the run folder."""
    order = preparation.order
    steps = [s for s in read_steps(preparation.folder.steps) if s.step < preparation.num_steps]
    last_epoch = order.epoch_of(preparation.num_steps - 1)
    recent = [s for s in steps if order.epoch_of(s.step) == last_epoch]
    ranks = results.rank_times(steps)
    sent = [row["sent_bytes"] or 0 for s in steps for row in s.ranks]
    evaluation = journal.evaluation
    current = evaluation is not None and evaluation[0] == preparation.num_steps - 1
    result = results.RunResult(
        **of_any_run(preparation, journal.layout, journal.convolutions),
        **results.speed(steps),
        machines=machines_of(formation.plan),
        sent_bytes_per_step=sum(sent) / max(1, len(steps)),
        train_loss=sum(s.loss * s.samples for s in recent) / max(1, sum(s.samples for s in recent)),
        test_loss=evaluation[2] if evaluation and current else None,
        test_accuracy=evaluation[1] if evaluation and current else None,
        samples_seen=sum(s.samples for s in steps),
        reformations=len(recoveries),
        slowest=results.slowest(ranks),
        ranks=ranks,
        recoveries=[{"step": r.step, "lost": r.lost, "seconds": r.seconds} for r in recoveries],
        rebalancings=[
            {"step": r.step, "from": list(r.before), "to": list(r.after)} for r in rebalancings
        ],
    )
    leave_network(preparation, journal.board, tensors, result, observer)
    by_samples = all(formation.plan.shares)
    if by_samples and result.slowest and result.slowest["ratio"] > results.SLOW_RATIO:
        observer.say(
            f"rank {result.slowest['rank']} on {result.slowest['machine']} computes "
            f"{result.slowest['ratio']:.2f} times as long as the others: its share is too large "
            "for its speed. Give it less with --shares",
            "warning",
        )
    return result


def of_any_run(
    preparation: Preparation,
    layout: str | None,
    convolutions: Mapping[int, Mapping[str, str]],
) -> dict[str, Any]:
    """What a result says of a run that has just ended, whatever came of it.

    Args:
        layout: the memory format that was settled on.
        convolutions: by rank and layer, what was computed otherwise than by torch's own.
    """
    settings, predicted = preparation.settings, preparation.prediction
    return {
        "strategy": preparation.job.decided.name,
        "network": settings.network,
        "dataset": preparation.data.name,
        "batch_size": settings.batch_size,
        "steps": preparation.num_steps,
        "epochs": preparation.num_steps / preparation.order.steps_per_epoch,
        "seed": settings.seed,
        "precision": settings.precision,
        "memory_format": layout or settings.memory_format,
        "conv_algorithm": settings.conv_algorithm,
        "convolutions": {str(rank): dict(of) for rank, of in sorted(convolutions.items()) if of},
        "wall_s": time.perf_counter() - preparation.begun,
        "resumed_from_step": preparation.start.step if preparation.start else None,
        "startup_s": preparation.timeline.phases(),
        "predicted_step_s": predicted.step_s if predicted else None,
        "predicted_images_per_s": predicted.images_per_s if predicted else None,
        "folder": preparation.folder.path,
    }


def leave_network(
    preparation: Preparation,
    board: Board,
    tensors: state.Tensors,
    result: results.RunResult,
    observer: Observer,
) -> None:
    """Write model.safetensors, the network's graph and result.json."""
    data, folder = preparation.data, preparation.folder
    meta = {
        "network": preparation.settings.network,
        "input_shape": json.dumps(data.train.image_shape),
        "num_classes": str(data.train.num_classes),
        "dataset": data.name,
    }
    untraceable = board.graph(preparation.network, data.train.image_shape)
    if untraceable is not None:
        observer.say(untraceable, "warning")
    folder.write_model(tensors, meta)
    folder.write_json("result.json", result.to_dict())
