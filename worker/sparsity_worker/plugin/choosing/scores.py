"""Scores that every sampler can draw from, whatever grammars and penalties made of them."""

from __future__ import annotations

from typing import Any, Final

BIASED: Final = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.apply_logits_bias"
# Far below every score, and finite: where a grammar leaves no token, no sampler may meet a row of infinities, of which
# it makes no numbers, and ends the process.
_LEAST: Final = -1e30
_NOT_FINITE: Final = "the model's scores are not finite: a kernel or the weights have failed, and no token is drawn"


def require_finite(_: Any, logits: Any, *__: Any, **___: Any) -> None:
    """Before grammars and penalties: the model's scores must be numbers, or the engine fails in place of answering.

    The greatest of a row that is no number is a token like any other, so that wrong answers would come without a word;
    and what is no number may be in keys that others read. SGLang's own check (SGLANG_ENABLE_NAN_LOGITS_CHECK, off
    without it) lets infinities through, and those that grammars put there must be let through where it stands.

    Args:
        logits: float of (rows, vocabulary), of the model alone.

    Raises:
        RuntimeError: on the CPU; on a GPU, which nothing waits for here, whatever waits for it next fails.
    """
    import torch

    # One pass over them: a sum is finite only where all are.
    torch._assert_async(logits.sum(dtype=torch.float32).isfinite(), _NOT_FINITE)


def keep_finite(_: Any, info: Any, logits: Any, *__: Any, **___: Any) -> None:
    """After grammars and penalties: infinite scores become finite.

    A request whose grammar leaves nothing then draws a token that the grammar does not take, and ends by that.

    Args:
        info: how the batch is sampled.
        logits: float of (rows, vocabulary), in place.
    """
    if info.grammar_mask is not None or info.acc_scaling_penalties is not None:
        logits.clamp_(min=_LEAST, max=-_LEAST)
