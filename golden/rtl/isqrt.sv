// The largest root with root * root <= value, one bit of the root a cycle: BITS cycles from start to done.
// It stays until the next start, which must not come before done.
module isqrt #(
    parameter int BITS = 32  // of the root; the value has twice as many
) (
    input  logic              clk,
    input  logic              rst,
    input  logic              start,
    input  logic [2*BITS-1:0] value,
    output logic              done,
    output logic [  BITS-1:0] root
);
  logic [2*BITS-1:0] todo;  // two bits of it are looked at in every cycle
  logic [BITS+1:0] rest;
  logic [31:0] left;
  wire [BITS+3:0] have = {rest, todo[2*BITS-1-:2]};
  wire [BITS+3:0] need = {2'b0, root, 2'b01};
  wire fits = have >= need;
  wire [BITS+3:0] remaining = fits ? have - need : have;

  always_ff @(posedge clk) begin
    done <= left == 1 && !rst;
    if (rst) left <= 0;
    else if (start) begin
      left <= BITS;
      todo <= value;
      rest <= 0;
      root <= 0;
    end else if (left != 0) begin
      left <= left - 1;
      todo <= todo << 2;
      rest <= remaining[BITS+1:0];
      root <= {root[BITS-2:0], fits};
    end
  end
endmodule
