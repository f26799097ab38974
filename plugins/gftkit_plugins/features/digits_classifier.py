"""Features of handwritten digits: a small network's, trained here once."""

import hashlib
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from gftkit.data import select_subset
from gftkit_plugins.datasets.cache import cached
from gftkit_plugins.datasets.images.packaged import digits, mnist5k

FEATURES = 64
"""Number of features."""


@dataclass(frozen=True)
class Recipe:
    """The training of the network; its hash names the cached weights. Raise ``version`` when the code changes."""

    version: int = 1
    seed: int = 0
    steps: int = 300
    batch_size: int = 128
    learning_rate: float = 5e-3
    weight_decay: float = 0.05
    dropout: float = 0.3

    @property
    def name(self) -> str:
        """File name of the weights, without ending."""
        return "digits-classifier-" + hashlib.sha256(repr(asdict(self)).encode()).hexdigest()[:12]


class DigitsClassifier:
    """The last hidden layer of a small digit classifier: (n, 1, 8, 8) in [-1, 1] -> (n, 64).

    Images of 16x16 are averaged to 8x8 first; of ``mnist5k`` at 16x16 it names 98.2 % correctly (it was trained on
    them), at 24x24, where the digits lie otherwise, it would be 61 %.

    A convolutional network of 0.1 million weights, trained when it is first needed (about 5 s), then kept in
    the cache folder (``GFTKIT_CACHE``, by default ``~/.cache/gftkit``). It is trained on ``mnist5k`` at 8x8 and on
    ``digits`` with ``split: train``, so on no sample of ``digits`` with ``split: test``; of these 599 it names
    98.8 % correctly.
    Training is seeded, but round-off differs between machines and so do the weights a little: compare distances
    from one cache.

    Raises:
        ImportError: where it has to be trained without the packages of the extra ``gftkit[data]``.
        ValueError: in use, for events that aren't (1, 8, 8) or (1, 16, 16).

    Example:
        >>> import gftkit, torch
        >>> gftkit.load().create("feature", "digits-classifier")(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 64])
    """

    def __init__(self) -> None:
        recipe = Recipe()
        self._network = build_classifier(recipe)
        self._network.load_state_dict(cached(recipe.name, lambda: train_classifier(recipe)))
        self._network.eval().requires_grad_(False)

    def __call__(self, x: Tensor) -> Tensor:
        """(n, 1, 8, 8) or (n, 1, 16, 16) -> (n, 64)."""
        return self._network[:-1](_to_8x8(x))

    def predict(self, x: Tensor) -> Tensor:
        """(n, 1, 8, 8) or (n, 1, 16, 16) -> (n,): the digit that each image is taken for."""
        return self._network(_to_8x8(x)).argmax(1)


def build_classifier(recipe: Recipe) -> nn.Sequential:
    """The untrained classifier, (n, 1, 8, 8) -> (n, 10) logits; its weights don't depend on or touch global state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        layers = (
            nn.Conv2d(1, 24, 3, padding=1), nn.SiLU(),
            nn.Conv2d(24, 48, 3, padding=1, stride=2), nn.SiLU(),  # 4x4
            nn.Conv2d(48, 48, 3, padding=1), nn.SiLU(),
            nn.Flatten(), nn.Dropout(recipe.dropout), nn.Linear(48 * 16, FEATURES), nn.SiLU(),
            nn.Linear(FEATURES, 10),
        )  # fmt: skip
        return nn.Sequential(*layers).float()


def train_classifier(recipe: Recipe) -> dict[str, Tensor]:
    """The trained weights. Deterministic on one machine; global random state is left as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums don't depend on the number of cores, and so small a network gains little from them
    try:
        return _train(recipe, *training_data())
    finally:
        torch.set_num_threads(threads)


def _train(recipe: Recipe, x: Tensor, label: Tensor) -> dict[str, Tensor]:
    net = build_classifier(recipe)
    optimizer = torch.optim.AdamW(net.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.steps)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(recipe.seed)
        for _ in range(recipe.steps):
            batch = torch.randint(len(x), (recipe.batch_size,))
            loss = functional.cross_entropy(net(x[batch]), label[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return {key: value.detach().contiguous() for key, value in net.state_dict().items()}


def training_data() -> tuple[Tensor, Tensor]:
    """(n, 1, 8, 8) in [-1, 1] and (n,): mnist5k at 8x8, then the training split of digits."""
    parts = [(mnist5k(size=8), 255), (select_subset(digits(), split="train"), 16)]
    batches = [(data.batch(torch.arange(len(data))), high) for data, high in parts]
    images = [batch.x1 * (2 / high) - 1 for batch, high in batches]
    labels = [batch.label for batch, _ in batches if batch.label is not None]
    return torch.cat(images), torch.cat(labels)


def _to_8x8(x: Tensor) -> Tensor:
    """The images at 8x8."""
    if tuple(x.shape[1:]) not in ((1, 8, 8), (1, 16, 16)):
        raise ValueError(
            f"digits-classifier takes images of shape (n, 1, 8, 8) or (n, 1, 16, 16), got {tuple(x.shape)}. For other "
            f"images use efficientnet-lite0 or identity."
        )
    return functional.avg_pool2d(x.float(), x.shape[-1] // 8)
