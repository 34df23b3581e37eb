"""Batch and instance normalisation: torch's own modules over kernelzoo's functions, with the sum of a residual block
and the activation behind it fused."""

import torch
import torch.distributed as dist

from ..ops.activation import parse
from ..ops.batch_norm import batch_norm, instance_norm
from ..ops.sync_batch_norm import sync_batch_norm

_BatchNormBase = torch.nn.modules.batchnorm._BatchNorm


class _Fused:
    """The constructor's extra: act, None or an activation as in `kernelzoo.functional.batch_norm`. It has no entry in
    the state dict, which is torch's."""

    def __init__(
        self, num_features, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True, device=None, dtype=None, *,
        bias=True, act=None,
    ):  # fmt: skip
        parse(type(self).__name__, act)
        more = {} if bias else {"bias": False}  # an argument of torch's since 2.12
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **more)
        self.act = act

    def extra_repr(self):
        return super().extra_repr() + (f", act={self.act!r}" if self.act else "")


def _statistics(module):
    """What torch's forward of these modules passes on: the running statistics, whether the batch's own are taken, and
    the share of the batch in the running ones; counts the batch."""
    share = 0.0 if module.momentum is None else module.momentum
    if module.training and module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if module.momentum is None:  # a cumulative mean
            share = 1.0 / float(module.num_batches_tracked)
    own = module.training or (module.running_mean is None and module.running_var is None)
    kept = not module.training or module.track_running_stats
    return module.running_mean if kept else None, module.running_var if kept else None, own, share


class _BatchNorm(_Fused):
    def forward(self, input, residual=None, keep_residual=False):
        self._check_input_dim(input)
        mean, var, own, share = _statistics(self)
        return batch_norm(
            input, mean, var, self.weight, self.bias, own, share, self.eps, act=self.act, residual=residual,
            keep_residual=keep_residual,
        )  # fmt: skip


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """torch.nn.BatchNorm1d, with f(bn(x) + residual) in one: `act`, and forward's `residual` and `keep_residual`."""


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """torch.nn.BatchNorm2d, with f(bn(x) + residual) in one: `act`, and forward's `residual` and `keep_residual`."""


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """torch.nn.BatchNorm3d, with f(bn(x) + residual) in one: `act`, and forward's `residual` and `keep_residual`."""


class _Synchronised(_Fused):
    def __init__(
        self, num_features, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True, process_group=None,
        device=None, dtype=None, *, bias=True, act=None,
    ):  # fmt: skip
        parse("SyncBatchNorm", act)
        more = {} if bias else {"bias": False}
        _BatchNormBase.__init__(
            self, num_features, eps, momentum, affine, track_running_stats, device, dtype, **more
        )
        self.process_group, self.act = process_group, act

    def _check_input_dim(self, input):
        torch.nn.SyncBatchNorm._check_input_dim(self, input)
        torch.nn.SyncBatchNorm._check_non_zero_input_channels(self, input)

    def forward(self, input, residual=None, keep_residual=False):
        self._check_input_dim(input)
        mean, var, own, share = _statistics(self)
        extras = {"act": self.act, "residual": residual, "keep_residual": keep_residual}
        if own and self.training and dist.is_available() and dist.is_initialized():
            group = self.process_group or dist.group.WORLD
            if dist.get_world_size(group) > 1:
                return sync_batch_norm(
                    input, mean, var, self.weight, self.bias, share, self.eps, group, **extras
                )
        return batch_norm(input, mean, var, self.weight, self.bias, own, share, self.eps, **extras)


class SyncBatchNorm(_Synchronised, torch.nn.SyncBatchNorm):
    """torch.nn.SyncBatchNorm, with f(bn(x) + residual) in one: `act`, and forward's `residual` and
    `keep_residual`. It serves a CPU too (gloo), where DistributedDataParallel refuses torch's class and its subclasses:
    see `convert_sync_batchnorm`."""

    @classmethod
    def convert_sync_batchnorm(cls, module, process_group=None):
        """Every BatchNorm of a model, torch's and kernelzoo's (with its act), as a kernelzoo SyncBatchNorm over the
        same parameters and buffers; on a machine without an accelerator as one that is no subclass of torch's, which
        DistributedDataParallel takes. torch.nn.SyncBatchNorm.convert_sync_batchnorm would drop the act."""
        converted = module
        if isinstance(module, _BatchNormBase):
            more = {} if not module.affine or module.bias is not None else {"bias": False}
            kind = cls if torch.accelerator.is_available() else SyncBatchNormOnCPU
            converted = kind(
                module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats,
                process_group, act=getattr(module, "act", None), **more,
            )  # fmt: skip
            if module.affine:
                converted.weight, converted.bias = module.weight, module.bias
            converted.running_mean, converted.running_var = module.running_mean, module.running_var
            converted.num_batches_tracked = module.num_batches_tracked
            converted.training = module.training
            if hasattr(module, "qconfig"):
                converted.qconfig = module.qconfig
        for name, child in module.named_children():
            converted.add_module(name, cls.convert_sync_batchnorm(child, process_group))
        return converted


class SyncBatchNormOnCPU(_Synchronised, _BatchNormBase):
    """`SyncBatchNorm` where there is no accelerator: DistributedDataParallel raises for every torch.nn.SyncBatchNorm
    on a CPU, whatever its forward can do."""

    def _get_name(self):
        return "SyncBatchNorm"


class _InstanceNorm(_Fused):
    # torch's default, unlike batch norm's, is to learn nothing and to track nothing
    def __init__(
        self, num_features, eps=1e-05, momentum=0.1, affine=False, track_running_stats=False, device=None, dtype=None,
        *, bias=True, act=None,
    ):  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, act=act
        )

    def _apply_instance_norm(self, input, residual=None):
        own, share = self.training or not self.track_running_stats, self.momentum or 0.0
        return instance_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, own, share, self.eps, act=self.act,
            residual=residual,
        )  # fmt: skip

    def forward(self, input, residual=None):
        if residual is None:
            return super().forward(input)
        self._check_input_dim(input)
        if input.dim() == self._get_no_batch_dim():
            return self._apply_instance_norm(input.unsqueeze(0), residual.unsqueeze(0)).squeeze(0)
        return self._apply_instance_norm(input, residual)


class InstanceNorm1d(_InstanceNorm, torch.nn.InstanceNorm1d):
    """torch.nn.InstanceNorm1d, with f(norm(x) + residual) in one: `act` and forward's `residual`."""


class InstanceNorm2d(_InstanceNorm, torch.nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d, with f(norm(x) + residual) in one: `act` and forward's `residual`."""


class InstanceNorm3d(_InstanceNorm, torch.nn.InstanceNorm3d):
    """torch.nn.InstanceNorm3d, with f(norm(x) + residual) in one: `act` and forward's `residual`."""
