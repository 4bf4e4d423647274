"""Log-probabilities, as SGLang gives them."""

from __future__ import annotations

from typing import Any, NamedTuple


class Scores(NamedTuple):
    """What a request wants of them: so many alternatives at each place, and whether of the prompt, too."""

    top: int
    prompt: bool

    def arguments(self) -> dict[str, Any]:
        """What SGLang's engine is asked with."""
        start = 0 if self.prompt else -1
        return {"return_logprob": True, "top_logprobs_num": self.top, "logprob_start_len": start}


class Scored(NamedTuple):
    """A token, its log-probability (None of a prompt's first), and the likeliest ones at its place with theirs."""

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


def scored(meta: dict[str, Any], side: str) -> tuple[Scored, ...]:
    """The tokens of one side.

    Args:
        meta: SGLang's, of a chunk of output; it has the chunk's tokens of `output`, and all of `input`.
        side: `input` or `output`.
    """
    places = meta.get(f"{side}_token_logprobs") or ()
    tops = meta.get(f"{side}_top_logprobs") or (None,) * len(places)
    return tuple(
        Scored(int(place[1]), place[0], tuple((int(other[1]), float(other[0])) for other in top or ()))
        for place, top in zip(places, tops, strict=False)
    )
