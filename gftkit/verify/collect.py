"""The claims of every plugin about what is registered."""

from gftkit.kernel.errors import PluginError
from gftkit.kernel.registry import Origin, Registry
from gftkit.verify.claims import Claim


def collect(registry: Registry) -> tuple[Claim, ...]:
    """Every plugin's claims about a registry, sorted by name. Plugins are asked anew at each call.

    Raises:
        PluginError: for a plugin whose claims can't be made, what isn't a claim, or two of one name.
    """
    claims: dict[str, tuple[Claim, Origin]] = {}
    for origin, hook in registry.claim_hooks:
        try:
            asked = [claim for answer in hook(registry=registry) for claim in answer]
        except Exception as error:
            raise PluginError(f"{origin}: its claims can't be made: {type(error).__name__}: {error}") from error
        for claim in asked:
            if not isinstance(claim, Claim):
                raise PluginError(f"{origin}: gftkit_claims gave {claim!r}; wanted gftkit.verify.Claim objects.")
            if claim.name in claims:
                raise PluginError(
                    f"claim '{claim.name}' is made twice: by {claims[claim.name][1]} and by {origin}. Rename one."
                )
            claims[claim.name] = claim, origin
    return tuple(claim for _, (claim, _) in sorted(claims.items()))
