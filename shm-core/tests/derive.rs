//! `#[derive(ShmSafe)]`: what it accepts, and what the layout hash tells apart. What it refuses stands in the macro's
//! documentation, as examples that do not compile. One fact per test.
#![cfg(all(feature = "derive", not(loom)))]

use shm_core::ShmSafe;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, AtomicU64};

fn layout<T: ShmSafe>() -> u64 {
    T::LAYOUT
}

#[derive(ShmSafe)]
#[repr(C)]
struct Point {
    _x: u32,
    _y: u32,
}

#[derive(ShmSafe)]
#[repr(C, align(64))]
struct Line(Point, Point, [AtomicU64; 4]);

#[derive(ShmSafe)]
#[repr(transparent)]
struct Meters(#[allow(dead_code, reason = "only its form matters")] f64);

#[derive(ShmSafe)]
#[repr(C)]
struct Nothing;

#[derive(ShmSafe)]
#[repr(C)]
struct Pair<A, B: Copy = u8>
where
    A: Copy,
{
    _first: A,
    _second: B,
}

#[derive(ShmSafe)]
#[repr(C)]
struct Marked<const N: usize, const FLAG: bool> {
    _value: u64,
}

#[derive(ShmSafe)]
#[repr(C)]
struct Tagged<T> {
    _value: u64,
    _tag: PhantomData<T>,
}

/// A parameter with a name that the macro might have for itself.
mod named {
    #![allow(non_upper_case_globals, reason = "the name is the point")]

    #[derive(super::ShmSafe)]
    #[repr(C)]
    pub(crate) struct Named<const hash: u64> {
        _value: u64,
    }
}

/// The same names in another scope, to compare with.
mod changed {
    use super::{AtomicU32, ShmSafe};

    pub(super) mod order {
        #[derive(super::ShmSafe)]
        #[repr(C)]
        pub(crate) struct Point {
            _y: u32,
            _x: u32,
        }
    }

    pub(super) mod kind {
        #[derive(super::ShmSafe)]
        #[repr(C)]
        pub(crate) struct Point {
            _x: u32,
            _y: super::AtomicU32,
        }
    }

    pub(super) mod place {
        #[derive(super::ShmSafe)]
        #[repr(C, align(8))]
        pub(crate) struct Point {
            _x: u32,
            _y: u32,
        }
    }

    pub(super) mod nothing {
        #[derive(super::ShmSafe)]
        #[repr(C)]
        pub(crate) struct Point {
            _x: u32,
            _y: u32,
        }
    }
}

mod elsewhere {
    /// As a crate does that has the crate below from somebody else.
    pub(super) mod re_export {
        pub(crate) use shm_core as below;
    }

    #[derive(shm_core::ShmSafe)]
    #[shm_safe(crate = crate::elsewhere::re_export::below)]
    #[repr(C)]
    pub(super) struct Point {
        _x: u32,
        _y: u32,
    }
}

#[test]
fn structs_of_every_form_are_accepted() {
    let layouts =
        [layout::<Point>(), layout::<Line>(), layout::<Meters>(), layout::<Nothing>(), layout::<Pair<u64>>()];
    for (i, one) in layouts.iter().enumerate() {
        assert!(!layouts[..i].contains(one), "{layouts:?}");
    }
}

#[test]
fn the_same_definition_has_the_same_layout() {
    assert_eq!(layout::<Point>(), layout::<changed::nothing::Point>());
}

#[test]
fn the_order_of_fields_is_told_apart() {
    assert_ne!(layout::<Point>(), layout::<changed::order::Point>());
}

#[test]
fn the_types_of_fields_are_told_apart() {
    assert_ne!(layout::<Point>(), layout::<changed::kind::Point>());
}

#[test]
fn alignment_is_told_apart() {
    assert_ne!(layout::<Point>(), layout::<changed::place::Point>());
}

#[test]
fn a_struct_is_not_the_field_that_it_consists_of() {
    assert_ne!(layout::<Meters>(), layout::<f64>());
}

#[test]
fn type_parameters_are_told_apart() {
    assert_ne!(layout::<Pair<u32, i32>>(), layout::<Pair<i32, u32>>());
}

#[test]
fn const_parameters_are_told_apart() {
    assert_ne!(layout::<Marked<1, false>>(), layout::<Marked<2, false>>());
    assert_ne!(layout::<Marked<1, false>>(), layout::<Marked<1, true>>());
}

#[test]
fn the_crate_can_be_reached_by_another_path() {
    assert_eq!(layout::<Point>(), layout::<elsewhere::Point>());
}

#[test]
fn a_marker_tells_what_it_stands_for() {
    assert_ne!(layout::<Tagged<u32>>(), layout::<Tagged<f32>>());
    assert_ne!(layout::<PhantomData<Point>>(), layout::<PhantomData<changed::kind::Point>>());
}

#[test]
fn a_parameter_may_have_any_name() {
    assert_ne!(layout::<named::Named<1>>(), layout::<named::Named<2>>());
}
