// Entry points of what stands around the mixers: rows, attention, experts.
#include "model_attention.cuh"
#include "model_experts.cuh"
#include "model_rows.cuh"

KERNEL(embed_rows, EmbedArgs, ROW_THREADS, 1, (embed(args)))
KERNEL(norm_rows, NormArgs, ROW_THREADS, 1, (rms_norm(args)))
KERNEL(form_rows, RowsArgs, 128, 1, (make_forms(args)))
KERNEL(norm_heads, HeadNormArgs, 128, 1, (head_norm(args)))
KERNEL(norm_odd_heads, HeadNormArgs, ROW_THREADS, 1, (odd_head_norm(args)))
KERNEL(route_rows, RouteArgs, 128, 1, (route(args)))
KERNEL(mix_expert_rows, MixExpertsArgs, 256, 1, (mix_experts(args)))
KERNEL(attention_prepare_f32, AttentionArgs, 128, 1, (attention_prepare<float>(args)))
KERNEL(attention_prepare_f16, AttentionArgs, 128, 1, (attention_prepare<f16>(args)))
KERNEL(attend_f32, AttentionArgs, ATTEND_THREADS, 1, (attend<float>(args)))
KERNEL(attend_f16, AttentionArgs, ATTEND_THREADS, 1, (attend<f16>(args)))
KERNEL(attention_merge, AttentionArgs, MERGE_COLUMNS, 1, (merge_spans(args)))
