"""A spiking autoencoder with pre-charge and delayed evaluation: Net 3 of Hwang et al. 2021.

``python -m recipes.autoencoder --out runs/autoencoder`` trains the net on images padded to 32x32, converts it with
spiking input and output layers, and lets it rebuild a picture of 32x32 tiles: scikit-image's astronaut if that package
is there, else tiles of test images. It draws the error over time and the picture after 50, 100, ... 255 steps, with and
without pre-charge and with a delay. What is finished is kept: started again, the command goes on.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from benchmarks.results import conversion_plots as plots
from benchmarks.results.pages import command_line, provenance, reduction, table, write_report
from benchmarks.results.plots import save
from snn_ext import convert
from snn_ext.conversion import optimize_precharge
from snn_ext.evaluation import Evaluation, Simulation

from .data.images import ImageData, load_images
from .lib.command import command, run_main
from .lib.conversions import Evaluations, digest
from .lib.files import fingerprint, intact, load_tensors, save_tensors
from .lib.options import Increasing, add_data_arguments, add_run_arguments, integer, number
from .lib.run_folder import own_folder
from .models.convertible import autoencoder

__all__ = ["main", "parse_arguments", "picture", "rebuild", "tiles", "train_autoencoder", "untile"]

SIZE = 32
SNAPSHOTS = (50, 100, 150, 200, 255)
PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "width": 0.25, "epochs": 8, "batch_size": 64, "lr": 2e-3, "milestones": [6], "search_images": 32,
        "search_steps": 64, "eval_tiles": 64,
    },
    "paper": {
        "width": 1.0, "epochs": 400, "batch_size": 128, "lr": 1e-3, "milestones": [120, 240, 360],
        "search_images": 1000, "search_steps": 255, "eval_tiles": None,
    },
}  # fmt: skip
# Of Hwang et al. 2021, CIFAR-10: fewer spikes to the reference error with pre-charge by layer and a delay of 50 steps.
PAPER_SPIKES = "74 % (CIFAR-10, by layer and delay 50)"


def padded(data: ImageData, part: str) -> Tensor:
    """Return images ``[N, C, 32, 32]`` in [0, 1], with a black border if they are smaller."""
    images = getattr(data, part)[0]
    border = SIZE - images.shape[-1]
    return functional.pad(images, (border // 2, border - border // 2) * 2).float() / 255.0


def train_autoencoder(images: Tensor, args: argparse.Namespace, path: Path) -> nn.Module:
    """Train with the squared error, or load what is finished; an interrupted training goes on after its last epoch.

    Order and epoch alone decide what an epoch draws, so the result is that of a training that nothing has disturbed.
    """
    torch.manual_seed(args.seed)
    net = autoencoder(images.shape[1], width=args.width).to(args.device)
    optimizer = torch.optim.Adam(net.parameters(), args.lr)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, args.milestones, 0.1)
    settings = {
        name: getattr(args, name) for name in ("data", "width", "epochs", "batch_size", "lr", "milestones", "seed")
    }
    settings["images"] = len(images)
    state = {"net": net, "optimizer": optimizer, "schedule": schedule}
    start = 0
    if path.exists():
        kind = "a checkpoint of this training", "remove it to start afresh"
        checkpoint = load_tensors(path, *kind)
        with intact(path, *kind):
            there = checkpoint["settings"]
        if there != settings:
            raise ValueError(f"--out: got {path} of another training, want the same settings or another folder")
        with intact(path, *kind):
            for name, part in state.items():
                part.load_state_dict(checkpoint[name])
            start = checkpoint["epochs"]
    steps = len(images) // args.batch_size
    with tqdm(total=args.epochs * steps, initial=start * steps, desc="autoencoder", unit="batch") as bar:
        for epoch in range(start, args.epochs):
            generator = torch.Generator().manual_seed(1_000_003 * args.seed + epoch)
            for index in torch.randperm(len(images), generator=generator)[: steps * args.batch_size].split(
                args.batch_size
            ):
                batch = images[index].to(args.device)
                loss = functional.mse_loss(net(batch), batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
                bar.update()
            schedule.step()
            saved = {name: part.state_dict() for name, part in state.items()}
            save_tensors({**saved, "settings": settings, "epochs": epoch + 1}, path)
    return net.eval()


def picture(data: ImageData, side: int = 8) -> tuple[str, Tensor]:
    """Return a picture ``[C, H, W]`` in [0, 1] to rebuild, with its name."""
    try:
        from skimage.data import astronaut
    except ImportError:
        images = padded(data, "test")[: side * side]
        return f"{side}x{side} test images, {data.name}", untile(images, side)
    image = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255.0
    if data.channels == 1:
        image = image.mean(0, keepdim=True)
    return "scikit-image's astronaut", image


def tiles(image: Tensor) -> Tensor:
    """Cut ``[C, H, W]`` into tiles ``[N, C, 32, 32]``."""
    channels, height, width = image.shape
    cut = image.reshape(channels, height // SIZE, SIZE, width // SIZE, SIZE)
    return cut.permute(1, 3, 0, 2, 4).reshape(-1, channels, SIZE, SIZE)


def untile(images: Tensor, columns: int) -> Tensor:
    """Put tiles together again."""
    n, channels, height, width = images.shape
    grid = images.reshape(n // columns, columns, channels, height, width)
    return grid.permute(2, 0, 3, 1, 4).reshape(channels, n // columns * height, columns * width)


def rebuild(snn: nn.Module, x: Tensor, steps: Sequence[int], delay: int = 0, batch: int = 32) -> list[Tensor]:
    """Return the rates of the output since the delay, ``[N, ...]``, at some steps; zeros while nothing is counted."""
    simulation = Simulation(snn)
    found: list[list[Tensor]] = [[] for _ in steps]
    for part in x.split(batch):
        total, before, t = torch.zeros_like(part), torch.zeros_like(part), 0
        for output in simulation.run(part, max(steps)):
            for spikes in output:
                total, t = total + spikes.reshape_as(part), t + 1
                if t == delay:
                    before = total
                for i, step in enumerate(steps):
                    if t == step:
                        found[i].append((total - before) / (t - delay) if t > delay else torch.zeros_like(part))
    return [torch.cat(parts) for parts in found]


def report(net: nn.Module, data: ImageData, args: argparse.Namespace) -> str:
    """Convert, measure, draw, and return the section of the page."""
    evaluations = Evaluations(args.out / "evaluations")
    train_images = padded(data, "train").to(args.device)
    name, image = picture(data)
    x = tiles(image).to(args.device)
    title = f"Net 3, width {args.width:g}, trained on {data.name}; {name}"
    batches = list(x[: args.eval_tiles].split(16))
    delays = tuple(range(0, 101, 10))

    def converted(precharge: float = 0.0) -> nn.Module:
        calibration = [batch for batch in train_images.split(100)]
        return convert(net, calibration, method="data-norm", encoder="if", readout="spikes", precharge=precharge)

    def by_layer() -> nn.Module:
        snn = converted()
        optimize_precharge(
            snn, net, list(train_images[: args.search_images].split(16)), time_steps=args.search_steps, candidates=51
        )
        return snn

    makers = {"no pre-charge": converted, "pre-charge 0.3": lambda: converted(0.3), "by layer": by_layer}
    found: dict[str, Evaluation] = {}
    notes: dict[str, Any] = {}
    for label, make in makers.items():
        settings = {
            "net": digest(net), "data": data.name, "contents": fingerprint(train_images, x), "picture": name,
            "tiles": len(x[: args.eval_tiles]), "search": [args.search_images, args.search_steps],
        }  # fmt: skip
        found[label], notes[label] = evaluations.get(
            f"autoencoder {label}", settings, make, batches, args.time_steps, delay=delays
        )
    none = found["no pre-charge"]
    with torch.no_grad():
        analog = torch.cat([net(part) for part in x.split(64)])
    columns = image.shape[2] // SIZE
    steps = [t for t in SNAPSHOTS if t <= args.time_steps]
    snn = converted()
    scale = snn.report[-1].scale  # of the output in the units of the image
    charged = copy.deepcopy(snn)
    for layer in notes["by layer"]["layers"]:  # the search has been done, and is written down
        neuron = charged.get_submodule(layer["name"])
        neuron.v_init = torch.full_like(neuron.v_init, layer["precharge"])
    pictures = {"no pre-charge": (snn, 0), "by layer": (charged, 0)}
    pictures["by layer, delay"] = (charged, _delay(found["by layer"]))
    rows = {
        label: [
            *(untile(scale * y, columns).cpu() for y in rebuild(snn, x, steps, delay)),
            untile(analog, columns).cpu(),
            image,
        ]
        for label, (snn, delay) in pictures.items()
    }
    save(plots.images(rows, [*(f"step {t}" for t in steps), "analog", "original"], title), args.out / "pictures.png")
    time = range(1, args.time_steps + 1)
    lines = {label: (time, e.mse_at(0)) for label, e in found.items()}
    delay = _delay(found["by layer"])
    lines[f"by layer, delay {delay}"] = (time, found["by layer"].mse_at(delay))
    save(plots.curves(lines, "time step", "mean squared error", title, log=True), args.out / "error.png")
    by_delay = {label: (delays, [float(e.mse_at(d)[-1]) for d in delays]) for label, e in found.items()}
    save(plots.curves(by_delay, "delay", "mean squared error at the end", title, log=True), args.out / "delay.png")

    reference = float(none.mse_at(0)[-1])
    spent = float(none.spikes[-1])
    table_rows = []
    for label, evaluation in found.items():
        for delay in sorted({0, _delay(evaluation)}):
            step = evaluation.steps_to_mse(reference, delay)
            spikes = None if step is None else float(evaluation.spikes[step - 1])
            errors = [f"{float(evaluation.mse_at(delay)[t - 1]):.2e}" for t in steps]
            table_rows.append([label, delay, *errors, step, reduction(spikes, spent)])
    header = ["", "delay", *(f"MSE at {t}" for t in steps), "step of the reference", "fewer spikes"]
    return (
        f"### Autoencoder: {title}\n\nMean squared error between the rates of the output and the analog net's "
        f"activations in units of the output's threshold, over {none.samples} tiles. Reference: the error without "
        f"pre-charge at T = {args.time_steps}. By layer: Algorithm 1 on {args.search_images} images, "
        f"{args.search_steps} steps. The paper: {PAPER_SPIKES}.\n\n{table(table_rows, header)}\n"
    )


def _delay(evaluation: Evaluation) -> int:
    """Return the delay with the smallest error at the end."""
    return min(evaluation.delays, key=lambda d: (float(evaluation.mse_at(d)[-1]), d))


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.autoencoder", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_run_arguments(parser, PRESETS, default="small")
    add_data_arguments(parser)
    group = parser.add_argument_group("net, training and conversion (defaults: the preset)")
    group.add_argument("--width", type=number(above=0.0), help="factor on all widths")
    group.add_argument("--epochs", type=integer())
    group.add_argument("--batch-size", type=integer())
    group.add_argument("--lr", type=number(0.0))
    group.add_argument(
        "--milestones", type=integer(), nargs="*", action=Increasing,
        help="epochs after which the rate drops to a tenth",
    )  # fmt: skip
    group.add_argument("--time-steps", type=integer(101), default=255, help="T, more than the longest delay of 100")
    group.add_argument("--search-images", type=integer(), help="training images of the search by layer")
    group.add_argument("--search-steps", type=integer(), help="steps over which the search sums the error")
    group.add_argument("--eval-tiles", type=integer(), help="tiles of the picture over which errors are taken")
    args = parser.parse_args(argv)
    for name, value in PRESETS[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


@command
def main(argv: Sequence[str] | None = None) -> str:
    """Run the recipe, write figures and ``report.md``, and return the report."""
    args = parse_arguments(argv)
    with own_folder(args.out, "autoencoder"):
        data = load_images(args.data, args.data_dir).first(args.train_images, args.test_images)
        net = train_autoencoder(padded(data, "train"), args, args.out / "autoencoder.pt")
        text = report(net, data, args) + "\n" + provenance(command_line("autoencoder", argv), args.seed)
        return write_report(args.out, text)


if __name__ == "__main__":
    run_main(main, "the same command continues")
