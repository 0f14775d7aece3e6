// value / 2**shift, rounded to an integer and saturated to OUT_BITS; a negative shift multiplies. Combinational.
module round_shift #(
    parameter int IN_BITS  = 64,
    parameter int OUT_BITS = 64,
    parameter int LEFT     = 1,  // 0: the shift is never negative, and no left shifter is built
    parameter int ROUNDING = 0   // 0 half_even, 1 half_up, 2 half_away, 3 floor, 4 toward_zero
) (
    input  logic signed [ IN_BITS-1:0] value,
    input  logic signed [        15:0] shift,
    output logic signed [OUT_BITS-1:0] result
);
  localparam int W = IN_BITS + 2;  // a value is below a quarter after the longest shift, IN_BITS + 1
  localparam int WIDE = W + OUT_BITS;

  wire signed [15:0] right = shift < 0 ? 16'sd0 : shift > W - 1 ? 16'(W - 1) : shift;
  wire signed [W-1:0] extended = value;
  wire signed [W-1:0] kept = extended >>> right;  // floor
  wire [W-1:0] lost = extended << (W - right);  // what was cut off; its first bit is worth a half
  wire half = lost[W-1];
  wire more = |lost[W-2:0];
  wire negative = extended[W-1];
  wire up = ROUNDING == 0 ? half & (more | kept[0])
          : ROUNDING == 1 ? half
          : ROUNDING == 2 ? half & (more | ~negative)
          : ROUNDING == 3 ? 1'b0
          : negative & (half | more);
  wire signed [W-1:0] rounded = kept + $signed({1'b0, up});

  // A value other than 0 that moves left by OUT_BITS saturates, and by more too.
  wire signed [15:0] left = LEFT == 0 || shift >= 0 ? 16'sd0 : shift < -OUT_BITS ? 16'(OUT_BITS) : -shift;
  wire signed [WIDE-1:0] spread = rounded;
  wire signed [WIDE-1:0] moved = spread <<< left;
  wire fits = &moved[WIDE-1:OUT_BITS-1] | ~|moved[WIDE-1:OUT_BITS-1];
  assign result = fits ? moved[OUT_BITS-1:0] : {moved[WIDE-1], {(OUT_BITS - 1) {~moved[WIDE-1]}}};
endmodule
