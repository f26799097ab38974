"""Fine-tune the transformer of Stable Diffusion 3 by LoRA, on cached latents and embeddings, with accelerate.

    accelerate launch VERSION.py --model sd3/transformer --data cached.npz --out runs/VERSION   # plain or gft

`cached.npz` has `latents` (n, channels, height, width), `prompt_embeds` (n, tokens, d) and `pooled_prompt_embeds`
(n, d). Needs diffusers and peft. Times are logit-normal, and the loss is weighted as in the scripts of diffusers.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import SD3Transformer2DModel
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from peft import LoraConfig
from torch.utils.data import DataLoader, TensorDataset


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="continue from OUT/checkpoint")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--schedule", default="exponential", help="of the temperature, in gft.py")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--weighting-scheme", default="logit_normal", choices=["logit_normal", "sigma_sqrt", "cosmap"])
    parser.add_argument("--mixed-precision", default="no", choices=["no", "bf16", "fp16"])
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true")
    return parser


def main(arguments: list[str] | None = None) -> list[float]:
    """Train; the loss of every optimiser step."""
    args = options().parse_args(arguments)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.accumulate, mixed_precision=args.mixed_precision, cpu=args.cpu
    )
    set_seed(args.seed)
    cached = np.load(args.data)
    names = ("latents", "prompt_embeds", "pooled_prompt_embeds")
    data = TensorDataset(*(torch.from_numpy(cached[name]).float() for name in names))
    loader = DataLoader(data, batch_size=args.batch_size, shuffle=True, drop_last=True)
    transformer = SD3Transformer2DModel.from_pretrained(args.model).requires_grad_(False)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    transformer.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=targets))
    trained = [weight for weight in transformer.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.lr)
    transformer, optimizer, loader = accelerator.prepare(transformer, optimizer, loader)
    step, losses = 0, []
    if args.resume:
        accelerator.load_state(args.out / "checkpoint")
        step = int((args.out / "step").read_text())
    transformer.train()
    while step < args.steps:
        for latents, prompt, pooled in loader:
            with accelerator.accumulate(transformer):
                noise = torch.randn_like(latents)
                u = compute_density_for_timestep_sampling(args.weighting_scheme, len(latents), 0.0, 1.0)
                sigmas = u.to(latents.device)[:, None, None, None]
                inputs = {
                    "hidden_states": (1 - sigmas) * latents + sigmas * noise,
                    "timestep": 1000 * sigmas.flatten(),
                    "encoder_hidden_states": prompt,
                    "pooled_projections": pooled,
                }
                prediction = transformer(**inputs).sample
                target = noise - latents
                weighting = compute_loss_weighting_for_sd3(args.weighting_scheme, sigmas)
                loss = torch.mean(weighting * (prediction.float() - target) ** 2)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                step += 1
                losses.append(loss.item())
                if step % args.save_every == 0 or step == args.steps:
                    accelerator.save_state(args.out / "checkpoint", safe_serialization=True)
                    (args.out / "step").write_text(str(step))
                    accelerator.print(f"step {step}: loss {losses[-1]:.4f}")
                if step == args.steps:
                    break
    return losses


if __name__ == "__main__":
    main()
