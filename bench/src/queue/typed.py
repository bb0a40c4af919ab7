"""multiprocessing.Queue with one producer and one consumer process, tuples of a string and five numbers."""
import ctypes, json, multiprocessing as mp, os, sys, time

NAME = "a name of forty bytes, as messages have."


def die_with_parent():
    ctypes.CDLL(None).prctl(1, 9)


def produce(queue, go, warm, count, cpus):
    die_with_parent()
    os.sched_setaffinity(0, cpus)
    begin = 0
    for seq in range(warm + count):
        if seq == warm:
            go.wait()
            begin = time.monotonic_ns()
        queue.put((NAME, seq, seq & 0xFFFF, -seq, seq * 0.5, 70.5))
    queue.put(begin)


def main():
    die_with_parent()
    warm, count, cpus_a, cpus_b = (json.loads(a) for a in sys.argv[1:5])
    os.sched_setaffinity(0, cpus_a)
    queue, go = mp.Queue(1024), mp.Event()
    producer = mp.Process(target=produce, args=(queue, go, warm, count, cpus_b), daemon=True)
    producer.start()
    for seq in range(warm + count):
        if seq == warm:
            go.set()
        got = queue.get()
        assert got == (NAME, seq, seq & 0xFFFF, -seq, seq * 0.5, 70.5), (got, seq)
    end = time.monotonic_ns()
    begin = queue.get()
    producer.join()
    print(json.dumps([end - begin]))


main()
