"""What all figures share: colours, names of metrics, matplotlib's settings."""

from __future__ import annotations

import matplotlib.pyplot as plt

# Okabe & Ito: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
METRIC_LABELS = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "r2": "$R^2$", "roc_auc": "area under the ROC curve", "rms": "RMS error",
    "sigma_mad": r"$\sigma_\mathrm{MAD}$", "outlier_fraction": "outlier fraction",
}  # fmt: skip


def set_style() -> None:
    """Set matplotlib to the project's style: readable at the width of a column."""
    plt.rcParams.update({
        "figure.dpi": 110, "savefig.dpi": 160, "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "image.origin": "lower",
        "image.interpolation": "nearest", "axes.prop_cycle": plt.cycler(color=COLOURS), "figure.constrained_layout.use": True,
    })  # fmt: skip
