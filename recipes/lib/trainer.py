"""SpikingJelly's classification trainer, made to continue exactly, to run on any device and in several processes.

Kept are its hooks and its optimizers and schedules. Its loop is replaced: it loses the best accuracy on resume, writes
checkpoints that an interruption can halve, mixes runs in one folder, starts several processes on CUDA only, counts some
test images twice in several processes, and averages batches of unequal size as if they were equal.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.examples.common import train_classify
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from snn_ext import parameter_groups

from ..data.images import Batches, channel_statistics, load_images
from .files import fingerprint, intact, named
from .run_folder import RunFolder

__all__ = ["Trainer", "processes"]

ELSEWHERE = ("out", "resume", "data_dir", "log_every")
"""Options that do not change what is computed."""
STARTS_FROM = "start_content"


class Trainer(train_classify.Trainer):
    """Train a classifier of images; override the host's hooks as with the host's own trainer.

    What is random in an epoch, order of the images and augmentation included, depends on the seed, the epoch and the
    process alone. So no random state has to be saved, and an interrupted epoch starts again as it began.
    """

    model: nn.Module
    rank = 0
    processes = 1
    checkpoint: dict[str, Any] | None = None
    """The state from which a run continues."""
    watched = "test"
    """Name of the samples of ``test_loader`` in the log; the best epoch is the best on them."""

    # -- hooks ------------------------------------------------------------------------------------------------------

    def load_data(self, args: argparse.Namespace) -> Any:
        """Load the data set; the first process goes ahead, as it may have to download."""
        if self.rank > 0:
            dist.barrier()
        data = self.read_data(args)
        if self.rank == 0 and self.processes > 1:
            dist.barrier()
        return data

    def read_data(self, args: argparse.Namespace) -> Any:
        """Read the data set, which has a ``name`` and ``classes``."""
        return load_images(args.data, args.data_dir).first(args.train_images, args.test_images)

    def set_loaders(self, args: argparse.Namespace) -> None:
        """Make ``train_loader``, ``test_loader`` (of this process) and ``calibration_loader`` from the data."""
        self.statistics = mean, std = self.input_statistics(args)
        share: dict[str, Any] = {"rank": self.rank, "processes": self.processes, "device": self.device}
        self.train_loader = Batches(
            self.data.train, args.batch_size, mean, std, train=True, crop=args.crop, flip=args.flip,
            mixup=args.mixup_alpha, classes=len(self.data.classes), seed=args.seed, **share,
        )  # fmt: skip
        self.test_loader = Batches(self.data.test, args.batch_size, mean, std, **share)
        self.calibration_loader = Batches(self.data.train, 100, mean, std, device=self.device)

    def input_statistics(self, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
        """Return what images in [0, 1] are shifted by and divided by, ``[C]`` or ``[C, H, W]``."""
        return channel_statistics(self.data.train[0])

    def load_model(self, args: argparse.Namespace, num_classes: int) -> nn.Module:
        """Build the net; ``self.data`` and the loaders are there. To be overridden."""
        raise NotImplementedError

    def defaults(self, args: argparse.Namespace) -> dict[str, Any]:
        """Return the defaults of the options, for runs begun before an option was there."""
        return {}

    def threshold_modules(self) -> list[nn.Module]:
        """Return the modules whose parameters are thresholds, for the log."""
        return []

    def reset(self, model: nn.Module) -> None:
        """Put the neurons of a net into the state before the first step."""
        functional.reset_net(model)

    def train_mode(self, model: nn.Module, args: Any) -> None:
        """Put a net into the mode of training, at the start of each epoch."""
        model.train()

    def loss(self, args: Any, criterion: nn.Module, output: Tensor, samples: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch of training."""
        return criterion(output, targets)

    def about(self) -> dict[str, Any]:
        """Return what a checkpoint is to say of the net besides its settings."""
        return {}

    def note_epoch(self, seconds: float) -> dict[str, Any]:
        """Return what else is to stand in the log of an epoch, whose training took that long; not in the result."""
        return {}

    def measure(self, args: argparse.Namespace) -> dict[str, Any]:
        """Return what else is to stand in the result of a finished run; called in the first process."""
        return {}

    def set_optimizer(self, args: argparse.Namespace, parameters: Any) -> torch.optim.Optimizer:
        """Build the host's optimizer, or Adam, on groups instead of the nameless ``parameters``."""
        groups = parameter_groups(self.model, args.lr, getattr(args, "threshold_lr", None), args.weight_decay)
        if args.opt == "adam":  # which the host does not offer; the decay is part of the gradient
            return torch.optim.Adam(groups, args.lr)
        return super().set_optimizer(args, groups)

    def set_lr_scheduler(self, args: argparse.Namespace, optimizer: torch.optim.Optimizer) -> Any:
        """Build the host's schedule, or that of ``--lr-milestones``."""
        if getattr(args, "lr_milestones", None):
            return torch.optim.lr_scheduler.MultiStepLR(optimizer, args.lr_milestones, args.lr_gamma)
        return super().set_lr_scheduler(args, optimizer)

    # -- the run ----------------------------------------------------------------------------------------------------

    def main(self, args: argparse.Namespace) -> dict[str, Any]:
        """Run or continue a training, and return its result."""
        with processes(args) as (self.rank, self.processes, device):
            settings = {k: v for k, v in vars(args).items() if k not in ELSEWHERE} | {"processes": self.processes}
            settings = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
            start = getattr(args, "start", None)
            if start is not None:  # the net that a run starts from, by its content; it may be gone when the run goes on
                settings[STARTS_FROM] = fingerprint(start.read_bytes()) if start.is_file() else None
            # More epochs go on as the first ones only where the schedule does not depend on their number.
            may_grow = ("epochs",) if args.lr_scheduler != "cosa" else ()
            folder = None
            if self.rank == 0:
                folder = RunFolder(args.out, settings, args.resume, may_grow, self.defaults(args), (STARTS_FROM,))
            try:
                result = self._from_first(folder.result if folder else None)
                return self._run(args, device, folder) if result is None else result
            finally:
                if folder:
                    folder.close()

    def _run(self, args: argparse.Namespace, device: torch.device, folder: RunFolder | None) -> dict[str, Any]:
        train_classify.set_deterministic(args.seed)
        self.device = device
        self.data = self.load_data(args)
        self.set_loaders(args)
        if len(self.train_loader) == 0:
            samples = len(self.train_loader.labels)
            raise ValueError(f"--batch-size: got {args.batch_size}, want at most {samples}, the samples there are")

        self.checkpoint = checkpoint = self._from_first(folder.checkpoint() if folder else None)
        self.model = self.load_model(args, len(self.data.classes)).to(device)
        criterion = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)
        optimizer = self.set_optimizer(args, None)
        schedule = self.set_lr_scheduler(args, optimizer)
        scaler = torch.amp.GradScaler(device.type, enabled=args.amp and device.type == "cuda")
        state = {"model": self.model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
        start, best = 0, -1.0
        if checkpoint is not None:
            with intact(args.out / "last.pt", "a checkpoint of this run", "restore a copy of it, or start elsewhere"):
                for name, part in state.items():
                    part.load_state_dict(checkpoint[name])
                start, best = checkpoint["epochs"], checkpoint["best_accuracy"]

        # Batch norm sees the statistics of all processes, so its buffers are equal without being sent around.
        model = DistributedDataParallel(self.model, broadcast_buffers=False) if self.processes > 1 else self.model
        curves = args.out / "tensorboard"
        with named(curves):
            writer = SummaryWriter(curves, purge_step=start) if folder else None
        self.step_log, steps = folder, len(self.train_loader)
        record: dict[str, Any] = {}
        with tqdm(
            total=args.epochs * steps, initial=start * steps, unit="batch", desc=args.out.name, dynamic_ncols=True,
            disable=self.rank > 0 or None,  # only a terminal shows it
        ) as self.bar:  # fmt: skip
            for epoch in range(start, args.epochs):
                began = time.perf_counter()
                seed = np.random.SeedSequence([args.seed, epoch, self.rank]).generate_state(1)[0]
                train_classify.set_deterministic(int(seed))
                self.train_loader.set_epoch(epoch)
                lr = optimizer.param_groups[0]["lr"]
                train = self.train_one_epoch(
                    model, criterion, optimizer, self.train_loader, device, epoch, args, scaler=scaler
                )
                notes = self.note_epoch(time.perf_counter() - began)
                test = self.evaluate(args, self.model, criterion, self.test_loader, device)
                for loss in (train[0], test[0]):  # before anything is logged or saved
                    if not np.isfinite(loss):
                        raise FloatingPointError(
                            f"loss of epoch {epoch}: got {loss}, want a finite one: try a smaller --lr, or with "
                            f"recipes.train_images --clip-grad-norm 1 or --grad-scale lsq"
                        )
                schedule.step()
                if folder is None or writer is None:
                    continue
                names = [f"{part}_{what}" for part in ("train", self.watched) for what in ("loss", "acc1", "acc5")]
                record = {"epoch": epoch, "lr": lr, **dict(zip(names, (*train, *test), strict=True))}
                better, best = test[1] > best, max(best, test[1])
                thresholds = [p.flatten().tolist() for m in self.threshold_modules() for p in m.parameters()]
                folder.log(**record, **notes, thresholds=thresholds, seconds=time.perf_counter() - began)
                with named(curves):
                    for name in names:
                        if record[name] is not None:
                            writer.add_scalar(name, record[name], epoch)
                    for i, threshold in enumerate(thresholds):
                        writer.add_scalar(f"threshold/{i:02d}", threshold[0], epoch)
                self.bar.write(
                    f"epoch {epoch + 1}/{args.epochs}: loss {train[0]:.3f}, {self.watched} accuracy {test[1]:.2%}, "
                    f"best {best:.2%}"
                )
                progress = {"epochs": epoch + 1, "best_accuracy": best, "last": record, "settings": folder.settings}
                progress |= self.about()
                folder.save({name: part.state_dict() for name, part in state.items()} | progress, better)
        result = {}
        if folder and writer:
            with named(curves):
                writer.close()
            last = record or checkpoint["last"]  # of a run that was interrupted after its last epoch
            result = {"data": self.data.name, "best_accuracy": best, **last, **self.measure(args)}
            folder.finish(result)
        return self._from_first(result)

    def _from_first(self, value: Any) -> Any:
        """Return what the first process has."""
        if self.processes == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    # -- an epoch ---------------------------------------------------------------------------------------------------

    def train_one_epoch(  # noqa: D102
        self, model, criterion, optimizer, data_loader, device, epoch, args, model_ema=None, scaler=None
    ):  # fmt: skip
        self.train_mode(model, args)
        totals = _Totals(device)
        for step, (images, targets) in enumerate(data_loader):
            with self._autocast(args, device):
                samples = self.preprocess_train_sample(args, images)
                output = self.process_model_output(args, model(samples))
                loss = self.loss(args, criterion, output, samples, targets)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            if args.clip_grad_norm is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            self.reset(model)
            totals.add(loss, output, targets)
            self.bar.update()
            if args.log_every and step % args.log_every == 0:
                value = self._mean_over_processes(loss)
                self.bar.set_postfix(epoch=epoch, loss=f"{value:.3f}", refresh=False)
                if self.step_log:
                    self.step_log.log(epoch=epoch, step=step, loss=value)
        return totals.result(self.processes)

    @torch.no_grad()
    def evaluate(self, args, model, criterion, data_loader, device, log_suffix=""):  # noqa: D102
        model.eval()
        self.reset(model)
        totals = _Totals(device)
        for images, targets in data_loader:
            with self._autocast(args, device):
                output = self.process_model_output(args, model(self.preprocess_test_sample(args, images)))
                loss = criterion(output, targets)
            self.reset(model)
            totals.add(loss, output, targets)
        return totals.result(self.processes)

    def _autocast(self, args: argparse.Namespace, device: torch.device) -> torch.autocast:
        dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
        return torch.autocast(device.type, dtype, enabled=args.amp)

    def _mean_over_processes(self, loss: Tensor) -> float:
        loss = loss.detach().double()
        if self.processes > 1:
            dist.all_reduce(loss)
        return float(loss) / self.processes


class _Totals:
    """Sums over samples, so that the mean is exact however the samples are shared out."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, top-1, top-5, samples

    def add(self, loss: Tensor, output: Tensor, targets: Tensor) -> None:
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        top = output.topk(min(5, output.shape[1]), 1).indices == labels[:, None]
        top &= ~output.isnan().any(1, keepdim=True)  # which topk counts as the largest
        hits = top[:, 0].sum(), top.sum()
        self.sums += torch.stack([loss.detach().double() * len(labels), *hits, hits[0].new_tensor(len(labels))])

    def result(self, processes: int) -> tuple[float, float, float]:
        if processes > 1:
            dist.all_reduce(self.sums)
        loss, top1, top5, samples = self.sums.tolist()
        return loss / samples, top1 / samples, top5 / samples


@contextmanager
def processes(args: argparse.Namespace) -> Iterator[tuple[int, int, torch.device]]:
    """Join the other processes if ``torchrun`` has started several; yield rank, their number and the device."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if args.batch_size % count:
        raise ValueError(f"--batch-size: got {args.batch_size}, want a multiple of the {count} processes")
    device = torch.device(args.device)
    if count == 1:
        yield 0, 1, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield dist.get_rank(), count, device
    finally:
        dist.destroy_process_group()
