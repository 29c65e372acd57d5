"""How host features and seed output become one tensor. Pure functions; all are the identity at alpha 0."""

import torch
from torch import Tensor


def straight_through(host: Tensor, seed: Tensor) -> Tensor:
    """`host` in value, `seed` in gradient; both (N, ...) of one shape.

    The seed gets the gradients it would get as the output (Bengio et al. 2013, arXiv:1308.3432), and so
    does the host. A seed output that is not finite makes the result nan.
    """
    return host + (seed - seed.detach())


def add(host: Tensor, seed: Tensor, alpha: Tensor) -> Tensor:
    """Linear mix of `host` and `seed`, both (N, ...) of one shape; alpha () in [0, 1].

    At alpha 0 the result is `host` bit for bit, at alpha 1 it is `seed`, for finite values.
    """
    # Under autocast a seed may hand back another dtype than it was given, which lerp refuses.
    if seed.dtype != host.dtype or alpha.dtype != host.dtype:
        seed, alpha = seed.to(host.dtype), alpha.to(host.dtype)
    return torch.lerp(host, seed, alpha)


def multiply(host: Tensor, seed: Tensor, read: Tensor, alpha: Tensor) -> Tensor:
    """`host` * (1 + alpha * tanh(seed - read)), all (N, ...) of one shape; alpha () in [0, 1].

    `read` is what the seed read. At most doubles or removes a feature; at alpha 0 the result is `host` bit
    for bit, for finite values.
    """
    change = torch.tanh(seed.to(host.dtype) - read)
    return host * (1.0 + alpha.to(host.dtype) * change)


def gated(host: Tensor, seed: Tensor, gate: Tensor, alpha: Tensor) -> Tensor:
    """Linear mix of `host` and `seed`, both (N, ...), by alpha () times `gate`, which broadcasts over them.

    At alpha 0 the result is `host` bit for bit, for finite values.
    """
    share = torch.clamp(alpha.to(host.dtype) * gate.to(host.dtype), 0.0, 1.0)
    return torch.lerp(host, seed.to(host.dtype), share)
