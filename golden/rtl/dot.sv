// A multiply-accumulate of LANES products a cycle: sum <= (clear ? start : sum) + a[0]*b[0] + a[1]*b[1] + ...
// Lane 0 stands in the lowest bits of a and b. The accumulator wraps.
module dot #(
    parameter int A_BITS   = 8,
    parameter int B_BITS   = 8,
    parameter int LANES    = 4,
    parameter int ACC_BITS = 32
) (
    input  logic                             clk,
    input  logic                             enable,
    input  logic                             clear,
    input  logic signed [      ACC_BITS-1:0] start,
    input  logic        [LANES * A_BITS-1:0] a,
    input  logic        [LANES * B_BITS-1:0] b,
    output logic signed [      ACC_BITS-1:0] sum
);
  logic signed [ACC_BITS-1:0] products;
  always_comb begin
    products = 0;
    for (int i = 0; i < LANES; i++)
    products = products + ACC_BITS'($signed(a[i*A_BITS+:A_BITS]) * $signed(b[i*B_BITS+:B_BITS]));
  end
  always_ff @(posedge clk) if (enable) sum <= (clear ? start : sum) + products;
endmodule
