// I-BERT's i-exp of one delta <= 0: t = max(delta, N * X0); q = t // X0; r = t - X0 * q;
// exp = max((r * (r + B) + C) << (N - q), 0). A masked element has t = N * X0.
module int_exp #(
    parameter int     DELTA_BITS = 9,
    parameter int     X0         = -14,
    parameter longint B          = 54,
    parameter longint C          = 1116,
    parameter int     N          = 30,
    parameter int     EXP_BITS   = $clog2(C + 1) + N + (C == 0)
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
  localparam int DIV_BITS = $clog2(STEP * (N == 0 ? 1 : N) + 1);

  wire signed [63:0] argument = masked || delta < LEAST ? LEAST : 64'(delta);
  wire [63:0] magnitude = -argument;
  wire [DIV_BITS-1:0] quotient, remainder;
  divide #(DIV_BITS) division (clk, rst, start, magnitude[DIV_BITS-1:0], STEP[DIV_BITS-1:0], done, quotient, remainder);

  wire signed [63:0] r = -$signed(64'(remainder));
  wire signed [63:0] polynomial = r * (r + B) + C;
  assign exp = polynomial < 0 ? '0 : EXP_BITS'(polynomial) << (N - 32'(quotient));
endmodule
