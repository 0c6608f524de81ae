"""Posteriors that are known, and how far draws of any sampler are from them."""

from bnn_utils.references.known import Reference, names, reference
from bnn_utils.references.problems import PROBLEMS, Problem, problem
from bnn_utils.references.scoring import Distance, Score, score

__all__ = ["PROBLEMS", "Distance", "Problem", "Reference", "Score", "names", "problem", "reference", "score"]
