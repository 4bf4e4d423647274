"""What servers of stock SGLang say of themselves and cannot be read: their failure, and nobody else's."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from sparsity_router.fleet.stock.facts import tokenizer_digest
from sparsity_router.fleet.workers import State
from support.routers.rig import rig, until
from support.tiny import tiny_model
from support.workers.fake_stock import FakeStock


def packed(data: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive of a tokenizer.json."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", method) as archive:
        archive.writestr("tokenizer.json", data)
    return written.getvalue()


def damaged(method: int) -> bytes:
    """The same, whose compressed bytes are others."""
    whole = bytearray(packed(bytes(range(256)) * 16, method))
    # Behind LZMA's own header.
    start = whole.index(b"tokenizer.json") + len("tokenizer.json") + 12
    whole[start : start + 8] = b"\xff" * 8
    return bytes(whole)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_archive_has_no_tokenizer(method: int) -> None:
    assert tokenizer_digest([packed(b"{}", method)])
    assert tokenizer_digest([damaged(method)]) == ""
    assert tokenizer_digest([packed(b"{}" * 100, method)[:-40]]) == ""


async def test_an_odd_answer_of_one_server_leaves_the_others_watched(tmp_path: Path) -> None:
    """A router whose watching of workers ends drains."""
    model = tiny_model(tmp_path / "model")
    odd, good = await FakeStock(model).start(), await FakeStock(model).start()
    try:
        async with rig(model, places=(odd.address, good.address)) as r:
            first, second = r.fleet.workers
            odd.arguments, odd.archive = {"mem_fraction_static": float("inf")}, None
            await odd.restart()
            await until(lambda: first.state is State.UNREACHABLE and "cannot be used: " in first.problem)
            odd.arguments, odd.archive = {}, damaged(zipfile.ZIP_DEFLATED)
            await odd.restart()
            await until(lambda: first.state is State.INCOMPATIBLE and "tokenizer" in first.problem)
            await good.restart()
            await until(lambda: second.state is State.READY)
            odd.archive = None
            await odd.restart()
            await until(lambda: first.state is State.READY)
            assert (await r.generate("hi", domain="medical"))[0] == "abc"
    finally:
        await odd.stop()
        await good.stop()


@pytest.mark.parametrize("since", [1, 0])
async def test_what_a_server_is_does_not_hang_on_when_it_says_that_it_began(tmp_path: Path, since: int) -> None:
    model = tiny_model(tmp_path / "model")
    server = await FakeStock(model, started=since).start()
    try:
        async with rig(model, places=(server.address,)) as r:
            (worker,) = r.fleet.workers
            assert worker.state is State.READY
            await server.stop()
            server.backend = "dsa"
            await server.start()
            await until(lambda: worker.state is State.INCOMPATIBLE and "backend is dsa" in worker.problem)
            # An archive is asked for again where it may be another one by now.
            assert (server.asked_for_tokenizer > 1) is not bool(since)
    finally:
        await server.stop()
