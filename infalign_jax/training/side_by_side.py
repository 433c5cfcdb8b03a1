"""Work that threads of one process do at the same time: on CPUs, where the operations of a small model are too small to share."""

from concurrent import futures

from infalign_jax.training.distributed import many


def side_by_side(function, items, count):
    """`[function(item) for item in items]`, `count` of them at a time, each in a thread of its own.

    One at a time where several processes work together, which must all do the same in the same order. After an error no
    other item is begun; those under way go on to their end, then the error of the first item that has one is raised.
    """
    if count == 1 or many():
        return [function(item) for item in items]
    pool = futures.ThreadPoolExecutor(count)
    try:
        done = [pool.submit(function, item) for item in items]
        futures.wait(done, return_when=futures.FIRST_EXCEPTION)
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown(cancel_futures=True)
    for each in done:
        if not each.cancelled() and each.exception() is not None:
            raise each.exception()
    return [each.result() for each in done]
