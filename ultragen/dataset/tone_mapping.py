"""HDR and wide colours → the 8 bits of BT.709 that the models know.

HDR is shown as on a display whose white is HDR's reference white, 203 cd/m² (ITU-R BT.2408-7,
table 1): what is darker than some 90 cd/m² keeps its light, and what is brighter, up to the clip's
peak, is bent below white by the curve of ITU-R BT.2390-11, section 5.4.1. The curve works on the
largest of red, green and blue, and the others follow in proportion: hues stay. Colours that BT.709
does not have are cut off (ITU-R BT.2407-0, section 2). Displays have gamma 2.4 (ITU-R BT.1886).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

WHITE = 203.0
"""HDR's reference white in cd/m²."""
PEAK = 1000.0
"""The brightest of a clip that does not tell, in cd/m²: HLG's nominal peak (ITU-R BT.2100-2, table
5), and what most PQ clips are graded on."""
GAMMA = 2.4
HLG_GAMMA = 1.2  # of a display of 1000 cd/m²: ITU-R BT.2100-2, table 5
CODES = 2**16
BAND = 64  # rows that are worked on at a time, so that they stay in the processor's cache

Transfer = Literal["pq", "hlg", "gamma"]

# x and y of red, green and blue; white is D65. ITU-R BT.709-6, BT.2020-2, SMPTE EG 432-1.
PRIMARIES = {
    "bt709": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    "bt2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    "p3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
D65 = (0.3127, 0.3290)


@dataclass(frozen=True)
class ToneMapping:
    """From a clip's own colours to BT.709.

    Attributes:
        transfer: What its codes mean: PQ, HLG, or a gamma of 2.4 without HDR.
        primaries: A key of `PRIMARIES`.
        peak: The brightest that a PQ clip holds, in cd/m².
        full_code: Which of the codes of 16 bits stands for 1; there may be larger ones.
    """

    transfer: Transfer
    primaries: str
    peak: float = PEAK
    full_code: int = CODES - 1

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """uint16, black at 0, h w 3 → uint8."""
        pictures = np.empty(codes.shape, np.uint8)
        for top in range(0, len(codes), BAND):
            pictures[top : top + BAND] = self._band(codes[top : top + BAND])
        return pictures

    def _band(self, codes: np.ndarray) -> np.ndarray:
        light = _light(self.transfer, self.full_code)[codes]
        if self.transfer == "hlg":
            # The display's light from the scene's: ITU-R BT.2100-2, table 5.
            light *= (light @ LUMINANCE_2020)[..., None] ** np.float32(HLG_GAMMA - 1) * (
                np.float32(PEAK / WHITE)
            )
        if self.transfer != "gamma":
            largest = light.max(-1, keepdims=True) / self._reach
            light *= self._gains[_index(largest)] / np.maximum(largest, 1)
        return _display_codes()[_index(light @ self._matrix)]

    @property
    def _reach(self) -> float:
        """The peak, in units of reference white."""
        return max(self.peak if self.transfer == "pq" else PEAK, WHITE) / WHITE

    @cached_property
    def _gains(self) -> np.ndarray:
        """By how much light becomes less, for each `_index` of its part of the peak."""
        part = _values()
        light = np.maximum(part, part[1]) * self._reach
        return (bend(light * WHITE, self._reach * WHITE) / WHITE / light).astype(np.float32)

    @cached_property
    def _matrix(self) -> np.ndarray:
        return conversion(self.primaries, "bt709").T.astype(np.float32)


def bend(light: np.ndarray, peak: float, white: float = WHITE) -> np.ndarray:
    """The curve of BT.2390, section 5.4.1, without its lift of blacks: [0, peak] → [0, white].

    Args:
        light: cd/m².
        peak: The brightest in, in cd/m².
        white: The brightest out, in cd/m².
    """
    top, limit = pq_code(peak), pq_code(white) / pq_code(peak)
    part = np.minimum(pq_code(light) / top, 1)
    knee = 1.5 * limit - 0.5
    if limit >= 1:
        return np.minimum(light, white)
    t = np.maximum(part - knee, 0) / (1 - knee)
    curve = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (-2 * t**3 + 3 * t**2) * limit
    )
    return pq_light(np.where(part < knee, part, curve) * top)


# ITU-R BT.2100-2, table 4.
M1, M2 = 2610 / 16384, 2523 / 4096 * 128
C1, C2, C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def pq_light(code: np.ndarray) -> np.ndarray:
    """PQ's code in [0, 1] → cd/m²."""
    power = np.asarray(code, np.float64) ** (1 / M2)
    return 10000 * (np.maximum(power - C1, 0) / (C2 - C3 * power)) ** (1 / M1)


def pq_code(light: np.ndarray | float) -> np.ndarray:
    """cd/m² → PQ's code in [0, 1]: the inverse of `pq_light`."""
    power = (np.asarray(light, np.float64) / 10000) ** M1
    return ((C1 + C2 * power) / (1 + C3 * power)) ** M2


def hlg_scene(code: np.ndarray) -> np.ndarray:
    """HLG's code in [0, 1] → the scene's light in [0, 1]: ITU-R BT.2100-2, table 5."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    bright = (np.exp((np.maximum(code, 0.5) - c) / a) + b) / 12
    return np.where(code <= 0.5, np.asarray(code, np.float64) ** 2 / 3, bright)


def to_xyz(primaries: str) -> np.ndarray:
    """The matrix from linear red, green and blue to CIE XYZ: SMPTE RP 177."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in PRIMARIES[primaries]]).T
    white = np.array([D65[0] / D65[1], 1, (1 - sum(D65)) / D65[1]])
    return columns * np.linalg.solve(columns, white)


def conversion(source: str, target: str) -> np.ndarray:
    """The matrix from linear light in one set of primaries to another."""
    return np.linalg.solve(to_xyz(target), to_xyz(source))


LUMINANCE_2020 = to_xyz("bt2020")[1].astype(np.float32)


@lru_cache(maxsize=8)
def _light(transfer: Transfer, full_code: int) -> np.ndarray:
    """Linear light for every code of 16 bits, 1 at white; of HLG the scene's."""
    codes = np.minimum(np.arange(CODES) / full_code, 1)
    tables = {
        "pq": lambda: pq_light(codes) / WHITE,
        "hlg": lambda: hlg_scene(codes),
        "gamma": lambda: codes**GAMMA,
    }
    return tables[transfer]().astype(np.float32)


# Tables of functions of light have their places at its fourth roots: close where the eye sees.


def _index(light: np.ndarray) -> np.ndarray:
    root = np.sqrt(np.sqrt(light.clip(0, 1)))
    return np.rint(root * np.float32(CODES - 1)).astype(np.uint16)


def _values() -> np.ndarray:
    return np.linspace(0, 1, CODES) ** 4


@lru_cache(maxsize=1)
def _display_codes() -> np.ndarray:
    """The display's 8 bits for each `_index` of light."""
    return np.rint(255 * _values() ** (1 / GAMMA)).astype(np.uint8)
