"""Sky Embeddings: learn from multi-band images of the sky without labels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Each public name is loaded at its first use: torch alone takes seconds, and GalSim and ipywidgets are not everywhere.
# A name stands twice, in the table for Python and in the imports for editors and type checkers; a test compares them.
_HOMES = {
    "bands": "canonical_band flux_to_mag register_band sort_bands",
    "browse": "SimilarityBrowser",
    "config": "ModelConfig PretrainConfig ProbeConfig",
    "data.augment": "Augmentation random_orientation",
    "data.cutouts": "CutoutFile make_cutouts write_cutouts",
    "data.loading": "Batch CutoutLoader TileLoader",
    "data.photometry": "aperture_snr brighter measure_sky_noise signal_to_noise",
    "data.simulate": "SimulatedSky simulate_sky",
    "data.splits": "progress_split sky_split split_cutouts",
    "data.description": "Survey",
    "data.surveys": "get_survey register_survey",
    "data.tiles": "Tile TilePaths find_tiles read_tile",
    "evaluation.binned": "redshift_bins",
    "evaluation.bootstrap": "binned_metrics",
    "evaluation.diagnostics": "find_label_errors missing_bands nuisance_audit observing_conditions position_leakage",
    "evaluation.evaluate": "Evaluation evaluate layer_sweep write_results",
    "evaluation.heads": "train_head",
    "evaluation.label_study": "label_efficiency label_grid labels_to_match seed_means",
    "evaluation.metrics": "classification_metrics photoz_metrics",
    "evaluation.probes": "ProbeResult catalogue_probe constant_probe knn_probe linear_probe original_probe",
    "evaluation.progress": "Probe",
    "evaluation.redshift": "RedshiftPDF redshift_pdf",
    "evaluation.summary": "count_labels of_class write_summary",
    "model.embed": "embed",
    "model.embeddings": "Embeddings",
    "model.mim": "MaskedImageModel MIMOutput build_model",
    "model.weights": "load_model read_card save_weights",
    "runner.runs": "run_notebook",
    "search.export": "hit_cutouts write_objects",
    "search.filters": "parse_filter",
    "search.index": "SearchIndex search",
    "search.maps": "EmbeddingMap fit_map trustworthiness umap_map",
    "search.queries": "target_vectors",
    "search.ranking": "feedback_scores rank_anomalies",
    "search.sky_search": "search_tiles",
    "search.stream": "search_files",
    "stopping": "Interrupted",
    "training.pretrain": "PretrainResult pretrain",
}
if TYPE_CHECKING:
    from skylib.bands import canonical_band, flux_to_mag, register_band, sort_bands
    from skylib.browse import SimilarityBrowser
    from skylib.config import ModelConfig, PretrainConfig, ProbeConfig
    from skylib.data.augment import Augmentation, random_orientation
    from skylib.data.cutouts import CutoutFile, make_cutouts, write_cutouts
    from skylib.data.description import Survey
    from skylib.data.loading import Batch, CutoutLoader, TileLoader
    from skylib.data.photometry import aperture_snr, brighter, measure_sky_noise, signal_to_noise
    from skylib.data.simulate import SimulatedSky, simulate_sky
    from skylib.data.splits import progress_split, sky_split, split_cutouts
    from skylib.data.surveys import get_survey, register_survey
    from skylib.data.tiles import Tile, TilePaths, find_tiles, read_tile
    from skylib.evaluation.binned import redshift_bins
    from skylib.evaluation.bootstrap import binned_metrics
    from skylib.evaluation.diagnostics import (
        find_label_errors,
        missing_bands,
        nuisance_audit,
        observing_conditions,
        position_leakage,
    )
    from skylib.evaluation.evaluate import Evaluation, evaluate, layer_sweep, write_results
    from skylib.evaluation.heads import train_head
    from skylib.evaluation.label_study import label_efficiency, label_grid, labels_to_match, seed_means
    from skylib.evaluation.metrics import classification_metrics, photoz_metrics
    from skylib.evaluation.probes import (
        ProbeResult,
        catalogue_probe,
        constant_probe,
        knn_probe,
        linear_probe,
        original_probe,
    )
    from skylib.evaluation.progress import Probe
    from skylib.evaluation.redshift import RedshiftPDF, redshift_pdf
    from skylib.evaluation.summary import count_labels, of_class, write_summary
    from skylib.model.embed import embed
    from skylib.model.embeddings import Embeddings
    from skylib.model.mim import MaskedImageModel, MIMOutput, build_model
    from skylib.model.weights import load_model, read_card, save_weights
    from skylib.runner.runs import run_notebook
    from skylib.search.export import hit_cutouts, write_objects
    from skylib.search.filters import parse_filter
    from skylib.search.index import SearchIndex, search
    from skylib.search.maps import EmbeddingMap, fit_map, trustworthiness, umap_map
    from skylib.search.queries import target_vectors
    from skylib.search.ranking import feedback_scores, rank_anomalies
    from skylib.search.sky_search import search_tiles
    from skylib.search.stream import search_files
    from skylib.stopping import Interrupted
    from skylib.training.pretrain import PretrainResult, pretrain

__version__ = "0.2.0"

__all__ = sorted(name for names in _HOMES.values() for name in names.split())

# Python puts a room that it loads in the place of a name: load this one now, so that `skylib.search` stays the function.
import_module("skylib.search")
del globals()["search"]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names.split():
            value = globals()[name] = getattr(import_module(f"skylib.{home}"), name)
            return value
    raise AttributeError(f"module 'skylib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
