"""The Gluon kernel over a latent cache against the definition; Gluon has no interpreter, so a Hopper GPU it takes."""

from __future__ import annotations

import pytest
import torch
from sparse_kernels.gpu.hopper import latent_attention as kernels
from sparse_kernels.gpu.latent_attention import portable_latent_attention
from sparse_kernels.gpu.token_sparse_attention import latent_implementation, token_sparse_latent_attention
from support.kernels.paging import rms_ratio

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
pytestmark = pytest.mark.skipif(not HOPPER, reason="no Hopper GPU")

RANK, ROPE, SCALE = 512, 64, 192**-0.5
BOUNDS = {torch.bfloat16: 0.01, torch.float16: 0.002}


class Case:
    """Queries and a cache of 600 tokens of which every third slot is unwritten, NaN, and never chosen."""

    def __init__(
        self, queries: int, count: int, heads: int = 128, dtype: torch.dtype = torch.bfloat16, tokens: int = 600
    ) -> None:
        self.generator = torch.Generator("cuda").manual_seed(queries + count + heads)
        written = torch.arange(tokens, device="cuda") % 3 > 0
        # As caches hold them: a token's latent and rotary part side by side.
        self.cache = torch.where(written[:, None], self.normal(tokens, RANK + ROPE), torch.nan).to(dtype)
        self.q = self.normal(queries, heads, RANK + ROPE).to(dtype)
        chosen = torch.rand(queries, tokens, generator=self.generator, device="cuda")
        chosen = chosen.masked_fill(~written, -1.0).topk(min(count, int(written.sum())), 1).indices.int()
        self.tokens = torch.nn.functional.pad(chosen, (0, count - chosen.shape[1]), value=-1)

    def normal(self, *sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=self.generator, device="cuda")

    @property
    def given(self) -> tuple[torch.Tensor, ...]:
        q, cache = (each.split((RANK, ROPE), -1) for each in (self.q, self.cache))
        return *q, *cache, self.tokens

    def run(self) -> torch.Tensor:
        heads, dtype = self.q.shape[1], self.q.dtype
        assert latent_implementation(self.q.device, dtype, heads, RANK, ROPE) == "gluon"
        return token_sparse_latent_attention(*self.given, SCALE)

    def holds(self) -> None:
        """Asserts that the kernel gives what the definition says."""
        found = self.run()
        assert found.shape == self.given[0].shape
        assert found.isfinite().all()
        assert rms_ratio(found, self.exact()) < BOUNDS[self.q.dtype]

    def exact(self) -> torch.Tensor:
        """The definition in float64, a query at a time, which the one in `sparse_kernels.reference` takes a head at."""
        out = torch.zeros(*self.q.shape[:2], RANK, dtype=torch.float64, device="cuda")
        for row, mine in enumerate(self.tokens):
            keys = self.cache[mine[mine >= 0].long()].double()
            if len(keys):
                out[row] = (self.q[row].double() @ keys.T * SCALE).softmax(-1) @ keys[:, :RANK]
        return out

    def flags(self) -> torch.Tensor:
        """Items that the kernel leaves to the portable one."""
        return kernels.attend(*self.given, torch.empty_like(self.given[0]).contiguous(), SCALE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 7, 63, 64, 65, 128, 129, 192, 320, 400])
def test_counts(count: int, dtype: torch.dtype) -> None:
    case = Case(3, count, dtype=dtype)
    case.holds()
    assert not case.flags().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [16, 17, 32, 48, 64, 100, 128])
def test_heads(heads: int, dtype: torch.dtype) -> None:
    Case(5, 200, heads, dtype).holds()


@pytest.mark.parametrize("queries", [1, 65, 133, 301])
def test_more_items_than_programs_and_fewer(queries: int) -> None:
    Case(queries, 300).holds()


def test_the_shape_of_deepseek_v32() -> None:
    case = Case(70, 2048, tokens=4000)
    case.holds()
    assert not case.flags().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tokens_may_be_missing_anywhere(dtype: torch.dtype) -> None:
    case = Case(9, 320, dtype=dtype)
    missing = torch.rand(case.tokens.shape, generator=case.generator, device="cuda") < 0.4
    case.tokens.masked_fill_(missing, -1)
    # One query has none in the first block, one in the last, one none at all but the very last.
    case.tokens[1, :64], case.tokens[2, 256:], case.tokens[3, :-1] = -1, -1, -1
    case.holds()


def test_a_query_without_tokens_is_zero() -> None:
    case = Case(4, 200)
    case.tokens[1:3] = -1
    case.holds()
    assert not case.run()[1:3].any()


def test_no_tokens_and_no_queries() -> None:
    case = Case(4, 8)
    case.tokens = case.tokens[:, :0]
    assert not case.run().any()
    case.q, case.tokens = case.q[:0], case.tokens[:0]
    assert case.run().shape == (0, 128, RANK)


def test_slots_that_are_not_chosen_change_nothing() -> None:
    case = Case(3, 200)
    before = case.run()
    chosen = torch.zeros(len(case.cache), dtype=torch.bool, device="cuda")
    chosen[case.tokens.flatten().long()] = True
    case.cache[~chosen] = 7.0
    assert torch.equal(case.run(), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grown", [30.0, -30.0])
def test_rows_that_floats_have_no_room_for_are_attended_again(grown: float, dtype: torch.dtype) -> None:
    case = Case(5, 320, dtype=dtype)
    # The third query's tokens past the first block, or the first block's own, outscore the others by far.
    late = case.tokens[2, 64:] if grown > 0 else case.tokens[2, :64]
    case.q.fill_(1.0)
    case.q[:2], case.q[3:] = case.normal(2, 128, RANK + ROPE), case.normal(2, 128, RANK + ROPE)
    case.cache[late.long()] += abs(grown) / 4
    case.holds()
    assert case.flags().view(5, 2)[2].all() == (grown > 0)


def test_runs_repeat_bit_by_bit() -> None:
    case = Case(150, 400)
    first = case.run()
    for _ in range(5):
        assert torch.equal(case.run(), first)


def test_a_graph_replays_with_other_queries() -> None:
    case = Case(40, 300)
    case.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = token_sparse_latent_attention(*case.given, SCALE)
    for _ in range(2):
        case.q.copy_(case.normal(*case.q.shape))
        found.fill_(torch.nan)
        graph.replay()
        assert torch.equal(found, case.run())


def test_parts_that_are_not_aligned_are_copied() -> None:
    case = Case(3, 100)
    wide = case.cache.new_zeros(len(case.cache), RANK + ROPE + 1)
    wide[:, 1:] = case.cache
    parts = case.given[:2] + tuple(wide[:, 1:].split((RANK, ROPE), -1))
    assert torch.equal(token_sparse_latent_attention(*parts, case.tokens, SCALE), case.run())


@pytest.mark.parametrize("heads", [1, 15])
def test_few_heads_take_the_portable_kernel(heads: int) -> None:
    case = Case(3, 100, heads)
    assert latent_implementation(case.q.device, case.q.dtype, heads, RANK, ROPE) == "triton"
    found = token_sparse_latent_attention(*case.given, SCALE)
    assert torch.equal(found, portable_latent_attention(*case.given, SCALE))
    # By the Gluon kernel, were it asked.
    out = torch.empty_like(found)
    assert not kernels.attend(*case.given, out, SCALE).any()
    assert rms_ratio(out, found) < 0.01
