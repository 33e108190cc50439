"""The gate's decisions on simulated features whose truth is known, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gan.config import ConfigError
from pipeline.checks import excess_p_value, memorization_check
from pipeline.evidence import Evidence, Reference, judge, measure
from pipeline.gate import GateRules, compare, qualify, spent_alpha
from pipeline.measures import memorization

DIM, COUNT, CLASSES = 6, 900, 3
RULES = GateRules()
KNOWN: dict[tuple, Evidence] = {}  # evidence is frozen, and takes a second to make


def draw(seed: int, *, scale: float = 1.0, shift: float = 0.0, count: int = COUNT):
    """Features in three classes four apart, each standard normal; image i is of class i mod 3."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centres = 4.0 * torch.eye(CLASSES, DIM)[labels]
    x = torch.randn(count, DIM, generator=rng)
    return (centres + scale * x + shift).float(), labels


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.of(*draw(0))


def generator(reference: Reference, seed: int = 1, *, shift: float = 0.0) -> Evidence:
    key = (id(reference), seed, shift)
    if key not in KNOWN:
        KNOWN[key] = judge(*draw(seed, shift=shift), reference)
    return KNOWN[key]


def failed(comparison) -> set[str]:
    return {c.name for c in comparison.checks if c.passed is False}


def test_a_clearly_better_challenger_is_promoted_and_the_worse_one_rejected(reference):
    worse, better = generator(reference, shift=0.6), generator(reference, shift=0.1)
    up = compare(worse, better, reference, rules=RULES, paired=True)
    assert up.outcome == "promoted"
    assert {c.name for c in up.checks} == {
        "frechet", "kid", "coverage", "memorization", "classes",
    }  # fmt: skip
    assert all(c.passed for c in up.checks)
    down = compare(better, worse, reference, rules=RULES, paired=True)
    assert down.outcome == "rejected"
    assert {"frechet", "kid"} <= failed(down)
    assert down.checks[0].value == pytest.approx(-up.checks[0].value)
    # |m|^2 falls from 6 * 0.36 to 6 * 0.01.
    advantage = up.checks[0]
    assert abs(advantage.value - DIM * (0.36 - 0.01)) < 4 * advantage.standard_error


def test_a_generator_against_itself_is_not_promoted(reference):
    """With common latents nothing differs at all; with fresh ones the images do not tell."""
    same = generator(reference, shift=0.3)
    alike = compare(same, same, reference, rules=RULES, paired=True)
    assert alike.outcome == "rejected"  # not even the resolution is possible
    assert alike.checks[0].value == 0
    fresh = compare(
        same, generator(reference, seed=2, shift=0.3), reference, rules=RULES, paired=False
    )
    assert fresh.outcome != "promoted"


def test_what_the_images_do_not_tell_is_unresolved_and_says_how_many_would(reference):
    champion, challenger = (
        generator(reference, seed, shift=shift) for seed, shift in ((1, 0.30), (2, 0.28))
    )
    found = compare(champion, challenger, reference, rules=RULES, paired=False)
    assert found.outcome == "unresolved"
    assert found.images_needed > 2 * COUNT
    easier = dataclasses.replace(RULES, resolution=0.9, coverage_margin=0.2)
    found = compare(champion, challenger, reference, rules=easier, paired=False)
    assert found.images_needed <= COUNT


def test_the_number_of_images_needed_does_not_depend_on_who_leads(reference):
    champion = generator(reference, 1, shift=0.3)
    ahead, behind = (generator(reference, 2, shift=0.3 + step) for step in (-0.02, 0.02))
    needed = [
        compare(champion, other, reference, rules=RULES, paired=False).images_needed
        for other in (ahead, behind)
    ]
    assert needed[0] == pytest.approx(needed[1], rel=0.15)  # errors grow a little with distance


def test_one_class_that_is_lost_is_seen_though_the_whole_is_nearer(reference):
    """The champion shifts classes 1 and 2; the challenger forges class 0 half as class 1."""
    x, labels = draw(1)
    shifted, x = x + 0.8 * (labels != 0)[:, None], x.clone()
    champion = judge(shifted, labels, reference)
    x[labels == 0] += 4.0 * (torch.eye(DIM)[1] - torch.eye(DIM)[0]) * 0.35
    found = compare(champion, judge(x, labels, reference), reference, rules=RULES, paired=True)
    assert "classes" in failed(found)
    assert found.checks[0].passed
    assert "0 fares worst" in found.checks[-1].sentence
    assert found.outcome == "rejected"


def test_a_class_that_an_unlabelled_generator_drops_is_seen_by_its_coverage(reference):
    x, labels = draw(1)
    dropped = x[labels != 0].repeat(2, 1)[:COUNT] + 0.05 * draw(3)[0]
    champion, challenger = judge(x, None, reference), judge(dropped, None, reference)
    found = compare(champion, challenger, reference, rules=RULES, paired=False)
    assert {"classes", "coverage"} <= failed(found)
    assert "0 fares worst" in found.checks[-1].sentence


def test_a_challenger_that_copies_training_images_is_rejected_however_near_it_is(reference):
    champion = generator(reference, shift=0.6)
    copies = judge(draw(0)[0] + 0.01 * draw(4)[0], draw(0)[1], reference)
    found = compare(champion, copies, reference, rules=RULES, paired=False)
    assert found.checks[0].passed
    assert failed(found) == {"memorization"}
    assert found.outcome == "rejected"
    assert failed(qualify(copies, reference, rules=RULES)) == {"memorization"}


def test_with_training_features_apart_the_held_out_reals_are_the_calibration():
    training = draw(5)[0]
    held_out = Reference.of(*draw(0), training=training)
    assert len(held_out.training.calibration) == COUNT
    honest, copying = draw(6)[0], training + 0.01
    assert measure(honest, None, held_out).memorization.p_value > 0.01
    assert measure(copying, None, held_out).memorization.p_value < 1e-9


def test_copies_of_images_that_are_none_are_beta_binomial():
    """p-values of exchangeable ratios are uniform where they can be: at most their level."""
    p_values = []
    for seed in range(400):
        ratios = torch.rand(700, generator=torch.Generator().manual_seed(seed))
        p_values.append(memorization(ratios[:400], ratios[400:]).p_value)
    small = sum(p < 0.05 for p in p_values) / 400
    assert small <= 0.05 + 4 * (0.05 * 0.95 / 400) ** 0.5
    assert sum(p < 0.3 for p in p_values) / 400 > 0.1


def test_ties_at_zero_count_on_both_sides():
    """3 % of the calibration images are exact copies of others: so may 3 % of the fakes be."""
    calibration = torch.cat([torch.zeros(30), torch.linspace(0.5, 1, 970)])
    found = memorization(torch.cat([torch.zeros(30), torch.ones(970)]), calibration)
    assert (found.rank, found.num_copies, found.threshold) == (30, 30, 0.0)
    assert found.p_value > 0.4


@settings(deadline=None, max_examples=20)
@given(copies=st.integers(0, 60), rank=st.integers(1, 30))
def test_without_tolerance_the_excess_is_exactly_beta_binomial(copies, rank):
    calibration = torch.linspace(0.1, 1, 1000)
    found = dataclasses.replace(
        memorization(torch.ones(500), calibration), num_copies=copies, rank=rank
    )
    expected = stats.betabinom.sf(copies - 1, 500, rank, 1001 - rank)
    assert excess_p_value(found, tolerance=1) == pytest.approx(expected, abs=2e-3)
    assert excess_p_value(found, tolerance=2) >= excess_p_value(found, tolerance=1)


def test_memory_that_grows_beyond_the_champions_is_caught_within_the_tolerance():
    calibration = torch.linspace(0.1, 1, 5000)

    def rate(share):
        ratios = torch.ones(5000)
        ratios[: int(5000 * share)] = 0
        return memorization(ratios, calibration)

    def passes(found, beside=None):
        return memorization_check(found, alpha=0.05, tolerance=2.0, beside=beside).passed

    assert passes(rate(0.017))
    assert passes(rate(0.017), beside=rate(0.017))
    assert not passes(rate(0.017), beside=rate(0.01))
    assert not passes(rate(0.05), beside=rate(0.05))
    assert passes(rate(0.009), beside=rate(0.001))


def test_a_first_champion_may_be_mediocre_but_not_collapsed_or_noise(reference):
    assert qualify(generator(reference, shift=0.5), reference, rules=RULES).outcome == "promoted"
    collapsed = judge(draw(1, count=3)[0][:1] + 0.1 * draw(2)[0], None, reference)
    found = qualify(collapsed, reference, rules=RULES)
    assert found.outcome == "rejected"
    assert {"frechet", "diversity"} <= failed(found)
    noise = judge(20 + 0.3 * torch.randn(COUNT, DIM), None, reference)
    assert {"frechet", "coverage"} <= failed(qualify(noise, reference, rules=RULES))
    wide = judge(8 * torch.randn(COUNT, DIM), None, reference)
    assert "frechet" in failed(qualify(wide, reference, rules=RULES))


def test_a_smaller_level_asks_for_more_of_the_frechet_distance_and_no_less_of_the_rest(reference):
    champion, challenger = generator(reference, shift=0.30), generator(reference, 2, shift=0.2)
    first, tenth = (
        compare(champion, challenger, reference, rules=RULES, paired=False, alpha=alpha)
        for alpha in (spent_alpha(0.05, 1), spent_alpha(0.05, 10))
    )
    assert tenth.checks[0].low < first.checks[0].low
    assert tenth.checks[1:] == first.checks[1:]


def test_what_all_attempts_spend_adds_up_to_the_level():
    total = sum(spent_alpha(0.05, attempt) for attempt in range(1, 100_000))
    assert total == pytest.approx(0.05, rel=1e-4)
    assert total < 0.05
    with pytest.raises(ConfigError, match="attempt must be >= 1, got 0"):
        spent_alpha(0.05, 0)


def test_images_far_out_leave_a_lead_unresolved_until_there_are_enough():
    """Radial tails: few images carry the covariance, and the check's level is not kept."""
    rng = torch.Generator().manual_seed(0)

    def radial(count, shift=0.0):
        x = torch.randn(count, DIM, generator=rng)
        chi_squared = torch.randn(count, 5, generator=rng).square().sum(1, keepdim=True)
        return x * (5 / chi_squared).sqrt() + shift

    reference = Reference.of(radial(2000))
    least = reference.frechet.images_for_tails
    assert least > 5 * DIM
    rules = dataclasses.replace(RULES, coverage_margin=0.5)
    for count, outcome in ((45, "unresolved"), (2 * least, "promoted")):
        worse, better = (judge(radial(count, shift), None, reference) for shift in (9.0, 0.0))
        found = compare(worse, better, reference, rules=rules, paired=False)
        assert found.outcome == outcome, found.reason
        assert found.images_needed >= least
    assert generator_of_normals_needs_five_a_feature()


def generator_of_normals_needs_five_a_feature() -> bool:
    x = torch.randn(4000, DIM, generator=torch.Generator().manual_seed(1))
    return Reference.of(x).frechet.images_for_tails <= 5 * DIM * 1.15


def test_measures_and_decisions_are_plain_numbers(reference):
    champion, challenger = generator(reference, shift=0.6), generator(reference, shift=0.1)
    found = compare(champion, challenger, reference, rules=RULES, paired=True)
    for record in (found, champion.measures, RULES):
        text = json.dumps(dataclasses.asdict(record), allow_nan=False)
        assert json.loads(text)


def test_every_measure_has_an_interval_around_it(reference):
    measures = generator(reference, shift=0.2).measures
    for name in ("fd", "fd_plug_in", "kid", "precision", "recall", "density", "coverage"):
        found = getattr(measures, name)
        assert found.low <= found.value <= found.high
        assert found.standard_error > 0
    assert measures.fd
    assert abs(measures.fd.value - DIM * 0.04) < 4 * measures.fd.standard_error
    assert measures.fd.value < measures.fd_plug_in.value  # the plug-in is biased upwards
    assert [row.label for row in measures.classes] == [0, 1, 2]
    assert all(row.num_images == COUNT // 3 for row in measures.classes)
    for row in measures.classes:
        assert row.fd
        assert row.kid
        assert abs(row.fd.value - DIM * 0.04) < 4 * row.fd.standard_error
        assert row.kid.value > 0
    unlabelled = measure(draw(1)[0], None, reference)
    assert all(row.kid is None and row.fd is None for row in unlabelled.classes)


def test_features_that_are_no_numbers_are_refused(reference):
    x, labels = draw(1)
    x[7, 2] = math.nan
    with pytest.raises(ConfigError, match="must be finite, got NaN or infinity in 1 of 900"):
        judge(x, labels, reference)
    with pytest.raises(ConfigError, match="real images must be finite"):
        Reference.of(x, labels)


def test_too_few_images_and_groups_are_refused(reference):
    wide = torch.randn(100, 21, generator=torch.Generator().manual_seed(0))
    enough, short = Reference.of(torch.cat([wide, wide + 0.1])), wide
    evidence = judge(short, None, enough)
    assert evidence.measures.fd is None
    with pytest.raises(ConfigError, match=r"5 generated images for each of the 21 features, 105"):
        qualify(evidence, enough, rules=RULES)
    with pytest.raises(ConfigError, match="20 groups need at least 40 generated images, got 39"):
        judge(draw(1, count=39)[0], None, reference)
    with pytest.raises(ConfigError, match="groups of the jackknife must be >= 5, got 4"):
        Reference.of(*draw(1), num_groups=4)
    with pytest.raises(ConfigError, match="must be the 10 of the rules throughout"):
        qualify(generator(reference), reference, rules=dataclasses.replace(RULES, groups=10))
    with pytest.raises(ConfigError, match="must have 6 features each, got 7"):
        judge(torch.randn(100, 7), None, reference)
    with pytest.raises(ConfigError, match="labels must be one for each of the 900"):
        judge(draw(1)[0], torch.zeros(3), reference)


def test_rules_out_of_range_are_refused_all_at_once():
    with pytest.raises(ConfigError) as error:
        GateRules(alpha=0.7, groups=3, kid_margin=-1, memorization_tolerance=0.5, min_coverage=1)
    assert len(error.value.mistakes) == 5
    assert "alpha must be in (0, 0.5), got 0.7" in str(error.value)
