"""Options of registered components, drawn by hypothesis from their types and ranges."""

from hypothesis import strategies as st

from gftkit_plugins.profiles import Constant, Linear, Step

MINIMAL: dict[tuple[str, str], dict[str, object]] = {}
"""Options of components that can't do without: (kind, name) -> options."""
MORE = {
    ("path", "affine"): [
        {"alpha": "t**2", "sigma": "1 - t"},
        {"alpha": "t", "sigma": "sqrt(1 - t**2)"},
        {"alpha": "sin(pi*t/2)", "sigma": "cos(pi*t/2)"},
        {"alpha": "(exp(t) - 1)/(exp(1) - 1)", "sigma": "(1 - t)**3"},
    ],
    ("schedule", "stepwise"): [{"temperatures": (3.0, 3.0, 0.5)}, {"temperatures": (0.0,)}],
}
"""Further options worth a test: formulas and lists, which can't be drawn from their types."""


def drawn(option):
    """Values of an option by its type and range; only the default where that can't be told."""
    default = st.just(option.default)
    if option.kind == "profile":
        return default | st.sampled_from([-0.3, 0.0, 0.4, Constant(-0.5), Step(-0.25, 0.5, 0.8), Linear(0.5, -0.5)])
    bounds = dict(part.split(" ") for part in option.type_text.split(", ")[1:] if part[0] in "<>")
    low, high = (float(bounds.get(sign, bounds.get(sign + "=", end))) for sign, end in ((">", -50), ("<", 50)))
    if option.type_text.startswith("float"):
        margin = (high - low) / 1000  # what is excluded, such as a scale of 0, is kept at a distance
        return default | st.floats(low + margin * (">" in bounds), high - margin * ("<" in bounds))
    if "' or '" in option.type_text:
        return st.sampled_from([word.strip("'") for word in option.type_text.split(" or ")])
    return default
