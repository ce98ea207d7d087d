"""What is read from HLO, on small programs written by hand; the figures are counted by hand."""

import pytest

from benchmarks.hlo import parse, shapes
from benchmarks.kernels import kernels

CONVOLUTION = """
HloModule jit_step, is_scheduled=true

%fused_convert (param_0.1: bf16[48], param_1.2: bf16[2,4,4,48]) -> bf16[2,4,4,48] {
  %param_1.2 = bf16[2,4,4,48]{3,2,1,0} parameter(1)
  %param_0.1 = bf16[48]{0} parameter(0)
  %wide = bf16[2,4,4,48]{3,2,1,0} broadcast(%param_0.1), dimensions={3}
  ROOT %sum = bf16[2,4,4,48]{3,2,1,0} add(%param_1.2, %wide)
}

ENTRY %main.1 (images.1: bf16[2,8,8,3], kernel.1: bf16[48,6,6,3], bias.1: bf16[48]) -> bf16[2,4,4,48] {
  %images.1 = bf16[2,8,8,3]{3,2,1,0} parameter(0), metadata={op_name="images"}
  %kernel.1 = bf16[48,6,6,3]{3,2,1,0} parameter(1)
  %bias.1 = bf16[48]{0} parameter(2)
  %cudnn-conv.1 = (bf16[2,4,4,48]{3,2,1,0}, u8[64]{0}) custom-call(%images.1, %kernel.1), window={size=6x6 stride=2x2 pad=2_2x2_2}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/jvp(Network)/model_0/conv/conv_general_dilated"}
  %get-tuple-element.1 = bf16[2,4,4,48]{3,2,1,0} get-tuple-element(%cudnn-conv.1), index=0
  ROOT %fusion.1 = bf16[2,4,4,48]{3,2,1,0} fusion(%bias.1, /*index=1*/%get-tuple-element.1), kind=kLoop, calls=%fused_convert, \
metadata={op_name="jit(step)/add"}
}
"""


def listed(text):
    return kernels(parse(text))


def entry(lines, *, before=""):
    body = "\n".join(f"  {line}" for line in lines.strip().splitlines())
    return f"{before}\n\nENTRY %main (p: f32[1]) -> f32[1] {{\n{body}\n}}\n"


def test_a_convolution_and_a_fusion_by_hand():
    convolution, fusion = listed(CONVOLUTION)
    # Each of 2 x 4 x 4 x 48 results is a sum of 6 x 6 x 3 products. The library's workspace is not counted.
    assert convolution.flop == 2 * (2 * 4 * 4 * 48) * (6 * 6 * 3)
    assert convolution.dtype == "bf16"
    assert convolution.bytes == 2 * (2 * 8 * 8 * 3 + 48 * 6 * 6 * 3 + 2 * 4 * 4 * 48)
    assert convolution.op_name.endswith("model_0/conv/conv_general_dilated")
    # Only what goes in and out of a fusion: a bias, an array, and an array of the same size.
    assert (fusion.flop, fusion.bytes) == (0, 2 * (48 + 2 * (2 * 4 * 4 * 48)))


@pytest.mark.parametrize(
    ("target", "result", "left", "right"),
    [
        ("Forward", "f16[2,4,4,48]", "f16[2,8,8,3]", "f16[48,6,6,3]"),
        ("BackwardFilter", "f16[48,6,6,3]", "f16[2,8,8,3]", "f16[2,4,4,48]"),
        ("BackwardInput", "f16[2,8,8,3]", "f16[2,4,4,48]", "f16[48,6,6,3]"),
    ],
)
def test_both_gradients_of_a_convolution_cost_as_much_as_itself(target, result, left, right):
    program = entry(f"""
%a = {left} parameter(0)
%b = {right} parameter(1)
ROOT %c = ({result}, u8[0]) custom-call(%a, %b), window={{size=6x6 stride=2x2}}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv{target}"
""")
    (kernel,) = listed(program)
    assert kernel.flop == 2 * (2 * 4 * 4 * 48) * (6 * 6 * 3)


@pytest.mark.parametrize(
    ("line", "left", "right"),
    [
        # Forward, gradient of the kernel (the images' window is the gradient), gradient of the images (which are spread out).
        (
            "f32[2,4,4,48] convolution(%a, %b), window={size=6x6 stride=2x2 pad=2_2x2_2}, dim_labels=b01f_01io->b01f",
            "f32[2,8,8,3]",
            "f32[6,6,3,48]",
        ),
        (
            "f32[6,6,3,48] convolution(%a, %b), window={size=4x4 pad=2_2x2_2 rhs_dilate=2x2}, dim_labels=f01b_i01o->01bf",
            "f32[2,8,8,3]",
            "f32[2,4,4,48]",
        ),
        (
            "f32[2,8,8,3] convolution(%a, %b), window={size=6x6 pad=3_3x3_3 lhs_dilate=2x2}, dim_labels=b01f_01oi->b01f",
            "f32[2,4,4,48]",
            "f32[6,6,3,48]",
        ),
    ],
)
def test_convolutions_as_a_tpu_has_them_inside_fusions(line, left, right):
    inside = f"%inside (x: f32[1]) -> f32[1] {{\n  %a = {left} parameter(0)\n  %b = {right} parameter(1)\n  ROOT %c = {line}\n}}"
    result = line.split()[0]
    program = entry(
        f"%x = {left} parameter(0)\n%y = {right} parameter(1)\nROOT %z = {result} fusion(%x, %y), kind=kOutput, calls=%inside",
        before=inside,
    )
    (kernel,) = listed(program)
    assert kernel.flop == 2 * (2 * 4 * 4 * 48) * (6 * 6 * 3)
    assert kernel.dtype == "f32"


def test_matrix_products_by_hand():
    first, second = listed(
        entry("""
%a = bf16[5,7]{1,0} parameter(0)
%b = bf16[7,11]{1,0} parameter(1)
%c = bf16[5,11]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
ROOT %d = (bf16[5,11]{1,0}, s8[0]) custom-call(%a, %b), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
""")
    )
    assert first.flop == second.flop == 2 * 5 * 11 * 7


def test_a_gather_reads_the_sectors_of_its_rows_and_not_its_operand():
    (kernel,) = listed(
        entry("""
%a = f32[1000,25]{1,0} parameter(0)
%i = s32[10,1]{1,0} parameter(1)
ROOT %g = f32[10,25]{1,0} gather(%a, %i), offset_dims={1}, collapsed_slice_dims={0}, start_index_map={0}, index_vector_dim=1, slice_sizes={1,25}
""")
    )
    # A row of 100 bytes lies in four sectors of 32.
    assert kernel.bytes == 10 * 4 * 32 + 10 * 4 + 10 * 25 * 4


INSIDE = """
%taken (x: f32[1]) -> f32[1] {
  %a = bf16[1000,25]{1,0} parameter(0)
  %i = s32[10,1]{1,0} parameter(1)
  %wide = f32[1000,25]{1,0} convert(%a)
  %flat = f32[40,25,25]{2,1,0} bitcast(%wide)
  ROOT %r = f32[10,1,25]{2,1,0} gather(%flat, %i), offset_dims={1,2}, collapsed_slice_dims={0}, start_index_map={0}, index_vector_dim=1, \
slice_sizes={1,1,25}
}
"""


def test_of_what_is_made_number_by_number_a_fusion_computes_the_gathered_rows_alone():
    lines = """
%x = bf16[1000,25]{1,0} parameter(0)
%y = s32[10,1]{1,0} parameter(1)
ROOT %z = f32[10,1,25]{2,1,0} fusion(%x, %y), kind=kLoop, calls=%taken
"""
    (kernel,) = listed(entry(lines, before=INSIDE))
    assert kernel.bytes == 10 * 2 * 32 + 10 * 4 + 10 * 25 * 4  # a row of bfloat16 takes 50 bytes, two sectors
    summed = INSIDE.replace("f32[1000,25]{1,0} convert(%a)", "f32[1000,25]{1,0} cumulative(%a)")
    (kernel,) = listed(entry(lines, before=summed))
    assert kernel.bytes == 1000 * 25 * 2 + 10 * 4 + 10 * 25 * 4


def test_a_gather_of_more_than_there_is_reads_its_operand_once():
    (kernel,) = listed(
        entry("""
%a = u8[10,3]{1,0} parameter(0)
%i = s32[500,1]{1,0} parameter(1)
ROOT %g = u8[500,3]{1,0} gather(%a, %i), offset_dims={1}, collapsed_slice_dims={0}, start_index_map={0}, index_vector_dim=1, slice_sizes={1,3}
""")
    )
    assert kernel.bytes == 10 * 3 + 500 * 4 + 500 * 3


@pytest.mark.parametrize(
    ("result", "numbers", "read"),
    [
        ("f32[4,64]", "[0:4], [0:64]", 4 * 64 * 4),  # half of each row
        ("f32[4,1]", "[0:4], [5:6]", 4 * 32),  # one number of each row: a sector
        ("f32[2,128]", "[2:4], [0:128]", 2 * 128 * 4),
        ("f32[4,16]", "[0:4], [0:128:8]", 4 * 16 * 32),  # every eighth number: one of each sector
        ("f32[4,8]", "[0:4], [0:128:16]", 4 * 8 * 32),  # every other sector
    ],
)
def test_a_slice_reads_its_part(result, numbers, read):
    (kernel,) = listed(
        entry(f"%a = f32[4,128]{{1,0}} parameter(0)\nROOT %s = {result}{{1,0}} slice(%a), slice={{{numbers}}}")
    )
    (written,) = shapes(result)
    assert kernel.bytes == read + written.bytes


def test_updates_in_place_cost_what_they_change():
    scatter = """
%inside (x: f32[1]) -> f32[1] {
  %a = f32[1000,25]{1,0} parameter(0)
  %i = s32[10,1]{1,0} parameter(1)
  %u = f32[10,25]{1,0} parameter(2)
  ROOT %s = f32[1000,25]{1,0} scatter(%a, %i, %u), update_window_dims={1}, inserted_window_dims={0}, to_apply=%add
}
"""
    lines = """
%x = f32[1000,25]{1,0} parameter(0)
%y = s32[10,1]{1,0} parameter(1)
%z = f32[10,25]{1,0} parameter(2)
ROOT %r = f32[1000,25]{1,0} fusion(%x, %y, %z), kind=kInput, calls=%inside
"""
    (kernel,) = listed(entry(lines, before=scatter))
    assert kernel.bytes == 2 * (10 * 4 * 32) + 10 * 4 + 10 * 25 * 4


def test_a_loop_counts_every_round():
    body = "%body (x: f32[1]) -> f32[1] {\n  %p = f32[8]{0} parameter(0)\n  ROOT %n = f32[8]{0} negate(%p)\n}"
    line = '%x = f32[8]{0} parameter(0)\nROOT %w = f32[8]{0} while(%x), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"8"}}'
    (kernel,) = listed(entry(line, before=body))
    assert (kernel.bytes, kernel.times) == (64, 8)
    unknown = line.partition(", backend_config")[0]
    program = parse(entry(unknown, before=body))
    assert [kernel.times for kernel in (*kernels(program), *kernels(program, rounds=5))] == [1, 5]


def test_what_lies_in_the_small_memory_of_a_tpu_costs_no_bandwidth():
    (kernel,) = listed(
        entry("%x = f32[8,128]{1,0:T(8,128)} parameter(0)\nROOT %c = f32[8,128]{1,0:T(8,128)S(1)} copy(%x)")
    )
    assert kernel.bytes == 8 * 128 * 4


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        parse("HloModule empty\n")
