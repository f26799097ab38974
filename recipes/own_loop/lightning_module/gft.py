"""Fine-tune a velocity of vectors by flow matching, as a module of Lightning.

    python VERSION.py --data points.npz --pretrained pretrained.pt --out runs/VERSION   # plain or gft

`points.npz` has `x1`, (n, d); `pretrained.pt` is a state dict of the network. Needs lightning.
"""

import argparse
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gftkit
from gftkit.gradual import lightning_callback


class Velocity(nn.Module):
    """A velocity of states and times: (batch,), (batch, d) -> (batch, d)."""

    def __init__(self, d: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(d + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.last = nn.Linear(width, d)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The velocity at time t in state x."""
        out: Tensor = self.last(self.layers(torch.cat([x, t[:, None]], 1)))
        return out


class FineTune(lightning.LightningModule):
    """Flow matching on the linear path, from noise to data."""

    def __init__(self, network: nn.Module, args: argparse.Namespace) -> None:
        super().__init__()
        self.network, self.args = network, args
        self.gft = gftkit.Gradual(args.steps, args.schedule)
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """The loss of a batch."""
        (x1,) = batch
        x0, t = torch.randn_like(x1), torch.rand(len(x1), device=x1.device)
        x = (1 - t[:, None]) * x0 + t[:, None] * x1
        prediction = self.network(t, x)
        loss = self.gft.loss(self.global_step, prediction, x1 - x0, lambda net: net(t, x), t=t)
        self.losses.append(loss.item())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.network.parameters(), lr=self.args.lr)


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="a checkpoint to continue from")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--schedule", default="exponential", help="of the temperature, in gft.py")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(arguments: list[str] | None = None) -> list[float]:
    """Train; the loss of every step."""
    args = options().parse_args(arguments)
    lightning.seed_everything(args.seed, verbose=False)
    points = torch.from_numpy(np.load(args.data)["x1"]).float()
    loader = DataLoader(TensorDataset(points), batch_size=args.batch_size, shuffle=True, drop_last=True)
    network = Velocity(points.shape[1], args.width)
    network.load_state_dict(torch.load(args.pretrained, weights_only=True))
    module = FineTune(network, args)
    saved = ModelCheckpoint(args.out, "{step}", every_n_train_steps=args.save_every, save_top_k=-1)
    trainer = lightning.Trainer(
        max_steps=args.steps,
        default_root_dir=args.out,
        callbacks=[saved, lightning_callback(module.gft, lambda module: module.network)],
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader, ckpt_path=args.resume, weights_only=True)
    return module.losses


if __name__ == "__main__":
    main()
