"""All ways to have a network's images recognised, as measured on this machine with one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import add

from convoy.split.codecs import FloatArray, feature_codec
from convoy.split.costs import LOCAL, PICTURE, SPLIT, Candidate, Curve
from convoy.split.making.checking import Checker
from convoy.split.making.exporting import halves
from convoy.split.making.graph_cuts import GraphCut
from convoy.split.making.measuring import (
    Tally,
    feature_codecs,
    judge_features,
    judge_pictures,
)
from convoy.split.making.networks import SplitNetwork
from convoy.split.making.timing import (
    QUICK,
    CodecTimes,
    feature_times,
    picture_times,
    rest_s,
    session_times,
    sizes_for,
)
from convoy.split.manifest import way_name
from convoy.split.sessions import Session

Say = Callable[[str], None]
FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What to measure."""

    batch_size: int
    with_accuracy: bool = True
    images: int = 1000
    """Test images, evenly spread, that every codec of every cut is judged on."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes whose times are measured."""
        return sizes_for(self.batch_size)


def candidates_of(network: SplitNetwork, trial: Trial, say: Say) -> Iterator[Candidate]:
    """Everything on the edge, pictures in every codec, every cut in every codec.

    Args:
        network: of which every cut is tried.
        trial: what to measure.
        say: is told what is being measured.

    Raises:
        ManifestError: halves do not compute what the whole does.
    """
    say(f"{network.name}: the whole")
    images = network.images(max(trial.sizes))
    whole = network.loaded(network.content, threads=1)
    (whole_s,) = session_times([(whole, images)], trial.sizes)
    whole_rest_s = rest_s(lambda: whole(images[:1]))
    answer = _per_image(FLOAT_BYTES * network.graph.output.elements)
    plain = feature_codec("float32", shape=network.graph.input.shape)
    sent = picture_times(network.preprocessing, plain, images, trial.sizes)
    judged: Mapping[str, Tally] = {}
    if _judges(network, trial):
        tests = network.test_batches(trial.images)
        judged = judge_pictures(network.session, network.preprocessing, tests).tallies
    yield Candidate(
        name=way_name(network.variant, None, None),
        kind=LOCAL,
        variant=network.variant,
        edge_s=whole_s,
        accuracy=_accuracy(judged, "float32"),
        depth=1.0,
    )
    for codec, times in sent.items():
        yield Candidate(
            name=way_name(network.variant, None, codec),
            kind=PICTURE,
            variant=network.variant,
            codec=codec,
            edge_s=times.encode_s,
            sent_bytes=times.sent_bytes,
            cloud_s=_sum(times.decode_s, whole_s),
            answer_bytes=answer,
            cloud_rest_s=whole_rest_s,
            accuracy=_accuracy(judged, codec),
        )
    checker = Checker(
        images=network.checking_images(), whole=network.session, name=network.graph.name
    )
    if network.reference is not None:
        checker.check_whole(network.reference)
    for cut in network.cuts:
        say(f"{network.name}: cut at {cut.name}")
        yield from _at(network, cut, trial, checker, images, answer, (whole, whole_s))


def _at(
    network: SplitNetwork,
    cut: GraphCut,
    trial: Trial,
    checker: Checker,
    images: FloatArray,
    answer: Curve,
    whole: tuple[Session, Curve],
) -> Iterator[Candidate]:
    """A cut's candidates.

    Args:
        whole: and what it took; it is timed again beside the halves, which are then what they would
            have taken at that moment, since a machine is not as fast at one as at another.
    """
    before, after = halves(network.graph, cut)
    edge, cloud = network.loaded(before, threads=1), network.loaded(after, threads=1)
    checker.check_halves(cut.name, edge, cloud)
    features = edge(images)
    beside = [(edge, images), (cloud, features), (whole[0], images)]
    edge_s, cloud_s, now_s = session_times(beside, trial.sizes, QUICK)
    edge_s, cloud_s = (_as_then(curve, now_s, whole[1]) for curve in (edge_s, cloud_s))
    edge_rest_s = rest_s(lambda: edge(images[:1]))
    cloud_rest_s = rest_s(lambda: cloud(features[:1]))
    judging = network.loaded(before)
    codecs = feature_codecs(cut.shape, network.bounds(judging))
    sent: Mapping[str, CodecTimes] = feature_times(codecs, features, trial.sizes)
    judged: Mapping[str, Tally] = {}
    if _judges(network, trial):
        tests = network.test_batches(trial.images)
        judged = judge_features(judging, network.loaded(after), codecs, tests).tallies
    for codec, times in sent.items():
        yield Candidate(
            name=way_name(network.variant, cut.name, codec),
            kind=SPLIT,
            variant=network.variant,
            cut=cut.name,
            codec=codec,
            edge_s=_sum(edge_s, times.encode_s),
            sent_bytes=times.sent_bytes,
            cloud_s=_sum(times.decode_s, cloud_s),
            answer_bytes=answer,
            edge_rest_s=edge_rest_s,
            cloud_rest_s=cloud_rest_s,
            accuracy=_accuracy(judged, codec),
            depth=_depth(cut),
        )


def _depth(cut: GraphCut) -> float:
    """How much of the work is before a cut; between two layers that count, how many nodes."""
    nodes = cut.nodes_before / (cut.nodes_before + cut.nodes_after)
    return (cut.macs_before + nodes) / (cut.macs_before + cut.macs_after + 1)


def _judges(network: SplitNetwork, trial: Trial) -> bool:
    return network.data is not None and trial.with_accuracy


def _accuracy(judged: Mapping[str, Tally], codec: str) -> float | None:
    tally = judged.get(codec)
    return tally.correct / tally.images if tally else None


def _as_then(found: Curve, now: Curve, then: Curve) -> Curve:
    """What was found while something else took `now`, had it taken `then`."""
    return found.with_(lambda f, n, t: f * t / n, now, then)


def _sum(a: Curve, b: Curve) -> Curve:
    return a.with_(add, b)


def _per_image(size: float) -> Curve:
    return Curve(sizes=(1,), values=(size,))
