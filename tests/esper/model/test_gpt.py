"""The text host."""

import pytest
import torch

from esper.errors import ConfigError
from esper.model import GptHost, Host, SlotPoint

TOKENS = torch.randint(0, 13, (3, 6), generator=torch.Generator().manual_seed(0))


def host(blocks: int = 3) -> GptHost:
    torch.manual_seed(0)
    return GptHost(vocabulary=13, context=8, width=12, heads=3, blocks=blocks)


def test_it_is_a_host_with_a_slot_point_after_each_block() -> None:
    assert isinstance(host(), Host)
    assert host().slot_points() == tuple(SlotPoint(f"r0c{index}", 12) for index in range(3))
    assert host()(TOKENS).shape == (3, 6, 13)


def test_no_token_sees_what_follows() -> None:
    changed = TOKENS.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 13
    one, other = host()(TOKENS), host()(changed)
    assert torch.equal(one[:, :4], other[:, :4])
    assert not torch.equal(one[:, 4:], other[:, 4:])


def test_each_token_sees_all_before_it() -> None:
    changed = TOKENS.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 13
    assert all(not torch.equal(a, b) for a, b in zip(host()(TOKENS)[0], host()(changed)[0], strict=True))


def test_its_segments_and_its_visits_are_its_forward() -> None:
    gpt, seen = host(), []
    h = TOKENS
    for index in range(4):
        h = gpt.segment(index, h)
    assert torch.equal(h, gpt(TOKENS))

    def visit(slot_id: str, h: torch.Tensor) -> torch.Tensor:
        seen.append(SlotPoint(slot_id, h.shape[2]))
        return h

    assert torch.equal(gpt(TOKENS, visit), h)
    assert tuple(seen) == gpt.slot_points()


@pytest.mark.parametrize(
    ("options", "key"),
    [({"width": 10, "heads": 4}, "width"), ({"blocks": 0}, "blocks"), ({"heads": 0}, "heads")],
)
def test_a_size_that_is_none_is_refused(options: dict[str, int], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GptHost(**options)
    assert caught.value.key == f"host.{key}"


def test_more_tokens_than_the_context_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tokens=9 .* at most host\.context=8"):
        host()(torch.zeros(1, 9, dtype=torch.long))
