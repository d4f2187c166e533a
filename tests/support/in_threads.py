"""Calls in threads that start at the same moment."""

import threading


def problems_in_threads(calls, rounds, compare):
    """Run each call several times in a thread of its own, and return what went wrong.

    Args:
        calls: Functions without arguments. Each is first run alone, which gives what is right.
        rounds: How often each thread runs its call.
        compare: Gets a result and the right one; raises an error if they differ.

    Returns:
        The errors; an empty list if there are none.
    """
    right, problems, entered = [call() for call in calls], [], threading.Barrier(len(calls))

    def work(number):
        entered.wait()
        for _ in range(rounds):
            try:
                compare(calls[number](), right[number])
            except Exception as error:
                problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return problems
