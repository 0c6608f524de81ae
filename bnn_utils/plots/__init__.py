"""The figures of the notebooks, in one style: every function returns a `Figure`, which shows itself in a cell."""

from bnn_utils.plots.chains import against_published, autocorrelations, energies, ranks, speed, traces
from bnn_utils.plots.convergence import convergence_maps, rhat_comparison, rhat_map, rhat_maps, rhat_weights
from bnn_utils.plots.explorers import (
    MeanAndDisagreement,
    editable_points,
    mean_and_disagreement,
    prior_predictive,
    trajectories,
)
from bnn_utils.plots.methods import methods, paths
from bnn_utils.plots.predictions import (
    decision_maps,
    parameter_layout,
    points,
    trajectory,
    uncertainty_map,
    uncertainty_maps,
)
from bnn_utils.plots.regression import predictive_bands
from bnn_utils.plots.runs import thinning, watched
from bnn_utils.plots.scores import answers, prices, scores
from bnn_utils.plots.style import Figure, image_bundle, probability_contours, scatter
from bnn_utils.plots.tempering import evidence, kinds, ladder
from bnn_utils.plots.trust import calibrations, energy_slopes, partings

__all__ = [
    "Figure",
    "MeanAndDisagreement",
    "against_published",
    "answers",
    "autocorrelations",
    "calibrations",
    "convergence_maps",
    "decision_maps",
    "editable_points",
    "energies",
    "energy_slopes",
    "evidence",
    "image_bundle",
    "kinds",
    "ladder",
    "mean_and_disagreement",
    "methods",
    "parameter_layout",
    "partings",
    "paths",
    "points",
    "predictive_bands",
    "prices",
    "prior_predictive",
    "probability_contours",
    "ranks",
    "rhat_comparison",
    "rhat_map",
    "rhat_maps",
    "rhat_weights",
    "scatter",
    "scores",
    "speed",
    "thinning",
    "traces",
    "trajectories",
    "trajectory",
    "uncertainty_map",
    "uncertainty_maps",
    "watched",
]
