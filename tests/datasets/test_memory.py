from __future__ import annotations

import time

import torch

from convoy.datasets.memory import in_memory


def _random_set(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return pixels, torch.arange(count) % 10


def test_a_batch_is_scaled_and_normalised_by_the_training_split() -> None:
    pixels, targets = _random_set(50)
    names = tuple("abcdefghij")
    train, test = (pixels[:40], targets[:40]), (pixels[40:], targets[40:])
    data = in_memory("x", train, test, class_names=names)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (data.mean, data.std))
    indices = torch.tensor([7, 0, 7, 3])
    images, labels = data.test.batch(indices)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    torch.testing.assert_close(images, (pixels[40:][indices] / 255 - mean) / std)
    assert torch.equal(labels, targets[40:][indices])
    assert (data.train.image_shape, data.train.num_classes) == ((3, 32, 32), 10)
    assert data.train.class_names == names


def test_the_training_split_comes_out_with_mean_0_and_std_1() -> None:
    pixels, targets = _random_set(200)
    data = in_memory("x", (pixels, targets), (pixels, targets), class_names=tuple("abcdefghij"))
    images, _ = data.train.batch(torch.arange(200))
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


def test_an_empty_batch_is_empty() -> None:
    pixels, targets = _random_set(20)
    data = in_memory("x", (pixels, targets), (pixels, targets), class_names=tuple("abcdefghij"))
    images, labels = data.train.batch(torch.empty(0, dtype=torch.int64))
    assert images.shape == (0, 3, 32, 32)
    assert labels.shape == (0,)


def test_a_batch_of_a_hundred_costs_well_under_a_millisecond() -> None:
    pixels, targets = _random_set(1000)
    data = in_memory("x", (pixels, targets), (pixels, targets), class_names=tuple("abcdefghij"))
    indices = torch.arange(0, 1000, 10)
    fastest = float("inf")
    for _ in range(50):
        start = time.perf_counter()
        data.train.batch(indices)
        fastest = min(fastest, time.perf_counter() - start)
    assert fastest < 1e-3
