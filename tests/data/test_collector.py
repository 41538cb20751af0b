"""If these fail, a start with many images is slow: the garbage collector searches all of them again and again."""

import gc

from library.data.collector import collector_paused


def test_what_is_made_in_a_pause_is_old_at_its_end() -> None:
    """Collections of young objects, of which there are many, leave it alone."""
    assert gc.isenabled()
    with collector_paused():
        with collector_paused():
            inner = [[] for _ in range(10)]
        assert not gc.isenabled()
        outer = [[] for _ in range(10)]
        young = {id(each) for each in gc.get_objects(generation=0)}
        assert {id(each) for each in inner + outer} <= young
    old = {id(each) for each in gc.get_objects(generation=2)}
    assert gc.isenabled()
    assert {id(each) for each in inner + outer} <= old
