"""The game's promises: one trajectory whatever the cluster, and resuming that loses nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gan.config import (
    ConditioningConfig,
    DiscriminatorConfig,
    EmaConfig,
    GeneratorConfig,
    ObjectiveConfig,
    Schedule,
    Steps,
    TurnsConfig,
)
from gan.loop import training
from gan.objectives import OBJECTIVES
from tests.conftest import small_game
from tests.gan.play import (
    TOLERANCE,
    equal,
    exchanged_and_own,
    gradients_of_one_round,
    largest_difference,
    new_game,
    play_on,
    play_rounds,
    state_after,
    stream,
    ticks_and_state,
)
from tests.ranks import run_ranks


def test_the_same_seed_gives_bit_identical_games():
    assert equal(state_after(10, {}), state_after(10, {}))


def test_another_seed_gives_another_game():
    a, b = play_rounds(new_game(small_game(), 0), 2), play_rounds(new_game(small_game(), 1), 2)
    assert not torch.equal(a.state_dict()["G/to_4x4.weight"], b.state_dict()["G/to_4x4.weight"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": ObjectiveConfig(name="nonsaturating", penalty_interval=3)},
        {"turns": TurnsConfig(batch_size=8, d_steps=2, total_kimg=1)},
        {"conditioning": ConditioningConfig(name="projection")},
        {
            "generator": GeneratorConfig(
                width=8, latent_dim=4, norm="batch", lr=Schedule(start=1e-3, end=0.1)
            )
        },
    ],
    ids=["default", "lazy penalty", "two D turns", "conditional", "buffers and a schedule"],
)
def test_a_game_stopped_at_any_tick_and_resumed_is_bit_identical_to_the_undisturbed_one(changes):
    config = small_game(**changes)
    whole = new_game(config)
    states = {0: {n: v.clone() for n, v in whole.state_dict().items()}}
    ticks = []
    for tick in training(whole, stream(config, whole.world), until_nimg=96, tick_nimg=16):
        states[tick.nimg] = {n: v.clone() for n, v in whole.state_dict().items()}
        ticks.append((tick.nimg, tick.scalars["d/loss"], tick.scalars["g/loss"]))

    for nimg, state in states.items():
        resumed = new_game(config)
        resumed.load_state_dict(state)
        batches = stream(config, resumed.world, resumed.num_batches)
        again = [
            (tick.nimg, tick.scalars["d/loss"], tick.scalars["g/loss"])
            for tick in training(resumed, batches, until_nimg=96, tick_nimg=16)
        ]
        assert again == [tick for tick in ticks if tick[0] > nimg]
        assert equal(resumed.state_dict(), whole.state_dict())


LAZY = {  # two D turns a round, a penalty in every third: some rounds report no r1
    "objective": ObjectiveConfig(name="nonsaturating", penalty_interval=3),
    "turns": TurnsConfig(batch_size=8, d_steps=2, total_kimg=1),
}


@pytest.fixture(scope="module")
def undisturbed():
    """Ticks of 40 images, that is after 3 rounds of 16, then 2, 3, ...; to 176 images."""
    return ticks_and_state(LAZY, 176, 40, ())


@settings(max_examples=25, deadline=None)
@given(stops=st.lists(st.integers(0, 175), max_size=4).map(sorted))
def test_a_game_stopped_between_any_rounds_ticks_as_the_undisturbed_one_to_the_bit(
    undisturbed, stops
):
    ticks, state = ticks_and_state(LAZY, 176, 40, tuple(stops))
    assert [nimg for nimg, _ in ticks] == [48, 80, 128, 160, 176]
    assert ticks == undisturbed[0]
    assert equal(state, undisturbed[1])


def test_a_game_stopped_within_a_tick_keeps_what_it_has_to_report_and_one_at_a_tick_nothing():
    game = new_game(small_game(**LAZY))
    assert play_on(game, until_nimg=176, tick_nimg=40, pause=lambda g: g.nimg >= 32) == []
    kept = {name for name in game.state_dict() if name.startswith("means/")}
    assert kept >= {"means/0/d/loss", "means/0/g/loss", "means/0/d/grad_norm"}
    assert game.state_dict()["means/0/d/loss"][1] == 32
    play_on(game, until_nimg=176, tick_nimg=40, pause=lambda g: g.nimg >= 48)
    assert not [name for name in game.state_dict() if name.startswith("means/")]


def test_a_state_saved_before_there_were_means_in_it_is_continued():
    old = {n: v for n, v in play_rounds(new_game(small_game()), 3).state_dict().items()
           if not n.startswith("means/")}  # fmt: skip
    game = new_game(small_game())
    game.load_state_dict(old)
    assert [nimg for nimg, _ in play_on(game, until_nimg=40, tick_nimg=40)] == [40]


@pytest.mark.parametrize("name", ["means/1/d/loss", "means/0/else", "means/first/d/loss"])
def test_means_that_do_not_fit_each_other_are_refused(name):
    state = ticks_and_state(LAZY, 32, 40, ())[1] | {name: torch.zeros(3)}
    with pytest.raises(ValueError, match="mean"):
        new_game(small_game(**LAZY)).load_state_dict(state)


@pytest.mark.slow
def test_two_workers_stopped_within_a_tick_lose_nothing_and_one_or_three_go_on_for_them():
    whole = run_ranks(ticks_and_state, 2, LAZY, 176, 40, ())
    stopped = run_ranks(ticks_and_state, 2, LAZY, 176, 40, (16, 64, 80, 112))
    for rank in (0, 1):
        assert whole[rank][0] == whole[0][0] == stopped[rank][0]
        assert equal(whole[0][1], stopped[rank][1])

    _, half = run_ranks(stopped_within_a_tick, 2)[1]  # its own means are in it, and rank 0's too
    assert {name.split("/")[1] for name in half if name.startswith("means/")} == {"0", "1"}
    for ticks, state in [
        ticks_and_state(LAZY, 176, 40, (), half),
        *run_ranks(ticks_and_state, 3, LAZY, 176, 40, (64,), half),
    ]:
        assert [nimg for nimg, _ in ticks] == [80, 128, 160, 176]
        for (_, ours), (_, theirs) in zip(ticks, whole[0][0][1:], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
        assert largest_difference(state, whole[0][1]) < TOLERANCE["float32"]


def stopped_within_a_tick():
    game = new_game(small_game(**LAZY))
    ticks = play_on(game, until_nimg=176, tick_nimg=40, pause=lambda g: g.nimg >= 64)
    return ticks, {name: value.clone() for name, value in game.state_dict().items()}


def test_the_host_scales_both_players_learning_rates():
    whole, half = new_game(small_game()), new_game(small_game())
    half.lr_factor = 0.5
    slow = small_game(
        generator=GeneratorConfig(width=8, latent_dim=4, lr=5e-4),
        discriminator=DiscriminatorConfig(width=8, lr=5e-4),
    )
    play_rounds(whole, 2)
    expected, scaled = play_rounds(new_game(slow), 2), play_rounds(half, 2)
    assert equal(scaled.state_dict(), expected.state_dict())
    assert not equal(scaled.state_dict(), whole.state_dict())


def test_a_gradients_norm_is_of_the_mean_gradient_over_all_parameters():
    """Micro-batches, however many, add up to the same gradient; one turn's tick tells its norm."""
    for micro_batch in (None, 3):
        turns = TurnsConfig(batch_size=8, micro_batch=micro_batch, precision="float64")
        game = play_rounds(new_game(small_game(turns=turns)), 1)
        own = torch.cat([p.grad.flatten() for p in game.D.parameters() if p.grad is not None])
        assert game.means.take(game.world)["d/grad_norm"] == pytest.approx(float(own.norm()))


@pytest.mark.parametrize("name", ["G/", "D/", "G_ema/", "D_optimizer/", "means/0/d/loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_of_the_state_that_is_not_finite_is_seen(name, value):
    state = play_rounds(new_game(small_game()), 1).state_dict()
    game = new_game(small_game())
    game.load_state_dict(state)
    assert game.is_finite()
    place = next(n for n in state if n.startswith(name) and not n.endswith("/step"))
    broken = state[place].clone()
    broken[(0,) * broken.ndim] = value
    game.load_state_dict(state | {place: broken})
    assert not game.is_finite()


def test_large_numbers_are_finite():
    game = play_rounds(new_game(small_game()), 1)
    with torch.no_grad():
        next(game.D.parameters()).fill_(3e38)
    assert game.is_finite()


@pytest.mark.slow
def test_a_number_that_one_worker_alone_has_lost_is_seen_by_all():
    assert run_ranks(finite_where_rank_1_is_not, 2) == [False, False]


def finite_where_rank_1_is_not() -> bool:
    game = play_rounds(new_game(small_game()), 1)
    if not game.world.is_first:
        game.means.add({"d/loss": torch.tensor(math.nan)}, count=1)
    return game.is_finite()


def test_a_state_that_does_not_fit_is_refused():
    state = play_rounds(new_game(small_game()), 1).state_dict()
    del state["G_optimizer/to_image.weight/exp_avg"]
    with pytest.raises(ValueError, match=r"missing.*to_image"):
        new_game(small_game()).load_state_dict(state)
    wider = new_game(small_game(generator=GeneratorConfig(width=16, latent_dim=4)))
    state = new_game(small_game()).state_dict()
    with pytest.raises(ValueError, match="does not fit"):
        wider.load_state_dict(state)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_one_two_and_three_workers_agree_to_rounding_over_200_turns_with_r1_and_r2(precision):
    changes = {"turns": TurnsConfig(batch_size=8, total_kimg=1, precision=precision)}
    alone = state_after(100, changes)
    for world_size in (2, 3):  # 3 does not divide 8: the shares are uneven
        for state in run_ranks(state_after, world_size, 100, changes):
            assert largest_difference(state, alone) < TOLERANCE[precision]
    other = play_rounds(new_game(small_game(**changes), seed=1), 100).state_dict()
    assert largest_difference(other, alone) > 1  # another game altogether


@pytest.mark.slow
def test_ranks_end_with_bit_identical_weights():
    first, second = run_ranks(state_after, 2, 20, {})
    assert equal(first, second)


EACH_OBJECTIVE = [
    {
        "objective": ObjectiveConfig(name=name),
        "turns": TurnsConfig(batch_size=8, total_kimg=1, precision="float64"),
    }
    for name in OBJECTIVES
]


@pytest.mark.slow
def test_gradients_through_ddp_are_the_mean_of_the_ranks_own_and_those_of_one_worker():
    """With R1 and R2. An objective of means over the batch has no gradients of ranks of their own:
    there the batch's, as one worker has them, are all that there is to equal.
    """
    ranks = run_ranks(exchanged_and_own, 2, EACH_OBJECTIVE)
    for name, changes, first, second in zip(OBJECTIVES, EACH_OBJECTIVE, *ranks, strict=True):
        (exchanged, own), (exchanged_too, own_too) = first, second
        assert equal(exchanged, exchanged_too)
        torch.testing.assert_close(
            exchanged, gradients_of_one_round(changes), rtol=1e-10, atol=1e-12
        )
        if not OBJECTIVES[name].averages:
            mean = {n: (own[n] + own_too[n]) / 2 for n in own}
            torch.testing.assert_close(exchanged, mean, rtol=1e-10, atol=1e-12)


def test_micro_batches_accumulate_to_the_whole_batch():
    whole = state_after(20, {"turns": TurnsConfig(batch_size=8, precision="float64")})
    pieces = state_after(
        20, {"turns": TurnsConfig(batch_size=8, micro_batch=3, precision="float64")}
    )
    assert largest_difference(whole, pieces) < 1e-10


def test_each_turn_moves_its_own_player_only():
    game = new_game(small_game())
    batches = stream(game.config, game.world)
    before = {n: v.clone() for n, v in game.state_dict().items()}
    game.d_turn(next(batches))
    after_d = {n: v.clone() for n, v in game.state_dict().items()}
    game.g_turn(next(batches))
    after_g = game.state_dict()
    changed_by_d = {n[:2] for n in before if not torch.equal(before[n], after_d[n])}
    changed_by_g = {n[:2] for n in before if not torch.equal(after_d[n], after_g[n])}
    assert changed_by_d == {"D/", "d_"}
    assert changed_by_g >= {"G/", "G_", "g_"}
    assert not changed_by_g & {"D/", "d_"}
    assert all(p.requires_grad for p in game.D.parameters())


def test_bfloat16_keeps_float32_weights_and_stays_near_the_float32_game():
    wide = state_after(10, {})
    low = state_after(10, {"turns": TurnsConfig(batch_size=8, precision="bfloat16")})
    assert {v.dtype for n, v in low.items() if n.startswith(("G/", "D/"))} == {torch.float32}
    assert 0 < largest_difference(wide, low) < 0.1


def test_the_learning_rate_follows_its_schedule_by_images():
    config = small_game(
        generator=GeneratorConfig(width=8, latent_dim=4, lr=Schedule(start=1e-3, end=1e-4)),
        discriminator=DiscriminatorConfig(
            width=8, lr=Schedule(shape="linear", start=0.01, end=0.02)
        ),
        turns=TurnsConfig(batch_size=8, total_kimg=0.16),
    )
    game = play_rounds(new_game(config), 11)  # D's last turn began at 80 of 160 images, G's at 88
    cosine = 1e-4 + 9e-4 * (1 + math.cos(math.pi * 88 / 160)) / 2
    assert game.D_optimizer.param_groups[0]["lr"] == pytest.approx(0.015)
    assert game.G_optimizer.param_groups[0]["lr"] == pytest.approx(cosine)


def stepping(at_kimg: tuple[float, ...], **values: tuple[float, ...]) -> dict:
    """The sections of a game whose settings have these values; one value alone is a number."""

    def setting(name: str):
        return Steps(at_kimg=at_kimg, values=values[name]) if at_kimg else values[name][0]

    d_steps = setting("d_steps")
    return {
        "generator": GeneratorConfig(width=8, latent_dim=4, lr=setting("g_lr")),
        "discriminator": DiscriminatorConfig(width=8, lr=setting("d_lr")),
        "objective": ObjectiveConfig(
            r1_gamma=setting("r1"), r2_gamma=setting("r2"), penalty_interval=2
        ),
        "turns": TurnsConfig(
            batch_size=8,
            d_steps=d_steps if isinstance(d_steps, Steps) else int(d_steps),
            g_steps=2,
            total_kimg=1,
            precision=values["precision"][0],  # type: ignore[arg-type]
        ),
        "ema": EmaConfig(half_life_kimg=setting("half_life")),
    }


LIFE: dict[str, tuple] = {
    "g_lr": (1e-3, 3e-3, 2e-4),
    "d_lr": (1e-3, 5e-4, 2e-3),
    "r1": (0.0, 1.0, 0.1),
    "r2": (0.0, 0.0, 2.0),
    "d_steps": (1, 3, 2),
    "half_life": (0.05, 10.0, 0.0),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_game_in_constant_steps_is_bit_identical_to_one_with_the_numbers(precision):
    constant = {name: (values[1],) * 3 for name, values in LIFE.items()}
    constant["precision"] = (precision,)
    steps = state_after(9, stepping((0, 0.024, 0.1), **constant))
    assert equal(steps, state_after(9, stepping((), **constant)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_game_taken_over_with_other_settings_is_bit_identical_to_one_with_steps(precision):
    """Stopped after 40 and after 112 images, and continued each time by a game of other settings:
    the law that replaying a life rests on.
    """
    state, stops = None, (40, 112, 192)
    for number, until in enumerate(stops):
        values = {name: life[number : number + 1] for name, life in LIFE.items()}
        game = new_game(small_game(**stepping((), **values, precision=(precision,))))
        if state is not None:
            game.load_state_dict(state)
        batches = stream(game.config, game.world, game.num_batches)
        for _ in training(game, batches, until_nimg=until, tick_nimg=1000):
            pass
        assert game.nimg == until
        state = {name: value.clone() for name, value in game.state_dict().items()}
    assert state is not None

    config = small_game(**stepping((0, 0.040, 0.112), **LIFE, precision=(precision,)))
    whole = new_game(config)
    nimg = [
        tick.nimg
        for tick in training(whole, stream(config, whole.world), until_nimg=192, tick_nimg=1)
    ]
    assert nimg == [8, 16, 24, 32, 40, 64, 88, 112, 128, 144, 160, 176, 192]  # d_steps of 1, 3, 2
    assert equal(whole.state_dict(), state)


def test_a_round_is_played_with_the_settings_of_its_start():
    """At 8 images the first round of 16 is half over: its second half does not change."""
    config = small_game(
        discriminator=DiscriminatorConfig(
            width=8, lr=Steps(at_kimg=(0, 0.008), values=(1e-3, 2e-3))
        ),
        turns=TurnsConfig(batch_size=8, d_steps=2),
    )
    game = new_game(config)
    used = []
    for _ in range(2):
        play_rounds(game, 1)
        used.append(game.D_optimizer.param_groups[0]["lr"])
    assert used == [1e-3, 2e-3]


def test_g_ema_equals_g_where_the_half_life_is_zero():
    game = play_rounds(new_game(small_game(ema=EmaConfig(half_life_kimg=0))), 3)
    for kept, new in zip(game.G_ema.parameters(), game.G.parameters(), strict=True):
        assert torch.equal(kept, new)
