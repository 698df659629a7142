"""What a model, a pretraining run and a probe are made of: frozen dataclasses that check themselves."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from skylib.bands import sort_bands
from skylib.checks import check_choice, check_fields, check_range

Objective = Literal["mae", "simmim"]
NormPix = Literal["band", "patch"]
Loss = Literal["l1", "mse"]
StretchKind = Literal["asinh", "linear"]
Precision = Literal["auto", "bf16", "fp32"]
Schedule = Literal["cosine", "wsd"]
Method = Literal["linear", "attentive", "finetune", "supervised"]

# name: (width, depth, heads). "nano" is for laptops and tests; the others are the field's usual sizes.
VIT_SIZES = {
    "nano": (128, 6, 4),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A masked image model. The defaults are the recipe that did best in ``docs/recipes.md``.

    Parameters
    ----------
    bands : tuple of str
        Canonical band names; brought into wavelength order.
    size : str
        A row of `VIT_SIZES`.
    image_size, patch_size : int
        Pixels; the patch size divides the image size.
    objective : {"mae", "simmim"}
        ``mae`` drops masked tokens and decodes them; ``simmim`` keeps all tokens and hides pixels, band by band.
    mask_ratio : float
        ``mae``: share of tokens dropped.
    max_mask_ratio : float
        ``simmim``: the share of patches hidden is drawn from U(0, max_mask_ratio), per sample and band.
    norm_pix : {"band", "patch", None}
        Standardise the target per patch and band, per patch over all bands, or not at all.
    loss : {"l1", "mse"}
    stretch : {"asinh", "linear"}
    ra_dec : bool
        Give the encoder a token with the position on the sky. Off: positions can leak a survey's footprint.
    decoder_width, decoder_depth : int, optional
        ``mae`` only. Two thirds of the width of the encoder by default, at most 512, as in MAE for ViT-B; 4 blocks.
    hide_bands : float, optional
        ``mae``: share of samples in which 1 to C - 1 whole bands are hidden too. 0.25 by default, 0 with a single band.
    flux_weight : float, optional
        ``mae``: also predict the fluxes of the whole image in all bands from the visible tokens. 0.3 by default.
    """

    bands: tuple[str, ...] = ("g", "r", "i", "z", "y")
    size: str = "base"
    image_size: int = 64
    patch_size: int = 8
    objective: Objective = "mae"
    mask_ratio: float = 0.75
    max_mask_ratio: float = 0.9
    norm_pix: NormPix | None = "patch"
    loss: Loss = "mse"
    stretch: StretchKind = "asinh"
    ra_dec: bool = False
    decoder_width: int = None  # type: ignore[assignment]  # by default chosen by the size
    decoder_depth: int = 4
    hide_bands: float = None  # type: ignore[assignment]  # and by the objective
    flux_weight: float = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", sort_bands(self.bands))
        mae = self.objective == "mae"
        if self.hide_bands is None:
            object.__setattr__(self, "hide_bands", 0.25 if mae and len(self.bands) > 1 else 0.0)
        if self.flux_weight is None:
            object.__setattr__(self, "flux_weight", 0.3 if mae else 0.0)
        check_choice("size", self.size, tuple(VIT_SIZES))
        if self.decoder_width is None:
            object.__setattr__(self, "decoder_width", min(512, 32 * round(self.width / 48)))
        check_fields(self)
        for name in ("hide_bands", "flux_weight"):
            if getattr(self, name) and self.objective != "mae":
                raise ValueError(f"{name}={getattr(self, name)}: only with objective='mae', not {self.objective!r}")
        if self.hide_bands and len(self.bands) < 2:
            raise ValueError(f"hide_bands={self.hide_bands}: must be 0 with a single band")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size}: must be a multiple of patch_size={self.patch_size}")
        if self.decoder_width % 32:
            raise ValueError(f"decoder_width={self.decoder_width}: must be a multiple of 32 (the width of a head)")
        check_range("n_patches", self.n_patches, 1, 65_536)
        for name in ("mask_ratio", "max_mask_ratio"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must lie between 0 and 1")
        if self.objective == "mae" and not 0 < self.n_visible < self.n_patches:
            raise ValueError(f"mask_ratio={self.mask_ratio} of {self.n_patches} patches: must keep and hide some")

    @property
    def width(self) -> int:
        """Width of a token, D."""
        return VIT_SIZES[self.size][0]

    @property
    def n_patches(self) -> int:
        """Number of patch tokens, N."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def n_visible(self) -> int:
        """Number of tokens that ``mae`` keeps."""
        return round(self.n_patches * (1 - self.mask_ratio))

    @property
    def patch_dim(self) -> int:
        """Number of values in one patch over all bands."""
        return len(self.bands) * self.patch_size**2

    @classmethod
    def original(cls, *, bands: tuple[str, ...] = ("g", "r", "i", "z", "y")) -> ModelConfig:
        """Return the model of the published recipe: SimMIM ViT-B/8, raw flux, L1, pixels normalised over all bands."""
        return cls(bands=bands, objective="simmim", stretch="linear", norm_pix="patch", loss="l1", ra_dec=True)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A pretraining run.

    Parameters
    ----------
    steps : int
    batch_size : int
        Images per step, over all processes together.
    accumulate : int
        Parts of a batch, computed one after another to save memory; on a CPU large batches always are.
    learning_rate : float
        Peak, AdamW; reached after the warm-up, then falls to `final_learning_rate`.
    schedule : {"cosine", "wsd"}
        ``cosine``: half a cosine. ``wsd``: warm-up, stable, and linear decay over the last `cooldown` of the steps.
    cooldown : float
        ``wsd``: share of the steps in which the rate decays.
    weight_decay : float
        On matrices only, not on biases, norms and learned tokens.
    warmup_steps : int, optional
        Of the linear warm-up; a twentieth of `steps` by default.
    clip_grad : float
        Largest norm of the gradient; 0 for no limit.
    ema : float
        Decay per step of an exponential moving average of the weights. The average is then what is validated, probed
        and loaded; 0 for none.
    max_bad_steps : int
        Steps whose gradient is not finite are skipped and counted. After this many in a row the run stops.
    precision : {"auto", "bf16", "fp32"}
        Of the matrix products; the weights are float32. ``auto`` is bf16 on CUDA and on CPUs that have it, else fp32.
    tf32 : bool
        Let float32 products on CUDA use TF32.
    compile : bool, optional
        Compile the step with `torch.compile`; by default on CUDA only.
    log_every, validate_every, checkpoint_every : int
        Steps.
    checkpoint_minutes : float
        Also save after so much time (checked every `log_every` steps).
    start : str, optional
        Model whose weights the training begins with, for `load_model`: a run, a checkpoint or a name.
    tensorboard : bool
        Also write scalars for TensorBoard, to ``tensorboard/`` of the run folder.
    seed : int
    """

    steps: int = 100_000
    batch_size: int = 256
    accumulate: int = 1
    learning_rate: float = 1.5e-4
    final_learning_rate: float = 0.0
    schedule: Schedule = "cosine"
    cooldown: float = 0.2
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int | None = None
    clip_grad: float = 1.0
    ema: float = 0.0
    max_bad_steps: int = 20
    precision: Precision = "auto"
    tf32: bool = True
    compile: bool | None = None
    log_every: int = 50
    validate_every: int = 1_000
    checkpoint_every: int = 1_000
    checkpoint_minutes: float = 15.0
    start: str | None = None
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: must be 0 (off) or below 1, such as 0.999")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size={self.batch_size}: must be a multiple of accumulate={self.accumulate}")
        if self.warmup_steps is not None and not 0 <= self.warmup_steps < self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps}: must be below steps={self.steps}, and not negative")

    @classmethod
    def original(cls, *, steps: int = 1_000_000) -> PretrainConfig:
        """Return the training of the published recipe: AdamW 1e-4, batch 64, cosine, no warm-up, no clipping, fp32."""
        return cls(steps=steps, batch_size=64, learning_rate=1e-4, warmup_steps=0, clip_grad=0.0, precision="fp32")


LEARNING_RATES = {"linear": 3e-3, "attentive": 1e-3, "finetune": 5e-4, "supervised": 5e-4}  # peaks, by default


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """The training of a head on labels (`train_head`).

    Parameters
    ----------
    epochs : int
        Passes over the labelled training objects.
    min_steps : int
        With few labels, passes are added until at least this many steps are made.
    batch_size : int
    learning_rate : float, optional
        Peak, AdamW, after a tenth of the steps, then cosine to zero; `LEARNING_RATES` of the method by default.
    rate_factors, length_factors : tuple of float
        Tuning: a training is tried with every learning rate times one of the first, and every length (epochs and
        `min_steps`) times one of the second, and the best on validation counts; ``supervised`` takes up to 12 times
        longer.
    weight_decay : float
    layer_decay : float
        ``finetune``: the learning rate shrinks by this factor with each block away from the head.
    evaluations : int
        Times that validation is looked at, evenly spread; the weights of the best are kept.
    patience : int
        Stop after this many evaluations without improvement.
    pool : {"central", "mean"}
        Which tokens a linear head takes the mean of: the central ones, where the object is, or all.
    balance : bool
        Classification: let each class count the same in the loss, as it does in the balanced accuracy.
    precision : {"auto", "bf16", "fp32"}
    """

    epochs: int = 20
    min_steps: int = 100
    batch_size: int = 64
    learning_rate: float | None = None
    weight_decay: float = 0.05
    layer_decay: float = 0.75
    evaluations: int = 10
    patience: int = 4
    rate_factors: tuple[float, ...] = (1.0,)
    length_factors: tuple[float, ...] = (1.0,)
    pool: Literal["central", "mean"] = "central"
    balance: bool = True
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("rate_factors", "length_factors"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be one positive number at least")


def to_dict(config: ModelConfig | PretrainConfig | ProbeConfig) -> dict[str, Any]:
    """Return the fields as plain types that JSON and a weights-only checkpoint can hold."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return in one line which fields of two configurations differ; empty if none does."""
    return ", ".join(f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in {**old, **new} if old.get(k) != new.get(k))


def model_config_from_dict(values: dict[str, Any]) -> ModelConfig:
    """Return the `ModelConfig` that `to_dict` wrote; ValueError if a field is unknown to this version."""
    # Earlier versions had more fields, which matter only where they were set, and two terms of the loss less.
    gone = ("registers", "attention_pool", "latent_weight", "consistency_weight")
    kept = {name: x for name, x in values.items() if name != "latent_layers" and (x or name not in gone)}
    values = {"hide_bands": 0.0, "flux_weight": 0.0, **kept}
    if unknown := set(values) - {field.name for field in fields(ModelConfig)}:
        raise ValueError(f"unknown fields of ModelConfig: {', '.join(sorted(unknown))}")
    return ModelConfig(**{**values, "bands": tuple(values["bands"])})
