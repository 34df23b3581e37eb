import torch

from ..ops.core import ArgumentError
from ..ops.rotary import rotary_embedding, rotary_tables


class RotaryEmbedding(torch.nn.Module):
    """Turns the leading `dim` features of each position by that position's angles: `functional.rotary_embedding`.

    dim: features that are turned, even; max_positions: rows of the tables at first; base, inv_freq: as in
    `functional.rotary_tables`; interleaved: how features are paired.

    The tables are buffers that no state dict holds. They stay float32 (or become float64) whatever dtype the module is
    converted to, and grow when an input is longer or, on a CPU, a position larger than they reach; on other devices a
    look at the positions would wait for the device, and compiled code does not look: there call `reach(positions)`
    first where they exceed max_positions.
    """

    def __init__(self, dim, max_positions=2048, base=10000.0, *, interleaved=False, inv_freq=None):
        super().__init__()
        self.dim, self.base, self.interleaved = dim, base, interleaved
        if isinstance(inv_freq, torch.Tensor):
            inv_freq = inv_freq.tolist()
        # numbers, not a buffer: a module built on the meta device can make its tables when it is given memory
        self.inv_freq = None if inv_freq is None else tuple(inv_freq)
        cos, sin = self._tables(max_positions, None)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _tables(self, positions, device, dtype=torch.float32):
        def build():
            return rotary_tables(
                positions, self.dim, self.base, inv_freq=self.inv_freq, device=device, dtype=dtype
            )

        if not torch.is_inference_mode_enabled():
            return build()
        with torch.inference_mode(False):  # the backward could not save tables that were made in that mode
            return build()

    def _apply(self, fn, recurse=True):
        device, dtype, rows = self.cos.device, self.cos.dtype, self.cos.shape[0]
        super()._apply(fn, recurse)
        if self.cos.device != device or self.cos.dtype != dtype or self.cos.is_inference():
            dtype = torch.float64 if self.cos.dtype == torch.float64 else torch.float32
            self.cos, self.sin = self._tables(rows, self.cos.device, dtype)
        return self

    def reach(self, positions):
        """Make the tables at least `positions` rows long."""
        if positions > self.cos.shape[0]:
            rows = max(
                positions, 2 * self.cos.shape[0]
            )  # a sequence that grows by one must not make them each time
            self.cos, self.sin = self._tables(rows, self.cos.device, self.cos.dtype)

    def forward(self, x, position_ids=None):
        if x.dim() < 2 or x.shape[-1] < self.dim:
            raise ArgumentError(
                f"RotaryEmbedding: x has shape {tuple(x.shape)}; expected (..., L, D) with D >= dim = {self.dim}"
            )
        if position_ids is None:
            self.reach(x.shape[-2])
        elif (
            position_ids.device.type == "cpu"
            and position_ids.numel()
            and not position_ids.is_floating_point()
            and not torch.compiler.is_compiling()
        ):
            self.reach(int(position_ids.max()) + 1)
        return rotary_embedding(x, self.cos, self.sin, position_ids, interleaved=self.interleaved)

    def extra_repr(self):
        return f"{self.dim}, base={self.base:g}" + (", interleaved=True" if self.interleaved else "")
