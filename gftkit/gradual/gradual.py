"""Gradual Fine-Tuning in a training loop of one's own: the loss, the anchor, and what is measured on the way."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gftkit.gradual.anchors import Call, External, LoopAnchor, anchor_of, is_sharded, output_of
from gftkit.gradual.objective import GradualObjective
from gftkit.kernel.contracts import Schedule
from gftkit.kernel.errors import ConfigError
from gftkit.kernel.loading import load
from gftkit.kernel.options import plain
from gftkit.kernel.registry import Registry, Spec
from gftkit.networks.agreement import HALF, ROUND_OFF, check_agreement, check_fixed
from gftkit.networks.anchor import short_hash
from gftkit.networks.precision import to_float32
from gftkit.theory.gap import Statistics, statistics_tensor, summary
from gftkit.theory.objective import Form, Temperature, retention
from gftkit.theory.temperature import check_schedule, has_feedback

NAME = "the network"


class Gradual:
    """Gradual Fine-Tuning for any training loop: it replaces the loss, and knows the pretrained network.

    The prediction may be a velocity of either sign and any scale, a drift, noise or data: the objective is the same,
    with another weight (guide, "Your own loop").

    Args:
        steps: optimiser steps of the run.
        schedule: the temperature: a name, {name: ..., **options}, or an object with ``temperature(progress)``.
        end: where the schedule goes, in place of 0: a retention below 1, a profile, or its spec. The option ``end`` of
            the schedule.
        form: "blended" or "penalty".
        window: the losses over which ``measured`` takes its means.
        registry: components; by default every installed plugin.

    Attributes:
        objective: the loss by step, which the trainer of ``gft finetune`` uses too.
        warnings: about the schedule, one sentence each.

    Raises:
        GftkitError: for a schedule that isn't known, isn't valid at every step, or has feedback.

    Example:
        >>> import torch
        >>> network = torch.nn.Linear(2, 2)
        >>> gft = Gradual(steps=10, schedule={"name": "constant", "value": 1.0})
        >>> gft.anchor_of(network)
        >>> x, target = torch.randn(4, 2), torch.randn(4, 2)
        >>> loss = gft.loss(0, network(x), target, lambda net: net(x))
        >>> goal = (target + network(x)) / 2  # at temperature 1 half of the pretrained prediction is kept
        >>> bool(torch.isclose(loss, (network(x) - goal).square().mean()))
        True
    """

    def __init__(
        self,
        steps: int,
        schedule: str | Spec | Schedule = "exponential",
        *,
        end: Any = None,
        form: Form = "blended",
        window: int = 100,
        registry: Registry | None = None,
    ) -> None:
        if steps < 1 or window < 2:
            raise ConfigError(f"Gradual: wanted steps >= 1 and window >= 2, got steps={steps} and window={window}.")
        self._spec, built, name = _schedule(schedule, end, registry)
        if has_feedback(built):
            raise ConfigError(
                f"Gradual: the schedule '{name}' reads the monitors of a run, and a loop of your own has none. Choose "
                f"exponential, cosine or another one without feedback, or use gft finetune."
            )
        self.objective = GradualObjective(built, name, steps, form)
        self.warnings = check_schedule(built, name, steps)
        self._anchor: LoopAnchor | None = None
        self._step, self._checked = -1, False
        self._statistics: deque[Tensor] = deque(maxlen=window)

    def anchor_of(self, network: Callable[..., Any], *, external: bool = False, hashed: str | None = None) -> None:
        """Take the anchor from the network that is trained, before its first step and before FSDP wraps it.

        Args:
            network: the network: without its adapters of peft or diffusers, where it has any, it is the anchor;
                otherwise a frozen copy of it is. Wrappers of torch.compile and DDP are looked through.
            external: use what is given as it is: another network in evaluation mode, or a function.
            hashed: what identifies a function, for ``state_dict``; by default the hash of a network's weights.

        Raises:
            ConfigError: for a network that can't be one.
        """
        if external or not isinstance(network, nn.Module):
            self._anchor = External(network, hashed)
        else:
            self._anchor = anchor_of(network)

    def loss(
        self,
        step: int,
        prediction: Tensor,
        target: Tensor,
        call: Call | None = None,
        *,
        t: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, a mean over samples and values, as ``mse_loss`` has it.

        Args:
            step: the optimiser's step, from 0 on. From ``steps`` on the schedule stays at its end.
            prediction: of the network that is trained, (batch, *event).
            target: of the prediction, in the same convention.
            call: ``lambda net: net(**inputs)``, by which the anchor is evaluated on the inputs of the prediction,
                without gradient, and not at temperature 0. It gives a tensor, an output with ``.sample`` or a tuple.
            t: flow time of each sample, (batch,), 0 for noise and 1 for data: 1 - sigma in diffusers. Needed where the
                temperature depends on it.
            weight: of the loss, (batch,), or of any shape that broadcasts to the prediction's, such as a mask.

        Raises:
            ConfigError: for shapes that don't fit, a missing anchor or t, and at the first step for a network that
                isn't its anchor.
        """
        self._check_inputs(step, prediction, target)
        last = self.objective.steps - 1
        temperature = self._temperature(min(step, last), t, prediction)
        anchored = isinstance(temperature, Tensor) or temperature != 0
        anchor = self._evaluate(call, prediction) if anchored or self._is_first(step, call) else None
        if anchor is not None and self._is_first(step, call):
            assert call is not None
            self._compare(call, anchor, prediction)
        self._step = step
        drift, goal = to_float32(prediction), to_float32(target)
        weight = None if weight is None else weight.to(drift)
        if weight is not None and weight.numel() != len(prediction):
            # A weight w of every value is w |b - y|^2 = |sqrt(w) b - sqrt(w) y|^2.
            root = weight.sqrt()
            drift, goal, weight = root * drift, root * goal, None
            anchor = None if anchor is None else root * anchor
        weight = None if weight is None else weight.reshape(-1)
        losses = self.objective.losses(drift, goal, anchor if anchored else None, temperature, weight)
        if anchored and anchor is not None:
            with torch.no_grad():
                values = (drift.detach(), goal.detach(), anchor)
                self._statistics.append(statistics_tensor(*values, temperature, weight))
        return losses.mean() / prediction[0].numel()

    def temperature(self, step: int) -> float:
        """beta at a step; where it depends on flow time, that of the mean retention."""
        return self.objective.temperature(min(step, self.objective.steps - 1))

    def check(self, call: Call | None = None) -> None:
        """Refuse a network that isn't its anchor before the first step, apart from dropout of torch.

        ``loss`` does so by itself at step 0. Call it before, to know earlier.

        Args:
            call: ``lambda net: net(**inputs)``; without it, that ``loss`` has compared them is all that is checked.

        Raises:
            ConfigError: naming the module that makes the difference; without ``call``, where nothing was compared yet.
        """
        if call is not None:
            device = next((tensor.device for tensor in self._network().state_dict().values()), torch.device("cpu"))
            with torch.no_grad():
                anchor = to_float32(output_of(self._require_anchor()(call, device)))
            self._compare(call, anchor, None)
        elif not self._checked:
            raise ConfigError(
                "check: the network and its anchor haven't been compared yet. Call it after the first loss, or give it "
                "the call: gft.check(lambda net: net(**inputs))."
            )

    def measured(self) -> dict[str, float]:
        """What is known of the run at the last step, for a log.

        ``temperature`` and ``retention``; where the anchor was evaluated at two of the last losses or more, also ``T``
        and ``reached`` of ``gftkit.theory.gap.Summary``, with standard errors over batches as ``T_stderr`` and
        ``reached_stderr``. They are means over the last ``window`` losses: of the network while it moves, on pairs that
        it hadn't been trained on. T has the unit of the squared prediction, ``reached`` has none.
        """
        temperature = self.temperature(max(self._step, 0))
        values = {"temperature": temperature, "retention": retention(temperature)}
        if len(self._statistics) < 2:
            return values
        batches = [Statistics(*row) for row in torch.stack(list(self._statistics)).tolist()]
        found = summary(batches)
        for name, estimate in (("T", found.t), ("reached", found.reached)):
            values |= {name: estimate.value, f"{name}_stderr": estimate.stderr}
        return values

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint: the last step, and what the run must have in common with its continuation."""
        anchor = self._require_anchor()
        return {
            "step": self._step,
            "steps": self.objective.steps,
            "schedule": self._spec,
            "form": self.objective.form,
            "anchor": {"kind": anchor.kind, "hash": anchor.hash},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a run. Call ``anchor_of`` before the trained weights are loaded, and then this.

        Raises:
            ConfigError: for another anchor, schedule, form or number of steps than the run's.
        """
        own, other = self.state_dict(), dict(state)
        anchors = own.pop("anchor"), other.pop("anchor", None) or {}
        if anchors[0]["hash"] != anchors[1].get("hash"):
            hashes = [short_hash(str(anchor.get("hash"))) for anchor in anchors]
            raise ConfigError(
                f"load_state_dict: the run's anchor has the hash {hashes[1]}, and this one {hashes[0]}. Call anchor_of "
                f"with the pretrained network, before the weights of the checkpoint are loaded into it."
            )
        changed = [key for key in own if key != "step" and own[key] != other.get(key)]
        if changed:
            raise ConfigError(
                f"load_state_dict: the run was started with {changed[0]} = {other.get(changed[0])}, and this object "
                f"has {own[changed[0]]}. Create it with the run's own settings."
            )
        self._step, self._checked = int(state["step"]), True

    def _temperature(self, step: int, t: Tensor | None, prediction: Tensor) -> Temperature:
        if self.objective.profile(step) is None:
            return self.objective.temperature(step)
        if t is None or t.shape != prediction.shape[:1]:
            received = None if t is None else tuple(t.shape)
            raise ConfigError(
                f"loss: at step {step} the temperature depends on flow time; wanted t of shape ({len(prediction)},), 0 "
                f"for noise and 1 for data, got {received}."
            )
        return self.objective.temperatures(step, t.detach().to(to_float32(prediction[:0])))

    def _evaluate(self, call: Call | None, prediction: Tensor) -> Tensor:
        """The anchor's prediction in float32."""
        anchor = self._require_anchor()
        if call is None:
            raise ConfigError("loss: wanted the call by which the anchor is evaluated: lambda net: net(**inputs).")
        with torch.no_grad():
            values = output_of(anchor(call, prediction.device))
        if values.shape != prediction.shape:
            raise ConfigError(
                f"loss: wanted a prediction of the anchor of shape {tuple(prediction.shape)}, got "
                f"{tuple(values.shape)}. Do to it what is done to the prediction: lambda net: chunk(net(**inputs))."
            )
        return to_float32(values)

    def _is_first(self, step: int, call: Call | None) -> bool:
        """True where network and anchor are to be compared."""
        return step == 0 and not self._checked and call is not None and self._anchor is not None

    def _compare(self, call: Call, anchor: Tensor, prediction: Tensor | None) -> None:
        network = self._require_anchor().network
        self._checked = True
        if network is None:  # another network: it may differ
            return
        round_off = _round_off(network, prediction if prediction is not None else anchor)
        if is_sharded(network):
            # It can't be called alone. Its own prediction is as good, unless dropout is in it.
            if prediction is not None and not any(isinstance(module, nn.Dropout) for module in network.modules()):
                check_agreement(nn.Identity(), lambda: to_float32(prediction), anchor, NAME, round_off)
            return
        check_fixed(network, lambda: output_of(self._require_anchor()(call, anchor.device)))
        check_agreement(network, lambda: to_float32(output_of(call(network))), anchor, NAME, round_off)

    def _check_inputs(self, step: int, prediction: Tensor, target: Tensor) -> None:
        if prediction.shape != target.shape or prediction.ndim < 2:
            raise ConfigError(
                f"loss: wanted a prediction and a target of one shape (batch, *event), got {tuple(prediction.shape)} "
                f"and {tuple(target.shape)}."
            )
        if step < 0:
            raise ConfigError(f"loss: wanted a step >= 0, got {step}.")
        if step > 0 and self._step < 0 and not self._checked:
            raise ConfigError(
                f"loss: the first step is {step}, so a run is continued. Restore its state, load_state_dict: otherwise "
                f"weights that were trained already could be taken for the anchor."
            )

    def _require_anchor(self) -> LoopAnchor:
        if self._anchor is None:
            raise ConfigError("Gradual: there is no anchor yet. Call anchor_of(network) before the first step.")
        return self._anchor

    def _network(self) -> nn.Module:
        network = self._require_anchor().network
        if network is None:
            raise ConfigError("check: the anchor is external, so there is nothing that must agree with it.")
        return network


def _schedule(schedule: Any, end: Any, registry: Registry | None) -> tuple[Any, Schedule, str]:
    """What identifies a schedule, the schedule, and its name."""
    if not isinstance(schedule, (str, Mapping)):
        if end is not None:
            raise ConfigError("Gradual: `end` is an option of schedules by name, and the schedule is an object.")
        name = type(schedule).__name__
        return name, schedule, name
    spec: dict[str, Any] = {"name": schedule} if isinstance(schedule, str) else dict(schedule)
    if end is not None:
        spec["end"] = end
    registry = registry or load()
    resolved = registry.resolve("schedule", spec, "schedule")
    return plain(resolved), registry.build("schedule", resolved), str(spec.get("name"))


def _round_off(network: nn.Module, prediction: Tensor) -> float:
    """Largest relative difference between network and anchor that counts as none."""
    # accelerate's mixed precision is inside the network's forward, of which a frozen copy from before has none.
    mixed = torch.is_autocast_enabled(prediction.device.type) or hasattr(network, "_original_forward")
    return HALF if mixed or prediction.dtype not in (torch.float32, torch.float64) else ROUND_OFF
