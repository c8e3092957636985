"""The BPF machine: each operation does what the kernel's does."""

from __future__ import annotations

import pytest

from code_executor.sandbox import bpf
from code_executor.sandbox.bpf import Instruction, decode, encode, execute

AUDIT = 0xC000_003E
YES, NO = (bpf.RETURN, 0, 0, 1), (bpf.RETURN, 0, 0, 0)


def returned(*code: Instruction, nr: int = 0, args: tuple[int, ...] = ()) -> int:
    return execute(code, AUDIT, nr, args)


def test_a_program_survives_the_kernel_s_form() -> None:
    code = [(bpf.LOAD, 0, 0, 4), (bpf.JUMP_EQ, 0, 255, 0xFFFF_FFFF), YES]
    assert decode(encode(code)) == code
    assert encode([YES]) == b"\x06\x00\x00\x00\x01\x00\x00\x00"


@pytest.mark.parametrize(
    ("offset", "word"),
    [(0, 7), (4, AUDIT), (8, 0), (16, 0x1111_2222), (20, 0x3333_4444), (56, 6), (60, 0)],
)
def test_loads_look_at_the_call_as_the_kernel_lays_it_out(offset: int, word: int) -> None:
    args = (0x3333_4444_1111_2222, 2, 3, 4, 5, 6)
    load, compare = (bpf.LOAD, 0, 0, offset), (bpf.JUMP_EQ, 0, 1, word)
    assert returned(load, compare, YES, NO, nr=7, args=args) == 1


def test_the_number_minus_one_is_all_ones() -> None:
    load = (bpf.LOAD, 0, 0, bpf.NR_OFFSET)
    assert returned(load, (bpf.JUMP_EQ, 0, 1, 0xFFFF_FFFF), YES, NO, nr=-1) == 1


@pytest.mark.parametrize(
    ("operation", "k", "taken"),
    [
        (bpf.JUMP_EQ, 6, True),
        (bpf.JUMP_EQ, 7, False),
        (bpf.JUMP_GT, 5, True),
        (bpf.JUMP_GT, 6, False),
        (bpf.JUMP_GE, 6, True),
        (bpf.JUMP_GE, 7, False),
        (bpf.JUMP_SET, 4, True),
        (bpf.JUMP_SET, 9, False),
    ],
)
def test_a_conditional_jump(operation: int, k: int, taken: bool) -> None:
    load = (bpf.LOAD, 0, 0, bpf.NR_OFFSET)
    assert returned(load, (operation, 1, 0, k), NO, YES, nr=6) == taken


def test_and_masks_the_accumulator() -> None:
    load, mask = (bpf.LOAD, 0, 0, bpf.NR_OFFSET), (bpf.AND, 0, 0, 0xF0)
    assert returned(load, mask, (bpf.JUMP_EQ, 0, 1, 0x30), YES, NO, nr=0x35) == 1


def test_a_jump_skips() -> None:
    assert returned((bpf.JUMP, 0, 0, 1), NO, YES) == 1


def test_an_operation_that_no_filter_has_is_refused() -> None:
    with pytest.raises(ValueError, match="0x16"):
        returned((0x16, 0, 0, 0))
