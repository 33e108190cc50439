"""A device for tests that is not the CPU, kept in the CPU's memory: as on a GPU, an operation on
tensors of both is an error, and reading a number makes the host wait.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

ELSEWHERE = "elsewhere"
aten = torch.ops.aten
# What CUDA has no kernel for that gives the same bits each time (the documentation of
# torch.use_deterministic_algorithms, and where ATen calls alertNotDeterministic), by the names of
# torch's dispatcher, without the "_" at the end of what works in place.
VARIES_ON_GPUS = {
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "_ctc_loss_backward",
    "_embedding_bag_backward", "_upsample_bilinear2d_aa_backward",
    "adaptive_max_pool2d_backward", "avg_pool3d_backward", "bincount", "cumsum",
    "fractional_max_pool2d_backward", "fractional_max_pool3d_backward",
    "grid_sampler_2d_backward", "grid_sampler_3d_backward", "histc", "index_reduce",
    "kthvalue", "max_unpool2d", "max_unpool3d", "median", "nanmedian", "nll_loss2d_forward",
    "put", "reflection_pad1d_backward", "reflection_pad2d_backward",
    "reflection_pad3d_backward", "replication_pad1d_backward", "replication_pad2d_backward",
    "replication_pad3d_backward", "scatter_reduce", "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward", "upsample_linear1d_backward",
    "upsample_trilinear3d_backward",
}  # fmt: skip
# A number for Python, and results as long as what is found.
WAITED_FOR = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.bincount.default,
    aten.equal.default,
    aten.repeat_interleave.Tensor,
}


class Mixed(RuntimeError):
    """An operation that a GPU would refuse, or that would make a run depend on the hardware."""


@contextmanager
def elsewhere() -> Iterator[Seen]:
    """Within, tensors can be made on ELSEWHERE and moved to and from it; they are computed by the
    CPU's kernels, so to its numbers. Raises Mixed where an operation is given tensors of both
    devices (a CPU's single number apart), and where random numbers are drawn there.

    What is yielded says what was done there.
    """
    register()
    with _Elsewhere() as mode:
        yield mode.seen


@dataclass(frozen=True)
class Seen:
    """Operations on tensors there, by name; and how often the host had to wait for which."""

    operations: set[str] = field(default_factory=set)
    waits: Counter[str] = field(default_factory=Counter)


class _There(Tensor):
    """A tensor that says it is on ELSEWHERE; what it holds is in `here`, on the CPU."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> _There:
        there = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            here.shape,
            strides=here.stride(),
            dtype=here.dtype,
            device=torch.device(ELSEWHERE, 0),
        )
        there.here = here
        return there

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise Mixed(f"{func} outside of elsewhere()")

    def __repr__(self, **_) -> str:
        return f"elsewhere: {self.here!r}"

    def tolist(self):
        # torch's own is for plain tensors only.
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False):
        raise Mixed("numpy() of a tensor that is not on the CPU")


class _Elsewhere(TorchDispatchMode):
    """Every operation passes through here, also those of a backward pass."""

    def __init__(self):
        super().__init__()
        self.seen = Seen()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        from_there = any(isinstance(x, _There) for x in tensors)
        to_there = from_there
        if kwargs.get("device") is not None:
            to_there = torch.device(kwargs["device"]).type == ELSEWHERE
            kwargs["device"] = torch.device("cpu")
        name = func._schema.name.removeprefix("aten::")
        if from_there:
            self.seen.operations.add(name.rstrip("_"))
        moves = func in (aten._to_copy.default, aten.copy_.default)
        if func is aten.copy_.default:
            to_there = isinstance(args[0], _There)
        alike = name in ("stack", "cat") or name.startswith("_foreach") or func._schema.is_mutable
        if from_there and not moves and not all(_may_join(x, alike=alike) for x in tensors):
            raise Mixed(f"{func} of tensors on the CPU and elsewhere")
        if to_there and torch.Tag.nondeterministic_seeded in func.tags:
            raise Mixed(f"{func} draws elsewhere; a run's draws must not depend on the hardware")
        if _host_waits(func, args, kwargs, from_there=from_there, to_there=to_there):
            self.seen.waits[str(func)] += 1
        given = pytree.tree_map(_here, (args, kwargs))
        result = func(*given[0], **given[1])
        if not to_there:
            return result
        result = pytree.tree_map(_there, result)
        return return_and_correct_aliasing(func, args, kwargs, result) if from_there else result


def _may_join(x: Tensor, *, alike: bool) -> bool:
    """A CPU's single number may, but in lists of tensors, which must be `alike`."""
    return isinstance(x, _There) or (x.ndim == 0 and not alike)


def _host_waits(func, args, kwargs, *, from_there: bool, to_there: bool) -> bool:
    if func in (aten._to_copy.default, aten.copy_.default):
        from_there = isinstance(args[func is aten.copy_.default], _There)
        sent = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
        return from_there != to_there and not (to_there and sent)
    if not from_there:
        return False
    if func in (aten.index.Tensor, aten.index_put_.default):
        return any(isinstance(x, Tensor) and x.dtype == torch.bool for x in args[1])
    return func in WAITED_FOR


def _here(x):
    return x.here if isinstance(x, _There) else x


def _there(x):
    return _There(x) if isinstance(x, Tensor) else x


class _Module(backend_registration._DummyBackendModule):  # pyright: ignore
    def is_available(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class _Hidden(backend_registration._DummyPrivateUse1Hook):  # pyright: ignore
    """No accelerator for those who look for any: it is had by its name alone."""

    def is_available(self) -> bool:
        return False

    def is_built(self) -> bool:
        return False


@functools.cache
def register() -> tuple[torch.library.Library, ...]:
    """Tells torch of the device, once in a process and before its first backward pass: threads for
    devices are begun there, and later ones get none.
    """
    backend_registration._setup_privateuseone_for_python_backend(  # pyright: ignore
        ELSEWHERE, backend_module=_Module(), hook=_Hidden()
    )
    # Autocast is accepted there, and changes nothing.
    every = torch.library.Library("_", "IMPL")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    # torch.tensor(..., device=ELSEWHERE) asks for these two past the mode.
    some = torch.library.Library("aten", "IMPL")
    some.impl("empty_strided", _empty_strided, "PrivateUse1")
    some.impl("_copy_from", _copy_from, "PrivateUse1")
    return every, some


def _empty_strided(size, stride, *, dtype=None, **_) -> Tensor:
    return _There(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    assert isinstance(target, _There)
    target.here.copy_(source)
    return target
