"""`convoy.export_split` and `convoy.plan_split`: a network between an edge client and a cloud."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from convoy.api.requests import Network
from convoy.api.trained import load_trained
from convoy.cluster import load_cluster
from convoy.datasets import open_dataset
from convoy.errors import UnknownNameError, UsageError
from convoy.runtime.run_folder import RunFolder
from convoy.split import manifest as manifests
from convoy.split.costs import Link, Wish
from convoy.split.foreseen import candidates_of_folder
from convoy.split.making.candidates import Trial, candidates_of
from convoy.split.making.exporting import from_file, from_torch
from convoy.split.making.folder import ExportSettings, Say, export_networks
from convoy.split.making.networks import SplitNetwork
from convoy.split.making.repository import check_vacant
from convoy.split.manifest import Manifest
from convoy.split.narrow_training import FROM_SCRATCH
from convoy.split.planning import (
    Place,
    SplitPlan,
    at_places,
    between_places,
    link_between,
    place,
)


def export_split(
    run: str | Path,
    cuts: Sequence[str],
    out: str | Path,
    *,
    network: Network | None = None,
    dataset: Any = None,
    data_dir: str | Path | None = None,
    accuracy: bool = True,
    images: int | None = None,
    version: int = 1,
    say: Say | None = None,
) -> Manifest:
    """Write a trained network as ONNX, whole and cut in halves, for an edge client and a server.

    Args:
        run: a run folder, or an ONNX file from elsewhere.
        cuts: layers after which to cut, as `pool2`; `pool2:8` is the network that
            `convoy split narrow` trained with 8 filters there.
        out: a folder that is not there yet, or is empty.
        network: needed only where the run was given a network that no name stands for.
        dataset: what it is calibrated and judged on; the run's own without it. For an ONNX file it
            has to take images as this data set normalises them.
        data_dir: where its files lie.
        accuracy: judge every codec on the test images.
        images: how many of them; all without it.
        version: of the models. A server takes several folders, with other versions of the same.
        say: is told what is being done.

    Raises:
        UsageError: a cut that does not exist, an ONNX file with two inputs, a folder that is not
            empty, a narrowed network that nobody has trained.
        ManifestError: halves do not compute what the whole does.
    """
    out = Path(out)
    settings = ExportSettings(out=out, with_accuracy=accuracy, images=images, version=version)
    check_vacant(out)
    wanted = [_cut_in(text) for text in cuts]
    if not wanted:
        raise UsageError("name at least one cut, as --cut pool2")
    plain = [cut for cut, filters in wanted if filters is None]
    given = {"network": network, "dataset": dataset, "data_dir": data_dir}
    networks = [load_network(run, "", plain, **given)]
    for cut, filters in wanted:
        if filters is not None:
            networks.append(_narrowed(Path(run), cut, filters, dataset, data_dir))
    return export_networks(networks, settings, say or (lambda _: None))


def load_network(
    run: str | Path,
    variant: str,
    cuts: Sequence[str] | None,
    *,
    network: Network | None = None,
    dataset: Any = None,
    data_dir: str | Path | None = None,
) -> SplitNetwork:
    """A run's network, or that of an ONNX file, to be cut at `cuts`, or wherever that makes sense.

    Raises:
        UsageError: as `export_split` does.
    """
    path = Path(run)
    if path.is_file() or path.suffix == ".onnx":
        graph = from_file(path)
        data = None if dataset is None else _data_for(path, graph.input.shape, dataset, data_dir)
        name, reference = path.stem, None
    else:
        trained = load_trained(path, network=network, dataset=dataset, data_dir=data_dir)
        name, reference, data = trained.settings.network, trained.network, trained.data
        graph = from_torch(reference, data.test.image_shape, name)
    chosen = graph.offered if cuts is None else [graph.cut(cut) for cut in cuts]
    return SplitNetwork(
        variant=variant,
        name=name,
        graph=graph,
        cuts=tuple(dict.fromkeys(chosen)),
        reference=reference,
        data=data,
    )


def _data_for(path: Path, shape: tuple[int, ...], dataset: Any, data_dir: Any) -> Any:
    data = open_dataset(dataset, data_dir=Path(data_dir) if data_dir else None)
    if data.test.image_shape != shape:
        raise UsageError(
            f"{path} takes {'x'.join(map(str, shape))} images; {data.name} has "
            f"{'x'.join(map(str, data.test.image_shape))}"
        )
    return data


def _cut_in(text: str) -> tuple[str, int | None]:
    """A cut, and how many filters there are to be: "pool2:8" or "pool2"."""
    name, colon, filters = text.rpartition(":")
    if not colon:
        return text, None
    if not name or not filters.isdecimal() or int(filters) < 1:
        raise UsageError(f"--cut {text}: expected a layer, or layer:filters, as pool2 or pool2:8")
    return name, int(filters)


def _narrowed(
    run: Path, cut: str, filters: int, dataset: Any, data_dir: str | Path | None
) -> SplitNetwork:
    trained = _trained_narrow(run)
    if (cut, filters) not in trained:
        there = ", ".join(str(count) for name, count in trained if name == cut)
        known = f" (there are: {there})" if there else ""
        raise UsageError(
            f"--cut {cut}:{filters}: {run / 'narrow'} has no trained network with {filters} "
            f"filters before {cut}{known}. Train it: convoy split narrow {run} --cut {cut} "
            f"--filters {filters}"
        )
    folder = trained[cut, filters]
    return load_network(folder, f"{cut}:{filters}", [cut], dataset=dataset, data_dir=data_dir)


def plan_split(
    run: str | Path,
    *,
    edge: str,
    cloud: str,
    cluster: str | Path | None = None,
    bandwidth: str | None = None,
    latency: str | None = None,
    batch_size: int = 1,
    objective: str = "latency",
    accuracy_within: float = 1.0,
    rate: float = 0.0,
    deadline_s: float | None = None,
    cuts: Sequence[str] | None = None,
    network: Network | None = None,
    dataset: Any = None,
    data_dir: str | Path | None = None,
    accuracy: bool = True,
    images: int = 1000,
    say: Say | None = None,
) -> SplitPlan:
    """What every way of having images recognised between an edge and a cloud would cost.

    Halves and codecs are measured on this machine, with one thread, and their times multiplied by
    what the machines are slower.

    Args:
        run: a run folder, an ONNX file from elsewhere, or a folder that `export_split` made, whose
            ways are those of the edge client.
        edge, cloud: machines of the cluster file; without one, how many cores each has.
        cluster: a cluster file.
        bandwidth, latency: of the link, in place of the file's.
        batch_size: images of a request.
        objective: latency, throughput, bytes or privacy.
        accuracy_within: points below the full network that will do.
        rate: images per second that a way has to keep up with.
        deadline_s: how long an answer may take, seconds.
        cuts: the only ones to look at; without them all at which a layer ends.
        network, dataset, data_dir: as for `export_split`.
        accuracy: judge every codec on test images.
        images: how many of them, evenly spread.
        say: is told what is being measured.

    Raises:
        UsageError: a machine or cut that does not exist, a link that carries nothing, an ONNX file
            with two inputs.
    """
    described = load_cluster(cluster) if cluster else None
    here, there = place(edge, "--edge", described), place(cloud, "--cloud", described)
    link = link_between(edge, cloud, described, bandwidth, latency)
    wish = Wish(
        objective=objective,
        count=batch_size,
        accuracy_within=accuracy_within,
        images_per_s=rate,
        deadline_s=math.inf if deadline_s is None else deadline_s,
    )
    tell = say or (lambda _: None)
    if (Path(run) / manifests.NAME).is_file():
        if (network, dataset, data_dir) != (None, None, None) or not accuracy:
            raise UsageError(
                f"{run} is what `convoy split export` made, with what was found of its codecs "
                "then: no network, data set or --no-accuracy goes with it"
            )
        between = between_places(link, here, there)
        return _plan_of_folder(Path(run), cuts, here, there, between, wish)
    full = load_network(run, "", cuts, network=network, dataset=dataset, data_dir=data_dir)
    networks = [full]
    for cut, filters in _trained_narrow(Path(run)):
        if cuts is None or cut in cuts:
            networks.append(_narrowed(Path(run), cut, filters, dataset, data_dir))
    trial = Trial(batch_size=batch_size, with_accuracy=accuracy, images=images)
    measured = [c for each in networks for c in candidates_of(each, trial, tell)]
    judged = min(images, len(full.data.test)) if full.data and accuracy else None
    return SplitPlan(
        network=full.name,
        dataset=full.data.name if full.data else None,
        edge=here,
        cloud=there,
        link=between_places(link, here, there),
        wish=replace(wish, accuracy=measured[0].accuracy),
        candidates=tuple(at_places(candidate, here, there) for candidate in measured),
        judged_images=judged,
    )


def _plan_of_folder(
    folder: Path,
    cuts: Sequence[str] | None,
    edge: Place,
    cloud: Place,
    link: Link,
    wish: Wish,
) -> SplitPlan:
    """Of what was exported: ways that are there, with the accuracies that were found then."""
    manifest = manifests.load(folder)
    there = dict.fromkeys(entry.cut for v in manifest.variants for entry in v.cuts)
    for name in cuts or ():
        if name not in there:
            raise UnknownNameError(f"cut of {folder}", name, there)
    pictures = manifests.read_samples(folder, manifest)
    if pictures is None:
        raise UsageError(
            f"{folder} has no pictures to time codecs with: export it from a run or a data set, or "
            "plan from the run itself"
        )
    measured = [
        candidate
        for candidate in candidates_of_folder(folder, pictures, wish.count)
        if cuts is None or candidate.cut is None or candidate.cut in cuts
    ]
    return SplitPlan(
        network=manifest.network,
        dataset=manifest.dataset,
        edge=edge,
        cloud=cloud,
        link=link,
        wish=replace(wish, accuracy=manifest.variants[0].accuracy),
        candidates=tuple(at_places(candidate, edge, cloud) for candidate in measured),
        judged_images=None,
    )


def _trained_narrow(run: Path) -> dict[tuple[str, int], Path]:
    """Run folders of the narrowed networks that `run` has, trained, by cut and number of filters.

    Where one was fine-tuned and one trained from scratch it is the more accurate.
    """
    found: dict[tuple[str, int], tuple[float, Path]] = {}
    for model in sorted(run.glob("narrow/*/f*/model.safetensors")):
        folder = model.parent
        if folder.name[1:].isdecimal():
            key = folder.parent.name.removesuffix(FROM_SCRATCH), int(folder.name[1:])
            judged = RunFolder(folder).result
            accuracy = 0.0
            if judged.is_file():
                accuracy = json.loads(judged.read_bytes())["test_accuracy"]
            if key not in found or accuracy > found[key][0]:
                found[key] = accuracy, folder
    return {key: found[key][1] for key in sorted(found)}
