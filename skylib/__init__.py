"""Sky Embeddings: learn from multi-band images of the sky without labels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skylib.config import ModelConfig, PretrainConfig, ProbeConfig
from skylib.data.augment import random_orientation
from skylib.data.bands import canonical_band, sort_bands
from skylib.data.cutouts import CutoutFile, make_cutouts, write_cutouts
from skylib.data.loading import Batch, CutoutLoader, TileLoader
from skylib.data.photometry import signal_to_noise
from skylib.data.splits import sky_split, split_cutouts
from skylib.data.tiles import Tile, TilePaths, find_tiles, read_tile
from skylib.evaluation.evaluate import Evaluation, evaluate, layer_sweep, write_results
from skylib.evaluation.heads import train_head
from skylib.evaluation.label_study import label_efficiency, label_grid, labels_to_match
from skylib.evaluation.metrics import photoz_metrics
from skylib.evaluation.probes import (
    Probe,
    ProbeResult,
    catalogue_probe,
    constant_probe,
    knn_probe,
    linear_probe,
    original_probe,
)
from skylib.evaluation.redshift import RedshiftPDF, redshift_pdf
from skylib.model.checkpoint import load_model
from skylib.model.embed import embed
from skylib.model.embeddings import Embeddings
from skylib.model.mim import MaskedImageModel, MIMOutput, build_model
from skylib.runner.runs import run_notebook
from skylib.search.anomaly import rank_anomalies
from skylib.search.index import SearchIndex, search, target_vectors
from skylib.search.maps import EmbeddingMap, fit_map, trustworthiness, umap_map
from skylib.search.sky_search import hit_cutouts, search_tiles
from skylib.stopping import Interrupted
from skylib.training.pretrain import PretrainResult, pretrain

if TYPE_CHECKING:
    from skylib.browse import SimilarityBrowser
    from skylib.data.simulate import SimulatedSky, simulate_sky

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
_LAZY = {"SimilarityBrowser": "browse", "SimulatedSky": "data.simulate", "simulate_sky": "data.simulate"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"skylib.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'skylib' has no attribute {name!r}")
