"""What is known of a posterior: read from a file that comes with the package, with errors and a certificate."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnn_utils import _check
from bnn_utils.evidence import Estimate
from bnn_utils.references.problems import PROBLEMS, Folder, Problem, problem

ARRAYS = ("mean", "mean_se", "sd", "sd_se", "levels", "quantiles", "below_se")
ROUNDING = 1e-6  # between processors, of sums over data in float64


@dataclass(frozen=True, eq=False, repr=False)
class Reference:
    """The answers of a problem, computed once and with care by two algorithms that agree.

    Attributes:
        name: of the problem, see `bnn_utils.references.problem`.
        mean: of each of the Q quantities of `Problem.values`, shape ``(Q,)``; first come the predictions at its inputs.
        mean_se: Monte Carlo standard errors of these, as all with this ending; 0 of what is known exactly.
        sd: posterior standard deviations, shape ``(Q,)``.
        levels: of the quantiles, L probabilities, shape ``(L,)``.
        quantiles: shape ``(L, Q)``.
        below_se: errors of the probabilities below the quantiles, shape ``(L, Q)``; NaN where many draws equal the
            quantile, such as probabilities that are rounded to 1.
        log_score: mean log density of the points that are held out.
        log_evidence: log p(y), every constant kept; None where it is not known.
        mode: the mass of the mode that has a name; None where there is none.
        certificate: how it was made and confirmed: kernels, seeds, versions, diagnostics, the command.
    """

    name: str
    mean: Tensor
    mean_se: Tensor
    sd: Tensor
    sd_se: Tensor
    levels: Tensor
    quantiles: Tensor
    below_se: Tensor
    log_score: Estimate
    log_evidence: Estimate | None
    mode: Estimate | None
    certificate: Mapping[str, Any]

    def problem(self, folder: Folder = None) -> Problem:
        """The posterior that this is known of; the folder is that of `bnn_utils.references.problem`.

        Raises:
            ValueError: if that is another posterior than the one whose answers these are.
        """
        found = problem(self.name, folder)
        here, wanted = found.fingerprint(), self.certificate["fingerprint"]
        if not np.allclose(here, wanted, rtol=ROUNDING, atol=ROUNDING):
            raise ValueError(
                f"the posterior {self.name!r} is not the one that this reference is of: at one vector, its log "
                f"density and two sums of its predictions are {here}, and were {wanted}. Have data "
                "that come with scikit-learn, or from a folder, changed?"
            )
        return found

    def __repr__(self) -> str:
        facts = [
            f"{len(self.mean)} quantities with standard errors up to {(self.mean_se / self.sd).nan_to_num().max():.2g} "
            f"of their standard deviations",
            *([] if self.log_evidence is None else [f"log evidence {self.log_evidence}"]),
            *([] if self.mode is None else [f"mode {self.mode}"]),
            f"log score {self.log_score}",
        ]
        return (
            f"Reference({self.name!r}: {', '.join(facts)}; {self.certificate['first']}; {self.certificate['second']})"
        )


class File(NamedTuple):
    """Where the answers of a problem are."""

    name: str

    @property
    def path(self) -> Any:
        return resources.files("bnn_utils") / "resources" / "references" / f"{self.name}.npz"


def names() -> list[str]:
    """The problems whose answers come with the package."""
    return [name for name in PROBLEMS if File(name).path.is_file()]


def reference(name: str = "boxes") -> Reference:
    """What is known of a posterior; ``python tools/reference.py NAME`` computes it again.

    Args:
        name: one of `names`; the tutorial's posterior if nothing is said.

    Raises:
        ValueError: if nothing is known of a posterior of this name.
    """
    _check.choice("name", name, names())
    with File(name).path.open("rb") as stream:
        return read(stream)


def read(stream: Any) -> Reference:
    """From a file of `write`, or its name."""
    with np.load(stream) as file:
        arrays = {key: torch.from_numpy(file[key]).double() for key in ARRAYS}
        estimates = {
            key: Estimate(*file[key].tolist()) if key in file else None for key in ("log_score", "log_evidence", "mode")
        }
        facts = json.loads(str(file["certificate"]))
    return Reference(name=facts["name"], certificate=facts, **arrays, **estimates)  # type: ignore[arg-type]


def write(known: Reference, path: str | os.PathLike[str]) -> None:
    """A file that `read` takes; errors are kept in single precision."""
    arrays = {key: getattr(known, key).to(torch.float32 if "_se" in key else torch.float64).numpy() for key in ARRAYS}
    for key in ("log_score", "log_evidence", "mode"):
        if getattr(known, key) is not None:
            arrays[key] = np.array(getattr(known, key))
    np.savez_compressed(path, **arrays, certificate=np.array(json.dumps({"name": known.name, **known.certificate})))
