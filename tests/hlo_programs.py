"""Texts of compiled programs, cut down to what their readers must understand, from TPU compiles."""

# ruff: noqa: E501

# A windowed product: the weights' shards go round the ring while they are multiplied, two steps at
# a time; the counter is element 2, starts at 0 and stops at 8.
WINDOWED = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={()->bf16[]}, num_partitions=8

%body (wide: (bf16[80,64], bf16[16,64], u32[])) -> (bf16[80,64], bf16[16,64], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %wide = (bf16[80,64]{1,0:T(8,128)(2,1)S(1)}, bf16[16,64]{1,0:T(8,128)(2,1)}, /*index=2*/u32[]{:T(128)}) parameter(0)
  %shard = bf16[80,64]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%wide), index=0
  %there = (bf16[80,64]{1,0:T(8,128)(2,1)S(1)}, bf16[80,64]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%shard), channel_id=3, source_target_pairs={{0,7},{1,0}}, metadata={op_name="jit(f)/dot_general" stack_frame_id=1}
  %next = bf16[80,64]{1,0:T(8,128)(2,1)S(1)} collective-permute-done(%there)
  %rows = bf16[16,64]{1,0:T(8,128)(2,1)} get-tuple-element(%wide), index=1
  %count = u32[]{:T(128)} get-tuple-element(%wide), index=2
  %later = u32[]{:T(128)} add(%count, %two)
  ROOT %state = (bf16[80,64]{1,0}, bf16[16,64]{1,0}, u32[]{:T(128)}) tuple(%next, %rows, %later)
}

%condition (wide.1: (bf16[80,64], bf16[16,64], u32[])) -> pred[] {
  %eight = u32[]{:T(128)} constant(8)
  %wide.1 = (bf16[80,64]{1,0}, bf16[16,64]{1,0}, u32[]{:T(128)}) parameter(0)
  %count.1 = u32[]{:T(128)} get-tuple-element(%wide.1), index=2
  ROOT %less = pred[]{:T(512)} compare(%count.1, %eight), direction=LT
}

ENTRY %main (a: bf16[80,64], b: bf16[16,64]) -> bf16[16,64] {
  %a = bf16[80,64]{1,0} parameter(0)
  %b = bf16[16,64]{1,0} parameter(1)
  %zero = u32[] constant(0)
  %start = (bf16[80,64]{1,0}, bf16[16,64]{1,0}, u32[]) tuple(%a, %b, %zero)
  %loop = (bf16[80,64]{1,0}, bf16[16,64]{1,0}, u32[]) while(%start), condition=%condition, body=%body
  ROOT %out = bf16[16,64]{1,0} get-tuple-element(%loop), index=1
}
"""

COUNTING = """

%adding (p.7: u32[], p.8: u32[]) -> u32[] {
  %own = u32[] constant(2)
  %p.7 = u32[] parameter(0)
  %p.8 = u32[] parameter(1)
  ROOT %more = u32[] add(%p.7, %own)
}

%comparing (p.5: u32[], p.6: u32[]) -> pred[] {
  %p.5 = u32[] parameter(0)
  %p.6 = u32[] parameter(1)
  ROOT %still = pred[] compare(%p.6, %p.5), direction=LT
}

"""

# One gather that three fusions carry, a reduce-scatter inside a fusion that bears its name, a plain
# all-reduce, and an asynchronous gather; groups written in each of the ways there are.
COLLECTIVES = """\
HloModule jit_g, is_scheduled=true, num_partitions=8

%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add = f32[] add(%x, %y)
}

%fused_computation.1 (p: bf16[100,8]) -> bf16[100,64] {
  %p = bf16[100,8]{1,0} parameter(0)
  ROOT %gather.1 = bf16[100,64]{1,0} all-gather(%p), channel_id=86, replica_groups=mesh['axis_0'=1,'axis_1'=8] {'axis_1'}, dimensions={1}, frontend_attributes={chain_id="1"}, metadata={op_name="jit(g)/readout"}
}

%async_collective_fusion.2 (p.1: bf16[100,8]) -> bf16[100,64] {
  %p.1 = bf16[100,8]{1,0} parameter(0)
  ROOT %gather.2 = bf16[100,64]{1,0} all-gather(%p.1), channel_id=86, replica_groups=mesh['axis_0'=1,'axis_1'=8] {'axis_1'}, dimensions={1}, frontend_attributes={chain_id="1"}, metadata={op_name="jit(g)/readout"}
}

%all-reduce-scatter.1 (q: f32[64,100]) -> f32[8,100] {
  %q = f32[64,100]{1,0} parameter(0)
  %reduce = f32[64,100]{1,0} all-reduce(%q), channel_id=9, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%sum
  %zero.1 = s32[] constant(0)
  ROOT %mine = f32[8,100]{1,0} dynamic-slice(%reduce, %zero.1, %zero.1), dynamic_slice_sizes={8,100}
}

ENTRY %main.1 (w: bf16[100,8], g: f32[64,100]) -> f32[] {
  %w = bf16[100,8]{1,0} parameter(0)
  %g = f32[64,100]{1,0} parameter(1)
  %begin = bf16[100,64]{1,0} fusion(%w), kind=kCustom, calls=%fused_computation.1
  %end = bf16[100,64]{1,0} fusion(%w), kind=kOutput, calls=%async_collective_fusion.2
  %scattered = f32[8,100]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %norm = f32[]{:T(128)S(1)} constant(1)
  %pair = (f32[8,100]{1,0}, f32[32,100]{1,0}) all-gather-start(%scattered), channel_id=5, replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_1'}, dimensions={0}
  %whole = f32[32,100]{1,0} all-gather-done(%pair)
  ROOT %total = f32[] all-reduce(%norm), channel_id=7, replica_groups={}, to_apply=%sum
}
"""

# A batch of products as TPU programs write it: the batch is a spatial axis full of gaps.
BATCHED = """\
HloModule jit_h, num_partitions=1

ENTRY %main.2 (q: f32[4,5,16], k: f32[4,6,16]) -> f32[4,5,6] {
  %q.1 = f32[4,5,16]{2,1,0} parameter(0)
  %k.1 = f32[4,6,16]{2,1,0} parameter(1)
  ROOT %scores = f32[4,5,6]{2,1,0} convolution(%q.1, %k.1), window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0oi->0bf
}
"""
