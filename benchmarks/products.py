"""Ways to multiply many rows by their own LoRA at one site, on this machine's CPU.

32 rows of 48 tokens, hidden 384, bfloat16, a distinct LoRA (r = 8, query and value) on every row:
what docs/adr/0004 chose from. Every way is checked against a loop over rows first.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import report

ROWS, TOKENS, HIDDEN, RANK = 32, 48, 384, 8
REPEATS = 201


class Site:
    """Rows of an arena as the executor's, and an input and output of query, key and value."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        num_rows = ROWS * 6 * 4 * RANK + 1
        self.arena = (torch.randn(num_rows, HIDDEN) * 0.05).bfloat16()
        self.arena[0] = 0
        chosen = torch.randperm(num_rows - 1)[: ROWS * 4 * RANK] + 1
        self.a_rows = chosen[: ROWS * 2 * RANK]
        self.b_rows = chosen[ROWS * 2 * RANK :]
        blocks = torch.zeros(ROWS, 2, RANK, 3, dtype=torch.int64)
        by_map = self.b_rows.view(ROWS, 2, RANK)
        blocks[:, 0, :, 0], blocks[:, 1, :, 2] = by_map[:, 0], by_map[:, 1]
        self.block_rows = blocks.flatten()
        own = torch.arange(ROWS).repeat_interleave(TOKENS)[:, None]
        self.is_own = own == torch.arange(ROWS).repeat_interleave(2 * RANK)[None]
        self.x = torch.randn(ROWS * TOKENS, HIDDEN).bfloat16()
        self.weight = (torch.randn(3 * HIDDEN, HIDDEN) * 0.05).bfloat16()

    def weights(self) -> tuple[Tensor, Tensor]:
        """A `[rows, 2 r, hidden]`, B of query and value `[rows, 2, r, hidden]`."""
        a = self.arena.index_select(0, self.a_rows).view(ROWS, 2 * RANK, HIDDEN)
        return a, self.arena.index_select(0, self.b_rows).view(ROWS, 2, RANK, HIDDEN)

    def bare(self, y: Tensor) -> None:
        torch.mm(self.x, self.weight.t())

    def in_place(self, y: Tensor) -> None:
        """One product for A; one a map for B, added into its columns of y."""
        a, b = self.weights()
        u = torch.bmm(self.x.view(ROWS, TOKENS, HIDDEN), a.transpose(1, 2))
        out = y.view(ROWS, TOKENS, 3 * HIDDEN)
        out[..., :HIDDEN].baddbmm_(u[..., :RANK], b[:, 0])
        out[..., 2 * HIDDEN :].baddbmm_(u[..., RANK:], b[:, 1])

    def out_of_place(self, y: Tensor) -> None:
        """The same, with the change of y made first and added then."""
        a, b = self.weights()
        u = torch.bmm(self.x.view(ROWS, TOKENS, HIDDEN), a.transpose(1, 2))
        out = y.view(ROWS, TOKENS, 3 * HIDDEN)
        out[..., :HIDDEN] += torch.bmm(u[..., :RANK], b[:, 0])
        out[..., 2 * HIDDEN :] += torch.bmm(u[..., RANK:], b[:, 1])

    def block_diagonal(self, y: Tensor) -> None:
        """One product for all B, over zeros where a map is not another's."""
        a, _ = self.weights()
        u = torch.bmm(self.x.view(ROWS, TOKENS, HIDDEN), a.transpose(1, 2))
        b = self.arena.index_select(0, self.block_rows).view(ROWS, 2 * RANK, 3 * HIDDEN)
        y.view(ROWS, TOKENS, 3 * HIDDEN).baddbmm_(u, b)

    def einsum(self, y: Tensor) -> None:
        a, b = self.weights()
        u = torch.einsum("blh,brh->blr", self.x.view(ROWS, TOKENS, HIDDEN), a)
        change = torch.einsum("blmr,bmrh->blmh", u.view(ROWS, TOKENS, 2, RANK), b)
        y.view(ROWS, TOKENS, 3, HIDDEN)[:, :, ::2] += change

    def masked_dense(self, y: Tensor) -> None:
        """Every token through every tenant's A, others' results zeroed, then all B at once."""
        a, _ = self.weights()
        u = torch.mm(self.x, a.view(-1, HIDDEN).t()) * self.is_own
        b = self.arena.index_select(0, self.block_rows).view(-1, 3 * HIDDEN)
        y.addmm_(u, b)

    def by_row(self, y: Tensor) -> None:
        """A loop over rows: what PEFT does, and the oracle here."""
        a, b = self.weights()
        for row in range(ROWS):
            tokens = slice(row * TOKENS, (row + 1) * TOKENS)
            u = self.x[tokens] @ a[row].t()
            y[tokens, :HIDDEN] += u[:, :RANK] @ b[row, 0]
            y[tokens, 2 * HIDDEN :] += u[:, RANK:] @ b[row, 1]


def check(site: Site, way: Callable[[Tensor], None]) -> None:
    found, wanted = torch.zeros(2, ROWS * TOKENS, 3 * HIDDEN, dtype=torch.bfloat16)
    way(found)
    site.by_row(wanted)
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0.05)


def stopwatch(way: Callable[[Tensor], None]) -> Callable[[], float]:
    y = torch.zeros(ROWS * TOKENS, 3 * HIDDEN, dtype=torch.bfloat16)

    def measure() -> float:
        started = time.perf_counter()
        way(y)
        return time.perf_counter() - started

    return measure


def main() -> None:
    site = Site()
    ways = {
        "A once, B in place": site.in_place,
        "A once, B added": site.out_of_place,
        "A once, B block-diagonal": site.block_diagonal,
        "einsum": site.einsum,
        "dense and masked": site.masked_dense,
        "loop over rows": site.by_row,
    }
    with torch.inference_mode():
        for way in ways.values():
            check(site, way)
        subjects = {name: stopwatch(way) for name, way in ways.items()}
        subjects["the base's own product"] = stopwatch(site.bare)
        samples = report.alternate(subjects, repeats=REPEATS)
    with report.Report("products") as result:
        for name, seconds in samples.items():
            result.add(name, report.median([1e3 * second for second in seconds]), "ms")


if __name__ == "__main__":
    main()
