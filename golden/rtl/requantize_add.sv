// y = saturate(round(x * m / 2**e) + round(r * residual_m / 2**residual_e), BITS): two roundings, one addition.
// The residual r is the second stream, or where RESIDUAL_WORDS is not 0 a memory that repeats.
// docs/quantization.md, "Requantization". One element a cycle, one cycle of latency.
module requantize_add #(
    parameter int S0_BITS          = 32,  // of an input word
    parameter int S0_ROW           = 1,   // channels
    parameter int S1_BITS          = 16,  // of a word of the residual, if it is a stream
    parameter int M0_BITS          = 8,   // of an output word
    parameter int BITS             = 8,   // where the output saturates
    parameter int ROUNDING         = 0,   // as in round_shift
    parameter     M_FILE           = "",
    parameter int M_WORDS          = 1,
    parameter int M_BITS           = 33,
    parameter     E_FILE           = "",
    parameter int E_WORDS          = 1,
    parameter int E_BITS           = 12,
    parameter     RESIDUAL_FILE    = "",
    parameter int RESIDUAL_WORDS   = 0,   // 0: the second stream
    parameter int RESIDUAL_BITS    = 16,
    parameter     RESIDUAL_M_FILE  = "",
    parameter int RESIDUAL_M_WORDS = 1,
    parameter int RESIDUAL_M_BITS  = 33,
    parameter     RESIDUAL_E_FILE  = "",
    parameter int RESIDUAL_E_WORDS = 1,
    parameter int RESIDUAL_E_BITS  = 12
) (
    input  logic               clk,
    input  logic               rst,
    input  logic [S0_BITS-1:0] s0_axis_tdata,
    input  logic               s0_axis_tvalid,
    output logic               s0_axis_tready,
    input  logic               s0_axis_tlast,
    input  logic [S1_BITS-1:0] s1_axis_tdata,
    input  logic               s1_axis_tvalid,
    output logic               s1_axis_tready,
    input  logic               s1_axis_tlast,
    output logic [M0_BITS-1:0] m0_axis_tdata,
    output logic               m0_axis_tvalid,
    input  logic               m0_axis_tready,
    output logic               m0_axis_tlast
);
  localparam int STREAM = RESIDUAL_WORDS == 0;
  localparam int R_BITS = STREAM ? S1_BITS : RESIDUAL_BITS;
  localparam int R_WORDS = STREAM ? 1 : RESIDUAL_WORDS;

  logic signed [M_BITS-1:0] m[0:M_WORDS-1];
  logic signed [E_BITS-1:0] e[0:E_WORDS-1];
  logic signed [RESIDUAL_M_BITS-1:0] residual_m[0:RESIDUAL_M_WORDS-1];
  logic signed [RESIDUAL_E_BITS-1:0] residual_e[0:RESIDUAL_E_WORDS-1];
  logic signed [RESIDUAL_BITS-1:0] residual[0:R_WORDS-1];
  initial $readmemh(M_FILE, m);
  initial $readmemh(E_FILE, e);
  initial $readmemh(RESIDUAL_M_FILE, residual_m);
  initial $readmemh(RESIDUAL_E_FILE, residual_e);
  generate
    if (!STREAM) initial $readmemh(RESIDUAL_FILE, residual);
  endgenerate

  logic [31:0] channel, element;
  wire signed [M_BITS-1:0] m_now = m[M_WORDS == 1 ? 0 : channel];
  wire signed [15:0] e_now = e[E_WORDS == 1 ? 0 : channel];
  wire signed [RESIDUAL_M_BITS-1:0] rm_now = residual_m[RESIDUAL_M_WORDS == 1 ? 0 : channel];
  wire signed [15:0] re_now = residual_e[RESIDUAL_E_WORDS == 1 ? 0 : channel];
  wire signed [R_BITS-1:0] r_now = STREAM ? $signed(s1_axis_tdata) : residual[STREAM ? 0 : element];
  wire signed [S0_BITS-1:0] x = $signed(s0_axis_tdata);
  wire signed [63:0] term, residual_term;
  dyadic #(S0_BITS, M_BITS, 1, ROUNDING) scaling (x, m_now, e_now, term);
  dyadic #(R_BITS, RESIDUAL_M_BITS, 1, ROUNDING) residual_scaling (r_now, rm_now, re_now, residual_term);
  wire signed [64:0] total = term + residual_term;
  wire signed [M0_BITS-1:0] y;
  saturate #(65, BITS, M0_BITS) clamp (total, y);

  // Both streams move together.
  wire space = !m0_axis_tvalid || m0_axis_tready;
  wire move = space && s0_axis_tvalid && (!STREAM || s1_axis_tvalid);
  assign s0_axis_tready = move;
  assign s1_axis_tready = move;
  always_ff @(posedge clk) begin
    if (rst) begin
      m0_axis_tvalid <= 0;
      channel <= 0;
      element <= 0;
    end else if (space) begin
      m0_axis_tvalid <= move;
      if (move) begin
        m0_axis_tdata <= y;
        m0_axis_tlast <= s0_axis_tlast;
        channel <= s0_axis_tlast ? 0 : channel + 1;
        element <= element == R_WORDS - 1 ? 0 : element + 1;
      end
    end
  end
endmodule
