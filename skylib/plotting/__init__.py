"""Every figure of the project: arrays and axes in, axes out. All names imported here are public."""
# ruff: noqa: F401

from skylib.plotting.diagnostics import plot_layer_sweep, plot_missing_bands, plot_nuisances
from skylib.plotting.evaluation import (
    plot_comparison,
    plot_confusion,
    plot_counts,
    plot_label_efficiency,
    plot_progress,
    plot_regression,
)
from skylib.plotting.images import plot_reconstruction, rgb_image, show_bands, show_cutouts, show_tile
from skylib.plotting.maps import plot_density, plot_map, plot_maps, plot_thumbnails
from skylib.plotting.redshift import plot_binned, plot_pit, plot_redshift, plot_redshift_panels, plot_residual_by_snr
from skylib.plotting.style import COLOURS, METRIC_LABELS, column_label, save_figure, set_style
