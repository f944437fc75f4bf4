"""Pictures of 32x32 tiles for autoencoders."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .images import ImageData

__all__ = ["SIZE", "padded", "picture", "tiles", "untile"]

SIZE = 32
"""Height and width of a tile in pixels."""


def padded(data: ImageData, part: str) -> Tensor:
    """Return images ``[N, C, 32, 32]`` in [0, 1], with a black border if they are smaller."""
    images = getattr(data, part)[0]
    border = SIZE - images.shape[-1]
    return functional.pad(images, (border // 2, border - border // 2) * 2).float() / 255.0


def picture(data: ImageData, side: int = 8) -> tuple[str, Tensor]:
    """Return a picture ``[C, H, W]`` in [0, 1] to rebuild, with its name."""
    try:
        from skimage.data import astronaut
    except ImportError:
        return f"{side}x{side} test images, {data.name}", untile(padded(data, "test")[: side * side], side)
    image = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255.0
    return "scikit-image's astronaut", image.mean(0, keepdim=True) if data.channels == 1 else image


def tiles(image: Tensor) -> Tensor:
    """Cut ``[C, H, W]`` into tiles ``[N, C, 32, 32]``."""
    cut = image.unflatten(2, (-1, SIZE)).unflatten(1, (-1, SIZE))
    return cut.permute(1, 3, 0, 2, 4).flatten(0, 1)


def untile(images: Tensor, columns: int) -> Tensor:
    """Put tiles together again."""
    return images.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)
