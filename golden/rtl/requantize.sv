// y = saturate(round(x * m / 2**e), BITS), m and e per channel or one for all.
// docs/quantization.md, "Requantization". One element a cycle, one cycle of latency.
module requantize #(
    parameter int S0_BITS  = 32,  // of an input word
    parameter int S0_ROW   = 1,   // channels
    parameter int M0_BITS  = 8,   // of an output word
    parameter int BITS     = 8,   // where the output saturates
    parameter int ROUNDING = 0,   // as in round_shift
    parameter     M_FILE   = "",
    parameter int M_WORDS  = 1,
    parameter int M_BITS   = 33,
    parameter     E_FILE   = "",
    parameter int E_WORDS  = 1,
    parameter int E_BITS   = 12,
    parameter int E_MIN    = -1   // of all e: the left shifter is there if one is negative
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
  logic signed [M_BITS-1:0] m[0:M_WORDS-1];
  logic signed [E_BITS-1:0] e[0:E_WORDS-1];
  initial $readmemh(M_FILE, m);
  initial $readmemh(E_FILE, e);

  logic [31:0] channel;
  wire signed [M_BITS-1:0] m_now = m[M_WORDS == 1 ? 0 : channel];
  wire signed [15:0] e_now = e[E_WORDS == 1 ? 0 : channel];
  wire signed [S0_BITS-1:0] x = $signed(s0_axis_tdata);
  wire signed [63:0] term;
  wire signed [M0_BITS-1:0] y;
  dyadic #(S0_BITS, M_BITS, E_MIN < 0, ROUNDING) scaling (x, m_now, e_now, term);
  saturate #(64, BITS, M0_BITS) clamp (term, y);

  assign s0_axis_tready = !m0_axis_tvalid || m0_axis_tready;
  always_ff @(posedge clk) begin
    if (rst) begin
      m0_axis_tvalid <= 0;
      channel <= 0;
    end else if (s0_axis_tready) begin
      m0_axis_tvalid <= s0_axis_tvalid;
      if (s0_axis_tvalid) begin
        m0_axis_tdata <= y;
        m0_axis_tlast <= s0_axis_tlast;
        channel <= s0_axis_tlast ? 0 : channel + 1;
      end
    end
  end
endmodule
