"""Ranks that are processes: forked from this one, each with globals of its own. What one calls goes over a socket, and
its arrays through memory that both map, to a thread of the parent, which makes the call as the rank."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Optional

import numpy as np

from .. import _core
from .._group import LIBRARIES, said_of

_COVER = 0xFF
_HOW_ISSUED = 1
_ROOT = 5  # of a call's arguments after its arrays


def _native_threads() -> int:
    return len(os.listdir("/proc/self/task"))


#: What importing numpy and torch starts, which knows how to be forked.
THREADS_OF_IMPORT = _native_threads() if sys.platform == "linux" else 0


def refuse_unless_alone() -> None:
    """Raises RuntimeError where a fork would copy locks that a thread holds which it does not copy."""
    if sys.platform != "linux":
        raise RuntimeError('isolation="process" needs Linux: isolation="thread" runs everywhere')
    others = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
    # A thread that was joined may take a while to be gone.
    until = time.monotonic() + 1.0
    while _native_threads() > THREADS_OF_IMPORT and not others and time.monotonic() < until:
        time.sleep(0.005)
    native = _native_threads() - THREADS_OF_IMPORT
    if threading.current_thread() is not threading.main_thread() or others or native > 0:
        what = f"threads {', '.join(others)}" if others else f"{max(native, 1)} of libraries (OpenMP, autograd)"
        raise RuntimeError(f"ranks are forked from a process with one thread, and this one has {what}: call "
                           "shardproof.torch.run before anything starts one (torch.set_num_threads(1) keeps torch from "
                           'it), or with isolation="thread"')


class RankFailure(RuntimeError):
    """What a rank's process raised, or died of. `said`: in one line."""

    def __init__(self, said: str, stack: str = "") -> None:
        super().__init__(f"{said}\n\n{stack.rstrip()}" if stack else said)
        self.said = said


class Arena:
    """Memory that parent and rank map, which grows as the rank needs it; the rank says where in it an array lies."""

    def __init__(self, rank: int) -> None:
        self._file = os.memfd_create(f"rank {rank}")
        self._map: Optional[mmap.mmap] = None
        self.size = 0
        self._used: dict[int, int] = {}  # bytes by where they begin

    def reach(self, size: int, grow: bool) -> None:
        if size <= self.size:
            return
        if grow:
            os.ftruncate(self._file, size)
        self._map = mmap.mmap(self._file, size)  # the old one goes with the last array in it
        self.size = size

    def array(self, begin: int, count: int, dtype: Any = np.uint8) -> np.ndarray:
        if count == 0:
            return np.empty(0, dtype)
        return np.frombuffer(self._map, dtype, count, begin)

    def take(self, size: int) -> int:
        size = max(size, 1)  # no two arrays lie at one place
        begin = 0
        for used in sorted(self._used):
            if used - begin >= size:
                break
            begin = max(begin, -(-(used + self._used[used]) // 64) * 64)
        self._used[begin] = size
        needed = begin + size
        if needed > self.size:
            self.reach(-(-max(needed, 2 * self.size, 1 << 16) // mmap.PAGESIZE) * mmap.PAGESIZE, grow=True)
        return begin

    def give_back(self, begin: int) -> None:
        del self._used[begin]

    def close(self) -> None:
        self._map = None
        os.close(self._file)


class Wire:
    """Objects of ours over a socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, what: Any) -> None:
        data = pickle.dumps(what, protocol=pickle.HIGHEST_PROTOCOL)
        self._end.sendall(struct.pack("<Q", len(data)) + data)

    def receive(self) -> Any:
        return pickle.loads(self._exactly(struct.unpack("<Q", self._exactly(8))[0]))

    def _exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self._end.recv(min(size - len(parts), 1 << 20))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def close(self) -> None:
        self._end.close()


class _Issued:
    """A call under way, as the rank knows it: its arrays, and where their copies lie."""

    def __init__(self, number: int, source: Any, target: Any, at: Any) -> None:
        self.number, self.source, self.target, self.at = number, source, target, at


class RemoteGroup:
    def __init__(self, number: int, rank: int, size: int, name: str, members: list[int]) -> None:
        self.number, self.rank, self.size, self.name, self.members = number, rank, size, name, members


class RemoteScheme:
    """In a rank's process: what _core.Scheme is to a rank's thread."""

    def __init__(self, wire: Wire, arena: Arena) -> None:
        self._wire = wire
        self._arena = arena
        self._issued: dict[int, _Issued] = {}

    def _ask(self, *question: Any) -> Any:
        self._wire.send(question)
        kind, answer = self._wire.receive()
        if kind == "over":
            raise _core.RunOver("the run is over")
        if kind != "ok":
            raise {"invalid": _core.InvalidCall, "value": ValueError}.get(kind, RuntimeError)(answer)
        return answer

    def group(self, rank: int, label: str, members: list[int]) -> RemoteGroup:
        return RemoteGroup(*self._ask("group", label, members))

    def call(self, rank: int, group: RemoteGroup, operation: str, code: int, source: Optional[np.ndarray],
             target: Optional[np.ndarray], *rest: Any) -> Optional[_Issued]:
        root, how = rest[_ROOT], rest[-1]
        same = target is not None and target is source
        at = [self._put(source), None]
        at[1] = at[0] if same else self._place(target)
        sizes = *self._shape(source, at[0]), *self._shape(target, at[1])
        if operation == "broadcast":  # one array, which only the root reads and only the others write
            source, target = (source, None) if group.rank == root else (None, target)
        try:
            self._refuse_what_is_under_way(operation, source, target)
        except _core.InvalidCall:
            self._free(at)
            raise
        try:
            number = self._ask("call", self._arena.size, group.number, operation, code, *sizes, rest)
        except BaseException:
            self._free(at)
            raise
        if how != _HOW_ISSUED:
            self._fetch(target, at)
            self._free(at)
            return None
        if target is not None and target is not source:
            _bytes(target).fill(_COVER)
        made = self._issued[number] = _Issued(number, source, target, at)
        return made

    def wait(self, rank: int, issued: _Issued) -> None:
        # What the program wrote meanwhile is shown to the core, which refuses it.
        for array, at in ((issued.source, issued.at[0]), (None if issued.target is issued.source else issued.target,
                                                          issued.at[1])):
            if array is not None and at is not None:
                self._arena.array(at, array.nbytes)[:] = _bytes(array)
        try:
            self._ask("wait", issued.number)
            self._fetch(issued.target, issued.at)
        finally:
            del self._issued[issued.number]
            self._free(issued.at)

    def _refuse_what_is_under_way(self, operation: str, source: Any, target: Any) -> None:
        for issued in self._issued.values():
            if any(array is not None and other is not None and np.may_share_memory(array, other)
                   for array, other in ((source, issued.target), (target, issued.target), (target, issued.source))):
                raise _core.InvalidCall(f"{operation} uses memory of a call that has not been waited for")

    def _put(self, array: Optional[np.ndarray]) -> Optional[int]:
        at = self._place(array)
        if at is not None:
            self._arena.array(at, array.nbytes)[:] = _bytes(array)
        return at

    def _place(self, array: Optional[np.ndarray]) -> Optional[int]:
        return None if array is None else self._arena.take(array.nbytes)

    @staticmethod
    def _shape(array: Optional[np.ndarray], at: Optional[int]) -> tuple[Optional[int], int]:
        return at, 0 if array is None else array.nbytes

    def _fetch(self, target: Optional[np.ndarray], at: list[Optional[int]]) -> None:
        if target is not None and target.flags.writeable:
            _bytes(target)[:] = self._arena.array(at[1], target.nbytes)

    def _free(self, at: list[Optional[int]]) -> None:
        for begin in {begin for begin in at if begin is not None}:
            self._arena.give_back(begin)


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


class Child:
    """A rank's process, as the parent has it."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.arena = Arena(rank)
        mine, self._theirs = socket.socketpair()
        self.wire, self._mine = Wire(mine), mine
        self._stack = tempfile.TemporaryFile()
        self._ending = threading.Lock()
        self._status = 0
        self.pid = 0

    def fork(self, others: Sequence[Child], program: Callable[[RemoteScheme], bytes]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._be(parent, others, program)
        self._theirs.close()

    def _be(self, parent: int, others: Sequence[Child], program: Callable[[RemoteScheme], bytes]) -> None:
        status = 1
        try:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nobody outlives the parent
            if os.getppid() != parent:
                os._exit(1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the run
            faulthandler.register(signal.SIGUSR1, file=self._stack, all_threads=False)
            for other in others:
                other.wire.close()
            self._mine.close()
            wire = Wire(self._theirs)
            try:
                result = program(RemoteScheme(wire, self.arena))
                wire.send(("end", result))
                status = 0
            except _core.RunOver:
                status = 0
            except BaseException as error:  # noqa: BLE001: whatever it is, it is the rank's
                wire.send(("raise", said_of(error), traceback.format_exc(), isinstance(error, _core.InvalidCall)))
        except (BrokenPipeError, EOFError, ConnectionError):
            pass
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def serve(self, scheme: Any, rank: int) -> bytes:
        """In the rank's thread: makes the process's calls. Returns what its program ends with."""
        groups: list[Any] = []
        issued: dict[int, Any] = {}
        refused: Optional[BaseException] = None
        while True:
            try:
                question = self.wire.receive()
            except (EOFError, ConnectionError):
                raise RankFailure(self._death()) from None
            if question[0] == "end":
                return question[1]
            if question[0] == "raise":
                _, said, stack, is_refusal = question
                raise refused if is_refusal and refused is not None else RankFailure(said, stack)
            try:
                answer = ("ok", self._answer(scheme, rank, groups, issued, question))
            except _core.RunOver:
                self._tell(("over", None))
                raise
            except _core.InvalidCall as error:
                refused = error.with_traceback(None)  # whose frames would hold the arrays
                answer = ("invalid", str(error))
            except (ValueError, TypeError) as error:
                answer = ("value", str(error))
            self._tell(answer)

    def _tell(self, answer: Any) -> None:
        try:
            self.wire.send(answer)
        except ConnectionError:
            raise RankFailure(self._death()) from None

    def _answer(self, scheme: Any, rank: int, groups: list[Any], issued: dict[int, Any], question: Any) -> Any:
        if question[0] == "group":
            group = scheme.group(rank, *question[1:])
            groups.append(group)
            return len(groups) - 1, group.rank, group.size, group.name, group.members
        if question[0] == "wait":
            scheme.wait(rank, issued.pop(question[1]))
            return None
        _, size, group, operation, code, source_at, source_size, target_at, target_size, rest = question
        self.arena.reach(size, grow=False)
        source = None if source_at is None else self.arena.array(source_at, source_size)
        target = source
        if target_at != source_at:
            target = None if target_at is None else self.arena.array(target_at, target_size)
        made = scheme.call(rank, groups[group], operation, code, source, target, *rest)
        if made is None:
            return None
        number = max(issued, default=-1) + 1
        issued[number] = made
        return number

    def _death(self) -> str:
        status = self.end(0.5)
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        return f"the process of rank {self.rank} {how}"

    def end(self, patience: float = 0.0) -> int:
        """Its exit status, as subprocess has it; killed when it has not ended by then. From any thread."""
        with self._ending:
            if self.pid == 0:
                return self._status
            until = time.monotonic() + patience
            done, status = os.waitpid(self.pid, os.WNOHANG)
            while done == 0 and time.monotonic() < until:
                time.sleep(0.002)
                done, status = os.waitpid(self.pid, os.WNOHANG)
            if done == 0:
                os.kill(self.pid, signal.SIGKILL)
                _, status = os.waitpid(self.pid, 0)
            self.pid = 0
            self._status = os.waitstatus_to_exitcode(status)
            return self._status

    def stack(self) -> str:
        """Where its program is, the library's own frames left out."""
        if self.pid == 0:
            return ""
        os.kill(self.pid, signal.SIGUSR1)
        until, said = time.monotonic() + 1.0, b""
        while time.monotonic() < until and not said:
            time.sleep(0.01)
            self._stack.seek(0)
            said = self._stack.read()
        lines = said.decode(errors="replace").splitlines()[1:]
        own = [line for line in lines if not any(library in line for library in LIBRARIES)]
        return "\n".join(reversed(own)) + "\n"

    def close(self) -> None:
        self.end()
        self.wire.close()
        self.arena.close()
        self._stack.close()
