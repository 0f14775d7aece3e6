// y[r][n] = sum_k a[r][k] * b[k][n]: a (S0_ROWS, S0_ROW) on the first stream, b (S0_ROW, M0_ROW) on the second.
// docs/quantization.md, "Products". All of b is read first, then row by row of a; the next pair of matrices follows.
module matmul #(
    parameter int S0_BITS = 8,   // of a word of a
    parameter int S0_ROW  = 32,  // K
    parameter int S0_ROWS = 1,   // rows of a in one matrix
    parameter int S1_BITS = 8,   // of a word of b
    parameter int M0_BITS = 32,  // of an output word, and of the accumulator
    parameter int M0_ROW  = 32,  // columns of b
    parameter int LANES   = 4
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
  localparam int WORDS = S0_ROW * M0_ROW;
  localparam int MATRIX = 0, LOAD = 1, SUM = 2, OUT = 3;

  logic [1:0] state;
  logic [31:0] k, n, r, word;
  logic signed [S0_BITS-1:0] row[0:S0_ROW-1];
  logic signed [S1_BITS-1:0] matrix[0:WORDS-1];
  logic [LANES*S0_BITS-1:0] a;
  logic [LANES*S1_BITS-1:0] b;
  always_comb
    for (int i = 0; i < LANES; i++) begin
      a[i*S0_BITS+:S0_BITS] = k + i < S0_ROW ? row[k+i] : '0;
      b[i*S1_BITS+:S1_BITS] = k + i < S0_ROW ? matrix[(k+i)*M0_ROW+n] : '0;
    end
  wire signed [M0_BITS-1:0] sum;
  dot #(S0_BITS, S1_BITS, LANES, M0_BITS) product (clk, state == SUM, k == 0, M0_BITS'(0), a, b, sum);

  assign s0_axis_tready = state == LOAD;
  assign s1_axis_tready = state == MATRIX;
  assign m0_axis_tdata  = sum;
  assign m0_axis_tvalid = state == OUT;
  assign m0_axis_tlast  = n == M0_ROW - 1;
  always_ff @(posedge clk) begin
    if (rst) begin
      state <= MATRIX;
      k <= 0;
      n <= 0;
      r <= 0;
      word <= 0;
    end else
      case (state)
        MATRIX:
        if (s1_axis_tvalid) begin
          matrix[word] <= $signed(s1_axis_tdata);
          word <= word == WORDS - 1 ? 0 : word + 1;
          if (word == WORDS - 1) state <= LOAD;
        end
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
          n <= m0_axis_tlast ? 0 : n + 1;
          if (!m0_axis_tlast) state <= SUM;
          else begin
            r <= r == S0_ROWS - 1 ? 0 : r + 1;
            state <= r == S0_ROWS - 1 ? MATRIX : LOAD;
          end
        end
      endcase
  end
endmodule
