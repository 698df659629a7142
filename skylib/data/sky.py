"""Which positions lie close together on the sky."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree


def unit_vectors(ra: np.ndarray | float, dec: np.ndarray | float) -> np.ndarray:
    """Return positions in degrees as points on the unit sphere, float64 (n, 3)."""
    ra, dec = np.deg2rad(np.asarray(ra, float)), np.deg2rad(np.asarray(dec, float))
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def separation(ra: np.ndarray, dec: np.ndarray, ra0: np.ndarray | float, dec0: np.ndarray | float) -> np.ndarray:
    """Return the angle (deg) between positions in degrees.

    Examples
    --------
    >>> float(separation(np.array([10.0]), np.array([60.0]), 12.0, 60.0)[0].round(4))
    1.0
    """
    half = np.linalg.norm(unit_vectors(ra, dec) - unit_vectors(ra0, dec0), axis=-1) / 2
    return np.rad2deg(2 * np.arcsin(half.clip(0, 1)))


def chord(arcsec: float) -> float:
    """Return the straight distance on the unit sphere that spans an angle."""
    return float(2 * np.sin(np.deg2rad(min(arcsec / 3600, 180)) / 2))


def near_any(ra: np.ndarray, dec: np.ndarray, ra0: np.ndarray, dec0: np.ndarray, *, radius: float) -> np.ndarray:
    """Tell which positions lie within `radius` (arcsec) of any of some others; unknown ones (NaN) do not.

    Examples
    --------
    >>> near_any(np.array([10.0, 10.001, 11.0]), np.zeros(3), np.array([10.0]), np.zeros(1), radius=5)
    array([ True,  True, False])
    """
    return nearest_within(ra, dec, ra0, dec0, radius=radius) >= 0


def nearest_within(ra: np.ndarray, dec: np.ndarray, ra0: np.ndarray, dec0: np.ndarray, *, radius: float) -> np.ndarray:
    """Return for each position which of some others is the nearest within `radius` (arcsec), -1 where none is.

    Examples
    --------
    >>> nearest_within(np.array([10.0, np.nan, 11.0]), np.zeros(3), np.array([20.0, 11.001]), np.zeros(2), radius=5)
    array([-1, -1,  1])
    """
    nearest = np.full(len(ra), -1)
    ra0, dec0, dec = np.asarray(ra0), np.asarray(dec0), np.asarray(dec)
    others = np.flatnonzero(np.isfinite(ra0) & np.isfinite(dec0))
    reach = radius / 3600 * 1.001
    low, high = dec0[others].min(initial=90) - reach, dec0[others].max(initial=-90) + reach
    placed = np.flatnonzero(np.isfinite(ra) & (dec >= low) & (dec <= high))  # few, where the others are few
    if len(placed) and len(others):
        tree = cKDTree(unit_vectors(ra0[others], dec0[others]))
        distance, found = tree.query(unit_vectors(ra[placed], dec[placed]), distance_upper_bound=chord(radius))
        near = np.isfinite(distance)
        nearest[placed[near]] = others[found[near]]
    return nearest


def best_of_each_place(ra: np.ndarray, dec: np.ndarray, *, radius: float, n: int) -> np.ndarray:
    """Return the first `n` positions that are not within `radius` (arcsec) of an earlier one that was returned.

    The positions come best first; an unknown one (NaN) is near no other. What is returned of a list is also what is
    returned of any longer list that begins with it, as far as it goes.

    Examples
    --------
    >>> best_of_each_place(np.array([10.0, 10.001, 10.002, 11.0]), np.zeros(4), radius=5, n=9).tolist()
    [0, 2, 3]
    """
    points = unit_vectors(ra, dec)
    unknown = ~np.isfinite(points).all(axis=1)
    points[unknown] = 10.0 * np.arange(1, unknown.sum() + 1)[:, None]  # off the sphere, and each by itself
    tree, taken = cKDTree(points), np.zeros(len(points), dtype=bool)
    chosen: list[int] = []
    for i in range(len(points)):
        if len(chosen) == n:
            break
        if not taken[i]:
            chosen.append(i)
            taken[tree.query_ball_point(points[i], chord(radius))] = True
    return np.array(chosen, dtype=int)
