// I-BERT's GELU: a = min(|x|, -b); p = (sign(x) * ((a + b)**2 + c)) >> N; y = x * (p + shift).
// docs/quantization.md, "I-BERT: i-GELU". One element a cycle, one cycle of latency; b, c and shift per channel or one.
module gelu_ibert #(
    parameter int S0_BITS     = 8,   // of an input word
    parameter int S0_ROW      = 1,   // channels
    parameter int M0_BITS     = 16,  // of an output word
    parameter int N           = 6,
    parameter     B_FILE      = "",
    parameter int B_WORDS     = 1,
    parameter int B_BITS      = 8,
    parameter     C_FILE      = "",
    parameter int C_WORDS     = 1,
    parameter int C_BITS      = 16,
    parameter     SHIFT_FILE  = "",
    parameter int SHIFT_WORDS = 1,
    parameter int SHIFT_BITS  = 8
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
  localparam int A_BITS = S0_BITS + 1 > B_BITS + 1 ? S0_BITS + 1 : B_BITS + 1;
  localparam int P_BITS = (2 * A_BITS > C_BITS ? 2 * A_BITS : C_BITS) + 2;
  localparam int G_BITS = (P_BITS > SHIFT_BITS ? P_BITS : SHIFT_BITS) + 1;

  logic signed [B_BITS-1:0] b[0:B_WORDS-1];
  logic signed [C_BITS-1:0] c[0:C_WORDS-1];
  logic signed [SHIFT_BITS-1:0] shift[0:SHIFT_WORDS-1];
  initial $readmemh(B_FILE, b);
  initial $readmemh(C_FILE, c);
  initial $readmemh(SHIFT_FILE, shift);

  logic [31:0] channel;
  wire signed [A_BITS-1:0] b_now = b[B_WORDS == 1 ? 0 : channel];
  wire signed [C_BITS-1:0] c_now = c[C_WORDS == 1 ? 0 : channel];
  wire signed [SHIFT_BITS-1:0] shift_now = shift[SHIFT_WORDS == 1 ? 0 : channel];

  wire signed [A_BITS-1:0] x = $signed(s0_axis_tdata);
  wire signed [A_BITS-1:0] magnitude = x < 0 ? -x : x;
  wire signed [A_BITS-1:0] clipped = magnitude < -b_now ? magnitude : -b_now;
  wire signed [P_BITS-1:0] distance = clipped + b_now;
  wire signed [P_BITS-1:0] polynomial = distance * distance + c_now;
  wire signed [P_BITS-1:0] signed_polynomial = x == 0 ? '0 : x < 0 ? -polynomial : polynomial;
  wire signed [P_BITS-1:0] erf = signed_polynomial >>> N;
  wire signed [G_BITS-1:0] gate = erf + shift_now;
  wire signed [A_BITS+G_BITS-1:0] y = x * gate;

  assign s0_axis_tready = !m0_axis_tvalid || m0_axis_tready;
  always_ff @(posedge clk) begin
    if (rst) begin
      m0_axis_tvalid <= 0;
      channel <= 0;
    end else if (s0_axis_tready) begin
      m0_axis_tvalid <= s0_axis_tvalid;
      if (s0_axis_tvalid) begin
        m0_axis_tdata <= M0_BITS'(y);
        m0_axis_tlast <= s0_axis_tlast;
        channel <= s0_axis_tlast ? 0 : channel + 1;
      end
    end
  end
endmodule
