// I-BERT's softmax over a row: h = sat_16(rhe(e * M / 2**E)), F = 2**32 // sum h, y = (h * F) >> (32 - OUT_BITS).
// docs/quantization.md, "I-BERT: a second-order polynomial". Exponentials and reciprocal by serial divisions.
module softmax_ibert #(
    parameter int     S0_BITS    = 8,     // of an input word
    parameter int     S0_ROW     = 64,    // of the longest row
    parameter int     M0_BITS    = 9,     // of an output word
    parameter int     X0         = -14,
    parameter longint B          = 54,
    parameter longint C          = 1116,
    parameter int     N          = 30,
    parameter longint M          = 1970390814,
    parameter int     E          = 56,
    parameter int     OUT_BITS   = 8,
    parameter int     ROUNDING   = 0,     // of h, as in round_shift
    parameter         MASK_FILE  = "",
    parameter int     MASK_WORDS = 0      // 0: no mask
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
  localparam int EXP_BITS = $clog2(C + 1) + N + (C == 0);
  localparam int SUM_BITS = 16 + $clog2(S0_ROW + 1);
  localparam int DIV_BITS = SUM_BITS > 33 ? SUM_BITS : 33;
  localparam int NEXT = 0, EXP = 1, DIVIDE = 2, FACTOR = 3, OUT = 4;

  logic [2:0] state;
  logic [31:0] at, length;
  logic [SUM_BITS-1:0] sum;
  logic [15:0] row[0:S0_ROW-1];

  wire valid, last, masked, exp_done;
  wire signed [S0_BITS:0] delta;
  wire [EXP_BITS-1:0] exp;
  row_max #(S0_BITS, S0_ROW, MASK_FILE, MASK_WORDS) maximum (
      .clk(clk), .rst(rst), .s_tdata(s0_axis_tdata), .s_tvalid(s0_axis_tvalid), .s_tready(s0_axis_tready),
      .s_tlast(s0_axis_tlast), .valid(valid), .ready(state == EXP && exp_done), .first(), .last(last),
      .masked(masked), .x(), .x_max(), .delta(delta)
  );
  int_exp #(S0_BITS + 1, X0, B, C, N, EXP_BITS) exponential (
      clk, rst, state == NEXT && valid, masked, delta, exp_done, exp
  );

  // m may be exactly 2**31, and is never negative here
  wire signed [EXP_BITS+33:0] scaled = $signed({1'b0, exp}) * $signed({1'b0, M[31:0]});
  wire signed [15:0] exp16;
  round_shift #(EXP_BITS + 34, 16, E < 0, ROUNDING) narrowing (scaled, 16'(E), exp16);

  wire divided;
  wire [DIV_BITS-1:0] factor, rest;
  wire [DIV_BITS-1:0] whole = DIV_BITS'(33'h100000000);
  wire [DIV_BITS-1:0] divisor = sum == 0 ? DIV_BITS'(1) : DIV_BITS'(sum);
  divide #(DIV_BITS) reciprocal (clk, rst, state == DIVIDE, whole, divisor, divided, factor, rest);

  wire [48:0] product = row[at] * factor[32:0];
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
          row[at] <= exp16;
          sum <= sum + SUM_BITS'($unsigned(exp16));
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
