"""`convoy.narrow`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from convoy.api.requests import thing_of
from convoy.api.trained import trained_network
from convoy.api.training import evaluate
from convoy.errors import CheckpointError
from convoy.runtime.run_folder import RunFolder, open_run_folder, read_settings
from convoy.split.narrow_training import FullRun, NarrowSettings
from convoy.split.narrowing import Narrowed, narrow_at
from convoy.split.trainings import Progress, Watch


def narrow(
    run: str | Path,
    *,
    cut: str,
    filters: Sequence[int],
    from_scratch: bool = False,
    epochs: int | None = None,
    lr: float | None = None,
    workers: int = 1,
    out: str | Path | None = None,
    data_dir: str | Path | None = None,
    watch: Watch | None = None,
) -> Narrowed:
    """Train a run's network with fewer filters before a cut, once for each number of them.

    Each training is a run folder `fN` in `out`, where narrow.json and narrow.png say what came
    of them. What is trained there already is not trained again, so that the same call goes on
    after an interruption.

    Args:
        run: the folder of a finished run; its settings are those of the trainings.
        cut: the layer after which the network is to be cut.
        filters: numbers of filters of the convolution whose maps reach it.
        from_scratch: begin with first weights; without it the full network is fine-tuned.
        epochs: of each training; a quarter of the run's without it, all of them from scratch.
        lr: learning rate; a tenth of the run's without it, all of it from scratch.
        workers: how many trainings at a time.
        out: RUN/narrow/CUT without it.
        data_dir: where data files lie, if not where they did.
        watch: is told how far each training is.

    Raises:
        UsageError: the network cannot be narrowed so; says what is in the way.
        ConvoyError: trainings failed; names them and where they said why.
    """
    asked = NarrowSettings(
        cut=cut,
        filters=tuple(filters),
        from_scratch=from_scratch,
        epochs=epochs,
        lr=lr,
        workers=workers,
        out=Path(out) if out else None,
        data_dir=Path(data_dir) if data_dir else None,
    )
    full = _full_run(open_run_folder(Path(run)), asked.data_dir)
    narrowed = narrow_at(full, asked, watch or _nobody)
    from convoy.report.narrowing import draw_narrowing  # matplotlib takes its time

    draw_narrowing(narrowed.to_dict(), narrowed.folder / "narrow.png")
    return narrowed


def _full_run(folder: RunFolder, data_dir: Path | None) -> FullRun:
    settings = read_settings(folder)
    for thing, argument in ((settings.network, "network"), (settings.data, "dataset")):
        thing_of(None, thing, argument)  # of others no process knows what they are
    tensors, shape, classes = trained_network(folder)
    try:
        result = json.loads(folder.result.read_bytes())
        accuracy, loss, epochs = (result[k] for k in ("test_accuracy", "test_loss", "epochs"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder.result} cannot be read ({type(error).__name__}: {error}): expected what "
            "`convoy train` leaves when it is done"
        ) from None
    if accuracy is None or loss is None:
        found = evaluate(folder.path, data_dir=data_dir)
        accuracy, loss = found.accuracy, found.loss
    channels, height, width = shape
    return FullRun(
        path=folder.path,
        settings=settings,
        tensors=tensors,
        image_shape=(channels, height, width),
        classes=classes,
        accuracy=accuracy,
        loss=loss,
        epochs=epochs,
    )


def _nobody(progress: Progress) -> None:
    del progress
