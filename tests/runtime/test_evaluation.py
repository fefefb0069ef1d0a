from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from convoy.datasets import DataSet
from convoy.datasets.memory import in_memory
from convoy.runtime import evaluation
from convoy.runtime.evaluation import Sums, evaluate


class Brightness(nn.Module):
    """Logits for dark, grey and bright, by the mean of what a data set normalised."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([-mean, torch.full_like(mean, 0.25), mean], 1)


LABELS = [0, 0, 1, 2, 2, 2, 1]
PIXELS = [0, 0, 255, 255, 255, 0, 0]


@pytest.fixture
def data() -> DataSet:
    """One-pixel images, of which half are black and half white: -1 and 1 once normalised."""
    train = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), torch.tensor([0, 2])
    pixels = torch.tensor(PIXELS, dtype=torch.uint8).view(-1, 1, 1, 1)
    test = pixels, torch.tensor(LABELS)
    return in_memory("made up", train, test, class_names=("dark", "grey", "bright"))


def judge(data: DataSet, positions: range, model: nn.Module | None = None) -> Sums:
    return evaluate(
        model or Brightness(), data, positions, device=torch.device("cpu"), dtype=torch.float64
    )


def by_hand(positions: range) -> tuple[float, int, list[list[int]]]:
    """Loss, hits and confusion with logits [1, 1/4, -1] for black and [-1, 1/4, 1] for white."""
    loss, confusion = 0.0, [[0] * 3 for _ in range(3)]
    for position in positions:
        logits = [1.0, 0.25, -1.0] if PIXELS[position] == 0 else [-1.0, 0.25, 1.0]
        loss += math.log(sum(map(math.exp, logits))) - logits[LABELS[position]]
        confusion[LABELS[position]][logits.index(1.0)] += 1
    return loss, sum(confusion[i][i] for i in range(3)), confusion


@pytest.mark.parametrize("batch", [1, 2, 3, 256])
@pytest.mark.parametrize("positions", [range(7), range(3), range(2, 6), range(6, 7)])
def test_against_a_computation_by_hand(
    data: DataSet, positions: range, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", batch)
    sums = judge(data, positions)
    loss, correct, confusion = by_hand(positions)
    assert (sums.samples, sums.correct) == (len(positions), correct)
    assert sums.loss_sum == pytest.approx(loss, rel=1e-12)
    assert sums.confusion.tolist() == confusion


def test_rows_are_true_classes_and_columns_what_was_said(data: DataSet) -> None:
    sums = judge(data, range(7))
    assert sums.confusion.tolist() == [[2, 0, 0], [1, 0, 1], [1, 0, 2]]
    assert sums.confusion.sum(1).tolist() == torch.tensor(LABELS).bincount().tolist()
    assert sums.confusion.dtype == torch.int64


def test_parts_add_up_to_the_whole(data: DataSet) -> None:
    whole = judge(data, range(7))
    parts = [judge(data, positions) for positions in (range(3), range(3, 3), range(3, 7))]
    assert sum(part.samples for part in parts) == whole.samples
    assert sum(part.correct for part in parts) == whole.correct
    assert sum(part.loss_sum for part in parts) == pytest.approx(whole.loss_sum)
    assert torch.equal(sum(part.confusion for part in parts), whole.confusion)  # type: ignore[arg-type]


def test_a_rank_without_a_part(data: DataSet) -> None:
    sums = judge(data, range(4, 4))
    assert (sums.samples, sums.correct, sums.loss_sum) == (0, 0, 0.0)
    assert not sums.confusion.any()


def test_the_network_is_judged_in_evaluation_mode_and_every_mode_is_restored(
    data: DataSet,
) -> None:
    modes: list[bool] = []
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.9), Brightness())
    model[0].eval()  # frozen, as fine-tuning does it
    model[2].register_forward_hook(lambda module, *_: modes.append(module.training))
    sums = judge(data, range(7), model.double())
    assert modes == [False]
    assert [module.training for module in model] == [False, True, True]
    assert model[0].num_batches_tracked == 0
    assert sums.correct == 4  # dropout, were it active, would leave a tenth of the images


def test_modes_are_restored_when_judging_fails(data: DataSet) -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 5, dtype=torch.float64))
    with pytest.raises(RuntimeError):
        judge(data, range(7), model)
    assert all(module.training for module in model.modules())


def test_no_gradient_and_no_random_number_is_spent(data: DataSet) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout(0.5), Brightness()).double()
    before = torch.get_rng_state()
    judge(data, range(7), model)
    assert torch.equal(torch.get_rng_state(), before)
    assert model[0].weight.grad is None


def test_images_come_in_the_layout_and_precision_asked_for(data: DataSet) -> None:
    seen: list[tuple[torch.dtype, bool]] = []

    class Watching(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            last = images.is_contiguous(memory_format=torch.channels_last)
            seen.append((images.dtype, last))
            return super().forward(images)

    cpu = torch.device("cpu")
    for dtype in (torch.float32, torch.float64):
        evaluate(Watching(), data, range(7), device=cpu, dtype=dtype, layout="channels-last")
    assert seen == [(torch.float32, True), (torch.float64, True)]
