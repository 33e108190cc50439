"""Is the game still a game? A verdict per tick from what the tick reports; a pure fold over ticks.

That V is close to -log 4 is no sign of health: a D that has learned nothing tosses a coin, too.
What tells are numbers that grow without end, a D that nobody can fool any more, and above all what
G's images are like.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal, Protocol

State = Literal["healthy", "overfitting", "collapsing", "diverging"]
CODES: dict[State, int] = {"healthy": 0, "overfitting": 1, "collapsing": 2, "diverging": 3}
REMEDIES: dict[State, str] = {
    "healthy": "",
    "overfitting": "raise objective.r1_gamma, or add data; the best snapshot is kept",
    "collapsing": "lower generator.lr and discriminator.lr, or raise objective.r1_gamma; "
    "the best snapshot is kept",
    "diverging": "lower generator.lr and discriminator.lr, or raise objective.r1_gamma",
}

# Exploding. -log of the smallest float32 above 0 is 103.3: at a mean loss beyond it D's
# probability of what happened is 0 in float32, and no gradient tells G or D where to go. A critic
# states no probability: its losses are distances, whose size and zero are the data's.
LOSS_LIMIT = 103.3
# Gradients of games that live vary by a factor of ten from tick to tick; those that explode grow
# by millions. Measured against the largest running median so far, so that a gradient that comes
# back after D was nearly certain is no explosion.
GRADIENT_FACTOR = 100.0
GRADIENT_FLOOR = 1.0  # of losses of size 1: one that was far less before has only come to life
MEDIAN_TICKS = 10
EXPLODED_TICKS = 2  # one alone is a spike, and Adam's bounded steps survive it
DEAD_TICKS = 3  # a gradient of exactly 0 through whole ticks: no unit is left that could learn

# D has won: its value is 0 at best, -log 4 = -1.386 for a coin. At -0.01 it puts every image on
# the right side with 99.5 %. Young games pass through this; it must last, and G learn nothing.
WON_VALUE = -0.01
WON_TICKS = 10
LEARNED = 0.9  # of the Frechet distance a judgement earlier: G moves on by a tenth, or not at all

# Overfitting: Karras et al. 2020 hold r_t at 0.6, and see the Frechet distance turn up where it
# goes on towards 1. Young games begin with a sure D, so D must have been unsure before.
OVERFIT_SIGN = 0.6
OVERFIT_EPOCHS = 10  # fewer looks at each image teach nothing by heart
WORSE_JUDGEMENTS = 3  # no new best: the distance has turned up, and is no wobble

# Collapsing, by the diversity of generated images, tr C_f / tr C_r, 1 at best.
POOR = 0.5  # of the reals', and of G's own best: games that live stay above once they are there
STUCK_JUDGEMENTS = 3  # poor from the start and no new best: not a slow start any more
FALLEN_JUDGEMENTS = 2  # G_ema wobbles, and comes back by the next
FRECHET_FACTOR = 5.0  # times the best: games that live move by a factor of two at most
ERRORS = 2.0  # standard errors within which a judgement may be wrong

_GRADIENTS: tuple[str, ...] = ("d/grad_norm", "g/grad_norm")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a game's numbers say at one tick."""

    state: State = "healthy"
    reason: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)
    lost: bool = False  # whether going back is better than going on
    sound: bool = True  # whether nothing is even under suspicion: a good place to go back to

    @property
    def code(self) -> int:
        """0 healthy, 1 overfitting, 2 collapsing, 3 diverging."""
        return CODES[self.state]

    @property
    def remedy(self) -> str:
        """What a user can change."""
        return REMEDIES[self.state]


SUSPECT = Verdict(sound=False)


class Health:
    """Judges a game tick by tick. The same ticks in the same order give the same verdicts, so a
    resumed run feeds its journal again.

    `num_images` is the size of the data set; without it, overfitting is told by ticks alone.
    """

    def __init__(self, *, num_images: int = 0):
        self._rules: tuple[_Rule, ...] = (
            _NotFinite(),
            _Exploding(),
            _Dead(),
            _Won(),
            _Collapsing(),
            _Overfitting(num_images),
        )

    def judge(self, nimg: int, metrics: Mapping[str, float]) -> Verdict:
        """The verdict at `nimg` on a tick's metrics, scores among them where it was judged.

        Speed and earlier verdicts among the metrics are not looked at.
        """
        told = {k: v for k, v in metrics.items() if not k.startswith(("speed/", "health/"))}
        verdicts = [rule.see(nimg, told) for rule in self._rules]
        worst = max(verdicts, key=lambda verdict: verdict.code)
        return replace(worst, sound=all(verdict.sound for verdict in verdicts))


class _Rule(Protocol):
    def see(self, nimg: int, metrics: Mapping[str, float]) -> Verdict: ...


class _NotFinite:
    def see(self, nimg: int, metrics: Mapping[str, float]) -> Verdict:
        lost = {name: value for name, value in metrics.items() if not math.isfinite(value)}
        if not lost:
            return Verdict()
        name, value = next(iter(lost.items()))
        return _alarm("diverging", f"{name} is {value}", lost)


class _Exploding:
    """A loss past all bounds, or a gradient far beyond what this game's gradients were."""

    def __init__(self):
        self._ticks = 0
        self._recent = {name: deque[float](maxlen=MEDIAN_TICKS) for name in _GRADIENTS}
        self._largest = dict.fromkeys(_GRADIENTS, 0.0)

    def see(self, nimg: int, metrics: Mapping[str, float]) -> Verdict:
        losses = () if "game/distance" in metrics else ("d/loss", "g/loss")
        found = [
            (name, abs(metrics[name]), LOSS_LIMIT, "a loss of no meaning")
            for name in losses
            if abs(metrics.get(name, 0.0)) > LOSS_LIMIT
        ]
        for name in _GRADIENTS:
            norm, usual = metrics.get(name, 0.0), max(self._largest[name], GRADIENT_FLOOR)
            if self._largest[name] and norm > GRADIENT_FACTOR * usual:
                found.append((name, norm, usual, "where it used to be"))
            else:
                self._note(name, norm)
        self._ticks = self._ticks + 1 if found else 0
        if self._ticks < EXPLODED_TICKS:
            return SUSPECT if found else Verdict()
        name, value, bound, what = found[0]
        evidence = {name: value for name, value, _, _ in found} | {"bound": bound}
        return _alarm("diverging", f"{name} is {value:.3g}, {what} {bound:.3g}", evidence)

    def _note(self, name: str, norm: float) -> None:
        recent = self._recent[name]
        recent.append(norm)
        if len(recent) == MEDIAN_TICKS:
            self._largest[name] = max(self._largest[name], median(recent))


class _Dead:
    """A player whose gradient is 0."""

    def __init__(self):
        self._ticks = dict.fromkeys(_GRADIENTS, 0)

    def see(self, nimg: int, metrics: Mapping[str, float]) -> Verdict:
        for name in _GRADIENTS:
            self._ticks[name] = self._ticks[name] + 1 if metrics.get(name) == 0 else 0
        name, ticks = max(self._ticks.items(), key=lambda item: item[1])
        if ticks < DEAD_TICKS:
            return SUSPECT if ticks else Verdict()
        reason = f"{name} is 0 for {ticks} ticks: {name[0].upper()} cannot learn any more"
        return _alarm("diverging", reason, {name: 0.0, "ticks": ticks})


class _Won:
    """A D that nobody fools any more, and a G that learns nothing from it."""

    def __init__(self):
        self._ticks = 0
        self._judged: list[float] = []  # Frechet distances since it began

    def see(self, nimg: int, metrics: Mapping[str, float]) -> Verdict:
        value = metrics.get("game/value", -math.inf)
        if value <= WON_VALUE:
            self._ticks, self._judged = 0, []
            return Verdict()
        self._ticks += 1
        score = _frechet(metrics)
        if score is not None:
            self._judged.append(score.value)
        if self._ticks < WON_TICKS or len(self._judged) < 2:
            return SUSPECT
        before, now = self._judged[-2:]
        if now <= LEARNED * before:
            return SUSPECT
        reason = (
            f"D has won: game/value is {value:.2g} for {self._ticks} ticks, and G learns nothing "
            f"(Frechet distance {before:.3g}, now {now:.3g})"
        )
        evidence = {"game/value": value, "ticks": self._ticks, "fd": now, "fd_before": before}
        return _alarm("diverging", reason, evidence)


class _Collapsing:
    """Generated images that are all alike, or far worse than they were. Holds until the next
    judgement.
    """

    def __init__(self):
        self._verdict = Verdict()
        self._best: dict[str, float] = {}  # by score, as a run may be judged anew in another way
        self._fallen = self._stuck = self._worse = 0

    def see(self, nimg: int, metrics: Mapping[str, float]) -> Verdict:
        diversity, frechet = _diversity(metrics), _frechet(metrics)
        if diversity is None and frechet is None:
            return self._verdict
        verdicts = [Verdict()]
        learning = False
        if frechet is not None:
            learning = frechet.value <= LEARNED * self._best.get(frechet.name, math.inf)
            verdicts.append(self._by_distance(frechet))
        if diversity is not None:
            verdicts.append(self._by_diversity(diversity, learning=learning))
        self._verdict = max(verdicts, key=lambda v: (v.code, v.lost, not v.sound))
        return self._verdict

    def _by_diversity(self, score: _Score, *, learning: bool) -> Verdict:
        best = self._best.get(score.name, 0.0)
        self._best[score.name] = max(best, score.value)
        at_most = score.value + ERRORS * score.error
        # G may pass through few images on its way from noise; then it comes nearer all the while.
        poor = at_most < POOR and not learning
        self._fallen = self._fallen + 1 if poor and best >= POOR > at_most / best else 0
        self._stuck = self._stuck + 1 if poor and score.value <= best < POOR else 0
        evidence = {score.name: score.value, "best": best}
        if self._fallen >= FALLEN_JUDGEMENTS:
            reason = f"diversity fell to {score.value:.2g} of the reals', from {best:.2g}"
            return _alarm("collapsing", reason, evidence)
        if self._stuck >= STUCK_JUDGEMENTS:
            reason = f"diversity stays at {score.value:.2g} of the reals', {best:.2g} at its best"
            return replace(_alarm("collapsing", reason, evidence), lost=False)
        return SUSPECT if self._fallen or self._stuck else Verdict()

    def _by_distance(self, score: _Score) -> Verdict:
        # What noise could make of a distance near 0 is no best to be held against.
        best = self._best.get(score.name, math.inf)
        self._best[score.name] = min(best, max(score.value, 0.0) + ERRORS * score.error)
        worse = score.value - ERRORS * score.error > FRECHET_FACTOR * best
        self._worse = self._worse + 1 if worse else 0
        if self._worse >= FALLEN_JUDGEMENTS:
            reason = f"the Frechet distance rose to {score.value:.3g}, from {best:.3g} at its best"
            return _alarm("collapsing", reason, {score.name: score.value, "best": best})
        return SUSPECT if worse else Verdict()


class _Overfitting:
    """A D that was unsure of the reals once and is sure of them now, while G gets worse."""

    def __init__(self, num_images: int):
        self._many_nimg = OVERFIT_EPOCHS * num_images
        self._recent = deque[float](maxlen=MEDIAN_TICKS)
        self._was_unsure = False
        self._best: dict[str, float] = {}
        self._distances: list[float] = []  # since the best

    def see(self, nimg: int, metrics: Mapping[str, float]) -> Verdict:
        self._note(metrics)
        if len(self._recent) < MEDIAN_TICKS:
            return Verdict()
        sign = median(self._recent)
        self._was_unsure |= sign < OVERFIT_SIGN
        by_heart = self._was_unsure and sign > OVERFIT_SIGN and nimg >= self._many_nimg
        if not by_heart or len(self._distances) < WORSE_JUDGEMENTS:
            return Verdict()
        best, now = min(self._best.values()), self._distances[-1]
        reason = (
            f"D knows the reals by heart: d/real_sign is {sign:.2f} (above {OVERFIT_SIGN}), and "
            f"the Frechet distance {now:.3g}, {best:.3g} at its best"
        )
        evidence = {"d/real_sign": sign, "fd": now, "best": best}
        # Sound: the players themselves are in order, and nothing is lost by going on from here.
        return Verdict("overfitting", reason, evidence)

    def _note(self, metrics: Mapping[str, float]) -> None:
        if "d/real_sign" in metrics:
            self._recent.append(metrics["d/real_sign"])
        score = _frechet(metrics)
        if score is not None:
            best = self._best.get(score.name, math.inf)
            self._best = {score.name: min(best, score.value)}  # of the way it is judged now
            worse = score.value - ERRORS * score.error > best
            self._distances = [*self._distances, score.value] if worse else []


@dataclass(frozen=True, slots=True)
class _Score:
    name: str
    value: float
    error: float


def _diversity(metrics: Mapping[str, float]) -> _Score | None:
    return _score(metrics, "diversity", error_of="diversity")


def _frechet(metrics: Mapping[str, float]) -> _Score | None:
    """Without bias where there is such a value: the bias is less for a G that collapsed."""
    for kind in ("fd", "fid"):
        for name in (f"{kind}_corrected", kind):
            score = _score(metrics, name, error_of=kind)
            if score is not None:
                return score
    return None


def _score(metrics: Mapping[str, float], name: str, *, error_of: str) -> _Score | None:
    """The score of this name with its standard error; both are named score/<name>_<how>."""
    others = ("corrected_", "error_")  # what else may follow the name
    for key, value in metrics.items():
        how = key.removeprefix(f"score/{name}_")
        if how != key and not how.startswith(others):
            return _Score(key, value, metrics.get(f"score/{error_of}_error_{how}", 0.0))
    return None


def _alarm(state: State, reason: str, evidence: Mapping[str, float]) -> Verdict:
    return Verdict(state, reason, evidence, lost=True, sound=False)
