"""The loss of each step, as a schedule has it: of the trainer, and of loops of one's own."""

from dataclasses import dataclass

from torch import Tensor

from gftkit.kernel.contracts import Profile, Schedule
from gftkit.theory.objective import LOSSES, Form, Temperature, shared_loss
from gftkit.theory.temperature import profile_at, temperature_at, temperatures_of


@dataclass(frozen=True)
class GradualObjective:
    """The objective of Gradual Fine-Tuning over the steps of a run (theory, sections 2 and 7).

    Attributes:
        schedule: the temperature; None for temperature 0 throughout, which is plain flow matching.
        name: of the schedule, for errors.
        steps: of the run.
        form: "blended" or "penalty".
    """

    schedule: Schedule | None
    name: str
    steps: int
    form: Form = "blended"

    def temperature(self, step: int) -> float:
        """beta at a step, counted from 0; where it depends on flow time, that of the mean retention.

        Raises:
            ConfigError: for a temperature that is -1 or below, or not finite.
        """
        return 0.0 if self.schedule is None else temperature_at(self.schedule, self.name, step, self.steps)

    def profile(self, step: int) -> Profile | None:
        """The retention at a step as a function of flow time; None where one temperature says it all."""
        return profile_at(self.schedule, step, self.steps)

    def temperatures(self, step: int, t: Tensor) -> Temperature:
        """beta of samples at flow times t, (batch,): a number where it doesn't depend on them."""
        profile = self.profile(step)
        return self.temperature(step) if profile is None else temperatures_of(profile, t)

    def losses(
        self,
        drift: Tensor,
        target: Tensor,
        anchor: Tensor | None,
        temperature: Temperature,
        weight: Tensor | None = None,
        *,
        indices: Tensor | None = None,
        share: float = 1.0,
    ) -> Tensor:
        """The loss of each sample, (batch,), a sum over its event.

        Args:
            drift: b, (batch, *event).
            target: b_t(x|z), (batch, *event).
            anchor: b_pre, of all samples or of those at ``indices``; None where the temperature is 0.
            temperature: beta, a number or (batch,).
            weight: w, (batch,), or None for 1.
            indices: the samples at which the anchor was evaluated, (m,) of int64; None for all.
            share: of the batch that ``indices`` were drawn from at random. At share 1 the others have temperature 0.
        """
        if indices is None or anchor is None:
            return LOSSES[self.form](drift, target, anchor, temperature, weight)
        indices = indices.to(drift.device)
        if share == 1:  # the other pairs have temperature 0, at which the anchor doesn't count
            filled = target.index_copy(0, indices, anchor.to(target.dtype))
            return LOSSES[self.form](drift, target, filled, temperature, weight)
        losses = shared_loss(drift, target, anchor, indices, share=share, temperature=temperature, weight=weight)
        # The shared loss is of the penalty form, whose gradient is 1 + temperature times the blended form's.
        return losses if self.form == "penalty" else losses / (1 + temperature)
