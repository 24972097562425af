"""Precision: bf16 on a CPU brings plain attention with it, and leaves the process as it was."""

import pytest
import torch

from truepair.train.devices import autocast

CPU = torch.device("cpu")


@pytest.mark.parametrize(("precision", "narrow"), [("bf16", True), ("fp32", False)])
def test_bf16_on_a_cpu_and_it_alone_attends_by_plain_products(precision: str, narrow: bool) -> None:
    context = autocast(precision, CPU)
    for _ in range(2):  # a step of several micro-batches enters it again
        with context:
            assert torch.is_autocast_enabled("cpu") is narrow
            assert torch.backends.cuda.flash_sdp_enabled() is not narrow
        assert torch.backends.cuda.flash_sdp_enabled()


def test_an_error_inside_gives_the_flash_kernel_back() -> None:
    with pytest.raises(ValueError), autocast("bf16", CPU):
        raise ValueError
    assert torch.backends.cuda.flash_sdp_enabled() and not torch.is_autocast_enabled("cpu")


def test_both_kernels_give_one_loss_and_gradient() -> None:
    qkv = torch.randn(3, 4, 2, 12, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = []
    for context in (autocast("bf16", CPU), torch.autocast("cpu", torch.bfloat16)):
        with context:
            out = torch.nn.functional.scaled_dot_product_attention(*qkv.bfloat16())
        found.append((out, *torch.autograd.grad(out.float().square().sum(), qkv)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine.float(), theirs.float(), atol=0.05, rtol=0.05)
