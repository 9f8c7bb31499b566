//! `q6_k_gemv` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::{Size, matvec, on_devices, status_without_arguments};
use kquant_moe::blocks::TensorType::Q6K;
use kquant_moe::device::Device;
use kquant_moe::sys;

on_devices!(
    equals_the_oracle,
    takes_any_number_of_tokens,
    takes_many_tokens,
    sums_in_one_order,
    stores_one_nan,
    batch_equals_single_tokens,
    refuses_bad_arguments,
);

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    matvec::equals_the_oracle(device, size, Q6K);
}

fn takes_any_number_of_tokens<D: Device>(device: &D, size: Size) {
    matvec::takes_any_number_of_tokens(device, size, Q6K);
}

fn takes_many_tokens<D: Device>(device: &D, size: Size) {
    matvec::takes_many_tokens(device, size, Q6K);
}

fn sums_in_one_order<D: Device>(device: &D, size: Size) {
    matvec::sums_in_one_order(device, size, Q6K);
}

fn stores_one_nan<D: Device>(device: &D, size: Size) {
    matvec::stores_one_nan(device, size, Q6K);
}

fn batch_equals_single_tokens<D: Device>(device: &D, size: Size) {
    matvec::batch_equals_single_tokens(device, size, Q6K);
}

fn refuses_bad_arguments<D: Device>(device: &D, _: Size) {
    matvec::refuses_bad_arguments(device, Q6K);
    assert_eq!(status_without_arguments!(device, q6_k_gemv), sys::KQM_NULL_POINTER);
}
