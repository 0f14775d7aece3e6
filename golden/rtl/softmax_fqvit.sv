// FQ-ViT's Log-Int-Softmax over a row: R = rhe(sum e / e), y = log2 R rounded up from 1.5 * 2**k on; -1 is zero.
// docs/quantization.md, "FQ-ViT: Log-Int-Softmax". One serial division for the exponential and one for R.
module softmax_fqvit #(
    parameter int     S0_BITS    = 8,     // of an input word
    parameter int     S0_ROW     = 64,    // of the longest row
    parameter int     M0_BITS    = 8,     // of an output word
    parameter int     X0         = -14,
    parameter longint B          = 54,
    parameter longint C          = 1116,
    parameter int     N          = 30,
    parameter int     BITS       = 4,     // of a code
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
  localparam int SUM_BITS = EXP_BITS + $clog2(S0_ROW + 1);
  localparam int NEXT = 0, EXP = 1, DIVIDE = 2, RATIO = 3, OUT = 4;

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
  int_exp #(S0_BITS + 1, X0, B, C, N, EXP_BITS) exponential (
      clk, rst, state == NEXT && valid, masked, delta, exp_done, exp
  );

  wire divided;
  wire [SUM_BITS-1:0] quotient, rest;
  wire [SUM_BITS-1:0] divisor = SUM_BITS'(row[at]);
  divide #(SUM_BITS) division (clk, rst, state == DIVIDE, sum, divisor, divided, quotient, rest);

  // the ratio, rounded half to even; its leading one and the bit behind it decide the code
  wire [SUM_BITS:0] twice = {rest, 1'b0};
  wire up = twice > {1'b0, divisor} || (twice == {1'b0, divisor} && quotient[0]);
  wire [SUM_BITS-1:0] ratio = quotient + SUM_BITS'(up);
  logic [15:0] log;
  always_comb begin
    log = 0;
    for (int i = 0; i < SUM_BITS; i++) if (ratio[i]) log = 16'(i);
    if (log != 0 && ((ratio >> (log - 1)) & 1) != 0) log = log + 1;
  end
  wire zero = row[at] == 0 || log >= (1 << BITS);

  assign m0_axis_tdata  = zero ? '1 : M0_BITS'(log);
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
          sum <= sum + SUM_BITS'(exp);
          at <= last ? 0 : at + 1;
          length <= at + 1;
          state <= last ? DIVIDE : NEXT;
        end
        DIVIDE: state <= RATIO;
        RATIO: if (divided) state <= OUT;
        default:
        if (m0_axis_tready) begin
          at <= m0_axis_tlast ? 0 : at + 1;
          state <= m0_axis_tlast ? NEXT : DIVIDE;
          if (m0_axis_tlast) sum <= 0;
        end
      endcase
  end
endmodule
