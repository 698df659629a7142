"""The public names, for editors, type checkers and `skylib/__init__.py`, which loads each at its first use."""
# ruff: noqa: I001

from skylib.bands import (
    canonical_band as canonical_band,
    flux_to_mag as flux_to_mag,
    register_band as register_band,
    sort_bands as sort_bands,
)
from skylib.browse import SimilarityBrowser as SimilarityBrowser
from skylib.config import ModelConfig as ModelConfig, PretrainConfig as PretrainConfig, ProbeConfig as ProbeConfig
from skylib.data.augment import Augmentation as Augmentation, random_orientation as random_orientation
from skylib.data.cutouts import (
    CutoutFile as CutoutFile,
    at_scale as at_scale,
    copy_cutouts as copy_cutouts,
    make_cutouts as make_cutouts,
    write_cutouts as write_cutouts,
)
from skylib.data.description import Survey as Survey
from skylib.data.loading import Batch as Batch, CutoutLoader as CutoutLoader, TileLoader as TileLoader
from skylib.data.photometry import (
    aperture_snr as aperture_snr,
    brighter as brighter,
    measure_sky_noise as measure_sky_noise,
    signal_to_noise as signal_to_noise,
)
from skylib.data.simulate import SimulatedSky as SimulatedSky, simulate_sky as simulate_sky
from skylib.data.splits import progress_split as progress_split, sky_split as sky_split, split_cutouts as split_cutouts
from skylib.data.surveys import get_survey as get_survey, register_survey as register_survey
from skylib.data.tiles import Tile as Tile, TilePaths as TilePaths, find_tiles as find_tiles, read_tile as read_tile
from skylib.evaluation.diagnostics import (
    find_label_errors as find_label_errors,
    missing_bands as missing_bands,
    nuisance_audit as nuisance_audit,
    observing_conditions as observing_conditions,
    position_leakage as position_leakage,
)
from skylib.evaluation.evaluate import Probe as Probe, evaluate as evaluate, layer_sweep as layer_sweep
from skylib.evaluation.heads import train_head as train_head
from skylib.evaluation.label_study import (
    label_efficiency as label_efficiency,
    label_grid as label_grid,
    labels_to_match as labels_to_match,
    seed_means as seed_means,
)
from skylib.evaluation.labels import count_labels as count_labels, of_class as of_class
from skylib.evaluation.metrics import (
    binned_metrics as binned_metrics,
    classification_metrics as classification_metrics,
    photoz_metrics as photoz_metrics,
    redshift_bins as redshift_bins,
)
from skylib.evaluation.probes import (
    ProbeResult as ProbeResult,
    catalogue_probe as catalogue_probe,
    constant_probe as constant_probe,
    knn_probe as knn_probe,
    linear_probe as linear_probe,
    original_probe as original_probe,
)
from skylib.evaluation.redshift import RedshiftPDF as RedshiftPDF, redshift_pdf as redshift_pdf
from skylib.evaluation.results import (
    Evaluation as Evaluation,
    write_results as write_results,
    write_summary as write_summary,
)
from skylib.model.embed import embed as embed
from skylib.model.embeddings import Embeddings as Embeddings
from skylib.model.mim import MaskedImageModel as MaskedImageModel, MIMOutput as MIMOutput, build_model as build_model
from skylib.model.parts import embed_parts as embed_parts, open_parts as open_parts
from skylib.model.weights import load_model as load_model, read_card as read_card, save_weights as save_weights
from skylib.runner.runs import run_notebook as run_notebook
from skylib.search.approximate import ApproximateIndex as ApproximateIndex
from skylib.search.export import (
    hit_cutouts as hit_cutouts,
    write_hats as write_hats,
    write_objects as write_objects,
)
from skylib.search.filters import parse_filter as parse_filter
from skylib.search.index import SearchIndex as SearchIndex, search as search
from skylib.search.maps import (
    EmbeddingMap as EmbeddingMap,
    fit_map as fit_map,
    trustworthiness as trustworthiness,
    umap_map as umap_map,
)
from skylib.search.queries import find_object as find_object, target_vectors as target_vectors
from skylib.search.ranking import feedback_scores as feedback_scores, rank_anomalies as rank_anomalies
from skylib.search.sky_search import search_tiles as search_tiles
from skylib.search.stream import search_files as search_files
from skylib.stopping import Interrupted as Interrupted
from skylib.training.pretrain import PretrainResult as PretrainResult, pretrain as pretrain

__version__: str
__all__: list[str]
