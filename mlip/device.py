"""Whether a torch device that was asked for can be used on this machine."""

from __future__ import annotations

import torch

from mlip.errors import ConfigError


def usable_device(device: str | torch.device) -> torch.device:
    """The device, tried out.

    Raises:
        ConfigError: an unknown name, or a device that this machine or this build of torch does not have.
    """
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        have = f"cpu, cuda ({torch.cuda.device_count()} found)" if torch.cuda.is_available() else "cpu"
        why = str(error).splitlines()[0]
        raise ConfigError(f"device {device!s} cannot be used ({why}); available here: {have}") from error
    return found
