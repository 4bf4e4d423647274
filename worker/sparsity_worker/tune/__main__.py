"""`python -m sparsity_worker.tune`: finds from which lengths a profile is faster than dense attention on this GPU.

Takes about a minute, of which most is compiling; workers of that profile, started on such a device, heed what it found.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

from sparsity_rpc.errors import ConfigurationError, SparsityError
from sparsity_serving.options.settings import parser_of, read_settings

from sparsity_worker.config import PREFIX, ModelFacts
from sparsity_worker.devices import prepare_environment
from sparsity_worker.profiles.profile import load_profile
from sparsity_worker.tune.crossover import Crossover, Heads, Timing, check_model, from_tokens
from sparsity_worker.tune.dense import ours_is_fastest
from sparsity_worker.tune.options import TuneConfig


def tune(options: TuneConfig) -> Crossover:
    """Measures, prints and keeps it.

    Raises:
        ConfigurationError: when there is no GPU, or nothing to measure.
    """
    import torch

    if not torch.cuda.is_available():
        raise ConfigurationError("--device: torch finds no GPU here; there is nothing to tune on the CPU")
    from sparsity_worker.tune.layer import Layer
    from sparsity_worker.tune.measure import Plan, measure

    facts, profile = ModelFacts.read(options.model_path), load_profile(options.profile)
    heads = Heads.read(options.model_path, options.tensor_parallel)
    check_model(facts, heads)
    plan = Plan(chunk=options.chunked_prefill_tokens)
    plan = plan._replace(lengths=[length for length in plan.lengths if length <= facts.context_length])
    layers = int(json.loads((options.model_path / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"])
    shown = ("phase", "batch", "length", "sparse", "dense", "sdpa", "sglang", "density")
    print(" ".join(f"{name:>8}" for name in shown), "(ms a layer)", flush=True)
    timings = []
    try:
        layer = Layer(
            profile, heads, layers, plan.tokens, facts.context_length, torch.device("cuda"), torch.bfloat16
        )  # fmt: skip
        for timing in measure(layer, plan):
            timings.append(timing)
            print(_line(timing), flush=True)
    except ValueError as error:
        raise ConfigurationError(f"profile {profile.label}: {error}") from error
    date = datetime.now(UTC).date().isoformat()
    return Crossover.of(profile.label, torch.cuda.get_device_name(), heads, "bfloat16", date, timings)


def _line(timing: Timing) -> str:
    sdpa, theirs = ("" if each is None else f"{each:.4f}" for each in (timing.sdpa, timing.theirs))
    return (
        f"{timing.phase:>8} {timing.batch:8d} {timing.length:8d} {timing.sparse:8.4f} {timing.dense:8.4f} {sdpa:>8}"
        f" {theirs:>8} {timing.density:8.3f}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs it; 2 when it cannot."""
    parser = parser_of(TuneConfig, PREFIX, "sparsity worker tune", __doc__)
    try:
        options = read_settings(TuneConfig, PREFIX, parser, arguments)
        prepare_environment("cuda", None, kept=options.state_folder)
        found = tune(options)
    except SparsityError as error:
        print(f"sparsity worker tune: {error}", file=sys.stderr)
        return 2
    print(f"{found.profile} on {found.device}: prompts are faster sparse {from_tokens(found.prefill_from)};")
    for batch, tokens in found.decode_from.items():
        print(f"  decode of {batch} at once {from_tokens(tokens)}")
    whose = "our kernels" if ours_is_fastest(found.timings) else "SGLang's own backend"
    print(f"  the dense tier attends by {whose}")
    print(f"kept in {found.write(options.state_folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
