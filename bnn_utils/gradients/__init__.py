"""Log densities with their gradients: by autograd, in closed form, and in native code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from bnn_utils.gradients.caller import Caller
    from bnn_utils.gradients.fused import Fused
    from bnn_utils.gradients.native import Native


class LogDensity(NamedTuple):
    """A log density over batches of vectors, each row on its own, as kernels take it.

    What a call returns is new: the caller may write to it, and later calls leave it alone.
    """

    log_prob_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]]  # (C, D) -> (C,), (C, D)
    grad: Callable[[Tensor], Tensor]  # (C, D) -> (C, D), the gradient alone
    native: Native | None = None  # where it is computed in native code: that makes trajectories and transitions too
    callee: Native | Fused | None = None  # of a likelihood, of parameters: what other native code can call
    caller: Caller | None = None  # of a joint density: native code that calls the likelihood's, for other transitions

    @property
    def hmc(self) -> Native | Caller | None:
        """What makes whole transitions of HMC in native code; nothing where a lane is shared out among threads: native
        code that calls a likelihood has one for each lane.
        """
        if self.native is not None or self.caller is None:
            return self.native
        return None if self.caller.splits_lanes else self.caller
