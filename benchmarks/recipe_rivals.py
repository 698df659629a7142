"""What anyone gets without pretraining, by the measures of `recipe_scores`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recipe_scores import Survey, Vectors, class_row, judged, redshift_row, redshift_rows, score
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from skylib import CutoutFile, CutoutLoader, ModelConfig, build_model
from skylib.data.photometry import aperture_magnitudes
from skylib.device import pick_device
from skylib.files import write_json


def rivals(survey: Survey, out: Path, config: ModelConfig, measure: Callable[..., dict[str, Any]]) -> None:
    """Measure random weights, principal components of the pixels, magnitudes measured on the pixels, and true ones."""
    train = np.flatnonzero(survey.main.column("split") == 0)
    loader = CutoutLoader(survey.main, rows=train, batch_size=min(256, len(train)), device="cpu")
    noise = loader.sky_noise()
    for seed in range(3):
        model = build_model(config, seed=seed)
        model.set_sky_noise(noise)
        _write(out, "random weights", seed, measure(model.to(pick_device()), survey))
    _write(out, "pixel PCA", 0, score(_components(survey, noise), survey))
    _write(
        out,
        "magnitudes measured on the pixels",
        0,
        _boosting(survey, lambda c, rows: aperture_magnitudes(c, rows=rows, sky_sigma=noise)),
    )
    _write(out, "upper bound: noise-free magnitudes", 0, _boosting(survey, _true_magnitudes))


def _write(out: Path, name: str, seed: int, row: dict[str, Any]) -> None:
    write_json(out / "rows" / f"{name.replace(':', '')}-{seed}.json", {"recipe": name, "seed": seed, **row})
    print(f"{name}, seed {seed}: class {row['class']:.3f}, redshift R2 {row['z R2']:.3f}", flush=True)


def _components(survey: Survey, noise: np.ndarray) -> Callable[[CutoutFile, np.ndarray, Sequence[str]], Vectors]:
    """Return an encoder by 64 principal components of arcsinh(pixels / noise) of the training tiles."""

    def pixels(cutouts: CutoutFile, rows: np.ndarray, dropped: Sequence[str]) -> np.ndarray:
        flux = cutouts.flux(rows)
        flux[:, [cutouts.bands.index(band) for band in dropped]] = np.nan
        return np.arcsinh(np.nan_to_num(flux / noise[:, None, None].astype(np.float32))).reshape(len(rows), -1)

    train = np.flatnonzero(survey.main.column("split") == 0)
    some = np.sort(np.random.default_rng(0).permutation(train)[:5000])
    x = pixels(survey.main, some, ())
    fitted = PCA(min(64, *x.shape), svd_solver="randomized", random_state=0).fit(x)

    def encode(cutouts: CutoutFile, rows: np.ndarray, dropped: Sequence[str]) -> Vectors:
        blocks = [rows[i : i + 2048] for i in range(0, len(rows), 2048)]
        return {
            (0, "pixels"): np.concatenate([fitted.transform(pixels(cutouts, b, dropped)) for b in blocks]).astype(
                np.float32
            )
        }

    return encode


def _true_magnitudes(cutouts: CutoutFile, rows: np.ndarray) -> np.ndarray:
    return np.stack([cutouts.column(f"mag_{band}")[rows] for band in cutouts.bands], axis=1)


def _boosting(survey: Survey, magnitudes: Callable[[CutoutFile, np.ndarray], np.ndarray]) -> dict[str, Any]:
    """Return the row of gradient boosting on magnitudes and colours; the size of the trees is chosen on validation."""

    def features(cutouts: CutoutFile, rows: np.ndarray) -> np.ndarray:
        mags = magnitudes(cutouts, rows)
        return np.concatenate([mags, np.diff(mags, axis=1)], axis=1)

    main, other = survey.main, survey.other
    row: dict[str, Any] = {}
    parts = [np.flatnonzero(survey.split == part) for part in range(3)]
    elsewhere = np.flatnonzero(judged(other))
    for kind in ("class", "z"):
        fit, choose, test = parts if kind == "class" else [redshift_rows(main, rows) for rows in parts]
        away = elsewhere if kind == "class" else redshift_rows(other, elsewhere)
        target = "class" if kind == "class" else "z_spec"
        y, y_away = main.column(target), other.column(target)[away]
        models: list[Any] = [
            HistGradientBoostingClassifier(max_leaf_nodes=n, class_weight="balanced", random_state=0)
            if kind == "class"
            else HistGradientBoostingRegressor(max_leaf_nodes=n, random_state=0)
            for n in (7, 15)
        ]
        measure = class_row if kind == "class" else redshift_row
        fitted = [model.fit(features(main, fit), y[fit]) for model in models]
        name = "class" if kind == "class" else "z R2"
        best = max(fitted, key=lambda m: measure(m.predict(features(main, choose)), y[choose])[name])
        row |= measure(best.predict(features(main, test)), y[test])
        row |= measure(best.predict(features(other, away)), y_away, f"other field {kind}")
    return row
