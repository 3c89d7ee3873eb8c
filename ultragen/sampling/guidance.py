"""Classifier-free guidance, and at which noise levels it is computed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Guidance:
    """How a run is guided: v_neg + scale · (v_pos − v_neg) (Ho and Salimans, 2022), in a limited
    interval of noise levels (Kynkäänniemi et al., 2024, eq. 4).

    Attributes:
        scale: How far the velocity is led along the difference; at 1 and below there is only
            v_pos.
        interval: Noise levels σ on the path (1 − σ)x + σε, the lower one excluded: outside there
            is only v_pos.
    """

    scale: float
    interval: tuple[float, float] = (0.0, 1.0)

    def scale_at(self, sigma: float) -> float:
        """The scale at a noise level; 1 where there is no guidance."""
        low, high = self.interval
        return self.scale if self.scale > 1 and low < sigma <= high else 1.0
