"""Matrix products on a CPU by the faster of torch's libraries, MKL and oneDNN; a backend's own go before them."""

import functools

import torch

from . import memory


@functools.cache
def is_amd():
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            return "AuthenticAMD" in cpuinfo.read()
    except OSError:
        return False


@functools.cache
def _onednn_wins():
    """On 2 AMD EPYC cores with AVX-512 oneDNN's fp32 product reaches 210 GFLOP/s, MKL's 149 (2048x768x3072)."""
    # without AVX-512 its error in sums of 768 is 2.5 to 3.8 times MKL's
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return is_amd() and avx512 and torch.backends.mkldnn.is_available()


# Below it a call's fixed cost of 30 us outweighs the gain (64x64x128: 47 us against 21).
ONEDNN_FLOPS = 1 << 25


def flops(a, b):
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


def _through_onednn(a, b):
    # weight gradients (both operands transposed) run no faster there
    if a.dtype != torch.float32 or not _onednn_wins() or flops(a, b) < ONEDNN_FLOPS:
        return False
    return a.is_contiguous() and (b.is_contiguous() or b.t().is_contiguous())


class Products:
    """Of a backend with none of its own; one that has some gives `wins`, `serves` and `run`."""

    def wins(self, dtype):
        """Whether large products of a dtype are faster than torch.mm."""
        return dtype == torch.float32 and _onednn_wins()

    def serves(self, a, b):
        """Whether `run` is the fastest for a @ b."""
        return False

    def run(self, a, b, bias, out, add=False):
        """out = a @ b + bias, or out += a @ b, for what `serves` lets pass. out is contiguous, of a's dtype or float32,
        and float32 where it is added to."""
        raise NotImplementedError

    def matmul(self, a, b, out=None):
        """a (M, K) @ b (K, N), in their dtype; into `out` where given, contiguous and of that dtype or float32."""
        if self.serves(a, b):
            return self.run(a, b, None, _result(a, b) if out is None else out)
        if a.dtype == torch.float16:
            # 512x768x3072 takes torch's fp16 product 65 ms (the weight gradient 403), this detour 15
            product = torch.mm(a.float(), b.float())
            return product.half() if out is None else out.copy_(product)
        if _through_onednn(a, b):
            product = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
        else:
            fits = out is not None and out.dtype == a.dtype
            product = torch.mm(a, b, out=out if fits else _result(a, b))
        return product if out is None or product is out else out.copy_(product)

    def add_matmul(self, total, a, b):
        """total += a @ b. total is contiguous, of their dtype or float32."""
        if total.dtype == torch.float32 and self.serves(a, b):
            return self.run(a, b, None, total, add=True)
        if a.dtype == torch.float16:
            a, b = a.float(), b.float()
        return total.addmm_(a, b) if total.dtype == a.dtype else total.add_(self.matmul(a, b))

    def biased(self, x, w, b):
        """z = x wᵀ + b, and the bias that is still to be added (None where there is none).

        In bf16 and fp16 the product takes the bias before it rounds: rounded twice, a z near 0 can change sign, and
        with it the derivative.
        """
        if b is None or x.dtype == torch.float64:
            return self.matmul(x, w.t()), b
        if self.serves(x, w.t()):
            return self.run(x, w.t(), b, _result(x, w.t())), None
        if x.dtype == torch.float32:
            if _through_onednn(x, w.t()):
                return torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], ""), None
            return self.matmul(x, w.t()), b
        if x.dtype == torch.float16:
            return self.matmul(x.float(), w.float().t()).add_(b).half(), None
        return torch.addmm(b, x, w.t(), out=_result(x, w.t())), None

    def weight_gradient(self, dz, x, w):
        return weight_gradient(dz, x, w, self.matmul)


products = Products()


def _result(a, b):
    return memory.empty((a.shape[0], b.shape[1]), a.dtype)


def weight_gradient(dz, x, w, matmul=torch.mm):
    """dw = dzᵀ x for z = x wᵀ, laid out as torch's own gradient: as w where that is contiguous or transposed.

    It is more than layout: summed over 8192 rows to 20x8, MKL's dzᵀ x is 10 times less exact than its xᵀ dz.
    """
    return matmul(dz.t(), x) if w.is_contiguous() else matmul(x.t(), dz).t()
