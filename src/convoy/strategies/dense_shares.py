"""Which dense layers are split by their neurons, and who computes how many of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from convoy.cost.layers import LayerSize
from convoy.cost.schedule import Compute, Phase
from convoy.errors import UsageError
from convoy.strategies.base import Problem, shares_for
from convoy.strategies.shares import cut, finish_together


@dataclass(frozen=True, kw_only=True)
class SplitLayer:
    """A dense layer whose neurons are on several ranks."""

    name: str
    neurons: tuple[int, ...]
    """By rank, in this order."""
    rows: int = 1
    """Rows of its input for each image."""

    def part(self, rank: int) -> float:
        """The part of all neurons that `rank` has."""
        return self.neurons[rank] / sum(self.neurons)


def rounds(rank: int, num_ranks: int, *, in_turns: bool) -> list[list[int]]:
    """Whose samples a rank computes at once, round by round."""
    if not in_turns:
        return [list(range(num_ranks))]
    return [[(rank + turn) % num_ranks] for turn in range(num_ranks)]


def splits(problem: Problem, above: int | None) -> Iterator[tuple[SplitLayer, ...]]:
    """Choices of layers to split, each with its neurons by rank: the largest, the two largest, ...

    Args:
        above: layers with more weights than this, and no other choice; None for every choice that
            may be the best.

    Raises:
        UsageError: there is no such layer.
    """
    dense = sorted(
        (layer for layer in problem.network.layers if layer.neurons), key=_weights, reverse=True
    )
    if not dense:
        raise UsageError(
            "this network has no dense layer to split (a trained nn.Linear that a pass goes "
            "through once). Use --strategy data"
        )
    if above is not None and _weights(dense[0]) <= above:
        raise UsageError(
            f"no dense layer has more than {above} weights: the largest, {dense[0].name}, has "
            f"{_weights(dense[0])}. Give a smaller --dense-above, or auto"
        )
    if len(problem.workers) == 1:
        yield ()
        return
    split = [
        SplitLayer(
            name=layer.name,
            neurons=_neurons(problem, layer),
            rows=layer.activations // layer.neurons,
        )
        for layer in dense
    ]
    if above is not None:
        yield tuple(s for s, d in zip(split, dense, strict=True) if _weights(d) > above)
    elif problem.world is None:  # by bytes, which is all that is known
        worth_it = [s for s, d in zip(split, dense, strict=True) if _saves_bytes(problem, d)]
        yield tuple(worth_it or split[:1])
    else:
        for count in range(1, len(split) + 1):
            yield tuple(split[:count])


def samples_beside(problem: Problem, layers: Sequence[SplitLayer]) -> tuple[int, ...]:
    """Samples by rank with which all end what is not split of the network together.

    Raises:
        UsageError: there are fewer samples than ranks.
    """
    world = problem.world
    if world is None:
        return shares_for(problem)
    picks = tuple(worker.index for worker in problem.workers)
    split = {layer.name for layer in layers}
    sizes = {size.name: size for size in problem.network.layers}
    travels = problem.network.num_parameters - sum(sum(sizes[n].parameters) for n in split)
    seconds = world.seconds(picks)

    def beside(rank: int) -> Callable[[int], float]:
        whole = world.step_curve(picks[rank], len(picks), travels * problem.element_bytes)

        def time(samples: int) -> float:
            return whole(samples) - sum(_passes(seconds, rank, name, samples) for name in split)

        return time

    return finish_together(problem.batch_size, [beside(rank) for rank in range(len(picks))])


def _neurons(problem: Problem, layer: LayerSize) -> tuple[int, ...]:
    """A layer's neurons by rank, so that all are done with the whole batch together."""
    world = problem.world
    if world is None:
        return tuple(cut(layer.neurons, [worker.weight for worker in problem.workers]))
    picks = tuple(worker.index for worker in problem.workers)
    seconds = world.seconds(picks)

    def paced(rank: int) -> Callable[[int], float]:
        each = _passes(seconds, rank, layer.name, problem.batch_size) / layer.neurons
        return lambda neurons: each * neurons

    return finish_together(layer.neurons, [paced(rank) for rank in range(len(picks))], least=0)


def _passes(seconds: Callable[[Compute], float], rank: int, layer: str, samples: int) -> float:
    """What both passes of so many samples through a layer take a rank."""
    phases: tuple[Phase, Phase] = ("forward", "backward")
    return sum(
        seconds(Compute(rank=rank, phase=phase, samples=samples, layer=layer)) for phase in phases
    )


def _saves_bytes(problem: Problem, layer: LayerSize) -> bool:
    """Whether less travels than the layer's gradients would be, among equal ranks.

    A ring all-reduce of W gradients over n ranks moves 2 (n - 1) W; a split layer, for each of B
    samples, 2 (n - 1) of its inputs and 2 (n - 1) / n of its outputs.
    """
    for_each = layer.inputs + layer.activations / len(problem.workers)
    maps = problem.batch_size * for_each * problem.map_bytes
    return maps < sum(layer.parameters) * problem.element_bytes


def _weights(layer: LayerSize) -> int:
    return max(layer.parameters)
