//! Tables of launchers that do something of their own around those of the device in use.

/// A table whose launchers call `$around` with their name, their arguments and the launch, which it makes and gives the status of. The
/// launch is that of the table that `$kernels` gives at the time.
macro_rules! table_around {
    ($kernels:path, $around:path) => {
        table_around! {
            @each $kernels, $around;
            repack(kqm_repack_args),
            quantize(kqm_quantize_args),
            matvec(kqm_matvec_args),
            q4_k_matvec(kqm_q4_k_matvec_args),
            q6_k_gemv(kqm_q6_k_gemv_args),
            qkv(kqm_qkv_args),
            embedding(kqm_embedding_args),
            rms_norm(kqm_rms_norm_args),
            rope(kqm_rope_args),
            attention(kqm_attention_args),
            moe_router(kqm_moe_router_args),
            moe_group(kqm_moe_group_args),
            moe_swiglu(kqm_moe_swiglu_args),
            moe_down(kqm_moe_down_args),
            residual_add(kqm_residual_add_args),
            argmax(kqm_argmax_args),
            float_matvec(kqm_float_matvec_args),
            sample(kqm_sample_args),
            moe_layer(kqm_moe_layer_args),
        }
    };
    (@each $kernels:path, $around:path; $($kernel:ident($args:ident)),* $(,)?) => {{
        $(unsafe extern "C" fn $kernel(args: *const sys::$args, stream: sys::kqm_stream) -> sys::kqm_status {
            $around(stringify!($kernel), args, || {
                let launcher = $kernels().$kernel.expect("a launcher");
                // SAFETY: the caller keeps the launcher's contract.
                unsafe { launcher(args, stream) }
            })
        })*
        unsafe extern "C" fn attention_workspace(args: *const sys::kqm_attention_args) -> u64 {
            // SAFETY: the caller keeps the function's contract.
            unsafe { $kernels().attention_workspace.expect("a function")(args) }
        }
        unsafe extern "C" fn moe_layer_workspace(args: *const sys::kqm_moe_layer_args) -> u64 {
            // SAFETY: the caller keeps the function's contract.
            unsafe { $kernels().moe_layer_workspace.expect("a function")(args) }
        }
        unsafe extern "C" fn moe_max_items(tokens: u32, experts: u32, top_k: u32) -> u32 {
            // SAFETY: the caller keeps the function's contract.
            unsafe { $kernels().moe_max_items.expect("a function")(tokens, experts, top_k) }
        }
        unsafe extern "C" fn status_text(status: sys::kqm_status) -> *const std::ffi::c_char {
            // SAFETY: the caller keeps the function's contract.
            unsafe { $kernels().status_text.expect("a function")(status) }
        }
        sys::kqm_kernels {
            $($kernel: Some($kernel),)*
            attention_workspace: Some(attention_workspace),
            moe_layer_workspace: Some(moe_layer_workspace),
            moe_max_items: Some(moe_max_items),
            status_text: Some(status_text),
        }
    }};
}
pub(super) use table_around;
