// A row is read to its end, and its elements come back as their distance to the largest: delta = x - x_max <= 0.
// Masked elements take no part in the maximum; their delta means nothing. One row at a time; one element a cycle.
module row_max #(
    parameter int BITS       = 8,   // of an element
    parameter int ROW        = 64,  // of the longest row
    parameter     MASK_FILE  = "",
    parameter int MASK_WORDS = 0    // 0: nothing is masked; else a memory of bits that repeats
) (
    input  logic                   clk,
    input  logic                   rst,
    input  logic        [BITS-1:0] s_tdata,
    input  logic                   s_tvalid,
    output logic                   s_tready,
    input  logic                   s_tlast,
    output logic                   valid,
    input  logic                   ready,
    output logic                   first,
    output logic                   last,
    output logic                   masked,
    output logic signed [BITS-1:0] x,
    output logic signed [BITS-1:0] x_max,
    output logic signed [  BITS:0] delta
);
  localparam int M_WORDS = MASK_WORDS == 0 ? 1 : MASK_WORDS;
  logic mask[0:M_WORDS-1];
  generate
    if (MASK_WORDS != 0) initial $readmemh(MASK_FILE, mask);
  endgenerate

  logic signed [BITS-1:0] row[0:ROW-1];
  logic hidden[0:ROW-1];
  logic [31:0] at, length, element;
  logic full, any;  // the row is complete; one of its elements was seen
  wire signed [BITS-1:0] arrived = $signed(s_tdata);
  wire hide = MASK_WORDS != 0 && mask[element];

  assign s_tready = !full;
  assign valid = full;
  assign first = at == 0;
  assign last = at == length - 1;
  assign x = row[at];
  assign masked = hidden[at];
  assign delta = x - x_max;
  always_ff @(posedge clk) begin
    if (rst) begin
      full <= 0;
      any <= 0;
      at <= 0;
      element <= 0;
    end else if (!full) begin
      if (s_tvalid) begin
        row[at] <= arrived;
        hidden[at] <= hide;
        if (!hide && (!any || arrived > x_max)) begin
          x_max <= arrived;
          any <= 1;
        end
        element <= element == M_WORDS - 1 ? 0 : element + 1;
        length <= at + 1;
        at <= s_tlast ? 0 : at + 1;
        full <= s_tlast;
      end
    end else if (ready) begin
      at <= last ? 0 : at + 1;
      if (last) begin
        full <= 0;
        any <= 0;
      end
    end
  end
endmodule
