from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import convoy
from convoy import networks
from convoy.api import resolve_settings
from convoy.datasets import open_dataset
from convoy.errors import CheckpointError, UnknownNameError, UsageError
from convoy.runtime.run_folder import RunFolder
from convoy.runtime.settings import TrainSettings

NETWORK, DATA = "chavan:3-4-8-3", "synthetic:1x8x8:3:64"
SHAPE, CLASSES = (1, 8, 8), 3

MakeRun = Callable[..., RunFolder]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A function that makes the folder of a run that has finished, without training."""

    def make(name: str = "run", **settings: Any) -> RunFolder:
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        settings = {"network": NETWORK, "data": DATA} | settings
        folder.write_settings(TrainSettings(out=folder.path, **settings))
        folder.write_json("plan.json", {"image_shape": list(SHAPE), "classes": CLASSES})
        dtype = torch.float64 if settings.get("precision") == "fp64" else torch.float32
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            model = networks.build(NETWORK, input_shape=SHAPE, num_classes=CLASSES).to(dtype)
        folder.write_model(dict(model.state_dict()), {})
        return folder

    return make


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    """A function that writes a config file."""

    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return path

    return write


WriteConfig = Callable[[str], Path]


def test_defaults() -> None:
    assert resolve_settings({}, config=None) == TrainSettings()


def test_flags_win_over_the_file(config: WriteConfig) -> None:
    path = config('batch-size = 8\nlr = 0.5\nstrategy = "averaging"\naverage_every = 4\n')
    found = resolve_settings({"lr": 0.25, "average_every": 2}, config=path)
    assert found == TrainSettings(
        batch_size=8, lr=0.25, strategy="averaging", strategy_options={"average_every": 2}
    )


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("epochs = 5", {"steps": 7}),
        ("steps = 5", {"epochs": 7}),
        ("workers = 5", {"cluster": "ray"}),
        ('cluster = "ray"', {"workers": 7}),
    ],
)
def test_a_flag_replaces_what_says_the_same_in_the_file(
    config: WriteConfig, text: str, given: dict[str, Any]
) -> None:
    assert resolve_settings(given, config=config(text)) == TrainSettings(**given)
    nothing = dict.fromkeys(given)
    name = text.partition(" ")[0]
    assert getattr(resolve_settings(nothing, config=config(text)), name) is not None


def test_errors_name_where_the_mistake_is(config: WriteConfig, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"option in .*config\.toml 'batchsize'"):
        resolve_settings({}, config=config("batchsize = 3"))
    with pytest.raises(UsageError, match=r"--lr in .*config\.toml: expected a number"):
        resolve_settings({"lr": 0.5}, config=config('lr = "high"'))
    with pytest.raises(UsageError, match=r"--lr in the options: expected a number"):
        resolve_settings({"lr": "high"}, config=config("lr = 0.5"))
    with pytest.raises(UsageError, match="cannot read --config"):
        resolve_settings({}, config=tmp_path / "absent.toml")
    with pytest.raises(UsageError, match="--epochs and --steps"):
        resolve_settings({"epochs": 1, "steps": 1}, config=None)


def test_a_resumed_run_keeps_what_it_was_started_with(make_run: MakeRun) -> None:
    run = make_run(
        batch_size=8, seed=3, lr=0.5, workers=2, epochs=4, strategy_options={"wire": "bf16"}
    )
    found = resolve_settings({"resume": run.path}, config=None)
    assert found == TrainSettings(
        network=NETWORK,
        data=DATA,
        batch_size=8,
        seed=3,
        lr=0.5,
        workers=2,
        epochs=4,
        strategy_options={"wire": "bf16"},
        resume=run.path,
    )
    assert resolve_settings({"resume": str(run.path), "batch_size": 8}, config=None) == found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("network", "lenet"),
        ("data", "digits"),
        ("seed", 4),
        ("batch_size", 16),
        ("optimizer", "adam"),
        ("precision", "fp64"),
    ],
)
def test_what_a_resumed_run_cannot_change(make_run: MakeRun, name: str, value: Any) -> None:
    run = make_run()
    before = getattr(TrainSettings(network=NETWORK, data=DATA), name)
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(UsageError) as caught:
        resolve_settings({"resume": run.path, name: value}, config=None)
    said = str(caught.value)
    assert said.startswith(f"{flag} {value} differs from the {before} that {run.path} was started")


@pytest.mark.parametrize(
    ("before", "given", "after"),
    [
        ({"epochs": 4}, {"epochs": 9}, {"epochs": 9}),
        ({"epochs": 4}, {"steps": 9}, {"steps": 9}),
        ({"steps": 4}, {"epochs": 9}, {"epochs": 9}),
        ({"workers": 2}, {"workers": 3}, {"workers": 3}),
        ({"workers": 2}, {"cluster": "ray"}, {"cluster": "ray"}),
        ({"cluster": "ray"}, {"workers": 3}, {"workers": 3}),
        ({"workers": 2, "shares": (2.0, 1.0)}, {"workers": 3}, {"workers": 3}),
        ({"workers": 2, "shares": (2.0, 1.0)}, {"lr": 0.5}, {"workers": 2, "shares": (2, 1)}),
        ({"workers": 2}, {"shares": "3,1"}, {"workers": 2, "shares": (3.0, 1.0)}),
        (
            {"strategy_options": {"wire": "bf16"}},
            {"strategy": "averaging", "average_every": 2},
            {"strategy": "averaging", "strategy_options": {"average_every": 2}},
        ),
        (
            {"strategy": "data", "strategy_options": {"wire": "bf16"}},
            {"strategy": "data", "batch_norm": "local"},
            {"strategy": "data", "strategy_options": {"wire": "bf16", "batch_norm": "local"}},
        ),
    ],
)
def test_what_a_resumed_run_may_change(
    make_run: MakeRun, before: dict[str, Any], given: dict[str, Any], after: dict[str, Any]
) -> None:
    run = make_run(**before)
    found = resolve_settings({"resume": run.path} | given, config=None)
    if "lr" in given:
        after = after | given
    assert found == TrainSettings(network=NETWORK, data=DATA, resume=run.path, **after)


def test_a_config_file_may_name_the_run_to_resume(
    make_run: MakeRun, config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(seed=3)
    monkeypatch.setenv("HOME", str(run.path.parent))
    path = config('resume = "~/run"\nlr = 0.5')
    found = resolve_settings({}, config=path)
    assert (found.resume, found.seed, found.lr) == (run.path, 3, 0.5)
    with pytest.raises(UsageError, match="--seed 1 differs from the 3"):
        resolve_settings({"seed": 1}, config=path)


def test_resuming_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run folder"):
        resolve_settings({"resume": tmp_path}, config=None)


def by_hand(
    model: nn.Module, data: str = DATA, precision: str = "fp32"
) -> tuple[float, float, list[list[int]]]:
    """Accuracy, loss and confusion over all test images at once, by the definitions."""
    test = open_dataset(data).test
    images, labels = test.batch(torch.arange(len(test)))
    model.eval()
    dtype = next(model.parameters()).dtype
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = model(images.to(dtype)).double().tolist()
    loss, confusion = 0.0, [[0] * CLASSES for _ in range(CLASSES)]
    for row, label in zip(logits, labels.tolist(), strict=True):
        loss += math.log(sum(map(math.exp, row))) - row[label]
        confusion[label][row.index(max(row))] += 1
    right = sum(confusion[i][i] for i in range(CLASSES))
    return right / len(labels), loss / len(labels), confusion


def loaded(folder: RunFolder, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = networks.build(NETWORK, input_shape=SHAPE, num_classes=CLASSES).to(dtype)
    model.load_state_dict(load_file(folder.model))
    return model


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_a_saved_run_is_judged(make_run: MakeRun, precision: str) -> None:
    run = make_run(precision=precision)
    found = convoy.evaluate(run.path)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    accuracy, loss, confusion = by_hand(loaded(run, dtype), precision=precision)
    assert (found.run, found.network, found.dataset) == (str(run.path), NETWORK, DATA)
    assert (found.samples, found.accuracy, found.confusion) == (16, accuracy, confusion)
    assert found.loss == pytest.approx(loss, rel=1e-12 if precision == "fp64" else 1e-5)
    assert found.class_names == ["0", "1", "2"]


def test_another_data_set_of_the_same_kind(make_run: MakeRun) -> None:
    run, other = make_run(), "synthetic:1x8x8:3:200"
    found = convoy.evaluate(str(run.path), dataset=other)
    accuracy, loss, confusion = by_hand(loaded(run), other)
    assert (found.dataset, found.samples) == (other, 50)
    assert (found.accuracy, found.confusion) == (accuracy, confusion)
    assert found.loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("other", "has"),
    [("synthetic:3x8x8:3", "3x8x8 and 3"), ("synthetic:1x8x8:4", "1x8x8 and 4")],
)
def test_a_data_set_of_another_kind(make_run: MakeRun, other: str, has: str) -> None:
    run = make_run()
    said = f"{run.path} was trained on 1x8x8 images of 3 classes; {other} has {has}"
    with pytest.raises(UsageError, match=re.escape(said)):
        convoy.evaluate(run.path, dataset=other)


def make(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A user's own function that builds the network."""
    return networks.build(NETWORK, input_shape=input_shape, num_classes=num_classes)


def test_a_network_given_in_python_is_to_be_given_again(make_run: MakeRun) -> None:
    run = make_run(network="python:make")
    with pytest.raises(UsageError, match=r"network 'make' was given in Python.*network=\.\.\."):
        convoy.evaluate(run.path)
    expected = by_hand(loaded(run))[0]
    assert convoy.evaluate(run.path, network=make).accuracy == expected
    assert convoy.evaluate(run.path, network=make(SHAPE, CLASSES)).accuracy == expected
    assert convoy.evaluate(run.path, network=NETWORK).accuracy == expected


def test_a_data_set_given_in_python_is_to_be_given_again(make_run: MakeRun) -> None:
    run = make_run(data="python:Pictures")
    with pytest.raises(UsageError, match=r"dataset 'Pictures' was given .*dataset=\.\.\."):
        convoy.evaluate(run.path)
    assert convoy.evaluate(run.path, dataset=open_dataset(DATA)).samples == 16


@pytest.mark.parametrize("given", [{"network": make}, {"dataset": open_dataset}])
def test_what_is_given_in_python_has_to_be_given_again_to_resume(
    make_run: MakeRun, given: dict[str, Any]
) -> None:
    (argument,) = given
    run = make_run(**{"data" if argument == "dataset" else argument: "python:mine"})
    with pytest.raises(UsageError, match=f"pass it again, as {argument}="):
        convoy.train(resume=run.path)


def test_another_network_does_not_fit(make_run: MakeRun) -> None:
    with pytest.raises(UsageError, match=r"model\.safetensors does not fit the network"):
        convoy.evaluate(make_run().path, network="chavan:3-5-8-3")


def test_a_run_that_has_not_finished(make_run: MakeRun) -> None:
    run = make_run()
    run.model.unlink()
    with pytest.raises(CheckpointError, match=f"did not finish.*--resume {run.path}"):
        convoy.evaluate(run.path)


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run folder"):
        convoy.evaluate(tmp_path)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_model_that_was_cut(make_run: MakeRun, size: int) -> None:
    run = make_run()
    run.model.write_bytes(run.model.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        convoy.evaluate(run.path)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"image_shape": 3, "classes": 3}'])
def test_a_plan_that_is_none(make_run: MakeRun, content: str | None) -> None:
    run = make_run()
    plan = run.path / "plan.json"
    plan.unlink()
    if content is not None:
        plan.write_text(content)
    with pytest.raises(CheckpointError, match=r"plan\.json cannot be read"):
        convoy.evaluate(run.path)


class Odd(nn.Module):
    """A network of the user's own."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def test_what_run_toml_calls_things_given_in_python() -> None:
    label = convoy.api.requests.label_of
    assert label("lenet") == "lenet"
    assert label(make) == "python:make"
    assert label(Odd) == label(Odd()) == "python:Odd"
    assert label(open_dataset(DATA)) == f"python:{DATA}"
    assert label((Odd(), Odd())) == "python:Odd"


def test_the_evaluation_is_plain_json(make_run: MakeRun) -> None:
    found = convoy.evaluate(make_run().path)
    assert json.loads(json.dumps(vars(found))) == vars(found)
