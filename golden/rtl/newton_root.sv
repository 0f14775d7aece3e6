// I-ViT's square root: ten steps k = (k + variance // k) >> 1 from 2**16, whatever they reach.
module newton_root #(
    parameter int BITS = 62  // of the variance, at least 18
) (
    input  logic            clk,
    input  logic            rst,
    input  logic            start,
    input  logic [BITS-1:0] variance,
    output logic            done,
    output logic [BITS-1:0] root
);
  localparam int STEPS = 10;
  logic [31:0] step;
  logic divide_now;
  wire divided;
  wire [BITS-1:0] quotient, rest;
  wire [BITS:0] twice = root + quotient;
  divide #(BITS) division (clk, rst, divide_now, variance, root, divided, quotient, rest);

  always_ff @(posedge clk) begin
    divide_now <= !rst && (start || (divided && step != STEPS));
    done <= !rst && divided && step == STEPS;
    if (start) begin
      root <= BITS'(1) << 16;
      step <= 1;
    end else if (divided) begin
      root <= twice[BITS:1];
      step <= step + 1;
    end
  end
endmodule
