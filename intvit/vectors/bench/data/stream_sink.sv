// Takes an AXI stream, with `stall` pauses in 100 cycles, and holds every word and tlast against the expected file.
// An error is also: X bits, a word that changes or goes before it is taken, one too many, none for TIMEOUT cycles. Each
// sixteenth word is waited for before tready comes, so that a tvalid that waits for it never does.
module stream_sink #(
    parameter int BITS    = 8,
    parameter int WORDS   = 1,
    parameter int ROW     = 1,
    parameter     FILE    = "",
    parameter     NAME    = "",
    parameter int SALT    = 1,
    parameter int TIMEOUT = 1000000
) (
    input  logic            clk,
    input  logic            rst,
    input  logic [    31:0] seed,
    input  logic [    31:0] stall,
    input  logic [BITS-1:0] tdata,
    input  logic            tvalid,
    output logic            tready,
    input  logic            tlast,
    output logic            done,      // nothing more is waited for
    output logic [    31:0] received,
    output logic [    31:0] errors
);
  localparam int SHOWN = 10, QUIET = 1000;  // lines of errors; cycles after the last word, beside twice the longest wait
  logic [BITS-1:0] words[0:WORDS-1];
  initial $readmemh(FILE, words);

  logic [31:0] column, random, waited, longest;
  logic [BITS-1:0] held;
  logic holding, held_last;
  wire [31:0] x1 = random ^ (random << 13);
  wire [31:0] x2 = x1 ^ (x1 >> 17);
  wire pause = random % 100 < stall;
  wire last = column == ROW - 1;
  wire [BITS-1:0] expected = words[received < WORDS ? received : 0];
  wire changed = holding && (tvalid !== 1 || tdata !== held || tlast !== held_last);
  wire taken = tvalid === 1 && tready;
  wire more = taken && received >= WORDS;
  wire wrong = taken && !more && tdata !== expected;
  wire unended = taken && !more && tlast !== last;
  wire late = waited >= TIMEOUT && received < WORDS;
  wire unknown = ^tvalid === 1'bx;
  wire [3:0] turn = 4'(received) + 4'(taken);
  wire shy = turn == 0;
  wire quiet = waited >= TIMEOUT || waited >= QUIET + 2 * longest;

  always_ff @(posedge clk) begin
    random <= rst ? (seed * 32'd2654435761 + SALT) | 1 : x2 ^ (x2 << 5);
    if (rst) begin
      received <= 0;
      errors <= 0;
      column <= 0;
      waited <= 0;
      longest <= 0;
      tready <= 0;
      holding <= 0;
      done <= 0;
    end else if (!done) begin
      tready <= !pause && (!shy || (tvalid === 1 && !taken));
      holding <= tvalid === 1 && !tready;
      held <= tdata;
      held_last <= tlast;
      waited <= taken ? 0 : waited + 1;
      if (taken && waited > longest) longest <= waited;
      done <= late || more || unknown || (received >= WORDS && quiet);
      errors <= errors + 32'(wrong) + 32'(unended) + 32'(changed) + 32'(more) + 32'(late) + 32'(unknown);
      if (taken && !more) begin
        received <= received + 1;
        column <= last ? 0 : column + 1;
      end
      if (errors < SHOWN) begin
        if (wrong) $display("MISMATCH %s word %0d expected %h got %h", NAME, received, expected, tdata);
        if (unended) $display("TLAST %s word %0d expected %b got %b", NAME, received, last, tlast);
        if (changed) $display("UNSTABLE %s word %0d", NAME, received);
        if (more) $display("EXTRA %s word %0d got %h", NAME, received, tdata);
        if (late) $display("TIMEOUT %s word %0d after %0d cycles", NAME, received, waited);
        if (unknown) $display("UNKNOWN %s tvalid after word %0d", NAME, received);
      end
    end
  end
endmodule
