// I-ViT's Shiftmax over a row: y = (e * F) >> (32 - OUT_BITS), F = (2**31 - 1) // min(sum e, 2**31 - 1).
// docs/quantization.md, "I-ViT: Shiftmax". The exponentials and the reciprocal are made by serial divisions.
module softmax_ivit #(
    parameter int S0_BITS    = 8,    // of an input word
    parameter int S0_ROW     = 64,   // of the longest row
    parameter int M0_BITS    = 8,    // of an output word
    parameter int X0         = -20,
    parameter int N          = 15,
    parameter int OUT_BITS   = 8,
    parameter     MASK_FILE  = "",
    parameter int MASK_WORDS = 0     // 0: no mask
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
  localparam int EXP_BITS = $clog2(-X0 + 1) + N;
  localparam int SUM_BITS = (EXP_BITS > 31 ? EXP_BITS : 31) + $clog2(S0_ROW) + 1;
  localparam longint SUM_MAX = 64'sd2147483647;
  localparam int NEXT = 0, EXP = 1, DIVIDE = 2, FACTOR = 3, OUT = 4;

  logic [2:0] state;
  logic [31:0] at, length;
  logic [SUM_BITS-1:0] sum;
  logic [EXP_BITS-1:0] row[0:S0_ROW-1];

  wire valid, last, masked, exp_done;
  wire signed [S0_BITS:0] delta;
  wire [EXP_BITS-1:0] exp;
  row_max #(S0_BITS, S0_ROW, MASK_FILE, MASK_WORDS) maximum (
      .clk(clk), .rst(rst), .s_tdata(s0_axis_tdata), .s_tvalid(s0_axis_tvalid), .s_tready(s0_axis_tready),
      .s_tlast(s0_axis_tlast), .valid(valid), .ready(state == EXP && exp_done), .first(), .last(last),
      .masked(masked), .x(), .x_max(), .delta(delta)
  );
  shift_exp #(S0_BITS + 1, X0, N, 0, EXP_BITS) exponential (
      clk, rst, state == NEXT && valid, masked, delta, exp_done, exp
  );

  wire divided;
  wire [31:0] factor, rest;
  wire [31:0] clamped = sum > SUM_MAX ? SUM_MAX[31:0] : sum[31:0];
  divide #(32) reciprocal (clk, rst, state == DIVIDE, SUM_MAX[31:0], clamped, divided, factor, rest);

  wire [EXP_BITS+31:0] product = row[at] * factor;
  assign m0_axis_tdata  = M0_BITS'(product >> (32 - OUT_BITS));
  assign m0_axis_tvalid = state == OUT;
  assign m0_axis_tlast  = at == length - 1;
  always_ff @(posedge clk) begin
    if (rst) begin
      state <= NEXT;
      at <= 0;
      sum <= 0;
    end else
      case (state)
        NEXT: if (valid) state <= EXP;
        EXP:
        if (exp_done) begin
          row[at] <= exp;
          sum <= sum + exp;
          at <= last ? 0 : at + 1;
          length <= at + 1;
          state <= last ? DIVIDE : NEXT;
        end
        DIVIDE: state <= FACTOR;
        FACTOR: if (divided) state <= OUT;
        default:
        if (m0_axis_tready) begin
          at <= m0_axis_tlast ? 0 : at + 1;
          if (m0_axis_tlast) begin
            state <= NEXT;
            sum <= 0;
          end
        end
      endcase
  end
endmodule
