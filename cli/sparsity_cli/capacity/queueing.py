"""How many workers a load needs, by the theory of queues."""

from __future__ import annotations

import math


def waits(load: float, places: int) -> float:
    """Probability that a request finds every place taken (Erlang's second formula, A. K. Erlang, 1917).

    Args:
        load: requests that arrive in the time that one is served, on average: erlangs.
        places: requests that are served at once.

    Returns:
        The probability; 1 where the load is more than the places can ever serve.
    """
    if load >= places:
        return 1.0
    refused = 1.0
    for place in range(1, places + 1):
        refused = load * refused / (place + load * refused)
    return refused / (1 - load / places * (1 - refused))


def workers_for(load: float, places: int, share: float) -> int:
    """The fewest workers of ``places`` requests each at which no more than ``share`` of the requests wait.

    Args:
        load: what comes, in the work of that many workers without a pause; 0 needs none.
        places: requests that a worker serves at once.
        share: of the requests that may wait, between 0 and 1.
    """
    if load <= 0:
        return 0
    workers = max(1, math.ceil(load))
    while waits(load * places, workers * places) > share:
        workers += 1
    return workers
