"""What a module is made of, by the modules' own tables: torch's walks take three to four times as long, and
an epoch of a small model asks a dozen times.
"""

from __future__ import annotations

from torch import Tensor, nn


def modules_of(module: nn.Module) -> list[nn.Module]:
    """It and all below it, each once, as `nn.Module.modules` lists them."""
    found = [each for _, each in _walk(module)]
    return list({id(each): each for each in found}.values())


def parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """All parameters, each once, as `nn.Module.parameters` lists them."""
    found = [one for _, each in _walk(module) for one in each._parameters.values() if one is not None]
    return list({id(one): one for one in found}.values())


def named_tensors(module: nn.Module) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, Tensor]]]:
    """All parameters and all buffers, each under all its names, as torch's two methods list them with
    `remove_duplicate=False`.
    """
    parameters: list[tuple[str, nn.Parameter]] = []
    buffers: list[tuple[str, Tensor]] = []
    for prefix, each in _walk(module):
        for name, parameter in each._parameters.items():
            if parameter is not None:
                parameters.append((prefix + name, parameter))
        for name, buffer in each._buffers.items():
            if buffer is not None:
                buffers.append((prefix + name, buffer))
    return parameters, buffers


def _walk(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Each module, under each of its names, and what comes before the names of what it has."""
    found: list[tuple[str, nn.Module]] = []
    ahead = [("", module)]
    while ahead:
        prefix, each = ahead.pop()
        found.append((prefix, each))
        if each._modules:
            below = [(f"{prefix}{name}.", one) for name, one in each._modules.items() if one is not None]
            below.reverse()
            ahead += below
    return found
