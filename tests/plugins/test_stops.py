"""The rule ``copying``: a run ends where samples can't be told from the law's own."""

from gftkit_plugins.stops import CopyingStop

FAR = {"memorisation": {"distance_ratio": 2.0, "distance_ratio_stderr": 0.05}}
NEAR = {"memorisation": {"distance_ratio": 1.05, "distance_ratio_stderr": 0.05}}


def test_copying_ends_a_run_where_samples_can_not_be_told_from_the_laws_own():
    rule = CopyingStop()
    rule.observe(0.1, FAR)
    assert not rule.done
    rule.observe(0.2, NEAR)
    assert rule.done
    assert rule.reason == "samples lie 1.05 ± 0.05 times as far from the training data as these from each other."
    strict = CopyingStop(errors=0.0)
    strict.observe(0.2, NEAR)
    assert not strict.done
    strict.observe(0.3, {"memorisation": {"distance_ratio": 0.99, "distance_ratio_stderr": 0.05}})
    assert strict.done
