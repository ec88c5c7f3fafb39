"""What services have in common, without their servers."""

import gc

from shared.service import settle


def test_what_lives_before_the_loop_is_not_walked_again() -> None:
    thresholds = gc.get_threshold()
    known = [object() for _ in range(3)]
    try:
        settle()
        assert not any(one is known for one in gc.get_objects())
        assert gc.isenabled()
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
    assert any(one is known for one in gc.get_objects())
