"""Explorers: the notebooks' figures, to be moved by hand. Each is one call, and needs a running kernel to react."""

from bnn_utils.widgets.data import data_explorer
from bnn_utils.widgets.explorer import Explorer
from bnn_utils.widgets.posterior import posterior_explorer
from bnn_utils.widgets.prior import prior_explorer
from bnn_utils.widgets.sampler import sampler_explorer

__all__ = ["Explorer", "data_explorer", "posterior_explorer", "prior_explorer", "sampler_explorer"]
