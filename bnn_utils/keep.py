"""What a run records of its draws beside theta, or in its place: functions of each draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from bnn_utils import _check, files
from bnn_utils.kernels.base import KEPT, TAKEN, Info

Function = Callable[[Tensor], Tensor]

# Of the largest number that a function returns: by so much the result for a row may change with the rows beside it.
# Matrix products of other shapes round otherwise, and float16 has three digits.
TOLERANCE = 1e-2


class Keep(NamedTuple):
    """What to record: functions of theta by name, and theta itself or not."""

    functions: Mapping[str, Function] = {}
    draws: bool = True

    @torch.inference_mode(False)  # so that a function may take gradients, wherever the draws were made
    def __call__(self, info: Info) -> Info:
        """What is recorded of transitions ``(C, T, ...)``. A store takes values of functions for statistics."""
        lead = info.log_prob.shape
        values = {
            f"{KEPT}{name}": rows(name, function, info.theta.flatten(0, 1)).unflatten(0, lead)
            for name, function in self.functions.items()
        }
        return Info(info.theta if self.draws else info.theta[..., :0], info.log_prob, {**info.stats, **values})


def check_keep(keep: Mapping[str, Function] | None, keep_draws: bool) -> Keep:
    """These arguments of `sample`, unless a name or a type is wrong."""
    wanted = 'a mapping from names to functions of theta, such as {"p": lambda theta: posterior.predict(theta, x)}'
    _check.instance("keep", keep, (Mapping, type(None)), wanted)
    functions, keep_draws = dict(keep or {}), _check.flag("keep_draws", keep_draws)
    for name, function in functions.items():
        _check.instance("a name in keep", name, str, "a str")
        if not callable(function):
            raise TypeError(f"keep[{name!r}] must be a function of theta, got {_check.told(function)}")
    problem = files.problem_of_names(functions, "a function in keep", (*files.TAKEN, *TAKEN))
    if problem:
        raise ValueError(problem)
    if len({name.casefold() for name in functions}) < len(functions):
        raise ValueError(f"names in keep must differ in more than capitals, got {', '.join(functions)}")
    for name in functions:
        other = next((other for other in functions if name.startswith(f"{other}_dim_")), None)
        if other is not None:
            raise ValueError(f"keep[{name!r}] has the name of a dimension of keep[{other!r}]: give it another")
    if not keep_draws and not functions:
        raise ValueError("keep_draws=False leaves nothing to record: say by keep= what to record in place of the draws")
    return Keep(functions, keep_draws)


@torch.inference_mode(False)
def try_out(keep: Keep, theta: Tensor) -> None:
    """Raise, before a run begins, unless all functions can be recorded at theta ``(S, D)``, with S at least 2."""
    for name, function in keep.functions.items():
        whole = rows(name, function, theta)
        values = whole.double()
        size = values[values.isfinite()].abs().max().item() if values.isfinite().any() else 0.0
        for row in range(2):
            alone = rows(name, function, theta[row : row + 1])[0]
            if alone.shape != whole.shape[1:] or not torch.allclose(
                alone.double(), values[row], rtol=0, atol=TOLERANCE * size, equal_nan=True
            ):
                raise ValueError(
                    f"keep[{name!r}] must be a function of each draw alone, and its result for a draw changes with the "
                    f"others in theta, or from call to call: of {len(theta)} draws, that for number {row} is another "
                    "one when it is passed alone. Means and the like over draws are for afterwards"
                )


@torch.no_grad()
def rows(name: str, function: Function, theta: Tensor) -> Tensor:
    """What a function returns for theta ``(S, D)``, a row for each draw."""
    try:
        values = function(theta.clone())  # which it may change
    except Exception as error:
        error.add_note(f"This was raised by the function keep[{name!r}], of theta of shape {tuple(theta.shape)}.")
        raise
    values = _check.tensor(f"what keep[{name!r}] returns", values).detach()
    if values.shape[:1] != theta.shape[:1] or values.numel() == 0:
        raise ValueError(
            f"keep[{name!r}] must return a row for each draw, of theta {tuple(theta.shape)} a tensor of shape "
            f"({len(theta)}, ...), got {tuple(values.shape)}"
        )
    if values.dtype not in files.DTYPES.values():
        raise ValueError(f"what keep[{name!r}] returns has dtype {values.dtype}, and must have one of {files.KINDS}")
    return values
