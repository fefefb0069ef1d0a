from __future__ import annotations

import pytest
import torch

from convoy.datasets import channels


def test_exact_agrees_with_floating_point() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1201, 3, 5, 4), dtype=torch.uint8, generator=generator)
    pixels[:, 1] //= 3
    found = channels.exact(pixels, 255)
    scaled = pixels.double() / 255
    assert found.mean == pytest.approx(scaled.mean(dim=(0, 2, 3)).tolist(), abs=1e-14)
    expected = scaled.transpose(0, 1).flatten(1).std(dim=1, correction=0)
    assert found.std == pytest.approx(expected.tolist(), abs=1e-14)


def test_full_scale_sets_the_unit() -> None:
    found = channels.exact(torch.tensor([0, 16], dtype=torch.uint8).view(2, 1, 1, 1), 16)
    assert (found.mean, found.std) == ((0.5,), (0.5,))


def test_a_constant_channel_gets_a_std_of_one() -> None:
    assert channels.exact(torch.full((3, 1, 2, 2), 7, dtype=torch.uint8), 255).std == (1.0,)
    assert channels.estimate(lambda _: torch.full((1, 2, 2), 0.3), 7).std == (1.0,)


def test_estimate_reads_all_of_a_small_set() -> None:
    images = torch.rand(120, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    found = channels.estimate(lambda index: images[index], len(images))
    assert found.mean == pytest.approx(images.mean(dim=(0, 2, 3)).tolist(), abs=1e-6)
    expected = images.transpose(0, 1).flatten(1).std(dim=1, correction=0)
    assert found.std == pytest.approx(expected.tolist(), abs=1e-6)


def test_estimate_reads_at_most_a_thousand_evenly_spaced_images() -> None:
    asked: list[int] = []

    def read(index: int) -> torch.Tensor:
        asked.append(index)
        return torch.full((1, 1, 1), index / 25_000)

    found = channels.estimate(read, 25_000)
    assert asked == list(range(0, 25_000, 25))
    assert found.mean[0] == pytest.approx(0.5, abs=1e-3)
