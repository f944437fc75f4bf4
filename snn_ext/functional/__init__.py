"""The mathematics: pure, differentiable, any floating dtype, any device; float64 is the oracle of every faster path."""

from .asn import *  # noqa: F403
from .asn import __all__ as _asn
from .asn_transfer import *  # noqa: F403
from .asn_transfer import __all__ as _asn_transfer
from .integrate_and_fire import *  # noqa: F403
from .integrate_and_fire import __all__ as _integrate_and_fire
from .quantization import *  # noqa: F403
from .quantization import __all__ as _quantization
from .surrogates import *  # noqa: F403
from .surrogates import __all__ as _surrogates

__all__ = [*_asn, *_asn_transfer, *_integrate_and_fire, *_quantization, *_surrogates]
