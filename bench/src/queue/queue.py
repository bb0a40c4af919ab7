"""multiprocessing.Queue with one producer and one consumer process."""
import ctypes, json, multiprocessing as mp, os, sys, time


def die_with_parent():
    ctypes.CDLL(None).prctl(1, 9)


def produce(queue, go, size, warm, count, cpus):
    die_with_parent()
    os.sched_setaffinity(0, cpus)
    pad = b"\x5a" * (size - 8)
    begin = 0
    for seq in range(warm + count):
        if seq == warm:
            go.wait()
            begin = time.monotonic_ns()
        queue.put(seq if size == 8 else seq.to_bytes(8, "little") + pad)
    queue.put(begin)


def main():
    die_with_parent()
    size, warm, count, cpus_a, cpus_b = (json.loads(a) for a in sys.argv[1:6])
    os.sched_setaffinity(0, cpus_a)
    queue, go = mp.Queue(1024), mp.Event()
    producer = mp.Process(target=produce, args=(queue, go, size, warm, count, cpus_b), daemon=True)
    producer.start()
    pad = b"\x5a" * (size - 8)
    for seq in range(warm + count):
        if seq == warm:
            go.set()
        got = queue.get()
        if size == 8:
            assert got == seq, (got, seq)
        else:
            assert got[:8] == seq.to_bytes(8, "little"), seq
            assert seq % 64 or got[8:] == pad, seq
    end = time.monotonic_ns()
    begin = queue.get()
    producer.join()
    print(json.dumps([end - begin]))


main()
