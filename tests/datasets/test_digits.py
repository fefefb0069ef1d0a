from __future__ import annotations

import hashlib

import torch

from convoy.datasets import open_dataset


def test_digits() -> None:
    data = open_dataset("digits")
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.train.image_shape == (1, 8, 8)
    assert data.train.class_names == tuple("0123456789")
    mean, std = data.mean[0], data.std[0]
    images, labels = data.test.batch(torch.arange(360))
    pixels = images * std + mean
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6
    torch.testing.assert_close(pixels * 16, (pixels * 16).round(), atol=1e-4, rtol=0)
    assert labels.bincount().tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]


def test_the_split_is_the_same_for_ever_and_for_every_seed() -> None:
    for seed in (0, 1):
        data = open_dataset("digits", seed=seed)
        images, labels = data.test.batch(torch.arange(len(data.test)))
        pixels = (images * data.std[0] + data.mean[0]).mul(16).round().to(torch.uint8)
        content = pixels.numpy().tobytes() + labels.to(torch.uint8).numpy().tobytes()
        assert (
            hashlib.sha256(content).hexdigest()
            == "e89f1555440e58205eb7ccf087c32398393c9304a5d0a0ab11747acb0079f195"
        )
