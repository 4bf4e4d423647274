"""A model read once, questions after it, and settings of equal density."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sparse_kernels.huggingface.adapter import use_sparsity
from sparse_kernels.huggingface.needs import Needs, knob_for
from sparse_kernels.huggingface.paged_cache import PagedCache
from sparse_kernels.schedule import SparseAttention
from sparsity_quality.subjects.contenders import Contender, contender, rivals
from sparsity_quality.subjects.lineup import settled
from sparsity_quality.subjects.model import DENSE, LocalModel
from sparsity_quality.subjects.reading import follow
from sparsity_rpc.errors import ConfigurationError
from sparsity_worker.profiles.profile import Profile
from support.kernels.paging import rms_ratio
from support.tiny import tiny_weights
from transformers import AutoModelForCausalLM

TEXT = tuple((number * number) % 251 for number in range(1024))


def test_dense_hidden_states_are_those_of_transformers(model: LocalModel, folder: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    with torch.inference_mode():
        wanted = plain.model(torch.tensor([TEXT])).last_hidden_state[0]
    found, read = model.hidden(TEXT, DENSE)
    assert rms_ratio(found, wanted) < 1e-5
    assert (read.density, read.coverage) == (1.0, 1.0)


def test_a_question_after_a_context_is_answered_as_after_the_whole_prompt(model: LocalModel, folder: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    conversation = model.open(TEXT[:700], DENSE)
    for prompt in ("what?", "and then, at length?", "what?"):
        ids = torch.tensor([[*TEXT[:700], *model.encode(prompt)]])
        written = plain.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=256)[0, ids.shape[1] :].tolist()
        wanted = model.tokenizer.decode(written)
        assert conversation.ask(prompt, 12, "never") == wanted


def test_reading_in_two_parts_equals_reading_at_once_when_tiles_meet(model: LocalModel, profile: Profile) -> None:
    whole, _ = model.hidden(TEXT[:960], profile)
    cache = model.cache(profile)
    context = replace(profile, prefill=replace(profile.prefill, dense_last_tiles=0))
    use_sparsity(model.model, context, cache)
    with torch.inference_mode():
        model.model.base_model(torch.tensor([TEXT[:928]]), past_key_values=cache)
        use_sparsity(model.model, profile, cache)
        last = model.model.base_model(torch.tensor([TEXT[928:960]]), past_key_values=cache).last_hidden_state[0]
    assert rms_ratio(last, whole[928:]) < 1e-5


def test_a_truncated_cache_forgets(model: LocalModel, profile: Profile) -> None:
    conversation = model.open(TEXT, profile)
    first = conversation.ask("one question", 8, "never")
    conversation.ask("something else, much longer than the first", 20, "never")
    assert conversation.ask("one question", 8, "never") == first


def test_a_paged_cache_takes_one_sequence_and_no_more_than_its_room() -> None:
    cache = PagedCache(1, 32, page=16, sub_page=4)
    with pytest.raises(ValueError, match="one sequence at a time, not 2"):
        cache.update(torch.zeros(2, 1, 4, 8), torch.zeros(2, 1, 4, 8), 0)
    with pytest.raises(ValueError, match="capacity: 32 tokens are too few for 33"):
        cache.update(torch.zeros(1, 1, 33, 8), torch.zeros(1, 1, 33, 8), 0)


def test_dense_beside_itself_loses_nothing(model: LocalModel) -> None:
    hidden, _ = model.hidden(TEXT, DENSE)
    found = follow(model, TEXT, hidden, hidden)
    assert found.divergence == pytest.approx(0.0, abs=1e-6)
    assert found.agreement == 1.0
    with torch.inference_mode():
        logits = model.model.get_output_embeddings()(hidden)[511:-1]
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(TEXT[512:]))
    assert found.loss == pytest.approx(float(wanted), rel=1e-5)


def test_divergence_is_that_of_the_distributions(model: LocalModel, profile: Profile) -> None:
    dense, _ = model.hidden(TEXT, DENSE)
    hidden, _ = model.hidden(TEXT, profile)
    with torch.inference_mode():
        own, other = (model.model.get_output_embeddings()(one)[511:-1].log_softmax(-1) for one in (hidden, dense))
    wanted = torch.nn.functional.kl_div(own, other, log_target=True, reduction="batchmean")
    assert follow(model, TEXT, hidden, dense).divergence == pytest.approx(float(wanted), rel=1e-3)


def test_predicted_density_is_the_counted_one(model: LocalModel, profile: Profile) -> None:
    needs = Needs(model.model, TEXT, [profile.prefill], 16, 4)
    # Layer 0 is dense, so that layer 1 sees what it would see were all layers dense.
    predicted = (1 + needs.density(profile.prefill, profile.prefill, [1])) / 2
    _, read = model.hidden(TEXT, profile)
    assert predicted == pytest.approx(read.density, rel=1e-6)


def test_rivals_are_set_to_the_density_of_a_profile(model: LocalModel, profile: Profile) -> None:
    _, read = model.hidden(TEXT, profile)
    chosen = rivals(profile)
    needs = Needs(model.model, TEXT, [rival.base for rival in chosen], 16, 4)
    wanted = 2 * read.density - 1
    for rival in chosen:
        knob = knob_for(rival, needs, wanted, [1])
        config = rival.turned(rival.base, knob, len(TEXT))
        assert needs.density(rival.base, config, [1]) == pytest.approx(wanted, abs=0.03), rival.name
        assert contender(rival, knob, len(TEXT), profile, "x").attention.decode == profile.decode


def test_what_begins_later_is_dense(profile: Profile) -> None:
    subject = Contender("x", "profile", profile)
    assert settled(subject, 599).digest == Contender("dense", "dense", DENSE).digest
    assert settled(subject, 600).digest == subject.digest


def test_digests_tell_attentions_apart(profile: Profile) -> None:
    other = replace(profile, prefill=replace(profile.prefill, threshold=0.41))
    assert Contender("x", "profile", profile).digest != Contender("x", "profile", other).digest
    assert Contender("x", "profile", profile).digest == Contender("y", "profile", profile).digest


def test_qwen_models_work_alike(tmp_path: Path) -> None:
    model = LocalModel(tiny_weights(tmp_path / "qwen", "qwen2"), 1024)
    _, read = model.hidden(TEXT, SparseAttention(dense_layers=frozenset(), block_size=16, sub_block=4))
    assert read.density == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder, tmp: LocalModel(tmp, 512), "has no tokenizer.json; give the folder of a Hugging Face model"),
        (lambda folder, tmp: LocalModel(folder, 4096), "--lengths: 4096 is more than the model's 2048 positions"),
        (lambda folder, tmp: LocalModel(folder, 512, "cuda"), "--device: cuda:"),
    ],
)
def test_what_cannot_be_loaded_is_refused(make, message: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(folder, tmp_path)


def test_a_model_without_grouped_queries_is_refused(tmp_path: Path) -> None:
    from support.tiny import tiny_model
    from transformers import GPT2Config, GPT2LMHeadModel

    tiny_model(tmp_path)
    GPT2LMHeadModel(GPT2Config(vocab_size=257, n_layer=1, n_head=2, n_embd=32)).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="has no attention layers with keys of their own"):
        LocalModel(tmp_path, 512)
