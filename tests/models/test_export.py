"""A saved model is open_clip's: a process that never imports truepair loads it and gives the same embeddings."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from truepair.models import DEFAULT, DualEncoder, create, save_local_dir
from truepair.models.masked_text import mask_token, reads_both_ways, reserve_mask
from truepair.pairs.image import decode_centre

FUSED = "truepair-fusion-test"
NAMES = ["truepair-test", DEFAULT, FUSED]
TEXTS = ["a red circle", "two small red squares above a large green ring", ""]

ALONE = """
import sys
from pathlib import Path
import open_clip, torch
from PIL import Image
from safetensors.torch import save_file

torch.set_num_threads(1)
folder = Path(sys.argv[1])
for name in sys.argv[2:]:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder / name}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder / name}")
    images = torch.stack([preprocess(Image.open(path)) for path in sorted(folder.glob("*.png"))])
    with torch.no_grad():
        image, text, scale, *bias = model.eval()(images, tokenizer((folder / "texts").read_text().split("\\n")))
    found = {"image": image, "text": text, "scale": scale.reshape(1)} | {"bias": b.reshape(1) for b in bias}
    save_file({key: tensor.contiguous() for key, tensor in found.items()}, folder / f"{name}.safetensors")
assert not [module for module in sys.modules if module.startswith("truepair")]
"""


def made(name: str, **initial: float) -> DualEncoder:
    """The model as a method trains it: NEVER's has a mask token, one row more than the tokenizer has words."""
    model = create(name, **initial)
    if name == FUSED:
        reserve_mask(model)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small models, moved off their first state and saved; and what open_clip alone makes of images and texts."""
    folder = tmp_path_factory.mktemp("export")
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(40, 60), (48, 48), (90, 33)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "texts").write_text("\n".join(TEXTS))
    for name in NAMES:
        torch.manual_seed(1)
        model = made(name, init_scale=np.log(10), init_bias=-10).train()
        with torch.no_grad():
            size = model.image_size
            model.encode_image(
                torch.randint(0, 256, (8, 3, size, size), dtype=torch.uint8)
            )  # moves batch-norm statistics
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
        save_local_dir(model.to(memory_format=torch.channels_last), folder / name)
        torch.save(model.state_dict(), folder / f"{name}.pt")
    command = [sys.executable, "-I", "-c", ALONE, str(folder), *NAMES]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, check=False)
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_open_clip_alone_gives_the_same_embeddings(folder: Path, name: str) -> None:
    model = made(name, init_bias=0).eval()
    model.load_state_dict(torch.load(folder / f"{name}.pt"))
    alone = load_file(folder / f"{name}.safetensors")
    images = [decode_centre(path.read_bytes(), model.image_size) for path in sorted(folder.glob("*.png"))]
    image = model.encode_image(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    text = model.encode_text(model.tokenize(TEXTS))
    torch.testing.assert_close(image, alone["image"], rtol=0, atol=1e-6)
    torch.testing.assert_close(text, alone["text"], rtol=0, atol=1e-6)
    assert model.scale.item() == alone["scale"].item()
    assert model.bias is not None and model.bias.item() == alone["bias"].item()


@pytest.mark.parametrize("name", NAMES)
def test_an_export_is_open_clips_two_files_and_nothing_else(folder: Path, name: str) -> None:
    assert sorted(path.name for path in (folder / name).iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]


def test_an_exported_model_with_a_mask_token_still_has_it(folder: Path) -> None:
    opened = create(f"local-dir:{folder / FUSED}")
    assert mask_token(opened) == 49408 and reads_both_ways(opened)
    grown = made(FUSED, init_bias=0)
    grown.load_state_dict(torch.load(folder / f"{FUSED}.pt"))
    assert torch.equal(opened.clip.text.token_embedding.weight, grown.clip.text.token_embedding.weight)
