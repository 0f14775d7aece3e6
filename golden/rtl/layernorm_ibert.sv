// I-BERT's LayerNorm: d = x - mean, k = isqrt(sum (d >> SHIFT)**2) << SHIFT, F = 2**31 // k,
// y = ((d * F) >> 1) + bias, and bias where k is 0. docs/quantization.md, "I-BERT: an exact root".
module layernorm_ibert #(
    parameter int S0_BITS   = 16,  // of an input word
    parameter int S0_ROW    = 64,  // of the longest row
    parameter int M0_BITS   = 32,  // of an output word
    parameter int SHIFT     = 0,
    parameter     BIAS_FILE = "",
    parameter int BIAS_BITS = 32
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
  localparam int D_BITS = S0_BITS + 1;
  localparam int SQUARES = 2 * D_BITS + $clog2(S0_ROW + 1);
  localparam int VAR_BITS = SQUARES > 62 ? 62 : SQUARES + SQUARES % 2;  // even; a variance is below 2**62
  localparam int ROOT_BITS = VAR_BITS / 2 + SHIFT;
  localparam int DIV_BITS = ROOT_BITS > 32 ? ROOT_BITS : 32;
  localparam int NEXT = 0, START = 1, ROOT = 2, DIVIDE = 3, FACTOR = 4, OUT = 5;

  logic signed [BIAS_BITS-1:0] bias[0:S0_ROW-1];
  initial $readmemh(BIAS_FILE, bias);

  logic [2:0] state;
  logic [31:0] at, length;
  logic [VAR_BITS-1:0] variance;
  logic signed [D_BITS-1:0] row[0:S0_ROW-1];

  wire valid, last;
  wire signed [D_BITS-1:0] delta;
  row_centre #(S0_BITS, S0_ROW) centre (
      .clk(clk), .rst(rst), .s_tdata(s0_axis_tdata), .s_tvalid(s0_axis_tvalid), .s_tready(s0_axis_tready),
      .s_tlast(s0_axis_tlast), .valid(valid), .ready(state == NEXT), .last(last), .delta(delta)
  );
  wire signed [D_BITS-1:0] shifted = delta >>> SHIFT;
  wire signed [2*D_BITS-1:0] square = shifted * shifted;

  wire rooted, divided;
  wire [VAR_BITS/2-1:0] short_root;
  wire [DIV_BITS-1:0] root = DIV_BITS'(short_root) << SHIFT;
  wire [DIV_BITS-1:0] factor, rest;
  isqrt #(VAR_BITS / 2) square_root (clk, rst, state == START, variance, rooted, short_root);
  divide #(DIV_BITS) reciprocal (clk, rst, state == DIVIDE, DIV_BITS'(32'h80000000), root, divided, factor, rest);

  wire signed [D_BITS+32:0] product = row[at] * $signed({1'b0, factor[31:0]});
  wire signed [D_BITS+32:0] normalized = product >>> 1;
  wire signed [63:0] y = (root == 0 ? 64'sd0 : 64'(normalized)) + 64'(bias[at]);
  assign m0_axis_tdata  = M0_BITS'(y);
  assign m0_axis_tvalid = state == OUT;
  assign m0_axis_tlast  = at == length - 1;
  always_ff @(posedge clk) begin
    if (rst) begin
      state <= NEXT;
      at <= 0;
      variance <= 0;
    end else
      case (state)
        NEXT:
        if (valid) begin
          row[at] <= delta;
          variance <= variance + VAR_BITS'($unsigned(square));
          length <= at + 1;
          at <= last ? 0 : at + 1;
          if (last) state <= START;
        end
        START: state <= ROOT;
        ROOT: if (rooted) state <= DIVIDE;
        DIVIDE: state <= FACTOR;
        FACTOR: if (divided) state <= OUT;
        default:
        if (m0_axis_tready) begin
          at <= m0_axis_tlast ? 0 : at + 1;
          if (m0_axis_tlast) begin
            variance <= 0;
            state <= NEXT;
          end
        end
      endcase
  end
endmodule
