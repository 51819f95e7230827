"""A process group of torch.distributed whose calls are those of a virtual rank."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
import torch.distributed as dist

from .._group import Group
from ._tensors import cover, fold_all, moved, reduced, reduction_of
from ._work import Work

Tensors = Sequence[torch.Tensor]
_C10D = dist.distributed_c10d.__file__


class VirtualProcessGroup(dist.ProcessGroup):
    """make(label): the calls of this rank in its group of that label, whose calls meet no others' labels.
    reduce_options: algorithm, wire and accumulate of its reductions."""

    def __init__(self, rank: int, size: int, make: Callable[[str], Group], name: str, pending: dict[int, Work],
                 reduce_options: dict[str, Any]) -> None:
        super().__init__(rank, size)
        self._make = make
        self._label = f"pg{name[:8]}"
        self._group = make(self._label)
        self._of_tag = {0: self._group}
        self._name = name
        self._pending = pending
        self._options = reduce_options
        # Only all_reduce has algorithms beside these.
        other = reduce_options.get("algorithm") not in (None, "rank_order", "ring")
        self._others = {**reduce_options, "algorithm": "rank_order"} if other else reduce_options
        self._coalesced: Optional[Work] = None
        self.made = False

    def getBackendName(self) -> str:
        return "shardproof"

    def name(self) -> str:
        return "shardproof"

    @property
    def group_name(self) -> str:
        return self._name

    @property
    def pg_name(self) -> str:
        return self._name

    @property
    def _device_types(self) -> list[torch.device]:
        # None while torch makes the group: it would have its flight recorder look into one that is written in C++.
        return [torch.device("cpu")] if self.made else []

    @property
    def supports_coalescing(self) -> bool:
        return False

    @property
    def supports_splitting(self) -> bool:
        return False

    def _get_backend(self, device: Any) -> VirtualProcessGroup:
        return self

    def __repr__(self) -> str:
        return f"<{self._group.name}: rank {self._group.rank} of {self._group.size}>"

    # What a call is made of

    def _work(self, result: Any) -> Work:
        # torch's functions wait at once unless they are told async_op, which they do not hand on before 2.9.
        asked = sys._getframe(2)
        while asked.f_code.co_filename == __file__:
            asked = asked.f_back
        at_once = asked.f_code.co_filename == _C10D and asked.f_locals.get("async_op") is False
        self._group.waits_at_once = at_once and self._coalesced is None
        if self._coalesced is not None:
            return self._coalesced
        return Work(self._pending, result)

    def _all_reduce(self, work: Work, tensor: torch.Tensor, op: Any) -> None:
        name, fold = reduction_of(op, tensor)
        if name is not None:
            work.add(self._group.iall_reduce(reduced(tensor), name, **self._options))
            return
        parts = tensor.new_empty((self._group.size, *tensor.shape))
        work.add(self._group.iall_gather(moved(tensor).reshape(1, *moved(tensor).shape), out=moved(parts)),
                 lambda: _give(tensor, fold_all(list(parts), fold)))

    def _all_gather_list(self, work: Work, outputs: Tensors, tensor: torch.Tensor) -> None:
        self._need(len(outputs), "output tensors")
        self._alike([*outputs, tensor])
        counts = [output.numel() for output in outputs]
        flat = tensor.new_empty(sum(counts))
        if min(counts) == max(counts):
            handle = self._group.iall_gather(moved(tensor).reshape(-1), out=moved(flat))
        else:
            width = moved(tensor).numel() // max(1, tensor.numel())
            handle = self._group.iall_gather(moved(tensor).reshape(-1), [c * width for c in counts], out=moved(flat))
        cover(outputs)
        work.add(handle, lambda: _split(outputs, flat, counts))

    def _reduce_scatter(self, work: Work, output: torch.Tensor, flat: torch.Tensor, counts: Optional[list[int]],
                        op: Any) -> None:
        name, fold = reduction_of(op, flat)
        source, target = reduced(flat).reshape(-1), reduced(output).reshape(-1)
        if name is not None:
            work.add(self._group.ireduce_scatter(source, name, counts, out=target, **self._others))
            return
        parts = flat.new_empty((self._group.size, flat.numel()))
        sizes = counts or [flat.numel() // self._group.size] * self._group.size
        begin = sum(sizes[:self._group.rank])
        work.add(self._group.iall_gather(source.reshape(1, -1), out=moved(parts)),
                 lambda: _give(output, fold_all(list(parts[:, begin:begin + output.numel()]), fold)))

    def _move(self, work: Work, outputs: Tensors, inputs: Tensors, like: torch.Tensor) -> None:
        """Tensor j of inputs goes to rank j; tensor i of outputs is what rank i sends."""
        self._alike([*inputs, *outputs])
        sends, recvs = [t.numel() for t in inputs], [t.numel() for t in outputs]
        source = torch.cat([moved(t).reshape(-1) for t in inputs])
        width = moved(like).numel() // like.numel() if like.numel() else 1
        target = source.new_empty(sum(recvs) * width)
        handle = self._group.iall_to_all(source, [c * width for c in sends], [c * width for c in recvs], out=target)
        cover([output for output in outputs if output.numel()])

        def place() -> None:
            begin = 0
            for output, count in zip(outputs, recvs):
                _give_moved(output, target[begin * width:(begin + count) * width])
                begin += count

        work.add(handle, place)

    def _alike(self, tensors: Tensors) -> None:
        if len({tensor.dtype for tensor in tensors}) > 1:
            raise TypeError(f"tensors of one call have several types: {sorted({str(t.dtype) for t in tensors})}")

    def _need(self, given: int, what: str) -> None:
        if given != self._group.size:
            raise ValueError(f"{given} {what} are given for {self._group.size} ranks of {self._group.name}")

    # torch's calls

    def broadcast(self, tensors: Tensors, opts: Any) -> Work:
        work = self._work(list(tensors))
        for tensor in tensors:
            work.add(self._group.ibroadcast(moved(tensor), opts.rootRank))
        return work

    def allreduce(self, tensors: Tensors, opts: Any = None) -> Work:
        work = self._work(list(tensors))
        for tensor in tensors:
            self._all_reduce(work, tensor, dist.ReduceOp.SUM if opts is None else opts.reduceOp)
        return work

    allreduce_coalesced = allreduce

    def reduce(self, tensors: Tensors, opts: Any) -> Work:
        work = self._work(list(tensors))
        for tensor in tensors:
            name, fold = reduction_of(opts.reduceOp, tensor)
            if name is None:
                self._reduce_by_gather(work, tensor, opts.rootRank, fold)
            else:
                work.add(self._group.ireduce(reduced(tensor), opts.rootRank, name, **self._others))
        return work

    def _reduce_by_gather(self, work: Work, tensor: torch.Tensor, root: int, fold: Any) -> None:
        parts = tensor.new_empty((self._group.size, *tensor.shape))

        def give() -> None:
            if self._group.rank == root:
                _give(tensor, fold_all(list(parts), fold))

        work.add(self._group.iall_gather(moved(tensor).reshape(1, *moved(tensor).shape), out=moved(parts)), give)

    def allgather(self, output_lists: Sequence[Tensors], inputs: Tensors, opts: Any = None) -> Work:
        work = self._work([list(outputs) for outputs in output_lists])
        for outputs, tensor in zip(output_lists, inputs, strict=True):
            self._all_gather_list(work, outputs, tensor)
        return work

    def allgather_coalesced(self, output_lists: Sequence[Tensors], inputs: Tensors, opts: Any = None) -> Work:
        work = self._work([list(outputs) for outputs in output_lists])
        for i, tensor in enumerate(inputs):
            self._all_gather_list(work, [outputs[i] for outputs in output_lists], tensor)
        return work

    def all_gather_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None) -> Work:
        work = self._work([output])
        work.add(self._group.iall_gather(moved(tensor).reshape(-1), out=moved(output).reshape(-1)))
        return work

    _allgather_base = all_gather_single

    def all_gather_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> Work:
        work = self._work(list(outputs))
        for output, tensor in zip(outputs, inputs, strict=True):
            work.add(self._group.iall_gather(moved(tensor).reshape(-1), out=moved(output).reshape(-1)))
        return work

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def reduce_scatter(self, outputs: Tensors, input_lists: Sequence[Tensors], opts: Any) -> Work:
        work = self._work(list(outputs))
        for output, inputs in zip(outputs, input_lists, strict=True):
            self._need(len(inputs), "input tensors")
            self._alike([*inputs, output])
            counts = [reduced(tensor).numel() for tensor in inputs]
            flat = torch.cat([_flat(tensor) for tensor in inputs])
            same = min(counts) == max(counts)
            self._reduce_scatter(work, output, flat, None if same else counts, opts.reduceOp)
        return work

    def reduce_scatter_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any) -> Work:
        return self.reduce_scatter_single_coalesced([output], [tensor], opts)

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any) -> Work:
        work = self._work(list(outputs))
        for output, tensor in zip(outputs, inputs, strict=True):
            self._reduce_scatter(work, output, tensor, None, opts.reduceOp)
        return work

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def all_to_all_single(self, output: torch.Tensor, tensor: torch.Tensor, output_splits: Optional[Sequence[int]],
                          input_splits: Optional[Sequence[int]], opts: Any = None) -> Work:
        work = self._work([output])
        # One side may leave its splits out, which are then even: the call is the one with counts all the same.
        sends, recvs = self._splits(tensor, input_splits, "input"), self._splits(output, output_splits, "output")
        work.add(self._group.iall_to_all(_rows(tensor), sends, recvs, out=_rows(output)))
        return work

    alltoall_base = all_to_all_single

    def _splits(self, tensor: torch.Tensor, splits: Optional[Sequence[int]], what: str) -> list[int]:
        size, rows = self._group.size, tensor.shape[0] if tensor.dim() else 1
        if splits:
            self._need(len(splits), f"{what} splits")
            if sum(splits) != rows or min(splits) < 0:
                raise ValueError(f"all_to_all_single: {what} splits {list(splits)} do not add up to dim 0 of the "
                                 f"{what}, {rows}")
            return [int(count) for count in splits]
        if rows % size:
            raise ValueError(f"all_to_all_single: dim 0 of the {what}, {rows}, does not divide by {size} ranks")
        return [rows // size] * size

    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> Work:
        self._need(len(inputs), "input tensors")
        self._need(len(outputs), "output tensors")
        work = self._work(list(outputs))
        self._move(work, outputs, inputs, _first(inputs, outputs))
        return work

    def gather(self, output_lists: Sequence[Tensors], inputs: Tensors, opts: Any) -> Work:
        root = opts.rootRank
        work = self._work([list(outputs) for outputs in output_lists])
        nothing = inputs[0].new_empty(0)
        sent = [inputs[0] if rank == root else nothing for rank in range(self._group.size)]
        outputs: Tensors = [nothing] * self._group.size
        if self._group.rank == root:
            outputs = output_lists[0]
            self._need(len(outputs), "output tensors")
        self._move(work, outputs, sent, inputs[0])
        return work

    def scatter(self, outputs: Tensors, input_lists: Sequence[Tensors], opts: Any) -> Work:
        root = opts.rootRank
        work = self._work(list(outputs))
        nothing = outputs[0].new_empty(0)
        sent: Tensors = [nothing] * self._group.size
        if self._group.rank == root:
            sent = input_lists[0]
            self._need(len(sent), "input tensors")
        received = [outputs[0] if rank == root else nothing for rank in range(self._group.size)]
        self._move(work, received, sent, outputs[0])
        return work

    def barrier(self, opts: Any = None) -> Work:
        work = self._work([])
        work.add(self._group.ibarrier())
        return work

    def monitored_barrier(self, timeout: Any = None, wait_all_ranks: bool = False) -> None:
        self.barrier().wait()

    def send(self, tensors: Tensors, to: int, tag: int = 0) -> Work:
        work = self._work(list(tensors))
        for tensor in tensors:
            work.add(self._tagged(tag).isend(moved(tensor), to))
        return work

    def recv(self, tensors: Tensors, source: int, tag: int = 0) -> Work:
        work = self._work(list(tensors))
        for tensor in tensors:
            work.add(self._tagged(tag).irecv(moved(tensor), source))
        return work

    def _tagged(self, tag: int) -> Group:
        """Messages of different tags do not meet."""
        if tag not in self._of_tag:
            self._of_tag[tag] = self._make(f"{self._label} tag {tag} ")
        self._of_tag[tag].waits_at_once = self._group.waits_at_once
        return self._of_tag[tag]

    def recv_anysource(self, tensors: Tensors, tag: int = 0) -> Work:
        raise ValueError("recv without src: what comes first would depend on the schedule; name the rank it comes from")

    def _start_coalescing(self, device: Any = None) -> None:
        self._coalesced = Work(self._pending, [])

    def _end_coalescing(self, device: Any = None) -> Work:
        work, self._coalesced = self._coalesced, None
        if work is None:
            raise RuntimeError("calls are coalesced to an end that had no beginning")
        return work

    def shutdown(self) -> None:
        pass

    def abort(self) -> None:
        pass


def _first(*lists: Tensors) -> torch.Tensor:
    """One that has elements, if there is one."""
    tensors = [tensor for tensors in lists for tensor in tensors]
    return next((tensor for tensor in tensors if tensor.numel()), tensors[0])


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    reduced(tensor)  # refuses what cannot be sent
    return tensor.detach().reshape(-1)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    plain = moved(tensor)
    return plain.reshape(1) if plain.dim() == 0 else plain


def _give(target: torch.Tensor, values: torch.Tensor) -> None:
    target.detach().copy_(values.reshape(target.shape))


def _give_moved(target: torch.Tensor, values: torch.Tensor) -> None:
    if not target.is_contiguous():
        target.detach().copy_(_moved_back(values, target))
    elif values.numel():
        moved(target).reshape(-1).copy_(values)


def _moved_back(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    made = torch.empty(like.shape, dtype=like.dtype)
    moved(made).reshape(-1).copy_(values)
    return made


def _split(outputs: Tensors, flat: torch.Tensor, counts: list[int]) -> None:
    for output, part in zip(outputs, flat.split(counts)):
        output.detach().copy_(part.reshape(output.shape))
