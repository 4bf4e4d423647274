"""Learned profiles: the choice, the curves behind it, the targets, and the file."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsity_quality.calibration import choice
from sparsity_quality.calibration.calibrate import Calibration, Texts
from sparsity_quality.calibration.curves import BUDGETS, THRESHOLDS, measure_curves
from sparsity_quality.calibration.profiles import load, write
from sparsity_quality.calibration.target import Target
from sparsity_quality.calibration.texts import built_in, from_folder
from sparsity_quality.subjects.model import LocalModel
from sparsity_rpc.errors import ConfigurationError
from sparsity_worker.profiles.profile import Profile, load_profile

LENGTH = 512


def quiet(_: str) -> None:
    return


def text(seed: int, length: int = LENGTH) -> tuple[int, ...]:
    return tuple(torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


DIVERGENCES = {1: 0.1, 2: 0.1015, 4: 0.103}
TEXTS = Texts([text(1), text(2)], text(3, 256), [text(4)], [text(5), text(6)])


@pytest.fixture(scope="module")
def calibration(model: LocalModel, profile: Profile) -> Calibration:
    return Calibration(model, profile, TEXTS, quiet)


@settings(max_examples=60)
@given(st.data())
def test_no_choice_of_less_density_keeps_the_bound_when_curves_are_convex(data: st.DataObject) -> None:
    units, density = data.draw(st.integers(1, 3)), torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    # Falling steps that get smaller: each unit's loss is convex in its density.
    steps = [
        sorted(data.draw(st.lists(st.integers(1, 50), min_size=3, max_size=3)), reverse=True) for _ in range(units)
    ]
    loss = torch.tensor([[sum(each[at:]) for at in range(4)] for each in steps]).double()
    densities = density.expand(units, -1)
    bound = data.draw(st.integers(0, 150)) / units
    chosen = choice.least_density(densities, loss, bound)
    best = min(
        (
            choice.total(densities, torch.tensor(each))
            for each in product(range(4), repeat=units)
            if choice.total(loss, torch.tensor(each)) <= bound
        ),
        default=4.0,
    )
    assert choice.total(loss, chosen) <= max(bound, float(loss.amin(1).mean()))
    # What one price gives are the corners of the hull: at most one unit's step away from the best.
    assert choice.total(densities, chosen) <= best + 3.0 / units


def test_the_dearest_unit_is_kept() -> None:
    density = torch.tensor([[0.1, 0.9], [0.1, 0.9]]).double()
    loss = torch.tensor([[9.0, 0.0], [0.1, 0.0]]).double()
    assert choice.least_density(density, loss, 0.06).tolist() == [1, 0]
    assert choice.least_loss(density, loss, 0.5).tolist() == [1, 0]
    assert choice.least_loss(density, loss, 0.1).tolist() == [0, 0]
    assert choice.least_density(density, loss, 0.0).tolist() == [1, 1]


def test_curves_end_where_nothing_is_lost(model: LocalModel, profile: Profile) -> None:
    base = replace(profile, dense_layers=frozenset())
    curves = measure_curves(model, [text(1)], base, quiet)
    assert curves.density.shape == (2, 2, len(THRESHOLDS))
    assert curves.decode_error.shape == (2, len(BUDGETS))
    torch.testing.assert_close(curves.density[..., -1], torch.ones(2, 2).double())
    torch.testing.assert_close(curves.coverage[..., -1], torch.ones(2, 2).double(), atol=1e-5, rtol=0)
    assert float(curves.error[..., -1].max()) < 1e-9
    assert (curves.density.diff(dim=-1) >= 0).all()
    assert (curves.coverage.diff(dim=-1) >= -1e-6).all()
    assert float(curves.error[..., 0].min()) > 1e-6
    # 512 tokens fit the larger budgets whole.
    assert float(curves.decode_error[:, 1:].max()) < 1e-9
    assert float(curves.decode_error[:, 0].min()) > 1e-9


def test_an_error_is_what_the_residual_stream_feels(model: LocalModel, profile: Profile) -> None:
    """Against the hidden states themselves: the first layer's stream with and without sparsity."""
    tokens = text(1)
    base = replace(profile, dense_layers=frozenset({1}), prefill=replace(profile.prefill, sparse_from=0, threshold=0.0))
    curves = measure_curves(model, [tokens], replace(base, dense_layers=frozenset()), quiet)
    seen: dict[str, torch.Tensor] = {}
    layer = model.model.base_model.layers[0]
    handles = [
        layer.register_forward_pre_hook(lambda _, args: seen.update(stream=args[0])),
        layer.self_attn.register_forward_hook(lambda _, args, out: seen.update(out=out[0])),
    ]
    outs = []
    for attention in (replace(base, dense_layers=frozenset({0, 1})), base):
        model.hidden(tokens, attention)
        outs.append(seen["out"].double())
    for handle in handles:
        handle.remove()
    wanted = (outs[1] - outs[0]).square().sum(-1).mean() / seen["stream"].double().square().sum(-1).mean()
    # Heads err independently enough for their sum to be near the whole.
    assert float(curves.error[0, :, 0].sum()) == pytest.approx(float(wanted), rel=0.5)


@pytest.mark.parametrize("words", ["density=0.5", "coverage=0.9", "divergence=0.001", "perplexity=1.0005"])
def test_a_target_is_reached(words: str, calibration: Calibration) -> None:
    target = Target.parse(words)
    found = calibration.reach(target)
    learned = found.report["learned"]
    if target.name == "coverage":
        assert learned["coverage"] >= target.value - 0.02
    elif target.name == "density":
        assert learned["density"] <= target.value + 0.03
    else:
        checked = calibration._judge(found.attention, TEXTS.checked)
        assert checked[target.name] <= target.value + 1e-6
    # Its first layers are dense, so that one threshold may not get as low.
    assert found.report["one_threshold"]["density"] >= found.report["held_out"]["density"] - 0.08
    assert found.report["target"] == words


def test_held_out_text_teaches_nothing(model: LocalModel, profile: Profile, calibration: Calibration) -> None:
    other = Calibration(model, profile, replace(TEXTS, held_out=[text(9)]), quiet)
    target = Target.parse("density=0.5")
    assert other.reach(target).attention == calibration.reach(target).attention


def test_the_most_blocks_behind_a_mean_that_cost_nothing_are_taken(
    model: LocalModel, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Calibration(model, profile, TEXTS, quiet, [4, 1, 2])
    given = replace(profile, dense_layers=frozenset())
    monkeypatch.setattr(other, "_judge", lambda one, texts: {"divergence": DIVERGENCES[one.prefill.mean_blocks]})
    chosen, report = other._coarsened(given)
    assert chosen == replace(given, prefill=replace(given.prefill, mean_blocks=2))
    assert report == {"divergence_by_mean_blocks": DIVERGENCES}
    monkeypatch.undo()
    _, report = other._coarsened(given)
    assert len(set(report["divergence_by_mean_blocks"].values())) == 3
    assert Calibration(model, profile, TEXTS, quiet)._coarsened(given) == (given, {})


def test_means_are_chosen_only_where_they_correct(model: LocalModel, profile: Profile) -> None:
    other = replace(profile, prefill=replace(profile.prefill, mean_correction=False))
    with pytest.raises(ConfigurationError, match="--mean-blocks: the base profile corrects no means"):
        Calibration(model, other, TEXTS, quiet, [1, 2])


def test_the_file_is_a_profile_with_its_provenance(
    model: LocalModel, profile: Profile, calibration: Calibration, tmp_path: Path
) -> None:
    found = calibration.reach(Target.parse("density=0.5"))
    written = write(tmp_path / "learned.yaml", "learned", profile, found, model, LENGTH)
    assert load_profile(str(tmp_path / "learned.yaml")) == written
    assert (written.layers, written.dense_layers) == (found.attention.layers, found.attention.dense_layers)
    assert written.label == "learned@1"
    assert write(tmp_path / "again.yaml", profile.name, profile, found, model, LENGTH).version == 2
    document = yaml.safe_load((tmp_path / "learned.yaml").read_text())
    assert document["provenance"]["base"] == "tiny-aggressive@1"
    assert {"model", "date", "length", "text", "versions", "target", "held_out"} <= document["provenance"].keys()
    assert str(tmp_path) not in (tmp_path / "learned.yaml").read_text()


def test_the_built_in_texts_are_of_both_splits() -> None:
    texts = built_in(lambda words: list(words.encode()), 4096)
    everything = [*texts.learned, texts.weighed, *texts.checked, *texts.held_out]
    assert all(len(each) == 4096 for each in (*texts.learned, *texts.checked, *texts.held_out))
    assert len(set(everything)) == len(everything)


def test_a_teams_own_texts_are_split(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(chr(97 + number) * 600)
    (tmp_path / "short.txt").write_text("short")
    texts = from_folder(tmp_path, lambda words: list(words.encode()), 512)
    assert [chr(each[0]) for each in texts.learned] == ["a", "d"]
    assert [chr(each[0]) for each in (*texts.checked, *texts.held_out)] == ["b", "c"]


def test_too_few_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has 0 \.txt files of 512 tokens or more, and 3 are needed"):
        from_folder(tmp_path, list, 512)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("speed=2", "--target: must be one of coverage, perplexity, divergence, density"),
        ("coverage", "--target: coverage is the share of softmax mass to keep"),
        ("coverage=2", r"must lie in \[0.5, 1.0\], not '2'"),
        ("density=much", "--target: density is attended over causal pairs"),
    ],
)
def test_a_target_that_makes_no_sense_is_named(words: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Target.parse(words)


def test_a_rule_without_shares_is_refused(model: LocalModel, profile: Profile) -> None:
    other = replace(profile, prefill=replace(profile.prefill, rule="top_k"))
    with pytest.raises(ConfigurationError, match="--base: thresholds of rule top_p are learned, not of top_k"):
        Calibration(model, other, TEXTS, quiet)


def test_two_profiles_of_a_name_are_refused(profile_file: Path) -> None:
    with pytest.raises(ConfigurationError, match="two profiles are called tiny-aggressive"):
        load([str(profile_file), str(profile_file)])
