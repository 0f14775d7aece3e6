// A row is read to its end, and its elements come back as their distance to the mean, which is rounded half to even.
// One row at a time; one serial division a row, then one element a cycle.
module row_centre #(
    parameter int BITS = 16,  // of an element
    parameter int ROW  = 64   // of the longest row
) (
    input  logic                   clk,
    input  logic                   rst,
    input  logic        [BITS-1:0] s_tdata,
    input  logic                   s_tvalid,
    output logic                   s_tready,
    input  logic                   s_tlast,
    output logic                   valid,
    input  logic                   ready,
    output logic                   last,
    output logic signed [  BITS:0] delta
);
  localparam int COUNT_BITS = $clog2(ROW + 1);
  localparam int SUM_BITS = BITS + COUNT_BITS;
  localparam int LOAD = 0, DIVIDE = 1, MEAN = 2, OUT = 3;

  logic [1:0] state;
  logic [31:0] at, length;
  logic signed [SUM_BITS-1:0] sum;
  logic signed [BITS-1:0] row[0:ROW-1];
  wire signed [BITS-1:0] arrived = $signed(s_tdata);

  wire divided;
  wire [SUM_BITS-1:0] quotient, rest;
  wire [SUM_BITS-1:0] magnitude = sum < 0 ? -sum : sum;
  wire [SUM_BITS-1:0] count = SUM_BITS'(length);
  divide #(SUM_BITS) division (clk, rst, state == DIVIDE, magnitude, count, divided, quotient, rest);
  wire [SUM_BITS:0] twice = {rest, 1'b0};
  wire up = twice > {1'b0, count} || (twice == {1'b0, count} && quotient[0]);
  wire [SUM_BITS-1:0] nearest = quotient + SUM_BITS'(up);
  wire signed [BITS:0] mean = sum < 0 ? -$signed(nearest[BITS:0]) : $signed(nearest[BITS:0]);

  assign s_tready = state == LOAD;
  assign valid = state == OUT;
  assign last = at == length - 1;
  assign delta = (BITS + 1)'(row[at]) - mean;
  always_ff @(posedge clk) begin
    if (rst) begin
      state <= LOAD;
      at <= 0;
      sum <= 0;
    end else
      case (state)
        LOAD:
        if (s_tvalid) begin
          row[at] <= arrived;
          sum <= sum + arrived;
          length <= at + 1;
          at <= s_tlast ? 0 : at + 1;
          if (s_tlast) state <= DIVIDE;
        end
        DIVIDE: state <= MEAN;
        MEAN: if (divided) state <= OUT;
        default:
        if (ready) begin
          at <= last ? 0 : at + 1;
          if (last) begin
            sum <= 0;
            state <= LOAD;
          end
        end
      endcase
  end
endmodule
