//! Values, arrays, structures: what CPython does with `Value`, `Array` and `sharedctypes`.

use crate::start::Start;
use bytemuck::{Pod, Zeroable};
use proc_pool::shared::{LockError, Mutex, Plain, Shared, SharedArray, SharedMemory, SharedValue};
use std::fmt::Debug;
use std::sync::atomic::{
    AtomicI16, AtomicI32, AtomicI64, AtomicU8, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

conformance! {
    conformance_value
    conformance_rawvalue
    conformance_value_getobj_getlock
    conformance_array
    conformance_rawarray
    conformance_array_getobj_getlock
    conformance_array_from_size
    conformance_sharedctypes
    conformance_synchronize
    conformance_copy
}

fn set<T: Plain + Send>((value, new): (SharedValue<T>, T)) {
    value.set(new);
}

fn conformance_value(start: Start) {
    fn changed<T>(start: Start, before: T, after: T)
    where
        T: Plain + Send + PartialEq + Debug + serde::Serialize + serde::de::DeserializeOwned,
    {
        let value = SharedValue::new(before).expect("made");
        assert_eq!(value.get(), before);
        start.run(set::<T>, (value.clone(), after));
        assert_eq!(value.get(), after);
    }
    changed(start, 7_i32, 6);
    changed(start, 10.5_f64, -11.0);
    changed(start, -10_i16, 10);
    changed(start, -(1_i64 << 33), 1 << 33);
    changed(start, b'x', b'y');
}

/// Without a lock: atomics.
fn conformance_rawvalue(start: Start) {
    macro_rules! changed {
        ($type:ty, $before:expr, $after:expr) => {
            let value = Shared::new(<$type>::new($before)).expect("made");
            assert_eq!(value.load(SeqCst), $before);
            start.run(|value: Shared<$type>| value.store($after, SeqCst), value.clone());
            assert_eq!(value.load(SeqCst), $after);
        };
    }
    changed!(AtomicI32, 7, 6);
    changed!(AtomicU64, 10.5_f64.to_bits(), (-11_f64).to_bits());
    changed!(AtomicI16, -10, 10);
    changed!(AtomicI64, -(1 << 33), 1 << 33);
    changed!(AtomicU8, b'x', b'y');
}

/// `lock=True`: the value's own lock. `lock=L`: data of any kind inside the lock. `lock=False`: an atomic has none.
fn conformance_value_getobj_getlock(start: Start) {
    let own = SharedValue::new(5_i32).expect("made");
    let mut guard = own.lock().expect("free");
    *guard += 1;
    // Who reads the object takes no lock.
    assert_eq!(own.get(), 5);
    let locked = |own: SharedValue<i32>| assert!(matches!(own.try_lock(), Err(LockError::WouldBlock)));
    start.run(locked, own.clone());
    drop(guard);
    assert_eq!(own.get(), 6);

    let given = Shared::new(Mutex::new([5_i32; 2])).expect("made");
    let guard = given.lock().expect("free");
    let locked = |given: Shared<Mutex<[i32; 2]>>| {
        assert!(matches!(given.try_lock(), Err(LockError::WouldBlock)));
    };
    start.run(locked, given.clone());
    drop(guard);
    start.run(|given: Shared<Mutex<[i32; 2]>>| given.lock().expect("free")[1] = 7, given.clone());
    assert_eq!(*given.lock().expect("free"), [5, 7]);
}

const NUMBERS: [i32; 10] = [680, 626, 934, 821, 150, 233, 548, 982, 714, 831];

fn sums(numbers: &[i32]) -> Vec<i32> {
    let running = numbers.iter().scan(0, |sum, number| {
        *sum += number;
        Some(*sum)
    });
    running.collect()
}

fn conformance_array(start: Start) {
    let array = SharedArray::from_slice(&NUMBERS).expect("made");
    assert_eq!(array.len(), NUMBERS.len());
    assert_eq!(array.get(4).expect("there"), NUMBERS[4]);
    assert!(array.get(NUMBERS.len()).expect_err("not there").is_out_of_range());
    let mut slice = [0; 5];
    array.copy_to(2, &mut slice).expect("there");
    assert_eq!(slice, NUMBERS[2..7]);
    array.copy_from(4, &[1, 2, 3, 4]).expect("there");
    let mut expected = NUMBERS;
    expected[4..8].copy_from_slice(&[1, 2, 3, 4]);
    assert_eq!(array.to_vec().expect("whole"), expected);
    let prefix_sums = |array: SharedArray<i32>| {
        let mut guard = array.lock().expect("free");
        for index in 1..guard.len() {
            guard[index] += guard[index - 1];
        }
    };
    start.run(prefix_sums, array.clone());
    assert_eq!(*array.lock().expect("free"), sums(&expected));
}

fn conformance_rawarray(start: Start) {
    let array = SharedArray::<AtomicI32>::zeroed(NUMBERS.len()).expect("made");
    array.iter().zip(NUMBERS).for_each(|(to, from)| to.store(from, Relaxed));
    let prefix_sums = |array: SharedArray<AtomicI32>| {
        for index in 1..array.len() {
            array[index].fetch_add(array[index - 1].load(Relaxed), Relaxed);
        }
    };
    start.run(prefix_sums, array.clone());
    let found: Vec<i32> = array.iter().map(|number| number.load(Relaxed)).collect();
    assert_eq!(found, sums(&NUMBERS));
    assert_eq!(array[2..4].len(), 2);
}

/// One lock for all, a lock per chunk, or none.
fn conformance_array_getobj_getlock(start: Start) {
    let whole = SharedArray::from_iter(0..10_i32).expect("made");
    let guard = whole.lock().expect("free");
    let locked = |whole: SharedArray<i32>| assert!(matches!(whole.try_lock(), Err(LockError::WouldBlock)));
    start.run(locked, whole.clone());
    drop(guard);

    let parts = SharedArray::<i32>::chunked(10, 5).expect("made");
    let guard = parts.chunk(0).expect("there").lock().expect("free");
    let half_locked = |parts: SharedArray<i32>| {
        assert!(matches!(parts.chunk(0).expect("there").try_lock(), Err(LockError::WouldBlock)));
        parts.chunk(1).expect("there").try_lock().expect("free").fill(1);
    };
    start.run(half_locked, parts.clone());
    drop(guard);
    assert_eq!(parts.to_vec().expect("whole"), [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]);

    let none = SharedArray::<AtomicI32>::zeroed(10).expect("made");
    start.run(|none: SharedArray<AtomicI32>| none[9].store(1, SeqCst), none.clone());
    assert_eq!(none[9].load(SeqCst), 1);
}

/// New memory is zero, whoever had it before.
fn conformance_array_from_size(start: Start) {
    const SIZE: usize = 10;
    for _ in 0..3 {
        let array = SharedArray::<i32>::zeroed(SIZE).expect("made");
        assert_eq!(array.to_vec().expect("whole"), [0; SIZE]);
        let fill = |array: SharedArray<i32>| array.copy_from(0, &NUMBERS).expect("there");
        start.run(fill, array.clone());
        assert_eq!(array.to_vec().expect("whole"), NUMBERS);

        let memory = SharedMemory::create_random(SIZE).expect("made");
        let mut bytes = [1; SIZE];
        memory.read_at(0, &mut bytes).expect("there");
        assert_eq!(bytes, [0; SIZE]);
        start.run(|memory: SharedMemory| memory.write_at(0, &[255; SIZE]).expect("there"), memory);
    }
}

/// Python's `Foo`, a structure with two fields.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
struct Foo {
    x: i64,
    y: f64,
}

#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Things {
    x: SharedValue<i32>,
    y: SharedValue<f64>,
    z: SharedValue<i64>,
    foo: SharedValue<Foo>,
    numbers: SharedArray<f64>,
    string: SharedArray<u8>,
}

impl Things {
    fn new() -> Self {
        let mut string = [0; 20];
        string[..5].copy_from_slice(b"hello");
        Self {
            x: SharedValue::new(7).expect("made"),
            y: SharedValue::new(1.0 / 3.0).expect("made"),
            z: SharedValue::new(1 << 33).expect("made"),
            foo: SharedValue::new(Foo { x: 3, y: 2.0 }).expect("made"),
            numbers: SharedArray::from_iter((0..10).map(f64::from)).expect("made"),
            string: SharedArray::from_slice(&string).expect("made"),
        }
    }

    fn assert_doubled(&self) {
        assert_eq!((self.x.get(), self.y.get(), self.z.get()), (14, 2.0 / 3.0, 1 << 34));
        assert_eq!(self.foo.get(), Foo { x: 6, y: 4.0 });
        let numbers: Vec<f64> = (0..10).map(|number| f64::from(number * 2)).collect();
        assert_eq!(self.numbers.to_vec().expect("whole"), numbers);
        let string = self.string.to_vec().expect("whole");
        assert_eq!(string.split(|&byte| byte == 0).next(), Some(&b"hellohello"[..]));
    }
}

fn twice(one: Foo) -> Foo {
    Foo { x: one.x * 2, y: one.y * 2.0 }
}

fn double_arrays(things: &Things) {
    things.numbers.lock().expect("free").iter_mut().for_each(|number| *number *= 2.0);
    let mut string = things.string.lock().expect("free");
    let len = string.iter().position(|&byte| byte == 0).expect("a short one");
    string.copy_within(..len, len);
}

fn conformance_sharedctypes(start: Start) {
    let double = |things: Things| {
        things.x.set(things.x.get() * 2);
        things.y.set(things.y.get() * 2.0);
        things.z.set(things.z.get() * 2);
        things.foo.set(twice(things.foo.get()));
        double_arrays(&things);
    };
    let things = Things::new();
    start.run(double, things.clone());
    things.assert_doubled();
}

fn conformance_synchronize(start: Start) {
    let double = |things: Things| {
        *things.x.lock().expect("free") *= 2;
        things.y.update(|y| y * 2.0);
        things.z.update(|z| z * 2);
        things.foo.update(twice);
        double_arrays(&things);
    };
    let things = Things::new();
    start.run(double, things.clone());
    things.assert_doubled();
}

fn conformance_copy(start: Start) {
    let value = SharedValue::new(Foo { x: 2, y: 5.0 }).expect("made");
    let array = SharedArray::from_slice(&[2.5_f64, 5.0]).expect("made");
    let copy = SharedValue::new(value.get()).expect("made");
    let frozen = array.freeze().expect("made");
    let clear = |(value, array): (SharedValue<Foo>, SharedArray<f64>)| {
        value.set(Foo { x: 0, y: 0.0 });
        array.lock().expect("free").fill(0.0);
    };
    start.run(clear, (value.clone(), array.clone()));
    assert_eq!(value.get(), Foo { x: 0, y: 0.0 });
    assert_eq!(array.to_vec().expect("whole"), [0.0, 0.0]);
    assert_eq!(copy.get(), Foo { x: 2, y: 5.0 });
    assert_eq!(*frozen, [2.5, 5.0]);
}
