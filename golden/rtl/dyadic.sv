// x * m / 2**e, rounded and saturated to 64 bits: one term of a requantization. Combinational.
// docs/quantization.md, "Requantization"
module dyadic #(
    parameter int X_BITS   = 32,
    parameter int M_BITS   = 33,
    parameter int LEFT     = 1,
    parameter int ROUNDING = 0
) (
    input  logic signed [X_BITS-1:0] x,
    input  logic signed [M_BITS-1:0] m,
    input  logic signed [      15:0] e,
    output logic signed [      63:0] term
);
  wire signed [X_BITS+M_BITS-1:0] product = x * m;
  round_shift #(
      .IN_BITS (X_BITS + M_BITS),
      .OUT_BITS(64),
      .LEFT    (LEFT),
      .ROUNDING(ROUNDING)
  ) rounding (
      .value (product),
      .shift (e),
      .result(term)
  );
endmodule
