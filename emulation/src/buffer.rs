//! Device memory as an owned value.

use std::ffi::c_void;
use std::marker::PhantomData;

/// Types of which every pattern of bits is a value.
///
/// # Safety
/// The type has no padding and no invalid patterns.
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($type:ty),*) => { $(
        // SAFETY: a primitive number.
        unsafe impl Plain for $type {}
    )* };
}
plain!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

/// Elements in device memory that ends at a guard page. Dropping it panics when a kernel wrote next to it.
pub struct Buffer<T: Plain> {
    memory: *mut u8,
    len: usize,
    elements: PhantomData<T>,
}

// SAFETY: the memory is plain bytes that the buffer owns.
unsafe impl<T: Plain> Send for Buffer<T> {}

impl<T: Plain> Buffer<T> {
    /// Elements that nothing has written: poison.
    pub fn new(len: usize) -> Self {
        Buffer { memory: crate::alloc(len * size_of::<T>(), crate::POISON), len, elements: PhantomData }
    }

    /// Elements of which every byte is `fill`.
    pub fn filled(len: usize, fill: u8) -> Self {
        Buffer { memory: crate::alloc(len * size_of::<T>(), fill), len, elements: PhantomData }
    }

    /// A copy of the elements.
    pub fn from_slice(elements: &[T]) -> Self {
        crate::synchronize();
        let buffer = Self::new(elements.len());
        // SAFETY: the memory was just allocated with the size of the slice.
        unsafe { std::ptr::copy_nonoverlapping(elements.as_ptr().cast(), buffer.memory, size_of_val(elements)) };
        buffer
    }

    /// The address for a kernel.
    pub fn as_ptr(&self) -> *mut T {
        self.memory.cast()
    }

    /// The address for a kernel that takes bytes.
    pub fn as_void(&self) -> *mut c_void {
        self.memory.cast()
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A copy of what the memory holds.
    pub fn to_vec(&self) -> Vec<T> {
        crate::synchronize();
        let mut elements: Vec<T> = Vec::with_capacity(self.len);
        // SAFETY: the memory holds `len` elements, and every pattern of bits is one.
        unsafe {
            std::ptr::copy_nonoverlapping(self.memory, elements.as_mut_ptr().cast::<u8>(), self.len * size_of::<T>());
            elements.set_len(self.len);
        }
        elements
    }
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: the buffer owns the memory.
        let freed = unsafe { crate::free(self.memory) };
        if let Err(error) = freed
            && !std::thread::panicking()
        {
            panic!("buffer of {} bytes: {error}", self.len * size_of::<T>());
        }
    }
}
