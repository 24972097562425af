"""A plain open_clip training step with truepair's pairwise loss: what changes is marked NEW.

    python examples/open_clip_step.py          # a tiny model on random pictures: runs anywhere in seconds
    torchrun --nproc-per-node 2 examples/open_clip_step.py

Targets are softened by a momentum copy of the model (ALBEF's form), which also says which pairs it doubts. Nothing of
size batch x batch is kept, and the batch of all ranks is one batch.
"""

import os

import open_clip
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from truepair.losses import Pooled, Softened, per_pair_mean, softmax_pairs, weighted_mean  # NEW

BATCH, STEPS, SHARE = 32, 5, 0.4  # a rank; 0.4 of the target is the momentum copy's, as in ALBEF

if "RANK" in os.environ:
    dist.init_process_group()
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.manual_seed(0)  # every rank the same model and twin
tower = {"layers": 1, "width": 64}
model = open_clip.model.CLIP(
    embed_dim=64,
    vision_cfg=open_clip.CLIPVisionCfg(image_size=32, patch_size=8, **tower),
    text_cfg=open_clip.CLIPTextCfg(context_length=16, heads=2, **tower),
).to(device)
tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=16)
twin = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995))
rank = dist.get_rank() if dist.is_initialized() else 0
torch.manual_seed(rank)  # every rank its own pictures
parallel = DistributedDataParallel(model) if dist.is_initialized() else model
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for step in range(STEPS):
    images = torch.rand(BATCH, 3, 32, 32, device=device)
    texts = tokenizer([f"random picture {i} of step {step}" for i in range(BATCH)]).to(device)

    image, text, scale = parallel(images, texts)  # unit features (B, D), 1/tau
    with torch.no_grad():
        seen, read, _ = twin(images, texts)

    # open_clip: loss = ClipLoss(...)(image, text, scale)
    guide_i2t = Pooled.gathered(seen, read, scale=scale.item())  # NEW
    guide_t2i = Pooled.gathered(read, seen, scale=scale.item())
    i2t, t2i = softmax_pairs(image, text, scale, Softened(guide_i2t, SHARE), Softened(guide_t2i, SHARE))  # (B,) each
    loss = weighted_mean(per_pair_mean(i2t, t2i))  # over all ranks; weighted_mean(rows, weight) trusts pairs unequally

    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    twin.update_parameters(model)
    shown = loss.detach()
    if dist.is_initialized():
        dist.all_reduce(shown.div_(dist.get_world_size()))  # one rank's value is not the loss: their mean is
    if rank == 0:
        print(f"step {step}: loss {shown.item():.3f}")

if dist.is_initialized():
    dist.destroy_process_group()
