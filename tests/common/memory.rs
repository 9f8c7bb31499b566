//! Device memory of operands.

use kquant_moe::device::{Buffer, Device, Plain, Slice, SliceMut, bytes_of, bytes_of_mut};

use super::compare::ok;

/// What unwritten bytes hold: as f32 no number that a kernel computes by chance.
const POISON: u8 = 0xa5;
/// Elements behind an output that no kernel may touch.
const SENTINELS: usize = 32;

/// A copy of `values` for a kernel to read.
pub fn input<D: Device, T: Plain>(device: &D, values: &[T]) -> Buffer<D, T> {
    ok(Buffer::from_slice(device, values))
}

/// Memory for a kernel to write: poison, with more of it behind.
pub struct Output<D: Device, T: Plain> {
    device: D,
    buffer: Buffer<D, T>,
    len: usize,
}

impl<D: Device, T: Plain + Default> Output<D, T> {
    /// Room for `len` elements.
    pub fn new(device: &D, len: usize) -> Self {
        Self::starting_with(device, &poison(len))
    }

    /// Memory that the kernel changes.
    pub fn starting_with(device: &D, values: &[T]) -> Self {
        let all: Vec<T> = values.iter().copied().chain(poison(SENTINELS)).collect();
        Self { device: device.clone(), buffer: input(device, &all), len: values.len() }
    }

    /// All of it but what lies behind.
    pub fn slice(&mut self) -> SliceMut<'_, T> {
        self.buffer.part_mut(0, self.len).unwrap()
    }

    /// The same for another kernel to read.
    pub fn for_reading(&self) -> Slice<'_, T> {
        self.buffer.part(0, self.len).unwrap()
    }

    /// The same when it is wanted.
    pub fn slice_if(&mut self, wanted: bool) -> Option<SliceMut<'_, T>> {
        wanted.then(|| self.slice())
    }

    /// What the kernel left. Fails when it wrote behind the memory.
    pub fn read(&self) -> Vec<T> {
        let mut all = poison(self.buffer.len());
        ok(self.buffer.read(&self.device, 0, &mut all));
        let behind = bytes_of(&all[self.len..]);
        if let Some(byte) = behind.iter().position(|&byte| byte != POISON) {
            panic!("byte {byte} behind an output of {} elements was overwritten", self.len);
        }
        all.truncate(self.len);
        all
    }

    /// Fails unless the memory is as it was.
    pub fn assert_untouched(&self, what: &str) {
        let values = self.read();
        let touched = bytes_of(&values).iter().position(|&byte| byte != POISON);
        assert_eq!(touched, None, "{what}: first byte that was written");
    }
}

fn poison<T: Plain + Default>(len: usize) -> Vec<T> {
    let mut values = vec![T::default(); len];
    bytes_of_mut(&mut values).fill(POISON);
    values
}
