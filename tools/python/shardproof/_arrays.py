"""Other people's arrays as the memory that a call reads and writes, without copies where their type allows it."""

from __future__ import annotations

from typing import Any, Callable, Optional

import numpy as np

#: numpy's types as the core numbers them.
CODES = {name: i for i, name in enumerate(
    ["float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])}


class Memory:
    """`flat` is the elements in memory; `give` makes what the caller gets of the result: the same object where it was
    changed in place. `wire` names the 16-bit format that flat stands for in float32, when it is a copy; `bits` is then
    the caller's memory, in int16."""

    def __init__(self, flat: np.ndarray, given: Any, wire: Optional[str] = None,
                 give: Optional[Callable[[], Any]] = None, bits: Optional[np.ndarray] = None) -> None:
        self.flat = flat
        self.code = CODES[flat.dtype.name]
        self.given = given
        self.wire = wire
        self.bits = bits
        self._give = give

    def give(self) -> Any:
        return self.given if self._give is None else self._give()


def is_torch(array: Any) -> bool:
    return type(array).__module__.split(".")[0] == "torch"


def memory(array: Any, *, write: bool, reduce: bool = False) -> Memory:
    """Raises TypeError or ValueError that says what to do for an array that cannot be used as it is."""
    if is_torch(array):
        return _torch(array, reduce)
    if isinstance(array, np.ndarray):
        return _numpy(array, array, write, reduce)
    if not hasattr(array, "__dlpack__"):
        raise TypeError(f"a {type(array).__name__} is no array: a numpy array, a torch tensor or a JAX array is needed")
    # Immutable: what is written is returned as an array of the same library.
    copied = np.array(np.from_dlpack(array))
    held = _numpy(copied, array, write, reduce)
    if write:
        held._give = lambda: _like(array, copied.reshape(np.shape(array)))
    return held


def _like(array: Any, values: np.ndarray) -> Any:
    if type(array).__module__.split(".")[0].startswith("jax"):
        import jax.numpy

        return jax.numpy.asarray(values)
    return type(array)(values)


def _numpy(array: np.ndarray, given: Any, write: bool, reduce: bool) -> Memory:
    if not array.flags.c_contiguous:
        raise ValueError(f"an array of shape {array.shape} with strides {array.strides} is not contiguous: "
                         "pass numpy.ascontiguousarray(x)")
    if write and not array.flags.writeable:
        raise ValueError("a read-only array cannot take the result: pass x.copy(), or out=")
    if array.dtype == np.float16:
        if not reduce:
            return Memory(array.view(np.uint16), given)  # bfloat16 is int16: two ranks must not take one for the other
        wide = array.astype(np.float32)

        def give() -> Any:
            array[...] = wide
            return given

        return Memory(wide, given, "fp16", give if write else None, array.view(np.int16))
    if array.dtype == np.bool_:
        return Memory(array.view(np.uint8), given)
    if array.dtype.name not in CODES:
        raise TypeError(f"elements of type {array.dtype} cannot be sent: {', '.join(CODES)}, float16 and bool can")
    return Memory(array, given)


def _torch(tensor: Any, reduce: bool) -> Memory:
    import torch

    if tensor.device.type != "cpu":
        raise TypeError(f"a tensor on {tensor.device} is not in this machine's memory: pass x.cpu()")
    if not tensor.is_contiguous():
        raise ValueError(f"a tensor of shape {list(tensor.shape)} with strides {tensor.stride()} is not contiguous: "
                         "pass x.contiguous()")
    plain = tensor.detach()
    narrow = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(plain.dtype)
    if narrow and reduce:
        wide = plain.float()

        def give() -> Any:
            plain.copy_(wide)
            return tensor

        return Memory(wide.numpy(), tensor, narrow, give, plain.view(torch.int16).numpy())
    if narrow:
        bits = plain.view(torch.int16).numpy()
        return Memory(bits if narrow == "bf16" else bits.view(np.uint16), tensor)
    try:
        array = plain.numpy()
    except TypeError as error:
        raise TypeError(f"elements of type {tensor.dtype} cannot be sent") from error
    return _numpy(array, tensor, True, reduce)


def empty_like(array: Any, shape: tuple[int, ...]) -> Any:
    """Of the array's library and type; numpy where the library has no arrays that can be written."""
    if is_torch(array):
        return array.new_empty(shape)
    return np.empty(shape, np.from_dlpack(array).dtype if not isinstance(array, np.ndarray) else array.dtype)


def values(array: Any) -> np.ndarray:
    """What is tapped: contiguous, in one of the types that the verdict takes as it is, or in float64."""
    if is_torch(array):
        import torch

        plain = array.detach().cpu()
        array = (plain.float() if plain.dtype in (torch.bfloat16, torch.float16) else plain).numpy()
    elif not isinstance(array, np.ndarray) and hasattr(array, "__dlpack__"):
        array = np.from_dlpack(array)
    array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"a tensor of type {array.dtype} cannot be held to anything: numbers are needed")
    wanted = array.dtype if array.dtype.name in ("float32", "float64", "int32", "int64") else np.float64
    return np.ascontiguousarray(array, wanted)
