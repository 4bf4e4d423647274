"""Scores that every sampler can draw from, whatever grammars and penalties made of them."""

from __future__ import annotations

from typing import Any, Final

BIASED: Final = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.apply_logits_bias"
# Far below every score, and finite: where a grammar leaves no token, no sampler may meet a row of infinities, of which
# it makes no numbers, and ends the process.
_LEAST: Final = -1e30


def keep_finite(_: Any, info: Any, logits: Any, *__: Any, **___: Any) -> None:
    """After grammars and penalties: infinite scores become finite.

    A request whose grammar leaves nothing then draws a token that the grammar does not take, and ends by that.

    Args:
        info: how the batch is sampled.
        logits: float of (rows, vocabulary), in place.
    """
    if info.grammar_mask is not None or info.acc_scaling_penalties is not None:
        logits.clamp_(min=_LEAST, max=-_LEAST)
