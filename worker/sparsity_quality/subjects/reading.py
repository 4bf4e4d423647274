"""How well a model follows a long text, and how nearly as with dense attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparsity_quality.subjects.model import LocalModel

# Greedy runs are started at every so many tokens.
_STARTS = 64


@dataclass(frozen=True, slots=True)
class Followed:
    """Over the second half of a text, teacher-forced.

    Attributes:
        loss: mean negative log-likelihood of the text, nats a token.
        divergence: mean Kullback-Leibler divergence of the model's distribution from dense attention's, nats.
        agreement: share of positions whose most likely token is dense attention's.
        run: mean number of tokens until the most likely token first differs from dense attention's.
    """

    loss: float
    divergence: float
    agreement: float
    run: float


@torch.inference_mode()
def follow(model: LocalModel, tokens: tuple[int, ...], hidden: torch.Tensor, dense: torch.Tensor) -> Followed:
    """Judges the hidden states of ``tokens`` beside those of dense attention, both ``[T, hidden]``."""
    half = len(tokens) // 2
    wanted = torch.tensor(tokens[half:], device=hidden.device)
    rows, loss, divergence = slice(half - 1, len(tokens) - 1), 0.0, 0.0
    same: list[torch.Tensor] = []
    at = 0
    for found, true in zip(model.logits(hidden[rows]), model.logits(dense[rows]), strict=True):
        own, other = found.log_softmax(-1), true.log_softmax(-1)
        loss -= float(own.gather(1, wanted[at : at + own.shape[0], None]).sum())
        divergence += float((other.exp() * (other - own)).sum())
        same.append(own.argmax(-1) == other.argmax(-1))
        at += own.shape[0]
    agree = torch.cat(same)
    return Followed(loss / at, max(0.0, divergence / at), float(agree.float().mean()), mean_run(agree))


def mean_run(agree: torch.Tensor) -> float:
    """Mean tokens from every 64th position to the first disagreement, or to the end; agree is bool ``[T]``."""
    runs = []
    for start in range(0, agree.shape[0], _STARTS):
        differs = (~agree[start:]).nonzero()
        runs.append(float(differs[0]) if differs.numel() else float(agree.shape[0] - start))
    return sum(runs) / len(runs)
