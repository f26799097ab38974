"""Is a network the function that Gradual Fine-Tuning takes it for? Probes that run before the first step.

The anchor is a function of (t, x, condition), fixed, in evaluation mode (theory, section 2). So the drift, in training
mode and before any step, must be that function too, apart from declared dropout; else the loss isn't 0 at the start of
an infinite temperature, and a retention ties the drift to something that it never was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from gftkit.kernel.errors import ConfigError
from gftkit.networks.anchor import Anchor

ROUND_OFF = 1e-3
"""Largest difference, relative to the output's size, that counts as none: the kernels of two modes or devices round
differently, and adapters that are merged round once more."""

HALF = 0.05
"""The same, where one network is in half precision: bfloat16 has eight significant bits, and layers add up."""

STOCHASTIC_DEPTH = ("DropPath", "StochasticDepth")
"""Classes of modules that leave out whole residual branches: dropout under a name of its own, as timm and torchvision
have it."""

_DROPOUT = {
    *(getattr(functional, name) for name in ("dropout", "dropout1d", "dropout2d", "dropout3d")),
    *(getattr(library, name) for library in (functional, torch) for name in ("alpha_dropout", "feature_alpha_dropout")),
    torch.dropout,
    torch.feature_dropout,
}


@dataclass(frozen=True)
class Inputs:
    """Inputs on which a network is probed: real ones, because zeros hide much.

    Attributes:
        t: (n,).
        x: (n, *event).
        conditions: of the drift, (n, ...) each.
    """

    t: Tensor
    x: Tensor
    conditions: Mapping[str, Tensor]

    def to(self, device: torch.device | str) -> "Inputs":
        """The same on a device."""
        conditions = {name: values.to(device) for name, values in self.conditions.items()}
        return Inputs(self.t.to(device), self.x.to(device), conditions)

    def of(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The conditions of these names."""
        return {name: self.conditions[name] for name in names}


class _WithoutDropout(TorchFunctionMode):
    """Torch's dropout functions do nothing: of attention, too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func in _DROPOUT:
            return args[0] if args else options["input"]
        if func is functional.scaled_dot_product_attention:
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            options |= {"dropout_p": 0.0} if len(args) <= 4 else {}
        elif func is functional.multi_head_attention_forward:
            options["training"] = False
        return func(*args, **options)


def check_network(drift: nn.Module, inputs: Inputs, name: str) -> None:
    """Refuse a network that isn't a function of its inputs, or changes them.

    Args:
        drift: the network; its modes, buffers and the random numbers of others are left as they are.
        inputs: to evaluate it on.
        name: of the drift, for errors.

    Raises:
        ConfigError: for one that changes its inputs in place, draws random numbers in evaluation mode, or keeps state
            outside its state dict that training changes.
    """
    with _untouched(drift):
        drift.eval()
        before = _evaluate(drift, inputs, name)
        if _differ(before, _evaluate(drift, inputs, name, seed=1)):
            raise ConfigError(
                f"drift '{name}': two evaluations in evaluation mode differ: the network draws random numbers there, "
                f"or counts its calls. The anchor must be a function of time, state and conditions. Give F.dropout "
                f"`training=self.training`."
            )
        with _untouched(drift):
            drift.train()
            _evaluate(drift, inputs, name)
        drift.eval()
        if _differ(before, _evaluate(drift, inputs, name)):
            raise ConfigError(
                f"drift '{name}': one evaluation in training mode changes the network, and its state dict doesn't show "
                f"it, so no checkpoint could keep it. Register what changes as a buffer (register_buffer)."
            )


def check_rebuilt(
    drift: nn.Module, weights: Mapping[str, Tensor], build: Callable[[], nn.Module], inputs: Inputs, name: str
) -> None:
    """Refuse a network whose state isn't all in its state dict: a run's files couldn't give it back.

    Args:
        drift: the network with its first weights.
        weights: its state dict, without adapters.
        build: builds it again, with new weights.
        inputs: to evaluate both on.
        name: of the drift, for errors.

    Raises:
        ConfigError: where a second network with the same state dict gives another output.
    """
    with _untouched(drift), torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() + 1)  # what is drawn at construction must not agree by chance
        other = build().eval()
        # The tensors themselves, not copies: a large network need not fit into memory a third time.
        other.load_state_dict(weights, assign=True)
        drift.eval()
        one, two = _evaluate(drift, inputs, name), _evaluate(other, inputs, name)
        if _differ(one, two):
            hidden = _hidden_differences(drift, other)
            names = f": {', '.join(hidden[:4])}" if hidden else ""
            raise ConfigError(
                f"drift '{name}': the network, built again and given the same state dict, gives another output, so its "
                f"state isn't all in its state dict{names}. A run couldn't be read back. Register such tensors as "
                f"persistent buffers (register_buffer), or compute them without random numbers."
            )


def check_anchor_stays(drift: nn.Module, anchor: Anchor, inputs: Inputs) -> None:
    """Refuse an anchor that moves with the trained weights: it would retain nothing (T18).

    Raises:
        ConfigError: where the anchor's output changes with the weights that require gradients.
    """
    conditions = inputs.of(anchor.conditions)
    check_fixed(drift, lambda: anchor(inputs.t, inputs.x, **conditions))


def check_fixed(network: nn.Module, evaluate: Callable[[], Tensor]) -> None:
    """Refuse an anchor that moves with the trained weights: it would retain nothing (T18).

    Args:
        network: that is trained; its weights are as before afterwards.
        evaluate: gives the anchor's output.

    Raises:
        ConfigError: where that changes with the weights that require gradients.
    """
    with torch.no_grad(), _untouched(network):
        before = evaluate()
        with _moved([weight for weight in network.parameters() if weight.requires_grad]):
            after = evaluate()
    if not torch.equal(before, after):
        raise ConfigError(
            "anchor: it changes with the weights that are trained, so that it would retain nothing (T18). Its copy "
            "shares something with the original, such as a function stored at construction that refers to `self`, or "
            "a tensor outside of parameters and buffers. Refer to modules by their names instead."
        )


def check_start(
    drift: nn.Module, reference: Callable[..., Tensor], inputs: Inputs, name: str, conditions: Sequence[str]
) -> None:
    """Refuse a drift that in training mode isn't what its anchor is; see ``check_agreement``.

    Args:
        drift: the network with its first weights, and its adapters.
        reference: the anchor, or the drift in evaluation mode where the anchor is another network.
        inputs: to evaluate both on.
        name: of the drift, for errors.
        conditions: those that the reference is given.
    """
    with _untouched(drift), torch.no_grad():
        drift.eval()
        expected = reference(inputs.t, inputs.x, **inputs.of(conditions))
    check_agreement(drift, lambda: _evaluate(drift, inputs, name), expected, f"drift '{name}'")


def check_agreement(
    network: nn.Module, evaluate: Callable[[], Tensor], expected: Tensor, name: str, round_off: float = ROUND_OFF
) -> None:
    """Refuse a network that in training mode gives another output than its anchor, apart from declared dropout.

    Declared dropout is torch's own, and modules of ``STOCHASTIC_DEPTH``.

    Args:
        network: with its first weights, and its adapters; its modes and buffers are left as they are.
        evaluate: gives its output, on the inputs of ``expected``.
        expected: the anchor's output.
        name: of the network, for errors.
        round_off: largest relative difference that counts as none.

    Raises:
        ConfigError: naming the module whose training mode makes the difference, with the cure.
    """

    def training(evaluated: nn.Module | None = None) -> Tensor:
        return _evaluate_training(network, evaluate, evaluated)

    def agrees(out: Tensor) -> bool:
        return not _differ(expected, out, round_off)

    with _untouched(network), torch.no_grad():
        with _drawing(network) as drawing:
            actual = training()
        if drawing:
            raise ConfigError(_random_message(network, drawing[0], name))
        if agrees(actual):
            return
        network.eval()
        if not agrees(evaluate()):
            raise ConfigError(
                f"{name}: before the first step it differs from its anchor, by {_size(expected, actual)}, also in "
                f"evaluation mode. Both must be the pretrained network, given the same inputs."
            )
        module = _responsible(network, training, agrees)
        raise ConfigError(_mode_message(network, module, name, _size(expected, actual)))


def agree(one: nn.Module, other: nn.Module, inputs: Inputs, name: str, round_off: float = ROUND_OFF) -> bool:
    """True where two networks give the same output in evaluation mode, up to round-off, each on its own device."""

    def output(drift: nn.Module) -> Tensor:
        # Not parameters(): a network that is evaluated with averages of another's weights has none of its own.
        device = next((tensor.device for tensor in drift.state_dict().values()), inputs.t.device)
        with _untouched(drift):
            return _evaluate(drift.eval(), inputs.to(device), name).cpu()

    return not _differ(output(one), output(other), round_off)


def own_label_dropout(network: nn.Module) -> dict[str, nn.Module]:
    """Modules that drop labels themselves while training, as the label embedders of DiT and SiT do, by name.

    Such a module has a table ``embedding_table`` and a share ``dropout_prob`` above 0.
    """
    return {
        name: module
        for name, module in network.named_modules()
        if hasattr(module, "embedding_table") and getattr(module, "dropout_prob", 0) > 0
    }


def _evaluate(drift: nn.Module, inputs: Inputs, name: str, seed: int = 0) -> Tensor:
    """The drift, without gradient, of copies of the inputs, which it must leave unchanged."""
    before = {"t": inputs.t, "x": inputs.x, **inputs.conditions}
    copies = {key: values.clone() for key, values in before.items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        out: Tensor = drift(**copies)
    for key, values in copies.items():
        if not torch.equal(values, before[key]):
            raise ConfigError(
                f"drift '{name}': the network changes its input {key} in place, so the anchor and the loss would be "
                f"given other values than the drift. Let it work on a new tensor: x = x + ... in place of x += ..."
            )
    # A result that shares memory with an input, such as the identity, must not change with it.
    return out.clone()


def _evaluate_training(drift: nn.Module, evaluate: Callable[[], Tensor], evaluated: nn.Module | None = None) -> Tensor:
    """The drift in training mode without declared dropout, one part in evaluation mode; buffers are put back."""
    with _untouched(drift), _WithoutDropout():
        drift.train()
        for module in drift.modules():
            if type(module).__name__ in STOCHASTIC_DEPTH:
                module.eval()
        if evaluated is not None:
            evaluated.eval()
        return evaluate()


def _differ(one: Tensor, other: Tensor, round_off: float = ROUND_OFF) -> bool:
    size = float(one.double().square().mean().sqrt())
    return float((one - other).double().square().mean().sqrt()) > round_off * max(size, 1e-6)


def _size(expected: Tensor, actual: Tensor) -> str:
    return f"up to {float((expected - actual).abs().max()):.3g} in values up to {float(expected.abs().max()):.3g}"


@contextmanager
def _untouched(drift: nn.Module) -> Iterator[None]:
    """Put back modes and buffers, which training mode may change."""
    modes = [(module, module.training) for module in drift.modules()]
    buffers = [(buffer, buffer.clone()) for _, buffer in drift.named_buffers()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


@contextmanager
def _moved(weights: Sequence[Tensor]) -> Iterator[None]:
    """The weights, each moved in place, for as long as it lasts."""
    # One tensor at a time would need an evaluation each, and copies of all the network once more: the change is undone
    # exactly instead. Doubling a float and halving it again is exact; zeros, which it doesn't move, become ones.
    # Through .data, because a graph that has saved the weights already would refuse its backward pass.
    zero = [not bool(weight.any()) for weight in weights]
    for weight, empty in zip(weights, zero, strict=True):
        weight.data.fill_(1) if empty else weight.data.mul_(2)
    try:
        yield
    finally:
        for weight, empty in zip(weights, zero, strict=True):
            weight.data.zero_() if empty else weight.data.mul_(0.5)


@contextmanager
def _drawing(drift: nn.Module) -> Iterator[list[str]]:
    """The names of modules that draw random numbers in their forward, innermost first."""
    names: list[str] = []
    before: list[Tensor] = []

    def enter(*_: Any) -> None:
        before.append(torch.get_rng_state())

    def leave(name: str, *_: Any) -> None:
        if not torch.equal(before.pop(), torch.get_rng_state()):
            names.append(name)

    hooks = []
    for name, module in drift.named_modules():
        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(partial(leave, name))]
    try:
        yield names
    finally:
        for hook in hooks:
            hook.remove()


def _responsible(
    drift: nn.Module, training: Callable[[nn.Module | None], Tensor], agrees: Callable[[Tensor], bool]
) -> str:
    """The innermost module whose evaluation mode removes the difference."""
    place = drift
    path: list[str] = []
    while True:
        inner = next((pair for pair in place.named_children() if agrees(training(pair[1]))), None)
        if inner is None:
            return ".".join(path)
        path.append(inner[0])
        place = inner[1]


def _describe(drift: nn.Module, module: str) -> str:
    kind = type(drift.get_submodule(module)).__name__
    return f"{module} ({kind})" if module else kind


def _random_message(drift: nn.Module, module: str, name: str) -> str:
    labels = own_label_dropout(drift)
    if module in labels:
        share = labels[module].dropout_prob
        cure = (
            f"Set drift.label_dropout: false, and train.condition_dropout: {share:g} with convention.null: gftkit then "
            f"drops the labels of drift and anchor together. In your own loop, set its dropout_prob to 0 and drop "
            f"labels in the inputs of both."
        )
    else:
        cure = (
            "Let it draw none, and drop conditions by train.condition_dropout, which does so for drift and anchor "
            "together. Dropout by torch's own functions is allowed."
        )
    return (
        f"{name}: in training mode {_describe(drift, module)} draws random numbers, as a dropout of conditions "
        f"does, and the anchor, in evaluation mode, draws none, so the two would be different functions. "
        f"{cure}"
    )


def _mode_message(drift: nn.Module, module: str, name: str, size: str) -> str:
    statistics = getattr(drift.get_submodule(module), "running_mean", None) is not None
    cure = (
        "It keeps running statistics. Use group or layer normalization, or keep the module in evaluation mode: let "
        "its class's `train` do nothing."
        if statistics
        else "Let it compute the same in both modes, but for dropout by torch's own functions."
    )
    return (
        f"{name}: before the first step it differs in training mode from its anchor, by {size}, because of "
        f"{_describe(drift, module)}. {cure}"
    )


def _hidden_differences(one: nn.Module, other: nn.Module) -> list[str]:
    """Names of tensors outside the state dict in which two networks differ."""
    names: list[str] = []
    others = dict(other.named_modules())
    for place, module in one.named_modules():
        twin = others.get(place)
        if twin is None:
            continue
        kept: set[str] = getattr(module, "_non_persistent_buffers_set", set())
        tensors = {key: value for key, value in vars(module).items() if isinstance(value, Tensor)}
        tensors |= {key: value for key, value in module.named_buffers(recurse=False) if key in kept}
        for key, value in tensors.items():
            same = getattr(twin, key, None)
            if not isinstance(same, Tensor) or same.shape != value.shape or not torch.equal(same, value):
                names.append(f"{place}.{key}" if place else key)
    return names
