"""A network of your own, defined in this file, trained by two ranks on handwritten digits.

    .venv/bin/python examples/own_network.py

The class itself is passed, not an instance: every rank builds the network from the seed, and is
told the shape of the images and how many classes there are. It travels to the ranks' processes by
value. The guard at the end keeps a process that only imports this file from training as well.
"""

from __future__ import annotations

from torch import Tensor, nn

import convoy


class Residual(nn.Module):
    """Two convolutions with a shortcut around the second, and a dense layer."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16 * height * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] to logits [N, classes]."""
        x = self.norm1(self.conv1(images)).relu()
        x = x + self.conv2(x).relu()
        return self.head(x.flatten(1))


def main() -> None:
    """Train, and judge what was saved."""
    result = convoy.train(network=Residual, dataset="digits", workers=2, epochs=5, lr=0.05)
    assert result is not None, "only ranks that torchrun starts return nothing"
    print(f"{result.test_accuracy:.1%} right, {result.images_per_s:,.0f} images/s")
    again = convoy.evaluate(result.folder, network=Residual)
    print(f"{again.accuracy:.1%} of {again.samples} test images from {result.folder}")


if __name__ == "__main__":
    main()
