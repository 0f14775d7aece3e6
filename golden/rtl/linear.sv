// y[o] = sum_k x[k] * weight[o][k] + bias[o] for every row x: int8 operands, int32 accumulator.
// docs/quantization.md, "Products". The row is read, then every output takes ceil(S0_ROW / LANES) cycles and one more.
module linear #(
    parameter int S0_BITS     = 8,   // of an input word
    parameter int S0_ROW      = 64,  // K
    parameter int M0_BITS     = 32,  // of an output word, and of the accumulator
    parameter int M0_ROW      = 64,  // outputs of a row
    parameter     WEIGHT_FILE = "",  // (M0_ROW, S0_ROW), row-major
    parameter int WEIGHT_BITS = 8,
    parameter     BIAS_FILE   = "",
    parameter int BIAS_WORDS  = 0,   // 0: no bias
    parameter int BIAS_BITS   = 32,
    parameter int LANES       = 4
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
  localparam int B_WORDS = BIAS_WORDS == 0 ? 1 : BIAS_WORDS;
  localparam int LOAD = 0, SUM = 1, OUT = 2;

  logic signed [WEIGHT_BITS-1:0] weight[0:M0_ROW*S0_ROW-1];
  logic signed [BIAS_BITS-1:0] bias[0:B_WORDS-1];
  initial $readmemh(WEIGHT_FILE, weight);
  generate
    if (BIAS_WORDS != 0) initial $readmemh(BIAS_FILE, bias);
  endgenerate

  logic [1:0] state;
  logic [31:0] k, o;
  logic signed [S0_BITS-1:0] row[0:S0_ROW-1];
  logic [LANES*S0_BITS-1:0] a;
  logic [LANES*WEIGHT_BITS-1:0] b;
  always_comb
    for (int i = 0; i < LANES; i++) begin
      a[i*S0_BITS+:S0_BITS] = k + i < S0_ROW ? row[k+i] : '0;
      b[i*WEIGHT_BITS+:WEIGHT_BITS] = k + i < S0_ROW ? weight[o*S0_ROW+k+i] : '0;
    end
  wire signed [M0_BITS-1:0] first = BIAS_WORDS == 0 ? '0 : M0_BITS'(bias[BIAS_WORDS==0?0 : o]);
  wire signed [M0_BITS-1:0] sum;
  dot #(S0_BITS, WEIGHT_BITS, LANES, M0_BITS) product (clk, state == SUM, k == 0, first, a, b, sum);

  assign s0_axis_tready = state == LOAD;
  assign m0_axis_tdata  = sum;
  assign m0_axis_tvalid = state == OUT;
  assign m0_axis_tlast  = o == M0_ROW - 1;
  always_ff @(posedge clk) begin
    if (rst) begin
      state <= LOAD;
      k <= 0;
      o <= 0;
    end else
      case (state)
        LOAD:
        if (s0_axis_tvalid) begin
          row[k] <= $signed(s0_axis_tdata);
          k <= s0_axis_tlast ? 0 : k + 1;
          if (s0_axis_tlast) state <= SUM;
        end
        SUM: begin
          k <= k + LANES < S0_ROW ? k + LANES : 0;
          if (k + LANES >= S0_ROW) state <= OUT;
        end
        default:
        if (m0_axis_tready) begin
          o <= m0_axis_tlast ? 0 : o + 1;
          state <= m0_axis_tlast ? LOAD : SUM;
        end
      endcase
  end
endmodule
