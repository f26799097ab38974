"""A foreign network as a drift: called, timed, scaled and converted as its convention says."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gftkit.kernel.contracts import Path
from gftkit.kernel.errors import ConfigError
from gftkit.networks.convention import Convention
from gftkit.networks.precision import Precision, autocast, to_float32
from gftkit.theory import flow
from gftkit.theory.flow import expand

ROUNDS = 60
"""Halvings of [0, 1] when a time is looked for: enough for float64."""


class ForeignDrift(nn.Module):
    """A network of any convention, as a drift b(t, x). (batch,), (batch, *event) -> (batch, *event).

    Its parameters are the network's. What it computes is derived in ``docs/guide/networks.md``.

    Args:
        network: the network.
        convention: how it is called and what it predicts.
        path: the path of the run. Needed where a prediction is converted, or data are rescaled.

    Attributes:
        conditions: the conditions that the network is given.
        null: the values that stand for "not given".
        precision: of the network's weights. In half precision it is evaluated under autocast; time and state stay
            float32.

    Raises:
        ConfigError: for a convention that contradicts the path; in use, for an output that the convention
            doesn't fit.

    Example:
        >>> import torch
        >>> from gftkit.networks.convention import Convention
        >>> network = lambda x, t: x - t[:, None]
        >>> reversed_time = Convention.of({"call": "x, t", "time": "reversed", "time_scale": 1000.0})
        >>> drift = ForeignDrift(network, reversed_time)
        >>> drift(torch.tensor([0.25]), torch.tensor([[2.0]]))
        tensor([[748.]])
    """

    def __init__(self, network: nn.Module, convention: Convention, path: Path | None = None) -> None:
        super().__init__()
        self.network, self.convention, self.path = network, convention, path
        self.conditions, self.null = convention.conditions, convention.nulls
        # No buffers: these would be cast with the weights, and are no part of the network's state.
        self._constants, self._per_sample = convention.given_constants, convention.per_sample
        self.precision: Precision = "float32"
        self._arguments = convention.arguments
        self._scale, self._shift = convention.scale_and_shift
        check_path(convention, path)

    def forward(self, t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
        """The drift at time t in state x."""
        convention = self.convention
        moves = convention.predicts in ("velocity", "drift")
        if convention.rescales == "state":
            if moves:
                return self._predict(t, self._scale * x + self._shift, conditions) / self._scale
            t = self._clamp_time(t)
            return self._convert(t, x, self._predict(t, self._scale * x + self._shift, conditions))
        if moves and not convention.rescaled:
            return self._predict(t, x, conditions)
        t = self._clamp_time(t)
        if not convention.rescaled:
            return self._convert(t, x, self._predict(t, x, conditions))
        return self._rescale(t, x, conditions)

    def _convert(self, t: Tensor, x: Tensor, prediction: Tensor) -> Tensor:
        """The velocity from a noise, data or score of gftkit's time; with ``rescales: state`` of the network's values.

        With x = sigma e + alpha d: d = (x - sigma e)/alpha or e = (x - alpha d)/sigma, v = sigma' e + alpha' d.
        """
        path, (sigma, alpha) = self._path(), self._coefficients(t, x)
        sigma_rate, alpha_rate, _ = (expand(rate, x) for rate in flow.rates(path, t))
        match self.convention.predicts:
            case "data":
                data = (prediction - self._shift) / self._scale
                return alpha_rate * data + sigma_rate / sigma * (x - alpha * data)
            case "noise":
                noise = (prediction - self._shift) / self._scale
            case _:  # the density of a x + c has 1/a times the score
                noise = -sigma * self._scale * prediction
        return sigma_rate * noise + alpha_rate / alpha * (x - sigma * noise)

    def _rescale(self, t: Tensor, x: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The velocity where the network knows data as a d + c and the source as it is.

        Its state at tau is y = sigma(tau) e + alpha(tau)(a d + c) = k x + alpha(tau) c for the tau at which
        a alpha(tau)/sigma(tau) = alpha(t)/sigma(t). So e and d have the same law given y as given x.
        """
        path, (sigma, alpha) = self._path(), self._coefficients(t, x)
        tau = self._match_time(t)
        sigma_y, alpha_y = self._coefficients(tau, x)
        k = (sigma_y * sigma + self._scale * alpha_y * alpha) / (sigma**2 + alpha**2)
        y = k * x + alpha_y * self._shift
        prediction = self._predict(tau, y, conditions)
        sigma_rate, alpha_rate, _ = (expand(rate, x) for rate in flow.rates(path, t))
        match self.convention.predicts:
            case "data":
                data = (prediction - self._shift) / self._scale
                noise = (x - alpha * data) / sigma
            case "noise" | "score":
                noise = prediction if self.convention.predicts == "noise" else -sigma_y * prediction
                data = (x - sigma * noise) / alpha
            case _:  # y and its velocity are two equations for noise and data
                sigma_slope, alpha_slope, _ = (expand(rate, x) for rate in flow.rates(path, tau))
                determinant = alpha_slope * sigma_y - alpha_y * sigma_slope
                noise = (alpha_slope * y - alpha_y * prediction) / determinant
                data = ((sigma_y * prediction - sigma_slope * y) / determinant - self._shift) / self._scale
        return sigma_rate * noise + alpha_rate * data

    def _match_time(self, t: Tensor) -> Tensor:
        """The tau with a alpha(tau)/sigma(tau) = alpha(t)/sigma(t), by bisection."""
        path = self._path()
        sigma, alpha, _ = path.coefficients(t)
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(ROUNDS):
            middle = (low + high) / 2
            sigma_middle, alpha_middle, _ = path.coefficients(middle)
            # The ratio alpha/sigma rises with time; multiplied out, because sigma is 0 at t = 1.
            early = self._scale * alpha_middle * sigma < alpha * sigma_middle
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return (low + high) / 2

    def _clamp_time(self, t: Tensor) -> Tensor:
        """t, no nearer than the margin to the end where the conversion is singular.

        The drift of a noise is (alpha'/alpha)(x - sigma e) + ..., 0/0 at t = 0, and that of data is so at t = 1.
        """
        match self.convention.predicts:
            case "noise" | "score":
                return t.clamp(min=self.convention.end_margin)  # the network is evaluated there instead
            case "data":
                return t.clamp(max=1 - self.convention.end_margin)
            case _:
                return t

    def _coefficients(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        sigma, alpha, _ = self._path().coefficients(t)
        return expand(sigma, x), expand(alpha, x)

    def _path(self) -> Path:
        assert self.path is not None  # check_path has refused it
        return self.path

    def _predict(self, t: Tensor, x: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's prediction, in its own values, at gftkit's time t; a velocity or drift as d/dt."""
        convention = self.convention
        time = (1 - t if convention.time == "reversed" else t) * convention.time_scale
        if convention.integer_time:
            time = time.round().long()
        if convention.time_shape == "scalar":
            out = self._one_by_one(time, x, conditions)
        else:
            shape = {"batch": (-1,), "column": (-1, 1), "event": (-1, *[1] * (x.ndim - 1))}[convention.time_shape]
            out = self._call(time.reshape(shape), x, conditions)
        against = convention.time == "reversed" and convention.predicts in ("velocity", "drift")
        return -out if against != (convention.sign < 0) else out

    def _one_by_one(self, time: Tensor, x: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output where it takes one time for the whole batch: in one call if all are equal."""
        if bool((time == time[:1]).all()):  # a sampler's steps; training draws a time for each sample
            return self._call(time[0], x, conditions)
        each = (slice(i, i + 1) for i in range(len(x)))
        return torch.cat([self._call(time[i][0], x[i], {k: v[i] for k, v in conditions.items()}) for i in each])

    def _call(self, time: Tensor, x: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output, of x's shape."""
        convention = self.convention
        typed = {name: _as_type(name, value, convention.types) for name, value in conditions.items()}
        values = {**typed, "t": time, "x": x}
        missing = [what for what in self.conditions if what not in values]
        if missing:
            raise ConfigError(
                f"convention.call: '{convention.call}' uses '{missing[0]}', which these data don't have. Leave it out "
                f"of the call, or use data that have it."
            )
        arguments = [(name, _concatenate([values[what] for what in several])) for name, several in self._arguments]
        by_position = [value for name, value in arguments if name is None]
        by_name = {name: value for name, value in arguments if name is not None}
        constants = {
            name: value if not isinstance(value, Tensor) else value.to(x.device)
            for name, value in self._constants.items()
        }
        for name in self._per_sample:
            constants[name] = constants[name].expand(len(x), *constants[name].shape[1:])
        with autocast(self.precision, x.device):
            out = self.network(*by_position, **by_name, **constants)
        out = self._select_output(out, x)
        return out if self.precision == "float32" else to_float32(out)

    def _select_output(self, out: Any, x: Tensor) -> Tensor:
        """The prediction of an output, of x's shape.

        Raises:
            ConfigError: where the convention names no tensor of that shape.
        """
        wanted = self.convention.output
        if wanted is not None:
            try:
                out = getattr(out, wanted) if isinstance(wanted, str) and hasattr(out, wanted) else out[wanted]
            except (KeyError, IndexError, TypeError, ValueError):
                raise ConfigError(
                    f"convention.output: the network's output, {_describe(out)}, has no '{wanted}'. Set `output` to "
                    f"one of its parts."
                ) from None
        if not isinstance(out, Tensor):
            raise ConfigError(
                f"convention.output: wanted a tensor, got {_describe(out)}. Set `output` to the part that is the "
                f"prediction."
            )
        channels = x.shape[1] if x.ndim > 1 else 0
        if self.convention.drop_channels and out.ndim == x.ndim and out.shape[1] > channels:
            out = out[:, :channels]
        if out.shape != x.shape:
            doubled = out.ndim == x.ndim and out.shape[1] == 2 * channels and out.shape[2:] == x.shape[2:]
            cure = (
                "The second half may be a variance; drop_channels: true keeps the first."
                if doubled
                else "Choose another output, or another network."
            )
            raise ConfigError(
                f"convention: the network gives {tuple(out.shape)} for a state of {tuple(x.shape)}. {cure}"
            )
        return out


def own_network(drift: nn.Module) -> nn.Module:
    """The network that files for other programs are of: a foreign one without its wrapper, any other drift itself."""
    return drift.network if isinstance(drift, ForeignDrift) else drift


def check_path(convention: Convention, path: Path | None) -> None:
    """Refuse a convention that contradicts the path.

    Raises:
        ConfigError: with the reason.
    """
    predicts = convention.predicts
    shared = convention.rescaled and convention.rescales == "data"
    if path is None:
        if predicts in ("noise", "data", "score") or shared:
            raise ConfigError(
                f"convention: predicts: {predicts}, or a range of the data, requires the path of the run. Give the "
                f"path."
            )
        return
    noisy = flow.is_noisy(path) or flow.is_stochastic(path)
    if noisy and predicts != "drift":
        raise ConfigError(
            f"convention.predicts: {predicts} doesn't determine the drift on this path, which has noise beside the "
            f"pair: x_t = sigma x0 + alpha x1 + gamma eps. Use a network that predicts the drift of the SDE "
            f"(predicts: drift), or another path."
        )
    if noisy and convention.time == "reversed":
        raise ConfigError(
            "convention.time: the drift of an SDE in reversed time differs from minus the drift by g^2 times the "
            "score. Use a network of forward time, or a path without noise."
        )
    if noisy and shared:
        raise ConfigError(
            "convention.range: data can be rescaled only on paths without noise. Rescale the data themselves, or use "
            "another path."
        )


def check_score(convention: Convention, *, independent: bool, normal: bool) -> None:
    """Refuse a score where it doesn't tell the velocity.

    Args:
        convention: the convention.
        independent: whether x0 is independent of x1.
        normal: whether x0 ~ N(0, I).

    Raises:
        ConfigError: with the reason.
    """
    if convention.predicts != "score":
        return
    if not independent:
        raise ConfigError(
            "convention.predicts: a score gives the velocity only if x0 is independent of x1, and this coupling pairs "
            "them. Use `coupling: {name: independent}`, or a network that predicts the velocity."
        )
    if not normal:
        raise ConfigError(
            "convention.predicts: a score gives the velocity only for the source N(0, I). Use `source: {name: "
            "gaussian}`, or a network that predicts the velocity."
        )


def _as_type(name: str, value: Tensor, types: Mapping[str, str] | None) -> Tensor:
    """A condition as the type that the network needs: data have float32.

    Raises:
        ConfigError: for a value that the type doesn't have.
    """
    wanted = (types or {}).get(name)
    if wanted is None:
        return value
    typed = value.to(getattr(torch, wanted))
    if not torch.equal(typed.to(value.dtype), value):
        raise ConfigError(
            f"convention.types: the condition '{name}' has values that aren't of type {wanted}. Change them, or leave "
            f"the type out."
        )
    return typed


def _concatenate(values: list[Tensor]) -> Tensor:
    """Numbers (batch,), () and vectors (batch, n) as one vector, (batch, sum of n); a single value as it is.

    Raises:
        ConfigError: where one is neither.
    """
    if len(values) == 1:
        return values[0]
    if any(value.ndim > 2 for value in values):
        shapes = ", ".join(str(tuple(value.shape)) for value in values)
        raise ConfigError(
            f"convention.call: cat(...) takes numbers and vectors, got shapes {shapes}. Wrap the network in a class "
            f"with forward(t, x)."
        )
    batch = max(len(value) for value in values if value.ndim)
    return torch.cat([v if v.ndim == 2 else v.reshape(-1, 1).expand(batch, 1) for v in values], dim=1)


def _describe(out: Any) -> str:
    if isinstance(out, Tensor):
        return f"a tensor of shape {tuple(out.shape)}"
    if isinstance(out, Mapping):
        return f"a {type(out).__name__} with {', '.join(map(str, out))}"
    if isinstance(out, (tuple, list)):
        return f"a {type(out).__name__} of {len(out)}"
    return f"a {type(out).__name__}"
