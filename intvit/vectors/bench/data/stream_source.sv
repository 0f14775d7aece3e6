// Sends the words of a file as an AXI stream, with `stall` pauses in 100 cycles; tlast ends every row.
// A word that is offered stays until it is taken. The pauses follow from the seed, in every simulator alike. Once all
// is `over`, a word that was not taken is an error.
module stream_source #(
    parameter int BITS  = 8,
    parameter int WORDS = 1,
    parameter int ROW   = 1,
    parameter     FILE  = "",
    parameter     NAME  = "",
    parameter int SALT  = 1
) (
    input  logic            clk,
    input  logic            rst,
    input  logic [    31:0] seed,
    input  logic [    31:0] stall,
    output logic [BITS-1:0] tdata,
    output logic            tvalid,
    input  logic            tready,
    output logic            tlast,
    input  logic            over,
    output logic            unread
);
  logic [BITS-1:0] words[0:WORDS-1];
  initial $readmemh(FILE, words);

  logic [31:0] sent, column, random;
  wire [31:0] x1 = random ^ (random << 13);
  wire [31:0] x2 = x1 ^ (x1 >> 17);
  wire pause = random % 100 < stall;
  always_ff @(posedge clk) begin
    random <= rst ? (seed * 32'd2654435761 + SALT) | 1 : x2 ^ (x2 << 5);
    if (rst) begin
      sent <= 0;
      column <= 0;
      tvalid <= 0;
      tlast <= 0;
      unread <= 0;
    end else if (over) begin
      if (!unread && (sent < WORDS || tvalid)) $display("UNREAD %s word %0d", NAME, sent - 32'(tvalid));
      unread <= sent < WORDS || tvalid;
    end else if (!tvalid || tready) begin
      if (sent < WORDS && !pause) begin
        tvalid <= 1;
        tdata <= words[sent];
        tlast <= column == ROW - 1;
        sent <= sent + 1;
        column <= column == ROW - 1 ? 0 : column + 1;
      end else begin
        tvalid <= 0;
        tdata <= 'x;
        tlast <= 'x;
      end
    end
  end
endmodule
