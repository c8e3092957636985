"""The kernel's classic BPF machine, as far as system-call filters use it.

A filter is judged by what it answers, not by how it was made: ``seccomp.compile`` runs every
program here before it hands it out, and the tests do the same rule by rule, without a kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
JUMP = 0x05  # BPF_JMP | BPF_JA
JUMP_EQ = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JUMP_GT = 0x25  # BPF_JMP | BPF_JGT | BPF_K
JUMP_GE = 0x35  # BPF_JMP | BPF_JGE | BPF_K
JUMP_SET = 0x45  # BPF_JMP | BPF_JSET | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K

NR_OFFSET = 0  # offsetof(struct seccomp_data, nr)
ARCH_OFFSET = 4  # offsetof(struct seccomp_data, arch)

Instruction = tuple[int, int, int, int]
"""``struct sock_filter``: operation, jump if true, jump if false, constant."""

_CONDITIONS: dict[int, Callable[[int, int], bool]] = {
    JUMP_EQ: lambda accumulator, k: accumulator == k,
    JUMP_GT: lambda accumulator, k: accumulator > k,
    JUMP_GE: lambda accumulator, k: accumulator >= k,
    JUMP_SET: lambda accumulator, k: accumulator & k != 0,
}


def encode(code: Sequence[Instruction]) -> bytes:
    """Instructions as the kernel takes them, 8 bytes each, native order."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def decode(program: bytes) -> list[Instruction]:
    """The reverse of ``encode``."""
    return list(struct.iter_unpack("=HBBI", program))


def execute(code: Sequence[Instruction], audit: int, nr: int, args: Sequence[int] = ()) -> int:
    """The action word that a filter returns for one call.

    ``audit`` is the architecture (AUDIT_ARCH_*), ``nr`` the call's number (-1 too), ``args`` up
    to six unsigned 64-bit words, the missing ones 0.

    Raises:
        ValueError: an operation that no filter of ours has.
    """
    words = [*args, *[0] * (6 - len(args))]
    data = struct.unpack("=16I", struct.pack("=IIQ6Q", nr & 0xFFFF_FFFF, audit, 0, *words))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        if operation == LOAD:
            accumulator = data[k // 4]
        elif operation == AND:
            accumulator &= k
        elif operation == JUMP:
            at += k
        elif operation == RETURN:
            return k
        elif operation in _CONDITIONS:
            at += if_true if _CONDITIONS[operation](accumulator, k) else if_false
        else:
            raise ValueError(f"operation {operation:#x} at {at - 1}")
