"""The training loop: what is done in each process of a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from skylib.config import ModelConfig, PretrainConfig, difference, model_config_from_dict, to_dict
from skylib.data.cutouts import CutoutFile
from skylib.data.loading import Batch, CutoutLoader, Loader
from skylib.device import float32_products, kept_memory, keyed_generator
from skylib.evaluation.progress import Probe, run_probes
from skylib.files import write_json
from skylib.model.checkpoint import load_last, save_checkpoint
from skylib.model.mim import MaskedImageModel, build_model
from skylib.stopping import Interrupted, StopRequest
from skylib.training.distributed import World, join
from skylib.training.monitor import Recorder, draw_progress, draw_reconstruction, examples
from skylib.training.optimise import Optimiser, learning_rate_at
from skylib.training.step import Step
from skylib.training.validation import validation_loss

log = logging.getLogger(__name__)

_TRAIN = 0  # what a mask is for: part of its key


def train(
    *, model_config: ModelConfig, config: PretrainConfig, train: Loader | CutoutFile,
    validation: CutoutLoader | CutoutFile | None, probes: Sequence[Probe], run_dir: Path, device: torch.device,
    watch: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Do the part of this process in a run of `pretrain`, which has the parameters; `watch` is called after each look."""
    products = float32_products("high" if config.tf32 else "highest")
    with join(device) as world, products, kept_memory(device), StopRequest(run_dir) as stop:
        Trainer(model_config, config, train, validation, probes, run_dir, world).run(stop, watch)


class Trainer:
    """A run in this process. The host waits for the device only at a look, each `log_every` steps."""

    def __init__(
        self, model_config: ModelConfig, config: PretrainConfig, train: Loader | CutoutFile,
        validation: CutoutLoader | CutoutFile | None, probes: Sequence[Probe], run_dir: Path, world: World,
    ) -> None:  # fmt: skip
        self.model_config, self.config, self.run_dir, self.world, self.probes = model_config, config, run_dir, world, probes  # fmt: skip
        if config.batch_size % (config.accumulate * world.size):
            raise ValueError(f"batch_size={config.batch_size}: cannot be divided among {world.size} processes x accumulate={config.accumulate}")  # fmt: skip
        whole, self.validation = self._loader(train, shuffle=True), None
        if whole.batch_size != config.batch_size:
            raise ValueError(f"batch_size={config.batch_size}: the loader of the training data gives batches of {whole.batch_size}")  # fmt: skip
        self.loader = whole.shard(world.rank, world.size)
        if validation is not None and world.first:
            self.validation = cast(CutoutLoader, self._loader(validation, shuffle=False))
        for kind, loader in (("training", self.loader), ("validation", self.validation)):
            if loader is None:
                continue
            if loader.device.type == world.device.type:  # of several GPUs, this process's own
                loader.device = world.device
            if tuple(loader.bands) != model_config.bands:
                found, wanted = " ".join(loader.bands), " ".join(model_config.bands)
                raise ValueError(f"the {kind} data holds bands {found}, the model {wanted}")
        self.model = build_model(model_config, seed=config.seed)
        self.step, self.best = 0, float("inf")
        self._running = torch.zeros(2, device=world.device)  # since the last look: summed loss, good steps
        resumed = load_last(run_dir)
        if resumed is None:
            self.model.set_sky_noise(world.agree(torch.from_numpy(_sky_noise(self.loader))))
        else:
            self._check(*resumed)
            self.model.load_state_dict(resumed[1]["model"])
        self.model.to(world.device).train()
        self.optimiser = Optimiser(self.model, config)
        if resumed is not None:
            self._restore(resumed[1])
        if world.first:
            write_json(run_dir / "config.json", {"model": to_dict(model_config), "pretrain": to_dict(config)})
        self._step = Step(self.model, config, world)
        self.recorder = Recorder(run_dir, step=self.step, tensorboard=config.tensorboard) if world.first else None

    @property
    def evaluated(self) -> MaskedImageModel:
        """The model that is validated: with averaged weights, if there are any."""
        return self.optimiser.average or self.model

    def run(self, stop: StopRequest, watch: Callable[[], None]) -> None:
        """Train until the last step, or until asked to stop."""
        config, world = self.config, self.world
        if self.step >= config.steps:
            return
        batches, clock, saved = _endless(self.loader), time.perf_counter(), time.monotonic()
        shown = self.step
        while self.step < config.steps:
            norm = self._advance(next(batches))
            last = self.step == config.steps
            look = last or self.step % config.log_every == 0
            if look:
                loss, good = self._running.tolist()
                elapsed, clock = time.perf_counter() - clock, time.perf_counter()
                self._look(loss / good if good else float("nan"), float(norm), (self.step - shown) / elapsed)
                shown = self.step
                self._running.zero_()
            if last or self.step % config.validate_every == 0:
                try:
                    self._validate()
                except (
                    BaseException
                ):  # a probe or a figure that fails must not cost the steps since the last checkpoint
                    self._save()
                    raise
            why = world.agree(stop.why()) if world.size == 1 or look else None
            overdue = look and world.agree(time.monotonic() - saved > 60 * config.checkpoint_minutes)
            if last or why or overdue or self.step % config.checkpoint_every == 0:
                self._save()
                saved = time.monotonic()
            if look:
                watch()
            if why and not last:
                stop.done()
                where = f"{self.run_dir}: stopped by {why} after step {self.step} of {config.steps}"
                raise Interrupted(f"{where}; all is saved, and goes on when it is run again")
        world.agree(None)  # all wait until the first has saved

    def _advance(self, batch: Batch) -> Tensor:
        """Make one step and return the norm of the gradient."""
        error, n_pixels = self.world.sum(self._step(batch, self._mask(len(batch.flux))))
        norm = self.optimiser.step(self.step, n_pixels, processes=self.world.size)
        good = norm.isfinite()
        loss = torch.where(good, error / n_pixels.clamp(min=1e-12), 0.0)
        self._running += torch.stack([loss, good.float()])
        self.step += 1
        self.model.after_step(self.step, self.config.steps)
        return norm

    def _mask(self, n: int) -> Tensor:
        """Draw the mask for the batch of all processes, and return this one's part."""
        generator = keyed_generator(self.config.seed, _TRAIN, self.step, device=self.world.device)
        mask = self.model.draw_mask(n * self.world.size, generator=generator, device=self.world.device)
        return mask[self.world.rank * n : (self.world.rank + 1) * n]

    def _look(self, loss: float, norm: float, rate: float) -> None:
        """Log, and end a run that cannot be saved."""
        in_a_row, in_all = self.optimiser.bad_steps()
        if self.recorder is not None:
            line = {"step": self.step, "loss": loss, "learning_rate": learning_rate_at(self.step - 1, self.config),
                    "gradient_norm": norm, "images_per_s": round(rate * self.config.batch_size, 1)}  # fmt: skip
            self.recorder.write(line | ({"bad_steps": in_all} if in_all else {}))
        if in_a_row:
            log.warning("%s: %d steps without a finite gradient were skipped, %d of them in a row", self.run_dir, in_all, in_a_row)  # fmt: skip
        if in_a_row >= self.config.max_bad_steps:
            raise FloatingPointError(
                f"{self.run_dir}: the gradient was not finite in {in_a_row} steps in a row, up to step {self.step}; the last "
                f"checkpoint is kept. Try a learning rate below {self.config.learning_rate}, or precision='fp32'"
            )

    def _validate(self) -> None:
        if self.recorder is None or (self.validation is None and not self.probes):
            return
        line: dict[str, Any] = {"step": self.step}
        self.evaluated.eval()
        if self.validation is not None:
            loss = validation_loss(self.evaluated, self.validation, precision=self.config.precision, seed=self.config.seed)  # fmt: skip
            line["validation_loss"] = loss
            if loss < self.best:
                self.best = loss
                content = {
                    "step": self.step, "model": self.evaluated.state_dict(),
                    "model_config": to_dict(self.model_config), "pretrain_config": to_dict(self.config),
                }  # fmt: skip
                save_checkpoint(self.run_dir / "checkpoints" / "best.pt", content)
        line |= run_probes(self.evaluated, self.probes, precision=self.config.precision)
        self.recorder.write(line)
        draw_progress(self.run_dir)
        if self.validation is not None:
            flux = torch.from_numpy(self.validation.flux(self.validation.rows[:256]))
            chosen = examples(flux, self.model.sky_sigma.cpu())
            draw_reconstruction(self.run_dir, self.evaluated, chosen, seed=self.config.seed)
        self.model.train()

    def _save(self) -> None:
        if not self.world.first:
            return
        folder = self.run_dir / "checkpoints"
        content = {
            "step": self.step, "best": self.best, "running": self._running.cpu(),
            "model_config": to_dict(self.model_config), "pretrain_config": to_dict(self.config),
            "model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "loader": self.loader.state_dict(),
        }  # fmt: skip
        save_checkpoint(folder / "last.pt", content, keep=folder / "previous.pt")

    def _check(self, path: Path, checkpoint: dict[str, Any]) -> None:
        if changed := difference(
            to_dict(model_config_from_dict(checkpoint["model_config"])), to_dict(self.model_config)
        ):
            raise ValueError(f"{path} is of another model ({changed}); use another run folder, or the same model")
        if changed := difference(checkpoint["pretrain_config"], to_dict(self.config)):
            log.warning("%s goes on with other settings: %s", path, changed)

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.optimiser.load_state_dict(checkpoint["optimiser"])
        self.loader.load_state_dict(checkpoint["loader"])
        self.step, self.best = checkpoint["step"], checkpoint["best"]
        self._running = checkpoint["running"].to(self.world.device)

    def _loader(self, data: Loader | CutoutFile, *, shuffle: bool) -> Loader:
        if not isinstance(data, CutoutFile):
            return data
        return CutoutLoader(
            data, batch_size=self.config.batch_size, size=self.model_config.image_size, bands=self.model_config.bands,
            shuffle=shuffle, augment=shuffle, device=self.world.device, seed=self.config.seed,
        )  # fmt: skip


def _sky_noise(loader: Loader) -> np.ndarray:
    noise = loader.sky_noise()
    if not (noise > 0).any():
        raise ValueError(f"the sky noise cannot be measured in any of the bands {' '.join(loader.bands)}")
    if bad := [band for band, sigma in zip(loader.bands, noise, strict=True) if not sigma > 0]:
        log.warning("no data in band %s: its sky noise is taken from the other bands", ", ".join(bad))
    return np.where(noise > 0, noise, np.nanmedian(noise[noise > 0])).astype(np.float32)


def _endless(loader: Loader) -> Iterator[Batch]:
    while True:
        yield from loader
