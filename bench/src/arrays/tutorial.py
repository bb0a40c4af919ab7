"""numpy's arrays in multiprocessing.shared_memory: created here, doubled in a child, checked here; or just attached."""
import ctypes, json, multiprocessing as mp, os, sys, time
from multiprocessing.shared_memory import SharedMemory

try:
    import numpy as np
except ImportError:
    print("numpy is not installed", file=sys.stderr)
    sys.exit(77)

now = time.perf_counter_ns


def begin_child(cpus):
    ctypes.CDLL(None).prctl(1, 9)
    os.sched_setaffinity(0, cpus)


def double(name, count):
    memory = SharedMemory(name=name)
    array = np.ndarray((count,), dtype=np.int64, buffer=memory.buf)
    array *= 2
    del array
    memory.close()


def start_and_double(cpus, name, count):
    begin_child(cpus)
    double(name, count)


def double_on_demand(cpus, pipe, count):
    begin_child(cpus)
    pipe.send(None)
    for name in iter(pipe.recv, None):
        double(name, count)
        pipe.send(None)


def attach_on_demand(cpus, pipe, count):
    begin_child(cpus)
    for name in iter(pipe.recv, None):
        begin = now()
        memory = SharedMemory(name=name)
        array = np.ndarray((count,), dtype=np.int64, buffer=memory.buf)
        first = array[0]
        took = now() - begin
        assert first == 0x5AFE, first
        del array
        memory.close()
        pipe.send(took)


def tutorial(count, hand_over):
    begin = now()
    memory = SharedMemory(create=True, size=count * 8)
    array = np.ndarray((count,), dtype=np.int64, buffer=memory.buf)
    array[:] = np.arange(count)
    hand_over(memory.name)
    right = (array == np.arange(count) * 2).all()
    took = now() - begin
    assert right
    del array
    memory.close()
    memory.unlink()
    return [took]


def starts(count, cpus):
    def hand_over(name):
        child = mp.Process(target=start_and_double, args=(cpus, name, count), daemon=True)
        child.start()
        child.join()
        assert child.exitcode == 0, child.exitcode

    return tutorial(count, hand_over)


def runs(count, cpus):
    pipe, theirs = mp.Pipe()
    child = mp.Process(target=double_on_demand, args=(cpus, theirs, count), daemon=True)
    child.start()
    pipe.recv()

    def hand_over(name):
        pipe.send(name)
        pipe.recv()

    took = tutorial(count, hand_over)
    pipe.send(None)
    child.join()
    return took


def attach(count, cpus):
    elements = 10_000_000
    memory = SharedMemory(create=True, size=elements * 8)
    np.ndarray((elements,), dtype=np.int64, buffer=memory.buf)[0] = 0x5AFE
    pipe, theirs = mp.Pipe()
    child = mp.Process(target=attach_on_demand, args=(cpus, theirs, elements), daemon=True)
    child.start()
    took = []
    for _ in range(count):
        pipe.send(memory.name)
        took.append(pipe.recv())
    pipe.send(None)
    child.join()
    memory.close()
    memory.unlink()
    return took


def main():
    ctypes.CDLL(None).prctl(1, 9)
    job = sys.argv[1]
    count, cpus_a, cpus_b = (json.loads(a) for a in sys.argv[2:5])
    os.sched_setaffinity(0, cpus_a)
    # The tracker of leftovers is a process of its own, started with the first segment: not what is measured.
    first = SharedMemory(create=True, size=8)
    first.close()
    first.unlink()
    print(json.dumps(globals()[job](count, cpus_b)))


main()
