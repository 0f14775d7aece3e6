// I-ViT's ShiftExp of one delta: t = delta * 1.4375, not below N * X0; q = t // X0; r = t - X0 * q;
// exp = ((r - 2 * X0) << (N - q)) >> 1. A masked element has t = N * X0.
// A positive delta (POSITIVE) gives at most 2**31 - 1, where the sum behind it is clamped anyway.
module shift_exp #(
    parameter int DELTA_BITS = 9,
    parameter int X0         = -20,
    parameter int N          = 15,
    parameter int POSITIVE   = 0,
    parameter int EXP_BITS   = 32
) (
    input  logic                         clk,
    input  logic                         rst,
    input  logic                         start,
    input  logic                         masked,
    input  logic signed [DELTA_BITS-1:0] delta,
    output logic                         done,
    output logic        [  EXP_BITS-1:0] exp
);
  localparam longint STEP = -X0;  // of one halving
  localparam longint LEAST = -STEP * N;
  localparam int CLAMPED = $clog2(STEP * (N == 0 ? 1 : N) + 1);
  localparam int DIV_BITS = POSITIVE != 0 && DELTA_BITS + 2 > CLAMPED ? DELTA_BITS + 2 : CLAMPED;
  localparam longint MOST = 64'sd2147483647;

  wire signed [DELTA_BITS+1:0] wide = delta;
  wire signed [DELTA_BITS+1:0] scaled = wide + (wide >>> 1) - (wide >>> 4);
  wire signed [63:0] argument = masked || scaled < LEAST ? LEAST : 64'(scaled);
  wire [63:0] magnitude = argument < 0 ? -argument : argument;
  wire [DIV_BITS-1:0] quotient, remainder;
  divide #(DIV_BITS) division (clk, rst, start, magnitude[DIV_BITS-1:0], STEP[DIV_BITS-1:0], done, quotient, remainder);

  logic positive;
  always_ff @(posedge clk) if (start) positive <= argument > 0;

  // delta <= 0: the quotient is q, the remainder -r
  wire [63:0] base = 2 * STEP - 64'(remainder);
  wire [EXP_BITS:0] shifted = (EXP_BITS + 1)'(base) << (N - 32'(quotient));
  // delta > 0: q = -ceil(t / STEP), and again STEP < base <= 2 * STEP
  wire [63:0] up = 64'(quotient) + (remainder != 0);
  wire [63:0] base_up = remainder == 0 ? 2 * STEP : STEP + 64'(remainder);
  wire [95:0] grown = (96'(base_up) << (N + up)) >> 1;
  wire [63:0] most = N + up > 32 || grown > MOST ? MOST : grown[63:0];
  assign exp = POSITIVE != 0 && positive ? EXP_BITS'(most) : shifted[EXP_BITS:1];
endmodule
