//! Device memory as the library hands it out: where parts begin, what is copied, and what is refused.

mod common;

use common::hooked::{Call, Hook, Hooked};
use common::{cuda_device, emulated_device};
use kquant_moe::blocks::TensorType;
use kquant_moe::device::{Buffer, Device, Probe, Slice, SliceMut, bytes_of, bytes_of_mut};
use kquant_moe::kernels::{FloatMatrix, Groups, Matrix, MoeLayer};
use kquant_moe::{Error, Result};

fn read<D: Device>(device: &D, buffer: &Buffer<D, u32>) -> Vec<u32> {
    let mut values = vec![0; buffer.len()];
    buffer.read(device, 0, &mut values).unwrap();
    values
}

fn parts_and_copies<D: Device>(device: &D) {
    let mut buffer = Buffer::from_slice(device, &[1_u32, 2, 3, 4, 5]).unwrap();
    assert_eq!((buffer.len(), buffer.is_empty(), buffer.slice().len()), (5, false, 5));
    let start = buffer.slice().as_ptr() as u64;
    for (from, len) in [(0, 5), (1, 4), (4, 1), (5, 0), (2, 2)] {
        let part = buffer.part(from, len).unwrap();
        assert_eq!((part.as_ptr() as u64, part.len(), part.is_empty()), (start + 4 * from as u64, len, len == 0));
        let part = buffer.part_mut(from, len).unwrap();
        assert_eq!((part.as_ptr() as u64, part.len(), part.is_empty()), (start + 4 * from as u64, len, len == 0));
    }
    assert_eq!((buffer.slice_mut().as_ptr() as u64, buffer.slice_mut().len()), (start, 5));

    buffer.write(device, 1, &[20, 30]).unwrap();
    assert_eq!(read(device, &buffer), [1, 20, 30, 4, 5]);
    let mut some = [0; 2];
    buffer.read(device, 3, &mut some).unwrap();
    assert_eq!(some, [4, 5]);
    let mut other = Buffer::zeroed(device, 4).unwrap();
    assert_eq!(read(device, &other), [0; 4]);
    other.copy_from(device, 1, &buffer, 2, 3).unwrap();
    assert_eq!(read(device, &other), [0, 30, 4, 5]);
    // Parts beside each other, backwards too.
    let mut moved = Buffer::from_slice(device, &[1, 2, 3, 4, 5]).unwrap();
    moved.copy_within(device, 2, 0, 2).unwrap();
    assert_eq!(read(device, &moved), [1, 2, 1, 2, 5]);
    moved.copy_within(device, 0, 3, 2).unwrap();
    assert_eq!(read(device, &moved), [2, 5, 1, 2, 5]);
    moved.copy_within(device, 5, 5, 0).unwrap();
    // Nothing, at the very end.
    other.copy_from(device, 4, &buffer, 5, 0).unwrap();
    other.write(device, 4, &[]).unwrap();
    other.read(device, 4, &mut []).unwrap();
    let nothing = Buffer::<D, u32>::zeroed(device, 0).unwrap();
    assert!(nothing.is_empty() && nothing.slice().is_empty() && read(device, &nothing).is_empty());

    // One too far, at either end, and sums that wrap around.
    let refused = |what: &str, result: Result<()>| {
        assert!(matches!(result, Err(Error::Invalid(_))), "{what}: {result:?}");
    };
    for (from, len) in [(0, 6), (1, 5), (5, 1), (6, 0), (usize::MAX, 1), (usize::MAX, 2), (1, usize::MAX)] {
        refused("part", buffer.part(from, len).map(drop));
        refused("part_mut", buffer.part_mut(from, len).map(drop));
        refused("copy from", other.copy_from(device, 0, &buffer, from, len));
    }
    for (to, from, len) in [(0, 1, 2), (1, 0, 2), (2, 2, 1), (0, 3, 3), (3, 0, 3), (0, usize::MAX, 2)] {
        refused("copy within", moved.copy_within(device, to, from, len));
    }
    refused("copy to", other.copy_from(device, 2, &buffer, 0, 3));
    refused("write", buffer.write(device, 3, &[1, 2, 3]));
    refused("read", buffer.read(device, 3, &mut [0; 3]));
    refused("zeroed", Buffer::<D, u32>::zeroed(device, usize::MAX / 2).map(drop));
    // SAFETY: nothing looks at the memory.
    let (slice, slice_mut) =
        unsafe { (Slice::<f32>::from_raw(device, 4096, 3), SliceMut::<f32>::from_raw(device, 8192, 0)) };
    assert_eq!((slice.as_ptr() as usize, slice.len(), slice.is_empty()), (4096, 3, false));
    assert_eq!((slice_mut.as_ptr() as usize, slice_mut.len(), slice_mut.is_empty()), (8192, 0, true));
    assert_eq!(read(device, &buffer), [1, 20, 30, 4, 5]);
    assert_eq!(read(device, &other), [0, 30, 4, 5]);
}

#[test]
fn parts_and_copies_emulated() {
    if let Some(device) = emulated_device() {
        parts_and_copies(&device);
        parts_and_copies(&Probe::new(device));
    }
}

#[test]
fn parts_and_copies_on_a_gpu() {
    if let Some(device) = cuda_device() {
        parts_and_copies(&device);
    }
}

#[test]
fn values_are_their_bytes() {
    let mut values = [1_u32, 0x0203_0405];
    assert_eq!(bytes_of(&values), [1_u32.to_ne_bytes(), 0x0203_0405_u32.to_ne_bytes()].concat());
    bytes_of_mut(&mut values)[..4].copy_from_slice(&7_u32.to_ne_bytes());
    assert_eq!(values, [7, 0x0203_0405]);
}

/// Counts nothing and lets everything through.
struct Quiet;

impl Hook for Quiet {
    fn before(&self, _: Call) -> Result<()> {
        Ok(())
    }

    fn free(&self) -> u64 {
        12_345
    }
}

/// Lets launches through, and nothing that takes memory or gives it back.
struct NoMemory;

impl Hook for NoMemory {
    fn before(&self, call: Call) -> Result<()> {
        match call {
            Call::Launch | Call::Upload | Call::Download => Ok(()),
            other => panic!("{other:?}"),
        }
    }
}

/// What is borrowed of an engine is neither allocated nor freed, also by a whole layer.
#[test]
fn borrowed_memory_stays_the_engines() {
    let Some(engine) = emulated_device() else { return };
    let arena = Buffer::<_, u8>::zeroed(&engine, 1 << 20).unwrap();
    let base = arena.slice().as_ptr() as u64;
    let device = Hooked::new(engine.clone(), NoMemory);
    let mut used = 0;
    let mut take = |bytes: usize| {
        used += bytes.next_multiple_of(256);
        assert!(used <= arena.len());
        base + (used - bytes.next_multiple_of(256)) as u64
    };
    let mut matrix = |rows| {
        let bytes = Matrix::<Hooked<NoMemory>>::bytes_of(TensorType::Q8_0, rows, 256, 2).unwrap();
        // SAFETY: a part of the arena of its own, which is there until the end.
        unsafe { Matrix::from_raw(&device, take(bytes), TensorType::Q8_0, [2, rows, 256]).unwrap() }
    };
    let [gate, up, down] = [256, 256, 16].map(&mut matrix);
    for tokens in [1, 2] {
        let shape = [tokens, 2];
        let bytes = MoeLayer::workspace_bytes(&device, [&gate, &up, &down], TensorType::F32, shape).unwrap();
        // SAFETY: as above.
        let (mut room, x, router, mut y) = unsafe {
            (
                Buffer::<_, u8>::from_raw(&device, take(bytes), bytes),
                Buffer::<_, f32>::from_raw(&device, take(4 * 256 * tokens), 256 * tokens),
                Buffer::<_, f32>::from_raw(&device, take(4 * 512), 512),
                Buffer::<_, f32>::from_raw(&device, take(4 * 16 * tokens), 16 * tokens),
            )
        };
        y.write(&device, 0, &vec![1.0; 16 * tokens]).unwrap();
        let matrices = [&gate, &up, &down];
        MoeLayer::new(x.slice(), router.slice(), matrices, y.slice_mut(), room.slice_mut(), shape)
            .launch(&device)
            .unwrap();
        let mut values = vec![1.0; 16 * tokens];
        y.read(&device, 0, &mut values).unwrap();
        assert!(values.iter().all(|&value| value == 0.0));
    }
    // SAFETY: as above.
    let groups = unsafe { Groups::from_raw(&device, take(4 * 1024), 4, 2, 2).unwrap() };
    assert_eq!(Groups::elements(&device, 4, 2, 2).unwrap(), 8 + groups.items().len() + 1);
    // SAFETY: as above.
    let floats = unsafe { FloatMatrix::from_raw(&device, take(1024), TensorType::F16, [1, 2, 256]).unwrap() };
    assert_eq!((floats.rows(), floats.cols(), floats.experts()), (2, 256, 1));
}

/// A probe is the device that it probes, in all but the launches.
#[test]
fn a_probe_hides_nothing_of_its_device() {
    let Some(emulation) = emulated_device() else { return };
    let device = Hooked::new(emulation.clone(), Quiet);
    let probe = Probe::new(device.clone());
    assert_eq!(probe.memory().unwrap(), (12_345, 12_345));
    assert_eq!((probe.name(), probe.stream()), (device.name(), device.stream()));
    assert!(std::ptr::eq(probe.kernels(), device.kernels()));
    assert!(!probe.slow_fp64() && Probe::new(emulation.clone().with_slow_fp64()).slow_fp64());
    // What forks count is counted together, and what one of them leaves out all do.
    let fork = probe.fork().unwrap();
    assert!(probe.wants("a") && fork.wants("a") && fork.wants("b"));
    probe.only(Some("b"));
    assert!(!fork.wants("a") && fork.wants("b"));
    assert_eq!(fork.take_counts(), [("a", 2), ("b", 2)]);
    assert!(probe.take_counts().is_empty());
    probe.only(None);
    assert!(fork.wants("a"));
}
