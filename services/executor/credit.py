"""How many tokens each gateway may have submitted.

Knows token counts only. Credit is what keeps queues in the gateways, where fairness is decided: the
executor holds a few batches, no more. Items that wait for a cold adapter are *parked*: they hold no
credit, up to a bound, so that a tenant of cold models cannot keep the device idle.
"""

from __future__ import annotations

from services.common.errors import InvalidArgument


class CreditPool:
    """The credit of all streams.

    Args:
        window_tokens: What all streams together may have submitted.
        parked_tokens: What may be parked beside it.
    """

    def __init__(self, window_tokens: int, parked_tokens: int) -> None:
        self._window_tokens = window_tokens
        self._num_parkable = parked_tokens
        self._num_streams = 0
        self.min_share = 0

    @property
    def share(self) -> int:
        """Tokens of one stream: an equal part, but never less than the longest item."""
        return max(self.min_share, self._window_tokens // max(1, self._num_streams))

    def fit(self, max_item_tokens: int) -> None:
        """Let an item of this length be submitted."""
        self.min_share = max(self.min_share, max_item_tokens)

    def open(self) -> StreamCredit:
        self._num_streams += 1
        return StreamCredit(self)

    def close(self) -> None:
        self._num_streams -= 1

    def park(self, num_tokens: int) -> bool:
        """Let a cold item wait without credit; False if too much is parked."""
        if num_tokens > self._num_parkable:
            return False
        self._num_parkable -= num_tokens
        return True

    def unpark(self, num_tokens: int) -> None:
        self._num_parkable += num_tokens


class StreamCredit:
    """One stream's credit: `available` to the gateway, `held` by its items."""

    def __init__(self, pool: CreditPool) -> None:
        self._pool = pool
        self._available = 0
        self._held = 0
        self._parked: set[int] = set()

    def spend(self, num_tokens: int) -> None:
        """Take an item's tokens.

        Raises:
            InvalidArgument: The gateway has not so much credit.
        """
        if num_tokens > self._available:
            raise InvalidArgument(
                "commands.submit",
                f"{num_tokens} tokens submitted against a credit of {self._available}",
                reason="BEYOND_CREDIT",
            )
        self._available -= num_tokens
        self._held += num_tokens

    def park(self, item_id: int, num_tokens: int) -> None:
        """Free a cold item's credit while it waits, if the bound allows."""
        if self._pool.park(num_tokens):
            self._parked.add(item_id)
            self._held -= num_tokens

    def restore(self, item_id: int, num_tokens: int) -> None:
        """Free an ended item's credit."""
        if item_id in self._parked:
            self._parked.remove(item_id)
            self._pool.unpark(num_tokens)
        else:
            self.refund(num_tokens)

    def refund(self, num_tokens: int) -> None:
        """Free the credit of a submit that made no item."""
        self._held -= num_tokens

    def grant(self) -> int:
        """Tokens to grant now, up to the stream's share; they are the gateway's from here on."""
        num_tokens = max(0, self._pool.share - self._available - self._held)
        self._available += num_tokens
        return num_tokens
