"""A schedule from a package of its own."""

import gftkit


class Parabolic:
    """Parabolic cooling: 4 (1 - s)^2."""

    def temperature(self, progress: float) -> float:
        return 4 * (1 - progress) ** 2


@gftkit.hookimpl
def gftkit_schedules() -> dict[str, type]:
    return {"parabolic": Parabolic}
