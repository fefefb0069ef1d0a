"""Predicts what each way of distributing a network over a world costs, and ranks them."""

from convoy.planner.predict import Prediction, Task, play, predict, problem_of
from convoy.planner.ranking import Ranking, rank_plans

__all__ = [
    "Prediction",
    "Ranking",
    "Task",
    "play",
    "predict",
    "problem_of",
    "rank_plans",
]
