"""A decoder sees what there is to see, and nothing where there is nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from convoy.split.privacy.decoder import Decoder, made_by, trained
from convoy.split.privacy.similarity import ssim


def pictures(count: int) -> torch.Tensor:
    """Soft blobs, float32 [count, 1, 16, 16]."""
    draw = torch.Generator().manual_seed(5)
    return F.interpolate(torch.rand(count, 1, 4, 4, generator=draw), (16, 16), mode="bilinear")


@pytest.mark.parametrize(
    ("features", "picture"),
    [
        ((8, 8, 8), (3, 32, 32)),
        ((5, 3, 3), (1, 8, 8)),
        ((10,), (3, 32, 32)),
        ((3, 7, 7), (3, 112, 112)),
    ],
)
def test_it_makes_pictures_of_any_features(
    features: tuple[int, ...], picture: tuple[int, int, int]
) -> None:
    made = made_by(Decoder(features, picture).eval(), torch.zeros(2, *features))
    assert made.shape == (2, *picture)
    assert 0 <= made.min() <= made.max() <= 1


def test_what_features_tell_is_seen_and_what_they_do_not_is_not() -> None:
    shown = pictures(240)
    telling = F.avg_pool2d(shown, 4) * 300  # on another scale
    silent = torch.zeros_like(telling) + 7
    seen = {}
    for name, features in (("telling", telling), ("silent", silent)):
        decoder = trained(features[:192], shown[:192], epochs=10)
        made = made_by(decoder, features[192:])
        seen[name] = float(ssim(made, shown[192:]).mean())
    assert seen["telling"] > 0.9
    assert seen["silent"] < 0.5


def test_the_same_seed_makes_the_same_decoder() -> None:
    shown = pictures(64)
    features = F.avg_pool2d(shown, 4)
    before = torch.get_rng_state()
    one, other = (made_by(trained(features, shown, epochs=1), features) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
