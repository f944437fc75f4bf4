"""``export_onnx``: a net in a file that onnxruntime runs, without torch and without this package."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from .._errors import bad_value, first_line
from .._files import replacing
from .function import StepFunction, function_of
from .lowering import lowered
from .program import example_of, traced

__all__ = ["OnnxFile", "export_onnx"]


@dataclass(frozen=True)
class OnnxFile:
    """A file that :func:`export_onnx` has written.

    Examples
    --------
    >>> print(OnnxFile(Path("net.onnx"), ("x",), ("y",), 2048, 320, 2, 1e-7))
    net.onnx: 2.0 kB, (x) -> (y); in onnxruntime 2 of 320 values differ from torch, by 1e-07 at most
    """

    path: Path
    inputs: tuple[str, ...]
    """Names, in their order."""
    outputs: tuple[str, ...]
    size: int
    """Bytes of the file."""
    compared: int
    """Values of the output for the example that were compared with torch; 0 without onnxruntime."""
    differing: int
    """How many of them are not those of torch to the bit."""
    difference: float
    """The largest difference, in units of the largest value."""

    def __str__(self) -> str:
        text = f"{self.path}: {self.size / 1024:.1f} kB, ({', '.join(self.inputs)}) -> ({', '.join(self.outputs)}); "
        if not self.compared:
            return text + "not compared with torch: onnxruntime is not installed"
        text += f"in onnxruntime {self.differing} of {self.compared} values differ from torch"
        return text + (f", by {self.difference:.0e} at most" if self.differing else "")


def export_onnx(
    net: nn.Module,
    x: Tensor,
    path: str | Path,
    *,
    time_steps: int | None = None,
    streaming: bool = False,
    mean: bool = False,
) -> OnnxFile:
    """Write a net to an ONNX file: with the loop over its steps, or one step with its states in and out.

    The file has standard operators only, loops over time as ``Scan``. Neurons compute in the order and the rounding of
    their definition, so equal currents give equal spikes. Layers with weights are summed up by onnxruntime in an order
    of its own; that may move a current by its last bit, and now and then a spike with it. Nets whose sums are exact,
    as those with weights and inputs on a grid, give the same spikes everywhere.

    Where onnxruntime is installed, the file is run on ``x`` and compared with torch before it takes its place.

    Parameters
    ----------
    net : nn.Module
        A converted net, or a net of layers and neurons of either host whose forward pass is that of one step, or of a
        sequence in SpikingJelly's step mode "m". It stays as it is, in whatever mode and state.
    x : Tensor
        An example of the input: a sequence ``[T, N, ...]``, or with ``time_steps`` or ``streaming`` one step,
        ``[N, ...]``. N may be another one in every run of the file, T not.
    path : str or Path
        The file; an old one is replaced, whole or not at all.
    time_steps : int, optional
        T: the file takes one input and shows it at every step, as a converted net expects it.
    streaming : bool
        Write one step: inputs "x", "reset" (one bool) and the states of all layers, as "1.v"; outputs "y" and the
        states after the step, as "1.v.next". With "reset" a sequence starts, whatever states are given.
    mean : bool
        Put out the mean over the steps, ``[N, ...]``, instead of the output of each, ``[T, N, ...]``.

    Returns
    -------
    OnnxFile
        Names of inputs and outputs, size, and the comparison.

    Raises
    ------
    ImportError
        Without the packages of ``snn_ext[onnx]``.
    TypeError, ValueError
        If an argument is wrong, or a layer cannot be exported, which the error names. Nothing is written then.

    Examples
    --------
    >>> import tempfile, torch, snn_ext
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), ATIFuNode(0.5))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = snn_ext.export_onnx(net, torch.rand(2, 4), f"{folder}/net.onnx", time_steps=8)
    >>> file.inputs, file.outputs
    (('x',), ('y',))
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ImportError(f"export_onnx needs {' and '.join(missing)}: pip install 'snn_ext[onnx]'")
    function = function_of(net, x, time_steps, streaming, mean)
    if x.dtype != torch.float32:
        bad_value("x", x, "float32: onnxruntime has no convolutions of others; net.float() converts a net")
    arguments = example_of(function.cpu(), x.cpu())
    states = list(arguments[2]) if isinstance(function, StepFunction) else []
    inputs = ["x", *(["reset", *states] if streaming else [])]
    outputs = ["y", *(f"{name}.next" for name in states)]
    with torch.no_grad():
        want = function(*arguments)
        graph = lowered(traced(function, function.samples, arguments).module(check_guards=False))
    model = _model(traced(graph, function.samples, arguments), inputs, outputs)
    with replacing(Path(path), ".onnx") as temporary:
        model.save(temporary, external_data=False)
        comparison = _compare(temporary, inputs, arguments, want)
    return OnnxFile(Path(path), tuple(inputs), tuple(outputs), Path(path).stat().st_size, *comparison)


def _model(program: ExportedProgram, inputs: list[str], outputs: list[str]) -> Any:
    with _quiet(), torch.no_grad():  # a loop with gradients is another one
        try:
            model: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=inputs, output_names=outputs
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            text = str(error.__cause__ or error)
            raise ValueError(f"net: got {first_line(error)}, want operations that ONNX has ({text[:400]})") from error
    for part in (model.model.graph, *model.model.functions.values()):  # where each operation stood in the source code
        for node in part.all_nodes():
            node.metadata_props.clear()
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the notes of torch's exporter on its own versions to itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


# -- the comparison with torch -----------------------------------------------------------------------------------------


_TOLERANCE = 0.01
"""Share of the outputs in which a file may differ: rounding moves a spike here and there."""


def _compare(path: Path, inputs: list[str], arguments: tuple[Any, ...], want: Any) -> tuple[int, int, float]:
    """Run a file as onnxruntime does; ``ValueError`` unless it gives what torch gives."""
    if find_spec("onnxruntime") is None:
        return 0, 0, 0.0
    import onnxruntime

    values = [arguments[0], *([arguments[1], *arguments[2].values()] if len(arguments) > 1 else [])]
    wanted = want[0] if isinstance(want, tuple) else want
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        fed = {name: value.numpy() for name, value in zip(inputs, values, strict=True)}
        found = torch.from_numpy(session.run(["y"], fed)[0])
    except Exception as error:  # of its own kinds, which have no base of theirs
        raise ValueError(f"net: got {first_line(error)} in onnxruntime, want a net that it runs") from error
    off, differing = (found - wanted).abs(), int((found != wanted).sum())
    if bool(off.sum() > _TOLERANCE * wanted.abs().sum()):
        raise ValueError(f"net: got a file in which {differing} of {wanted.numel()} values differ, want those of torch")
    scale = wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny)
    return wanted.numel(), differing, float(off.max() / scale)
