// ITA's requantizer, 16 values a beat: what tools/preset_owners.py runs in Verilator.
// A beat of beats.hex: multiplier, shift and addend, 8 bits each, then 16 values of 26 bits; the last one lowest.

module ita;
  import ita_package::*;

  localparam int LATENCY = 2;
  int n_beats, unsigned_operand, from, file;
  logic [23+16*WO:0] beat;
  logic clk = 0, rst_n = 0;
  requant_mode_e mode;
  requant_const_t multiplier, shift;
  oup_t x;
  requant_oup_t addend, y;

  ita_requantizer dut (
      .clk_i(clk), .rst_ni(rst_n), .mode_i(mode), .eps_mult_i(multiplier), .right_shift_i(shift), .calc_en_i(1'b1),
      .calc_en_q_i(1'b1), .result_i(x), .add_i(addend), .requant_oup_o(y)
  );

  initial begin
    if (!$value$plusargs("beats=%d", n_beats) || !$value$plusargs("unsigned=%d", unsigned_operand)) $fatal(1, "plusargs");
    from = $fopen("beats.hex", "r");
    file = $fopen("y.txt", "w");
    mode = unsigned_operand != 0 ? Unsigned : Signed;
    #1 rst_n = 1;
    for (int i = 0; i < n_beats + LATENCY; i++) begin
      if (i < n_beats) begin
        logic signed [WI-1:0] one;
        if ($fscanf(from, "%h", beat) != 1) $fatal(1, "beats.hex");
        {multiplier, shift, one, x} = beat;
        for (int lane = 0; lane < 16; lane++) addend[lane] = one;
      end
      #1;
      if (i >= LATENCY) $fdisplay(file, "%h", y);
      clk = 1;
      #1 clk = 0;
    end
    $fclose(file);
    $finish;
  end
endmodule
