"""A site's own lock on a GPU's clock, which stands whenever perseusd asks for nothing."""

from __future__ import annotations

from collections.abc import Mapping

from perseusd.errors import ConfigurationError, GpuError
from perseusd.gpus.base import GpuInfo, require_supported

ANY = "*"


def standing_mhz(info: GpuInfo, table: Mapping[str, int]) -> int | None:
    """What the table says of this GPU: by UUID, else by model, else for any; None: nothing.

    Raises ConfigurationError naming the nearest clock where the GPU does not support it.
    """
    found = next((table[key] for key in (info.uuid, info.name, ANY) if key in table), None)
    if found is None:
        return None
    try:
        require_supported(info, found)
    except GpuError as error:
        raise ConfigurationError(f"standing lock of {found} MHz: {error}") from None
    return found
