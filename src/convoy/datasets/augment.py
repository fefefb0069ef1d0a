"""Random crops and flips, drawn for the whole batch at once and cut up like the batch.

    draws = draw(batch_size, generator)           # every rank draws the same
    mine = flip_crop(images[a:b], draws[a:b])     # and applies its own rows

So a sample is changed in the same way however many ranks share the batch. The
scheme is that of He et al., "Deep Residual Learning for Image Recognition"
(2016), section 4.2: pad by 4, crop at random, flip at random.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4


def draw(count: int, generator: torch.Generator, padding: int = PADDING) -> Tensor:
    """What is to happen to each of `count` images: int64 [count, 3] of flip, dy, dx.

    Flip is 0 or 1; dy and dx, in 0..2*padding, say where in the padded image
    the crop begins. All three come from one random number per image, so the
    first k rows are those that `draw(k)` would have given.
    """
    places = 2 * padding + 1
    number = torch.randint(
        2 * places * places, (count,), generator=generator, device=generator.device
    )
    return torch.stack((number % 2, number // 2 % places, number // (2 * places)), dim=1)


def flip_crop(images: Tensor, draws: Tensor, padding: int = PADDING) -> Tensor:
    """`images` [n, C, H, W] padded with zeros, cropped back to H x W and flipped, by `draws`.

    `draws` is int64 [n, 3], from `draw` with the same padding. Returns a new
    tensor of the same shape and type. The images are normalised, so the zeros
    that come in at the edges are the mean colour.
    """
    n, channels, height, width = images.shape
    flip, dy, dx = draws.to(images.device).unbind(dim=1)
    padded = F.pad(images, (padding, padding, padding, padding))
    rows = dy[:, None] + torch.arange(height, device=images.device)
    across = torch.arange(width, device=images.device).expand(n, width)
    across = torch.where(flip[:, None] == 1, width - 1 - across, across) + dx[:, None]
    # One gather on the flattened plane: the same place for every channel.
    places = rows[:, :, None] * padded.shape[3] + across[:, None, :]
    places = places.view(n, 1, height * width).expand(n, channels, height * width)
    return padded.flatten(2).gather(2, places).view(n, channels, height, width)
