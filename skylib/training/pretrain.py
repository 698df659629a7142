"""Pretraining: one call that starts a run, or resumes it; its loop, from top to bottom."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor

from skylib.checks import checked
from skylib.config import ModelConfig, PretrainConfig, difference, model_config_from_dict, to_dict
from skylib.data.cutouts import CutoutFile
from skylib.data.loading import Batch, CutoutLoader, Loader
from skylib.device import float32_products, kept_memory, keyed_generator, pick_device
from skylib.files import write_json
from skylib.lock import locked
from skylib.model.checkpoint import load_last, resumable, save_checkpoint
from skylib.model.mim import MaskedImageModel, build_model
from skylib.model.origin import describe_data
from skylib.model.weights import load_model, start_from
from skylib.stopping import Interrupted, StopRequest
from skylib.training.distributed import World, join, launch, rank_and_size
from skylib.training.monitor import Display, Measurement, Recorder, measure, read_metrics, sky_noise
from skylib.training.optimise import Optimiser, Step, learning_rate_at

log = logging.getLogger(__name__)
_TRAIN = 0  # what a mask is for: part of its key


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """What `pretrain` left in the run folder."""

    run_dir: Path
    model: MaskedImageModel
    step: int
    metrics: pd.DataFrame  # one row per log step: step, loss, learning_rate, …; validation and probes where measured


@checked
def pretrain(
    model_config: ModelConfig,
    config: PretrainConfig,
    *,
    train: Loader | CutoutFile,
    validation: CutoutLoader | CutoutFile | None = None,
    probes: Sequence[Measurement] = (),
    run_dir: str | Path,
    device: str | torch.device | None = None,
    processes: int | None = None,
) -> PretrainResult:
    """Train a masked image model; called again on the same run folder, resume from its last checkpoint.

    Every random draw follows from the seed and the step, so on a CPU in fp32 a run that was interrupted and resumed
    ends with the same weights as one that was not. SIGUSR1, SIGTERM, Ctrl-C, or a file ``STOP`` in the run folder, end
    it after the step at hand; all is saved.

    Parameters
    ----------
    model_config : ModelConfig
    config : PretrainConfig
        With `start`, a new run begins with the weights of another model. The noise of the sky is that of the data.
    train : CutoutLoader, TileLoader or CutoutFile
        From a file, batches of `config.batch_size` are drawn at random, with random rotations and flips. Where a loader
        gives weights of pixels, they count in the loss.
    validation : CutoutLoader or CutoutFile, optional
        Its loss is measured with masks that never change.
    probes : sequence of Probe, or of other callables
        Called as ``probe(model, precision=…, shared=…)`` together with the validation loss; each returns named numbers
        for the log, and may keep in the dictionary `shared` what the next can use. They do not touch the training.
    run_dir : path
        Gets ``config.json``, ``metrics.jsonl``, ``figures/``, and ``checkpoints/``: ``last.pt``, ``previous.pt``, and
        ``best.pt`` with the weights of the lowest validation loss.
    device : optional
        CUDA if there is one, by default.
    processes : int, optional
        On each node; by default one for each GPU. More than one are started as workers, unless ``torchrun`` or
        ``srun`` has started this program as one of several already. A batch is divided among them.

    Raises
    ------
    ValueError
        If the run folder holds a run of another model, another training is at work there, the bands or sizes do not
        match, or the batch cannot be divided.
    FloatingPointError
        If the gradient was not finite for `config.max_bad_steps` steps in a row.
    Interrupted
        If asked to stop; the state is saved.
    OSError
        If no checkpoint of the run can be read.
    """
    run_dir, device = Path(run_dir), pick_device(device)
    processes = processes or (torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1)
    arguments: dict[str, Any] = {"model_config": model_config, "config": config, "run_dir": run_dir, "device": device}
    arguments |= {"train": train, "validation": validation, "probes": tuple(probes)}
    step = found[1]["step"] if (found := load_last(run_dir)) else 0
    rank, size = rank_and_size()
    first = rank == 0
    held = locked(run_dir / "training.lock", "a training") if first else nullcontext()
    with held, closing(Display(run_dir, steps=config.steps, step=step, quiet=not first)) as display:
        several = processes * int(os.environ.get("SLURM_JOB_NUM_NODES", 1)) > 1
        if several and size == 1 and step < config.steps:
            work = f"{__name__}:{train_here.__name__}"
            launch(work, arguments, run_dir=run_dir, processes=processes, watch=display.refresh)
        else:
            train_here(**arguments, show=display)
        display.refresh()
    model = load_model(run_dir, device=device)
    return PretrainResult(run_dir=run_dir, model=model, step=config.steps, metrics=read_metrics(run_dir))


def train_here(
    *, run_dir: Path, config: PretrainConfig, device: torch.device, show: Display | None = None, **arguments: Any
) -> None:
    """Do this process's part of a run of `pretrain`, which explains the parameters; a worker shows nothing by itself."""
    products, show = float32_products("high" if config.tf32 else "highest"), show or Display(run_dir, quiet=True)
    with join(device) as world, products, kept_memory(device), StopRequest(run_dir) as stop:
        Trainer(run_dir=run_dir, config=config, world=world, **arguments).run(stop, show)


class Trainer:
    """A run in this process. The host waits for the device only each `log_every` steps, when it logs."""

    def __init__(
        self,
        *,
        model_config: ModelConfig,
        config: PretrainConfig,
        train: Loader | CutoutFile,
        validation: CutoutLoader | CutoutFile | None,
        probes: Sequence[Measurement],
        run_dir: Path,
        world: World,
    ) -> None:
        self.model = build_model(model_config, seed=config.seed)
        self.config, self.run_dir, self.world = config, run_dir, world
        if config.batch_size % (config.accumulate * world.size):
            processes = f"{world.size} processes x accumulate={config.accumulate}"
            raise ValueError(f"batch_size={config.batch_size}: cannot be divided among {processes}")
        self.loader = self._open(train, "training").shard(world.rank, world.size)
        self.trained_on = describe_data(self.loader)
        self.validation = None
        if validation is not None and world.first:
            self.validation = cast(CutoutLoader, self._open(validation, "validation"))
        self.probes = probes if world.first else ()
        self.step, self.best = 0, float("inf")
        self.running = torch.zeros(2, device=world.device)  # since the last line of the log: summed loss, good steps
        resumed = load_last(run_dir)
        if resumed is None:
            start_from(self.model, config.start)
            self.model.set_sky_noise(world.agree(torch.from_numpy(sky_noise(self.loader))))
        else:
            self._check_same(*resumed)
        self.model.to(world.device).train()
        self.optimiser = Optimiser(self.model, config)
        if resumed is not None:
            with resumable(resumed[0]):
                self._restore(resumed[1])
        self.forward_backward = Step(self.model, config, world)
        if world.first:
            write_json(run_dir / "config.json", {"model": to_dict(model_config), "pretrain": to_dict(config)})
        self.recorder = Recorder(run_dir, step=self.step, tensorboard=config.tensorboard) if world.first else None

    def run(self, stop: StopRequest, show: Display) -> None:
        """Train until the last step, or until asked to stop."""
        config, world = self.config, self.world
        batches = chain.from_iterable(repeat(self.loader))
        clock, saved, logged = time.perf_counter(), time.monotonic(), self.step
        while self.step < config.steps:
            norm = self._advance(next(batches))
            show.tick(self.step)
            last = self.step == config.steps
            look = last or self.step % config.log_every == 0
            if look:
                elapsed, clock = time.perf_counter() - clock, time.perf_counter()
                self._log(norm, images_per_s=(self.step - logged) / elapsed * config.batch_size)
                logged = self.step
            if last or self.step % config.validate_every == 0:
                try:
                    self._validate()
                except BaseException:
                    self._save()  # a probe or a figure that fails must not cost the steps since the last checkpoint
                    raise
            # Several processes must agree, which they do when they wait for each other anyway.
            why = world.agree(stop.why()) if world.size == 1 or look else None
            overdue = look and world.agree(time.monotonic() - saved > 60 * config.checkpoint_minutes)
            if last or why or overdue or self.step % config.checkpoint_every == 0:
                self._save()
                saved = time.monotonic()
            if look:
                show.refresh()
            if why and not last:
                stop.done()
                where = f"{self.run_dir}: stopped by {why} after step {self.step} of {config.steps}"
                raise Interrupted(f"{where}; saved in checkpoints/last.pt. Run it again with this folder to resume")
        world.agree(None)  # all wait until the first has saved

    def _advance(self, batch: Batch) -> Tensor:
        """Make one step and return the norm of the gradient."""
        world, n = self.world, len(batch.flux) * self.world.size
        generator = keyed_generator(self.config.seed, _TRAIN, self.step, device=world.device)
        mask = world.part(self.model.draw_mask(n, generator=generator, device=world.device))
        error, n_pixels = world.sum(self.forward_backward(batch, mask))
        norm = self.optimiser.step(self.step, n_pixels, processes=world.size)
        good = norm.isfinite()
        loss = torch.where(good, error / n_pixels.clamp(min=1e-12), 0.0)
        self.running += torch.stack([loss, good.float()])
        self.step += 1
        return norm

    def _log(self, norm: Tensor, *, images_per_s: float) -> None:
        """Write a line of the log, and end a run whose gradients are no numbers any more."""
        loss, good = self.running.tolist()
        self.running.zero_()
        in_a_row, in_all = self.optimiser.bad_steps()
        if self.recorder is not None:
            line = {
                "step": self.step,
                "loss": loss / good if good else float("nan"),
                "learning_rate": learning_rate_at(self.step - 1, self.config),
                "gradient_norm": float(norm),
                "images_per_s": round(images_per_s, 1),
            }
            self.recorder.write(line | ({"bad_steps": in_all} if in_all else {}))
        if in_a_row:
            skipped = f"{in_all} steps without a finite gradient were skipped, {in_a_row} of them in a row"
            log.warning("%s: %s", self.run_dir, skipped)
        if in_a_row >= self.config.max_bad_steps:
            raise FloatingPointError(
                f"{self.run_dir}: the gradient was not finite in {in_a_row} steps in a row, up to step {self.step}; "
                f"the last checkpoint is kept. Try a learning rate below {self.config.learning_rate}, or "
                "precision='fp32'"
            )

    def _validate(self) -> None:
        if self.recorder is None or (self.validation is None and not self.probes):
            return
        model = self.optimiser.average or self.model  # averaged weights, if there are any, are what is used later
        line = measure(model, self.validation, self.probes, config=self.config, run_dir=self.run_dir)
        self.model.train()
        self.recorder.write({"step": self.step} | line)
        if (loss := line.get("validation_loss", float("inf"))) < self.best:
            self.best = loss
            save_checkpoint(self.run_dir / "checkpoints" / "best.pt", self._content(model))
        self.recorder.draw()

    def _content(self, model: MaskedImageModel) -> dict[str, Any]:
        configs = {"model_config": to_dict(self.model.config), "pretrain_config": to_dict(self.config)}
        return {"step": self.step, "model": model.state_dict(), "trained_on": self.trained_on, **configs}

    def _save(self) -> None:
        if not self.world.first:
            return
        state = {"best": self.best, "running": self.running.cpu(), "optimiser": self.optimiser.state_dict()}
        content = self._content(self.model) | state | {"loader": self.loader.state_dict()}
        folder = self.run_dir / "checkpoints"
        save_checkpoint(folder / "last.pt", content, keep=folder / "previous.pt")

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.model.load_state_dict(checkpoint["model"])
        self.optimiser.load_state_dict(checkpoint["optimiser"])
        self.loader.load_state_dict(checkpoint["loader"])
        self.step, self.best = checkpoint["step"], checkpoint["best"]
        self.running = checkpoint["running"].to(self.world.device)

    def _check_same(self, path: Path, checkpoint: dict[str, Any]) -> None:
        with resumable(path):
            before = to_dict(model_config_from_dict(checkpoint["model_config"]))
            settings = checkpoint["pretrain_config"]
        if changed := difference(before, to_dict(self.model.config)):
            raise ValueError(f"{path} is of another model ({changed}); use another run folder, or the same model")
        if changed := difference(settings, to_dict(self.config)):
            log.warning("%s is resumed with other settings: %s", path, changed)

    def _open(self, data: Loader | CutoutFile, kind: str) -> Loader:
        """Return the loader of the training or validation data, which must fit the model and the settings."""
        c, m, device, shuffle = self.config, self.model.config, self.world.device, kind == "training"
        if isinstance(data, CutoutFile):
            options: dict[str, Any] = {"size": m.image_size, "bands": m.bands, "device": device, "seed": c.seed}
            data = CutoutLoader(data, batch_size=c.batch_size, shuffle=shuffle, augment=shuffle, **options)
        elif data.device.type == device.type:  # of several GPUs, this process's own
            data.device = device
        if tuple(data.bands) != m.bands:
            has, needs = " ".join(data.bands), " ".join(m.bands)
            raise ValueError(f"the {kind} data holds bands {has}, the model {needs}: give its loader bands={needs!r}")
        if data.size != m.image_size:
            raise ValueError(f"the {kind} data has images of {data.size} pixels, the model image_size={m.image_size}")
        if shuffle and data.batch_size != c.batch_size:
            given = f"the loader of the training data gives batches of {data.batch_size}"
            raise ValueError(f"batch_size={c.batch_size}: {given}")
        return data
