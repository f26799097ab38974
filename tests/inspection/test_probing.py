"""Calls of a network that nobody described: found by trying, with labels where it takes them."""

import pytest
import torch
from support import oracles
from support.inspections import TRUTH, USUAL, Told, look
from torch import nn

from gftkit.data.description import Facts
from gftkit.inspection import probing
from gftkit.inspection.ranking import InspectionError
from gftkit.networks.convention import Convention


class XT(Told):
    def forward(self, x, timestep, class_labels=None):
        return self.answer(timestep, x)


class Keywords(Told):
    def forward(self, mode="a", *, sample, timestep):
        return {"first": 3, "sample": self.answer(timestep, sample)}


class Column(Told):
    def forward(self, x, t):
        both = torch.cat([x, t], 1)
        return self.answer(both[:, -1], both[:, :-1])


class Tuple(Told):
    def forward(self, x, t):
        return self.answer(t, x), None


class SideBySide(Told):
    def forward(self, both):
        return self.answer(both[:, 0], both[:, 1:])


class Table(Told):
    def __init__(self, oracle):
        super().__init__(oracle)
        self.table = torch.linspace(0, 1, 1000)

    def forward(self, x, t):
        return torch.cat([self.answer(self.table[t], x), x], 1)


@pytest.mark.parametrize(
    ("network", "scale", "fields"),
    [
        (XT, 1.0, {"call": "x, t"}),
        (Keywords, 1.0, {"call": "sample=x, timestep=t", "output": "sample"}),
        (Column, 1.0, {"call": "x, t", "time_shape": "column"}),
        (Tuple, 1.0, {"call": "x, t", "output": 0}),
        (SideBySide, 1000.0, {"call": "cat(t, x)"}),
        (Table, 999.0, {"call": "x, t", "integer_time": True, "drop_channels": True}),
    ],
)
def test_probing_finds_the_call(network, scale, fields):
    oracle = oracles.Oracle(TRUTH, scale=scale) if scale == 1000 else oracles.Oracle(TRUTH)
    found = look(network(oracle), TRUTH, fixed={"predicts": "velocity", "sign": 1})
    best = found.best.hypothesis.convention
    assert found.verdict == "clear"
    wanted = Convention.of({**fields, "time_scale": scale})
    assert best == wanted
    failed = {attempt.fields["call"]: attempt.failure for attempt in found.attempts if attempt.failure}
    assert all(": " in failure for failure in failed.values())


def test_probing_tries_both_argument_orders_of_unnamed_arguments():
    class Names(Told):
        def forward(self, a, b):
            return self.answer(b, a)

    assert look(Names(oracles.Oracle(TRUTH)), TRUTH, fixed=USUAL).best.hypothesis.convention.call == "x, t"


def test_a_network_that_cannot_be_called_is_refused():
    class Three(Told):
        def forward(self, a, b, c):
            return a

    with pytest.raises(
        InspectionError, match=r"can't be called in any of the ways tried:\n  t, x: TypeError"
    ) as caught:
        look(Three(oracles.Oracle(TRUTH)), TRUTH)
    assert "Set convention.call, or wrap the network in a class with forward(t, x)" in str(caught.value)


def test_labels_go_where_the_network_takes_them():
    class Needs(nn.Module):
        def forward(self, x, t, y):
            return x

    class May(nn.Module):
        def forward(self, x, t, y=None):
            return x

    labelled, plain = Facts((3,), 2, None), Facts((3,), None, None)

    def calls(network, facts):
        return [
            a.fields["call"]
            for a in probing.attempts(network, facts, {})
            if not a.failure and a.fields["call"][0] == "x"
        ]

    assert calls(Needs(), labelled) == ["x, t, y=label"]
    assert calls(Needs(), plain) == []
    assert calls(May(), labelled) == ["x, t", "x, t, y=label"]
    assert calls(May(), plain) == ["x, t"]


def test_the_conditions_of_the_data_are_tried_by_name():
    class Text(torch.nn.Module):
        def forward(self, hidden_states, encoder_hidden_states, timestep, pooled_projections=None):
            return hidden_states + encoder_hidden_states.sum((1, 2))[:, None]

    class Other(torch.nn.Module):
        def forward(self, x, t, observation):
            return x + observation.sum(1)[:, None]

    prompt = Facts((2,), None, None, {"prompt": (3, 4), "pooled": (5,)})
    working = [attempt.fields["call"] for attempt in probing.attempts(Text(), prompt, {}) if not attempt.failure]
    assert working == [
        "hidden_states=x, timestep=t, encoder_hidden_states=prompt, pooled_projections=pooled",
    ]
    seen = Facts((2,), None, None, {"place": (3,)})
    calls = [attempt.fields["call"] for attempt in probing.attempts(Other(), seen, {})]
    assert calls == ["t, x, observation=place", "x, t, observation=place"]
    unknown = Facts((2,), None, None, {"place": (3,), "colour": (1,)})
    assert all(attempt.failure for attempt in probing.attempts(Other(), unknown, {}))
