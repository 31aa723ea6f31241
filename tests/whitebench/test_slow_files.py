"""Many small files are read in threads where each read waits."""

import threading
import time

import pytest

from whitebench.slow_files import PROBED, SLOW_S, read_all


def test_results_are_in_order_wherever_they_were_read() -> None:
    threads = set()

    def read(item: int) -> int:
        time.sleep(2 * SLOW_S)
        threads.add(threading.get_ident())
        return item * item

    items = range(3 * PROBED)
    assert read_all(read, iter(items)) == [item * item for item in items]
    assert len(threads) > 1
    assert read_all(str, []) == []
    assert read_all(str, items) == list(map(str, items))


def test_an_error_ends_the_reading() -> None:
    def read(item: int) -> int:
        time.sleep(2 * SLOW_S)
        if item == PROBED + 1:
            raise ValueError("deliberate")
        return item

    with pytest.raises(ValueError, match="deliberate"):
        read_all(read, range(10_000))
