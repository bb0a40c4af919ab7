"""multiprocessing's locks: uncontended, and in turns between two processes."""
import ctypes, json, multiprocessing as mp, os, sys, time

now = time.perf_counter_ns


def die_with_parent():
    ctypes.CDLL(None).prctl(1, 9)


def lock(count):
    lock, number = mp.Lock(), 0
    begin = now()
    for _ in range(count):
        lock.acquire()
        number += 1
        lock.release()
    took = now() - begin
    assert number == count, number
    return took


def lock_with(count):
    lock, number = mp.Lock(), 0
    begin = now()
    for _ in range(count):
        with lock:
            number += 1
    took = now() - begin
    assert number == count, number
    return took


def value(count):
    number = mp.Value("Q", 0)
    begin = now()
    for _ in range(count):
        with number.get_lock():
            number.value += 1
    took = now() - begin
    assert number.value == count, number.value
    return took


def semaphore(count):
    permits = mp.Semaphore(4)
    begin = now()
    for _ in range(count):
        permits.acquire()
        permits.release()
    took = now() - begin
    assert permits.get_value() == 4
    return took


def between(target, args, count, turn, cpus):
    """The time of so many turns here, while another process takes its own."""
    warm = max(count // 10, 16)
    other = mp.Process(target=child, args=(cpus, target, warm + count, args), daemon=True)
    other.start()
    for _ in range(warm):
        turn()
    begin = now()
    for _ in range(count):
        turn()
    took = now() - begin
    other.join()
    assert other.exitcode == 0, other.exitcode
    return took


def child(cpus, target, count, args):
    die_with_parent()
    os.sched_setaffinity(0, cpus)
    for _ in range(count):
        target(*args)


def wait_and_clear(event):
    event.wait()
    event.clear()


def answer(asked, answered):
    wait_and_clear(asked)
    answered.set()


def event(count, cpus):
    asked, answered = mp.Event(), mp.Event()

    def turn():
        asked.set()
        wait_and_clear(answered)

    return between(answer, (asked, answered), count, turn, cpus)


def barrier(count, cpus):
    line = mp.Barrier(2)
    return between(line.wait, (), count, line.wait, cpus)


def main():
    die_with_parent()
    job = sys.argv[1]
    count, cpus_a, cpus_b = (json.loads(a) for a in sys.argv[2:5])
    os.sched_setaffinity(0, cpus_a)
    if job in ("event", "barrier"):
        took = globals()[job](count, cpus_b)
    else:
        globals()[job](count // 10)
        took = globals()[job](count)
    print(json.dumps([took]))


main()
