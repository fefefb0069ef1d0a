"""Optimizers and learning rates, as functions of settings and step."""

from __future__ import annotations

import math

import torch
from torch import nn

from convoy.runtime.settings import TrainSettings

CUSTOMARY_LR = {"sgd": 0.01, "adam": 1e-3, "adamax": 2e-3, "adagrad": 1e-2, "adadelta": 1.0}
"""Used where no --lr is given: torch's defaults, and 0.01 for SGD."""


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer that `settings` name, over `model`'s trainable parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    lr, decay = base_lr(settings), settings.weight_decay
    match settings.optimizer:
        case "sgd":
            return torch.optim.SGD(
                parameters, lr=lr, momentum=settings.momentum, weight_decay=decay
            )
        case "adam":
            return torch.optim.Adam(parameters, lr=lr, weight_decay=decay)
        case "adamax":
            return torch.optim.Adamax(parameters, lr=lr, weight_decay=decay)
        case "adagrad":
            return torch.optim.Adagrad(parameters, lr=lr, weight_decay=decay)
        case "adadelta":
            return torch.optim.Adadelta(parameters, lr=lr, weight_decay=decay)
        case other:
            raise AssertionError(f"settings let an unknown optimizer through: {other}")


def base_lr(settings: TrainSettings) -> float:
    """The learning rate that schedules start from."""
    return settings.lr if settings.lr is not None else CUSTOMARY_LR[settings.optimizer]


def lr_at(step: int, *, settings: TrainSettings, num_steps: int, steps_per_epoch: int) -> float:
    """The learning rate of `step` (from 0) in a run of `num_steps`.

    Cosine: half a period from the base rate to 0 (Loshchilov & Hutter 2017, equation 5,
    without restarts). Warm-up: linear over the first steps (Goyal et al. 2017, section 2.2).
    """
    lr = base_lr(settings)
    match settings.lr_schedule:
        case "step":
            every = (settings.lr_step_epochs or 0) * steps_per_epoch or -(-num_steps // 3)
            lr *= settings.lr_gamma ** (step // every)
        case "cosine":
            progress = max(0, step - settings.warmup) / max(1, num_steps - settings.warmup)
            lr *= (1 + math.cos(math.pi * min(1.0, progress))) / 2
    if step < settings.warmup:
        lr *= (step + 1) / settings.warmup
    return lr
