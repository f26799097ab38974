"""Hypotheses about a network, measured on common pairs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from gftkit.data import conditions
from gftkit.data.pairing import pair
from gftkit.data.samples import Samples, Source
from gftkit.kernel.contracts import Batch, Coupling, Estimate, Path
from gftkit.networks.convention import Convention
from gftkit.networks.foreign import ForeignDrift
from gftkit.networks.foreign_weights import Candidate
from gftkit.runtime.randomness import stream
from gftkit.theory import flow
from gftkit.theory.flow import expand

TIMES = (0.2, 0.8)
"""Range of times: nearer to the ends a noise or data prediction divides by small numbers, and errors blow up."""

AT_ONCE = 2**18
"""Values of states that a network gets at once; smaller batches are joined up to this."""

SAME = 1e-3
"""Relative difference of drifts, root mean square, below which two hypotheses are the same function here."""

KNOWN = 256
"""Samples from which the data's range, mean and variance are taken."""

UNTRAINED = "(untrained)"
"""The name of a network's new weights."""


@dataclass(frozen=True)
class Hypothesis:
    """A hypothesis about a network.

    Attributes:
        weights: the name of the weights in their file.
        convention: the call of the network and the meaning of its output.
    """

    weights: str
    convention: Convention


@dataclass
class Finding:
    """The measurements of a hypothesis: one number for each batch."""

    hypothesis: Hypothesis
    denoising: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    products: list[tuple[float, float]] = field(default_factory=list)
    same: list[Hypothesis] = field(default_factory=list)

    @property
    def evaluation_key(self) -> tuple[str, str]:
        """The weights and the call of the network: hypotheses with the same key share their evaluations."""
        neutral = replace(self.hypothesis.convention, predicts="velocity", sign=1, output=None, drop_channels=False)
        return self.hypothesis.weights, repr(neutral)

    @property
    def score(self) -> float:
        """The mean denoising error."""
        return mean(self.denoising)

    @property
    def slope(self) -> Estimate:
        """``E<b, target>/E|b|^2``, with its standard error over batches."""
        size = mean([size for _, size in self.products])
        away = estimate([product - size for product, size in self.products])
        return Estimate(1 + away.value / size, away.stderr / size) if size else Estimate(math.nan, math.nan)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "weights": self.hypothesis.weights,
            "convention": self.hypothesis.convention.differing(),
            "denoising_error": vars(estimate(self.denoising)),
            "flow_matching_loss": vars(estimate(self.loss)),
            "slope": vars(self.slope),
            "batches": len(self.denoising),
            "same": [{"weights": h.weights, "convention": h.convention.differing()} for h in self.same],
        }


@dataclass(frozen=True)
class PairBatches:
    """Batches of pairs, one after the other.

    Attributes:
        t: times, (n,).
        x: states.
        target: the conditional drift at the states.
        samples: x1 with its conditions, of each batch.
    """

    t: Tensor
    x: Tensor
    target: Tensor
    samples: list[Batch]

    @property
    def x1(self) -> Tensor:
        """The data, of x's shape."""
        return torch.cat([batch.x1 for batch in self.samples])


class HypothesisTest:
    """Measures hypotheses on common pairs.

    Args:
        network: the network, whose weights are exchanged while it measures.
        candidates: the sets of weights.
        data: x1.
        path: the path.
        source: draws x0.
        coupling: pairs x0 with x1.
        size: pairs in a batch.
        seed: of the pairs.
        device: where the network is evaluated.
    """

    def __init__(
        self,
        network: nn.Module,
        candidates: Sequence[Candidate],
        data: Samples,
        *,
        path: Path,
        source: Source,
        coupling: Coupling,
        size: int,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.network, self.path, self.device = network, path, torch.device(device)
        self.data, self.source, self.coupling, self.size, self.seed = data, source, coupling, size, seed
        untrained = {name: value.clone() for name, value in network.state_dict().items()}
        self.states = {candidate.name: candidate.weights for candidate in candidates} | {UNTRAINED: untrained}
        self.known = data.draw(KNOWN, stream(seed, "inspect", "known")).x1.to(device)
        self.mean = self.known.mean(0)
        self.variance = float((self.known - self.mean).square().mean())
        self.naive: dict[str, list[float]] = {}

    def pairs(self, *numbers: int) -> PairBatches:
        """Batches of pairs with times in ``TIMES``, one after the other: a function of seed and numbers."""
        batches = [self._batch(number) for number in numbers]
        t, x, target = (torch.cat(parts) for parts in zip(*((b.t, b.x, b.target) for b in batches), strict=True))
        return PairBatches(t, x, target, [batch.samples[0] for batch in batches])

    def _batch(self, number: int) -> PairBatches:
        generator = stream(self.seed, "inspect", number)
        batch = self.data.draw(self.size, generator)
        x0 = self.source(self.size, generator)
        order = pair(self.coupling, x0, batch.x1, generator, batch.label, within_labels=False)
        low, high = TIMES
        t = (low + (high - low) * torch.rand(self.size, generator=generator)).to(self.device)
        batch = replace(batch, x0=None).to(self.device)
        x0 = x0[order].to(self.device)
        x = flow.sample(self.path, t, x0, batch.x1, None)
        return PairBatches(t, x, flow.drift(self.path, t, x0, batch.x1, None), [batch])

    @torch.no_grad()
    def measure(self, findings: Sequence[Finding], numbers: Sequence[int], advance: Callable[[int], None]) -> None:
        """Add the measurements of every batch to each finding; small batches are evaluated together."""
        groups: dict[str, dict[str, list[Finding]]] = {}
        for finding in findings:
            weights, call = finding.evaluation_key
            groups.setdefault(weights, {}).setdefault(call, []).append(finding)
        memoized = MemoizedNetwork(self.network)
        drifts = {id(finding): ForeignDrift(memoized, finding.hypothesis.convention, self.path) for finding in findings}
        values = self.size * self.mean.numel()
        at_once = max(1, AT_ONCE // values)
        chunks = [numbers[first : first + at_once] for first in range(0, len(numbers), at_once)]
        # Weights on the outside: loading them costs more than drawing the pairs again.
        for weights, calls in groups.items():
            self.network.load_state_dict(self.states[weights])
            for chunk in chunks:
                pairs = self.pairs(*chunk)
                for group in calls.values():
                    memoized.forget()
                    for finding in group:
                        self._add(finding, _evaluate(drifts[id(finding)], pairs), pairs)
                    advance(len(chunk))
        for chunk in chunks:
            self._add_naive(self.pairs(*chunk))

    def _add(self, finding: Finding, drift: Tensor, pairs: PairBatches) -> None:
        count = len(pairs.samples)
        finding.denoising += _means((denoised(self.path, pairs.t, pairs.x, drift) - pairs.x1).square(), count)
        finding.loss += _means((drift - pairs.target).square(), count)
        products = _means(drift * pairs.target, count), _means(drift.square(), count)
        finding.products += zip(*products, strict=True)

    def _add_naive(self, pairs: PairBatches) -> None:
        """Predictions of the data that need no network, and the best one that is linear in the state."""
        x = pairs.x
        sigma, alpha, _ = (expand(value, x) for value in self.path.coefficients(pairs.t))
        gain = alpha * self.variance / (sigma**2 + alpha**2 * self.variance)
        for name, guess in {
            "velocity 0": denoised(self.path, pairs.t, x, torch.zeros_like(x)),
            "noise 0": x / alpha,
            "data 0": torch.zeros_like(x),
            "data's mean": self.mean.expand_as(x),
            "linear": self.mean + gain * (x - alpha * self.mean),
        }.items():
            self.naive.setdefault(name, []).extend(_means((guess - pairs.x1).square(), len(pairs.samples)))

    @torch.no_grad()
    def merged(self, findings: Sequence[Finding]) -> list[Finding]:
        """The findings, without those that are the same function as an earlier one, which lists them as ``same``."""
        # Equal functions would be rivals that no number of pairs separates.
        pairs = self.pairs(0)
        kept: list[tuple[Finding, Tensor]] = []
        for finding in findings:
            self.network.load_state_dict(self.states[finding.hypothesis.weights])
            out = _evaluate(ForeignDrift(self.network, finding.hypothesis.convention, self.path), pairs)
            for other, known in kept:
                if float((out - known).square().mean()) <= SAME**2 * float(known.square().mean()):
                    other.same.append(finding.hypothesis)
                    break
            else:
                kept.append((finding, out))
        return [finding for finding, _ in kept]


class MemoizedNetwork(nn.Module):
    """A network that returns its last outputs again when it is called with the same values.

    Hypotheses differ in the meaning of an output more often than in the call that it comes from.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.forget()

    def forget(self) -> None:
        """Forget every call."""
        self._calls: list[tuple[tuple[Any, ...], Mapping[str, Any], Any]] = []

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The network's output."""
        for earlier, by_name, out in self._calls:
            if len(earlier) == len(arguments) and by_name.keys() == named.keys():
                pairs = [*zip(earlier, arguments, strict=True), *((by_name[key], named[key]) for key in named)]
                if all(_equal(one, other) for one, other in pairs):
                    return out
        out = self.network(*arguments, **named)
        self._calls.append((arguments, named, out))
        return out


def denoised(path: Path, t: Tensor, x: Tensor, drift: Tensor) -> Tensor:
    """The data that a drift points at in one step: d of x = sigma e + alpha d and b = sigma' e + alpha' d."""
    sigma, alpha, _ = (expand(value, x) for value in path.coefficients(t))
    sigma_rate, alpha_rate, _ = (expand(rate, x) for rate in flow.rates(path, t))
    return (sigma_rate * x - sigma * drift) / (sigma_rate * alpha - sigma * alpha_rate)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean over batches and its standard error; nan for one batch."""
    spread = float(torch.tensor(values, dtype=torch.float64).std()) if len(values) > 1 else math.nan
    return Estimate(mean(values), spread / math.sqrt(len(values)))


def mean(values: Sequence[float]) -> float:
    """The mean; infinite where a value isn't finite, and of no values."""
    average = sum(values) / len(values) if values else math.inf
    return average if math.isfinite(average) else math.inf


def _evaluate(drift: ForeignDrift, pairs: PairBatches) -> Tensor:
    each = [conditions.conditions_of(drift, batch) for batch in pairs.samples]
    joined = {name: torch.cat([batch[name] for batch in each]) for name in each[0]}
    out: Tensor = drift(pairs.t, pairs.x, **joined)
    return out


def _means(values: Tensor, batches: int) -> list[float]:
    """The mean of each batch; infinite where a value isn't finite."""
    means = values.double().reshape(batches, -1).mean(1)
    return torch.where(torch.isfinite(means), means, torch.inf).tolist()


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one is other or (not isinstance(one, Tensor) and not isinstance(other, Tensor) and bool(one == other))
