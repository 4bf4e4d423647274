from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sparse_kernels import DecodeConfig, PageSummaries, dense_attention, select_pages_cpu
from sparse_kernels.gpu.decode_batch import DecodeBatch, DecodeWorkspace, fill_tables
from sparse_kernels.gpu.page_limits import PageLimits, page_capacity
from sparse_kernels.gpu.page_selection import MOST_BLOCKS, select_pages
from sparse_kernels.gpu.page_summaries import summarize_pages
from sparse_kernels.gpu.sparse_paged_decode import paged_decode, sparse_paged_decode
from sparse_kernels.reference.sparse_paged_decode import sparse_paged_decode_reference
from support.kernels.devices import DEVICE, DTYPES, EXACT, TOLERANCES, launch, on
from support.kernels.paging import PAGE, SUB, joined, queries, rms_ratio

HEADS, DIM = 4, 16
SCALE = DIM**-0.5
LENGTHS = [1, 15, 17, 64, 65, 200, 333]
CONFIG = DecodeConfig(sparse_from=0, budget=96, sink=16, recent=32, score="sub_pages")
# What stands in a table past a sequence's end is no page.
NO_PAGE = 2**30
MEANS = ("mean", "value_mean", "spread", "sub_mean", "sub_count", "stale")


class Case:
    """A batch of sequences with one query row each; what a step has to write is poisoned."""

    def __init__(
        self,
        lengths: list[int],
        heads: int = HEADS,
        kv_heads: int = 2,
        dim: int = DIM,
        dtype: torch.dtype = torch.float32,
        page: int = PAGE,
        sub: int = SUB,
        width: int = 0,
    ) -> None:
        self.sequences, self.summaries = joined(lengths, kv_heads, dim, dtype=dtype, page=page, sub=sub)
        self.q, self.page, self.scale = queries(len(lengths), heads, dim, dtype=dtype), page, dim**-0.5
        widest = max(sequence.table.numel() for sequence in self.sequences)
        tables = torch.full((len(lengths), width or widest), NO_PAGE, dtype=torch.int32)
        for row, sequence in zip(tables, self.sequences, strict=True):
            row[: sequence.table.numel()] = sequence.table
        keys, values = self.sequences[0].keys, self.sequences[0].values
        self.batch = DecodeBatch(keys, values, tables, torch.tensor(lengths, dtype=torch.int32))
        self.newest = torch.stack([sequence.table[-1] for sequence in self.sequences])
        self.expected = {name: getattr(self.summaries, name).clone() for name in MEANS}
        self.poison()

    def poison(self) -> None:
        """Of the newest pages: their means, and the sub-means from the newest token's on."""
        for page, sequence in zip(self.newest, self.sequences, strict=True):
            sub = (sequence.length - 1) % self.page // self.summaries.sub_page
            self.summaries.sub_mean[page, sub:] = float("nan")
        for part in (self.summaries.mean, self.summaries.value_mean, self.summaries.spread):
            part[self.newest] = float("nan")
        self.summaries.sub_count[self.newest] = -1
        self.summaries.mark(self.newest)

    def workspace(self, config: DecodeConfig) -> DecodeWorkspace:
        made = DecodeWorkspace.of(self.q, self.batch, page_capacity(config, self.page))
        for part in (made.masses, made.parts, made.lse):
            part.fill_(float("nan"))
        made.chosen.fill_(NO_PAGE)
        return made

    def whole(self, number: int, config: DecodeConfig) -> bool:
        sequence = self.sequences[number]
        return sequence.length < config.sparse_from or sequence.table.numel() <= page_capacity(config, self.page)

    def decode(self, config: DecodeConfig, room: DecodeWorkspace, dense: torch.Tensor | None = None) -> torch.Tensor:
        """A step on the device, which brings the summaries up to date and leaves the workspace as it is there."""
        moved, summaries = on(DEVICE, room), on(DEVICE, self.summaries)
        out = sparse_paged_decode(
            *on(DEVICE, (self.q, self.batch)), summaries, config, self.scale, dense=on(DEVICE, dense), workspace=moved
        )  # fmt: skip
        self.summaries = on("cpu", summaries)
        vars(room).update(vars(on("cpu", moved)))
        return on("cpu", out)

    def summarize(self, pages: torch.Tensor, filled: torch.Tensor) -> None:
        """Summarizes pages on the device."""
        summaries = on(DEVICE, self.summaries)
        summarize_pages(summaries, *on(DEVICE, (self.batch.keys, self.batch.values, pages.int(), filled.int())))
        self.summaries = on("cpu", summaries)

    def check(self, config: DecodeConfig, bound: float = EXACT, dense: torch.Tensor | None = None) -> torch.Tensor:
        """Pages against the CPU's, the output against the definition, and that all is left as it must be."""
        room = self.workspace(config)
        out = self.decode(config, room, dense)
        assert out.dtype == self.q.dtype
        assert not room.counters.any()
        for name in MEANS:
            # A single key's spread is zero to half the digits only on the CPU, which takes it from a mean of squares.
            near = 2e-3 if name == "spread" else 1e-5
            share = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 8e-3}[self.q.dtype]
            found, wanted = getattr(self.summaries, name), self.expected[name]
            torch.testing.assert_close(found, wanted, atol=near, rtol=share, equal_nan=True, msg=name)
        capacity, kv_heads = page_capacity(config, self.page), self.batch.keys.shape[2]
        lists = room.chosen[: len(self.sequences) * kv_heads * capacity].view(-1, kv_heads, capacity)
        for number, sequence in enumerate(self.sequences):
            pages = torch.arange(sequence.table.numel()).expand(kv_heads, -1)
            if not self.whole(number, config) and not (dense is not None and dense[number]):
                pages, _ = select_pages_cpu(self.q[number], sequence, self.summaries, config, self.scale)
                assert torch.equal(lists[number].long(), sequence.table[pages]), sequence.length
            wanted = sparse_paged_decode_reference(self.q[number], sequence, pages, self.scale)
            assert rms_ratio(out[number], wanted) < bound, sequence.length
        return out


@pytest.mark.parametrize("score", ["spread", "sub_pages"])
@pytest.mark.parametrize(("heads", "dtype"), [(2, torch.float32), (40, torch.float32), *((6, each) for each in DTYPES)])
def test_matches_the_reference_over_what_the_cpu_chooses(score: str, heads: int, dtype: torch.dtype) -> None:
    Case(LENGTHS, heads, dtype=dtype).check(replace(CONFIG, score=score), TOLERANCES[dtype])


@pytest.mark.parametrize("length", [1, 63, 64, 65, 2047, 2048, 2049, 3000])
def test_lengths_about_the_ends_of_pages(length: int) -> None:
    config = DecodeConfig(sparse_from=0, budget=640, sink=64, recent=100, score="sub_pages")
    Case([length], kv_heads=1, page=64, sub=16).check(config)


@pytest.mark.parametrize(("page", "sub"), [(16, 2), (32, 4), (64, 8), (128, 64)])
def test_pages_and_sub_pages(page: int, sub: int) -> None:
    config = DecodeConfig(sparse_from=0, budget=4 * page, sink=page, recent=page, score="sub_pages")
    Case([7 * page, 7 * page + 1, 9 * page - 1], kv_heads=1, page=page, sub=sub).check(config)


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_dtypes_are_near_the_definition(dim: int, dtype: torch.dtype, tolerance: float) -> None:
    Case([200, 64], 2, dim=dim, dtype=dtype).check(CONFIG, tolerance)


def test_short_sequences_and_those_held_dense_attend_all_they_have() -> None:
    case, config = Case(LENGTHS), replace(CONFIG, sparse_from=201)
    held = torch.tensor([length == 333 for length in LENGTHS])
    out = case.check(config, dense=held)
    for number, sequence in enumerate(case.sequences):
        assert rms_ratio(out[number], dense_attention(case.q[number : number + 1], sequence, SCALE)[0][0]) < EXACT


KINDS = (
    None,
    CONFIG,
    DecodeConfig(sparse_from=250, budget=240, sink=48, recent=80, score="sub_pages"),
)


@pytest.mark.parametrize("score", ["spread", "sub_pages"])
def test_each_sequence_attends_what_its_own_limits_say(score: str) -> None:
    """One batch of several budgets, beside each sequence alone by its own."""
    configs = [each and replace(each, score=score) for each in KINDS]
    lengths, kinds = [333, 200, 200, 333, 64, 1500, 1500, 1500], [0, 1, 2, 2, 1, 0, 1, 2]
    dense = torch.tensor([False] * 7 + [True])
    largest = max((each for each in configs if each), key=lambda each: page_capacity(each, PAGE))
    case = Case(lengths, 6)
    room = case.workspace(largest)
    given, moved = on(DEVICE, (case.q, case.batch, case.summaries)), on(DEVICE, room)
    limits = PageLimits.of(torch.tensor(kinds, dtype=torch.int32, device=DEVICE), configs, PAGE)
    out = on("cpu", sparse_paged_decode(
        *given, largest, case.scale, dense=on(DEVICE, dense), limits=limits, workspace=moved
    ))  # fmt: skip
    assert not moved.counters.any()
    summaries, chosen = on("cpu", given[2]), on("cpu", moved.chosen).view(len(lengths), 2, -1)
    assert chosen.shape[2] == page_capacity(largest, PAGE) == 15
    for number, (sequence, kind) in enumerate(zip(case.sequences, kinds, strict=True)):
        config = configs[kind]
        if config is None:
            # Nobody reads them.
            assert summaries.mean[sequence.table[-1]].isnan().all()
        else:
            torch.testing.assert_close(summaries.mean[sequence.table[-1]], case.expected["mean"][sequence.table[-1]])
        pages = torch.arange(sequence.table.numel()).expand(2, -1)
        if config is not None and not case.whole(number, config) and not dense[number]:
            pages, _ = select_pages_cpu(case.q[number], sequence, summaries, config, case.scale)
            assert torch.equal(chosen[number, :, : pages.shape[1]].long(), sequence.table[pages])
            chosen[number, :, : pages.shape[1]] = NO_PAGE
        # Past its own limit nothing is written, and for whoever attends everything nothing at all.
        assert (chosen[number] == NO_PAGE).all()
        wanted = sparse_paged_decode_reference(case.q[number], sequence, pages, case.scale)
        assert rms_ratio(out[number], wanted) < EXACT, number


def test_limits_of_one_kind_change_no_bit() -> None:
    case, config = Case(LENGTHS, 6), replace(CONFIG, sparse_from=100)
    kinds = torch.zeros(len(LENGTHS), dtype=torch.int32)
    plain, limited = (
        launch(sparse_paged_decode, case.q, case.batch, case.summaries, config, SCALE, limits=limits)
        for limits in (None, PageLimits.of(kinds, [config], PAGE))
    )
    assert torch.equal(plain, limited)


@pytest.mark.parametrize("width", [4096, MOST_BLOCKS])
def test_wide_tables(width: int) -> None:
    # Of few pages, of more than a narrow tile has, and of more than 2,048.
    case = Case([300 * PAGE, 600 * PAGE + 3, 2100 * PAGE], 2, 1, width=width)
    case.check(replace(CONFIG, budget=30 * PAGE))


def test_many_splits_are_merged_by_the_last() -> None:
    case, config = Case([3000, 700, 40], 6), replace(CONFIG, budget=800, sparse_from=1000)
    case.check(config)
    # More than a program holds at once.
    Case([3000], 16, 1).check(replace(config, budget=2000))


def test_runs_are_equal_bit_by_bit() -> None:
    case, config = Case([333, 1000]), replace(CONFIG, budget=256)
    room = case.workspace(config)
    outs = []
    for _ in range(3):
        case.poison()
        outs.append(case.decode(config, room))
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def chosen(case: Case, config: DecodeConfig) -> list[int]:
    """Logical pages of the first sequence and head."""
    pages = launch(select_pages, case.q, case.batch, case.summaries, config, case.scale)[0, 0]
    return [case.sequences[0].table.tolist().index(page) for page in pages.tolist()]


@pytest.mark.parametrize("score", ["spread", "sub_pages"])
def test_of_pages_that_score_alike_the_earlier_is_taken(score: str) -> None:
    case, config = Case([20 * PAGE], 2, 1), replace(CONFIG, score=score)
    keys, table = case.batch.keys, case.sequences[0].table
    keys[table] = 0.0
    case.summarize(table, torch.full_like(table, PAGE))
    assert chosen(case, config) == [0, 1, 2, 3, 18, 19]
    # Three are better, one is worse.
    direction = case.q[0, 0] / case.q[0, 0].norm()
    case.q[0, 1] = case.q[0, 0]
    for page, strength in ((1, -1.0), (7, 2.0), (9, 2.0), (12, 2.0)):
        keys[table[page]] = strength * direction
    case.summarize(table, torch.full_like(table, PAGE))
    assert chosen(case, config) == [0, 7, 9, 12, 18, 19]
    assert chosen(case, replace(config, budget=8 * PAGE)) == [0, 2, 3, 7, 9, 12, 18, 19]
    assert chosen(case, replace(config, budget=5 * PAGE)) == [0, 7, 9, 18, 19]


def test_shares_too_small_for_a_float_still_differ() -> None:
    case = Case([20 * PAGE], 2, 1)
    keys, table = case.batch.keys, case.sequences[0].table
    direction = case.q[0, 0] / case.q[0, 0].norm() ** 2 / SCALE
    case.q[0, 1] = case.q[0, 0]
    # Logarithms of shares from 0 down to -1900.
    keys[table] = (torch.arange(20) * -100.0)[:, None, None, None] * direction
    keys[table[2:16]] = keys[table[2:16]].flip(0)
    case.summarize(table, torch.full_like(table, PAGE))
    assert chosen(case, CONFIG) == [0, 1, 14, 15, 18, 19]
    pages, _ = select_pages_cpu(case.q[0], case.sequences[0], case.summaries, CONFIG, SCALE)
    assert pages[0].tolist() == [0, 1, 14, 15, 18, 19]


def test_sink_and_recent_pages_are_always_there() -> None:
    case = Case([333])
    case.summaries.mean[case.sequences[0].table[5:9]] = 1e4
    found = chosen(case, DecodeConfig(sparse_from=0, budget=64, sink=16, recent=32))
    assert {0, 18, 19, 20} <= set(found)
    assert found == sorted(set(found))


def test_lengths_may_grow_under_the_same_shapes() -> None:
    # As a replayed graph does it: the same tensors, other lengths in them.
    case = Case([333, 333], width=40)
    room = case.workspace(CONFIG)
    whole = case.sequences[0]
    for length in (1, 16, 17, 150, 333):
        case.batch.lengths[0] = length
        cut = whole._replace(length=length, table=whole.table[: -(-length // PAGE)])
        case.summaries.mark(cut.table)
        case.summaries.refresh(cut)
        out = case.decode(CONFIG, room)
        pages, _ = select_pages_cpu(case.q[0], cut, case.summaries, CONFIG, SCALE)
        assert rms_ratio(out[0], sparse_paged_decode_reference(case.q[0], cut, pages, SCALE)) < EXACT
        assert not room.counters.any()


def test_several_new_tokens_are_rows_over_one_table() -> None:
    case = Case([333], 4)
    (sequence,) = case.sequences
    lengths = [331, 332, 333]
    q = queries(3, 4, DIM, seed=2)
    case.summarize(sequence.table[-1:], torch.tensor([333 % PAGE]))
    assert not case.summaries.stale[sequence.table].any()
    batch = case.batch._replace(
        tables=case.batch.tables.expand(3, -1), lengths=torch.tensor(lengths, dtype=torch.int32)
    )
    before = {name: getattr(case.summaries, name).clone() for name in MEANS}
    given = on(DEVICE, (q, batch, case.summaries))
    out, lists = (
        on("cpu", call(*given, CONFIG, SCALE, summarized=True)) for call in (sparse_paged_decode, select_pages)
    )  # fmt: skip
    after = on("cpu", given[2])
    assert all(
        torch.equal(getattr(after, name).nan_to_num(), before[name].nan_to_num()) for name in MEANS
    )  # fmt: skip
    for row, length in enumerate(lengths):
        places = {page: place for place, page in enumerate(sequence.table.tolist())}
        pages = torch.tensor([[places[page] for page in head] for head in lists[row].tolist()])
        wanted = sparse_paged_decode_reference(q[row], sequence._replace(length=length), pages, SCALE)
        assert rms_ratio(out[row], wanted) < EXACT
    pages, _ = select_pages_cpu(q[2], sequence, case.summaries, CONFIG, SCALE)
    assert torch.equal(lists[2].long(), sequence.table[pages])


@pytest.mark.parametrize("heads", [2, 14])
def test_all_pages_are_attended_as_dense_attention_does(heads: int) -> None:
    case = Case([*LENGTHS, 1500], heads)
    room = case.workspace(CONFIG)
    before = {name: getattr(case.summaries, name).clone() for name in MEANS}
    room = on(DEVICE, room)
    out = on("cpu", paged_decode(*on(DEVICE, (case.q, case.batch)), SCALE, workspace=room))
    for number, sequence in enumerate(case.sequences):
        assert rms_ratio(out[number], dense_attention(case.q[number : number + 1], sequence, SCALE)[0][0]) < EXACT
    assert not room.counters.any()
    assert all(
        torch.equal(getattr(case.summaries, name).nan_to_num(), before[name].nan_to_num()) for name in MEANS
    )  # fmt: skip


def test_256_ragged_sequences_choose_and_attend_as_each_alone() -> None:
    lengths = [1 + 37 * number % 130 for number in range(253)] + [700, 1, 512]
    case = Case(lengths, heads=2, kv_heads=1)
    dense = torch.arange(len(lengths)) % 16 == 5
    chosen = case.check(CONFIG, dense=dense)
    assert chosen.shape == (256, 2, DIM)


def test_256_ragged_sequences_attend_all_their_pages() -> None:
    lengths = [1 + 53 * number % 150 for number in range(254)] + [900, 1]
    case = Case(lengths, heads=2, kv_heads=1)
    out = launch(paged_decode, case.q, case.batch, SCALE)
    for number, sequence in enumerate(case.sequences):
        wanted = dense_attention(case.q[number][None], sequence, SCALE)[0][0]
        assert rms_ratio(out[number], wanted) < EXACT, sequence.length


def test_tables_are_filled_as_far_as_there_are_pages() -> None:
    pool = torch.arange(3 * 40 * PAGE, dtype=torch.int32).view(3, 40 * PAGE)
    tables = torch.full((3, 50), NO_PAGE, dtype=torch.int32)
    held, written, filled = torch.zeros(3, 3, dtype=torch.int32, device=DEVICE)
    slots, lengths = torch.tensor([2, 0, 1]), torch.tensor([1, 40 * PAGE, 17])
    pool, tables, slots, lengths = on(DEVICE, (pool, tables, slots, lengths))
    fill_tables(pool, slots, lengths, PAGE, tables=tables, held=held, written=written, filled=filled)
    assert tables[0].tolist() == [80] + [NO_PAGE] * 49
    assert tables[1].tolist() == [*range(40)] + [NO_PAGE] * 10
    assert tables[2].tolist() == [40, 41] + [NO_PAGE] * 48
    assert (held.tolist(), written.tolist(), filled.tolist()) == ([1, 640, 17], [80, 39, 41], [1, 16, 1])
    with pytest.raises(ValueError, match="lengths: "):
        fill_tables(pool, slots, lengths[:2], PAGE, tables=tables, held=held, written=written, filled=filled)


def test_the_capacity_holds_what_is_always_kept() -> None:
    assert page_capacity(DecodeConfig(budget=2048, sink=64, recent=512), 64) == 32
    # Recent tokens that do not begin at a page's start lie on one page more.
    assert page_capacity(DecodeConfig(budget=320, sink=64, recent=256), 64) == 6


def test_what_does_not_fit_is_named() -> None:
    case = Case([40, 500])
    q, batch, summaries = case.q, case.batch, case.summaries

    def refused(message: str, *, q=q, batch=batch, summaries=summaries, **more) -> None:
        with pytest.raises(ValueError, match=message):
            sparse_paged_decode(q, batch, summaries, CONFIG, SCALE, **more)

    refused("q: 3 query heads are not a multiple of 2", q=q[:, :3])
    refused("q: head dimension 8 must be that of the keys, 16", q=q[..., :8])
    refused("q: of torch.float16", q=q.half())
    refused("batch: tables and lengths are not those of 1 sequences", q=q[:1])
    refused("batch: tables and lengths are of torch.int64", batch=batch._replace(tables=batch.tables.long()))
    refused("batch: tables and lengths are of", batch=batch._replace(lengths=batch.lengths.long()))
    refused("batch: rows of tables", batch=batch._replace(tables=torch.zeros(40, 2, dtype=torch.int32).T))
    refused("batch: tables of 20000 blocks", batch=batch._replace(tables=torch.zeros(2, 20000, dtype=torch.int32)))
    refused("keys: pages of 8 tokens", batch=batch._replace(keys=batch.keys[:, :8], values=batch.values[:, :8]))
    refused("dense: ", dense=torch.ones(2))
    refused("dense: ", dense=torch.ones(3, dtype=torch.bool))
    kinds = torch.zeros(2, dtype=torch.int32)
    limits = PageLimits.of(kinds, [CONFIG, None], PAGE)
    refused("limits: kinds ", limits=limits._replace(kinds=kinds[:1]))
    refused("limits: kinds ", limits=limits._replace(kinds=kinds.long()))
    refused("limits: table ", limits=limits._replace(table=limits.table[:, :3]))
    with pytest.raises(ValueError, match="score: must be one for all"):
        PageLimits.of(kinds, [CONFIG, replace(CONFIG, score="spread")], PAGE)
    refused("summaries: are of", summaries=joined([40], dim=DIM)[1])
    pages = batch.keys.shape[0]
    refused("summaries: of torch.float16", summaries=PageSummaries(pages, PAGE, 2, DIM, 4, dtype=torch.float16))
    odd = PageSummaries(pages, PAGE, 2, DIM, 4)
    odd.sub_mean = odd.sub_mean[:, :3]
    refused("summaries: sub_mean is of", summaries=odd)
    small = DecodeWorkspace(1, HEADS, 2, DIM, 40, 6, "cpu")
    refused("workspace: made for ", workspace=small)
    with pytest.raises(ValueError, match="workspace: made for "):
        paged_decode(q, batch, SCALE, workspace=small)
