"""Fine-tune a U-Net on images by flow matching, in a loop with torchcfm.

    python VERSION.py --images images.npz --pretrained pretrained.pt --out runs/VERSION   # plain or gft

`images.npz` has `x1`, (n, channels, height, width) in [-1, 1]; `pretrained.pt` has `ema_model`, a state dict of the
network of the options below. Needs torchcfm: pip install --no-deps torchcfm.
"""

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher
from torchcfm.models.unet.unet import UNetModelWrapper


def options() -> argparse.ArgumentParser:
    """The command line; the defaults are those of CIFAR-10."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--pretrained", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="continue from OUT/checkpoint.pt")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--schedule", default="exponential", help="of the temperature, in gft.py")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--ema-decay", type=float, default=0.9999)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--multipliers", type=int, nargs="+", default=[1, 2, 2, 2])
    parser.add_argument("--attention", default="16")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--save-every", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def endless(loader: DataLoader[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    """Batches of images, epoch after epoch."""
    while True:
        for (x1,) in loader:
            yield x1


@torch.no_grad()
def update_average(network: nn.Module, average: nn.Module, decay: float) -> None:
    """Move the averaged weights."""
    for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)


def main(arguments: list[str] | None = None) -> list[float]:
    """Train; the loss of every step."""
    args = options().parse_args(arguments)
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)  # from which torchcfm draws its pairs
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.from_numpy(np.load(args.images)["x1"]).float()
    loader = DataLoader(TensorDataset(images), batch_size=args.batch_size, shuffle=True, drop_last=True)
    network = UNetModelWrapper(
        dim=tuple(images.shape[1:]),
        num_channels=args.channels,
        num_res_blocks=args.blocks,
        channel_mult=args.multipliers,
        num_head_channels=args.channels // 2,
        attention_resolutions=args.attention,
        dropout=args.dropout,
    ).to(device)
    network.load_state_dict(torch.load(args.pretrained, weights_only=True)["ema_model"])
    average = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step + 1, args.warmup) / args.warmup)
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    checkpoint, first = args.out / "checkpoint.pt", 0
    if args.resume:
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["net_model"])
        average.load_state_dict(state["ema_model"])
        optimizer.load_state_dict(state["optim"])
        scheduler.load_state_dict(state["sched"])
        first = state["step"]
    args.out.mkdir(parents=True, exist_ok=True)
    batches, losses = endless(loader), []
    for step in range(first, args.steps):
        optimizer.zero_grad()
        x1 = next(batches).to(device)
        t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        vt = network(t, xt)
        loss = torch.mean((vt - ut) ** 2)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        update_average(network, average, args.ema_decay)
        losses.append(loss.item())
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            state = {
                "net_model": network.state_dict(),
                "ema_model": average.state_dict(),
                "optim": optimizer.state_dict(),
                "sched": scheduler.state_dict(),
                "step": step + 1,
            }
            torch.save(state, checkpoint)
            print(f"step {step + 1}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
