// 1 / sqrt(value) = inverse / 2**inverse_exp to about 2**-59, for 0 < value < 2**62: FQ-ViT's LayerNorm.
// A root of 31 bits, what it lacks in steps of 2**-30, a reciprocal, and one Newton step.
// docs/quantization.md, "FQ-ViT: an 8-bit multiplier"
module inverse_root (
    input  logic        clk,
    input  logic        rst,
    input  logic        start,
    input  logic [61:0] value,
    output logic        done,
    output logic [61:0] inverse,
    output logic [ 7:0] inverse_exp
);
  // value * 2**shift lies in 2**60 .. 2**62, shift even
  logic [7:0] shift;
  always_comb begin
    shift = 62;
    for (int i = 0; i < 62; i++) if (value[i]) shift = 8'(61 - i);
    shift[0] = 0;
  end
  wire [61:0] aligned_now = value << shift;

  logic [61:0] aligned;
  wire rooted, fraction_done, reciprocal_done;
  wire [30:0] root;
  isqrt #(31) square_root (clk, rst, start, aligned_now, rooted, root);

  wire [61:0] lack = aligned - 62'(root) * 62'(root);  // at most 2 * root
  wire [61:0] fraction, fraction_rest, reciprocal, rest;
  divide #(62) fraction_division (
      clk, rst, rooted, lack << 30, {30'b0, root, 1'b0}, fraction_done, fraction, fraction_rest
  );
  divide #(62) reciprocal_division (
      clk, rst, fraction_done, 62'h2000000000000000, {31'b0, root}, reciprocal_done, reciprocal, rest
  );

  wire signed [63:0] error = $signed({2'b0, rest << 30}) - $signed({2'b0, 62'(reciprocal * fraction)});
  wire signed [96:0] step = error * $signed({1'b0, reciprocal[31:0]});
  wire signed [62:0] correction;
  round_shift #(97, 63, 0) newton (step, 16'sd61, correction);

  always_ff @(posedge clk) begin
    done <= reciprocal_done && !rst;
    if (start) begin
      aligned <= aligned_now;
      inverse_exp <= 8'd91 - (shift >> 1);
    end
    if (reciprocal_done) inverse <= 62'((reciprocal << 30) + correction);
  end
endmodule
