"""A stand-in for tensors on Apple's GPUs, which this machine has not: MPS has no float64."""

import torch


class OnMps(torch.Tensor):
    """A tensor that says it is on `mps` and refuses float64, as do what operations make of it, until `.cpu()`."""

    @property
    def device(self):
        return torch.device("mps")

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs)
        if isinstance(result, cls) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return result

    def cpu(self):
        return self.as_subclass(torch.Tensor)
