// quotient and remainder of unsigned numbers, one bit a cycle: BITS cycles from start to done.
// They stay until the next start, which must not come before done. A denominator of 0 gives a quotient of all ones.
module divide #(
    parameter int BITS = 32
) (
    input  logic            clk,
    input  logic            rst,
    input  logic            start,
    input  logic [BITS-1:0] numerator,
    input  logic [BITS-1:0] denominator,
    output logic            done,
    output logic [BITS-1:0] quotient,
    output logic [BITS-1:0] remainder
);
  logic [BITS-1:0] divisor;
  logic [31:0] left;  // bits still to come
  wire [BITS:0] trial = {remainder, quotient[BITS-1]};
  wire fits = trial >= {1'b0, divisor};
  wire [BITS:0] rest = fits ? trial - {1'b0, divisor} : trial;

  always_ff @(posedge clk) begin
    done <= left == 1 && !rst;
    if (rst) left <= 0;
    else if (start) begin
      left <= BITS;
      quotient <= numerator;
      divisor <= denominator;
      remainder <= 0;
    end else if (left != 0) begin
      left <= left - 1;
      remainder <= rest[BITS-1:0];
      quotient <= {quotient[BITS-2:0], fits};
    end
  end
endmodule
