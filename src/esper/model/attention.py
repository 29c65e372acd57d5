"""What a host and a seed for text both compute."""

from torch import Tensor
from torch.nn import functional


def causal_attention(mixed: Tensor, heads: int) -> Tensor:
    """Queries, keys and values beside each other, (N, T, 3C), to what each token sees of those before it,
    (N, T, C); `heads` must divide C.
    """
    samples, tokens, width = mixed.shape[0], mixed.shape[1], mixed.shape[2] // 3
    split = mixed.view(samples, tokens, 3, heads, width // heads)
    query, key, value = split.permute(2, 0, 3, 1, 4)
    seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return seen.transpose(1, 2).reshape(samples, tokens, width)
