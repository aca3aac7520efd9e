"""Buffers that are used again: never while somebody still has a view of them."""

from memcluster.node.serving.pool import BLOCK, BLOCKS, Pool


def test_a_buffer_is_lent_again_when_its_last_view_is_gone():
    """Views of views count, too: a piece that waits to be sent keeps its buffer."""
    pool = Pool()
    view = pool.take(BLOCK)
    first = id(view.obj)  # no reference: that would count
    piece = view[10:20]
    del view
    assert id(pool.take(BLOCK).obj) != first
    del piece
    assert id(pool.take(BLOCK).obj) == first


def test_what_is_lent_at_the_same_time_is_apart():
    """Whatever is written to one view is in no other, even when more are lent than are kept."""
    pool = Pool()
    views = [pool.take(BLOCK) for _ in range(BLOCKS + 3)]
    for number, view in enumerate(views):
        view[:1] = bytes([number])
    assert [view[0] for view in views] == list(range(BLOCKS + 3))
    assert len({id(view.obj) for view in views}) == len(views)


def test_a_view_has_the_length_asked_for():
    """Small and huge payloads are no business of the pool, but get their memory all the same."""
    pool = Pool()
    for length in (1, BLOCK >> 2, BLOCK - 1, BLOCK, BLOCK + 1):
        assert len(pool.take(length)) == length


def test_the_pool_keeps_a_bounded_number_of_buffers():
    """A burst of payloads does not stay in memory."""
    pool = Pool()
    views = [pool.take(BLOCK) for _ in range(3 * BLOCKS)]
    buffers = {id(view.obj) for view in views}
    views.clear()
    again = [pool.take(BLOCK) for _ in range(BLOCKS)]
    assert {id(view.obj) for view in again} <= buffers
    assert len(pool._blocks) == BLOCKS
