"""Algorithms of a model's layers: chosen in place, and back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convoy import networks
from convoy.errors import UnknownNameError, UsageError
from convoy.kernels import tuner, use_algorithm
from convoy.kernels.geometry import Geometry
from convoy.kernels.layers import ChosenConv2d, convolutions, first_layers, geometries
from convoy.kernels.passes import ByPass, by_pass


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same"),
        nn.ReLU(),
        nn.Conv2d(4, 4, (2, 3), stride=(1, 2), groups=2, bias=False),
        nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 3, 2, padding="same"),
    ).double()


def trained(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The output, and gradients of everything."""
    model.zero_grad()
    output = model(images)
    (output * output.detach().cos()).sum().backward()
    return [output.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    "algorithm",
    ["direct", "lowering", "pipelined", "torch/pipelined/lowering", "direct/torch/torch"],
)
def test_it_computes_what_it_did_and_is_changed_back(algorithm: str) -> None:
    model, images = network(), torch.randn(3, 2, 7, 8, dtype=torch.float64)
    before, names = trained(model, images), dict(model.named_parameters())
    assert use_algorithm(model, algorithm) is model
    assert [type(layer) for layer in model][::2] == [ChosenConv2d, ChosenConv2d, nn.Conv2d]
    assert f"algorithm={algorithm}" in repr(model)
    for ours, torchs in zip(trained(model, images), before, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)
    single = model(images[0])
    torch.testing.assert_close(single, before[0][0], rtol=1e-12, atol=1e-12)
    assert dict(model.named_parameters()).keys() == names.keys()
    assert all(model.get_parameter(name) is old for name, old in names.items())
    twin = copy.deepcopy(model)
    use_algorithm(model, "torch")
    assert not any(isinstance(layer, ChosenConv2d) for layer in model)
    assert "algorithm" not in repr(model)
    assert isinstance(twin[0], ChosenConv2d)


def test_layers_are_chosen_one_by_one() -> None:
    model = network()
    use_algorithm(model, {"2": "lowering"})
    assert [type(layer) for layer in model][::2] == [nn.Conv2d, ChosenConv2d, nn.Conv2d]
    with pytest.raises(UnknownNameError, match="convolution layer '7'"):
        use_algorithm(model, {"0": "direct", "7": "direct"})
    with pytest.raises(UsageError, match=r"layer '3' keeps torch's own.*pads with zeros"):
        use_algorithm(model, {"3": "direct"})
    with pytest.raises(UsageError, match="layer '4' keeps torch's own"):  # one more on one side
        use_algorithm(model, {"4": "direct"})
    with pytest.raises(UnknownNameError, match=r"'lowring'. Nearest: lowering"):
        use_algorithm(model, "lowring")
    with pytest.raises(UsageError, match="expected one, or three with / between them"):
        use_algorithm(model, "direct/direct")
    assert list(convolutions(model)) == ["0", "2"]
    assert isinstance(model[2], ChosenConv2d)  # nothing of what was refused is done
    assert not isinstance(model[0], ChosenConv2d)


def test_torch_compile_goes_through() -> None:
    model = use_algorithm(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), "pipelined")
    images = torch.randn(2, 2, 6, 6)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))
    compiled(images).sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(images).sum().backward()
    for found, expected in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(found, expected.grad)


def test_a_channels_last_model() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    expected = trained(model, images)
    for algorithm in ("torch/pipelined/direct", "pipelined/torch/torch"):
        use_algorithm(model, algorithm)
        for ours, torchs in zip(trained(model, images), expected, strict=True):
            torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-5)
        arguments = (images, model.weight, model.bias, [1, 1, 0, 0, 1, 1], 1, algorithm)
        torch.library.opcheck(torch.ops.convoy.convolve.default, arguments)


def test_geometries_of_a_network() -> None:
    model = networks.build("googlenet", input_shape=(3, 224, 224), num_classes=1000)
    found = geometries(model, torch.zeros(1, 3, 224, 224))
    assert len(found) == 57  # Szegedy et al., table 1
    assert sum(g.kernel != (1, 1) for g in found.values()) == 20
    first = next(iter(found.values()))
    assert first == Geometry(
        images=1, channels=3, height=224, width=224, filters=64, kernel=(7, 7), stride=(2, 2),
        padding=(3, 3),
    )  # fmt: skip
    assert model.training


def test_one_name_or_three() -> None:
    assert by_pass("direct") == ByPass("direct", "direct", "direct")
    assert str(by_pass("direct/torch/lowering")) == "direct/torch/lowering"
    assert str(ByPass("torch", "torch", "torch")) == "torch"


def test_layers_whose_input_needs_no_gradient() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)
            self.after, self.dropout = nn.Conv2d(2, 2, 1), nn.Dropout()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            both = self.left(images) + self.right(2 * images)
            return self.dropout(self.after(both))  # type: ignore[no-any-return]

    model = Two()
    before = torch.get_rng_state()
    with torch.no_grad():
        assert first_layers(model, torch.zeros(1, 1, 5, 5)) == {"left", "right"}
    assert model.dropout.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_each_layer_the_fastest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tuner.pooch, "os_cache", lambda _name: tmp_path)
    model = networks.build("lenet", input_shape=(1, 28, 28), num_classes=10).double()
    images = torch.randn(3, 1, 28, 28).double()
    expected, asked = model(images), []

    def played(
        geometry: Geometry, names: tuple[str, ...], passes: tuple[str, ...], **how: Any
    ) -> dict[tuple[str, str], float]:
        asked.append((geometry.images, how["last"], how["dtype"], passes))
        return {
            (what, name): 0.5 if name == "lowering" else 1.0 for what in passes for name in names
        }

    monkeypatch.setattr(tuner, "timed_as_op", played)
    use_algorithm(model, "auto", images)
    chosen = [layer.algorithm for layer in convolutions(model).values()]
    assert chosen == ["lowering/torch/lowering", "lowering"]
    assert sorted(asked) == [
        (4, False, torch.float64, ("forward", "input", "weight")),
        (4, False, torch.float64, ("forward", "weight")),
    ]
    torch.testing.assert_close(model(images), expected)
    with pytest.raises(
        UsageError, match=r"give it images, as use_algorithm\(model, 'auto', images"
    ):
        use_algorithm(model, "auto")
    with pytest.raises(UsageError, match="weights are torch.bfloat16; expected float32 or float64"):
        use_algorithm(model.bfloat16(), "auto", images)


def test_an_input_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.conv(input=images)  # type: ignore[no-any-return]

    assert geometries(Named(), torch.zeros(2, 1, 5, 5))["conv"].images == 2


@pytest.mark.parametrize("algorithm", ["torch-channels-last", "pipelined"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_network_stays_in_channels_last(algorithm: str, channels: int) -> None:
    layer = nn.Conv2d(channels, 4, 3).to(memory_format=torch.channels_last)
    images = torch.randn(2, channels, 6, 5)
    for given in (images, images.to(memory_format=torch.channels_last)):
        expected = layer(given)
        made = use_algorithm(layer, algorithm)(given)
        assert made.stride() == expected.stride() == (48, 1, 12, 4)
        torch.testing.assert_close(made, expected)
        use_algorithm(layer, "torch")
