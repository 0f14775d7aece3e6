// A signed value clamped to the signed range of BITS, in a word of OUT_BITS. Combinational.
module saturate #(
    parameter int IN_BITS  = 64,
    parameter int BITS     = 8,
    parameter int OUT_BITS = BITS
) (
    input  logic signed [ IN_BITS-1:0] value,
    output logic signed [OUT_BITS-1:0] result
);
  localparam int W = (IN_BITS > OUT_BITS ? IN_BITS : OUT_BITS) + 1;
  localparam logic signed [W-1:0] HIGH = (W'(1) << (BITS - 1)) - 1;
  localparam logic signed [W-1:0] LOW = -HIGH - 1;
  wire signed [W-1:0] wide = value;
  wire signed [W-1:0] clamped = wide > HIGH ? HIGH : wide < LOW ? LOW : wide;
  assign result = clamped[OUT_BITS-1:0];
endmodule
