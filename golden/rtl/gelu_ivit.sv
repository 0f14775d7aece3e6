// I-ViT's ShiftGELU over the channels of a token: S = min(e + em, 2**31 - 1), em the exponential of 0 - x_max,
// sigmoid = (e * ((2**31 - 1) // S)) >> (32 - OUT_BITS), y = x * sigmoid.
// docs/quantization.md, "I-ViT: ShiftGELU". Two serial divisions an element, and one exponential more a row.
module gelu_ivit #(
    parameter int S0_BITS  = 8,    // of an input word
    parameter int S0_ROW   = 64,   // of the longest row
    parameter int M0_BITS  = 15,   // of an output word
    parameter int X0       = -12,
    parameter int N        = 23,
    parameter int OUT_BITS = 8     // of the sigmoid
) (
    input  logic               clk,
    input  logic               rst,
    input  logic [S0_BITS-1:0] s0_axis_tdata,
    input  logic               s0_axis_tvalid,
    output logic               s0_axis_tready,
    input  logic               s0_axis_tlast,
    output logic [M0_BITS-1:0] m0_axis_tdata,
    output logic               m0_axis_tvalid,
    input  logic               m0_axis_tready,
    output logic               m0_axis_tlast
);
  localparam int EXP_BITS = $clog2(-X0 + 1) + N > 31 ? $clog2(-X0 + 1) + N : 31;
  localparam longint SUM_MAX = 64'sd2147483647;
  localparam int NEXT = 0, EXP_OF_MAX = 1, START = 2, EXP = 3, DIVIDE = 4, FACTOR = 5, OUT = 6;

  logic [2:0] state;
  logic [EXP_BITS-1:0] em;

  wire valid, first, last, exp_done;
  wire signed [S0_BITS-1:0] x, x_max;
  wire signed [S0_BITS:0] delta;
  wire [EXP_BITS-1:0] exp;
  row_max #(S0_BITS, S0_ROW) maximum (
      .clk(clk), .rst(rst), .s_tdata(s0_axis_tdata), .s_tvalid(s0_axis_tvalid), .s_tready(s0_axis_tready),
      .s_tlast(s0_axis_tlast), .valid(valid), .ready(state == OUT && m0_axis_tready), .first(first), .last(last),
      .masked(), .x(x), .x_max(x_max), .delta(delta)
  );
  wire start_of_max = state == NEXT && valid && first;
  wire signed [S0_BITS:0] wide_max = x_max;
  wire signed [S0_BITS:0] minus_max = -wide_max;
  shift_exp #(S0_BITS + 1, X0, N, 1, EXP_BITS) exponential (
      clk, rst, start_of_max || state == START, 1'b0, start_of_max ? minus_max : delta, exp_done, exp
  );

  wire divided;
  wire [31:0] factor, rest;
  wire [EXP_BITS:0] sum = exp + em;
  wire [31:0] clamped = sum > SUM_MAX ? SUM_MAX[31:0] : sum[31:0];
  divide #(32) reciprocal (clk, rst, state == DIVIDE, SUM_MAX[31:0], clamped, divided, factor, rest);

  wire [EXP_BITS+31:0] product = exp * factor;
  wire signed [EXP_BITS+32:0] sigmoid = $signed({1'b0, product >> (32 - OUT_BITS)});
  assign m0_axis_tdata  = M0_BITS'(x * sigmoid);
  assign m0_axis_tvalid = state == OUT;
  assign m0_axis_tlast  = last;
  always_ff @(posedge clk) begin
    if (rst) state <= NEXT;
    else
      case (state)
        NEXT: if (valid) state <= first ? EXP_OF_MAX : START;
        EXP_OF_MAX:
        if (exp_done) begin
          em <= exp;
          state <= START;
        end
        START: state <= EXP;
        EXP: if (exp_done) state <= DIVIDE;
        DIVIDE: state <= FACTOR;
        FACTOR: if (divided) state <= OUT;
        default: if (m0_axis_tready) state <= NEXT;
      endcase
  end
endmodule
