"""multiprocessing.Pool and ProcessPoolExecutor with no-op tasks."""
import concurrent.futures as futures, ctypes, json, multiprocessing as mp, os, sys, time

now = time.perf_counter_ns


def worker(cpus):
    ctypes.CDLL(None).prctl(1, 9)
    os.sched_setaffinity(0, cpus)


def next_one(x):
    return x + 1


def main():
    ctypes.CDLL(None).prctl(1, 9)
    kind, job = sys.argv[1:3]
    workers, count, cpus_a, cpus_b = (json.loads(a) for a in sys.argv[3:7])
    os.sched_setaffinity(0, cpus_a)
    begin = now()
    if kind == "Executor":
        pool = futures.ProcessPoolExecutor(workers, initializer=worker, initargs=(cpus_b,))
        call = lambda x: pool.submit(next_one, x).result()
    else:
        pool = mp.Pool(workers, initializer=worker, initargs=(cpus_b,))
        call = lambda x: pool.apply(next_one, (x,))
    assert call(41) == 42
    times = [now() - begin]
    if job == "Call":
        times = []
        for x in range(count // 10 + count):
            begin = now()
            got = call(x)
            times.append(now() - begin)
            assert got == x + 1, (x, got)
        times = times[count // 10:]
    elif job.startswith("Map"):
        chunk = {"chunksize": 1} if job == "MapChunk1" else {}
        times = []
        for tasks in (count // 10, count):
            begin = now()
            results = list(pool.map(next_one, range(tasks), **chunk))
            times = [now() - begin]
            assert results == list(range(1, tasks + 1))
    if kind == "Executor":
        pool.shutdown()
    else:
        pool.terminate()
    print(json.dumps(times))


main()
