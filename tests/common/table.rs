//! The launchers of the table, for devices that put their own before them.

/// Calls a macro with every launcher and the structure of its arguments.
macro_rules! each_launcher {
    ($with:ident) => {
        $with! {
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
        }
    };
}
pub(super) use each_launcher;
