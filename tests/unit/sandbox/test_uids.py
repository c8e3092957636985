"""User ids: two for each sandbox, no two alike, blocks kept apart by locks."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

from code_executor.errors import HostUnfit, SandboxUnavailable
from code_executor.sandbox import uids
from code_executor.sandbox.ground import IdRange
from code_executor.sandbox.uids import UidPairs, subordinate


@pytest.mark.parametrize(
    ("count", "pairs"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (65_536, 32_768)]
)
def test_pairs_are_distinct_and_inside_the_range(count: int, pairs: int) -> None:
    made = UidPairs(1000, count)
    taken = [made.take() for _ in range(pairs)]
    every = list(chain.from_iterable(taken))
    assert len(set(every)) == 2 * pairs
    assert all(1000 <= uid < 1000 + count for uid in every)
    with pytest.raises(SandboxUnavailable) as caught:
        made.take()
    assert caught.value.step == "user ids"


def test_the_least_recently_used_pair_is_next() -> None:
    made = UidPairs(0, 6)
    first, second = made.take(), made.take()
    made.give_back(second)
    made.give_back(first)
    assert [made.take() for _ in range(3)] == [(4, 5), second, first]


def test_services_of_one_host_get_blocks_of_their_own(tmp_path: Path) -> None:
    directory = tmp_path / "made" / "here"
    blocks = [UidPairs.of_root(directory) for _ in range(3)]
    taken = [block.take() for block in blocks]
    assert taken[0][0] == uids.ROOT_BASE
    assert len({uid // uids.BLOCK for uid, _ in taken}) == 3
    for block in blocks:
        block.close()


def test_a_block_is_free_again_when_its_service_is_gone(tmp_path: Path) -> None:
    first = UidPairs.of_root(tmp_path)
    pair = first.take()
    first.close()
    first.close()
    second = UidPairs.of_root(tmp_path)
    assert second.take() == pair
    second.close()


def test_ids_never_reach_those_of_others() -> None:
    last = uids.ROOT_BASE + uids.BLOCKS * uids.BLOCK
    assert uids.ROOT_BASE > 1_879_048_191  # the last of systemd's containers
    assert last < 2**31


def test_no_block_left_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uids, "BLOCKS", 1)
    only = UidPairs.of_root(tmp_path)
    with pytest.raises(HostUnfit):
        UidPairs.of_root(tmp_path)
    only.close()


def test_a_directory_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostUnfit) as caught:
        UidPairs.of_root(tmp_path / "file" / "below")
    assert "mkdir" in caught.value.fix


def test_subordinate_ids_are_the_user_s_first_range(tmp_path: Path) -> None:
    file = tmp_path / "subuid"
    file.write_text("other:1:2\nbroken\nalice:x:9\nalice:100000:65536\nalice:7:7\n1001:300000:10\n")
    assert subordinate(file, "alice", 1000) == IdRange(100_000, 65_536)
    assert subordinate(file, "bob", 1001) == IdRange(300_000, 10)
    assert subordinate(file, "carol", 1002) is None
    assert subordinate(tmp_path / "absent", "alice", 1000) is None
