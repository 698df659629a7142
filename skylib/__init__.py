"""Sky Embeddings: learn from multi-band images of the sky without labels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skylib.anomaly import rank_anomalies
from skylib.augment import random_orientation
from skylib.bands import canonical_band, sort_bands
from skylib.checkpoint import load_model
from skylib.config import ModelConfig, PretrainConfig, ProbeConfig
from skylib.cutouts import CutoutFile, make_cutouts, write_cutouts
from skylib.embed import Embeddings, embed
from skylib.evaluate import Evaluation, evaluate, layer_sweep, write_results
from skylib.heads import train_head
from skylib.labels import label_efficiency, label_grid, labels_to_match
from skylib.loading import Batch, CutoutLoader, TileLoader
from skylib.metrics import photoz_metrics
from skylib.mim import MaskedImageModel, MIMOutput, build_model
from skylib.pretrain import PretrainResult, pretrain
from skylib.probes import ProbeResult, catalogue_probe, constant_probe, knn_probe, linear_probe, original_probe
from skylib.redshift import RedshiftPDF, redshift_pdf
from skylib.runs import run_notebook
from skylib.similarity import SearchIndex, search, target_vectors
from skylib.skysearch import hit_cutouts, search_tiles
from skylib.snr import signal_to_noise
from skylib.splits import sky_split, split_cutouts
from skylib.stopping import Interrupted
from skylib.tiles import Tile, TilePaths, find_tiles, read_tile
from skylib.umap import EmbeddingMap, fit_map, trustworthiness, umap_map
from skylib.validation import Probe

if TYPE_CHECKING:
    from skylib.browse import SimilarityBrowser
    from skylib.simulate import SimulatedSky, simulate_sky

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "CutoutFile",
    "CutoutLoader",
    "EmbeddingMap",
    "Embeddings",
    "Evaluation",
    "Interrupted",
    "MIMOutput",
    "MaskedImageModel",
    "ModelConfig",
    "PretrainConfig",
    "PretrainResult",
    "Probe",
    "ProbeConfig",
    "ProbeResult",
    "RedshiftPDF",
    "SearchIndex",
    "SimilarityBrowser",
    "SimulatedSky",
    "Tile",
    "TileLoader",
    "TilePaths",
    "build_model",
    "canonical_band",
    "catalogue_probe",
    "constant_probe",
    "embed",
    "evaluate",
    "find_tiles",
    "fit_map",
    "hit_cutouts",
    "knn_probe",
    "label_efficiency",
    "label_grid",
    "labels_to_match",
    "layer_sweep",
    "linear_probe",
    "load_model",
    "make_cutouts",
    "original_probe",
    "photoz_metrics",
    "pretrain",
    "random_orientation",
    "rank_anomalies",
    "read_tile",
    "redshift_pdf",
    "run_notebook",
    "search",
    "search_tiles",
    "signal_to_noise",
    "simulate_sky",
    "sky_split",
    "sort_bands",
    "split_cutouts",
    "target_vectors",
    "train_head",
    "trustworthiness",
    "umap_map",
    "write_cutouts",
    "write_results",
]

# Loaded at first use: GalSim and ipywidgets are not needed where models are trained.
_LAZY = {"SimilarityBrowser": "browse", "SimulatedSky": "simulate", "simulate_sky": "simulate"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"skylib.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'skylib' has no attribute {name!r}")
