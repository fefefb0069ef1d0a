"""Our algorithms against torch's own convolution in float64, and autograd against differences."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.errors import UnknownNameError, UsageError
from convoy.kernels import convolve
from convoy.kernels.cpu import compiling, convolution, cutting, pipelined, threads
from convoy.kernels.cpu.tile import ROWS
from convoy.kernels.geometry import Geometry
from convoy.kernels.passes import ALGORITHMS, CHOICES, TORCH_CONTIGUOUS, TORCH_LAST


@dataclass(frozen=True)
class Case:
    """A convolution to be tried."""

    geometry: Geometry
    has_bias: bool
    seed: int


@st.composite
def cases(draw: Any) -> Case:
    """Shapes, strides, paddings, dilations and groups that fit one another."""
    groups = draw(st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    least = [max(1, span - 2 * pad) for span, pad in zip(spans, padding, strict=True)]
    return Case(
        geometry=Geometry(
            images=draw(st.integers(0, 4)),
            channels=groups * draw(st.integers(1, 3)),
            height=draw(st.integers(least[0], least[0] + 9)),
            width=draw(st.integers(least[1], least[1] + 24)),
            filters=groups * draw(st.integers(1, 9)),
            kernel=kernel,
            stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
            padding=padding,
            dilation=dilation,
            groups=groups,
        ),
        has_bias=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
    )


def drawn(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """Input, weight and bias."""
    g, generator = case.geometry, torch.Generator().manual_seed(case.seed)
    shapes = [(g.images, g.channels, g.height, g.width)]
    shapes += [(g.filters, g.channels // g.groups, *g.kernel)]
    shapes += [(g.filters,)] if case.has_bias else []
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return tuple(tensor.to(dtype) for tensor in made) + (() if case.has_bias else (None,))


def window(g: Geometry) -> tuple[Any, ...]:
    return g.stride, g.padding, g.dilation, g.groups


def gradients(function: Any, case: Case, dtype: torch.dtype, **how: Any) -> list[torch.Tensor]:
    """The output, and the gradients of a weighted sum of it."""
    given = [None if t is None else t.requires_grad_() for t in drawn(case, dtype)]
    output = function(*given, *window(case.geometry), **how)
    generator = torch.Generator().manual_seed(case.seed + 1)
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(dtype)
    (output * weights).sum().backward()
    return [output, *(t.grad for t in given if t is not None)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_it_is_torchs_convolution(
    algorithm: str, dtype: torch.dtype, near: float, case: Case
) -> None:
    expected = gradients(torch.nn.functional.conv2d, case, torch.float64)
    found = gradients(convolve, case, dtype, algorithm=algorithm)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype is dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=near, atol=near)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("num_threads", [1, 2, 3])
@settings(max_examples=12, deadline=None)
@given(case=cases(), span=st.integers(1, 40), deep=st.integers(1, 20))
def test_pieces_and_threads_change_nothing(
    algorithm: str, num_threads: int, case: Case, span: int, deep: int
) -> None:
    x, weight, _ = drawn(case)
    g = case.geometry
    given = x.numpy(), weight.numpy()
    size = {"span": span, "deep": deep} if algorithm == "pipelined" else {}
    of_input = {"span": span} if size else {}
    made = convolution.forward(g, *given, None, algorithm, num_threads, **size)
    expected = torch.nn.functional.conv2d(
        x.requires_grad_(), weight.requires_grad_(), None, *window(g)
    )
    near = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(torch.from_numpy(made), expected, **near)
    again = convolution.forward(g, *given, None, algorithm, num_threads, **size)
    assert (made == again).all()
    expected.backward(torch.from_numpy(made))
    how = (algorithm, num_threads)
    for _ in range(2):
        to_weight = convolution.weight_gradient(g, given[0], made, *how, **of_input)
        to_input = convolution.input_gradient(g, made, given[1], *how, **of_input)
        torch.testing.assert_close(torch.from_numpy(to_weight), weight.grad, **near)
        torch.testing.assert_close(torch.from_numpy(to_input), x.grad, **near)
    assert (to_weight == convolution.weight_gradient(g, given[0], made, *how, **of_input)).all()
    assert (to_input == convolution.input_gradient(g, made, given[1], *how, **of_input)).all()


@pytest.mark.parametrize("algorithm", ["direct", "pipelined"])
@pytest.mark.parametrize("num_threads", [2, 3, 7])
def test_the_same_bits_for_any_number_of_threads(algorithm: str, num_threads: int) -> None:
    geometry = Geometry(
        images=70, channels=44, height=8, width=7, filters=38, kernel=(3, 3), padding=(1, 1),
        stride=(1, 2), groups=2,
    )  # fmt: skip
    cut, blocks = cutting.weight_pieces(geometry, 4, num_threads)
    assert (cut.size - 1) * (blocks.size - 1) > 4
    assert cutting.channel_blocks(geometry, 1, num_threads).size > 3
    x, weight, _ = (t.float().numpy() for t in drawn(Case(geometry, has_bias=True, seed=5)))

    def made(threads: int) -> list[Any]:
        how = (algorithm, threads)
        output = convolution.forward(geometry, x, weight, None, *how)
        return [
            output,
            convolution.input_gradient(geometry, output, weight, *how),
            convolution.weight_gradient(geometry, x, output, *how),
        ]

    found = made(num_threads)
    for one, several in zip(made(1), found, strict=True):
        assert (one == several).all()
    assert_torchs(geometry, x, weight, found)


LARGE = {
    "a deep one": Geometry(
        images=3, channels=512, height=14, width=14, filters=40, kernel=(3, 3), padding=(1, 1)
    ),
    "small maps": Geometry(
        images=16, channels=160, height=7, width=7, filters=77, kernel=(5, 5), padding=(2, 2)
    ),
    "large maps": Geometry(
        images=64, channels=16, height=32, width=32, filters=32, kernel=(5, 5), padding=(2, 2),
        stride=(2, 2),
    ),
    "depthwise": Geometry(
        images=5, channels=192, height=28, width=28, filters=192, kernel=(3, 3), padding=(1, 1),
        groups=192,
    ),
    "one position": Geometry(
        images=1, channels=512, height=3, width=3, filters=256, kernel=(3, 3)
    ),
    "all of it": Geometry(
        images=7, channels=300, height=11, width=13, filters=100, kernel=(2, 3), groups=2,
        dilation=(3, 1), padding=(3, 2), stride=(3, 2),
    ),
    "strides beyond the image": Geometry(
        images=2, channels=3, height=5, width=5, filters=4, kernel=(2, 2), stride=(10**6, 2**40)
    ),
}  # fmt: skip


@pytest.mark.parametrize("geometry", LARGE.values(), ids=LARGE)
def test_pipelined_at_sizes_that_are_cut(geometry: Geometry) -> None:
    x, weight = (t.numpy() for t in drawn(Case(geometry, has_bias=False, seed=6))[:2])
    output = convolution.forward(geometry, x, weight, None, "pipelined", 2)
    found = [
        output,
        convolution.input_gradient(geometry, output, weight, "pipelined", 2),
        convolution.weight_gradient(geometry, x, output, "pipelined", 2),
    ]
    assert_torchs(geometry, x, weight, found)


def test_sizes_are_cut() -> None:
    assert cutting.deep_of(LARGE["a deep one"].depth, 8) < LARGE["a deep one"].depth
    parts, _ = cutting.weight_pieces(LARGE["large maps"], 8, 2)
    assert parts.size > 8
    assert (parts[0], parts[-1]) == (0, 64 * 16 * 16)
    _, blocks = cutting.weight_pieces(LARGE["small maps"], 8, 2)
    assert blocks.size > 4


def assert_torchs(geometry: Geometry, x: Any, weight: Any, found: list[Any]) -> None:
    """The output, and both gradients of half its square's sum, are those of torch in float64."""
    given = [torch.from_numpy(one).double().requires_grad_() for one in (x, weight)]
    stride = tuple(min(s, 2**31 - 1) for s in geometry.stride)
    expected = torch.nn.functional.conv2d(
        *given, None, stride, geometry.padding, geometry.dilation, geometry.groups
    )
    expected.backward(torch.from_numpy(found[0]).double())
    near = 1e-11 if x.dtype == "float64" else 2e-4
    for ours, theirs in zip(found, (expected, given[0].grad, given[1].grad), strict=True):
        assert theirs is not None
        scale = float(theirs.detach().abs().max())
        assert (
            float((torch.from_numpy(ours).double() - theirs.detach()).abs().max()) <= near * scale
        )


def test_what_is_compiled_is_of_these_sources() -> None:
    kept = pipelined.forward._cache._cache_file._source_stamp  # type: ignore[attr-defined]
    assert kept == compiling._digest()


@given(
    total=st.integers(1, 5000),
    most=st.integers(1, 600),
    unit=st.integers(1, 40),
    portion=st.integers(1, 9),
)
def test_pieces_are_all_of_it(total: int, most: int, unit: int, portion: int) -> None:
    found = cutting.edges(total, most, unit, portion)
    sizes = found[1:] - found[:-1]
    assert (found[0], found[-1]) == (0, total)
    assert (sizes > 0).all()
    assert sizes.max() <= cutting.up(most, unit)
    assert (sizes[:-1] % unit == 0).all()
    assert portion == 1 or (sizes[:-1] >= sizes[1:]).all()


@given(
    case=cases(), channels=st.integers(1, 90), ranges=st.integers(1, 30), threads=st.integers(1, 5)
)
def test_blocks_are_whole_channels(case: Case, channels: int, ranges: int, threads: int) -> None:
    g = replace(case.geometry, channels=channels * case.geometry.groups)
    panels = -(-g.depth // ROWS)
    found = cutting.channel_blocks(g, ranges, threads)
    assert (found[0], found[-1]) == (0, g.groups * panels)
    assert (found[1:] > found[:-1]).all()
    assert threads > 1 or found.size == 2
    for start in found:
        inside = start % panels * ROWS
        assert inside % (g.kernel[0] * g.kernel[1]) == 0


GROUPED = Geometry(
    images=2, channels=4, height=5, width=4, filters=4, kernel=(3, 2), stride=(2, 1),
    padding=(1, 0), dilation=(1, 2), groups=2,
)  # fmt: skip


@pytest.mark.parametrize("algorithm", CHOICES)
def test_gradients_are_those_of_differences(algorithm: str) -> None:
    given = [t.requires_grad_() for t in drawn(Case(GROUPED, has_bias=True, seed=1))]

    def made(*tensors: torch.Tensor) -> torch.Tensor:
        return convolve(*tensors, *window(GROUPED), algorithm=algorithm)

    assert torch.autograd.gradcheck(made, given)
    assert torch.autograd.gradgradcheck(made, given)


@pytest.mark.parametrize("algorithm", [*CHOICES[1:], "lowering/torch/torch-channels-last"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_layout_stays(algorithm: str, layout: torch.memory_format) -> None:
    def given() -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, _ = drawn(Case(GROUPED, has_bias=False, seed=4))
        laid = [tensor.contiguous(memory_format=layout) for tensor in (x, weight)]
        return laid[0].requires_grad_(), laid[1].requires_grad_()

    ours, torchs = given(), given()
    made = convolve(*ours, None, *window(GROUPED), algorithm=algorithm)
    expected = torch.nn.functional.conv2d(*torchs, None, *window(GROUPED))
    made.square().sum().backward()
    expected.square().sum().backward()
    assert made.stride() == expected.stride()
    torch.testing.assert_close(made, expected)
    for mine, theirs in zip(ours, torchs, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
        assert mine.grad is not None
        assert mine.grad.stride() == mine.stride()


@pytest.mark.parametrize(
    ("algorithm", "layout"),
    [
        ("pipelined", torch.contiguous_format),
        ("pipelined", torch.channels_last),
        (TORCH_LAST, torch.contiguous_format),
        (f"lowering/torch/{TORCH_CONTIGUOUS}", torch.channels_last),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_operations_are_as_torch_wants_them(
    algorithm: str, layout: torch.memory_format, channels: int
) -> None:
    geometry = Geometry(images=2, channels=channels, height=5, width=5, filters=3, kernel=(3, 3))
    inputs, weight, bias = drawn(Case(geometry, has_bias=True, seed=2), torch.float32)
    inputs, weight = (t.contiguous(memory_format=layout) for t in (inputs, weight))
    arguments = (inputs.requires_grad_(), weight, bias, [1, 1, 0, 0, 1, 1], 1, algorithm)
    torch.library.opcheck(torch.ops.convoy.convolve.default, arguments)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch's own
def test_transforms_of_torchs() -> None:
    x, weight, _ = drawn(Case(GROUPED, has_bias=False, seed=5))
    along = torch.ones_like(weight)

    def ours(weight: torch.Tensor) -> torch.Tensor:
        return convolve(x, weight, None, *window(GROUPED), algorithm="pipelined")

    def torchs(weight: torch.Tensor) -> torch.Tensor:
        return torch.conv2d(x, weight, None, *window(GROUPED))

    for transform in (torch.func.jvp, torch.autograd.functional.jvp):
        _, found = transform(ours, (weight,), (along,))
        _, expected = transform(torchs, (weight,), (along,))
        torch.testing.assert_close(found, expected)
        assert found.abs().max() > 1
    found, expected = (
        torch.func.grad(lambda weight, of=of: of(weight).square().sum())(weight)
        for of in (ours, torchs)
    )
    torch.testing.assert_close(found, expected)


def test_torchs_own_has_other_dtypes() -> None:
    x, weight = torch.ones(1, 2, 5, 5).bfloat16(), torch.ones(3, 2, 3, 3).bfloat16()
    made = convolve(x, weight, algorithm=TORCH_LAST)
    torch.testing.assert_close(made, torch.conv2d(x, weight))


@pytest.mark.parametrize("what", ["stride", "padding", "dilation"])
def test_numbers_that_are_none(what: str) -> None:
    inputs, weight = torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 3, 3)
    for wrong in (-1, (1, 2, 3), 1.5):
        with pytest.raises(UsageError, match=f"{what} .*: expected an integer"):
            convolve(inputs, weight, **{what: wrong})  # type: ignore[arg-type]


def test_what_does_not_fit_is_said() -> None:
    inputs, weight = torch.zeros(1, 4, 5, 5), torch.zeros(6, 2, 3, 3)
    with pytest.raises(UnknownNameError, match=r"'pipeline'. Nearest: pipelined"):
        convolve(inputs, weight, groups=2, algorithm="pipeline")
    with pytest.raises(UsageError, match=r"groups 1\.5: expected an integer"):
        convolve(inputs, weight, groups=1.5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the input is no dense torch.Tensor: ndarray"):
        convolve(inputs.numpy(), weight)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="groups 0: expected an integer, 1 or more"):
        convolve(inputs, weight, groups=0)
    with pytest.raises(UsageError, match="expected 2 channels"):
        convolve(inputs, weight)
    with pytest.raises(UsageError, match="4 groups .* expected a number of groups that divides"):
        convolve(torch.zeros(1, 8, 5, 5), weight, groups=4)
    with pytest.raises(UsageError, match="spans 7 and the padded input has a height of 5"):
        convolve(inputs, torch.zeros(6, 4, 7, 1))
    with pytest.raises(UsageError, match="spans 9 and the padded input has a width of 7"):
        convolve(inputs, torch.zeros(6, 4, 1, 5), padding=1, dilation=2)
    with pytest.raises(UsageError, match="of 0x5, 6 filters"):
        convolve(torch.zeros(1, 4, 0, 5), weight, padding=1, groups=2)
    with pytest.raises(UsageError, match=r"a bias of \[5\]: expected \[6\]"):
        convolve(inputs, weight, torch.zeros(5), groups=2)
    with pytest.raises(UsageError, match="bfloat16.*expected float32 or float64"):
        convolve(inputs.bfloat16(), weight.bfloat16(), groups=2)
    with pytest.raises(UsageError, match="weight is torch.float64 and the input torch.float32"):
        convolve(inputs, weight.double(), groups=2)
    with pytest.raises(UsageError, match="on meta: pipelined runs on a CPU only"):
        convolve(inputs.to("meta"), weight, groups=2)
    with pytest.raises(UsageError, match=r"an input \[4, 5, 5\] and a weight"):
        convolve(inputs[0], weight)


@pytest.mark.parametrize("is_torchs", [True, False])
def test_threads(monkeypatch: pytest.MonkeyPatch, is_torchs: bool) -> None:
    if not is_torchs:
        monkeypatch.setattr(threads, "_torchs_openmp", lambda: None)
    ranges = threads.shares(100, 3)
    assert [b - a for a, b in ranges] == [33, 33, 34]
    done: dict[int, tuple[int, int]] = {}
    threads.in_parallel(lambda number, *part: done.update({number: part}), ranges)
    assert done == dict(enumerate(ranges))

    def fails(number: int, *_: int) -> None:
        if number == 2:
            raise ValueError("the third")

    with pytest.raises(ValueError, match="the third"):
        threads.in_parallel(fails, ranges)
    assert threads.shares(10, 4, unit=4) == [(0, 4), (4, 8), (8, 10)]
    assert threads.shares(0, 2) == [(0, 0)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_threads_of_the_users_own(algorithm: str) -> None:
    geometry = Geometry(
        images=4, channels=3, height=9, width=9, filters=5, kernel=(3, 3), padding=(1, 1)
    )
    inputs, weight, _ = drawn(Case(geometry, has_bias=False, seed=3))
    expected = torch.nn.functional.conv2d(inputs, weight, padding=1)
    with ThreadPoolExecutor(4) as pool:
        made = pool.map(
            lambda _: convolution.forward(
                geometry, inputs.numpy(), weight.numpy(), None, algorithm, 2
            ),
            range(40),
        )
        for one in made:
            torch.testing.assert_close(torch.from_numpy(one), expected, rtol=1e-11, atol=1e-11)
