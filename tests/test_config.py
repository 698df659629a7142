import pytest

from skylib import ModelConfig, PretrainConfig, ProbeConfig
from skylib.config import VIT_SIZES, difference, model_config_from_dict, to_dict


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": "giant"}, "size='giant'.*'nano'.*'huge'"),
        ({"objective": "MAE"}, "objective='MAE'.*'mae', 'simmim'"),
        ({"loss": "L1"}, "loss='L1'.*'l1', 'mse'"),
        ({"norm_pix": True}, "norm_pix=True"),
        ({"image_size": 60}, "multiple of patch_size=8"),
        ({"mask_ratio": 1.0}, "mask_ratio=1.0"),
        ({"bands": ("g", "g")}, "twice"),
        ({"decoder_width": 100}, "decoder_width=100"),
    ],
)
def test_a_wrong_model_is_refused_with_what_is_allowed(values, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**values)


@pytest.mark.parametrize(
    "values", [{"steps": 0}, {"precision": "fp16"}, {"steps": 10, "warmup_steps": 10}, {"learning_rate": -1.0}]
)
def test_a_wrong_run_is_refused(values):
    with pytest.raises(ValueError, match=next(iter(values)) if "warmup_steps" not in values else "warmup"):
        PretrainConfig(**values)
    with pytest.raises(ValueError, match="epochs"):
        ProbeConfig(epochs=0)


def test_configuration_survives_a_checkpoint_and_shows_differences():
    config = ModelConfig(bands=("y", "g"), size="nano", norm_pix=None)
    assert config.bands == ("g", "y")
    assert model_config_from_dict(to_dict(config)) == config
    other = ModelConfig(bands=("y", "g"), size="tiny", norm_pix=None)
    assert difference(to_dict(config), to_dict(other)) == "size: 'nano' -> 'tiny', decoder_width: 96 -> 128"
    with pytest.raises(ValueError, match="unknown fields.*depth"):
        model_config_from_dict(to_dict(config) | {"depth": 3})
    earlier = {
        "registers": 0,
        "attention_pool": False,
        "latent_weight": 0.0,
        "latent_layers": 4,
        "consistency_weight": 0.0,
    }
    assert model_config_from_dict(to_dict(config) | earlier) == config
    for name in ("registers", "latent_weight"):
        with pytest.raises(ValueError, match=f"unknown fields.*{name}"):
            model_config_from_dict(to_dict(config) | {name: 4})


def test_the_decoder_is_narrower_than_the_encoder():
    widths = {size: ModelConfig(size=size).decoder_width for size in VIT_SIZES}
    assert widths == {"nano": 96, "tiny": 128, "small": 256, "base": 512, "large": 512, "huge": 512}
    assert ModelConfig(size="tiny", decoder_width=512).decoder_width == 512


def test_the_published_recipe():
    model, run = ModelConfig.original(), PretrainConfig.original()
    assert (model.objective, model.size, model.patch_size, model.norm_pix, model.loss) == (
        "simmim",
        "base",
        8,
        "patch",
        "l1",
    )
    assert (run.batch_size, run.learning_rate, run.weight_decay, run.betas, run.warmup_steps) == (
        64,
        1e-4,
        0.05,
        (0.9, 0.95),
        0,
    )
