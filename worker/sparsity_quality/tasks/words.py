"""Words that generated tasks are made of."""

from __future__ import annotations

from random import Random

ADJECTIVES = (
    "amber", "brave", "calm", "dusty", "eager", "frozen", "gentle", "hollow", "idle", "jolly", "keen", "lunar",
    "misty", "noble", "olive", "proud", "quiet", "rusty", "silver", "tidy", "urban", "velvet", "windy", "young",
)  # fmt: skip
NOUNS = (
    "anchor", "bridge", "castle", "desert", "engine", "forest", "garden", "harbor", "island", "jacket", "kettle",
    "ladder", "market", "needle", "orchard", "parrot", "quarry", "river", "saddle", "temple", "umbrella", "valley",
    "window", "zebra",
)  # fmt: skip
NAMES = (
    "Alice", "Boris", "Clara", "Daniel", "Elena", "Felix", "Greta", "Hassan", "Ingrid", "Jonas", "Karen", "Leon",
    "Maria", "Nils", "Olga", "Pavel", "Rosa", "Simon", "Tara", "Victor",
)  # fmt: skip
SURNAMES = (
    "Abbott", "Becker", "Carver", "Dalton", "Eklund", "Fisher", "Garcia", "Hughes", "Ivanov", "Jensen", "Keller",
    "Lopez", "Meyer", "Novak", "Ortega", "Parker", "Quinn", "Rossi", "Santos", "Turner",
)  # fmt: skip
CITIES = (
    "Athens", "Berlin", "Cairo", "Dublin", "Geneva", "Havana", "Istanbul", "Jakarta", "Kyoto", "Lisbon", "Madrid",
    "Nairobi", "Oslo", "Prague", "Quebec", "Rome", "Seattle", "Toronto", "Vienna", "Warsaw",
)  # fmt: skip
SUBJECTS = (
    "ancient coins", "bird songs", "cave paintings", "deep sea fish", "electric motors", "folk dances", "glass making",
    "honey bees", "ice cores", "jazz history", "kite design", "lighthouse lamps", "mountain goats", "night trains",
    "ocean currents", "paper recycling", "river deltas", "solar panels", "tree rings", "volcanic soil",
)  # fmt: skip


def number(rng: Random) -> str:
    """Five digits."""
    return str(rng.randrange(10_000, 100_000))


def keys(rng: Random, count: int) -> list[str]:
    """Distinct names of two words, none sharing a word with another."""
    return [
        f"{one} {other}" for one, other in zip(rng.sample(ADJECTIVES, count), rng.sample(NOUNS, count), strict=True)
    ]
