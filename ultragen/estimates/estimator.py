"""Estimates for this machine: measured coefficients, fitted by a probe and by its own runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from math import exp, log
from threading import Lock
from time import perf_counter

import numpy as np

from .coefficients import Coefficients
from .cost import Job, estimate, work

MULTIPLY = {"cpu": 1024, "cuda": 8192}  # rows of the probe's square matrices
ATTEND = (1, 12, 16384, 128)  # b h n d of the probe's attention, on GPUs alone


def fit(runs: Sequence[tuple[Job, Mapping[str, float]]], start: Coefficients) -> Coefficients:
    """Coefficients that explain measured runs best, relative to their length.

    Args:
        runs: Jobs and the seconds that each of their stages took.
        start: Coefficients that stay where no run has measured them.

    Raises:
        ValueError: without any run.
    """
    if not runs:
        raise ValueError("There is nothing to fit: give at least one measured run.")
    found: dict[str, float] = {}
    for names in (
        ("text",),
        ("token", "pair"),
        ("base_token", "base_pair"),
        ("decode",),
        ("network", "lanczos"),
        ("encode",),
    ):
        rows = [
            ([parts.get(name, 0.0) for name in names], seconds[stage])
            for job, seconds in runs
            for stage, parts in work(job).items()
            if names[-1] in parts and seconds.get(stage, 0.0) > 0
        ]
        if rows:
            found = dict(zip(names, _nonnegative(rows), strict=True)) | found
    return replace(start, **found)  # type: ignore[arg-type]


def _nonnegative(rows: Sequence[tuple[list[float], float]]) -> list[float]:
    """Least squares of the relative error without negative solutions: tries every subset."""
    matrix = np.array([units for units, _ in rows]) / np.array([[s] for _, s in rows])
    scale = np.maximum(matrix.max(axis=0), 1e-300)
    best, best_error = np.zeros(matrix.shape[1]), float(len(rows))
    for count in range(1, matrix.shape[1] + 1):
        for subset in combinations(range(matrix.shape[1]), count):
            columns = list(subset)
            part, *_ = np.linalg.lstsq(
                matrix[:, columns] / scale[columns], np.ones(len(rows)), rcond=1e-6
            )
            solution = np.zeros(matrix.shape[1])
            solution[columns] = part / scale[columns]
            error = float(((matrix @ solution - 1) ** 2).sum())
            if (part >= 0).all() and error < best_error - 1e-12:
                best, best_error = solution, error
    return [float(value) for value in best]


def probe(device: str, dtype: str = "float32") -> float:
    """Seconds that this machine takes for the work of which most of a model's is made, the best of
    several: a matrix product, on a GPU a large one, and attention."""
    import torch
    from torch.nn import functional

    rows, kind = MULTIPLY[device], getattr(torch, dtype)
    matrix = torch.ones(rows, rows, device=device, dtype=kind)
    heads = torch.ones(ATTEND, device=device, dtype=kind) if device == "cuda" else None
    best = float("inf")
    for _ in range(9 if heads is None else 4):
        began = perf_counter()
        result = matrix @ matrix
        if heads is not None:
            result = result.flatten()[0] + functional.scaled_dot_product_attention(
                heads, heads, heads
            )
        float(result.flatten()[0])  # reading a value waits for the device
        best = min(best, perf_counter() - began)
    return best


class Estimator:
    """Estimates for this machine: shipped coefficients, scaled by a probe and by finished runs."""

    def __init__(self, coefficients: Coefficients) -> None:
        self._coefficients = coefficients
        self._lock = Lock()

    @property
    def coefficients(self) -> Coefficients:
        return self._coefficients

    def calibrate(self, dtype: str | None = None) -> None:
        """Scales by a short probe of this machine, a fraction of a second.

        Args:
            dtype: What is computed in; None takes what the coefficients were measured in.
        """
        known = self._coefficients
        factor = probe(known.device, dtype or known.dtype) / known.probe
        self._rescale(min(max(factor, 0.2), 20.0 if known.device == "cpu" else 200.0))

    def expect(self, factor: float) -> None:
        """Scales by what is known of this machine without a probe."""
        self._rescale(factor)

    def observe(self, estimated: Mapping[str, float], measured: Mapping[str, float]) -> None:
        """Moves half of the way, in the logarithm, to what a finished run has taken."""
        on_gpu = self._coefficients.device == "cuda"
        stages = [
            stage
            for stage in estimated
            if measured.get(stage, 0) > 0 and not (on_gpu and stage == "encode")
        ]
        before, after = (sum(times[stage] for stage in stages) for times in (estimated, measured))
        if before > 0 and after > 0:
            self._rescale(exp(log(min(max(after / before, 0.1), 10.0)) / 2))

    def observe_stopped(
        self, estimated: Mapping[str, float], seconds: float, fraction: float
    ) -> None:
        """Learns from a run that was stopped because it took longer than it had asked for.

        Args:
            estimated: Seconds of its stages.
            seconds: How long it ran.
            fraction: How much of it was done then, by estimated time.
        """
        # A run that did not get through its first steps tells little more than that it is slow.
        expected = sum(estimated.values()) * fraction
        if seconds > expected:
            self._rescale(min(seconds / expected, 3.0) if expected else 3.0)

    def estimate(self, job: Job) -> dict[str, float]:
        """Seconds of each stage of a run on this machine."""
        return estimate(job, self._coefficients)

    def _rescale(self, factor: float) -> None:
        with self._lock:
            self._coefficients = self._coefficients.scaled(factor)
