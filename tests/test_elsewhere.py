"""The device for tests refuses and counts what it is there for, and computes what the CPU does."""

from __future__ import annotations

import pytest
import torch

from tests.elsewhere import ELSEWHERE, Mixed, elsewhere


def test_what_a_gpu_would_refuse_is_refused():
    with elsewhere():
        there, here = torch.ones(3, device=ELSEWHERE), torch.ones(3)
        for mixed in (
            lambda: there + here,
            lambda: torch.stack([there, here]),
            lambda: here.add_(there),
            lambda: torch.stack([there[0], here[0]]),
            lambda: here[0].add_(there[0]),
            lambda: there.numpy(),
            lambda: torch.randn(3, device=ELSEWHERE),
            lambda: torch.randn_like(there),
        ):
            with pytest.raises(Mixed):
                mixed()
        assert (there + 2.0).device.type == ELSEWHERE
        assert (there * torch.tensor(2.0)).tolist() == [2.0, 2.0, 2.0]


def test_what_the_host_waits_for_is_counted():
    with elsewhere() as seen:
        there = torch.arange(3.0).to(ELSEWHERE, non_blocking=True)
        there.mul_(2).sum().to(torch.float64)
        there.copy_(torch.zeros(3), non_blocking=True)
        assert seen.waits.total() == 0
        for waiting in (
            lambda: float(there.sum()),
            lambda: bool(there.isfinite().all()),
            lambda: there.cpu(),
            lambda: there.copy_(torch.zeros(3)),
            lambda: torch.zeros(3).to(ELSEWHERE),
            lambda: torch.zeros(3).copy_(there),
            lambda: there[there > 1],
            lambda: there.tolist(),
        ):
            seen.waits.clear()
            waiting()
            assert seen.waits.total() == 1


def test_double_backward_through_convolutions_and_norms_is_the_cpus():
    def penalty_gradients(device: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        x = torch.randn(4, 3, 8, 8, dtype=torch.float64).to(device).requires_grad_()
        layers = torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.Tanh()
        net = torch.nn.Sequential(*layers).to(device, torch.float64)
        (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        slope.square().sum().backward()
        return [p.grad.cpu() for p in net.parameters() if p.grad is not None]

    with elsewhere():
        there = penalty_gradients(ELSEWHERE)
    for a, b in zip(there, penalty_gradients("cpu"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
