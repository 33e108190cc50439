"""The two players, their optimizers and their turns; one state_dict holds all of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gan.adaptive import PREFIX as AUGMENT
from gan.adaptive import AdaptiveProbability
from gan.chance import of_d_turn, of_g_turn
from gan.codes import Codes
from gan.config import GameConfig, PlayerConfig, Sample, Steps, check_sample, value_at
from gan.ema import Average, decay
from gan.means import PREFIX as MEANS
from gan.means import Means
from gan.networks import (
    build_discriminator,
    build_generator,
    iterate_spectral_norms,
    stylegan2,
)
from gan.optimizers import build_optimizer, set_rates
from gan.penalties import Weights
from gan.randomness import latents
from gan.saving import Saved
from gan.transfer import sent
from gan.turns import DTurn, GTurn, styles_mixed
from gan.world import World

PATH_MEAN_PULL = 0.01  # of each new mean path length (Karras et al. 2020, appendix B)
DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, slots=True)
class Batch:
    """This rank's share of one global batch: uint8 images (n, c, h, w) or float vectors (n, d);
    labels (n,).
    """

    samples: Shaped[Tensor, "n *shape"]
    labels: Int64[Tensor, " n"] | None = None


@dataclass(frozen=True, slots=True)
class _Seen:
    """What D's turn saw, with fakes that G can still learn through."""

    real: Tensor
    z: Tensor
    labels: Tensor | None
    fake: Tensor


class Game:
    """G against D on `sample`-shaped data. Every rank builds one; DDP keeps their weights equal.

    With a default process group of more than one rank, each player is wrapped in DDP. Batches
    given to the turns are this rank's `world.share(batch_size)` of the global batch.
    """

    def __init__(
        self,
        config: GameConfig,
        sample: Sample,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ):
        check_sample(config, sample)
        self.config, self.sample, self.seed = config, sample, seed
        self.device = torch.device(device)
        self.dtype = DTYPES[config.turns.precision]
        self.world = World.current()
        self.d_turns = self.g_turns = 0
        self.begin_round()
        self.means = Means(self.dtype, self.device)
        self._seen: _Seen | None = None  # from D's turn to G's, where they share fakes
        self.lr_factor = 1.0  # of both players; the host's to set, and no part of the state

        how = {"conditioning": config.conditioning.name, "sample": sample, "seed": seed}
        self.G = build_generator(config.generator, **how).to(self.device, self.dtype)
        self.codes = Codes.of(config.generator)
        self.D = build_discriminator(config.discriminator, codes=self.codes, **how)
        self.D = self.D.to(self.device, self.dtype)
        self._ema = Average(self.G)
        self._statistics = [
            statistic
            for layer in self.G.modules()
            if isinstance(layer, nn.BatchNorm2d)
            for statistic in layer.buffers()
        ]
        self.G_optimizer = build_optimizer(self.G, config.generator)
        self.D_optimizer = build_optimizer(self.D, config.discriminator)
        self._saved = Saved(
            {"G": self.G, "D": self.D, "G_ema": self.G_ema},
            {
                "G": (self.G_optimizer, config.generator),
                "D": (self.D_optimizer, config.discriminator),
            },
        )
        class_weight = config.conditioning.class_weight
        rules = {
            "policies": config.augment.policies,
            "class_weight": class_weight,
            "codes": self.codes,
        }
        self._adaptive = None
        if config.augment.target is not None:
            how = {"batch_size": config.turns.batch_size, "device": self.device}
            self._adaptive = AdaptiveProbability(config.augment, **how)
        self._d_turn = self._distributed(DTurn(self.D, config.objective, **rules))
        self._g_turn = self._distributed(GTurn(self.G, self.D, config.objective, **rules))
        if isinstance(self._g_turn, DistributedDataParallel):
            # G's statistics follow rank 0's after each turn. DDP would write them before it as
            # well, between the forward and the backward of fakes that both turns share. (From
            # torch 2.13 on the argument is `forward_sync_buffers`, and this name still sets it.)
            self._g_turn.broadcast_buffers = False

    @property
    def G_ema(self) -> nn.Module:
        """The moving average of G, in eval mode: what is judged, sampled and promoted."""
        return self._ema.module

    @property
    def nimg(self) -> int:
        """Images that D has learned from, the game's time."""
        return self.d_turns * self.config.turns.batch_size

    @property
    def num_batches(self) -> int:
        """Global batches of reals taken so far by both players: where the data stream stands."""
        return self.d_turns + self.g_turns * self.config.reals_in_g_turn

    def begin_round(self) -> None:
        """Settles the values that change in steps until the next round begins.

        A game is stopped and resumed between rounds only, so this is no part of its state.
        """
        self._round_nimg = self.nimg

    @property
    def d_steps(self) -> int:
        """D's turns in the present round."""
        return int(self._now(self.config.turns.d_steps))

    def d_turn(self, batch: Batch) -> None:
        """D's turn: one step against fakes that G does not learn from, or not yet. Every rank must
        call this.
        """
        self._seen = None  # its graph goes before the next is built
        turn, weights = self.d_turns, self._penalty_weights()
        z = self._my_latents("latent/d", turn)
        how = {"weights": weights, "probability": self._augment_probability()}
        chance = self._mine(of_d_turn(self.config, self.sample, self.seed, turn, **how))
        if self.codes:
            chance["z"] = z
        self._set_rates(self.D_optimizer, self.config.discriminator)
        self.D_optimizer.zero_grad(set_to_none=True)
        iterate_spectral_norms(self.D)
        for real, piece_z, labels, luck, sync in self._pieces(self._d_turn, batch, z, chance):
            reused = self.config.turns.reuse_fakes
            with torch.set_grad_enabled(reused), self._autocast():
                fake = self.G(piece_z, labels, *styles_mixed(luck)).to(self.dtype)
            assert real is not None
            if reused:
                self._seen, fake = _Seen(real, piece_z, labels, fake), fake.detach()
            with sync, self._autocast(enabled=not any(weights)):
                loss, report = self._d_turn(real, fake, labels, weights, luck)
                (loss * self._loss_scale).backward()
            self.means.add(report, count=len(piece_z))
            if self._adaptive is not None:
                self._adaptive.add(report["d/real_sign"])
        self._step("d", self.D, self.D_optimizer, self.config.discriminator)
        clip = self.config.objective.weight_clip
        if clip is not None:
            with torch.no_grad():
                for parameter in self.D.parameters():
                    parameter.clamp_(-clip, clip)
        self.d_turns += 1
        if self._adaptive is not None:
            self._adaptive.settle(self.d_turns, self.world)
            how = {"dtype": self.dtype, "device": self.device}
            probability = torch.full((), self._adaptive.value, **how)
            self.means.add_shared("augment/p", probability, self.world)

    def g_turn(self, batch: Batch | None) -> None:
        """G's turn: one step against a frozen D, then G_ema follows. Every rank must call this.

        `batch` holds fresh reals where `config.reals_in_g_turn`, else it is None.
        """
        probability = self._augment_probability()
        where = (self.config, self.sample, self.seed, self.g_turns)
        chance = self._mine(of_g_turn(*where, probability=probability))
        path_length = torch.zeros((), dtype=self.dtype, device=self.device)
        self._set_rates(self.G_optimizer, self.config.generator)
        self.G_optimizer.zero_grad(set_to_none=True)
        self.D.requires_grad_(False)  # its gradients are neither computed nor exchanged
        for real, piece_z, labels, luck, sync, fake in self._g_pieces(batch, chance):
            with sync, self._autocast(enabled="path_noise" not in luck):
                loss, report = self._g_turn(real, piece_z, labels, luck, fake)
                (loss * self._loss_scale).backward()
            path_length += report.get("g/path_length", 0)
            self.means.add(report, count=len(piece_z))
        self.D.requires_grad_(True)
        self._step("g", self.G, self.G_optimizer, self.config.generator)
        self.g_turns += 1
        # BatchNorm counts its own rank's images; G_ema must be one generator, so rank 0's count.
        self.world.copy_from_first(self._statistics)
        if "path_noise" in chance:
            assert isinstance(self.G, stylegan2.Generator)
            mean = self.world.sum(path_length) / self.config.turns.batch_size
            self.G.path_mean.lerp_(mean, PATH_MEAN_PULL)
        turns, ema = self.config.turns, self.config.ema
        new_images = turns.batch_size * self.d_steps / turns.g_steps
        half_life = self._now(ema.half_life_kimg)
        weight = decay(half_life, ramp_up=ema.ramp_up, new_images=new_images, nimg=self.nimg)
        self._ema.update(weight)

    def state_dict(self) -> dict[str, Tensor]:
        """All that the game's future depends on, as flat named tensors; equal on every rank.

        That is the players and their optimizers, and what every rank has to report of the turns
        since the last tick ('means/...'). Every rank must call this.
        """
        adapted = {} if self._adaptive is None else self._adaptive.state_dict(self.world)
        return self._players_state() | adapted | self.means.state_dict(self.world)

    def is_finite(self) -> bool:
        """Whether every number of the state is finite, on all ranks. Every rank must call this."""
        # The largest magnitude of each: a sum of squares could overflow where nothing is wrong.
        largest = torch._foreach_norm(  # pyright: ignore[reportPrivateImportUsage]
            [v for k, v in self._players_state().items() if v.numel() and not _is_count(k)],
            math.inf,
        )
        finite = torch.stack(largest).isfinite().all()
        lost = (~(finite & self.means.finite)).to(self.dtype)
        return self.world.sum(lost).item() == 0

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continues a game from `state_dict()` of one with the same config and sample.

        The means and the adapted probability of augmentations are taken up where there are some;
        a state without them begins them anew. Raises ValueError where another tensor is missing,
        left over or of another shape.
        """
        given = {name for name in state if not name.startswith((MEANS, AUGMENT))}
        stepped = {p: int(state.get(f"{p.lower()}_turns", 0)) > 0 for p in ("G", "D")}
        expected = {"d_turns", "g_turns"} | self._saved.keys(stepped=stepped)
        if expected != given:
            raise ValueError(
                f"the saved game does not fit this one: "
                f"missing {sorted(expected - given)[:3]}, "
                f"left over {sorted(given - expected)[:3]}"
            )
        self._saved.load_state_dict(state)
        if self._adaptive is not None:
            self._adaptive.load_state_dict(state, self.world)
        self.d_turns, self.g_turns = int(state["d_turns"]), int(state["g_turns"])
        self.means.load_state_dict(state, self.world)
        self.begin_round()

    def _players_state(self) -> dict[str, Tensor]:
        """The state without the means: what every rank has alike."""
        turns = {"d_turns": torch.tensor(self.d_turns), "g_turns": torch.tensor(self.g_turns)}
        return turns | self._saved.state_dict()

    def _now(self, setting: Any) -> float:
        """The value of a setting in this turn: of this image, but steps wait for the round."""
        nimg = self._round_nimg if isinstance(setting, Steps) else self.nimg
        return value_at(setting, nimg, total_nimg=self.config.turns.total_nimg)

    def _augment_probability(self) -> float:
        """Of this turn: as it has adapted, or as the config says."""
        if self._adaptive is not None:
            return self._adaptive.value
        return self._now(self.config.augment.probability)

    def _penalty_weights(self) -> Weights:
        """What D's next turn pays for: every so many turns, times their number."""
        objective = self.config.objective
        interval = objective.penalty_interval
        if self.d_turns % interval:
            return Weights()
        settings = (objective.r1_gamma, objective.r2_gamma, objective.gp_lambda)
        return Weights(*(interval * self._now(setting) for setting in settings))

    def _set_rates(self, optimizer: torch.optim.Optimizer, config: PlayerConfig) -> None:
        lr, beta2 = self.lr_factor * self._now(config.lr), float(self._now(config.beta2))
        set_rates(optimizer, lr=lr, beta2=beta2)

    def _step(
        self, name: str, player: nn.Module, optimizer: torch.optim.Optimizer, config: PlayerConfig
    ) -> None:
        """Reports |grad| over all parameters, as DDP has averaged it, cuts it where it is to be
        cut, and steps.
        """
        parameters = [p for p in player.parameters() if p.grad is not None]
        norms = torch._foreach_norm([p.grad for p in parameters])  # pyright: ignore
        norm = torch.linalg.vector_norm(torch.stack(norms))
        self.means.add_shared(f"{name}/grad_norm", norm, self.world)
        if config.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, config.max_grad_norm, norm)
        optimizer.step()

    @property
    def _loss_scale(self) -> float:
        # DDP averages gradients over ranks; with sums for losses this makes it the global mean,
        # however unevenly the batch is split.
        return self.world.size / self.config.turns.batch_size

    def _my_latents(self, stream: str, turn: int) -> Float[Tensor, "n z"]:
        batch_size = self.config.turns.batch_size
        z = latents(
            self.seed,
            stream,
            turn,
            batch_size=batch_size,
            latent_dim=self.config.generator.latent_dim,
        )
        return sent(z[self.world.share(batch_size)], self.device, self.dtype)

    def _mine(self, chance: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's part of what was drawn for the global batch."""
        share = self.world.share(self.config.turns.batch_size)
        return {name: sent(all[share], self.device, self.dtype) for name, all in chance.items()}

    def _pieces(
        self, turn: nn.Module, batch: Batch | None, z: Tensor, chance: dict[str, Tensor]
    ) -> Iterator[tuple]:
        """Splits a turn into micro-batches (real, z, labels, chance, context); gradients are
        exchanged in the last.
        """
        size = self.config.turns.micro_batch or len(z)
        starts = range(0, len(z), size)
        is_ddp = isinstance(turn, DistributedDataParallel)
        labels = None
        if batch is not None and self.config.conditioning.name != "none":
            assert batch.labels is not None
            labels = batch.labels.to(self.device, non_blocking=True)
        for start in starts:
            piece = slice(start, start + size)
            real = None if batch is None else self._to_unit_range(batch.samples[piece])
            sync = turn.no_sync() if is_ddp and start != starts[-1] else nullcontext()
            luck = {name: draws[piece] for name, draws in chance.items()}
            yield real, z[piece], None if labels is None else labels[piece], luck, sync

    def _g_pieces(self, batch: Batch | None, chance: dict[str, Tensor]) -> Iterator[tuple]:
        """As `_pieces` for G's turn, with the fakes where D's turn has made them."""
        if self.config.turns.reuse_fakes:
            seen, self._seen = self._seen, None
            assert seen is not None, "a turn of D comes first"
            yield seen.real, seen.z, seen.labels, chance, nullcontext(), seen.fake
            return
        z = self._my_latents("latent/g", self.g_turns)
        for piece in self._pieces(self._g_turn, batch, z, chance):
            yield *piece, None

    def _to_unit_range(self, samples: Shaped[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """uint8 images to [-1, 1] on the device; vectors pass as they are."""
        samples = samples.to(self.device, non_blocking=True)
        if samples.ndim == 4:
            samples = samples.contiguous(memory_format=torch.channels_last)
        if samples.dtype == torch.uint8:
            return samples.to(self.dtype).div_(127.5).sub_(1)
        return samples.to(self.dtype)

    def _autocast(self, *, enabled: bool = True):
        low = enabled and self.config.turns.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16) if low else nullcontext()

    def _distributed(self, turn: nn.Module) -> nn.Module:
        if self.config.turns.compile:
            # The whole step, losses and penalties in it: a compiled D alone could not be
            # differentiated twice, and DDP still sees one forward for each backward.
            turn = cast(nn.Module, torch.compile(turn, dynamic=False))
        if self.world.size == 1:
            return turn
        on_gpu = self.device.type == "cuda"
        return DistributedDataParallel(
            turn,
            device_ids=[self.device] if on_gpu else None,
            gradient_as_bucket_view=True,
        )


def _is_count(name: str) -> bool:
    """Whether an entry of the state counts steps: always finite, and some lie on the CPU."""
    return name.endswith(("_turns", "/step", "num_batches_tracked"))
