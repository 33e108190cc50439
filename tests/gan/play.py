"""Short games for tests that run on one rank or on several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gan.config import GameConfig, Sample
from gan.game import Batch, Game
from gan.loop import Tick, play_round, training
from gan.world import World
from tests.conftest import small_game

SHAPE = (1, 8, 8)

# In exact arithmetic the trajectory does not depend on how the batch is split. In floating point
# each sum is rounded in another order: a relative error of some eps in each gradient, which Adam
# passes on to steps of lr = 1e-3, so that 100 of them move a weight of size 1 by about one eps
# (seen: 2.2e-16 and 2.4e-7). A factor of a thousand is left for larger sums and other processors;
# a wrong weight for an uneven share shows as 1e-3.
TOLERANCE = {"float64": 1e-12, "float32": 1e-4}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def global_batch(index: int, *, batch_size: int) -> Tensor:
    """Global batch number `index`: bright blobs, uint8."""
    rng = torch.Generator().manual_seed(index)
    return torch.randint(100, 256, (batch_size, *SHAPE), generator=rng, dtype=torch.uint8)


def stream(config: GameConfig, world: World, first: int = 0) -> Iterator[Batch]:
    """This rank's share of the global batches from number `first` on."""
    size = config.turns.batch_size
    while True:
        labels = torch.arange(size) % 2
        yield Batch(
            global_batch(first, batch_size=size)[world.share(size)], labels[world.share(size)]
        )
        first += 1


def new_game(config: GameConfig, seed: int = 0, *, device: str = "cpu") -> Game:
    return Game(config, Sample(SHAPE, num_classes=2), seed=seed, device=device)


def play_rounds(game: Game, rounds: int) -> Game:
    batches = stream(game.config, game.world, game.num_batches)
    for _ in range(rounds):
        play_round(game, batches)
    return game


def state_after(rounds: int, changes: dict[str, Any]) -> dict[str, Tensor]:
    """The state of a fresh small game after some rounds, on this rank."""
    game = play_rounds(new_game(small_game(**changes)), rounds)
    return {name: value.clone() for name, value in game.state_dict().items()}


def states_after(rounds: int, many: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
    """`state_after` of each of `many` games, in one process of ranks."""
    return [state_after(rounds, changes) for changes in many]


def told(ticks: list[Tick]) -> list[tuple[int, dict[str, float]]]:
    """What ticks say of the game, without how fast it was played."""
    return [
        (t.nimg, {k: v for k, v in t.scalars.items() if k != "speed/img_per_sec"}) for t in ticks
    ]


def play_on(
    game: Game,
    *,
    until_nimg: int,
    tick_nimg: int,
    pause: Callable[[Game], bool] | None = None,
) -> list[tuple[int, dict[str, float]]]:
    """Plays on from where `game` stands; what its ticks say."""
    batches = stream(game.config, game.world, game.num_batches)
    ticks = training(game, batches, until_nimg=until_nimg, tick_nimg=tick_nimg, pause=pause)
    return told(list(ticks))


def ticks_and_state(
    changes: dict[str, Any],
    until_nimg: int,
    tick_nimg: int,
    stops: tuple[int, ...],
    begin: dict[str, Tensor] | None = None,
) -> tuple[list[tuple[int, dict[str, float]]], dict[str, Tensor]]:
    """A small game that is stopped and resumed by another at each of `stops`: its ticks, and its
    state at the end, on this rank.
    """
    config, ticks, state = small_game(**changes), [], begin
    for stop in (*stops, until_nimg + 10**9):
        game = new_game(config)
        if state is not None:
            game.load_state_dict(state)
        ticks += play_on(
            game, until_nimg=until_nimg, tick_nimg=tick_nimg, pause=lambda g, at=stop: g.nimg >= at
        )
        state = {name: value.clone() for name, value in game.state_dict().items()}
    assert state is not None
    return ticks, state


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Over the weights of both players and G_ema; optimizer moments are not compared."""
    names = [n for n in a if n.startswith(("G/", "D/", "G_ema/"))]
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in names)


def gradients_of_one_round(changes: dict[str, Any]) -> dict[str, Tensor]:
    """Both players' gradients in a first round, as DDP left them."""
    game = play_rounds(new_game(small_game(**changes)), 1)
    return {
        f"{name}/{key}": parameter.grad.clone()
        for name, player in (("D", game.D), ("G", game.G))
        for key, parameter in player.named_parameters()
        if parameter.grad is not None
    }


def own_gradients_of_one_round(changes: dict[str, Any]) -> dict[str, Tensor]:
    """The same of this rank's own share, without DDP: of the mean of its own losses."""
    config = small_game(**changes)
    game, g_turn_only = new_game(config), new_game(config)
    share = game.world.share(config.turns.batch_size)
    batches = stream(config, game.world)
    own = {}
    loss = d_loss_of(game, next(batches))
    (loss / (share.stop - share.start)).backward()
    own |= {f"D/{n}": p.grad.clone() for n, p in game.D.named_parameters() if p.grad is not None}

    # In a round G meets the D that has just learned, with DDP.
    g_turn_only.d_turn(next(stream(config, game.world)))
    game.D.load_state_dict(g_turn_only.D.state_dict())
    batch = next(batches) if config.reals_in_g_turn else None
    real = None if batch is None else game._to_unit_range(batch.samples)
    turn = (
        game._g_turn.module if isinstance(game._g_turn, DistributedDataParallel) else game._g_turn
    )
    loss, _ = turn(real, game._my_latents("latent/g", 0), None, {})
    (loss / (share.stop - share.start)).backward()
    return own | {f"G/{n}": p.grad for n, p in game.G.named_parameters() if p.grad is not None}


def d_loss_of(game: Game, batch: Batch) -> Tensor:
    """The sum of D's losses of this rank's share in its first turn, without DDP."""
    z = game._my_latents("latent/d", 0)
    with torch.no_grad():
        fake = game.G(z, None)
    turn = (
        game._d_turn.module if isinstance(game._d_turn, DistributedDataParallel) else game._d_turn
    )
    real = game._to_unit_range(batch.samples)
    return turn(real, fake, None, game._penalty_weights(), {})[0]


def exchanged_and_own(many: list[dict[str, Any]]) -> list[tuple[dict, dict]]:
    """Gradients of one round of each small game: as DDP left them, and this rank's own."""
    return [(gradients_of_one_round(how), own_gradients_of_one_round(how)) for how in many]
