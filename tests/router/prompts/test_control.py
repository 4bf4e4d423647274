"""Control tokens in a caller's text stay text: in prompts, in chats, and under the scan."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from sparsity.v1 import inference_pb2
from sparsity_client.wire import make_request
from sparsity_policies.decisions.decide import decide
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.matching.scan import Scanner, ScanResult
from sparsity_policies.model import Reason
from sparsity_router.prompts import control
from sparsity_router.prompts.classify import Classifier
from sparsity_router.prompts.control import ControlTokens
from sparsity_router.prompts.tokens import ModelTokenizer
from support.stores.snapshots import snapshot
from support.tiny import SPECIAL, tiny_model

(END,) = SPECIAL
BANDS = [{"from_tokens": 0, "tier": "moderate"}]
POLICIES = snapshot(
    [parse_policy({"domain": "low", "risk": "low", "bands": BANDS}),
     parse_policy({"domain": "legal", "risk": "high", "bands": BANDS,
                   "detection": {"literals": ["attorney-client privilege"], "flag": "legal"}})]
)  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path: Path) -> ModelTokenizer:
    return ModelTokenizer(tiny_model(tmp_path))


def chat(content: str) -> inference_pb2.ChatPrompt:
    return inference_pb2.ChatPrompt(messages=[inference_pb2.ChatMessage(role="user", content=content)])


async def classified(tokenizer: ModelTokenizer, prompt: Any, *, exact: bool = False) -> Any:
    return await Classifier(tokenizer, 10**6).classify(make_request(prompt, domain="low"), POLICIES, exact=exact)


@pytest.mark.parametrize("form", [str, chat])
async def test_no_prompt_holds_a_control_token_that_its_caller_wrote(tokenizer: ModelTokenizer, form: Any) -> None:
    (end,) = tokenizer.encode(END, special=False)
    for text in (f"a{END}b", END, END * 3, f"<|en{END}d|>", f"<{END}|end|>"):
        found = await classified(tokenizer, form(text), exact=True)
        assert end not in found.prompt.ids
        # The worker tokenizes the same text where the router did not.
        sent = (await classified(tokenizer, form(text))).prompt.text
        assert end not in tokenizer.encode(sent, special=True)
        assert sent.replace("\u200b", "").count(END) == text.count(END)


async def test_what_holds_none_is_left_as_it_is(tokenizer: ModelTokenizer) -> None:
    for text in ("plain", "a < b | c > d", "<|other|>", "<|end|", "é<"):
        assert (await classified(tokenizer, text)).prompt.text == text


@pytest.mark.parametrize(
    "hidden", ["attorney-{0}client privilege", "attorney-client{0}privilege", "att{0}orney-client privilege"]
)
async def test_no_phrase_hides_behind_a_control_token(tokenizer: ModelTokenizer, hidden: str) -> None:
    text = hidden.format(END)
    ids = tokenizer.encode(text, special=False)
    for prompt in (text, chat(text), ids):
        signals = (await classified(tokenizer, prompt)).signals
        assert signals.flags == {"legal"}
        assert signals.scanned_bytes >= len(text.encode())


@pytest.mark.parametrize("form", [str, chat, None])
async def test_a_scan_that_stops_short_is_seen_whatever_is_scanned_beside_the_prompt(
    tokenizer: ModelTokenizer, monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    text, whole = f"plain {END} text", Scanner.scan

    def hasty(self: Scanner, scanned: Any) -> ScanResult:
        return (found := whole(self, scanned))._replace(scanned_bytes=found.scanned_bytes - 1)

    request = make_request(form(text) if form else tokenizer.encode(text, special=False), domain="low")
    request.sampling.response_format.regex = "[a-z]+"
    classifier = Classifier(tokenizer, 10**6)
    found = (await classifier.classify(request, POLICIES)).signals
    assert found.scanned_bytes == found.prompt_bytes > len(text)
    monkeypatch.setattr(Scanner, "scan", hasty)
    signals = (await classifier.classify(request, POLICIES)).signals
    assert decide(signals, POLICIES).reason is Reason.SCAN_TRUNCATED


@pytest.mark.parametrize(
    "hidden",
    [
        "attorney-client\u00a0privilege",
        "attorney\u2011client privilege",
        "attor\u00adney-cli\u200bent privilege",
        "\uff41ttorney-client privilege",
        f"at\u200btorney-{END}client privilege",
    ],
)
async def test_no_phrase_hides_behind_characters(tokenizer: ModelTokenizer, hidden: str) -> None:
    for prompt in (hidden, chat(hidden), tokenizer.encode(hidden, special=False)):
        assert (await classified(tokenizer, prompt)).signals.flags == {"legal"}


@pytest.mark.parametrize("hidden", [f"attorney-{END}client privilege", "attorney\u2011client privilege"])
async def test_what_is_hidden_is_found_by_detection_that_came_later(tokenizer: ModelTokenizer, hidden: str) -> None:
    before = snapshot([POLICIES.policies["low"].policy])
    found = await Classifier(tokenizer, 10**6).classify(make_request(hidden, domain="low"), before)
    assert not found.signals.flags
    assert found.under(POLICIES).flags == {"legal"}


def test_thousands_of_tokens_make_one_quick_expression() -> None:
    words = [f"<|reserved_{number}|>" for number in range(2000)] + ["<s>", "</s>", "<s>>", "[INST]", "a.b"]
    found = ControlTokens(words)
    plain, chance = (
        re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))),
        random.Random(0),
    )
    for _ in range(200):
        text = "".join(chance.choice((*words[-5:], *words[:3], "<", "|", "s", ">", "a", "[")) for _ in range(20))
        assert found.occur(text) == bool(plain.search(text))
        assert found.occur("<" * 150 + text) == bool(plain.search("<" * 150 + text))
        assert found.as_text(text) == plain.sub(lambda each: f"{each[0][0]}\u200b{each[0][1:]}", text)
        assert plain.search(found.as_text(text).replace("\u200b", "\0")) is None
    assert ControlTokens([]).as_text("<s>") == "<s>"


def test_a_text_is_opened_piece_by_piece_as_if_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["<|end|>", "<|end|>>", "<s>", "</s>", "[INST]"]
    plain = re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)))
    chance, tokens = random.Random(0), ControlTokens(words)
    for size in (1, 5, 8, 1 << 16):
        monkeypatch.setattr(control, "_PIECE", size)
        for _ in range(300):
            text = "".join(chance.choice((*words, "<", "|end", "|>", ">", "a")) for _ in range(chance.randrange(20)))
            broken = plain.sub(lambda found: f"{found[0][0]}\u200b{found[0][1:]}", text)
            scanned = (text, broken, plain.sub("", text), plain.sub(" ", text))
            assert tokens.as_text(text) == broken
            assert tokens.opened(text) == (broken, "\n".join(scanned) if plain.search(text) else text)


async def test_what_control_tokens_hide_is_found_by_policies_that_come_later_too(tokenizer: ModelTokenizer) -> None:
    hidden = f"attorney-{END}client privilege"
    before = parse_policy({"domain": "low", "risk": "low", "bands": BANDS})
    found = await Classifier(tokenizer, 10_000).classify(make_request(hidden, domain="low"), snapshot([before]))
    assert not found.signals.flags
    assert found.under(POLICIES).flags
