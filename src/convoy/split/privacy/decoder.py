"""A network from what was sent back to the picture."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convoy.split.privacy.similarity import ssim

WIDTH = 64
LEARNING_RATE = 2e-3
BATCH = 64


class Decoder(nn.Module):
    """Features [n, C, h, w] (or [n, C]) to pictures [n, channels, H, W] of 0 to 1.

    As many doublings as bring it to the picture's size, with two convolutions before each. From
    a dense layer's features it begins with a dense layer to maps of 4x4.
    """

    def __init__(self, features: tuple[int, ...], picture: tuple[int, int, int]) -> None:
        super().__init__()
        channels, *self._size = picture
        self._dense: nn.Module | None = None
        if len(features) == 3:
            width, sides = features[0], features[1:]
        else:
            width, sides = WIDTH, (4, 4)
            self._dense = nn.Linear(math.prod(features), WIDTH * 16)
        doublings = max(0, math.ceil(math.log2(max(self._size) / max(sides))))
        layers: list[nn.Module] = []
        for step in range(doublings + 1):
            out = max(16, WIDTH >> step)
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            layers += [nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            layers += [nn.Upsample(scale_factor=2)] if step < doublings else []
            width = out
        self._maps = nn.Sequential(*layers)
        self._last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Pictures, on a scale of 0 to 1."""
        if self._dense is not None:
            features = self._dense(features.flatten(1)).view(-1, WIDTH, 4, 4)
        maps = self._maps(features)
        if list(maps.shape[2:]) != self._size:
            maps = F.interpolate(maps, self._size, mode="bilinear")
        return torch.sigmoid(self._last(maps))


def trained(features: Tensor, pictures: Tensor, *, epochs: int, seed: int = 0) -> Decoder:
    """A decoder that has learnt to make `pictures` of `features`.

    What it makes small is the sum of the mean absolute error and 1 - SSIM. It learns from features
    over their standard deviation, which in the end is a part of its first layer.

    Args:
        features: float32 [n, C, h, w] or [n, C].
        pictures: float32 [n, channels, H, W], of 0 to 1.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, channels, height, width = pictures.shape
        decoder = Decoder(tuple(features.shape[1:]), (channels, height, width))
        steps = epochs * math.ceil(len(features) / BATCH)
        optimizer = torch.optim.Adam(decoder.parameters(), LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, max(2, steps))
        scale = features.std() + 1e-6
        for _ in range(epochs):
            for part in torch.randperm(len(features)).split(BATCH):
                if len(part) < 2:  # batch normalisation needs two
                    continue
                made = decoder(features[part] / scale)
                loss = F.l1_loss(made, pictures[part]) + 1 - ssim(made, pictures[part]).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    with torch.no_grad():
        first = decoder._dense if decoder._dense is not None else decoder._maps[0]
        assert isinstance(first, nn.Linear | nn.Conv2d)
        first.weight /= scale
    return decoder.eval()


def made_by(decoder: Decoder, features: Tensor) -> Tensor:
    """Pictures of features, a part at a time."""
    with torch.inference_mode():
        return torch.cat([decoder(part) for part in features.split(BATCH)])
