"""`python -m sparsity_worker.parity`: greedy tokens of a worker beside those of Hugging Face transformers.

At the first token where the two differ, the logits of transformers decide. The token of the worker is a tie when its
logit lies below the largest by no more than rounding moves logits there: twice the largest difference between the
logits of the ten best tokens in the compute dtype and in float32. After a tie the two texts rightly part.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from sparsity.v1 import inference_pb2, worker_pb2, worker_pb2_grpc
from sparsity_rpc.tls import open_channel
from tokenizers import Tokenizer

from sparsity_worker.devices import pick_dtype

PROMPTS = (
    "What is the capital of France?",
    "Name three primary colours.",
    "Explain photosynthesis in one sentence.",
    "Write a haiku about the sea.",
    "What is 17 plus 25?",
    "List the planets of the solar system.",
    "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?",
    "What does HTTP stand for?",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "Write a Python function that reverses a string.",
    "What is the boiling point of water in Celsius?",
    "Summarize the water cycle.",
    "What are the benefits of regular exercise?",
    "Describe a sunset to someone who has never seen one.",
    "How do airplanes fly?",
    "What is machine learning?",
    "Suggest a name for a black cat.",
    "Tell me a short story about a dragon.",
)
_CANDIDATES = 10
# Prompts that the worker decodes side by side.
_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt.

    Attributes:
        prompt: its text.
        tokens: tokens compared, up to and including the first difference.
        equal: whether all are equal.
        tie: whether the first difference is a tie.
        gap: how far the worker's logit lies below transformers' largest, at the first difference.
        rounding: how far a gap is a tie there.
    """

    prompt: str
    tokens: int
    equal: bool
    tie: bool
    gap: float
    rounding: float


def compare(model_path: Path, target: str, new_tokens: int) -> list[Comparison]:
    """Compares every prompt."""
    from transformers import AutoModelForCausalLM

    dtype = pick_dtype("auto")
    tokenizer = Tokenizer.from_file(str(model_path / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, dtype)).eval()
    exact = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    texts = [f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n" for prompt in PROMPTS]
    encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    with open_channel(target, None) as channel, ThreadPoolExecutor(_AT_ONCE) as pool:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        answers = list(pool.map(lambda ids: _worker_tokens(stub, ids, new_tokens), encoded))
    return [_compare_one(model, exact, *one) for one in zip(PROMPTS, encoded, answers, strict=True)]


def _worker_tokens(stub: worker_pb2_grpc.WorkerServiceStub, ids: list[int], new_tokens: int) -> list[int]:
    request = worker_pb2.WorkerServiceGenerateRequest(
        request_id=f"parity-{uuid.uuid4().hex}",
        prompt=inference_pb2.TokenIds(ids=ids),
        sampling=inference_pb2.SamplingParams(max_new_tokens=new_tokens),
    )
    return [token for message in stub.Generate(request, timeout=300.0) for token in message.response.token_ids]


@torch.no_grad()
def _compare_one(
    model: torch.nn.Module, exact: torch.nn.Module, prompt: str, ids: list[int], ours: list[int]
) -> Comparison:
    """Transformers' greedy choice at every position of the worker's own text, all of them in one pass."""
    at_all = model(torch.tensor([ids + ours[:-1]])).logits[0, len(ids) - 1 :].float()
    for position, (token, logits) in enumerate(zip(ours, at_all, strict=True)):
        best = int(logits.argmax())
        if best != token:
            candidates = logits.topk(_CANDIDATES).indices
            reference = exact(torch.tensor([ids + ours[:position]])).logits[0, -1]
            rounding = 2.0 * float((logits - reference)[candidates].abs().max())
            gap = float(logits[best] - logits[token])
            return Comparison(prompt, position + 1, False, gap <= rounding, gap, rounding)
    return Comparison(prompt, len(ours), True, False, 0.0, 0.0)


def main() -> int:
    """Prints one JSON document; 0 when every difference is a tie."""
    parser = argparse.ArgumentParser(prog="python -m sparsity_worker.parity", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--target", required=True, help="host:port of a dense worker")
    parser.add_argument("--new-tokens", type=int, default=32)
    options = parser.parse_args()
    found = compare(options.model, options.target, options.new_tokens)
    json.dump([asdict(comparison) for comparison in found], sys.stdout)
    return 0 if all(comparison.equal or comparison.tie for comparison in found) else 1


if __name__ == "__main__":
    sys.exit(main())
