// FQ-ViT's attention times V: y[r][n] = sum_k v[k][n] << (15 - code[r][k]), nothing for code -1.
// docs/quantization.md, "Products". Streams and order as in matmul: all of v first, then the codes row by row.
module log2_matmul #(
    parameter int S0_BITS = 8,   // of a code
    parameter int S0_ROW  = 32,  // K
    parameter int S0_ROWS = 1,   // rows of codes in one matrix
    parameter int S1_BITS = 8,   // of a word of v
    parameter int M0_BITS = 32,  // of an output word, and of the accumulator
    parameter int M0_ROW  = 32   // columns of v
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
  // A code becomes its weight, 2**(15 - code) or 0, in front of an ordinary product.
  wire signed [S0_BITS-1:0] code = $signed(s0_axis_tdata);
  wire [16:0] weight = code < 0 ? 17'd0 : 17'd32768 >> code;
  matmul #(17, S0_ROW, S0_ROWS, S1_BITS, M0_BITS, M0_ROW) product (
      .clk(clk), .rst(rst),
      .s0_axis_tdata(weight), .s0_axis_tvalid(s0_axis_tvalid), .s0_axis_tready(s0_axis_tready),
      .s0_axis_tlast(s0_axis_tlast),
      .s1_axis_tdata(s1_axis_tdata), .s1_axis_tvalid(s1_axis_tvalid), .s1_axis_tready(s1_axis_tready),
      .s1_axis_tlast(s1_axis_tlast),
      .m0_axis_tdata(m0_axis_tdata), .m0_axis_tvalid(m0_axis_tvalid), .m0_axis_tready(m0_axis_tready),
      .m0_axis_tlast(m0_axis_tlast)
  );
endmodule
