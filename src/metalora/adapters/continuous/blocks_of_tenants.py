"""The key-value blocks of a continuous run are shared by requests of equal tokens: here, only by those of one tenant.

transformers finds a block by a hash of its tokens and of those before it. Two tenants with one prompt have equal tokens
and different keys and values, so the digest of the tenant's values goes into every hash.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex, overload

from metalora.adapters.continuous.requests import TenantRequests


class SaltedTokens(list[int]):
    """The tokens of a request; every full block that is cut out of them starts with the salt of the tenant.

    Args:
        tokens: The tokens.
        salt: The salt of the tenant.
        block: How many tokens a full block has.

    Example:
        >>> tokens = SaltedTokens([5, 6, 7], salt=(-1,), block=2)
        >>> tokens[0:2], tokens[2:4], len(tokens)
        ([-1, 5, 6], [7], 3)
    """

    def __init__(self, tokens: Sequence[int], salt: Sequence[int], block: int):
        super().__init__(tokens)
        self.salt, self.block = list(salt), block

    @overload
    def __getitem__(self, index: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> int | list[int]:
        """Return a token, or a block of tokens; one that is not full is never hashed and has no salt."""
        tokens = super().__getitem__(index)
        is_full = isinstance(tokens, list) and len(tokens) == self.block
        return [*self.salt, *tokens] if is_full and isinstance(tokens, list) else tokens


def share_within_tenants(cache: Any, requests: TenantRequests) -> None:
    """Let a paged cache of transformers share blocks only among the requests of one tenant.

    Args:
        cache: A `PagedAttentionCache`; two of its methods are replaced.
        requests: Who the requests belong to.

    Raises:
        RuntimeError: This version of transformers hashes blocks in another way.
    """
    if not cache.use_prefix_sharing:
        return
    for allocator in cache.cache_allocators.values():
        _check_hashes(allocator)
    cache.search_prefix_match = functools.partial(_search, cache, requests, cache.search_prefix_match)
    for allocator in cache.cache_allocators.values():
        allocator.mark_complete_blocks = functools.partial(_mark, allocator, requests, allocator.mark_complete_blocks)


def _search(cache: Any, requests: TenantRequests, own: Callable[..., int], name: str, tokens: Sequence[int]) -> int:
    """Look for blocks that hold the beginning of a prompt, among those of its tenant."""
    pages = {allocator.tokens_per_page for allocator in cache.cache_allocators.values()}
    if len(pages) > 1:  # the tokens are cut by each of them
        return 0
    return own(name, SaltedTokens(tokens, requests.tenant(name).salt, pages.pop()))


def _mark(
    allocator: Any, requests: TenantRequests, own: Callable[..., None], name: str, tokens: Sequence[int], count: int
) -> None:
    """Make the full blocks of a request known to later requests of its tenant."""
    own(name, SaltedTokens(tokens, requests.tenant(name).salt, allocator.tokens_per_page), count)


class _Asked(dict[int, int]):
    """A table of blocks that holds none and notes which hashes are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.hashes: list[int] = []

    def get(self, key: int, default: Any = None) -> Any:
        """Note the hash; there is no such block."""
        self.hashes.append(key)
        return default


def _check_hashes(allocator: Any) -> None:
    """Raise a RuntimeError unless both lookups of an allocator give other hashes to other tenants, and agree."""
    block = allocator.tokens_per_page
    ledger = allocator.ledger
    tokens = [0] * (block + 1)
    asked, table = _Asked(), ledger.hash_to_block
    try:
        ledger.hash_to_block = asked
        for salt in ((1, 2), (1, 3)):
            allocator.match_prefix_blocks(SaltedTokens(tokens, salt, block))
            allocator.block_table[_PROBE] = [-1]
            allocator.mark_complete_blocks(_PROBE, SaltedTokens(tokens, salt, block), 1)
            ledger.block_to_hash.pop(-1, None)
    finally:
        ledger.hash_to_block = table
        allocator.block_table.pop(_PROBE, None)
    match asked.hashes:
        case [first, registered, other, registered_other] if (
            first == registered and other == registered_other and first != other
        ):
            return
    raise RuntimeError(
        "continuous batching: this version of transformers finds the key-value blocks of a prompt in an unknown way, "
        "so that tenants could read those of each other: pass ContinuousBatchingConfig(allow_block_sharing=False)"
    )


_PROBE = "a request that only checks how blocks are hashed"
