"""How a setting that breaks a rule is refused: every broken rule at once, in readable lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class ConfigError(ValueError):
    """One or more settings break a rule; `mistakes` holds one readable line each."""

    def __init__(self, mistakes: Iterable[str]):
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:
        return ConfigError, (self.mistakes,)  # so that it comes whole out of another process


def check(*rules: tuple[bool, str]) -> None:
    """Raises one ConfigError naming every broken rule of `rules`, pairs of (holds, message)."""
    broken = [message for holds, message in rules if not holds]
    if broken:
        raise ConfigError(broken)


def check_all(*checks: Callable[[], None]) -> None:
    """Runs every check and raises their mistakes together."""
    mistakes: list[str] = []
    for run in checks:
        try:
            run()
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigError(mistakes)
