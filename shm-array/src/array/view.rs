//! Views of locked elements with a shape.

use super::{ArrayGuard, ArrayReadGuard};
use crate::error::{Kind, Result};
use crate::frozen::FrozenArray;
use ndarray::{ArrayView, ArrayViewMut, Dimension, ShapeError, StrideShape};
use shm_core::Plain;

fn refused(error: ShapeError) -> crate::Error {
    Kind::Shape { reason: error.to_string() }.into()
}

impl<T: Plain> ArrayGuard<'_, T> {
    /// The first elements as an `ndarray` view of this shape, row-major unless the shape says otherwise.
    ///
    /// # Errors
    ///
    /// `is_mismatch` if shape or strides reach beyond the elements.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> shm_array::Result<()> {
    /// let a = shm_array::SharedArray::<f64>::zeroed(6)?;
    /// let mut guard = a.lock()?;
    /// guard.view_mut((2, 3))?[[1, 2]] = 0.5;
    /// assert_eq!(guard.view((2, 3))?.sum(), 0.5);
    /// assert!(guard.view((2, 4)).is_err());
    /// # Ok(()) }
    /// ```
    pub fn view<D: Dimension>(&self, shape: impl Into<StrideShape<D>>) -> Result<ArrayView<'_, T, D>> {
        ArrayView::from_shape(shape, self).map_err(refused)
    }

    /// The same, to write to.
    ///
    /// # Errors
    ///
    /// `is_mismatch` if shape or strides reach beyond the elements, or name an element twice.
    pub fn view_mut<D: Dimension>(
        &mut self,
        shape: impl Into<StrideShape<D>>,
    ) -> Result<ArrayViewMut<'_, T, D>> {
        ArrayViewMut::from_shape(shape, self).map_err(refused)
    }
}

impl<T: Plain> ArrayReadGuard<'_, T> {
    /// The first elements as an `ndarray` view of this shape; see [`ArrayGuard::view`].
    ///
    /// # Errors
    ///
    /// `is_mismatch` if shape or strides reach beyond the elements.
    pub fn view<D: Dimension>(&self, shape: impl Into<StrideShape<D>>) -> Result<ArrayView<'_, T, D>> {
        ArrayView::from_shape(shape, self).map_err(refused)
    }
}

impl<T: Plain> FrozenArray<T> {
    /// The first elements as an `ndarray` view of this shape; see [`ArrayGuard::view`].
    ///
    /// # Errors
    ///
    /// `is_mismatch` if shape or strides reach beyond the elements.
    pub fn view<D: Dimension>(&self, shape: impl Into<StrideShape<D>>) -> Result<ArrayView<'_, T, D>> {
        ArrayView::from_shape(shape, self).map_err(refused)
    }
}
